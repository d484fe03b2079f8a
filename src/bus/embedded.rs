//! The embedded bus: rows of the watcher's outbox to consumers in the same process.
//!
//! At least once, in order per source: the next message of a source is taken only when the one before
//! it is done or parked. A row is done only when its consumer says so; a crash between the two delivers
//! it again.

use crate::ports::bus::{Consumer, Kind, Wait};
use crate::ports::clock::Clock;
use crate::ports::watch_store::{Claimed, Ended, WatchStore, WatchStoreError};
use std::sync::Arc;

/// How long a delivery may take before another process may try it, in milliseconds. Longer than any
/// consumer's own timeouts.
const LEASE_MS: i64 = 120_000;

/// One source's messages on their way to one consumer.
pub struct Lane {
    store: Arc<dyn WatchStore>,
    clock: Arc<dyn Clock>,
    consumer: Arc<dyn Consumer>,
    source: String,
}

/// What a step of a lane did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing was due.
    Idle,
    /// One message was delivered, or tried.
    Moved,
}

/// The lanes of all consumers: they are independent of each other.
#[must_use]
pub fn lanes(
    store: &Arc<dyn WatchStore>,
    clock: &Arc<dyn Clock>,
    consumers: &[Arc<dyn Consumer>],
) -> Vec<Lane> {
    let lane = |consumer: &Arc<dyn Consumer>, source: String| Lane {
        store: Arc::clone(store),
        clock: Arc::clone(clock),
        consumer: Arc::clone(consumer),
        source,
    };
    let of = |consumer: &Arc<dyn Consumer>| -> Vec<Lane> {
        consumer.subscriptions().into_iter().map(|(source, _)| lane(consumer, source)).collect()
    };
    consumers.iter().flat_map(of).collect()
}

/// Who takes the events of a source, and whether their deliveries are held.
#[must_use]
pub fn subscribers(consumers: &[Arc<dyn Consumer>], source: &str) -> Vec<(String, Wait)> {
    let of = |consumer: &Arc<dyn Consumer>| -> Vec<(String, Wait)> {
        let wanted = consumer.subscriptions().into_iter().filter(|(name, _)| name == source);
        wanted.map(|(_, wait)| (consumer.name().to_owned(), wait)).collect()
    };
    consumers.iter().flat_map(of).collect()
}

impl Lane {
    /// A name for logs.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{} <- {}", self.consumer.name(), self.source)
    }

    /// Delivers the oldest open message, if it is due.
    ///
    /// # Errors
    /// When the database fails; the message is then delivered again later.
    pub async fn step(&self) -> Result<Step, WatchStoreError> {
        if !self.consumer.ready() {
            return Ok(Step::Idle);
        }
        let (consumer, now) = (self.consumer.name(), self.clock.now());
        let claimed = self.store.claim(consumer, &self.source, now, LEASE_MS).await?;
        let Some(claimed) = claimed else { return Ok(Step::Idle) };
        let outcome = self.consumer.deliver(&claimed.message).await;
        crate::failpoint!("watch.after_deliver");
        let now = self.clock.now();
        let ended = Ended::of(outcome, claimed.attempt, now);
        self.tell(&claimed, &ended);
        let kept = self.store.finish(claimed.id, claimed.attempt, &ended, now).await?;
        if !kept {
            tracing::warn!(
                consumer,
                event_id = claimed.message.event_id,
                "the delivery was cancelled, or taken by another process, while it was under way"
            );
        }
        Ok(Step::Moved)
    }

    fn tell(&self, claimed: &Claimed, ended: &Ended) {
        let consumer = self.consumer.name();
        let event_id = claimed.message.event_id.as_str();
        let retraction = claimed.message.kind == Kind::Retraction;
        match ended {
            Ended::Done(result) => {
                tracing::info!(consumer, event_id, retraction, result, "delivered");
            }
            Ended::Retry { error, .. } => {
                let attempt = claimed.attempt;
                tracing::warn!(consumer, event_id, attempt, error, "not delivered; will retry");
            }
            Ended::Parked(reason) => {
                tracing::error!(consumer, event_id, reason, "parked: an operator must look");
            }
        }
    }
}
