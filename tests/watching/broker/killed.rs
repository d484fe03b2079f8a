//! The watcher stops at the worst place.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e27_after_the_outbox_commit_the_event_is_published_at_restart() {
    let broker = Brokered::new("e27").await;
    broker.tap().await;
    let stage = &broker.stage;
    broker.emit(1..2).await;
    stage.killed_at("watch.after_commit").await;
    assert_eq!(broker.waiting("tap.e27").await, 0);
    let watcher = stage.watcher();
    assert_eq!(orders(&broker.tapped(1).await), ["1"]);
    stage.outbox("done", 1).await;
    assert_eq!(stage.orders(), [1]);
    stage.stop(watcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e28_after_publishing_it_is_twice_on_the_bus_and_requested_once() {
    let broker = Brokered::new("e28").await;
    broker.tap().await;
    let stage = &broker.stage;
    broker.emit(1..2).await;
    broker.stage.trouble();
    stage.killed_at("bus.after_publish").await;
    assert_eq!(stage.count_of("publisher", "done"), 0);
    let watcher = stage.watcher();
    broker.emit(2..3).await;
    stage.outbox("done", 2).await;
    let told = broker.tapped(3).await;
    assert_eq!(orders(&told), ["1", "1", "2"]);
    assert_eq!(told[0].event, told[1].event);
    let keys = stage.server.by_key();
    assert_eq!(keys.len(), 2, "one signing request for each event: {keys:?}");
    stage.stop(watcher).await;
    assert_eq!(broker.waiting(&broker.queue()).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e29_in_mid_block_nothing_is_published_and_nothing_is_lost() {
    let broker = Brokered::new("e29").await;
    broker.tap().await;
    let stage = &broker.stage;
    for order in [1, 2, 3] {
        stage.ask(order).await;
    }
    stage.anvil.mine(3).await;
    stage.killed_at("watch.mid_block").await;
    assert_eq!(stage.status()["chains"][0]["cursor"]["number"], 0);
    assert!(stage.status()["outbox"].as_array().unwrap().is_empty());
    assert_eq!(broker.waiting("tap.e29").await, 0);
    let watcher = stage.watcher();
    stage.outbox("done", 3).await;
    assert_eq!(orders(&broker.tapped(3).await), ["1", "2", "3"]);
    assert_eq!(stage.orders(), [1, 2, 3]);
    stage.stop(watcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn between_the_servers_answer_and_the_acknowledgement_it_is_requested_once() {
    for (name, failpoint, times) in
        [("answer", "bus.after_answer", 2), ("ack", "bus.before_ack", 1)]
    {
        let broker = Brokered::new(name).await;
        let stage = &broker.stage;
        broker.emit(1..2).await;
        stage.killed_at(failpoint).await;
        assert_eq!(stage.orders(), [1]);
        let watcher = stage.watcher();
        stage.outbox("done", 1).await;
        broker.emit(2..3).await;
        stage.outbox("done", 2).await;
        let keys = stage.server.by_key();
        assert_eq!((keys.len(), stage.orders().len()), (2, times + 1), "{failpoint}: {keys:?}");
        stage.stop(watcher).await;
        assert_eq!(broker.waiting(&broker.queue()).await, 0);
    }
}
