//! Windows through the door: no crowd gets more than they hold, what others may take is followed on a chain,
//! and a clock that jumps is not believed.

#![cfg(feature = "server")]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[path = "../support"]
mod support {
    pub mod fault_proxy;
    pub mod invariants;
    pub mod server;
    pub mod services;
}

mod clock;
mod exposures;
mod permits;

use futures::future::join_all;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use support::invariants::Invariants;
use support::server::{LIMIT, Server, SetUp, payout, payout_grants};
use support::services::{Anvil, AnvilOptions, Postgres, poll_until};

const SUB: &str = "svc:payouts";
/// What the server takes on at once is less than this crowd: who is told so asks again.
const CROWD: usize = 1_000;
const HOLDS: usize = 10;
/// How long a caller who was told to come back waits.
const AGAIN: Duration = Duration::from_millis(250);

async fn chain() -> Anvil {
    Anvil::start(AnvilOptions { slots_in_an_epoch: Some(1), ..AnvilOptions::default() }).await
}

/// Payouts whose windows hold ten requests, and far more than their value.
fn ten_payouts() -> String {
    let windows = r#"windows = [{ span = "24h", rolling = true, max = "1000", scope = "group" },
    { span = "24h", rolling = true, count = 10, scope = "group" }]"#;
    let grants = payout_grants("1000");
    let old = grants.lines().find(|line| line.starts_with("windows")).unwrap();
    grants.replace(old, windows)
}

/// Asks until there is an answer that stays. A repeat is answered with 200 if it was taken before, and the answer
/// to that was lost: then it is as if that had come.
async fn ask(server: &Server, n: usize) -> (u16, Value) {
    let (begun, mut is_lost) = (Instant::now(), false);
    loop {
        match server.try_ask(SUB, &format!("crowd-{n}"), &payout(1_000)).await {
            Some(answer) if answer.status == 200 && is_lost => return (201, answer.body),
            Some(answer) if answer.status != 503 => return (answer.status, answer.body),
            answer => is_lost |= answer.is_none(),
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "no answer for {n}");
        // A thousand who came back at once would be all that a server does.
        tokio::time::sleep(AGAIN).await;
    }
}

async fn crowd(servers: &[&Server]) -> Vec<String> {
    let asked = (0..CROWD).map(|n| ask(servers[n % servers.len()], n));
    let mut passed = Vec::new();
    for (status, body) in join_all(asked).await {
        match status {
            201 => passed.push(body["id"].as_str().unwrap().to_owned()),
            403 => assert_eq!(body["code"], "policy-denied", "{body}"),
            _ => panic!("{status}: {body}"),
        }
    }
    passed
}

async fn of_a_crowd_ten_pass(setup: &SetUp, anvil: &Anvil, servers: &[&Server], begun: Instant) {
    let passed = crowd(servers).await;
    println!("{CROWD} asked at {} server(s): {:?}", servers.len(), begun.elapsed());
    assert_eq!(passed.len(), HOLDS);
    for id in &passed {
        servers[0].wait_for(id, &["mined", "finalized"]).await;
    }
    anvil.mine(4).await;
    for id in &passed {
        servers[0].wait_for(id, &["finalized"]).await;
    }
    // What is final counts on.
    let (status, body) = ask(servers[0], CROWD).await;
    assert_eq!((status, body["code"].as_str()), (403, Some("policy-denied")));
    Invariants::new(&anvil.url(), setup.store_url()).answered(passed).check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_at_once_a_window_for_ten_lets_ten_pass_on_sqlite() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &ten_payouts());
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    of_a_crowd_ten_pass(&setup, &anvil, &[&server], Instant::now()).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_at_once_a_window_for_ten_lets_ten_pass_on_two_servers_over_postgres() {
    let anvil = chain().await;
    let url = Postgres::shared().await.create_database();
    let setup = SetUp::new(&anvil.url(), Some(&url), &ten_payouts());
    let one = setup.start(&[]).await;
    one.funded_key(&anvil, "op-1").await;
    let two = setup.start_beside("audit-2.record", &[]).await;
    of_a_crowd_ten_pass(&setup, &anvil, &[&one, &two], Instant::now()).await;
    one.stop().await;
    two.stop().await;
}
