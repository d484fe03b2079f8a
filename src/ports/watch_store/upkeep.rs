//! What keeps the database small and an operator informed. Nothing here reads a whole table.

use super::{OutboxCount, Parked, WatchStoreError};
use crate::core::time::Timestamp;
use async_trait::async_trait;

/// How far a source is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Its name.
    pub source: String,
    /// The block that it began with.
    pub first_block: u64,
    /// The block that it was last sent back to, or began with.
    pub from_block: u64,
    /// The last block to read again, if it was sent back for some blocks only.
    pub to_block: Option<u64>,
    /// Events that were told since it began; one that came back after a reorg counts again.
    pub told: u64,
    /// Blocks in a thousand seconds, as the process that reads it has measured last; 0 if it is not
    /// behind, or nobody has measured yet.
    pub rate: u64,
    /// When that was.
    pub sampled_at: Timestamp,
}

/// What an operator has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// A delivery, by its row.
    Delivery(i64),
    /// A log that does not decode, by its event's id, or a message that could not be read, by
    /// `sha256:` and its digest.
    Event(String),
    /// All of it.
    All,
}

/// Where a page of what is parked begins: behind these rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ParkedFrom {
    /// Of deliveries.
    pub delivery: i64,
    /// Of logs that do not decode.
    pub event: i64,
    /// Of messages that could not be read.
    pub unreadable: i64,
}

/// A page of what is parked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ParkedPage {
    /// Deliveries first, then logs that do not decode, then messages; each oldest first.
    pub items: Vec<Parked>,
    /// Where the next page begins; `None` after the last one.
    pub next: Option<ParkedFrom>,
}

/// The oldest delivery of a consumer that is ready, or was taken from a broker and has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldestOpen {
    /// The consumer.
    pub consumer: String,
    /// When its row was made.
    pub since: Timestamp,
}

/// The open deliveries of a consumer and source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenLane {
    /// The consumer.
    pub consumer: String,
    /// The source.
    pub source: String,
    /// How many are held or ready: the outbox delivers them. No more than were to be counted.
    pub waiting: u64,
    /// How many were taken from a broker and have no answer: it hands them out again.
    pub taken: u64,
}

/// Where a round of pruning has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PruneFrom {
    /// The last event that was looked at.
    pub event: i64,
    /// The last delivery that was looked at.
    pub delivery: i64,
}

/// What a batch of pruning did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    /// Rows that are gone.
    pub rows: u64,
    /// Where the next batch begins; `None` when there is nothing older than asked for behind it.
    pub next: Option<PruneFrom>,
}

/// Upkeep.
#[async_trait]
pub trait Upkeep: Send + Sync {
    /// Deletes, of some hundred rows behind `from`, those that nobody needs: events below finality with
    /// all their deliveries, once each of these was done or cancelled before `before`; and such
    /// deliveries of events that are not known here. Never what is open, parked, not decoded or not read
    /// yet, waits for an operator's look, or is of a block that its source is still to read; never what
    /// stands and was told to nobody, or was not answered by one of its takers.
    async fn prune(&self, from: PruneFrom, before: Timestamp) -> Result<Pruned, WatchStoreError>;

    /// The consumers that take events over a broker, each with its source; whoever is not among them takes
    /// no more. A new one is not waited for with what is known already.
    async fn set_takers(&self, takers: &[(String, String)]) -> Result<(), WatchStoreError>;

    /// Deliveries by consumer and state, each counted up to `most`; with `all`, also those that are done
    /// or cancelled.
    async fn counts(&self, most: u64, all: bool) -> Result<Vec<OutboxCount>, WatchStoreError>;

    /// Who has open deliveries, and of which source, each counted up to `most`.
    async fn open_lanes(&self, most: u64) -> Result<Vec<OpenLane>, WatchStoreError>;

    /// The oldest open delivery of each consumer that has one.
    async fn oldest_open(&self) -> Result<Vec<OldestOpen>, WatchStoreError>;

    /// Takes things off the list of what needs attention. Answers how many.
    async fn acknowledge(&self, seen: &Seen, now: Timestamp) -> Result<u64, WatchStoreError>;

    /// Makes the publisher's rows due again of what stands from this block on, was published and was taken by no
    /// trigger of this watcher: a broker may have lost it. Answers how many.
    async fn publish_again(
        &self,
        source: &str,
        from_block: u64,
        now: Timestamp,
    ) -> Result<u64, WatchStoreError>;

    /// A page of all that is parked, at most `limit` of each kind, with the bytes.
    async fn parked_page(
        &self,
        from: ParkedFrom,
        limit: u32,
    ) -> Result<ParkedPage, WatchStoreError>;

    /// How far the sources are, by name.
    async fn progress(&self) -> Result<Vec<Progress>, WatchStoreError>;

    /// Notes how fast a source is read.
    async fn note_rate(
        &self,
        source: &str,
        rate: u64,
        now: Timestamp,
    ) -> Result<(), WatchStoreError>;

    /// Sends a source back, as `rewind` does, but only to read the blocks up to `to_block` again; it then
    /// goes on where it was. `false` if there is no such source, or it has not come so far.
    async fn reread(
        &self,
        source: &str,
        from_block: u64,
        to_block: u64,
    ) -> Result<bool, WatchStoreError>;
}
