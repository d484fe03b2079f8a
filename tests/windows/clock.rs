//! A clock that jumped stops what uses windows, until an operator or the chain confirms it.

use super::{Anvil, AnvilOptions, SUB, SetUp, chain, json, payout, payout_grants};
use crate::support::invariants::Invariants;
use crate::support::server::Server;
use claviger::core::access::Role;
use claviger::core::id::RequestId;
use claviger::core::time::Timestamp;
use claviger::ports::store::{End, unit};
use reqwest::Method;
use std::time::{SystemTime, UNIX_EPOCH};

const HOUR_MS: i64 = 3_600_000;

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

/// The server was last seen so long after now.
async fn last_seen(setup: &SetUp, ahead_ms: i64) {
    let at = (now_ms() + ahead_ms).to_string();
    let store = setup.store().await;
    let done = unit(&*store, "test", move |unit| {
        let at = at.clone();
        Box::pin(async move { Ok(End::Commit(unit.set_meta("clock_seen", &at).await?)) })
    });
    done.await.unwrap();
}

async fn confirm(server: &Server, role: Role, reason: &str) -> u16 {
    let url = format!("{}/admin/v1/clock/confirm", server.admin_url());
    let token = server.token("dev:op", role);
    let body = json!({ "reason": reason });
    server.try_call(Method::POST, url, &token, None, Some(&body)).await.unwrap().status
}

async fn pays(server: &Server, key: &str) -> (u16, String) {
    let answer = server.ask(SUB, key, &payout(1)).await;
    (answer.status, answer.body["code"].as_str().unwrap_or_default().to_owned())
}

fn unconfirmed() -> (u16, String) {
    (503, "clock-unconfirmed".to_owned())
}

fn accepted() -> (u16, String) {
    (201, String::new())
}

#[tokio::test]
async fn a_clock_that_went_back_waits_for_an_operator_also_after_a_restart() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("10"));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    assert_eq!(pays(&server, "before").await, accepted());
    server.stop().await;
    last_seen(&setup, HOUR_MS).await;
    for start in 0..2 {
        let server = setup.start(&[]).await;
        assert_eq!(pays(&server, "behind").await, unconfirmed(), "start {start}");
        assert_eq!(server.metric("claviger_clock_confirmed", &[]).await, 0.0);
        if start == 0 {
            server.stop().await;
            continue;
        }
        assert_eq!(confirm(&server, Role::Auditor, "no").await, 403);
        assert_eq!(confirm(&server, Role::Operator, " ").await, 400);
        assert_eq!(pays(&server, "behind").await, unconfirmed());
        assert_eq!(confirm(&server, Role::Operator, "the last one was wrong").await, 200);
        assert_eq!(pays(&server, "behind").await, accepted());
        server.stop().await;
    }
    let server = setup.start(&[]).await;
    assert_eq!(pays(&server, "after").await, accepted(), "confirmed is confirmed");
    server.stop().await;
    let invariants = Invariants::new(&anvil.url(), setup.store_url());
    let said = invariants.leaves("INSTRUCTED").await;
    assert_eq!(said[0]["action"], "clock_confirm", "{said:?}");
    assert_eq!(said[0]["reason"], "the last one was wrong");
    assert_eq!(invariants.leaves("ALARM").await.len(), 2, "one a start");
}

#[tokio::test]
async fn a_server_that_was_stopped_for_long_goes_on_by_the_word_of_the_chain() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("10"));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    server.stop().await;
    // A day later the chain has made blocks.
    last_seen(&setup, -24 * HOUR_MS).await;
    anvil.mine(1).await;
    let server = setup.start(&[]).await;
    assert_eq!(pays(&server, "later").await, accepted());
    server.stop().await;
}

/// Everything that waited looked due to a clock that was days ahead, and was put off by it.
#[tokio::test]
async fn what_waits_is_released_in_time_after_a_clock_that_jumped_ahead_and_back() {
    let anvil = chain().await;
    let waits = format!("{}delay = {{ always = \"1h\" }}\n", payout_grants("10"));
    let setup = SetUp::new(&anvil.url(), None, &waits);
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let mut ids = Vec::new();
    for key in ["one", "two"] {
        let waits = server.ask(SUB, key, &payout(1)).await;
        assert_eq!(waits.status, 202, "{:#}", waits.body);
        ids.push(waits.id());
    }
    server.stop().await;
    let store = setup.store().await;
    let far = Timestamp::from_millis(now_ms() + 72 * HOUR_MS);
    let jumped: RequestId = ids[0].parse().unwrap();
    let put = unit(&*store, "test", move |unit| {
        Box::pin(async move { Ok(End::Commit(unit.put_off(jumped, 0, far).await?)) })
    });
    assert!(put.await.unwrap());
    drop(store);
    // The next bundle makes both of them due. The clock is doubted first: nothing is judged by it, nor put off.
    std::fs::write(setup.dir().join("policies/grants.toml"), payout_grants("10")).unwrap();
    last_seen(&setup, HOUR_MS).await;
    let server = setup.start(&[]).await;
    for _ in 0..10 {
        assert_eq!(pays(&server, "later").await, unconfirmed());
        for id in &ids {
            assert_eq!(server.read(id).await["status"], "delayed");
        }
    }
    assert!(!server.program.stderr().contains("what waits could not be judged"));
    assert_eq!(confirm(&server, Role::Operator, "it is right").await, 200);
    for id in &ids {
        server.wait_for(id, &["submitted", "mined", "finalized"]).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn a_clock_ahead_of_the_server_and_of_the_chain_is_not_believed() {
    // Its blocks are of an hour ago, and go on from there.
    let anvil =
        Anvil::start(AnvilOptions { slots_in_an_epoch: Some(1), ..AnvilOptions::default() }).await;
    let behind = now_ms() / 1_000 - 3_600;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("10"));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    server.stop().await;
    last_seen(&setup, -HOUR_MS).await;
    anvil.rpc("anvil_setTime", json!([behind])).await;
    anvil.mine(1).await;
    let server = setup.start(&[]).await;
    assert_eq!(pays(&server, "ahead").await, unconfirmed());
    // An operator's word is enough; so is a chain that comes to the same time.
    assert_eq!(confirm(&server, Role::Operator, "it is right").await, 200);
    assert_eq!(pays(&server, "ahead").await, accepted());
    server.stop().await;
}
