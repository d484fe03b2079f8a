//! The watcher's database, as operations. Each is one transaction: all of it is durable when the
//! method returns `Ok`, none of it otherwise. All may be called concurrently, also from other processes.

mod follow;
mod lead;
mod second_read;
mod triggers;
mod upkeep;

pub use follow::{Again, Backlog, FollowStore, Resume};
pub use lead::{Claims, Duty, Fence, Lanes, Lead, UPKEEP_DUTY, chain_duty, lane_duty};
pub use second_read::{Checked, ReadAgain, SecondReads};
pub use triggers::TriggerBook;
pub use upkeep::{
    OldestOpen, OpenLane, ParkedFrom, ParkedPage, Progress, PruneFrom, Pruned, Seen, Upkeep,
};

use crate::core::chain_view::{Link, Place};
use crate::core::id::ChainId;
use crate::core::time::Timestamp;
use crate::ports::bus::{Kind, Message, Outcome};
use alloy::primitives::{B256, Bytes};
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
    /// Another process has this duty now: nothing was changed.
    #[error("another process has the duty {0} now; nothing was changed")]
    NotLeading(String),
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
    /// The last block to read again, if it was sent back for some only; it goes on elsewhere then.
    pub to_block: Option<u64>,
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
    /// `{chain}:{block hash}:{transaction hash}:{log index}`, or `:tx` at the end.
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
    /// To be tried again at a time, and what comes after it does not wait for that.
    Aside {
        /// Not before.
        due: Timestamp,
        /// Why.
        error: String,
    },
    /// Parked for an operator.
    Parked(String),
}

/// Delay of the first retry, in milliseconds; it doubles with each attempt.
const RETRY_FIRST_MS: i64 = 500;
/// Longest delay, in milliseconds.
const RETRY_MOST_MS: i64 = 5_000;
/// The same of what nobody waits for: there may be many of them.
const ASIDE_MOST_MS: i64 = 60_000;

impl Ended {
    /// How a delivery ended by what its consumer said of it.
    #[must_use]
    pub fn of(outcome: Outcome, attempt: i64, now: Timestamp) -> Self {
        match outcome {
            Outcome::Done(result) => Self::Done(result),
            Outcome::Park(reason) => Self::Parked(reason),
            Outcome::Retry { after_ms, error } => {
                let delay = retry_delay_ms(attempt, RETRY_MOST_MS).max(after_ms.unwrap_or(0));
                Self::Retry { due: now.plus_millis(delay), error }
            }
            Outcome::Aside(error) => {
                let delay = retry_delay_ms(attempt, ASIDE_MOST_MS);
                Self::Aside { due: now.plus_millis(delay), error }
            }
        }
    }
}

/// Half a second, doubled with each attempt, up to five seconds where what comes after it on its lane
/// waits too: one question is nothing to a server that is back.
fn retry_delay_ms(attempt: i64, most: i64) -> i64 {
    let doublings = u32::try_from(attempt.saturating_sub(1).clamp(0, 16)).unwrap_or(0);
    RETRY_FIRST_MS.saturating_mul(2_i64.saturating_pow(doublings)).min(most)
}

/// A message that came over a bus and could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrived {
    /// For whom.
    pub consumer: String,
    /// The chain of its source.
    pub chain: String,
    /// The block that it names.
    pub block_number: u64,
    /// The message.
    pub message: Message,
}

/// What to do with a message that came over a bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// The consumer has not answered yet: ask it, and end this claim with `finish`.
    Ask(Claimed),
    /// The consumer has answered, or need not be asked: why.
    Settled(&'static str),
    /// The chain or the source has no row yet: the poller makes it at its start. Or the event is known
    /// here, and not final yet by its source's rule: it is handed in again until it is.
    TooEarly,
    /// The own poller has not come to its block, so nothing is known of it here.
    Unread,
    /// The own poller has read its block, and it is not in it.
    Absent,
}

/// A message that came over a bus and could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// On whose queue.
    pub consumer: String,
    /// SHA-256 of all its bytes.
    pub digest: B256,
    /// Its bytes, as they came; cut where they are absurdly many.
    pub bytes: Bytes,
    /// What is wrong with it.
    pub reason: String,
}

/// A delivery or message that waits for an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parked {
    /// A delivery; `unpark` makes it due again.
    Delivery {
        /// Its row.
        delivery: i64,
        /// The consumer.
        consumer: String,
        /// Its event.
        event_id: String,
        /// Why.
        reason: String,
        /// The document.
        body: String,
    },
    /// A log that its source's signature does not fit. It has no delivery.
    Undecodable {
        /// The source.
        source: String,
        /// The event.
        event_id: String,
        /// Its block.
        block_number: u64,
        /// Why.
        reason: String,
        /// Address, topics and data as they are on the chain: JSON.
        raw: String,
    },
    /// A message that could not be read. It cannot be tried again.
    Unreadable(Unreadable),
}

/// Deliveries of one consumer in one state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxCount {
    /// The consumer.
    pub consumer: String,
    /// `held`, `ready`, `taken` (from a broker, and not answered yet), `done`, `parked` or `cancelled`.
    pub state: String,
    /// How many; no more than were to be counted.
    pub count: u64,
    /// Whether there are more than were counted.
    pub more: bool,
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
    /// What the delivery of this event became before it was retracted: the server's request.
    pub became: Option<String>,
}

/// What `status` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchStatus {
    /// Every chain.
    pub chains: Vec<ChainState>,
    /// Deliveries, counted.
    pub outbox: Vec<OutboxCount>,
    /// The newest that need attention and were not acknowledged: parked, failing, undecodable, or
    /// retracted after they were sent. No more than fifty of each kind.
    pub attention: Vec<Attention>,
    /// How many more there are.
    pub attention_more: u64,
    /// Messages that could not be read, and were not kept, since too many were kept already.
    pub unreadable_refused: u64,
    /// How far each source is, by name.
    pub progress: Vec<Progress>,
    /// Who has each duty, by name.
    pub duties: Vec<Duty>,
}

/// The watcher's database.
#[async_trait]
pub trait WatchStore:
    FollowStore + SecondReads + Lead + Lanes + Upkeep + TriggerBook + Send + Sync
{
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
    /// is put in the outbox, unless they came over a bus, which brings that too. Events that came in since `standing_above` make it `CursorMoved`.
    async fn roll_back(&self, roll_back: &RollBack) -> Result<(), WatchStoreError>;

    /// Records finality and lets held deliveries go.
    async fn settle(&self, settle: &Settle) -> Result<(), WatchStoreError>;

    /// Records why a chain stands still, or that it no longer does. While it does, nothing moves it:
    /// `advance`, `roll_back` and `settle` are `CursorMoved`.
    async fn set_halted(&self, chain: &str, why: Option<&str>) -> Result<(), WatchStoreError>;

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

    /// Takes a message that came over a bus in hand. However often it comes, one that was answered is
    /// `Settled`; so is one whose event was retracted, which cancels a delivery that was not answered.
    /// Of an event that is known here, it is the own document that is handed out, once it is final, and
    /// a retraction counts only when the event was retracted here too. Nothing is asked for an event that is
    /// not known here.
    async fn receive(&self, arrived: &Arrived, now: Timestamp)
    -> Result<Received, WatchStoreError>;

    /// Keeps a message that cannot be read, or is of no event. The same bytes are kept once. `false` if it is
    /// not kept: when a thousand are, or 64 MiB, a new one is only counted, until some were acknowledged and
    /// pruned. Whoever may publish must not fill the disk.
    async fn keep_unreadable(
        &self,
        message: &Unreadable,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_wait_longer_each_time_and_not_less_than_asked() {
        assert_eq!(retry_delay_ms(1, RETRY_MOST_MS), 500);
        assert_eq!(retry_delay_ms(2, RETRY_MOST_MS), 1000);
        assert_eq!(retry_delay_ms(100, RETRY_MOST_MS), 5_000);
        assert_eq!(retry_delay_ms(100, ASIDE_MOST_MS), 60_000);
        let now = Timestamp::from_millis(5);
        let asked = Outcome::Retry { after_ms: Some(7000), error: String::new() };
        let due = now.plus_millis(7000);
        assert_eq!(Ended::of(asked, 1, now), Ended::Retry { due, error: String::new() });
    }
}
