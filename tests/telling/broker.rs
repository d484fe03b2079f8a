//! A real broker where one kind of event is wanted and the others are not.

use crate::still::Still;
use crate::support::server::LIMIT;
use crate::support::services::{RabbitMq, poll_until};
use claviger::app::tell::operate::{self, DeliveryFilter};
use claviger::bus::rabbitmq::{Address, EventSink, Settings, Unroutable};
use claviger::ports::bus::Sink as _;
use lapin::options::{BasicGetOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use std::sync::Arc;
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
