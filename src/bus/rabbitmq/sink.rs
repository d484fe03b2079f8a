//! The server's own events to the exchange.

use super::line::{Line, Outgoing, Published};
use super::publisher::{counted, not_stored};
use super::{Settings, Topology};
use crate::ports::bus::{Notice, Outcome, Patience, Sink};
use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

/// The longest pause between two attempts, in milliseconds.
const PAUSE_MS_MAX: i64 = 60_000;
/// How many are told at once, each of another subject: they share one round to the broker's disk.
const WIDTH: usize = 64;

/// What becomes of an event that no queue is bound for.
///
/// The watcher's events are never dropped: a payment hangs on each. The server's own are news of what its
/// database has anyway, and an exchange that nobody listens to yet, or any more, is no fault of the server's.
/// All the same the default keeps them, since a binding that somebody removed by mistake looks the same from
/// here, and what was dropped is not told again. It is kept as a dead letter: whoever binds one kind of event
/// and not those before it of the same subject must not wait for ever for what nobody wants. Where a broker is
/// there for the watcher only, `Drop` is right: what is kept grows with every transaction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Unroutable {
    /// It is given up at once, listed, and told again when an operator says so. What follows goes on.
    #[default]
    Keep,
    /// It is counted, and done.
    Drop,
}

/// Publishes the server's events: persistent, mandatory, confirmed, by their routing keys.
pub struct EventSink {
    name: String,
    line: Line,
    unroutable: Unroutable,
}

impl EventSink {
    /// A sink that is not connected yet. It declares the exchange and no queue: who wants the events binds one.
    #[must_use]
    pub fn new(name: &str, settings: Settings, exchange: &str, unroutable: Unroutable) -> Self {
        let topology = Topology::of_exchange(exchange);
        Self { name: name.to_owned(), line: Line::new(settings, topology, "claviger"), unroutable }
    }

    /// The same with another limit for the silence of a broker that is connected and not blocked.
    #[must_use]
    pub fn with_patience(mut self, patience: std::time::Duration) -> Self {
        self.line = self.line.with_patience(patience);
        self
    }

    /// Keeps a connection until the stop.
    pub async fn run(&self, stop: CancellationToken) {
        self.line.run(stop).await;
    }
}

#[async_trait]
impl Sink for EventSink {
    fn name(&self) -> &str {
        &self.name
    }

    fn ready(&self) -> bool {
        self.line.ready()
    }

    /// For ever: a broker that is away for a week, or refuses since a queue is full, gets all of the week.
    fn patience(&self) -> Patience {
        Patience::Endless { longest_ms: PAUSE_MS_MAX }
    }

    fn width(&self) -> usize {
        WIDTH
    }

    async fn tell(&self, notice: &Notice) -> Outcome {
        let outgoing = Outgoing {
            key: notice.routing_key.clone(),
            id: notice.id.clone(),
            kind: notice.kind.clone(),
            body: notice.body.clone(),
        };
        match self.line.publish(outgoing).await {
            Published::Stored => {
                counted("confirmed");
                Outcome::Done(format!("published as {}", notice.routing_key))
            }
            Published::Unroutable => {
                let unbound = format!("no queue is bound to {}", notice.routing_key);
                match self.unroutable {
                    Unroutable::Keep => {
                        counted("kept");
                        Outcome::Park(unbound)
                    }
                    Unroutable::Drop => {
                        counted("dropped");
                        Outcome::Done(format!("{unbound}: dropped"))
                    }
                }
            }
            other => not_stored(other, &notice.routing_key, &notice.id),
        }
    }
}
