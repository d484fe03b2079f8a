//! Lanes side by side: what holds one up holds up no other, and what waits in one ends in its time.

use crate::stage::{GWEI, MINED, Options, SUB, Stage, attempts, id, is};
use crate::support::fault_proxy::{Fault, Times};
use crate::support::server::{ETHER, LIMIT, PAYEE, Server, payout, payout_grants};
use crate::support::services::poll_until;
use claviger::ports::clock::Clock;
use claviger::system::SystemClock;
use futures::future::join_all;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const STUCK: usize = 500;
const SAMPLES: usize = 15;

/// A small payout of this account.
fn of(address: &str) -> Value {
    let mut body = payout(1_000);
    body["signer"] = json!(address);
    body
}

#[tokio::test]
async fn a_delegated_account_is_full_with_one_in_flight() {
    let stage = Stage::new().await;
    let (server, delegated) = stage.open(&[]).await;
    let other = server.funded_key(&stage.anvil, "op-2").await;
    // EIP-7702: the code of an account that is delegated to another.
    let code = format!("0xef0100{}", PAYEE.trim_start_matches("0x"));
    stage.anvil.rpc("anvil_setCode", json!([delegated, code])).await;
    let first = stage.pay_as(&server, "first", &of(&delegated)).await;
    let second = stage.ask(&server, "second", &of(&delegated)).await;
    let told = poll_until(LIMIT, "it waits for the first", async || {
        let found = server.read(&id(&second)).await;
        (found["waiting"]["code"] == "lane-full").then_some(found)
    })
    .await;
    assert!(is(&told, &["queued"]) && attempts(&told).is_empty(), "{told:#}");

    // The group's requests go where there is room, busier though it may be.
    let mut asked = vec![first, second];
    for n in 0..5 {
        let paid = stage.pay_as(&server, &format!("group-{n}"), &payout(1_000)).await;
        assert_eq!(paid["address"], other, "{paid:#}");
        asked.push(paid);
    }
    for one in &asked {
        stage.mine_until_mined(&server, &id(one)).await;
    }
    for one in &asked {
        stage.finish(&server, &id(one)).await;
    }
    stage.check().await;
}

/// How long it takes from asking to a hash, for each of some requests of a lane, in order.
async fn to_hash(stage: &Stage, server: &Server, address: &str, name: &str) -> Vec<Duration> {
    let mut took = Vec::new();
    for n in 0..SAMPLES {
        let begun = Instant::now();
        stage.pay_as(server, &format!("{name}-{n}"), &of(address)).await;
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    took
}

fn told(what: &str, took: &[Duration]) {
    let (least, median, most) = (took[0], took[SAMPLES / 2], took[SAMPLES - 1]);
    println!("t50: {what}: submit to hash {least:?} least, {median:?} median, {most:?} most");
}

#[tokio::test]
async fn t50_a_lane_with_five_hundred_stuck_does_not_slow_a_fresh_one() {
    let stage = Stage::new().await;
    let envs = [
        ("CLAVIGER__CHAIN__0__MAX_IN_FLIGHT", "20"),
        // As often as a server does if it is not told otherwise.
        ("CLAVIGER__CHAIN__0__REBROADCAST_AFTER", "10s"),
    ];
    let (server, stuck) = stage.open(&envs).await;
    let fresh = server.funded_key(&stage.anvil, "op-2").await;
    let third = server.key("op-3", Some("payments"), "managed").await;
    let alone = to_hash(&stage, &server, &fresh, "alone").await;

    // Nothing is mined: twenty are out, and are sent again and again; the others wait.
    let mut low = of(&stuck);
    low["max_fee_per_gas"] = json!((2 * GWEI).to_string());
    for round in 0..STUCK / 25 {
        let asked = (0..25).map(|n| {
            let (stage, server, low) = (&stage, &server, &low);
            async move { stage.ask(server, &format!("stuck-{}", round * 25 + n), low).await }
        });
        join_all(asked).await;
    }
    let gauge = [("address", stuck.as_str())];
    poll_until(LIMIT, "the lane is full", async || {
        (server.metric("claviger_lane_in_flight", &gauge).await == 20.0).then_some(())
    })
    .await;
    stage.anvil.mine(1).await;
    // The fresh lane has room again, and the stuck one is full of its next twenty.
    let beside = to_hash(&stage, &server, &fresh, "beside").await;
    told("alone", &alone);
    told("beside 500 stuck", &beside);

    // What waits for money is worked by looks only: it gets its hash while the stuck lane's look is held.
    let mut body = of(&third);
    body["gas"] = json!("21000");
    let waiting = stage.ask(&server, "waiting", &body).await;
    assert!(is(&waiting, &["queued"]), "{waiting:#}");
    let nonce = "eth_getTransactionCount";
    let held = stage.proxy.inject_about(nonce, &stuck, Times::UntilLifted, Fault::Hold);
    stage.proxy.wait_for_held(held, LIMIT).await;
    stage.anvil.set_balance(&third, ETHER).await;
    poll_until(LIMIT, "the other lane gets its hash", async || {
        (!attempts(&server.read(&id(&waiting)).await).is_empty()).then_some(())
    })
    .await;
    stage.anvil.mine(1).await;
    server.wait_for(&id(&waiting), MINED).await;
    // The server gives a call up after a while and looks again: this was in the time of one.
    assert_eq!(stage.proxy.hits(held), 1, "one look at a time, and it is held still");
    stage.proxy.lift(held);
    stage.make_final().await;
    server.wait_for(&id(&waiting), &["finalized"]).await;
    // Most of the stuck are open still, and are sent again all the time.
    server.stop().await;
    stage.check().await;
}

#[tokio::test]
async fn what_has_expired_behind_a_parked_head_ends_and_frees_what_it_held() {
    let grants = Some(payout_grants("2.1"));
    let stage = Stage::with(Options { grants, ..Options::default() }).await;
    let server = stage.setup.start(&[]).await;
    let address = server.key("op-1", Some("payments"), "managed").await;
    let mut body = payout(ETHER);
    body["gas"] = json!("21000");
    let head = stage.ask(&server, "head", &body).await;
    let mut short = body.clone();
    short["not_after"] = json!(SystemClock.now().plus_millis(2_000).to_string());
    let behind = stage.ask(&server, "behind", &short).await;
    assert!(is(&head, &["queued"]) && is(&behind, &["queued"]));
    let full = server.ask(SUB, "third", &body).await;
    assert_eq!(full.code(), "policy-denied", "both hold what they would spend");

    server.wait_for(&id(&behind), &["expired"]).await;
    assert!(is(&server.read(&id(&head)).await, &["queued"]), "the head is parked still");
    let third = stage.ask(&server, "third", &body).await;
    stage.anvil.set_balance(&address, 100 * ETHER).await;
    for one in [&head, &third] {
        stage.mine_until_mined(&server, &id(one)).await;
        stage.finish(&server, &id(one)).await;
    }
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (2, 2));
    stage.check().await;
}
