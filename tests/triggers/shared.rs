//! Keys that two watchers share: what happens when the set is changed under them.

use crate::stage::{DEPTH, GRANT, OTHER, Stage, WATCHER};
use crate::support::server::LIMIT;

// The proxy runs in this process, beside a test that waits for commands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_was_shared_stays_bound_and_what_is_hidden_later_does_not_pass_for_told() {
    let stage = Stage::with(0, GRANT, false).await;
    let (_, source) = stage.request_charge(1).await;
    let body = stage.charge(1, &source).await;
    // Bound before there was a set.
    let first = stage.server.ask(WATCHER, "key", &body).await;
    assert_eq!(first.status, 201, "{:#}", first.body);
    let stage = stage.restart_sharing(true).await;
    let shared = stage.server.ask(OTHER, "key", &body).await;
    assert_eq!((shared.status, shared.id()), (200, first.id()));
    // The other one's watcher asks too, by a key of its trigger.
    stage.set_up_watcher();
    stage.watch_as(OTHER);
    let mut watcher = stage.watcher();
    stage.anvil.mine(DEPTH).await;
    stage.outbox("done", 1).await;
    watcher.signal("TERM");
    assert!(watcher.exit_status(LIMIT).await.success());

    let stage = stage.restart_sharing(false).await;
    let again = stage.server.ask(OTHER, "key", &body).await;
    assert_eq!((again.status, again.id()), (200, first.id()), "it stays bound");
    // The one watcher goes on with what the other began: the server shows it nothing of it.
    stage.write_watcher(&stage.watcher_config());
    stage.watch_as(WATCHER);
    let watcher = stage.watcher();
    stage.reorg(DEPTH + 1, &[]).await;
    stage.forget_pool().await;
    stage.outbox("parked", 1).await;
    let status = stage.status();
    let items = status["attention"].as_array().unwrap();
    let parked = items.iter().find(|item| item["kind"] == "retraction").unwrap();
    assert!(parked["reason"].as_str().unwrap().contains("not told"), "{parked:#}");
    stage.events(Some(watcher), &[]).await;
}
