//! The watcher's database, as operations. Each is one transaction: all of it is durable when the
//! method returns `Ok`, none of it otherwise. All may be called concurrently, also from other processes.

use super::bus::{Kind, Message};
use crate::core::chain_view::{Link, Place};
use crate::core::id::ChainId;
use crate::core::time::Timestamp;
use alloy::primitives::B256;
use async_trait::async_trait;

/// Why an operation did not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatchStoreError {
    /// The database did not answer, or failed.
    #[error("the watcher's database: {0}")]
    Unavailable(String),
    /// Other transactions were in the way too often. Nothing happened: do it again.
    #[error("the watcher's database is contended")]
    Contended,
    /// Somebody else moved the cursor: load again.
    #[error("the cursor was moved by another process")]
    CursorMoved,
    /// What is stored contradicts what was handed in; names both.
    #[error("{0}")]
    Contradiction(String),
}

/// A chain as it is pinned at first sight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainPin {
    /// The configured name.
    pub name: String,
    /// EIP-155 id.
    pub chain_id: ChainId,
    /// Hash of block 0.
    pub genesis: B256,
}

/// Where a source stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceState {
    /// Its name.
    pub name: String,
    /// What it watches, in canonical words. It may not change under one name.
    pub definition: String,
    /// The first block whose logs it has not taken.
    pub next_block: u64,
}

/// Everything that is stored of a chain but its events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainState {
    /// The pin.
    pub pin: ChainPin,
    /// The newest block that was followed.
    pub cursor: Place,
    /// The newest block that was seen to be final, by the chain's own rule.
    pub finalized: Option<Place>,
    /// Why the chain stands still, if it does.
    pub halted: Option<String>,
    /// The last blocks, oldest first, ending with the cursor.
    pub window: Vec<Link>,
    /// Its sources, by name.
    pub sources: Vec<SourceState>,
}

/// A delivery to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDelivery {
    /// To whom.
    pub consumer: String,
    /// Whether it waits for `settle`.
    pub held: bool,
}

/// What was found in a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// Name of the source.
    pub source: String,
    /// `{chain}:{block hash}:{transaction hash}:{log index}`.
    pub event_id: String,
    /// Its block.
    pub block: Place,
    /// The document; for an undecodable log, its raw bytes as JSON.
    pub body: String,
    /// Why it could not be decoded. Such an event has no deliveries.
    pub undecodable: Option<String>,
    /// One for each consumer of the source.
    pub deliveries: Vec<NewDelivery>,
}

/// A source that took the logs of blocks `from` to `to - 1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceMove {
    /// Its name.
    pub source: String,
    /// The next block before; must be what is stored.
    pub from: u64,
    /// The next block after.
    pub to: u64,
}

/// One step forward. With no blocks it is a backfill: sources move, the cursor stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advance {
    /// The chain's name.
    pub chain: String,
    /// The cursor before; must be what is stored.
    pub expected: Place,
    /// New blocks on top of it, oldest first.
    pub blocks: Vec<Link>,
    /// Sources that took them.
    pub moves: Vec<SourceMove>,
    /// What was found, in order.
    pub events: Vec<NewEvent>,
    /// How many blocks the window keeps.
    pub keep: u64,
    /// Now.
    pub now: Timestamp,
}

/// An event that stands above a common ancestor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandingEvent {
    /// Name of the source.
    pub source: String,
    /// Its id.
    pub event_id: String,
    /// The document it was told with.
    pub body: String,
}

/// A reorg: back to the common ancestor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RollBack {
    /// The chain's name.
    pub chain: String,
    /// The cursor before; must be what is stored.
    pub expected: Place,
    /// The cursor after.
    pub ancestor: Place,
    /// Every standing event above the ancestor, with the document of its retraction.
    pub retractions: Vec<StandingEvent>,
    /// Now.
    pub now: Timestamp,
}

/// What became final.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settle {
    /// The chain's name.
    pub chain: String,
    /// The cursor; must be what is stored.
    pub expected: Place,
    /// The newest final block by the chain's own rule, if any is.
    pub finalized: Option<Place>,
    /// For each source, up to which block its held deliveries may go.
    pub releases: Vec<(String, u64)>,
    /// Now.
    pub now: Timestamp,
}

/// A delivery in hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// Its row.
    pub id: i64,
    /// Which attempt this is, from 1; also the token that its end must show.
    pub attempt: i64,
    /// What to deliver.
    pub message: Message,
}

/// How a delivery ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Taken; what it became.
    Done(String),
    /// To be tried again at a time.
    Retry {
        /// Not before.
        due: Timestamp,
        /// Why.
        error: String,
    },
    /// Parked for an operator.
    Parked(String),
}

/// Deliveries of one consumer in one state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxCount {
    /// The consumer.
    pub consumer: String,
    /// `held`, `ready`, `done`, `parked` or `cancelled`.
    pub state: String,
    /// How many.
    pub count: u64,
}

/// Something that an operator should look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attention {
    /// The delivery's row, or 0 for an undecodable log.
    pub delivery: i64,
    /// The consumer, or empty.
    pub consumer: String,
    /// Which message.
    pub kind: Kind,
    /// Its event.
    pub event_id: String,
    /// What happened.
    pub reason: String,
}

/// What `status` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchStatus {
    /// Every chain.
    pub chains: Vec<ChainState>,
    /// Deliveries, counted.
    pub outbox: Vec<OutboxCount>,
    /// The newest that need attention: parked, failing, undecodable, or retracted after they were sent.
    pub attention: Vec<Attention>,
}

/// The watcher's database.
#[async_trait]
pub trait WatchStore: Send + Sync {
    /// Pins a chain and anchors its window at a block, if it is new; else compares the pin.
    async fn register(&self, pin: &ChainPin, anchor: Link) -> Result<(), WatchStoreError>;

    /// Adds a source, if it is new; else compares its definition.
    async fn add_source(&self, chain: &str, source: &SourceState) -> Result<(), WatchStoreError>;

    /// What is stored of a chain, at one moment.
    async fn load(&self, chain: &str) -> Result<Option<ChainState>, WatchStoreError>;

    /// Takes blocks and what was found in them. An event that stands already is not told twice; one
    /// that was retracted is told again.
    async fn advance(&self, advance: &Advance) -> Result<(), WatchStoreError>;

    /// The events above a block that were told and not retracted, in order.
    async fn standing_above(
        &self,
        chain: &str,
        number: u64,
    ) -> Result<Vec<StandingEvent>, WatchStoreError>;

    /// Takes blocks back. Deliveries that were never tried are cancelled; for the others a retraction
    /// is put in the outbox. Events that came in since `standing_above` make it `CursorMoved`.
    async fn roll_back(&self, roll_back: &RollBack) -> Result<(), WatchStoreError>;

    /// Records finality and lets held deliveries go.
    async fn settle(&self, settle: &Settle) -> Result<(), WatchStoreError>;

    /// Records why a chain stands still, or that it no longer does.
    async fn set_halted(&self, chain: &str, why: Option<&str>) -> Result<(), WatchStoreError>;

    /// Makes every waiting delivery due, at start: claims of a process that died hold nothing up. A
    /// claim only saves work; two deliveries of one message are harmless.
    async fn forget_claims(&self, now: Timestamp) -> Result<(), WatchStoreError>;

    /// Takes the oldest open delivery of a consumer and source in hand, until `lease_ms` later, if it is
    /// due and not held. So order is kept: nothing overtakes a held or failing delivery.
    async fn claim(
        &self,
        consumer: &str,
        source: &str,
        now: Timestamp,
        lease_ms: i64,
    ) -> Result<Option<Claimed>, WatchStoreError>;

    /// Ends a claim. `false` if the row was claimed again since, or cancelled: nothing changed then,
    /// but that what a cancelled delivery became (`Done`) is kept with it.
    async fn finish(
        &self,
        id: i64,
        attempt: i64,
        ended: &Ended,
        now: Timestamp,
    ) -> Result<bool, WatchStoreError>;

    /// Sends a source back to a block that it has taken already. What stands is not told twice. `false`
    /// if there is no such source, or it has not come so far.
    async fn rewind(&self, source: &str, from_block: u64) -> Result<bool, WatchStoreError>;

    /// Makes parked deliveries due again: one, or all. Answers how many.
    async fn unpark(&self, id: Option<i64>, now: Timestamp) -> Result<u64, WatchStoreError>;

    /// What an operator wants to know.
    async fn status(&self) -> Result<WatchStatus, WatchStoreError>;
}
