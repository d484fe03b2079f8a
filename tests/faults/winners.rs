//! T15: a replacement was accepted and lost, and an earlier version is mined. Whichever it is, it is found by
//! its own hash, nothing new is signed for the request, and the money moves once. T34: the same where one of
//! the versions is the no-op of a cancellation.

use crate::stage::{GWEI, MINED, Options, RESEND_SOON, Stage, attempts, id, of_attempt};
use crate::support::fault_proxy::{Keeping, PoolRules};
use crate::support::server::{ETHER, LIMIT, Server, payout};
use crate::support::services::poll_until;
use claviger::core::access::Role;
use reqwest::Method;
use serde_json::{Value, json};

/// A payout of which exactly three versions can be signed: the first offers twice the base fee of one gwei,
/// and a fourth would be above the cap.
fn three_versions() -> Value {
    let mut body = payout(ETHER);
    body["max_fee_per_gas"] = json!((2 * GWEI + GWEI / 2).to_string());
    body
}

fn keeping(keeping: Keeping) -> Option<PoolRules> {
    Some(PoolRules { keeping, ..PoolRules::default() })
}

/// Three versions that the pool has taken, one after the other, and no node mines.
async fn three_attempts(stage: &Stage, server: &Server) -> Value {
    let asked = stage.pay_as(server, "t15", &three_versions()).await;
    let found = poll_until(LIMIT, "three attempts", async || {
        let found = server.read(&id(&asked)).await;
        (attempts(&found).len() == 3).then_some(found)
    })
    .await;
    let third = of_attempt(&found, 2, "raw");
    poll_until(LIMIT, "all were sent", async || stage.proxy.sent().contains(&third).then_some(()))
        .await;
    assert!(!server.program.stderr().contains("did not take the bytes"), "all were taken");
    found
}

/// What must be true once version `winner` (from 0) is final.
async fn won(stage: &Stage, server: &Server, found: &Value, winner: usize, address: &str) {
    let hash = of_attempt(found, winner, "hash");
    let done = stage.finish(server, &id(found)).await;
    assert_eq!(done["receipt"]["transaction_hash"], hash);
    assert_eq!(attempts(&done).len(), 3, "nothing new was signed");
    assert_eq!(done["nonce"], "0");
    assert_eq!(server.list().await.len(), 1);
    assert_eq!((stage.anvil.nonce(address).await, stage.paid().await), (1, 1));
    // The lane goes on with the next nonce.
    stage.proxy.pool_rules(None);
    let next = stage.pay(server, "next").await;
    stage.mine_until_mined(server, &id(&next)).await;
    let next = stage.finish(server, &id(&next)).await;
    assert_eq!(next["nonce"], "1");
    assert_eq!((stage.anvil.nonce(address).await, stage.paid().await), (2, 2));
    stage.check().await;
}

#[tokio::test]
async fn t15_bumps_are_accepted_and_lost_and_the_original_is_mined() {
    let stage = Stage::new().await;
    stage.proxy.pool_rules(keeping(Keeping::LoseReplacements));
    let (server, address) = stage.open(&[RESEND_SOON]).await;
    let found = three_attempts(&stage, &server).await;
    // The node has only ever had the first.
    assert!(stage.has(&of_attempt(&found, 0, "hash")).await);
    for lost in [1, 2] {
        assert!(!stage.has(&of_attempt(&found, lost, "hash")).await);
    }
    stage.anvil.mine(1).await;
    server.wait_for(&id(&found), MINED).await;
    won(&stage, &server, &found, 0, &address).await;
}

#[tokio::test]
async fn t15_the_second_of_three_is_mined() {
    let stage = Stage::new().await;
    stage.proxy.pool_rules(keeping(Keeping::Withhold));
    let (server, address) = stage.open(&[RESEND_SOON]).await;
    let found = three_attempts(&stage, &server).await;
    stage.hand_over(&of_attempt(&found, 1, "raw")).await;
    stage.anvil.mine(1).await;
    won(&stage, &server, &found, 1, &address).await;
}

/// Killed with three versions out; while it is dead an early one is mined.
async fn t15_mined_across_a_restart(winner: usize) {
    let stage = Stage::new().await;
    stage.proxy.pool_rules(keeping(Keeping::Withhold));
    let (mut server, address) = stage.open(&[RESEND_SOON]).await;
    let found = three_attempts(&stage, &server).await;
    server.program.kill9();
    drop(server);
    stage.hand_over(&of_attempt(&found, winner, "raw")).await;
    stage.anvil.mine(1).await;
    let server = stage.setup.start(&[RESEND_SOON]).await;
    won(&stage, &server, &found, winner, &address).await;
}

#[tokio::test]
async fn t15_the_original_is_mined_across_a_restart() {
    t15_mined_across_a_restart(0).await;
}

#[tokio::test]
async fn t15_the_second_of_three_is_mined_across_a_restart() {
    t15_mined_across_a_restart(1).await;
}

/// The original is mined, and a reorganisation puts the second in its place; then back again.
#[tokio::test]
async fn t15_a_reorg_replaces_which_attempt_is_mined() {
    let stage = Stage::with(Options { long_epochs: true, ..Options::default() }).await;
    stage.proxy.pool_rules(keeping(Keeping::Withhold));
    let (server, address) = stage.open(&[RESEND_SOON]).await;
    let found = three_attempts(&stage, &server).await;
    stage.hand_over(&of_attempt(&found, 0, "raw")).await;
    stage.anvil.mine(1).await;
    let mined_as = async |winner: usize| {
        let hash = of_attempt(&found, winner, "hash");
        let what = format!("version {winner} is mined");
        poll_until(LIMIT, &what, async || {
            let found = server.read(&id(&found)).await;
            (found["receipt"]["transaction_hash"] == hash).then_some(())
        })
        .await;
        assert_eq!(stage.paid().await, 1);
    };
    mined_as(0).await;
    for winner in [1, 0, 1] {
        let raw = of_attempt(&found, winner, "raw");
        stage.anvil.rpc("anvil_reorg", json!([1, [[raw, 0]]])).await;
        mined_as(winner).await;
    }
    won(&stage, &server, &found, 1, &address).await;
}

async fn cancel(server: &Server, id: &str) {
    let token = server.token("dev:op", Role::Operator);
    let url = format!("{}/v1/transactions/{id}/cancel", server.client_url());
    let said = server.try_call(Method::POST, url, &token, None, None).await.unwrap();
    assert!((200..300).contains(&said.status), "{:#}", said.body);
}

/// Cancelled while it is out; then reorganisations put the payment, the no-op and the payment on the chain
/// by turns, and one of them (from 0) stays.
async fn t34_a_cancel_races_the_original(winner: usize, status: &str) {
    let stage = Stage::with(Options { long_epochs: true, ..Options::default() }).await;
    stage.proxy.pool_rules(keeping(Keeping::Withhold));
    let (server, address) = stage.open(&[]).await;
    let asked = stage.pay(&server, "t34").await;
    cancel(&server, &id(&asked)).await;
    let found = poll_until(LIMIT, "a no-op was sent", async || {
        let found = server.read(&id(&asked)).await;
        let raws: Vec<Value> = attempts(&found).iter().map(|it| it["raw"].clone()).collect();
        let sent = stage.proxy.sent();
        (raws.len() == 2 && sent.iter().any(|raw| raws[1] == *raw)).then_some(found)
    })
    .await;
    stage.hand_over(&of_attempt(&found, 0, "raw")).await;
    stage.anvil.mine(1).await;
    server.wait_for(&id(&asked), &["mined"]).await;
    for turn in [1, 0, 1, winner] {
        let block = server.read(&id(&asked)).await["receipt"]["block_hash"].clone();
        let raw = of_attempt(&found, turn, "raw");
        stage.anvil.rpc("anvil_reorg", json!([1, [[raw, 0]]])).await;
        let due = if turn == 0 { "mined" } else { "cancelling" };
        poll_until(LIMIT, &format!("the new block is seen, {due}"), async || {
            let found = server.read(&id(&asked)).await;
            // A no-op's block is not shown as the transaction's.
            let moved = turn == 1 || found["receipt"]["block_hash"] != block;
            (moved && found["status"] == due).then_some(())
        })
        .await;
    }
    stage.make_final().await;
    let done = server.wait_for(&id(&asked), &[status]).await;
    assert_eq!(attempts(&done).len(), 2);
    let paid = u128::from(winner == 0);
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (1, paid));
    stage.check().await;
}

#[tokio::test]
async fn t34_a_cancel_races_the_original_over_reorgs_and_loses() {
    t34_a_cancel_races_the_original(0, "finalized").await;
}

#[tokio::test]
async fn t34_a_cancel_races_the_original_over_reorgs_and_wins() {
    t34_a_cancel_races_the_original(1, "cancelled").await;
}
