//! Events on their way to those who want them.
//!
//! Events stand in an outbox, one row for each consumer, written in the transaction that moved the
//! cursor past their block. A bus takes rows to their consumers at least once, in order per source; a
//! row is done only when its consumer says so. A publisher to a broker is such a consumer too: it says
//! "done" on an acknowledgement without a return, and nothing else.

use async_trait::async_trait;

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

    /// Takes a message. Called again with the same one until it answers `Done` or `Park`, also after a
    /// crash; never called for two messages of one source at once by one process.
    async fn deliver(&self, message: &Message) -> Outcome;
}
