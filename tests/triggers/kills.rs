//! A server that is killed when it has stored that an event is gone.

use crate::stage::{Stage, WATCHER};

// The proxy runs in this process, beside a test that waits for commands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retraction_that_was_stored_before_a_kill_is_not_stored_again() {
    // Without money it gets no nonce, and nothing reads its event again.
    let stage = Stage::new(0).await;
    let (_, source) = stage.request_charge(1).await;
    let body = stage.charge(1, &source).await;
    let id = stage.server.ask(WATCHER, "key", &body).await.id();
    stage.server.wait_for(&id, &["queued"]).await;
    let mut stage = stage.restart(&[("CLAVIGER_FAILPOINT", "retract.after_stored")]).await;
    stage.reorg(1, &[]).await;
    stage.forget_pool().await;
    assert!(stage.try_retract(WATCHER, &id, &source).await.is_none(), "it was killed");
    stage = stage.after_crash().await;
    let ended = stage.server.wait_for(&id, &["cancelled"]).await;
    assert_eq!(ended["failure"]["code"], "event-gone", "{ended:#}");
    let again = stage.retract(WATCHER, &id, &source).await.ok();
    assert_eq!(again["source_gone_at"], ended["source_gone_at"]);
    let events = stage.events(None, &[&id]).await.remove(0);
    assert_eq!(events, ["queued", "source_retracted", "cancelled"]);
}
