//! Events on their way to those who want them.
//!
//! Events stand in an outbox, one row for each consumer, written in the transaction that moved the
//! cursor past their block. A bus takes rows to their consumers at least once, in order per source; a
//! row is done only when its consumer says so. A publisher to a broker is such a consumer too: it says
//! "done" on an acknowledgement without a return, and nothing else. What comes back from a broker goes
//! to an [`Inbox`], which trusts nothing of it.
//!
//! The server's own events go to [`Sink`]s: a broker, and callers' webhooks.

use crate::core::time::Timestamp;
use async_trait::async_trait;

/// The consumer that publishes to a broker.
pub const PUBLISHER: &str = "publisher";

/// What a consumer makes of a retraction whose event stands again: nobody was told.
pub const STANDS_AGAIN: &str = "it stands again";

/// What a message tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A log of a watched event.
    Log,
    /// That a log told before is no longer on the canonical chain.
    Retraction,
}

/// Until when deliveries of a source's logs are held. Retractions are never held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Delivered as soon as the block is seen; a reorg then gives a retraction.
    Head,
    /// Until the block is final by the source's rule and canonical; a reorg before that cancels it.
    Final,
}

/// A message for one consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Log or retraction.
    pub kind: Kind,
    /// Name of the source.
    pub source: String,
    /// `{chain}:{block hash}:{transaction hash}:{log index}`; a retraction has that of its log.
    pub event_id: String,
    /// The `CloudEvents` 1.0 document, JSON.
    pub body: String,
}

/// What a consumer made of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Taken for good; what it became, kept with the row.
    Done(String),
    /// Not taken, or not known to be: deliver again, not before this many milliseconds if given.
    Retry {
        /// Least delay, in milliseconds.
        after_ms: Option<i64>,
        /// Why.
        error: String,
    },
    /// Not taken yet, and may not be for a while: deliver again later, and let what comes after it go on
    /// meanwhile.
    Aside(String),
    /// Never to be taken as it is: shown to an operator, and the next message goes on.
    Park(String),
}

/// One who takes messages.
#[async_trait]
pub trait Consumer: Send + Sync {
    /// The name under which its rows stand in the outbox; stable across restarts.
    fn name(&self) -> &str;

    /// The sources whose events it takes, and until when their deliveries are held.
    fn subscriptions(&self) -> Vec<(String, Wait)>;

    /// Whether it could take anything now. While it cannot, nothing is claimed for it: nothing counts as
    /// tried, no delay grows, and a reorg can still cancel what waits.
    fn ready(&self) -> bool {
        true
    }

    /// Takes a message. Called again with the same one until it answers `Done` or `Park`, also after a
    /// crash; never called for two messages of one source at once by one process.
    async fn deliver(&self, message: &Message) -> Outcome;
}

/// Bytes that came over a broker.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    /// As they came.
    pub bytes: &'a [u8],
    /// Why the broker gave them up, if it did: they were handed out too often without an answer.
    pub given_up: Option<&'a str>,
}

/// What was made of an arrival.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// Its outcome is stored: the broker may forget it.
    Settled,
    /// It has none yet: hand it in again after so many milliseconds.
    Later(u64),
}

/// One who takes what arrives over a broker. The bytes may be late, repeated or invented.
#[async_trait]
pub trait Inbox: Send + Sync {
    /// The consumer that it takes messages for; also names its queue.
    fn name(&self) -> &str;

    /// The routing keys that it wants, and no others.
    fn routing_keys(&self) -> Vec<String>;

    /// Takes an arrival. `Settled` only once what became of it is durable; called again with the same
    /// bytes until then, also by another process after a crash.
    async fn take(&self, arrival: Arrival<'_>) -> Taken;
}

/// A queue of a broker, as it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueLook {
    /// Its name.
    pub name: String,
    /// Messages that wait; `None` if there is no such queue.
    pub messages: Option<u32>,
    /// How many read it, or would.
    pub consumers: Option<u32>,
}

/// One of the server's own events, as others are told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The event's id: whoever is told twice knows it by this.
    pub id: String,
    /// `CloudEvents` type.
    pub kind: String,
    /// What it is about. What is about one subject is told in order.
    pub subject: String,
    /// `{chain}.{what}.{event}`.
    pub routing_key: String,
    /// When it happened.
    pub at: Timestamp,
    /// The `CloudEvents` 1.0 document, JSON.
    pub body: String,
}

/// How long a [`Sink`] is tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Patience {
    /// For ever, with pauses up to this many milliseconds.
    Endless {
        /// The longest pause.
        longest_ms: i64,
    },
    /// After each failure this pause, in milliseconds; after the last one it is given up.
    Schedule(Vec<i64>),
}

/// One who is told the server's own events.
#[async_trait]
pub trait Sink: Send + Sync {
    /// The name under which what it is owed is kept; stable across restarts.
    fn name(&self) -> &str;

    /// Whether it could take anything now. While it cannot, nothing counts as tried.
    fn ready(&self) -> bool {
        true
    }

    /// How long it is tried.
    fn patience(&self) -> Patience;

    /// How many may be told at once, each of another subject.
    fn width(&self) -> usize {
        1
    }

    /// Tells it. `Done` only once the other side has taken it for good; called again with the same notice
    /// until then, also by another process after a crash. `Park` gives it up.
    async fn tell(&self, notice: &Notice) -> Outcome;
}
