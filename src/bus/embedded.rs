//! The embedded bus: rows of the watcher's outbox to consumers in the same process.
//!
//! At least once, in order per source: the next message of a source is taken only when the one before
//! it is done or parked. A row is done only when its consumer says so; a crash between the two delivers
//! it again.

use crate::core::time::Timestamp;
use crate::ports::bus::{Consumer, Kind, Outcome, Wait};
use crate::ports::clock::Clock;
use crate::ports::watch_store::{Claimed, Ended, WatchStore, WatchStoreError};
use std::sync::Arc;

/// How long a delivery may take before another process may try it, in milliseconds. Longer than any
/// consumer's own timeouts.
const LEASE_MS: i64 = 120_000;
/// Delay of the first retry, in milliseconds; it doubles with each attempt.
const RETRY_FIRST_MS: i64 = 500;
/// Longest delay, in milliseconds.
const RETRY_MOST_MS: i64 = 60_000;

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
        let (consumer, now) = (self.consumer.name(), self.clock.now());
        let claimed = self.store.claim(consumer, &self.source, now, LEASE_MS).await?;
        let Some(claimed) = claimed else { return Ok(Step::Idle) };
        let outcome = self.consumer.deliver(&claimed.message).await;
        crate::failpoint!("watch.after_deliver");
        let now = self.clock.now();
        let ended = ended(outcome, claimed.attempt, now);
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

fn ended(outcome: Outcome, attempt: i64, now: Timestamp) -> Ended {
    match outcome {
        Outcome::Done(result) => Ended::Done(result),
        Outcome::Park(reason) => Ended::Parked(reason),
        Outcome::Retry { after_ms, error } => {
            let delay = retry_delay_ms(attempt).max(after_ms.unwrap_or(0));
            Ended::Retry { due: now.plus_millis(delay), error }
        }
    }
}

/// Half a second, doubled with each attempt, up to a minute.
fn retry_delay_ms(attempt: i64) -> i64 {
    let doublings = u32::try_from(attempt.saturating_sub(1).clamp(0, 16)).unwrap_or(0);
    RETRY_FIRST_MS.saturating_mul(2_i64.saturating_pow(doublings)).min(RETRY_MOST_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_wait_longer_each_time_and_not_less_than_asked() {
        assert_eq!(retry_delay_ms(1), 500);
        assert_eq!(retry_delay_ms(2), 1000);
        assert_eq!(retry_delay_ms(100), 60_000);
        let now = Timestamp::from_millis(5);
        let asked = Outcome::Retry { after_ms: Some(7000), error: String::new() };
        let due = now.plus_millis(7000);
        assert_eq!(ended(asked, 1, now), Ended::Retry { due, error: String::new() });
    }
}
