//! Cancelling and speeding up, and no-ops: with real programs. A nonce that
//! was given is used by its own request only, and no end is told before it is final.

#![cfg(feature = "server")]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support {
    pub mod server;
    pub mod services;
}

use claviger::core::access::Role;
use claviger::core::id::RequestId;
use claviger::core::time::Timestamp;
use claviger::ports::clock::Clock;
use claviger::ports::store::{LimitNow, look};
use claviger::system::SystemClock;
use reqwest::Method;
use serde_json::{Value, json};
use support::server::{Answer, ETHER, LIMIT, PAYEE, Server, SetUp, payout, payout_grants};
use support::services::{Anvil, AnvilOptions, Mining, poll_until};

const SUB: &str = "svc:payouts";
const GWEI: u128 = 1_000_000_000;

async fn chain() -> Anvil {
    let (mining, slots_in_an_epoch) = (Mining::Manual, Some(1));
    Anvil::start(AnvilOptions { mining, slots_in_an_epoch, ..AnvilOptions::default() }).await
}

/// `POST /v1/transactions/{id}/cancel` or `/speed-up` as this role.
async fn intervene(server: &Server, role: Role, id: &str, action: &str) -> Answer {
    let token = server.token("dev:op", role);
    let url = format!("{}/v1/transactions/{id}/{action}", server.client_url());
    let body = json!({ "reason": "a test" });
    server.try_call(Method::POST, url, &token, None, Some(&body)).await.expect("an answer")
}

async fn cancel(server: &Server, id: &str) -> Answer {
    intervene(server, Role::Operator, id, "cancel").await
}

/// The attempts that are signed.
fn attempts(tx: &Value) -> Vec<Value> {
    let all = tx["attempts"].as_array().unwrap().iter();
    all.filter(|attempt| attempt["hash"].is_string()).cloned().collect()
}

fn number(value: &Value, field: &str) -> u128 {
    value[field].as_str().unwrap().parse().unwrap()
}

/// Waits until the newest attempt was handed to the node.
async fn sent(server: &Server, id: &str, count: usize) -> Value {
    poll_until(LIMIT, &format!("{count} attempts, the last one sent"), async || {
        let found = server.read(id).await;
        let all = attempts(&found);
        let is_sent = all.last().is_some_and(|last| last["sent_at"].is_string());
        (all.len() >= count && is_sent).then_some(found)
    })
    .await
}

async fn limits(setup: &SetUp) -> Vec<LimitNow> {
    let store = setup.store().await;
    look(&*store, "limits", |unit| {
        Box::pin(async move { unit.limits_now(Timestamp::from_millis(0)).await })
    })
    .await
    .unwrap()
}

/// The kinds of events that were told of a request, and of leaves that were written, in order.
async fn story(setup: &SetUp, id: &str) -> (Vec<String>, Vec<String>) {
    let (id, store): (RequestId, _) = (id.parse().unwrap(), setup.store().await);
    look(&*store, "story", move |unit| {
        Box::pin(async move {
            let events = unit.events_of(&id.to_string()).await?;
            let leaves = unit.log_leaves(0, i64::MAX).await?;
            let events = events
                .into_iter()
                .map(|event| event.kind.trim_start_matches("claviger.transaction.").to_owned());
            let of_it = leaves.into_iter().filter(|leaf| leaf.subject == id.to_string());
            Ok((events.collect(), of_it.map(|leaf| leaf.kind).collect()))
        })
    })
    .await
    .unwrap()
}

async fn until_final(anvil: &Anvil, server: &Server, id: &str, status: &str) -> Value {
    poll_until(LIMIT, &format!("{id} is {status}"), async || {
        anvil.mine(1).await;
        let found = server.read(id).await;
        (found["status"] == status).then_some(found)
    })
    .await
}

#[tokio::test]
async fn what_has_no_nonce_is_cancelled_at_once_and_frees_what_it_held() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("1.5"));
    let server = setup.start(&[]).await;
    let address = server.key("op-1", Some("payments"), "managed").await;
    let waiting = server.ask(SUB, "unfunded", &payout(ETHER)).await;
    assert_eq!(waiting.body["status"], "queued");
    assert_eq!(server.ask(SUB, "full", &payout(ETHER)).await.code(), "policy-denied");

    for role in [Role::Client, Role::Auditor, Role::Approver] {
        let refused = intervene(&server, role, &waiting.id(), "cancel").await;
        assert_eq!((refused.status, refused.code()), (403, "forbidden"), "{role}");
    }
    assert_eq!(intervene(&server, Role::Operator, &waiting.id(), "speed-up").await.status, 409);
    let ended = cancel(&server, &waiting.id()).await.ok();
    assert_eq!(ended["status"], "cancelled");
    assert_eq!(ended["nonce"], Value::Null);
    assert_eq!(cancel(&server, &waiting.id()).await.ok()["status"], "cancelled", "asked again");
    let unknown = cancel(&server, "01890a5d-ac96-774b-bcce-b302099a8057").await;
    assert_eq!((unknown.status, unknown.code()), (404, "not-found"));

    // The window is free again, and the key stays bound to what was cancelled.
    let again = server.ask(SUB, "unfunded", &payout(ETHER)).await;
    assert_eq!((again.status, again.id()), (200, waiting.id()));
    anvil.set_balance(&address, 10 * ETHER).await;
    let next = server.ask(SUB, "next", &payout(ETHER)).await;
    assert_eq!(next.status, 201, "{:#}", next.body);
    let next = until_final(&anvil, &server, &next.id(), "finalized").await;
    assert_eq!(next["nonce"], "0", "the cancelled one took no nonce");
    server.checkpoint().await;
    server.stop().await;
    let (events, leaves) = story(&setup, &waiting.id()).await;
    assert_eq!(events, ["queued", "cancelled"]);
    assert_eq!(leaves, ["INSTRUCTED"]);
}

#[tokio::test]
async fn a_no_op_takes_the_nonce_of_what_was_sent_and_the_end_is_told_when_it_is_final() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("1.5"));
    let server = setup.start(&[]).await;
    let address = server.funded_key(&anvil, "op-1").await;
    let before = anvil.balance(PAYEE).await;
    let asked = server.ask(SUB, "wrong", &payout(ETHER)).await;
    sent(&server, &asked.id(), 1).await;

    let begun = cancel(&server, &asked.id()).await.ok();
    assert_eq!(begun["status"], "cancelling");
    assert_eq!(cancel(&server, &asked.id()).await.ok()["status"], "cancelling", "asked again");
    let both = sent(&server, &asked.id(), 2).await;
    let all = attempts(&both);
    assert_eq!(all.iter().map(|a| &a["kind"]).collect::<Vec<_>>(), ["payload", "no_op"]);
    for field in ["max_fee_per_gas", "max_priority_fee_per_gas"] {
        assert!(number(&all[1], field) >= (number(&all[0], field) * 110).div_ceil(100), "{field}");
    }
    // The window stays full until the nonce is final: the payload may still win.
    assert_eq!(server.ask(SUB, "early", &payout(ETHER)).await.code(), "policy-denied");
    anvil.mine(1).await;
    let mined = poll_until(LIMIT, "the no-op is seen mined", async || {
        let found = server.read(&asked.id()).await;
        found["no_op_receipt"].is_object().then_some(found)
    })
    .await;
    assert_eq!(mined["status"], "cancelling", "a no-op is not told as mined");
    assert_eq!(mined["receipt"], Value::Null, "nor as the receipt of what was asked");
    assert_eq!(mined["no_op_receipt"]["transaction_hash"], all[1]["hash"]);

    let ended = until_final(&anvil, &server, &asked.id(), "cancelled").await;
    assert_eq!(ended["nonce"], "0");
    assert_eq!(anvil.balance(PAYEE).await, before, "nothing moved");
    let next = server.ask(SUB, "next", &payout(ETHER)).await;
    assert_eq!(next.status, 201, "{:#}", next.body);
    let next = until_final(&anvil, &server, &next.id(), "finalized").await;
    assert_eq!(next["nonce"], "1");
    assert_eq!(anvil.balance(PAYEE).await - before, ETHER);
    assert_eq!(anvil.nonce(&address).await, 2);
    assert_eq!(cancel(&server, next["id"].as_str().unwrap()).await.code(), "conflict");

    server.checkpoint().await;
    server.stop().await;
    let (events, leaves) = story(&setup, &asked.id()).await;
    assert_eq!(events, ["queued", "submitted", "cancelling", "cancelled"]);
    let expected = ["DECIDED", "SIGNED", "INSTRUCTED", "DECIDED", "SIGNED", "SETTLED"];
    assert_eq!(leaves, expected);
    for limit in limits(&setup).await {
        assert!(limit.held.is_zero(), "{limit:?}");
    }
}

#[tokio::test]
async fn t34_a_cancel_that_loses_the_race_is_finalized_and_never_cancelled() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("100.0"));
    let server = setup.start(&[("CLAVIGER__CHAIN__0__REBROADCAST_AFTER", "1h")]).await;
    server.funded_key(&anvil, "op-1").await;
    let before = anvil.balance(PAYEE).await;
    let asked = server.ask(SUB, "race", &payout(ETHER)).await;
    sent(&server, &asked.id(), 1).await;
    cancel(&server, &asked.id()).await.ok();
    let all = attempts(&sent(&server, &asked.id(), 2).await);
    anvil.rpc("anvil_dropTransaction", json!([all[1]["hash"]])).await;
    anvil.rpc("eth_sendRawTransaction", json!([all[0]["raw"]])).await;
    anvil.mine(1).await;
    let mined = server.wait_for(&asked.id(), &["mined"]).await;
    assert_eq!(mined["receipt"]["transaction_hash"], all[0]["hash"]);
    assert_eq!(cancel(&server, &asked.id()).await.code(), "conflict", "it is mined");
    until_final(&anvil, &server, &asked.id(), "finalized").await;
    assert_eq!(anvil.balance(PAYEE).await - before, ETHER);
    server.stop().await;
    let (events, _) = story(&setup, &asked.id()).await;
    assert_eq!(events, ["queued", "submitted", "cancelling", "mined", "finalized"]);
}

#[tokio::test]
async fn a_speed_up_offers_a_tenth_more_each_time_until_the_cap() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("100.0"));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let mut body = payout(ETHER);
    body["max_fee_per_gas"] = json!((5 * GWEI).to_string());
    let asked = server.ask(SUB, "slow", &body).await;
    sent(&server, &asked.id(), 1).await;
    let mut refused = None;
    for _ in 0..100 {
        let answer = intervene(&server, Role::Operator, &asked.id(), "speed-up").await;
        if answer.status != 200 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("a cap");
    assert_eq!((refused.status, refused.code()), (409, "conflict"), "{:#}", refused.body);
    let all = attempts(&server.read(&asked.id()).await);
    assert!(all.len() > 2, "{all:#?}");
    for pair in all.windows(2) {
        assert_eq!(pair[1]["reason"], "speed_up");
        for field in ["max_fee_per_gas", "max_priority_fee_per_gas"] {
            let (old, new) = (number(&pair[0], field), number(&pair[1], field));
            assert!(new >= (old * 110).div_ceil(100), "{field}: {old}, then {new}");
        }
        assert!(number(&pair[1], "max_fee_per_gas") <= 5 * GWEI, "the caller's cap holds");
    }
    // At its cap it can still be outbid by a no-op, and that by another.
    cancel(&server, &asked.id()).await.ok();
    let count = all.len() + 1;
    let no_op = attempts(&sent(&server, &asked.id(), count).await).pop().unwrap();
    assert_eq!(no_op["kind"], "no_op");
    let faster = intervene(&server, Role::Operator, &asked.id(), "speed-up").await.ok();
    assert_eq!(faster["status"], "cancelling");
    assert_eq!(attempts(&faster).pop().unwrap()["kind"], "no_op");
    sent(&server, &asked.id(), count + 1).await;
    until_final(&anvil, &server, &asked.id(), "cancelled").await;
}

#[tokio::test]
async fn what_was_sent_and_is_not_mined_by_its_deadline_ends_as_expired_by_a_no_op() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("100.0"));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let before = anvil.balance(PAYEE).await;
    let deadline: Timestamp = SystemClock.now().plus_millis(3_000);
    let mut body = payout(ETHER);
    body["not_after"] = json!(deadline.to_string());
    let asked = server.ask(SUB, "late", &body).await;
    sent(&server, &asked.id(), 1).await;
    server.wait_for(&asked.id(), &["cancelling"]).await;
    assert!(SystemClock.now() > deadline);
    sent(&server, &asked.id(), 2).await;
    let ended = until_final(&anvil, &server, &asked.id(), "expired").await;
    assert_eq!(attempts(&ended).len(), 2, "{ended:#}");
    assert_eq!(anvil.balance(PAYEE).await, before);
}

#[tokio::test]
async fn what_was_decided_and_not_signed_by_its_deadline_is_never_signed() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("100.0"));
    let server = setup.start(&[("CLAVIGER_FAILPOINT", "lane.after_decided")]).await;
    server.funded_key(&anvil, "op-1").await;
    let deadline: Timestamp = SystemClock.now().plus_millis(4_000);
    let mut body = payout(ETHER);
    body["not_after"] = json!(deadline.to_string());
    let _ = server.try_ask(SUB, "late", &body).await;
    server.crashed().await;
    poll_until(LIMIT, "its time is over", async || (SystemClock.now() > deadline).then_some(()))
        .await;

    let server = setup.start(&[]).await;
    let asked = server.ask(SUB, "late", &body).await;
    assert_eq!(asked.status, 200, "it was accepted: {:#}", asked.body);
    let only = sent(&server, &asked.id(), 1).await;
    assert_eq!(attempts(&only)[0]["kind"], "no_op", "{only:#}");
    let ended = until_final(&anvil, &server, &asked.id(), "expired").await;
    assert_eq!(attempts(&ended).len(), 1);
    server.checkpoint().await;
    server.stop().await;
    let (_, leaves) = story(&setup, &asked.id()).await;
    assert_eq!(leaves, ["DECIDED", "DECIDED", "SIGNED", "SETTLED"]);
}

#[tokio::test]
async fn no_version_goes_above_the_cap_of_the_bundle_in_force_when_it_got_its_nonce() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("100.0"));
    let server = setup.start(&[]).await;
    let address = server.key("op-1", Some("payments"), "managed").await;
    let asked = server.ask(SUB, "old-cap", &payout(ETHER)).await;
    assert_eq!(asked.body["status"], "queued", "nobody can pay for it yet");
    let before = asked.body["decision"]["bundle"].clone();
    server.stop().await;

    let grants = payout_grants("100.0").replace("max_fee_gwei = \"100\"", "max_fee_gwei = \"6\"");
    std::fs::write(setup.dir().join("policies/grants.toml"), grants).unwrap();
    let server = setup.start(&[]).await;
    anvil.set_balance(&address, 10 * ETHER).await;
    let first = sent(&server, &asked.id(), 1).await;
    assert_ne!(first["decision"]["bundle"], before, "the decision that counts is the second");
    while intervene(&server, Role::Operator, &asked.id(), "speed-up").await.status == 200 {}
    let all = attempts(&server.read(&asked.id()).await);
    assert!(all.len() > 1, "{all:#?}");
    for attempt in &all {
        assert!(number(attempt, "max_fee_per_gas") <= 6 * GWEI, "{attempt:#}");
    }
}

#[tokio::test]
async fn a_kill_between_the_commits_of_a_cancellation_goes_on_where_it_was() {
    for point in ["cancel.after_begun", "outbid.after_decided", "sign.after_store"] {
        let anvil = chain().await;
        let setup = SetUp::new(&anvil.url(), None, &payout_grants("100.0"));
        let server = setup.start(&[]).await;
        let address = server.funded_key(&anvil, "op-1").await;
        let before = anvil.balance(PAYEE).await;
        let asked = server.ask(SUB, "kill", &payout(ETHER)).await;
        sent(&server, &asked.id(), 1).await;
        server.stop().await;

        let server = setup.start(&[("CLAVIGER_FAILPOINT", point)]).await;
        let token = server.token("dev:op", Role::Operator);
        let url = format!("{}/v1/transactions/{}/cancel", server.client_url(), asked.id());
        let _ = server.try_call(Method::POST, url, &token, None, None).await;
        server.crashed().await;
        let server = setup.start(&[]).await;
        sent(&server, &asked.id(), 2).await;
        let ended = until_final(&anvil, &server, &asked.id(), "cancelled").await;
        assert_eq!(attempts(&ended).len(), 2, "{point}: {ended:#}");
        assert_eq!(anvil.nonce(&address).await, 1, "{point}");
        assert_eq!(anvil.balance(PAYEE).await, before, "{point}");
    }
}
