//! The server's own events to a real broker.

use super::*;
use claviger::bus::rabbitmq::{Address, EventSink, Settings, Unroutable};
use claviger::core::time::Timestamp;
use claviger::ports::bus::{Notice, Outcome, Sink};
use futures::future::join_all;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

fn notice(number: usize, key: &str) -> Notice {
    Notice {
        id: format!("event-{number}"),
        kind: "claviger.transaction.mined".to_owned(),
        subject: format!("tx-{number}"),
        routing_key: key.to_owned(),
        at: Timestamp::from_millis(0),
        body: json!({ "specversion": "1.0", "id": format!("event-{number}") }).to_string(),
    }
}

/// A sink that runs until it is dropped.
struct Running {
    sink: Arc<EventSink>,
    _stop: DropGuard,
    _task: JoinHandle<()>,
}

impl Running {
    fn new(settings: Settings, exchange: &str, unroutable: Unroutable) -> Self {
        Self::of(EventSink::new("bus", settings, exchange, unroutable))
    }

    fn of(sink: EventSink) -> Self {
        let sink = Arc::new(sink);
        let (stop, runs) = (CancellationToken::new(), Arc::clone(&sink));
        let end = stop.clone();
        let task = tokio::spawn(async move { runs.run(end).await });
        Self { sink, _stop: stop.drop_guard(), _task: task }
    }

    async fn ready(self) -> Self {
        poll_until(LIMIT, "the sink is ready", async || self.sink.ready().then_some(())).await;
        self
    }
}

fn plain(rabbit: &RabbitMq) -> Settings {
    Settings { address: Address::Url(rabbit.url()) }
}

/// A queue that gets what has this key.
async fn bind(channel: &Channel, exchange: &str, queue: &str, key: &str) {
    let none = FieldTable::default;
    let options = QueueDeclareOptions::durable();
    channel.queue_declare(queue.into(), options, none()).await.unwrap();
    let options = QueueBindOptions::default();
    channel.queue_bind(queue.into(), exchange.into(), key.into(), options, none()).await.unwrap();
}

/// How often each message is in a queue. Ends when the queue is empty.
async fn emptied(channel: &Channel, queue: &str) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    while let Some(message) =
        channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await.unwrap()
    {
        let id = message.delivery.properties.message_id().clone().unwrap().to_string();
        *found.entry(id).or_default() += 1;
    }
    found
}

fn said(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Done(text) | Outcome::Park(text) | Outcome::Aside(text) => text,
        Outcome::Retry { error, .. } => error,
    }
}

#[tokio::test]
async fn an_event_of_the_server_that_no_queue_is_bound_for_is_given_up_and_can_be_told_later() {
    let rabbit = RabbitMq::shared().await;
    let running = Running::new(plain(rabbit), "sink.kept", Unroutable::Keep).ready().await;
    let told = running.sink.tell(&notice(1, "local.transaction.mined")).await;
    assert!(
        matches!(told, Outcome::Park(_)) && said(&told).contains("no queue is bound to local."),
        "{told:?}"
    );
    let (_connection, channel) = channel(&rabbit.url()).await;
    bind(&channel, "sink.kept", "sink.kept.all", "local.transaction.*").await;
    let told = running.sink.tell(&notice(1, "local.transaction.mined")).await;
    assert!(matches!(told, Outcome::Done(_)), "{told:?}");
    let got = channel.basic_get("sink.kept.all".into(), BasicGetOptions::default()).await.unwrap();
    let delivery = got.unwrap().delivery;
    let (properties, text) = (&delivery.properties, |text: &str| Some(text.into()));
    assert_eq!(*properties.message_id(), text("event-1"));
    assert_eq!(*properties.content_type(), text("application/cloudevents+json"));
    assert_eq!(*properties.kind(), text("claviger.transaction.mined"));
    assert_eq!(*properties.delivery_mode(), Some(2));
    let body: Value = serde_json::from_slice(&delivery.data).unwrap();
    assert_eq!(body["id"], "event-1");
}

#[tokio::test]
async fn where_it_is_configured_an_event_of_the_server_that_nobody_wants_is_done() {
    let rabbit = RabbitMq::shared().await;
    let running = Running::new(plain(rabbit), "sink.dropped", Unroutable::Drop).ready().await;
    let told = running.sink.tell(&notice(1, "local.transaction.mined")).await;
    assert!(matches!(told, Outcome::Done(_)) && said(&told).contains("dropped"), "{told:?}");
}

/// The client library gives a returned message to whichever publication completes next.
#[tokio::test]
async fn of_many_publications_under_way_exactly_the_unroutable_are_not_done() {
    let rabbit = RabbitMq::shared().await;
    let running = Running::new(plain(rabbit), "sink.many", Unroutable::Keep).ready().await;
    let (_connection, channel) = channel(&rabbit.url()).await;
    bind(&channel, "sink.many", "sink.many.bound", "bound").await;
    let bound = |number: usize| !number.is_multiple_of(3);
    let notices: Vec<Notice> = (0..900)
        .map(|number| notice(number, if bound(number) { "bound" } else { "nobody" }))
        .collect();
    let told = join_all(notices.iter().map(|notice| running.sink.tell(notice))).await;
    for (number, told) in told.iter().enumerate() {
        assert_eq!(matches!(told, Outcome::Done(_)), bound(number), "{number}: {told:?}");
        assert!(bound(number) || matches!(told, Outcome::Park(_)), "{number}: {told:?}");
    }
    let found = emptied(&channel, "sink.many.bound").await;
    assert_eq!(found.len(), 600);
    assert!(found.values().all(|count| *count == 1), "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_broker_is_short_of_memory_nothing_is_sent_twice() {
    let rabbit = RabbitMq::start().await;
    let patience = Duration::from_secs(1);
    let sink = EventSink::new("bus", plain(&rabbit), "sink.blocked", Unroutable::Keep);
    let running = Running::of(sink.with_patience(patience)).ready().await;
    let (_connection, channel) = channel(&rabbit.url()).await;
    bind(&channel, "sink.blocked", "sink.blocked.all", "#").await;
    rabbit.short_of_memory(true);
    let sink = Arc::clone(&running.sink);
    let telling = tokio::spawn(async move {
        join_all([1, 2, 3].map(async |number| sink.tell(&notice(number, "k")).await)).await
    });
    poll_until(LIMIT, "the connection is blocked", async || (!running.sink.ready()).then_some(()))
        .await;
    let since = Instant::now();
    poll_until(LIMIT, "longer than a broker may be silent that reads", async || {
        (since.elapsed() > patience * 2).then_some(())
    })
    .await;
    let late = running.sink.tell(&notice(4, "k")).await;
    assert!(matches!(late, Outcome::Retry { .. }), "nothing new is taken: {late:?}");
    rabbit.short_of_memory(false);
    let told = telling.await.unwrap();
    assert!(told.iter().all(|told| matches!(told, Outcome::Done(_))), "{told:?}");
    assert!(running.sink.ready(), "over the same connection");
    let found = emptied(&channel, "sink.blocked.all").await;
    assert_eq!(found.into_values().collect::<Vec<_>>(), [1, 1, 1]);
}
