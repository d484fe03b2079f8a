//! How fast the watcher reads and delivers, and what it holds while it does: `make bench-watcher`, explained in
//! `docs/BENCH.md`.
//!
//! The program itself, with SQLite, over a stub node in this process that makes its blocks as they are asked for:
//! a past of many blocks and logs; then blocks with a thousand events each, as they come; then what a trigger and
//! a broker take.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    missing_docs,
    reason = "a program that measures: to panic is how it says that it cannot"
)]

#[path = "../../tests/support"]
mod support {
    pub mod recording_server;
    pub mod services;
    pub mod stub_node;
}

mod watched;

use serde_json::json;
use std::io::Write as _;
use std::time::{Duration, Instant};
use support::services::RabbitMq;
use support::stub_node::{Density, StubNode};
use watched::Watched;

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(3600);
/// How often it is looked where the watcher is.
const LOOK: Duration = Duration::from_millis(5);
/// By how much the memory may grow from a tenth of the past to its end.
const GROWTH_MAX: f64 = 1.25;
/// What is no growth: allocators keep pages.
const SLACK_MIB: f64 = 16.0;
/// How far the watcher may be behind the head at worst: further, and it does not keep up.
const BEHIND_MAX: u64 = 5;

fn setting(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).unwrap_or_default();
    if text.is_empty() { default } else { text.parse().expect("a number") }
}

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.unwrap().block_on(run());
}

async fn run() {
    let (blocks, logs) = (setting("BLOCKS", 200_000), setting("LOGS", 1_000_000));
    let (live, each) = (setting("LIVE_BLOCKS", 30), setting("LIVE_EVENTS", 1_000));
    let density = Density { blocks, each: logs / blocks, live: each };
    let node = StubNode::start(density).await;
    let past = past(&node, density).await;
    let live = blocks_as_they_come(&node, density, live, setting("BLOCK_MS", 1_000)).await;
    let embedded = deliveries(None, setting("DELIVERIES", 3_000)).await;
    let rabbit = RabbitMq::start().await;
    let broker = deliveries(Some(&rabbit), setting("DELIVERIES", 3_000)).await;
    let report = json!({ "past": past, "live": live, "embedded": embedded, "rabbitmq": broker });
    if let Ok(path) = std::env::var("BENCH_JSON") {
        let mut file = std::fs::File::create(path).unwrap();
        writeln!(file, "{report}").unwrap();
    }
    println!("{report}");
}

/// Reads the whole past, and says at which speed and in how much memory.
async fn past(node: &StubNode, density: Density) -> serde_json::Value {
    let total = density.blocks * density.each;
    println!("the past: {} blocks with {total} logs", density.blocks);
    let watched = Watched::new(&node.url(), None, "").await;
    let (began, mut program) = (Instant::now(), watched.start());
    let mut peaks = Vec::new();
    // All but the last blocks, which are read as the live ones are.
    let (mut marks, most) = (vec![10_u64, 50, 100], total);
    while let Some(mark) = marks.first().copied() {
        assert!(program.try_exit_status().is_none(), "{}", program.tail());
        assert!(began.elapsed() < LIMIT, "too slow");
        let found = watched.events().await;
        if found >= most * mark / 100 {
            marks.remove(0);
            let (now, peak) = watched::memory(program.pid());
            let seconds = began.elapsed().as_secs_f64();
            let speed = found as f64 / seconds;
            println!(
                "  {mark:3} %: {found} events in {seconds:.1} s, {speed:.0} events/s, memory {now:.0} MiB, at most {peak:.0} MiB"
            );
            peaks.push(peak);
        }
        tokio::time::sleep(LOOK).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    assert_eq!(watched.events().await, total, "each event once");
    println!("  calls: {:?}", node.calls());
    let flat = peaks[2] <= peaks[0] * GROWTH_MAX + SLACK_MIB;
    assert!(flat, "the memory grows with the past: {peaks:?} MiB");
    json!({
        "blocks": density.blocks, "events": total, "seconds": seconds,
        "events_per_second": total as f64 / seconds,
        "blocks_per_second": density.blocks as f64 / seconds, "peak_mib": peaks,
    })
}

/// One block after another, each with many events: how long until the watcher has it in its database.
async fn blocks_as_they_come(
    node: &StubNode,
    density: Density,
    count: u64,
    block_ms: u64,
) -> serde_json::Value {
    println!("{count} blocks with {} events each, one every {block_ms} ms", density.live);
    let watched = Watched::new(&node.url(), Some(density.blocks), "").await;
    let _program = watched.start();
    watched.cursor_at(density.blocks, LIMIT).await;
    let (began, mut came, mut lag_ms) = (Instant::now(), Vec::new(), Vec::new());
    let mut blocks_behind = 0;
    while (lag_ms.len() as u64) < count {
        let elapsed = began.elapsed();
        let due = (elapsed.as_millis() as u64 / block_ms + 1).min(count);
        while (came.len() as u64) < due {
            came.push(Instant::now());
            node.set_head(density.blocks + came.len() as u64);
        }
        let read = watched.cursor().await.saturating_sub(density.blocks).min(came.len() as u64);
        blocks_behind = blocks_behind.max(came.len() as u64 - read);
        while (lag_ms.len() as u64) < read {
            lag_ms.push(came[lag_ms.len()].elapsed().as_millis() as u64);
        }
        assert!(elapsed < LIMIT, "too slow");
        tokio::time::sleep(LOOK).await;
    }
    assert!(blocks_behind <= BEHIND_MAX, "behind by {blocks_behind} blocks: it does not keep up");
    let seconds = began.elapsed().as_secs_f64();
    let events = count * density.live;
    assert_eq!(watched.events().await, events, "each event once");
    lag_ms.sort_unstable();
    let at = |part: usize| lag_ms[(lag_ms.len() * part / 100).min(lag_ms.len() - 1)];
    let (p50, p95, most) = (at(50), at(95), at(100));
    println!(
        "  behind by at most {blocks_behind} block(s); until it is stored: p50 {p50} ms, p95 {p95} ms, most {most} ms; {:.0} events/s",
        events as f64 / seconds
    );
    json!({ "blocks_behind": blocks_behind, "p50_ms": p50, "p95_ms": p95, "most_ms": most })
}

/// How fast events become requests, and over a broker how fast they are published.
async fn deliveries(rabbit: Option<&RabbitMq>, count: u64) -> serde_json::Value {
    let bus = rabbit.map(|rabbit| rabbit.url());
    let name = if bus.is_some() { "RabbitMQ" } else { "the embedded bus" };
    println!("{count} final events to one trigger over {name}");
    let density = Density { blocks: count.div_ceil(100) + 16, each: 100, live: 0 };
    let node = StubNode::start(density).await;
    let watched = Watched::new(&node.url(), None, "deliver").await;
    let server = watched.with_trigger(bus.as_deref()).await;
    let (began, _program) = (Instant::now(), watched.start());
    let mut published = None;
    while server.requests().len() < count as usize {
        if bus.is_some() && published.is_none() && watched.published().await >= count {
            published = Some(began.elapsed().as_secs_f64());
        }
        assert!(began.elapsed() < LIMIT, "too slow");
        tokio::time::sleep(LOOK * 10).await;
    }
    let asked = count as f64 / began.elapsed().as_secs_f64();
    let published = published.map(|seconds| count as f64 / seconds);
    println!(
        "  requests: {asked:.0}/s{}",
        published.map_or_else(String::new, |p| format!(", published: {p:.0}/s"))
    );
    json!({ "requests_per_second": asked, "published_per_second": published })
}
