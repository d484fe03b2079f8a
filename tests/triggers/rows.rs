//! The rows of the fault table that need both programs.

use crate::stage::{DEPTH, Stage, WATCHER};
use crate::support::fault_proxy::Lag;
use crate::support::server::{ETHER, LIMIT};
use crate::support::services::poll_until;

// The proxy runs in this process, beside a test that waits for commands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e34_a_request_whose_event_goes_away_after_it_was_signed_is_flagged_and_linked() {
    let stage = Stage::new(100 * ETHER).await;
    stage.set_up_watcher();
    let watcher = stage.watcher();
    let (_, source) = stage.request_charge(1).await;
    stage.anvil.mine(DEPTH).await;
    stage.outbox("done", 1).await;
    let id = stage.server.list().await[0]["id"].as_str().unwrap().to_owned();
    let before = stage.server.wait_for(&id, &["submitted"]).await;
    assert_eq!((&before["source"], &before["source_gone_at"]), (&source, &serde_json::Value::Null));
    stage.reorg(DEPTH + 1, &[]).await;
    let told = stage.retraction().await;
    assert_eq!(told["became"], id.as_str(), "{told:#}");
    assert!(told["reason"].as_str().unwrap().contains("flagged"), "{told:#}");
    let after = stage.server.read(&id).await;
    assert!(after["source_gone_at"].is_string(), "{after:#}");
    assert_eq!((&after["nonce"], &after["status"]), (&before["nonce"], &before["status"]));
    assert_eq!(after["attempts"][0]["hash"], before["attempts"][0]["hash"]);
    // Told once more, it says the same.
    let again = stage.retract(WATCHER, &id, &source).await.ok();
    assert_eq!(again["source_gone_at"], after["source_gone_at"]);
    assert_eq!(stage.server.list().await.len(), 1, "nothing takes the first one back");
    let events = stage.events(Some(watcher), &[&id]).await.remove(0);
    assert_eq!(events, ["queued", "submitted", "source_retracted"]);
}

// The proxy runs in this process, beside a test that waits for commands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e35_a_request_whose_event_goes_away_before_its_nonce_is_cancelled_and_may_come_again() {
    let stage = Stage::new(0).await;
    stage.set_up_watcher();
    let watcher = stage.watcher();
    let (raw, _) = stage.request_charge(1).await;
    stage.anvil.mine(DEPTH).await;
    stage.outbox("done", 1).await;
    let first = stage.server.list().await[0]["id"].as_str().unwrap().to_owned();
    stage.reorg(DEPTH + 1, &[]).await;
    stage.forget_pool().await;
    let told = stage.retraction().await;
    assert_eq!(told["became"], first.as_str(), "{told:#}");
    assert!(told["reason"].as_str().unwrap().contains("before it was signed"), "{told:#}");
    let ended = stage.server.read(&first).await;
    assert_eq!(
        (&ended["status"], &ended["failure"]["code"]),
        (&"cancelled".into(), &"event-gone".into())
    );
    assert!(ended["nonce"].is_null() && ended["source_gone_at"].is_string(), "{ended:#}");
    // Mined again: the business has no request that could pay for it, and gets one.
    stage.anvil.set_balance(&stage.operator, 100 * ETHER).await;
    stage.anvil.rpc("eth_sendRawTransaction", serde_json::json!([raw])).await;
    stage.anvil.mine(DEPTH + 1).await;
    stage.outbox("done", 3).await;
    let all = stage.server.list().await;
    assert_eq!(all.len(), 2, "{all:#?}");
    let second = all[0]["id"].as_str().unwrap().to_owned();
    stage.mine_until_mined(&second).await;
    assert_eq!(stage.executions(1).await, 1);
    let events = stage.events(Some(watcher), &[&first]).await.remove(0);
    assert_eq!(events, ["queued", "source_retracted", "cancelled"], "no nonce was ever given");
}

// The proxy runs in this process, beside a test that waits for commands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e10_a_transaction_mined_again_after_its_request_was_signed_makes_no_second_one() {
    let stage = Stage::new(100 * ETHER).await;
    stage.set_up_watcher();
    let mut watcher = stage.watcher();
    let (raw, source) = stage.request_charge(1).await;
    stage.anvil.mine(DEPTH).await;
    stage.outbox("done", 1).await;
    let id = stage.server.list().await[0]["id"].as_str().unwrap().to_owned();
    let signed = stage.server.wait_for(&id, &["submitted"]).await;
    stage.reorg(DEPTH + 1, &[&raw]).await;
    let hash = source["transaction_hash"].as_str().unwrap();
    let again = stage.source(hash).await;
    assert_ne!(again["block_hash"], source["block_hash"]);
    stage.anvil.mine(DEPTH).await;
    stage.outbox("done", 3).await;
    watcher.wait_for_line("the same business, mined again", LIMIT).await;
    assert_eq!((stage.count("parked"), stage.server.list().await.len()), (0, 1));
    let retracted = stage.retract(WATCHER, &id, &again).await;
    assert_eq!((retracted.status, &retracted.body["field"]), (400, &"source".into()));
    stage.mine_until_mined(&id).await;
    assert_eq!(stage.executions(1).await, 1);
    // Whose transaction it was, is known by the hash of the attempt.
    let found = stage.server.read(&id).await;
    let mined = found["receipt"]["transaction_hash"].as_str().unwrap();
    assert_eq!(signed["attempts"][0]["hash"], mined);
    let by_hash = stage.look_up(WATCHER, &format!("transaction_hash={mined}")).await;
    assert_eq!((by_hash.len(), &by_hash[0]["metadata"]["trigger"]), (1, &"charge".into()));
    assert!(stage.look_up("svc:stranger", &format!("transaction_hash={mined}")).await.is_empty());
    poll_until(LIMIT, "it is flagged", async || {
        stage.server.read(&id).await["source_gone_at"].is_string().then_some(())
    })
    .await;
    stage.events(Some(watcher), &[]).await;
}

// The proxy runs in this process, beside a test that waits for commands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e10_a_transaction_mined_again_while_the_servers_node_is_behind_is_paid_for_once() {
    let stage = Stage::new(0).await;
    stage.set_up_watcher();
    // The watcher sees the reorganisation before the server does.
    let config = stage.watcher_config();
    stage.write_watcher(&config.replace(&stage.proxy.url(), &stage.anvil.url()));
    let mut watcher = stage.watcher();
    let (raw, _) = stage.request_charge(1).await;
    stage.anvil.mine(DEPTH).await;
    stage.outbox("done", 1).await;
    let first = stage.server.list().await[0]["id"].as_str().unwrap().to_owned();
    assert!(stage.server.wait_for(&first, &["queued"]).await["nonce"].is_null());
    stage.proxy.lag(Some(Lag { blocks: 3 * DEPTH, ..Lag::default() }));
    stage.reorg(DEPTH + 1, &[&raw]).await;
    stage.anvil.mine(DEPTH).await;
    watcher.wait_for_line("is for the block before", LIMIT).await;
    assert_eq!((stage.count("done"), stage.count("parked")), (1, 0));
    assert_eq!(stage.server.read(&first).await["status"], "queued");
    stage.proxy.lag(None);
    stage.outbox("done", 3).await;
    let ended = stage.server.read(&first).await;
    assert_eq!(
        (&ended["status"], &ended["failure"]["code"]),
        (&"cancelled".into(), &"event-gone".into())
    );
    let all = stage.server.list().await;
    assert_eq!(all.len(), 2, "{all:#?}");
    stage.anvil.set_balance(&stage.operator, 100 * ETHER).await;
    let second = all[0]["id"].as_str().unwrap().to_owned();
    stage.mine_until_mined(&second).await;
    assert_eq!(stage.executions(1).await, 1);
    stage.events(Some(watcher), &[]).await;
}
