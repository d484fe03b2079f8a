//! Final blocks are read a second time, on another node where there is one: how far, and what was found.

use super::{NewEvent, SourceMove, WatchStoreError};
use crate::core::time::Timestamp;
use async_trait::async_trait;

/// How far a source was read a second time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The source.
    pub source: String,
    /// The first block that was not read again.
    pub next_block: u64,
    /// The last block to read again, if it goes on elsewhere after that.
    pub to_block: Option<u64>,
    /// How many events only the second reading found.
    pub late: u64,
    /// How many nodes the chain had then.
    pub nodes: u64,
}

/// Blocks that were read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadAgain {
    /// The chain's name.
    pub chain: String,
    /// The sources that they were read for, and which blocks.
    pub moves: Vec<SourceMove>,
    /// What was found and is not known, in order.
    pub events: Vec<NewEvent>,
    /// How many nodes the chain has.
    pub nodes: u64,
    /// Now.
    pub now: Timestamp,
}

/// The second reading.
#[async_trait]
pub trait SecondReads: Send + Sync {
    /// How far these sources were read again, by name. One that never was begins at its block here.
    async fn checked(&self, begin: &[(String, u64)]) -> Result<Vec<Checked>, WatchStoreError>;

    /// How far every source was read again, by name.
    async fn all_checked(&self) -> Result<Vec<Checked>, WatchStoreError>;

    /// The sources and ids of the events of a chain's blocks `from` to `to` that are known and were not
    /// retracted.
    async fn known_between(
        &self,
        chain: &str,
        from: u64,
        to: u64,
    ) -> Result<Vec<(String, String)>, WatchStoreError>;

    /// Takes what the first reading left out, tells it, and moves on. Answers the ids that were told now;
    /// one that stands already is not. `CursorMoved` if another process has read these blocks again.
    async fn read_again(&self, again: &ReadAgain) -> Result<Vec<String>, WatchStoreError>;
}
