//! The publisher: rows of the outbox to the exchange.

use super::{ANSWER_TIMEOUT, BrokerError, Settings, Topology};
use super::{LOOK_EVERY, answered, close, reconnect_after, rest, short};
use crate::ports::bus::{Consumer, Kind, Message, Outcome, PUBLISHER, Wait};
use async_trait::async_trait;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// AMQP 0-9-1: the message is written to disk.
const PERSISTENT: u8 = 2;

/// The routing keys of a source's messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routes {
    /// Of logs.
    pub log: String,
    /// Of retractions.
    pub retraction: String,
}

/// Publishes each source's messages in order: the next one is sent only when the broker has confirmed
/// the one before, since it is a lane of the outbox that asks.
pub struct Publisher {
    settings: Settings,
    topology: Topology,
    routes: BTreeMap<String, Routes>,
    /// In confirm mode, while there is a connection. Shared, so that it can be told from a later one:
    /// both have the same number, each on its connection.
    channel: Mutex<Option<Arc<Channel>>>,
    /// Held from a publication until its confirm is read. The lanes of all sources share the channel,
    /// and the client library gives a message that is returned to whichever publication completes next:
    /// with two under way, an unroutable event could be taken for stored, and the other for unroutable.
    turn: tokio::sync::Mutex<()>,
}

/// What the broker made of a publication.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Stored,
    Unroutable,
    Refused,
}

impl Publisher {
    /// A publisher of these sources, not connected yet.
    #[must_use]
    pub fn new(settings: Settings, topology: Topology, routes: BTreeMap<String, Routes>) -> Self {
        let (channel, turn) = (Mutex::new(None), tokio::sync::Mutex::new(()));
        Self { settings, topology, routes, channel, turn }
    }

    /// Keeps a connection until the stop.
    pub async fn run(&self, stop: CancellationToken) {
        let mut failures = 0_u32;
        while !stop.is_cancelled() {
            match self.connected().await {
                Ok(connection) => {
                    tracing::info!(exchange = self.topology.exchange(), "publishing to RabbitMQ");
                    failures = 0;
                    while self.ready() && rest(&stop, LOOK_EVERY).await {}
                    self.set(None);
                    close(&connection).await;
                    if !stop.is_cancelled() {
                        tracing::warn!(
                            "the connection to RabbitMQ is lost; events wait in the outbox"
                        );
                    }
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    tracing::warn!(failures, %error, "no RabbitMQ to publish to; events wait in the outbox");
                }
            }
            if !rest(&stop, reconnect_after(failures.max(1))).await {
                break;
            }
        }
    }

    async fn connected(&self) -> Result<Connection, BrokerError> {
        let connection = self.settings.connect("publisher").await?;
        let channel = answered("channel.open", connection.create_channel()).await?;
        self.topology.declare(&channel).await?;
        let confirms = channel.confirm_select(ConfirmSelectOptions::default());
        answered("confirm.select", confirms).await?;
        self.set(Some(Arc::new(channel)));
        Ok(connection)
    }

    fn set(&self, channel: Option<Arc<Channel>>) {
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = channel;
    }

    /// Forgets a channel that failed, unless another one has come in its place since.
    fn forget(&self, failed: &Arc<Channel>) {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        if channel.as_ref().is_some_and(|channel| Arc::ptr_eq(channel, failed)) {
            *channel = None;
        }
    }

    fn channel(&self) -> Option<Arc<Channel>> {
        let channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner).clone();
        channel.filter(|channel| channel.status().connected())
    }

    fn key(&self, message: &Message) -> Option<&str> {
        let routes = self.routes.get(&message.source)?;
        Some(match message.kind {
            Kind::Log => &routes.log,
            Kind::Retraction => &routes.retraction,
        })
    }

    async fn publish(
        &self,
        channel: &Channel,
        key: &str,
        message: &Message,
    ) -> Result<Verdict, BrokerError> {
        let properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_content_type(short("application/cloudevents+json")?)
            .with_message_id(short(&message.event_id)?)
            .with_app_id(short("claviger-watcher")?);
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let (exchange, key) = (short(self.topology.exchange())?, short(key)?);
        let body = message.body.as_bytes();
        let sent = channel.basic_publish(exchange, key, options, body, properties);
        let confirm = answered("basic.publish", sent).await?;
        match timeout(ANSWER_TIMEOUT, confirm).await {
            Ok(confirmed) => Ok(verdict(&confirmed?)),
            Err(_) => Err(BrokerError::Silent("a publication")),
        }
    }
}

/// A message that is returned is acknowledged as well: it was handled, by nobody.
const fn verdict(confirmation: &Confirmation) -> Verdict {
    match confirmation {
        Confirmation::Ack(None) => Verdict::Stored,
        Confirmation::Ack(Some(_)) => Verdict::Unroutable,
        Confirmation::Nack(_) | Confirmation::NotRequested => Verdict::Refused,
    }
}

fn counted(outcome: &'static str) {
    metrics::counter!("claviger_bus_published_total", "outcome" => outcome).increment(1);
}

fn retry(error: String) -> Outcome {
    Outcome::Retry { after_ms: None, error }
}

#[async_trait]
impl Consumer for Publisher {
    fn name(&self) -> &str {
        PUBLISHER
    }

    /// An event is published when it is final by its source's rule, as a trigger in the same process
    /// would get it.
    fn subscriptions(&self) -> Vec<(String, Wait)> {
        self.routes.keys().map(|source| (source.clone(), Wait::Final)).collect()
    }

    fn ready(&self) -> bool {
        self.channel().is_some()
    }

    async fn deliver(&self, message: &Message) -> Outcome {
        let Some(key) = self.key(message) else {
            return Outcome::Park(format!("source {} has no routing key", message.source));
        };
        // The channel is looked for, and forgotten if it fails, within the turn: nobody who has waited
        // publishes on one whose last confirm is still to come.
        let turn = self.turn.lock().await;
        let Some(channel) = self.channel() else {
            return retry("there is no connection to RabbitMQ".to_owned());
        };
        let published = self.publish(&channel, key, message).await;
        if published.is_err() {
            self.forget(&channel);
        }
        drop(turn);
        match published {
            Ok(Verdict::Stored) => {
                counted("confirmed");
                crate::failpoint!("bus.after_publish");
                Outcome::Done(format!("published as {key}"))
            }
            Ok(Verdict::Unroutable) => {
                counted("unroutable");
                let event_id = message.event_id.as_str();
                tracing::error!(key, event_id, "unroutable: no queue is bound to this key");
                retry(format!("unroutable: no queue is bound to {key}"))
            }
            Ok(Verdict::Refused) => {
                counted("refused");
                retry(format!("RabbitMQ refused the message (nack): is a queue of {key} full?"))
            }
            Err(error) => {
                counted("unknown");
                // Whether it was stored is not known. The next one is sent on another connection, where
                // nothing of this one can be mistaken for its answer.
                retry(error.to_string())
            }
        }
    }
}
