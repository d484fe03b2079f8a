//! The loops: one for each chain, one for each source of each consumer, one for upkeep. Each works only
//! while this process has the duty, and ends after the step it is in when it is told to stop.

use super::lead::{Leads, Seat};
use super::metrics::Gauges;
use super::poller::{Poller, Progress, StepError};
use super::progress::Rates;
use super::prune::Pruner;
use crate::bus::embedded::{Lane, Step};
use crate::core::time::Timestamp;
use crate::ports::clock::Clock;
use crate::ports::watch_store::{Fence, WatchStore, WatchStoreError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often the outbox is looked at where no bell rings: for what other processes and commands write.
const OUTBOX_POLL: Duration = Duration::from_secs(1);
/// How often a consumer is asked again whether it takes anything.
const READY_POLL: Duration = Duration::from_millis(100);
/// How often gauges are set and rates measured.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// Of so many rounds of upkeep, one prunes.
const PRUNE_EVERY: u32 = 6;
/// Longest wait after failures that follow each other.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Waits, but not after the stop. `false` when it is time to end.
async fn rest(stop: &CancellationToken, wait: Duration) -> bool {
    tokio::select! {
        () = stop.cancelled() => false,
        () = tokio::time::sleep(wait) => true,
    }
}

/// Doubles with each failure in a row.
fn backoff(base: Duration, failures: u32) -> Duration {
    base.saturating_mul(2_u32.saturating_pow(failures.min(16))).min(BACKOFF_MAX)
}

/// Keeps this process's leases, until the stop.
pub async fn keep_leases(leads: Arc<Leads>, stop: CancellationToken) {
    let mut failures = 0_u32;
    while !stop.is_cancelled() {
        match leads.step().await {
            Ok(()) => failures = 0,
            Err(error) => {
                failures = failures.saturating_add(1);
                tracing::warn!(failures, %error, "leases were not renewed; will try again");
            }
        }
        if !rest(&stop, leads.every()).await {
            break;
        }
    }
}

/// Follows a chain whenever this process leads there, until the stop. Each term has a poller of its own:
/// what another process has taken meanwhile is read from the database.
pub async fn follow(
    chain: String,
    mut seat: Seat,
    poller: impl Fn(Arc<dyn WatchStore>) -> Poller,
    poll: Duration,
    stop: CancellationToken,
) {
    while let Some(fence) = seat.term(&stop).await {
        let over = follow_for(poller(seat.store(&fence)), &seat, &fence, poll, &stop).await;
        if over {
            seat.lost(&fence);
        }
        // The leader tells them.
        for gauge in [
            "claviger_watcher_lag_blocks",
            "claviger_watcher_halted",
            "claviger_watcher_second_read_lag_blocks",
        ] {
            metrics::gauge!(gauge, "chain" => chain.clone()).set(0);
        }
    }
    tracing::info!(chain, "stopped following");
}

/// Follows a chain for one term. `true` if another process has the duty.
async fn follow_for(
    mut poller: Poller,
    seat: &Seat,
    fence: &Fence,
    poll: Duration,
    stop: &CancellationToken,
) -> bool {
    let mut failures = 0_u32;
    while !stop.is_cancelled() && seat.holds(fence) {
        let wait = match poller.step().await {
            Ok(Progress::More) => {
                failures = 0;
                continue;
            }
            Ok(Progress::Idle) => {
                failures = 0;
                poll
            }
            Err(StepError::Store(WatchStoreError::NotLeading(duty))) => {
                tracing::warn!(duty, "a step came too late: another process leads");
                return true;
            }
            // It was told when it happened.
            Err(StepError::Halted(_)) => BACKOFF_MAX,
            Err(error) => {
                failures = failures.saturating_add(1);
                let chain = poller.chain();
                tracing::warn!(chain, failures, %error, "a step was not taken; will try again");
                backoff(poll, failures)
            }
        };
        if !rest(stop, wait).await {
            break;
        }
    }
    false
}

/// Delivers one source's events to one consumer whenever this process leads there, until the stop.
pub async fn deliver(
    mut lane: Lane,
    mut seat: Seat,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
) {
    while let Some(fence) = seat.term(&stop).await {
        lane.work_with(seat.store(&fence));
        if deliver_for(&lane, &seat, &fence, clock.as_ref(), &stop).await {
            seat.lost(&fence);
        }
    }
}

/// Delivers for one term. `true` if another process has the duty.
async fn deliver_for(
    lane: &Lane,
    seat: &Seat,
    fence: &Fence,
    clock: &dyn Clock,
    stop: &CancellationToken,
) -> bool {
    let mut bell = lane.bell();
    let leads = || seat.holds(fence);
    // Of what is in hand at the start, or after a failure, nobody knows how it ended.
    let (mut failures, mut in_doubt) = (0_u32, true);
    while !stop.is_cancelled() && leads() {
        bell.mark_unchanged();
        let step = async {
            if in_doubt {
                lane.free().await?;
            }
            lane.step_while(&leads).await
        };
        let wait = match step.await {
            Ok(step) => {
                (failures, in_doubt) = (0, false);
                match step {
                    Step::Moved => continue,
                    Step::Idle => OUTBOX_POLL,
                    Step::NotReady => READY_POLL,
                    Step::Until(due) => until(due, clock).min(OUTBOX_POLL),
                }
            }
            Err(WatchStoreError::NotLeading(duty)) => {
                tracing::warn!(duty, "a delivery ended too late: another process leads");
                return true;
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                in_doubt = true;
                tracing::warn!(lane = lane.name(), failures, %error, "the outbox was not read");
                backoff(READY_POLL, failures)
            }
        };
        if !woken(&mut bell, stop, wait).await {
            break;
        }
    }
    false
}

fn until(due: Timestamp, clock: &dyn Clock) -> Duration {
    Duration::from_millis(u64::try_from(due.since(clock.now())).unwrap_or(0).max(1))
}

/// Waits for the bell, and no longer than this. `false` when it is time to end.
async fn woken(bell: &mut watch::Receiver<u64>, stop: &CancellationToken, wait: Duration) -> bool {
    tokio::select! {
        () = stop.cancelled() => false,
        // The sender lives as long as the database's handle: no error is to be met.
        _ = bell.changed() => true,
        () = tokio::time::sleep(wait) => true,
    }
}

/// What upkeep works with.
pub struct Upkeep {
    /// The duty to prune and measure.
    pub seat: Seat,
    /// The database, for what every process tells of it.
    pub store: Arc<dyn WatchStore>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The chains' names.
    pub chains: Vec<String>,
    /// Who is delivered to.
    pub consumers: Vec<String>,
    /// How long what is done is kept, in milliseconds.
    pub keep_ms: i64,
}

/// Sets gauges; where this process leads, measures rates and prunes. Until the stop.
pub async fn upkeep(parts: Upkeep, stop: CancellationToken) {
    let Upkeep { mut seat, store, clock, chains, consumers, keep_ms } = parts;
    let (mut rates, mut pruner) = (Rates::default(), Pruner::new(Arc::clone(&clock), keep_ms));
    let (mut gauges, mut rounds) = (Gauges::of(consumers), 0_u32);
    loop {
        if let Err(error) = gauges.set(store.as_ref(), clock.now()).await {
            tracing::warn!(%error, "gauges were not set");
        }
        if let Some(fence) = seat.now() {
            let store = seat.store(&fence);
            let prunes = rounds.checked_rem(PRUNE_EVERY) == Some(0);
            let pruner = prunes.then_some(&mut pruner);
            match round(store.as_ref(), clock.now(), &chains, &mut rates, pruner).await {
                Ok(()) => {}
                Err(WatchStoreError::NotLeading(_)) => seat.lost(&fence),
                Err(error) => tracing::warn!(%error, "upkeep was not done; will try again"),
            }
        }
        rounds = rounds.wrapping_add(1);
        if !rest(&stop, UPKEEP_EVERY).await {
            return;
        }
    }
}

async fn round(
    store: &dyn WatchStore,
    now: Timestamp,
    chains: &[String],
    rates: &mut Rates,
    pruner: Option<&mut Pruner>,
) -> Result<(), WatchStoreError> {
    for chain in chains {
        if let Some(state) = store.load(chain).await? {
            rates.note(store, &state, now).await?;
        }
    }
    if let Some(pruner) = pruner {
        pruner.round(store).await?;
    }
    Ok(())
}
