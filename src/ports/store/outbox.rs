//! What telling others of events reads and writes.

use super::{NewEvent, StoreError};
pub use crate::core::kinds::KindFilter;
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use async_trait::async_trait;

/// Who is told which events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// The name under which what it is owed is kept; stable across restarts.
    pub consumer: String,
    /// What it wants; one of these is enough.
    pub kinds: Vec<KindFilter>,
}

/// An event with its place in the order that everybody is told in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedEvent {
    /// Grows from event to event, with gaps.
    pub place: i64,
    /// The event.
    pub event: NewEvent,
    /// Whose transaction it is about, if it is about one.
    pub owner: Option<Principal>,
    /// The idempotency key that the owner asked with.
    pub idempotency_key: Option<String>,
}

/// An event that somebody is to be told now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Its number.
    pub id: i64,
    /// How often it was tried, this one included.
    pub attempt: i64,
    /// The event.
    pub placed: PlacedEvent,
    /// When it was first owed.
    pub since: Timestamp,
}

/// What became of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// It is told.
    Done,
    /// Not told, or not known to be: again at this time; and nothing of the same subject before.
    Retry {
        /// When.
        due: Timestamp,
        /// Why.
        reason: String,
    },
    /// It is tried no more until somebody says so. What comes after it of the same subject goes on.
    Dead {
        /// Why.
        reason: String,
    },
}

/// A delivery, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryRow {
    /// Its number.
    pub id: i64,
    /// To whom.
    pub consumer: String,
    /// The event's place.
    pub place: i64,
    /// The event's id.
    pub event_id: String,
    /// Its kind.
    pub kind: String,
    /// What it is about.
    pub subject: String,
    /// Whether it is given up.
    pub is_dead: bool,
    /// How often it was tried.
    pub attempts: i64,
    /// When it is tried next.
    pub due_at: Timestamp,
    /// Why it was not told the last time; empty before the first, and while it is being told.
    pub reason: String,
    /// Since when it is owed.
    pub since: Timestamp,
}

/// What one consumer is owed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backlog {
    /// Who.
    pub consumer: String,
    /// Given up or not.
    pub is_dead: bool,
    /// How many; counted up to 100,000.
    pub count: i64,
    /// Since when the oldest of them.
    pub since: Timestamp,
}

/// The part of a unit that knows who is told of events: by all servers over the database together.
#[async_trait]
pub trait EventConsumers: Send {
    /// Writes down who is told what, instead of what it was told before. What gets its place from now on is owed
    /// so.
    async fn set_consumer(&mut self, subscription: &Subscription) -> Result<(), StoreError>;

    /// Who is told what, by name.
    async fn consumers(&mut self) -> Result<Vec<Subscription>, StoreError>;

    /// Owes it nothing new. `false` if it was not known.
    async fn forget_consumer(&mut self, consumer: &str) -> Result<bool, StoreError>;

    /// Forgets what it is owed, `most` of it; how many that were.
    async fn forget_deliveries(&mut self, consumer: &str, most: i64) -> Result<u64, StoreError>;

    /// Has its dead deliveries above this number tried again now, from the first attempt, `most` of them: the
    /// number of the last of them, and how many. `None` if there are none.
    async fn replay_dead(
        &mut self,
        consumer: &str,
        after: i64,
        most: i64,
        now: Timestamp,
    ) -> Result<Option<(i64, u64)>, StoreError>;
}

/// The part of a unit that tells others of events.
#[async_trait]
pub trait Outbox: Send {
    /// Gives places to the oldest events that have none, `most` of them or a few more, and writes down which of
    /// the [consumers](EventConsumers::consumers) is to be told each. Of several units that do this at once, one
    /// goes on and the others wait for it. Events of one subject keep their order. The number of events that
    /// were placed.
    async fn place_events(&mut self, most: i64, now: Timestamp) -> Result<u64, StoreError>;

    /// Whether an event has no place yet.
    async fn has_unplaced(&mut self) -> Result<bool, StoreError>;

    /// The lowest place of an event that is kept; `None` if there is none.
    async fn oldest_place(&mut self) -> Result<Option<i64>, StoreError>;

    /// The highest place that was given; 0 before the first.
    async fn newest_place(&mut self) -> Result<i64, StoreError>;

    /// Events above this place, in order.
    async fn events_after(&mut self, place: i64, most: i64)
    -> Result<Vec<PlacedEvent>, StoreError>;

    /// Takes a delivery that is due: of each subject only the oldest, and of those by turns one that is due for a
    /// minute and one that was not tried yet. What that costs does not grow with what waits behind others. It is
    /// the caller's until `until`, and then due again. `None` if nothing is due, or another took it meanwhile.
    async fn claim_delivery(
        &mut self,
        consumer: &str,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Option<Delivery>, StoreError>;

    /// Writes what became of this attempt. `false` if another has taken the delivery meanwhile; then nothing
    /// was changed.
    async fn finish_delivery(
        &mut self,
        consumer: &str,
        delivery: &Delivery,
        told: &Told,
        now: Timestamp,
    ) -> Result<bool, StoreError>;

    /// When the next open delivery of this consumer is due, of each subject the oldest; of one that somebody has,
    /// until when it is theirs. The beginning of time for one that was not tried yet.
    async fn next_due(&mut self, consumer: &str) -> Result<Option<Timestamp>, StoreError>;

    /// Takes back every claim: what was being told is due now, and was not tried. Only for who has the database
    /// to itself, before it claims any.
    async fn forget_delivery_claims(&mut self, now: Timestamp) -> Result<u64, StoreError>;

    /// Deliveries above this number, in order; of one consumer and in one state where that is given.
    async fn deliveries(
        &mut self,
        consumer: Option<&str>,
        is_dead: Option<bool>,
        after: i64,
        most: i64,
    ) -> Result<Vec<DeliveryRow>, StoreError>;

    /// One delivery.
    async fn delivery(&mut self, id: i64) -> Result<Option<DeliveryRow>, StoreError>;

    /// Has a delivery tried again now, from the first attempt: a dead one, or one that waits for its next
    /// attempt, or was put off by a clock that was ahead; and what waits behind that. `false` if there is no such
    /// one.
    async fn replay_delivery(&mut self, id: i64, now: Timestamp) -> Result<bool, StoreError>;

    /// What everybody is owed.
    async fn backlogs(&mut self) -> Result<Vec<Backlog>, StoreError>;
}
