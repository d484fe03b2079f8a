//! T25: what every node refuses for a reason of its own. A no-op takes its nonce, the lane goes on, and it has
//! failed only when that is final: its bytes are signed, and may be mined all the same until then.

use crate::nodes::looks;
use crate::stage::{GWEI, MINED, Options, Stage, attempts, id, is, of_attempt};
use crate::support::fault_proxy::{Fault, Keeping, PoolRules, RuleId, SEND, Times};
use crate::support::server::{ETHER, LIMIT, PAYEE, Server, payout, payout_grants};
use crate::support::services::poll_until;
use serde_json::{Value, json};

const PATIENCE: (&str, &str) = ("CLAVIGER__CHAIN__0__REFUSED_PATIENCE", "2s");
/// What the refused payout moves. No other transaction of a test has this number in its bytes.
const AMOUNT: u128 = ETHER / 2;

/// The node refuses that payout with these words, as often as it is sent, and takes everything else.
fn refuse(stage: &Stage, said: Value) -> RuleId {
    let bytes = format!("{AMOUNT:016x}");
    stage.proxy.inject_about(SEND, &bytes, Times::UntilLifted, Fault::Say(said))
}

/// Waits until it is given up, and its no-op was sent.
async fn given_up(stage: &Stage, server: &Server, asked: &str, words: &str) -> Value {
    let begun = server.wait_for(asked, &["cancelling"]).await;
    assert_eq!(begun["failure"]["code"], "refused-by-nodes", "{begun:#}");
    let refusal = attempts(&begun)[0]["refusal"].as_str().unwrap_or_default().to_owned();
    assert!(refusal.contains(words), "{begun:#}");
    poll_until(LIMIT, "its no-op was sent", async || {
        let found = server.read(asked).await;
        let all = attempts(&found);
        let sent =
            all.last().is_some_and(|it| stage.proxy.sent().iter().any(|raw| it["raw"] == *raw));
        (all.len() == 2 && sent).then_some(found)
    })
    .await
}

/// From the refusal of what has nonce 0 to its end, with a payment at nonce 1 behind it.
async fn a_no_op_fills_its_nonce(
    stage: &Stage,
    server: Server,
    address: &str,
    asked: &str,
    words: &str,
) {
    let next = stage.pay(&server, "next").await;
    let found = given_up(stage, &server, asked, words).await;
    let kinds: Vec<Value> = attempts(&found).iter().map(|it| it["kind"].clone()).collect();
    assert_eq!(kinds, ["payload", "no_op"]);
    for hash in [of_attempt(&found, 1, "hash"), of_attempt(&next, 0, "hash")] {
        poll_until(LIMIT, "the node has it", async || stage.has(&hash).await.then_some(())).await;
    }
    stage.anvil.mine(1).await;
    let moved = server.wait_for(&id(&next), MINED).await;
    assert_eq!(moved["nonce"], "1");
    poll_until(LIMIT, "the no-op is seen mined", async || {
        server.read(asked).await["no_op_receipt"].is_object().then_some(())
    })
    .await;
    // Its block is not final yet: some more looks change nothing.
    looks(&[&stage.proxy], 5).await;
    assert!(is(&server.read(asked).await, &["cancelling"]), "no end before it is final");
    stage.make_final().await;
    let failed = server.wait_for(asked, &["failed"]).await;
    assert_eq!(failed["failure"]["code"], "refused-by-nodes");
    assert_eq!((failed["nonce"].as_str(), attempts(&failed).len()), (Some("0"), 2));
    server.wait_for(&id(&next), &["finalized"]).await;
    assert_eq!((stage.anvil.nonce(address).await, stage.paid().await), (2, 1));
    stage.check().await;
    server.stop().await;
    assert_eq!(stage.events(asked).await, ["queued", "submitted", "cancelling", "failed"]);
}

async fn t25(said: Value) {
    let stage = Stage::new().await;
    let (server, address) = stage.open(&[PATIENCE]).await;
    let words = said["message"].as_str().unwrap().to_owned();
    let refused = refuse(&stage, said);
    let asked = id(&stage.pay_as(&server, "t25", &payout(AMOUNT)).await);
    a_no_op_fills_its_nonce(&stage, server, &address, &asked, &words).await;
    assert!(stage.proxy.hits(refused) >= 2, "it was tried for its time");
}

#[tokio::test]
async fn t25_too_little_gas_for_the_bytes_fails_when_its_no_op_is_final() {
    let message = "intrinsic gas too low: gas 21000, minimum needed 53000";
    t25(json!({ "code": -32000, "message": message })).await;
}

#[tokio::test]
async fn t25_oversized_data_fails_when_its_no_op_is_final() {
    let message = "oversized data: transaction size 131215, limit 131072";
    t25(json!({ "code": -32000, "message": message })).await;
}

#[tokio::test]
async fn t25_more_gas_than_a_block_has_fails_when_its_no_op_is_final() {
    t25(json!({ "code": -32000, "message": "exceeds block gas limit" })).await;
}

/// Besu says it with the code that others use for want of quota.
#[tokio::test]
async fn t25_more_gas_than_a_block_has_in_besus_words_fails_when_its_no_op_is_final() {
    let message = "Transaction gas limit exceeds block gas limit";
    t25(json!({ "code": -32005, "message": message })).await;
}

/// EIP-7825, in geth's words.
#[tokio::test]
async fn t25_more_gas_than_one_transaction_may_have_fails_when_its_no_op_is_final() {
    let message = "transaction gas limit too high (cap: 16777216, tx: 20000000)";
    t25(json!({ "code": -32000, "message": message })).await;
}

/// Nobody says it in the node's place: this one has smaller blocks all of a sudden.
#[tokio::test]
async fn t25_what_the_node_itself_refuses_fails_when_its_no_op_is_final() {
    let grants = payout_grants("100.0").replace("max_gas = 21000", "max_gas = 200000");
    let stage = Stage::with(Options { grants: Some(grants), ..Options::default() }).await;
    let (server, address) = stage.open(&[PATIENCE]).await;
    stage.anvil.rpc("evm_setBlockGasLimit", json!(["0x186a0"])).await;
    stage.anvil.mine(1).await;
    let mut body = payout(ETHER);
    body["gas"] = json!("150000");
    let asked = id(&stage.pay_as(&server, "t25", &body).await);
    a_no_op_fills_its_nonce(&stage, server, &address, &asked, "").await;
}

/// It was given up, its no-op is out, and some other node takes the payout after all.
#[tokio::test]
async fn t25_what_was_refused_and_is_mined_all_the_same_is_finalized_and_never_failed() {
    let stage = Stage::new().await;
    let (server, address) = stage.open(&[PATIENCE]).await;
    let before = stage.anvil.balance(PAYEE).await;
    let keeping = Keeping::Withhold;
    stage.proxy.pool_rules(Some(PoolRules { keeping, ..PoolRules::default() }));
    let said = json!({ "code": -32000, "message": "exceeds block gas limit" });
    refuse(&stage, said);
    let mut body = payout(AMOUNT);
    body["max_fee_per_gas"] = json!((20 * GWEI).to_string());
    let asked = id(&stage.pay_as(&server, "t25", &body).await);
    let found = given_up(&stage, &server, &asked, "exceeds block gas limit").await;
    stage.hand_over(&of_attempt(&found, 0, "raw")).await;
    stage.anvil.mine(1).await;
    let mined = server.wait_for(&asked, MINED).await;
    assert_eq!(mined["receipt"]["transaction_hash"], of_attempt(&found, 0, "hash"));
    let done = stage.finish(&server, &asked).await;
    assert!(done["failure"].is_null(), "{done:#}");
    assert_eq!(stage.anvil.balance(PAYEE).await - before, AMOUNT);
    // The lane goes on behind it.
    stage.proxy.pool_rules(None);
    let next = stage.pay(&server, "next").await;
    stage.mine_until_mined(&server, &id(&next)).await;
    assert_eq!(stage.finish(&server, &id(&next)).await["nonce"], "1");
    assert_eq!(stage.anvil.nonce(&address).await, 2);
    stage.check().await;
    server.stop().await;
    let due = ["queued", "submitted", "cancelling", "mined", "finalized"];
    assert_eq!(stage.events(&asked).await, due);
}
