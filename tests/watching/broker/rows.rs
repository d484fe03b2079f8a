//! The rows of the bus: a real broker, a real chain behind a proxy that goes wrong.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_final_event_goes_over_the_broker_once_and_only_to_who_asked_for_it() {
    let broker = Brokered::new("parity").await;
    broker.tap().await;
    let stage = &broker.stage;
    let watcher = stage.watcher();
    stage.ask(1).await;
    stage.anvil.mine(2).await;
    // Seen, and not final: as with the embedded bus, nobody hears of it yet.
    stage.at_head().await;
    assert_eq!(stage.count_of("publisher", "held"), 1);
    stage.anvil.mine(1).await;
    stage.outbox("done", 1).await;
    let told = &broker.tapped(1).await[0];
    assert_eq!((told.key.as_str(), told.persistent), (KEY, true));
    assert_eq!(told.event["type"], "claviger.chain.log");
    assert_eq!(told.event["id"], stage.server.requests()[0].body["metadata"]["event_id"]);
    assert_eq!(stage.orders(), [1]);
    let status = stage.status();
    assert_eq!(status["bus"]["reachable"], true);
    assert_eq!(status["bus"]["queues"][0]["name"], broker.queue());
    assert_eq!(status["bus"]["queues"][0]["consumers"], 1);
    stage.stop(watcher).await;
    assert_eq!(broker.waiting(&broker.queue()).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e23_what_happens_while_the_broker_is_down_is_published_later_in_order() {
    let mut rabbit = RabbitMq::start().await;
    let broker = Brokered::on(&rabbit, "e23", "{ depth = 2 }").await;
    broker.tap().await;
    let stage = &broker.stage;
    let mut watcher = stage.watcher();
    broker.emit(0..3).await;
    stage.outbox("done", 3).await;
    rabbit.stop();
    broker.stage.trouble();
    broker.emit(3..10).await;
    broker.emit_many(10..400).await;
    stage.at_head().await;
    // It has tried to connect until its waits are at their longest: ten minutes are more of the same.
    watcher.wait_for_line("\"failures\":5,", LIMIT).await;
    let status = stage.status();
    assert_eq!(status["bus"]["reachable"], false);
    // The last of them are let go by the step after the one that came to the head.
    poll_until(LIMIT, "all of it is ready", async || {
        (stage.count_of("publisher", "ready") == 397).then_some(())
    })
    .await;
    assert_eq!(stage.orders().len(), 3);
    rabbit.start_again().await;
    broker.stage.trouble();
    broker.published(400).await;
    assert_eq!(orders(&broker.tapped(400).await), numbers(0..400));
    stage.outbox("done", 400).await;
    assert_eq!(stage.orders(), (0..400).collect::<Vec<_>>());
    stage.stop(watcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e24_what_a_full_queue_refuses_is_tried_again_in_order() {
    let broker = Brokered::new("e24").await;
    let mut full = FieldTable::default();
    full.insert("x-max-length".into(), AMQPValue::LongInt(1));
    full.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    broker.bind_queue("full.e24", "#", full).await;
    let stage = &broker.stage;
    let watcher = stage.watcher();
    broker.stage.trouble();
    broker.emit(1..4).await;
    broker.shown_reason("nack").await;
    assert_eq!(stage.count_of("publisher", "done"), 1);
    let mut told = Vec::new();
    for _ in 1..4 {
        told.extend(orders(&broker.drained("full.e24", 1).await));
    }
    assert_eq!(told, numbers(1..4));
    broker.published(3).await;
    stage.outbox("done", 3).await;
    // The trigger's own queue took each attempt; only one of them made a request.
    assert_eq!(stage.orders(), [1, 2, 3]);
    stage.stop(watcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e25_an_unroutable_event_is_told_and_waits_for_a_binding() {
    let broker = Brokered::new("e25").await;
    let stage = &broker.stage;
    let mut watcher = stage.watcher();
    broker.emit(1..2).await;
    stage.outbox("done", 1).await;
    let (_connection, channel) = channel(&broker.url).await;
    let (queue, exchange) = (broker.queue(), broker.exchange());
    let (queue, exchange) = (queue.as_str(), exchange.as_str());
    let none = FieldTable::default;
    channel.queue_unbind(queue.into(), exchange.into(), KEY.into(), none()).await.unwrap();
    broker.stage.trouble();
    broker.emit(2..4).await;
    broker.shown_reason("unroutable").await;
    watcher.wait_for_line("unroutable: no queue is bound", LIMIT).await;
    assert_eq!(stage.count_of("publisher", "ready"), 2);
    let options = QueueBindOptions::default();
    channel.queue_bind(queue.into(), exchange.into(), KEY.into(), options, none()).await.unwrap();
    stage.outbox("done", 3).await;
    assert_eq!(stage.orders(), [1, 2, 3]);
    stage.stop(watcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e34_a_retraction_follows_its_event_over_the_broker_and_is_linked_to_the_request() {
    let broker = Brokered::on(RabbitMq::shared().await, "e34", "{ depth = 0 }").await;
    broker.tap().await;
    let stage = &broker.stage;
    stage.anvil.mine(5).await;
    let mut watcher = stage.watcher();
    stage.ask(1).await;
    stage.anvil.mine(1).await;
    stage.outbox("done", 1).await;
    // E6: the watcher is down when the block goes.
    watcher.kill9();
    stage.reorg(2).await;
    stage.ask(2).await;
    stage.anvil.mine(3).await;
    let watcher = stage.watcher();
    stage.outbox("done", 3).await;
    let told = broker.tapped(3).await;
    assert_eq!(orders(&told), ["1", "-1", "2"]);
    assert_eq!(told[0].event["id"], told[1].event["id"]);
    assert_eq!(told[1].event["source"], "/chains/local/sources/asked/retractions");
    let retracted = stage.shown("retraction", 1).await;
    assert_eq!(retracted[0]["event_id"], told[0].event["id"]);
    assert_eq!(retracted[0]["became"], format!("tx-{}", stage.server.requests()[0].key));
    assert_eq!(stage.orders(), [1, 2], "nothing is reversed by itself");
    stage.stop(watcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e35_an_event_retracted_while_it_waits_in_the_queue_is_never_requested() {
    let broker = Brokered::on(RabbitMq::shared().await, "e35", "{ depth = 0 }").await;
    let stage = &broker.stage;
    stage.anvil.mine(5).await;
    stage.server.always(Some((503, "", json!({ "code": "overloaded" }))));
    let watcher = stage.watcher();
    for order in [1, 2] {
        stage.ask(order).await;
        stage.anvil.mine(1).await;
    }
    // The first is in hand, and refused again and again; the second waits behind it.
    broker.published(2).await;
    stage.requests(3).await;
    assert_eq!(stage.count("taken"), 1);
    stage.reorg(2).await;
    stage.outbox("cancelled", 1).await;
    broker.published(4).await;
    stage.server.always(None);
    stage.ask(3).await;
    stage.anvil.mine(1).await;
    poll_until(LIMIT, "order 3", async || stage.orders().ends_with(&[3]).then_some(())).await;
    let made = stage.server.requests();
    let answered: Vec<u128> = stage.orders().into_iter().filter(|order| *order != 1).collect();
    assert_eq!(answered, [3], "the second was never asked for");
    assert!(
        made.iter()
            .all(|request| request.key == made[0].key || request.key == made[made.len() - 1].key)
    );
    stage.stop(watcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e39_nothing_is_lost_when_the_broker_is_killed() {
    let mut rabbit = RabbitMq::start().await;
    let broker = Brokered::on(&rabbit, "e39", "{ depth = 2 }").await;
    broker.tap().await;
    let stage = &broker.stage;
    let watcher = stage.watcher();
    stage.at_head().await;
    broker.reachable().await;
    // A stop in order first: this broker writes down late, minutes late if it is not stopped, that a
    // quorum queue was declared. What it keeps in one that it knows is safe at once.
    rabbit.stop();
    rabbit.start_again().await;
    broker.reachable().await;
    // Some are confirmed and wait in the queue when it dies, some are under way, some come later.
    stage.server.always(Some((503, "retry-after: 0\r\n", json!({ "code": "overloaded" }))));
    broker.emit(0..20).await;
    broker.published(20).await;
    for order in 20..40 {
        stage.ask(order).await;
    }
    stage.anvil.mine(3).await;
    rabbit.kill9();
    broker.stage.trouble();
    broker.emit(40..45).await;
    stage.at_head().await;
    stage.server.always(None);
    rabbit.start_again().await;
    stage.outbox("done", 45).await;
    assert_eq!(stage.server.by_key().len(), 45);
    let mut asked = stage.orders();
    asked.dedup();
    assert_eq!(asked, (0..45).collect::<Vec<_>>(), "each, in order");
    // At least once: what was under way may be there twice.
    broker.published(45).await;
    let waiting = broker.waiting("tap.e39").await as usize;
    let mut told = orders(&broker.tapped(waiting).await);
    told.dedup();
    assert_eq!(told, numbers(0..45));
    stage.stop(watcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_whose_call_would_revert_holds_up_none_that_come_after_it() {
    let broker = Brokered::new("aside").await;
    let stage = &broker.stage;
    stage.server.always(Some((422, "", json!({ "code": "would-revert" }))));
    let watcher = stage.watcher();
    broker.emit(1..3).await;
    stage.ordered(2).await;
    stage.server.always(None);
    stage.outbox("done", 2).await;
    stage.stop(watcher).await;
    assert_eq!(broker.waiting(&broker.queue()).await, 0, "the outbox had them");
}
