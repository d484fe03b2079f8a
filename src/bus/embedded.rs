//! The embedded bus: rows of the watcher's outbox to consumers in the same process.
//!
//! At least once, in order per source: the next message of a source is taken only when the one before
//! it is done or parked, or has stepped aside: such a one is tried again beside the others. A row is done only when its consumer says so; a crash between the two delivers
//! it again. Rows are claimed and ended some at a time, so that a transaction is not paid for each; a
//! crash then delivers some again.

use crate::core::time::Timestamp;
use crate::ports::bus::{Consumer, Kind, Wait};
use crate::ports::clock::Clock;
use crate::ports::watch_store::{Claimed, Claims, Ended, WatchStore, WatchStoreError, lane_duty};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use tokio::sync::watch;

/// How long deliveries may be in hand before they are due again, in milliseconds. Longer than any
/// consumer's own timeouts. Whoever delivers the lane next need not wait for it.
const IN_HAND_MS: i64 = 120_000;
/// How many are taken in hand at first, and at most.
const WIDTH_FIRST: u32 = 4;
const WIDTH_MOST: u32 = 64;
/// For how long those in hand are delivered, in milliseconds; the others are then put back. What is not
/// in hand can still be cancelled by a reorg.
const BATCH_MS: i64 = 250;

/// One source's messages on their way to one consumer.
pub struct Lane {
    store: Arc<dyn WatchStore>,
    clock: Arc<dyn Clock>,
    consumer: Arc<dyn Consumer>,
    source: String,
    /// As many as were delivered in time lately.
    width: AtomicU32,
    /// Whether it is the turn of those that stepped aside.
    aside: AtomicBool,
}

/// What a step of a lane did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing was due.
    Idle,
    /// Nothing was due, and the first open message is tried again then.
    Until(Timestamp),
    /// The consumer takes nothing now.
    NotReady,
    /// Messages were delivered, or tried.
    Moved,
}

/// The lanes of all consumers: they are independent of each other.
#[must_use]
pub fn lanes(
    store: &Arc<dyn WatchStore>,
    clock: &Arc<dyn Clock>,
    consumers: &[Arc<dyn Consumer>],
) -> Vec<Lane> {
    let lane = |consumer: &Arc<dyn Consumer>, source: String| Lane {
        store: Arc::clone(store),
        clock: Arc::clone(clock),
        consumer: Arc::clone(consumer),
        source,
        width: AtomicU32::new(WIDTH_FIRST),
        aside: AtomicBool::new(false),
    };
    let of = |consumer: &Arc<dyn Consumer>| -> Vec<Lane> {
        consumer.subscriptions().into_iter().map(|(source, _)| lane(consumer, source)).collect()
    };
    consumers.iter().flat_map(of).collect()
}

/// Who takes the events of a source, and whether their deliveries are held.
#[must_use]
pub fn subscribers(consumers: &[Arc<dyn Consumer>], source: &str) -> Vec<(String, Wait)> {
    let of = |consumer: &Arc<dyn Consumer>| -> Vec<(String, Wait)> {
        let wanted = consumer.subscriptions().into_iter().filter(|(name, _)| name == source);
        wanted.map(|(_, wait)| (consumer.name().to_owned(), wait)).collect()
    };
    consumers.iter().flat_map(of).collect()
}

impl Lane {
    /// A name for logs.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{} <- {}", self.consumer.name(), self.source)
    }

    /// The duty to deliver it.
    #[must_use]
    pub fn duty(&self) -> String {
        lane_duty(self.consumer.name(), &self.source)
    }

    /// Rings when there may be something to deliver.
    #[must_use]
    pub fn bell(&self) -> watch::Receiver<u64> {
        self.store.bell(&self.source)
    }

    /// From now on it works with this handle of the database: for one term of its duty.
    pub fn work_with(&mut self, store: Arc<dyn WatchStore>) {
        self.store = store;
    }

    /// Makes due what is in hand, whoever took it.
    ///
    /// # Errors
    /// When the database fails, or another process has the lane.
    pub async fn free(&self) -> Result<(), WatchStoreError> {
        let (consumer, now) = (self.consumer.name(), self.clock.now());
        let freed = self.store.free_claims(consumer, &self.source, now).await?;
        if freed > 0 {
            tracing::info!(lane = self.name(), freed, "deliveries without an end are due again");
        }
        Ok(())
    }

    /// Delivers the oldest open messages that are due.
    ///
    /// # Errors
    /// When the database fails; the messages are then delivered again later.
    pub async fn step(&self) -> Result<Step, WatchStoreError> {
        self.step_while(&|| true).await
    }

    /// The same; each message is sent only if `leads` says that this process has the lane.
    ///
    /// # Errors
    /// As [`step`](Self::step), and when another process has the lane.
    pub async fn step_while(
        &self,
        leads: &(dyn Fn() -> bool + Send + Sync),
    ) -> Result<Step, WatchStoreError> {
        if !self.consumer.ready() {
            return Ok(Step::NotReady);
        }
        let consumer = self.consumer.name();
        let claims = self.claim().await?;
        if claims.claimed.is_empty() {
            return Ok(claims.due.map_or(Step::Idle, Step::Until));
        }
        let ended = self.deliver(claims.claimed, leads).await;
        let now = self.clock.now();
        let kept = self.store.finish_some(&ended, now).await?;
        for ((claimed, ended), kept) in ended.iter().zip(kept) {
            if let (Some(ended), true) = (ended, kept) {
                self.count(ended);
            } else if !kept {
                tracing::warn!(
                    consumer,
                    event_id = claimed.message.event_id,
                    "the delivery was cancelled, or taken by another process, while it was under way"
                );
            }
        }
        Ok(Step::Moved)
    }

    /// What is due: in turns of what keeps its order and of what stepped aside, so that neither, however much
    /// there is of it, keeps the other waiting.
    async fn claim(&self) -> Result<Claims, WatchStoreError> {
        let (store, consumer, source) = (&self.store, self.consumer.name(), self.source.as_str());
        let (now, width) = (self.clock.now(), self.width.load(Ordering::Relaxed));
        let until = now.plus_millis(IN_HAND_MS);
        let first = self.aside.load(Ordering::Relaxed);
        let mut due: Option<Timestamp> = None;
        for aside in [first, !first] {
            let claims = if aside {
                store.claim_aside(consumer, source, now, until, width).await?
            } else {
                store.claim_some(consumer, source, now, until, width).await?
            };
            if !claims.claimed.is_empty() {
                self.aside.store(!aside, Ordering::Relaxed);
                return Ok(claims);
            }
            due = due.into_iter().chain(claims.due).min();
        }
        Ok(Claims { claimed: Vec::new(), due })
    }

    /// Delivers one after the other, until one has to be tried again or the time is over.
    async fn deliver(
        &self,
        claimed: Vec<Claimed>,
        leads: &(dyn Fn() -> bool + Send + Sync),
    ) -> Vec<(Claimed, Option<Ended>)> {
        let since = self.clock.steady_ms();
        let count = claimed.len();
        let mut ended = Vec::with_capacity(count);
        let (mut goes_on, mut tried) = (true, 0_u32);
        for claimed in claimed {
            let in_time = self.clock.steady_ms().saturating_sub(since) < BATCH_MS;
            goes_on = goes_on && leads() && (tried == 0 || in_time);
            if !goes_on {
                ended.push((claimed, None));
                continue;
            }
            let outcome = self.consumer.deliver(&claimed.message).await;
            crate::failpoint!("watch.after_deliver");
            let end = Ended::of(outcome, claimed.attempt, self.clock.now());
            self.tell(&claimed, &end);
            tried = tried.saturating_add(1);
            goes_on = !matches!(end, Ended::Retry { .. });
            ended.push((claimed, Some(end)));
        }
        let whole = u32::try_from(count).is_ok_and(|count| count == tried);
        let width = if whole { tried.saturating_mul(2).max(WIDTH_FIRST) } else { tried };
        self.width.store(width.clamp(1, WIDTH_MOST), Ordering::Relaxed);
        ended
    }

    fn count(&self, ended: &Ended) {
        let name = match ended {
            Ended::Done(_) => "claviger_watcher_delivered_total",
            Ended::Retry { .. } | Ended::Aside { .. } => "claviger_watcher_retries_total",
            Ended::Parked(_) => "claviger_watcher_parked_total",
        };
        metrics::counter!(name, "consumer" => self.consumer.name().to_owned()).increment(1);
    }

    fn tell(&self, claimed: &Claimed, ended: &Ended) {
        let consumer = self.consumer.name();
        let event_id = claimed.message.event_id.as_str();
        let retraction = claimed.message.kind == Kind::Retraction;
        match ended {
            Ended::Done(result) => {
                tracing::info!(consumer, event_id, retraction, result, "delivered");
            }
            Ended::Retry { error, .. } => {
                let attempt = claimed.attempt;
                tracing::warn!(consumer, event_id, attempt, error, "not delivered; will retry");
            }
            Ended::Aside { error, .. } => {
                let attempt = claimed.attempt;
                tracing::warn!(consumer, event_id, attempt, error, "stepped aside; will retry");
            }
            Ended::Parked(reason) => {
                tracing::error!(consumer, event_id, reason, "parked: an operator must look");
            }
        }
    }
}
