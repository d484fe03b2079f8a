//! Several processes over one database: who does what, and the lanes of the outbox.

use super::{Claimed, Ended, WatchStore, WatchStoreError};
use crate::core::time::Timestamp;
use async_trait::async_trait;
use std::sync::Arc;
use tokio::sync::watch;

/// The name of the duty to follow a chain.
#[must_use]
pub fn chain_duty(chain: &str) -> String {
    format!("chain:{chain}")
}

/// The name of the duty to deliver a source's messages to a consumer.
#[must_use]
pub fn lane_duty(consumer: &str, source: &str) -> String {
    format!("outbox:{consumer}:{source}")
}

/// The duty to prune and to note how far sources are.
pub const UPKEEP_DUTY: &str = "upkeep";

/// A duty, and the term of it in which a process acts. Every write is compared with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// The duty's name.
    pub duty: String,
    /// Grows by one with each holder.
    pub token: i64,
}

/// Who has a duty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Duty {
    /// Its name.
    pub name: String,
    /// The process: host, process id and a random word.
    pub holder: String,
    /// The term.
    pub token: i64,
    /// Since when.
    pub since: Timestamp,
    /// Until when, unless it is renewed; the start of time if it was given back.
    pub until: Timestamp,
}

/// Duties, with leases that end by themselves.
#[async_trait]
pub trait Lead: Send + Sync {
    /// Every duty there is, by name.
    async fn duties(&self) -> Result<Vec<Duty>, WatchStoreError>;

    /// Prolongs all duties that are still this holder's and were not given back, and answers as
    /// [`duties`](Self::duties) does after it.
    async fn renew(&self, holder: &str, until: Timestamp) -> Result<Vec<Duty>, WatchStoreError>;

    /// Takes a duty that nobody has, or whose lease is over. Answers the new token; of several processes
    /// at once one gets it.
    async fn take(
        &self,
        duty: &str,
        holder: &str,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Option<i64>, WatchStoreError>;

    /// Gives back all that a holder has: others need not wait for the end of its lease.
    async fn give_back(&self, holder: &str) -> Result<(), WatchStoreError>;

    /// The same database for one term of a duty. Each of its units compares the token, in the transaction
    /// and with a lock on it: it either commits before another process has the duty, or is
    /// [`NotLeading`](WatchStoreError::NotLeading) and changes nothing.
    fn under(&self, fence: Fence) -> Arc<dyn WatchStore>;
}

/// What a lane may take in hand, of what keeps its order or of what stepped aside.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Claims {
    /// Deliveries, in the order in which they are to be made.
    pub claimed: Vec<Claimed>,
    /// If there are none: when the first one is due, if it waits for a time.
    pub due: Option<Timestamp>,
}

/// Lanes of the outbox: one for each consumer and source.
#[async_trait]
pub trait Lanes: Send + Sync {
    /// Rings when a commit of this process has made deliveries of a source ready. What other processes
    /// commit does not ring.
    fn bell(&self, source: &str) -> watch::Receiver<u64>;

    /// Takes the oldest open deliveries in hand, as many as are due one after the other, up to a limit.
    /// Nothing overtakes one that is held, or waits to be tried again, unless that one has stepped aside.
    async fn claim_some(
        &self,
        consumer: &str,
        source: &str,
        now: Timestamp,
        until: Timestamp,
        limit: u32,
    ) -> Result<Claims, WatchStoreError>;

    /// Takes deliveries in hand that stepped aside and are due, those first that have waited longest.
    async fn claim_aside(
        &self,
        consumer: &str,
        source: &str,
        now: Timestamp,
        until: Timestamp,
        limit: u32,
    ) -> Result<Claims, WatchStoreError>;

    /// Ends claims, all in one transaction, as `finish` does one; `None`: it was not tried, and does not
    /// count as tried. Answers for each whether it was still this claim's to end.
    async fn finish_some(
        &self,
        ended: &[(Claimed, Option<Ended>)],
        now: Timestamp,
    ) -> Result<Vec<bool>, WatchStoreError>;

    /// Makes due what is in hand in a lane, whoever took it: for the one who delivers that lane now, at
    /// the start of its term and when it does not know how a step ended. Waiting retries go on waiting.
    async fn free_claims(
        &self,
        consumer: &str,
        source: &str,
        now: Timestamp,
    ) -> Result<u64, WatchStoreError>;
}
