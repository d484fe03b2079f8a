//! Events that the server cannot read, such as transfers of the chain's own coin: what their caller says ends a
//! request, and nobody else does.

use crate::stage::{DEPTH, Stage, WATCHER};
use crate::support::server::{ETHER, PROCESSOR};
use serde_json::{Value, json};

/// Where the deposits go.
const DEPOSITS: &str = "0x00000000000000000000000000000000000000d1";
/// A deposit of so many wei is for the order of this number.
const ORDER: u128 = 1000;

/// A watcher of deposits, each of which has a charge executed.
fn of_deposits(config: &str) -> String {
    let (before, _) = config.split_once("[[source]]").unwrap();
    format!(
        r#"{before}[[source]]
name = "deposits"
chain = "local"
native_to = ["{DEPOSITS}"]
from_block = 0
finality = {{ depth = {DEPTH} }}
[[trigger]]
name = "charge"
source = "deposits"
signer = "payments"
to = "{PROCESSOR}"
function = "executeCharge(uint256 orderId, uint256 amount)"
args = {{ orderId = "value", amount = "value" }}
business_id = ["{{chain}}", "{{transaction_hash}}"]
"#
    )
}

async fn deposit(stage: &Stage) -> Value {
    let from = &stage.anvil.accounts()[4];
    let hash = stage.anvil.send(from, DEPOSITS, "0x", ORDER).await;
    stage.anvil.mine(1 + DEPTH).await;
    stage.anvil.rpc("eth_getRawTransactionByHash", json!([hash])).await
}

// The proxy runs in this process, beside a test that waits for commands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_that_goes_away_before_the_nonce_is_not_paid_for_and_may_come_again() {
    let stage = Stage::new(0).await;
    stage.request_charge(ORDER).await;
    stage.anvil.mine(5).await;
    stage.set_up_watcher();
    stage.write_watcher(&of_deposits(&stage.watcher_config()));
    let watcher = stage.watcher();
    let raw = deposit(&stage).await;
    stage.outbox("done", 1).await;
    let asked = stage.server.list().await.remove(0);
    let first = asked["id"].as_str().unwrap().to_owned();
    assert_eq!((asked["status"].as_str(), asked.get("source")), (Some("queued"), None));
    // Only its own caller's word about this very event counts.
    let event = json!({ "event_id": asked["metadata"]["event_id"] });
    let source = json!({ "block_hash": format!("0x{:064x}", 1), "transaction_hash":
        format!("0x{:064x}", 2), "log_index": 0 });
    for (body, field) in [
        (json!({ "event_id": "another" }), "event_id"),
        (json!({ "source": source }), "source"),
        (json!({ "source": source, "event_id": event["event_id"] }), "event_id"),
        (json!({}), "source"),
    ] {
        let refused = stage.tell(WATCHER, &first, &body).await;
        assert_eq!((refused.status, &refused.body["field"]), (400, &json!(field)), "{body}");
    }
    assert_eq!(stage.tell("svc:stranger", &first, &event).await.status, 404);
    assert_eq!(stage.server.read(&first).await["status"], "queued");

    stage.reorg(DEPTH + 1, &[]).await;
    stage.forget_pool().await;
    let told = stage.retraction().await;
    assert!(told["reason"].as_str().unwrap().contains("before it was signed"), "{told:#}");
    let ended = stage.server.read(&first).await;
    assert_eq!(
        (&ended["status"], &ended["failure"]["code"]),
        (&json!("cancelled"), &json!("event-gone"))
    );
    assert!(ended["nonce"].is_null() && ended["source_gone_at"].is_string(), "{ended:#}");
    // Mined again, it is another event of the same business: the key is bound anew.
    stage.anvil.set_balance(&stage.operator, 100 * ETHER).await;
    stage.anvil.rpc("eth_sendRawTransaction", json!([raw])).await;
    stage.anvil.mine(1 + DEPTH).await;
    stage.outbox("done", 3).await;
    let all = stage.server.list().await;
    assert_eq!(all.len(), 2, "{all:#?}");
    let second = all[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(all[0]["data"], asked["data"]);
    assert_ne!(all[0]["metadata"]["event_id"], asked["metadata"]["event_id"]);
    stage.mine_until_mined(&second).await;
    assert_eq!(stage.executions(ORDER).await, 1);
    // With a nonce it is only flagged.
    let event = json!({ "event_id": all[0]["metadata"]["event_id"] });
    let flagged = stage.tell(WATCHER, &second, &event).await.ok();
    assert!(flagged["source_gone_at"].is_string() && flagged["nonce"].is_string(), "{flagged:#}");
    let again = stage.tell(WATCHER, &second, &event).await.ok();
    assert_eq!(again["source_gone_at"], flagged["source_gone_at"]);
    let events = stage.events(Some(watcher), &[&first]).await.remove(0);
    assert_eq!(events, ["queued", "source_retracted", "cancelled"], "no nonce was ever given");
}
