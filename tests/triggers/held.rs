//! A node that lags, or shows a fork that nobody else has, ends no request: it waits until that is over.

use crate::stage::{Stage, WATCHER};
use crate::support::fault_proxy::{Fault, Lag, Times};
use crate::support::server::{ETHER, LIMIT, charge_grant};
use serde_json::{Value, json};
use std::sync::Arc;

// The proxy runs in this process, beside a test that waits for commands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_does_not_see_the_event_when_it_is_judged_again_ends_nothing() {
    let grant = charge_grant("payments", r#"delay = { always = "3s" }"#);
    let stage = Stage::with(0, &grant, true).await;
    let (_, source) = stage.request_charge(1).await;
    stage.anvil.mine(9).await;
    let body = stage.charge(1, &source).await;
    let asked = stage.server.ask(WATCHER, "key", &body).await;
    assert_eq!((asked.status, &asked.body["status"]), (202, &json!("delayed")), "{:#}", asked.body);
    let id = asked.id();
    let of = source["transaction_hash"].as_str().unwrap();
    let receipt = "eth_getTransactionReceipt";
    let hide =
        || stage.proxy.inject_about(receipt, of, Times::UntilLifted, Fault::Answer(Value::Null));
    // What waits is judged again when its delay is over.
    let hidden = hide();
    stage.proxy.wait_for_hits(hidden, 2, LIMIT).await;
    assert_eq!(stage.server.read(&id).await["status"], "delayed");
    stage.proxy.lift(hidden);
    stage.server.wait_for(&id, &["queued"]).await;
    // What is queued is judged again under another bundle: by a node for which the event is not final any more.
    let grants = stage.setup.dir().join("policies/grants.toml");
    std::fs::write(&grants, grant.replace("\"tests\"", "\"tests once more\"")).unwrap();
    stage.proxy.lag(Some(Lag { blocks: 5, ..Lag::default() }));
    let stage = stage.restart(&[]).await;
    stage.anvil.set_balance(&stage.operator, 100 * ETHER).await;
    let waits = stage.held(&id).await;
    assert!(waits["nonce"].is_null(), "{waits:#}");
    stage.proxy.lag(None);
    stage.mine_until_mined(&id).await;
    assert_eq!(stage.executions(1).await, 1);
    stage.events(None, &[]).await;
}

// The proxy runs in this process, beside a test that waits for commands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_that_is_not_final_ends_nothing_that_nobody_told_of() {
    let stage = Stage::new(0).await;
    let (_, source) = stage.request_charge(1).await;
    let body = stage.charge(1, &source).await;
    let id = stage.server.ask(WATCHER, "key", &body).await.id();
    stage.server.wait_for(&id, &["queued"]).await;
    // A stale backend behind the only URL has another block there.
    let other = Arc::new(|_: &Value, mut answer: Value| {
        answer["result"]["hash"] = json!(format!("0x{}", "ab".repeat(32)));
        answer
    });
    let height = format!("\"0x{:x}\"", stage.anvil.block_number().await);
    let get = "eth_getBlockByNumber";
    let fork = stage.proxy.inject_about(get, &height, Times::UntilLifted, Fault::Rewrite(other));
    stage.anvil.mine(2).await;
    stage.anvil.set_balance(&stage.operator, 100 * ETHER).await;
    let waits = stage.held(&id).await;
    assert!(waits["source_gone_at"].is_null(), "{waits:#}");
    stage.proxy.lift(fork);
    stage.mine_until_mined(&id).await;
    assert_eq!(stage.executions(1).await, 1);
    stage.events(None, &[]).await;
}
