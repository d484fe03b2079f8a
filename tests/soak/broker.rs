//! The broker between the poller and the trigger, and what the server tells a backend over it.

use crate::outcome::connect;
use crate::run::{Run, pace};
use crate::stage::Stage;
use crate::support::services::RabbitMq;
use lapin::options::{
    BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use serde_json::Value;
use std::collections::BTreeMap;

/// A backend's queues, and what they get: what becomes of transactions, and what the contract emits.
const STORIES: (&str, &str) = ("backend", "local.transaction.*");
const LOGS: (&str, &str) = ("ledger", "local.*.ChargeRequested");
const EXCHANGE: &str = "claviger.events";

/// A broker, with the backend's queues.
pub async fn start() -> RabbitMq {
    let rabbit = RabbitMq::start().await;
    let (_connection, channel) = channel(&rabbit).await;
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    channel
        .exchange_declare(EXCHANGE.into(), ExchangeKind::Topic, options, FieldTable::default())
        .await
        .unwrap();
    for (queue, key) in [STORIES, LOGS] {
        let (durable, options) = (QueueDeclareOptions::durable(), QueueBindOptions::default());
        channel.queue_declare(queue.into(), durable, FieldTable::default()).await.unwrap();
        channel
            .queue_bind(queue.into(), EXCHANGE.into(), key.into(), options, FieldTable::default())
            .await
            .unwrap();
    }
    rabbit
}

async fn channel(rabbit: &RabbitMq) -> (Connection, Channel) {
    let properties = ConnectionProperties::default();
    let connection = Connection::connect(&rabbit.url(), properties).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

/// Waits until the server owes the broker nothing. The deadline of the run ends the wait.
pub async fn all_told(run: &Run, stage: &Stage) {
    let owed = "SELECT (SELECT COUNT(*) FROM events WHERE place IS NULL) \
        + (SELECT COUNT(*) FROM event_deliveries)";
    let mut database = connect(stage).await;
    loop {
        let (left,): (i64,) = sqlx::query_as(owed).fetch_one(&mut database).await.unwrap();
        if left == 0 {
            return;
        }
        run.note("events not told yet", left.to_string());
        pace(100).await;
    }
}

/// What is in a queue, in its order.
async fn drained(rabbit: &RabbitMq, (queue, _): (&str, &str)) -> Vec<Value> {
    let (_connection, channel) = channel(rabbit).await;
    let (options, mut events) = (BasicGetOptions { no_ack: true }, Vec::new());
    while let Some(message) = channel.basic_get(queue.into(), options).await.unwrap() {
        events.push(serde_json::from_slice(&message.delivery.data).unwrap());
    }
    events
}

/// The backend has heard of each of these logs, of which it has the ends of the events' ids.
pub async fn heard_of_logs(rabbit: &RabbitMq, logs: &[String]) -> usize {
    let events = drained(rabbit, LOGS).await;
    let told: Vec<&str> = events.iter().map(|event| event["id"].as_str().unwrap()).collect();
    for log in logs {
        assert!(told.iter().any(|id| id.ends_with(log)), "{log} was never heard: {told:?}");
    }
    told.len()
}

/// The backend has heard the whole story of each transaction, in its order; gives how many messages there were.
pub async fn heard_all(rabbit: &RabbitMq, stage: &Stage) -> usize {
    let events = drained(rabbit, STORIES).await;
    let mut heard = BTreeMap::<String, Vec<(String, String)>>::new();
    for event in &events {
        let text = |name: &str| event[name].as_str().unwrap().to_owned();
        let told = (text("id"), text("type"));
        let story = heard.entry(text("subject")).or_default();
        if !story.contains(&told) {
            story.push(told);
        }
    }
    let sql = "SELECT subject, id, kind FROM events WHERE kind LIKE 'claviger.transaction.%' ORDER BY place";
    let mut database = connect(stage).await;
    let rows: Vec<(String, String, String)> =
        sqlx::query_as(sql).fetch_all(&mut database).await.unwrap();
    let mut true_story = BTreeMap::<String, Vec<(String, String)>>::new();
    for (subject, id, kind) in rows {
        true_story.entry(subject).or_default().push((id, kind));
    }
    assert_eq!(heard, true_story, "each event at least once, in its transaction's order");
    events.len()
}

/// What the broker is to keep must be declared for a while, or it must have ended in order: a quorum queue that
/// was declared just before a kill does not come back.
pub async fn settle(rabbit: &mut RabbitMq) {
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    loop {
        let (_connection, channel) = channel(rabbit).await;
        let name = "claviger.trigger.charge";
        if channel.queue_declare(name.into(), options, FieldTable::default()).await.is_ok() {
            break;
        }
        pace(100).await;
    }
    rabbit.stop();
    rabbit.start_again().await;
}
