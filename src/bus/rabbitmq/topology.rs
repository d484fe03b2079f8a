//! What is declared at the broker. Declaring what is there already changes nothing; declaring it with
//! other arguments is refused by the broker, and told.

use super::{BrokerError, answered, short};
use crate::ports::bus::Inbox;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};
use std::sync::Arc;

/// How often the broker hands a message out before it gives it up. A server that does not answer for
/// long costs one every [`HOLD`](super::subscriber); so this is days, and still ends a message at
/// which every process dies. It has a second effect, which is wanted: with a limit set, RabbitMQ puts a
/// message that comes back to the front of the queue, and without one to its end.
const DELIVERIES_MAX: i64 = 1000;

/// The exchange, and each consumer's queue.
#[derive(Debug, Clone)]
pub struct Topology {
    exchange: String,
    queues: Vec<(String, Vec<String>)>,
}

/// The name of a consumer's queue.
pub(super) fn queue_name(consumer: &str) -> String {
    format!("claviger.{}", consumer.replace(':', "."))
}

/// Where messages go that the broker gave up.
pub(super) fn dead_queue_name(queue: &str) -> String {
    format!("{queue}.dead")
}

impl Topology {
    /// The topology of these inboxes.
    #[must_use]
    pub fn new(exchange: &str, inboxes: &[Arc<dyn Inbox>]) -> Self {
        let queue = |inbox: &Arc<dyn Inbox>| (queue_name(inbox.name()), inbox.routing_keys());
        let queues = inboxes.iter().map(queue).collect();
        Self { exchange: exchange.to_owned(), queues }
    }

    /// An exchange alone.
    #[must_use]
    pub fn of_exchange(exchange: &str) -> Self {
        Self { exchange: exchange.to_owned(), queues: Vec::new() }
    }

    /// The same for consumers of these names, to look at: it binds nothing.
    #[must_use]
    pub fn of_names(exchange: &str, consumers: impl IntoIterator<Item = String>) -> Self {
        let queues = consumers.into_iter().map(|name| (queue_name(&name), Vec::new())).collect();
        Self { exchange: exchange.to_owned(), queues }
    }

    pub(super) fn exchange(&self) -> &str {
        &self.exchange
    }

    fn dead_exchange(&self) -> String {
        format!("{}.dead", self.exchange)
    }

    pub(super) fn queue_names(&self) -> Vec<String> {
        let both = |(name, _): &(String, _)| [name.clone(), dead_queue_name(name)];
        self.queues.iter().flat_map(both).collect()
    }

    /// Declares everything: queues first are bound before anything is published.
    pub(super) async fn declare(&self, channel: &Channel) -> Result<(), BrokerError> {
        self.exchange_named(channel, &self.exchange, ExchangeKind::Topic).await?;
        if !self.queues.is_empty() {
            self.exchange_named(channel, &self.dead_exchange(), ExchangeKind::Direct).await?;
        }
        for (name, keys) in &self.queues {
            let dead = dead_queue_name(name);
            queue(channel, &dead, dead_arguments()).await?;
            bind(channel, &dead, &self.dead_exchange(), &dead).await?;
            queue(channel, name, self.arguments(&dead)).await?;
            for key in keys {
                bind(channel, name, &self.exchange, key).await?;
            }
        }
        Ok(())
    }

    async fn exchange_named(
        &self,
        channel: &Channel,
        name: &str,
        kind: ExchangeKind,
    ) -> Result<(), BrokerError> {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declared = channel.exchange_declare(short(name)?, kind, options, FieldTable::default());
        answered("exchange.declare", declared).await
    }

    /// A quorum queue that loses nothing: it refuses (nack) where it is full by a policy, keeps a given
    /// up message until the second queue has confirmed it, and serves one reader at a time, so that the
    /// order holds when several watchers run.
    fn arguments(&self, dead: &str) -> FieldTable {
        let mut arguments = dead_arguments();
        let mut set = |name: &str, value: AMQPValue| {
            arguments.insert(name.into(), value);
        };
        set("x-delivery-limit", AMQPValue::LongLongInt(DELIVERIES_MAX));
        set("x-dead-letter-exchange", AMQPValue::LongString(self.dead_exchange().into()));
        set("x-dead-letter-routing-key", AMQPValue::LongString(dead.into()));
        set("x-dead-letter-strategy", AMQPValue::LongString("at-least-once".into()));
        arguments
    }
}

fn dead_arguments() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    arguments
}

async fn queue(channel: &Channel, name: &str, arguments: FieldTable) -> Result<(), BrokerError> {
    let declared = channel.queue_declare(short(name)?, QueueDeclareOptions::durable(), arguments);
    answered("queue.declare", declared).await.map(|_| ())
}

async fn bind(
    channel: &Channel,
    queue: &str,
    exchange: &str,
    key: &str,
) -> Result<(), BrokerError> {
    let (queue, exchange, key) = (short(queue)?, short(exchange)?, short(key)?);
    let options = QueueBindOptions::default();
    let bound = channel.queue_bind(queue, exchange, key, options, FieldTable::default());
    answered("queue.bind", bound).await
}
