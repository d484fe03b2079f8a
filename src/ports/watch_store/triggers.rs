//! What triggers keep: their turns, and how long they have been patient.

use super::WatchStoreError;
use crate::core::time::Timestamp;
use crate::core::trigger::Rate;
use async_trait::async_trait;

/// The part of the watcher's database that is the triggers'. It outlives a restart, and another process that
/// takes over goes on from it.
#[async_trait]
pub trait TriggerBook: Send + Sync {
    /// Takes a token of the consumer's bucket for an event: `None` if it may go on, else the milliseconds until
    /// it may be asked for again. An event that has its token takes no second one.
    async fn admit(
        &self,
        consumer: &str,
        event_id: &str,
        rate: Rate,
        now: Timestamp,
    ) -> Result<Option<i64>, WatchStoreError>;

    /// Since when an event has been refused for what time may heal: since now, the first time.
    async fn refused_since(
        &self,
        consumer: &str,
        event_id: &str,
        now: Timestamp,
    ) -> Result<Timestamp, WatchStoreError>;

    /// Forgets what is kept of an event: it is answered.
    async fn forget_turn(&self, consumer: &str, event_id: &str) -> Result<(), WatchStoreError>;

    /// Whether this event stands on the chain, as far as is known here.
    async fn stands(&self, source: &str, event_id: &str) -> Result<bool, WatchStoreError>;
}
