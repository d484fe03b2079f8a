//! The watcher with RabbitMQ between what is found and what is asked for.

#[cfg(feature = "failpoints")]
mod killed;
mod rows;
mod sink;
mod strange;

use super::support::services::RabbitMq;
use super::*;
use futures::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions,
    ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};

const KEY: &str = "local.0x00000000000000000000000000000000000e0001.Asked";

/// A message as another reader of the exchange gets it.
struct Tapped {
    key: String,
    persistent: bool,
    event: Value,
}

impl Tapped {
    /// The order it tells of, with `-` if it takes it back.
    fn order(&self) -> String {
        let order = self.event["data"]["args"]["orderId"].as_str().unwrap();
        let retracted = self.event["type"] == "claviger.chain.log.retracted";
        assert_eq!(self.key.ends_with(".retracted"), retracted);
        format!("{}{order}", if retracted { "-" } else { "" })
    }
}

fn orders(tapped: &[Tapped]) -> Vec<String> {
    tapped.iter().map(Tapped::order).collect()
}

async fn channel(url: &str) -> (Connection, Channel) {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

/// A stage with a broker. Exchange and queues are this test's own, so that a broker can be shared.
struct Brokered {
    stage: Stage,
    url: String,
    name: &'static str,
    /// Has the file with the URL.
    _folder: TempDir,
}

impl Brokered {
    async fn new(name: &'static str) -> Self {
        Self::on(RabbitMq::shared().await, name, "{ depth = 2 }").await
    }

    async fn on(rabbit: &RabbitMq, name: &'static str, finality: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rabbitmq.url");
        std::fs::write(&file, format!("{}\n", rabbit.url())).unwrap();
        let bus = format!(
            "[bus]\nkind = \"rabbitmq\"\nurl_file = \"{}\"\nexchange = \"{name}.events\"",
            file.display()
        );
        let trigger = name.to_owned();
        let stage = Stage::with(Setting { finality, trigger, bus, ..Setting::default() }).await;
        Self { stage, url: rabbit.url(), name, _folder: folder }
    }

    fn exchange(&self) -> String {
        format!("{}.events", self.name)
    }

    fn queue(&self) -> String {
        format!("claviger.trigger.{}", self.name)
    }

    /// A second queue, of another application, that gets everything from now on.
    async fn tap(&self) {
        self.bind_queue(&format!("tap.{}", self.name), "#", FieldTable::default()).await;
    }

    async fn bind_queue(&self, queue: &str, key: &str, arguments: FieldTable) {
        let (_connection, channel) = channel(&self.url).await;
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let (exchange, none) = (self.exchange(), FieldTable::default);
        channel
            .exchange_declare(exchange.as_str().into(), ExchangeKind::Topic, options, none())
            .await
            .unwrap();
        channel
            .queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments)
            .await
            .unwrap();
        channel
            .queue_bind(
                queue.into(),
                exchange.as_str().into(),
                key.into(),
                QueueBindOptions::default(),
                none(),
            )
            .await
            .unwrap();
    }

    /// The next messages of the second queue, once there are so many.
    async fn tapped(&self, count: usize) -> Vec<Tapped> {
        self.drained(&format!("tap.{}", self.name), count).await
    }

    async fn drained(&self, queue: &str, count: usize) -> Vec<Tapped> {
        let (_connection, channel) = channel(&self.url).await;
        let mut found = Vec::new();
        poll_until(LIMIT, &format!("{count} messages in {queue}"), async || {
            let got = channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap();
            if let Some(message) = got {
                message.delivery.ack(BasicAckOptions::default()).await.unwrap();
                found.push(Tapped {
                    key: message.delivery.routing_key.to_string(),
                    persistent: *message.delivery.properties.delivery_mode() == Some(2),
                    event: serde_json::from_slice(&message.delivery.data).unwrap(),
                });
            }
            (found.len() == count).then_some(())
        })
        .await;
        found
    }

    /// How many messages wait in a queue, those in hand included once their reader is gone.
    async fn waiting(&self, queue: &str) -> u32 {
        let (_connection, channel) = channel(&self.url).await;
        let options = QueueDeclareOptions::durable().passive();
        let queue = channel.queue_declare(queue.into(), options, FieldTable::default());
        queue.await.unwrap().message_count()
    }

    /// Publishes these bytes, as anybody with an account at the broker could.
    async fn publish(&self, exchange: &str, key: &str, bytes: &[u8]) {
        let (_connection, channel) = channel(&self.url).await;
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let properties = BasicProperties::default().with_delivery_mode(2);
        let sent =
            channel.basic_publish(exchange.into(), key.into(), options, bytes, properties).await;
        let confirmed = sent.unwrap().await.unwrap();
        assert!(confirmed.is_ack() && confirmed.take_message().is_none(), "{key} is not bound");
    }

    /// Waits until the trigger's queue is read.
    async fn reachable(&self) {
        poll_until(LIMIT, "the queue is read", async || {
            (self.stage.status()["bus"]["queues"][0]["consumers"] == 1).then_some(())
        })
        .await;
    }

    async fn published(&self, count: u64) {
        poll_until(LIMIT, &format!("{count} messages published"), async || {
            (self.stage.count_of("publisher", "done") == count).then_some(())
        })
        .await;
    }

    /// Waits until `status` shows a reason with this in it.
    async fn shown_reason(&self, part: &str) {
        poll_until(LIMIT, &format!("`{part}` to look at"), async || {
            let items = self.stage.attention("log");
            let with = |item: &Value| item["reason"].as_str().unwrap().contains(part);
            items.iter().any(with).then_some(())
        })
        .await;
    }

    /// Emits many events, hundreds in each block, and makes them final.
    async fn emit_many(&self, orders: std::ops::Range<u128>) {
        for order in orders {
            self.stage.ask(order).await;
            if order % 100 == 99 {
                self.stage.anvil.mine(1).await;
            }
        }
        self.stage.anvil.mine(3).await;
    }

    /// Emits one event in each of so many blocks, and makes them final.
    async fn emit(&self, orders: std::ops::Range<u128>) {
        for order in orders {
            self.stage.ask(order).await;
            self.stage.anvil.mine(1).await;
        }
        self.stage.anvil.mine(2).await;
    }
}

fn numbers(range: std::ops::Range<u128>) -> Vec<String> {
    range.map(|order| order.to_string()).collect()
}
