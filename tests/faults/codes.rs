//! What code stands at an address decides what a call is taken for. One node's word about it is not enough.

use crate::stage::{MINED, Options, SUB, Stage, id};
use crate::support::fault_proxy::{Fault, FaultProxy, Lag, RuleId, Times};
use crate::support::server::{
    Answer, ETHER, LIMIT, PAYEE, PROCESSOR, Server, payout, payout_grants,
};
use alloy::primitives::keccak256;
use serde_json::{Value, json};

const RPC: &str = "CLAVIGER__CHAIN__0__RPC";
/// The code that the grant below pins, and another.
const PINNED: &str = "0x00";
const UPGRADED: &str = "0x0000";

/// Beside payouts, calls of the processor that nobody understands, as long as it has this code.
fn grants() -> String {
    let pinned = format!(
        r#"
[[grant]]
id = "pinned"
owner = "treasury"
reason = "tests"
expires = "2099-12-31"
principals = ["svc:payouts"]
signers = ["payments"]
chains = ["local"]
action = "opaque"
contract = "processor"
selector = "0x01020304"
code_hash = "{}"
fee = {{ max_fee_gwei = "100", max_tip_gwei = "5", max_gas = 100000 }}
"#,
        keccak256([0])
    );
    payout_grants("100") + &pinned
}

async fn set_code(stage: &Stage, address: &str, code: &str) {
    stage.anvil.rpc("anvil_setCode", json!([address, code])).await;
}

/// The node says that this account has this code.
fn says(node: &FaultProxy, address: &'static str, code: &'static str) -> RuleId {
    let lie = move |params: &Value, answer: Value| {
        let asked = params[0].as_str().is_some_and(|asked| asked.eq_ignore_ascii_case(address));
        if asked { json!({ "result": code }) } else { answer }
    };
    node.inject("eth_getCode", Times::UntilLifted, Fault::Rewrite(std::sync::Arc::new(lie)))
}

async fn pinned(server: &Server, key: &str) -> Answer {
    let body = json!({ "chain": "local", "signer": "payments", "to": PROCESSOR, "value": "0",
                       "data": "0x01020304", "gas": "60000" });
    server.ask(SUB, key, &body).await
}

fn denied(answer: &Answer) {
    assert_eq!((answer.status, answer.code()), (403, "policy-denied"), "{:#}", answer.body);
}

#[tokio::test]
async fn code_that_one_node_invents_or_hides_decides_nothing() {
    let options = Options { mines_at_once: true, grants: Some(grants()), ..Options::default() };
    let stage = Stage::with(options).await;
    let liar = FaultProxy::start(&stage.anvil.url()).await;
    let third = FaultProxy::start(&stage.anvil.url()).await;
    set_code(&stage, PROCESSOR, PINNED).await;
    let nodes = json!([liar.url(), stage.proxy.url(), third.url()]).to_string();
    let (server, _) = stage.open(&[(RPC, &nodes)]).await;

    // It invents code where a payment goes: the others are believed.
    let lie = says(&liar, PAYEE, "0x60");
    let paid = stage.pay(&server, "invented").await;
    server.wait_for(&id(&paid), MINED).await;
    liar.wait_for_hits(lie, 1, LIMIT).await;
    liar.lift(lie);
    assert!(server.metrics().await.contains("claviger_node_disagreements_total"));

    // It hides that the code is another one by now.
    let known = pinned(&server, "known").await;
    assert!((200..300).contains(&known.status), "{:#}", known.body);
    stage.was_answered(&known.id());
    set_code(&stage, PROCESSOR, UPGRADED).await;
    let lie = says(&liar, PROCESSOR, PINNED);
    denied(&pinned(&server, "upgraded").await);

    // One against one, and the third is silent: nothing is decided, for which of them is right?
    let silent = third.throttle(Times::UntilLifted, None);
    let answer = pinned(&server, "one-against-one").await;
    assert_eq!((answer.status, answer.code()), (503, "chain-unavailable"), "{:#}", answer.body);
    liar.lift(lie);
    let lie = says(&liar, PAYEE, "0x60");
    let answer = server.ask(SUB, "one-against-one-payment", &payout(ETHER)).await;
    assert_eq!((answer.status, answer.code()), (503, "chain-unavailable"), "{:#}", answer.body);
    liar.lift(lie);
    third.lift(silent);

    // It tells the truth of a block that is long gone.
    set_code(&stage, PROCESSOR, PINNED).await;
    stage.anvil.mine(1).await;
    set_code(&stage, PROCESSOR, UPGRADED).await;
    stage.anvil.rpc("evm_increaseTime", json!([120])).await;
    stage.anvil.mine(10).await;
    liar.lag(Some(Lag::all(10)));
    denied(&pinned(&server, "of-old").await);
    liar.lag(None);
    let after = stage.pay(&server, "after").await;
    server.wait_for(&id(&after), MINED).await;
    let sent = [liar.sent(), third.sent()].concat();
    stage.invariants().sent(sent).check().await;
    server.stop().await;
}
