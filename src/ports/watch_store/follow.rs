//! What following a chain needs besides stepping: to begin again after a halt, to tell a new consumer
//! what is known, to decode again.

use super::{StandingEvent, WatchStoreError};
use crate::core::chain_view::{Link, Place};
use crate::core::time::Timestamp;
use async_trait::async_trait;

/// A halted chain that is followed again, by an operator's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resume {
    /// The chain's name.
    pub chain: String,
    /// The cursor before; must be what is stored.
    pub expected: Place,
    /// Up to which block what was found stands. What sources took above it is read again.
    pub ancestor: u64,
    /// Every standing event above the ancestor, with the document of its retraction.
    pub retractions: Vec<StandingEvent>,
    /// The cursor after. If it is in the window, the window is kept up to it; else it is the new window.
    pub tip: Link,
    /// What is final by the nodes' word.
    pub finalized: Place,
    /// Why the operator lets it go on; kept.
    pub reason: String,
    /// Now.
    pub now: Timestamp,
}

/// A log or call that did not decode, and is to be decoded again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Again {
    /// Name of the source.
    pub source: String,
    /// Its id.
    pub event_id: String,
    /// Its block.
    pub block: Place,
    /// Its raw members as JSON.
    pub body: String,
}

/// Whose deliveries of what stands are to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backlog {
    /// The consumer.
    pub consumer: String,
    /// The source.
    pub source: String,
    /// Whether they wait for `settle`.
    pub held: bool,
    /// How many events are looked at at most.
    pub most: u32,
    /// Now.
    pub now: Timestamp,
}

/// What following needs. Each is one transaction, as all of the watcher's database.
#[async_trait]
pub trait FollowStore: Send + Sync {
    /// Lets a halted chain go on from its new tip: what stood above the ancestor is retracted as in a
    /// reorg, and the sources that were beyond it are sent back.
    /// `CursorMoved` if the chain is not halted, or events came in since `standing_above`.
    async fn resume(&self, resume: &Resume) -> Result<(), WatchStoreError>;

    /// The blocks below this height in which events were found that stand, newest first, so many at most.
    async fn event_blocks_below(
        &self,
        chain: &str,
        number: u64,
        most: u32,
    ) -> Result<Vec<Place>, WatchStoreError>;

    /// The highest block of which an event was pruned; 0 if none was.
    async fn newest_pruned(&self, chain: &str) -> Result<u64, WatchStoreError>;

    /// Notes with which block a source began, where that is not known.
    async fn note_first_block(&self, source: &str, first: u64) -> Result<(), WatchStoreError>;

    /// Makes deliveries of what stands for a consumer that came later, in the order in which it was found
    /// and once for each event. `true` if there is more; once there is not, it does nothing any more.
    async fn tell_backlog(&self, backlog: &Backlog) -> Result<bool, WatchStoreError>;

    /// Marks what these sources found and could not decode, to be decoded again. Answers how many.
    async fn mark_undecodable(&self, sources: &[String]) -> Result<u64, WatchStoreError>;

    /// What is marked, oldest first, so many at most. `advance` with the same event takes the mark away.
    async fn to_decode_again(&self, chain: &str, most: u32) -> Result<Vec<Again>, WatchStoreError>;
}
