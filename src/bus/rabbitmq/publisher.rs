//! The watcher's publisher: rows of its outbox to the exchange.

use super::line::{Line, Outgoing, Published};
use super::{Settings, Topology};
use crate::ports::bus::{Consumer, Kind, Message, Outcome, PUBLISHER, Wait};
use async_trait::async_trait;
use serde::Deserialize;
use std::collections::BTreeMap;
use tokio_util::sync::CancellationToken;

/// The routing keys of a source's messages; `*` stands for the document's subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routes {
    /// Of logs.
    pub log: String,
    /// Of retractions.
    pub retraction: String,
}

/// Publishes each source's messages in order: the next one is sent only when the broker has confirmed
/// the one before, since it is a lane of the outbox that asks. The lanes of all sources share a batch.
pub struct Publisher {
    line: Line,
    routes: BTreeMap<String, Routes>,
}

impl Publisher {
    /// A publisher of these sources, not connected yet.
    #[must_use]
    pub fn new(settings: Settings, topology: Topology, routes: BTreeMap<String, Routes>) -> Self {
        Self { line: Line::new(settings, topology, "claviger-watcher"), routes }
    }

    /// Keeps a connection until the stop.
    pub async fn run(&self, stop: CancellationToken) {
        self.line.run(stop).await;
    }

    fn key(&self, message: &Message, subject: &str) -> Option<String> {
        let routes = self.routes.get(&message.source)?;
        let key = match message.kind {
            Kind::Log => &routes.log,
            Kind::Retraction => &routes.retraction,
        };
        // A source with more than one subject: each document names its own, in one word of the key.
        if key.contains('*') {
            let is_word = !subject.is_empty() && subject.chars().all(|c| c.is_ascii_alphanumeric());
            return is_word.then(|| key.replace('*', subject));
        }
        Some(key.clone())
    }
}

/// What of a document its envelope needs.
#[derive(Deserialize)]
struct Head {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    subject: String,
}

pub(super) fn counted(outcome: &'static str) {
    metrics::counter!("claviger_bus_published_total", "outcome" => outcome).increment(1);
}

pub(super) const fn retry(error: String) -> Outcome {
    Outcome::Retry { after_ms: None, error }
}

/// What a publication comes to that was not stored. Nothing of it is done.
pub(super) fn not_stored(published: Published, key: &str, event_id: &str) -> Outcome {
    match published {
        Published::Unroutable => {
            counted("unroutable");
            tracing::error!(key, event_id, "unroutable: no queue is bound to this key");
            retry(format!("unroutable: no queue is bound to {key}"))
        }
        Published::Refused => {
            counted("refused");
            retry(format!("RabbitMQ refused the message (nack): is a queue of {key} full?"))
        }
        // Whether it was stored is not known.
        Published::Unknown(error) => {
            counted("unknown");
            retry(error)
        }
        Published::Stored => retry("stored, and asked what else it is".to_owned()),
    }
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
        self.line.ready()
    }

    async fn deliver(&self, message: &Message) -> Outcome {
        let Ok(head) = serde_json::from_str::<Head>(&message.body) else {
            return Outcome::Park("its document cannot be read".to_owned());
        };
        let Some(key) = self.key(message, &head.subject) else {
            return Outcome::Park(format!("source {} has no routing key", message.source));
        };
        let outgoing = Outgoing {
            key: key.clone(),
            id: message.event_id.clone(),
            kind: head.kind,
            body: message.body.clone(),
        };
        match self.line.publish(outgoing).await {
            Published::Stored => {
                counted("confirmed");
                crate::failpoint!("bus.after_publish");
                Outcome::Done(format!("published as {key}"))
            }
            other => not_stored(other, &key, &message.event_id),
        }
    }
}
