//! A real broker where one kind of event is wanted and the others are not.

use crate::still::Still;
use crate::support::server::LIMIT;
use crate::support::services::{RabbitMq, poll_until};
use claviger::app::tell::{
    self,
    operate::{self, DeliveryFilter},
};
use claviger::bus::rabbitmq::{Address, EventSink, Settings, Unroutable};
use claviger::ports::bus::{Outcome, Sink as _};
use lapin::options::{BasicGetOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn who_binds_only_ends_gets_them_though_nobody_is_bound_for_what_came_before() {
    let rabbit = RabbitMq::start().await;
    let still = Still::new().await;
    let settings = Settings { address: Address::Url(rabbit.url()) };
    let sink = Arc::new(EventSink::new("bus", settings, "told.ends", Unroutable::Keep));
    let (stop, runs) = (CancellationToken::new(), Arc::clone(&sink));
    let (end, _stop) = (stop.clone(), stop.drop_guard());
    tokio::spawn(async move { runs.run(end).await });
    poll_until(LIMIT, "the sink is ready", async || sink.ready().then_some(())).await;
    let connection =
        Connection::connect(&rabbit.url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let none = FieldTable::default;
    let durable = QueueDeclareOptions::durable();
    channel.queue_declare("ends".into(), durable, none()).await.unwrap();
    let (key, plain) = ("*.transaction.finalized", QueueBindOptions::default());
    channel.queue_bind("ends".into(), "told.ends".into(), key.into(), plain, none()).await.unwrap();

    for status in ["queued", "submitted", "finalized"] {
        still.happens(&*sink, "a", status).await;
    }
    assert_eq!(still.tell(&*sink).await, 3, "each once, and none waits for another");
    let got = channel.basic_get("ends".into(), BasicGetOptions { no_ack: true }).await.unwrap();
    let kind = got.unwrap().delivery.properties.kind().clone().unwrap();
    assert_eq!(kind.as_str(), "claviger.transaction.finalized");

    // What nobody was bound for is listed, and told when somebody is and an operator says so.
    let filter = DeliveryFilter { limit: 10, ..DeliveryFilter::default() };
    let kept = operate::deliveries(&still.app, filter.clone()).await.unwrap();
    assert_eq!(kept.len(), 2);
    for row in &kept {
        assert!(row.is_dead && row.reason.starts_with("no queue is bound to server."), "{row:?}");
    }
    let (key, plain) = ("#", QueueBindOptions::default());
    channel.queue_bind("ends".into(), "told.ends".into(), key.into(), plain, none()).await.unwrap();
    for row in &kept {
        operate::replay(&still.app, row.id, &crate::letters::said()).await.unwrap();
    }
    assert_eq!(still.tell(&*sink).await, 2);
    assert!(operate::deliveries(&still.app, filter).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_confirms_nothing_holds_up_nobody_else_and_nothing_is_sent_twice_for_it() {
    let rabbit = RabbitMq::start().await;
    let still = Still::new().await;
    let settings = Settings { address: Address::Url(rabbit.url()) };
    let sink = EventSink::new("bus", settings, "told.hung", Unroutable::Keep);
    let sink = Arc::new(sink.with_patience(Duration::from_secs(8)));
    let (stop, runs) = (CancellationToken::new(), Arc::clone(&sink));
    let (end, _stop) = (stop.clone(), stop.drop_guard());
    tokio::spawn(async move { runs.run(end).await });
    poll_until(LIMIT, "the sink is ready", async || sink.ready().then_some(())).await;
    let connection =
        Connection::connect(&rabbit.url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    for (queue, key) in [("well", "*.transaction.mined"), ("hung", "*.transaction.failed")] {
        let (durable, none) = (QueueDeclareOptions::durable(), FieldTable::default);
        channel.queue_declare(queue.into(), durable, none()).await.unwrap();
        let (exchange, plain) = ("told.hung".into(), QueueBindOptions::default());
        channel.queue_bind(queue.into(), exchange, key.into(), plain, none()).await.unwrap();
    }
    rabbit.hang("hung");

    // What hangs, what nobody wants and what goes well, in one batch and in those after it.
    let said = |outcome: &Outcome| match outcome {
        Outcome::Done(_) => "done",
        Outcome::Park(_) => "kept",
        Outcome::Retry { .. } | Outcome::Aside(_) => "again",
    };
    let since = Instant::now();
    let (mut hanging, mut well) = (Vec::new(), 0);
    for round in 0..3 {
        for (n, status) in ["failed", "mined", "queued", "mined"].iter().enumerate() {
            still.happens(&*sink, &format!("{round}-{n}"), status).await;
        }
        let (mut telling, mut kinds) = (Vec::new(), Vec::new());
        while let Some(delivery) = tell::claim(&still.app, &*sink).await.unwrap() {
            let (notice, sink) = (tell::notice(&delivery.placed), Arc::clone(&sink));
            kinds.push(notice.kind.clone());
            telling.push(tokio::spawn(async move { sink.tell(&notice).await }));
        }
        assert_eq!(kinds.len(), 4);
        for (kind, telling) in kinds.into_iter().zip(telling) {
            match kind.as_str() {
                "claviger.transaction.failed" => hanging.push(telling),
                "claviger.transaction.queued" => assert_eq!(said(&telling.await.unwrap()), "kept"),
                _ => {
                    assert_eq!(said(&telling.await.unwrap()), "done");
                    well += 1;
                }
            }
        }
    }
    let took = since.elapsed();
    assert!(took < Duration::from_secs(6), "others waited for the one that hangs: {took:?}");
    assert_eq!((well, hanging.iter().filter(|it| it.is_finished()).count()), (6, 0));
    // At last it is not known of those that hang, and of those alone.
    for telling in hanging {
        assert_eq!(said(&telling.await.unwrap()), "again");
    }
    let mut found = 0;
    let take = || BasicGetOptions { no_ack: true };
    while channel.basic_get("well".into(), take()).await.unwrap().is_some() {
        found += 1;
    }
    assert_eq!(found, well, "each once");
}
