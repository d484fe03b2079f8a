//! What a trigger makes of bytes that came over a broker.
//!
//! The bytes are read strictly, taken in hand in the watcher's own database, and given to the trigger;
//! only its answer, stored, settles them. So a message that comes twice makes one request, one whose
//! event was retracted meanwhile makes none, and one that cannot be read is kept as it came. One of an
//! event that the own poller does not know makes none either: it waits for the poller to come to its block,
//! and is kept when it is not there, or when that takes too long.

use super::cloudevent::{self, Read};
use super::plan::{ChainPlan, TriggerPlan};
use crate::core::time::Timestamp;
use crate::ports::bus::{Arrival, Consumer, Inbox, Outcome, Taken};
use crate::ports::clock::Clock;
use crate::ports::watch_store::{
    Arrived, Claimed, Ended, Received, Unreadable, WatchStore, WatchStoreError,
};
use alloy::primitives::{B256, Bytes};
use async_trait::async_trait;
use sha2::{Digest as _, Sha256};
use std::sync::{Arc, Mutex, PoisonError};

/// When to try again if the database did not answer, or the chain is not there yet, in milliseconds.
const AGAIN_MS: u64 = 1000;
/// What is kept of a message that cannot be read, in bytes.
const KEPT_BYTES_MAX: usize = 1 << 16;
/// How long a message is held whose block the own poller has not read yet, in milliseconds. Nothing passes it
/// meanwhile, so a block that is invented must not hold for ever. An event that is kept after that, and is true,
/// comes again: the own poller publishes what it finds.
const UNREAD_PATIENCE_MS: i64 = 5 * 60 * 1000;

/// The inbox of one trigger.
pub struct TriggerInbox {
    consumer: Arc<dyn Consumer>,
    /// The trigger's source: other messages may have its routing key.
    source: String,
    routing_keys: Vec<String>,
    chains: Vec<ChainPlan>,
    store: Arc<dyn WatchStore>,
    clock: Arc<dyn Clock>,
    /// The event that waits for the own poller, and since when.
    unread: Mutex<Option<(String, Timestamp)>>,
}

impl TriggerInbox {
    /// The inbox of the consumer that runs this trigger.
    #[must_use]
    pub fn new(
        consumer: Arc<dyn Consumer>,
        trigger: &TriggerPlan,
        chains: &[ChainPlan],
        store: Arc<dyn WatchStore>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let (chain, source) = (trigger.source_chain.as_str(), &trigger.source);
        let keys =
            [cloudevent::routing_key(chain, source), cloudevent::retraction_key(chain, source)];
        Self {
            consumer,
            source: source.name.clone(),
            routing_keys: keys.to_vec(),
            chains: chains.to_vec(),
            store,
            clock,
            unread: Mutex::new(None),
        }
    }

    /// Whether this event has waited too long for the own poller.
    fn waited_too_long(&self, event_id: &str) -> bool {
        let now = self.clock.now();
        let mut unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        match &*unread {
            // One that is still to come was told by a clock that was ahead.
            Some((waits, since)) if waits == event_id && *since <= now => {
                now.millis().saturating_sub(since.millis()) > UNREAD_PATIENCE_MS
            }
            _ => {
                tracing::warn!(
                    consumer = self.consumer.name(),
                    event_id,
                    "waits: this watcher has not read its block yet"
                );
                *unread = Some((event_id.to_owned(), now));
                false
            }
        }
    }

    async fn keep(&self, bytes: &[u8], reason: &str) -> Result<Taken, WatchStoreError> {
        let reason = cloudevent::clean(reason);
        let (consumer, cut) = (self.consumer.name(), bytes.len().min(KEPT_BYTES_MAX));
        let kept = bytes.get(..cut).unwrap_or_default();
        let digest = B256::new(Sha256::digest(bytes).into());
        let length = bytes.len();
        let message = Unreadable {
            consumer: consumer.to_owned(),
            digest,
            bytes: Bytes::copy_from_slice(kept),
            reason,
        };
        let parked = self.store.keep_unreadable(&message, self.clock.now()).await?;
        let reason = message.reason;
        let outcome = if parked { "parked" } else { "dropped" };
        metrics::counter!("claviger_bus_unreadable_total", "outcome" => outcome).increment(1);
        if parked {
            tracing::error!(consumer, %digest, length, reason, "unreadable; parked");
        } else {
            tracing::error!(consumer, %digest, length, reason, "unreadable; dropped: too many are parked");
        }
        Ok(Taken::Settled)
    }

    async fn receive(
        &self,
        read: Read<'_>,
        arrival: Arrival<'_>,
    ) -> Result<Taken, WatchStoreError> {
        let event_id = read.message.event_id.clone();
        let (consumer, event_id) = (self.consumer.name(), event_id.as_str());
        if read.source.name != self.source {
            let subject = format!("{:#x}", read.fact.subject);
            let key = cloudevent::routing_key(read.chain, read.source).replace('*', &subject);
            if self.routing_keys.iter().any(|own| own.replace('*', &subject) == key) {
                tracing::debug!(consumer, event_id, "of another source with the same routing key");
                return Ok(Taken::Settled);
            }
            // Its queue was bound to that source before.
            let source = &read.source.name;
            let reason =
                format!("event {event_id}: of source {source}, which is not the trigger's");
            return self.keep(arrival.bytes, &reason).await;
        }
        let arrived = Arrived {
            consumer: consumer.to_owned(),
            chain: read.chain.to_owned(),
            block_number: read.block_number,
            message: read.message,
        };
        match self.store.receive(&arrived, self.clock.now()).await? {
            Received::TooEarly => Ok(Taken::Later(AGAIN_MS)),
            Received::Settled(why) => {
                tracing::info!(consumer, event_id, why, "nothing to ask for");
                Ok(Taken::Settled)
            }
            Received::Absent => {
                let reason = "this watcher has read its block, and it is not in it";
                self.keep(arrival.bytes, &format!("event {event_id}: {reason}")).await
            }
            Received::Unread if self.waited_too_long(event_id) => {
                let reason = "this watcher has not come to its block for too long";
                self.keep(arrival.bytes, &format!("event {event_id}: {reason}")).await
            }
            Received::Unread => Ok(Taken::Later(AGAIN_MS)),
            Received::Ask(claimed) => self.ask(claimed, arrival.given_up).await,
        }
    }

    async fn ask(
        &self,
        claimed: Claimed,
        given_up: Option<&str>,
    ) -> Result<Taken, WatchStoreError> {
        let outcome = match given_up {
            Some(reason) => Outcome::Park(reason.to_owned()),
            None => self.consumer.deliver(&claimed.message).await,
        };
        crate::failpoint!("bus.after_answer");
        let now = self.clock.now();
        let ended = Ended::of(outcome, claimed.attempt, now);
        tell(self.consumer.name(), &claimed, &ended);
        if !self.store.finish(claimed.id, claimed.attempt, &ended, now).await? {
            // Retracted, or taken by another process, while it was under way: the row says what now.
            return Ok(Taken::Later(0));
        }
        Ok(match ended {
            // What stepped aside is the outbox's now: the queue goes on.
            Ended::Done(_) | Ended::Parked(_) | Ended::Aside { .. } => Taken::Settled,
            Ended::Retry { due, .. } => Taken::Later(wait_ms(due, now)),
        })
    }
}

fn wait_ms(due: Timestamp, now: Timestamp) -> u64 {
    u64::try_from(due.millis().saturating_sub(now.millis())).unwrap_or(0)
}

fn tell(consumer: &str, claimed: &Claimed, ended: &Ended) {
    let (event_id, attempt) = (claimed.message.event_id.as_str(), claimed.attempt);
    match ended {
        Ended::Done(result) => tracing::info!(consumer, event_id, result, "delivered"),
        Ended::Retry { error, .. } => {
            tracing::warn!(consumer, event_id, attempt, error, "not delivered; will retry");
        }
        Ended::Aside { error, .. } => {
            tracing::warn!(consumer, event_id, attempt, error, "stepped aside; will retry");
        }
        Ended::Parked(reason) => {
            tracing::error!(consumer, event_id, reason, "parked: an operator must look");
        }
    }
}

#[async_trait]
impl Inbox for TriggerInbox {
    fn name(&self) -> &str {
        self.consumer.name()
    }

    fn routing_keys(&self) -> Vec<String> {
        self.routing_keys.clone()
    }

    async fn take(&self, arrival: Arrival<'_>) -> Taken {
        let taken = match cloudevent::read(arrival.bytes, &self.chains) {
            Ok(read) => self.receive(read, arrival).await,
            Err(reason) => self.keep(arrival.bytes, &reason).await,
        };
        taken.unwrap_or_else(|error| {
            let consumer = self.consumer.name();
            tracing::warn!(consumer, %error, "an arrival could not be stored; it stays in hand");
            Taken::Later(AGAIN_MS)
        })
    }
}
