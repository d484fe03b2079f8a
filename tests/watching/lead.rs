//! Several watchers over one database, and what they tell of themselves.

use super::support::services::{Postgres, free_port};
use super::*;
use std::collections::BTreeMap;
use std::time::Instant;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const LEASE: Duration = Duration::from_secs(2);

fn watch_section(more: &str) -> String {
    format!("[watch]\nlease = \"{}s\"\n{more}", LEASE.as_secs())
}

impl Stage {
    /// Asks for orders, each in a block of its own.
    async fn ask_for(&self, orders: std::ops::Range<u128>) {
        for order in orders {
            self.ask(order).await;
            self.anvil.mine(1).await;
        }
    }

    /// Waits until this process leads, and answers how long that took.
    async fn led_by(&self, watcher: &Program) -> Duration {
        let (since, pid) = (Instant::now(), format!(":{}:", watcher.pid()));
        poll_until(LIMIT, &format!("led by {pid}"), async || {
            let leader = self.status()["chains"][0]["leader"]["holder"].clone();
            leader.as_str().is_some_and(|holder| holder.contains(&pid)).then_some(())
        })
        .await;
        since.elapsed()
    }

    /// I6: each order has one key, under which one body was asked for, and their order is the chain's.
    fn each_once_and_in_order(&self, orders: std::ops::Range<u128>) {
        let (mut first, mut bodies) = (Vec::new(), BTreeMap::new());
        for (order, request) in self.orders().into_iter().zip(self.server.requests()) {
            let key = (request.key.clone(), request.body.clone());
            let known = bodies.entry(order).or_insert_with(|| {
                first.push(order);
                key.clone()
            });
            assert_eq!(*known, key, "order {order} was asked for in two ways");
        }
        assert_eq!(first, orders.collect::<Vec<_>>());
        let keys = self.server.by_key();
        assert_eq!(keys.len(), bodies.len());
        assert!(keys.values().all(|times| *times <= 2), "{keys:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e36_of_two_watchers_one_leads_and_the_other_takes_over() {
    let setting = Setting {
        store: Some(Postgres::shared().await.create_database()),
        bus: watch_section(""),
        ..Setting::default()
    };
    let stage = Stage::with(setting).await;
    let mut one = stage.watcher();
    one.wait_for_line("this process leads", LIMIT).await;
    let mut two = stage.watcher();
    two.wait_for_line("standing by", LIMIT).await;
    stage.ask_for(1..6).await;
    stage.led_by(&one).await;
    stage.requests(1).await;

    one.kill9();
    stage.trouble();
    stage.ask_for(6..11).await;
    let killed = stage.led_by(&two).await;
    stage.ask_for(11..16).await;
    stage.outbox("done", 13).await;

    let mut three = stage.watcher();
    three.wait_for_line("standing by", LIMIT).await;
    two.signal("STOP");
    stage.ask_for(16..21).await;
    let stopped = stage.led_by(&three).await;
    stage.ask_for(21..26).await;
    two.signal("CONT");
    stage.ask_for(26..31).await;
    stage.outbox("done", 28).await;
    two.wait_for_line("another process leads now", LIMIT).await;
    stage.led_by(&three).await;

    // One that is told to stop does not let the other one wait for the lease.
    let stopping = Instant::now();
    stage.stop(three).await;
    stage.ask_for(31..36).await;
    stage.led_by(&two).await;
    let gave_back = stopping.elapsed();
    stage.anvil.mine(2).await;
    stage.outbox("done", 35).await;
    stage.each_once_and_in_order(1..36);
    // The lease, a round of looking for it, and this busy machine.
    let most = LEASE * 30;
    assert!(
        killed < most && stopped < most && gave_back < most,
        "taken over after {killed:?}, {stopped:?}, {gave_back:?}"
    );
    let status = stage.status();
    let duties = status["duties"].as_array().unwrap();
    let names: Vec<&str> = duties.iter().map(|duty| duty["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["chain:local", "outbox:trigger:charge:asked", "upkeep"]);
    assert!(duties.iter().all(|duty| duty["token"].as_i64().unwrap() >= 4), "{duties:?}");
    stage.stop(two).await;
    assert!(stage.status()["chains"][0]["leader"].is_null());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_sqlite_a_second_watcher_stands_by() {
    let stage = Stage::with(Setting { bus: watch_section(""), ..Setting::default() }).await;
    let mut one = stage.watcher();
    one.wait_for_line("this process leads", LIMIT).await;
    let mut two = stage.watcher();
    two.wait_for_line("standing by", LIMIT).await;
    stage.ask_for(1..4).await;
    one.kill9();
    stage.ask_for(4..7).await;
    stage.anvil.mine(2).await;
    stage.outbox("done", 6).await;
    stage.each_once_and_in_order(1..7);
    stage.stop(two).await;
}

async fn scraped(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let request = b"GET /metrics HTTP/1.1\r\nhost: watcher\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    Some(text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_tells_its_metrics_and_an_operator_acknowledges() {
    let port = free_port();
    let metrics = format!("metrics_listen = \"127.0.0.1:{port}\"");
    let stage = Stage::with(Setting { bus: watch_section(&metrics), ..Setting::default() }).await;
    stage.server.script([(403, "", json!({ "code": "policy-denied", "reasons": ["no grant"] }))]);
    stage.ask(1).await;
    stage.anvil.send(&stage.anvil.accounts()[1], EMITTER, "0x", 0).await;
    stage.ask(2).await;
    stage.anvil.mine(3).await;
    let watcher = stage.watcher();
    stage.outbox("parked", 1).await;
    stage.outbox("done", 1).await;
    let trigger = "consumer=\"trigger:charge\"";
    let wanted = [
        format!("claviger_watcher_outbox{{{trigger},state=\"parked\"}} 1"),
        format!("claviger_watcher_delivered_total{{{trigger}}} 1"),
        format!("claviger_watcher_parked_total{{{trigger}}} 1"),
        "claviger_watcher_leader{duty=\"chain:local\"} 1".to_owned(),
        "claviger_watcher_lag_blocks{chain=\"local\"} 0".to_owned(),
    ];
    poll_until(LIMIT, &format!("{wanted:?}"), async || {
        let text = scraped(port).await?;
        wanted.iter().all(|line| text.lines().any(|told| told == line)).then_some(())
    })
    .await;

    let (ok, text) = stage.command(&["parked", "--config"]);
    assert!(ok, "{text}");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{text}");
    let raw = &lines[1]["raw"];
    assert_eq!(
        (raw["data"].as_str(), raw["topics"].as_array().map(Vec::len)),
        (Some("0x"), Some(1))
    );

    let status = stage.status();
    let attention = status["attention"].as_array().unwrap();
    assert_eq!(attention.len(), 2);
    let id = attention[0]["delivery"].to_string();
    let event = attention[1]["event_id"].as_str().unwrap();
    for arguments in [["--id", &id], ["--event", event]] {
        let [name, value] = arguments;
        let (ok, text) = stage.command(&["acknowledge", name, value, "--config"]);
        assert!(ok && text.contains("1 acknowledged"), "{text}");
    }
    assert!(stage.status()["attention"].as_array().unwrap().is_empty());
    assert_eq!(stage.count("parked"), 1);
    let (ok, text) = stage.command(&["status", "--config"]);
    assert!(ok && text.contains("led by") && text.contains("2 events told"), "{text}");
    assert!(text.contains("second reading: next block"), "{text}");
    stage.stop(watcher).await;
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backfill_that_is_killed_goes_on_where_it_was() {
    let stage = Stage::with(Setting { bus: watch_section(""), ..Setting::default() }).await;
    // Old blocks are read so many at once.
    let config = stage.config().replace("poll_ms = 20", "poll_ms = 20\nrange_blocks = 64");
    std::fs::write(stage.path("watcher.toml"), config).unwrap();
    stage.ask_for(1..3).await;
    stage.anvil.mine(200).await;
    let watcher = stage.watcher();
    stage.outbox("done", 2).await;
    stage.at_head().await;
    stage.stop(watcher).await;
    let back = ["backfill", "--source", "asked", "--from-block", "1", "--to-block", "150"];
    let (ok, text) = stage.command(&[&back[..], &["--config"]].concat());
    assert!(ok && text.contains("from block 1 to 150"), "{text}");
    let source = || stage.status()["chains"][0]["sources"][0].clone();
    assert_eq!(source()["backfill"]["blocks_left"], 150);
    stage.killed_at("watch.mid_block:2").await;
    let backfill = source()["backfill"].clone();
    assert_eq!((&source()["next_block"], &backfill["blocks_left"]), (&json!(65), &json!(86)));
    assert_eq!((&backfill["percent"], &backfill["to_block"]), (&json!(42.7), &json!(150)));
    let (ok, text) = stage.command(&["status", "--config"]);
    assert!(ok && text.contains("42.7 %, 86 blocks left"), "{text}");

    // Asked for again while it runs, it is followed to its end.
    let watcher = stage.watcher();
    let head = stage.anvil.block_number().await;
    poll_until(LIMIT, "the end of the backfill", async || {
        source()["backfill"].is_null().then_some(())
    })
    .await;
    assert_eq!(source()["next_block"], head + 1, "it goes on where it was");
    let (ok, text) = stage.command(&[&back[..], &["--wait", "--config"]].concat());
    assert!(ok && text.contains("has read them"), "{text}");
    assert_eq!(source()["first_block"], 1);
    assert_eq!(stage.count("done"), 2);
    stage.each_once_and_in_order(1..3);
    stage.stop(watcher).await;
}
