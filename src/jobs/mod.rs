//! Work that recurs: one table of (name, period, use case). A job that fails is logged and comes again;
//! on stop the running ones end first.

mod looks;
pub mod telling;

pub use looks::Looks;

use crate::app::{
    App, AppError, ChainRuntime, clock_watch, exposures, finality, recover, settle_external,
};
use crate::core::id::ChainId;
use crate::core::tx::state::Status;
use crate::ports::store::look;
use alloy::primitives::Address;
use futures::future::BoxFuture;
use std::collections::BTreeSet;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// How often the clock is compared and written down.
const CLOCK_MS: u64 = 5_000;

/// Periods, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Periods {
    /// Signing what was decided and not signed.
    pub recover_ms: u64,
    /// Counting for metrics.
    pub gauges_ms: u64,
}

/// A chain with its own period.
pub type PolledChain = (Arc<ChainRuntime>, u64);

/// A job of an edge, which this room may not name: the program that builds the edge hands it in.
pub struct EdgeJob {
    /// The name in logs.
    pub name: &'static str,
    /// The period, in milliseconds.
    pub every_ms: u64,
    /// One run.
    pub run: Box<dyn FnMut() -> BoxFuture<'static, Result<(), AppError>> + Send>,
}

/// Starts all jobs.
#[must_use]
pub fn start(
    app: &Arc<App>,
    chains: Vec<PolledChain>,
    edges: Vec<EdgeJob>,
    periods: Periods,
    stop: &CancellationToken,
) -> JoinSet<()> {
    let mut jobs = JoinSet::new();
    for (chain, every_ms) in chains {
        jobs.spawn(accounts(Arc::clone(app), Arc::clone(&chain), every_ms, stop.clone()));
        let app = Arc::clone(app);
        jobs.spawn(repeat("ends", every_ms, stop.clone(), move || {
            let (app, chain) = (Arc::clone(&app), Arc::clone(&chain));
            async move { ends(&app, &chain).await }
        }));
    }
    let (all, token) = (Arc::clone(app), stop.clone());
    jobs.spawn(repeat("recover", periods.recover_ms, token, move || {
        let app = Arc::clone(&all);
        async move { recover::unsigned(&app).await }
    }));
    let (all, token) = (Arc::clone(app), stop.clone());
    jobs.spawn(repeat("clock", CLOCK_MS, token, move || {
        let app = Arc::clone(&all);
        async move { clock_watch::watch(&app).await }
    }));
    for edge in edges {
        jobs.spawn(repeat(edge.name, edge.every_ms, stop.clone(), edge.run));
    }
    let (all, token) = (Arc::clone(app), stop.clone());
    jobs.spawn(repeat("gauges", periods.gauges_ms, token, move || {
        let app = Arc::clone(&all);
        async move { gauges(&app).await }
    }));
    jobs
}

/// What was told as final must still be so, also while nothing is open; and what callers sent is settled.
async fn ends(app: &App, chain: &ChainRuntime) -> Result<(), AppError> {
    finality::stands_still(app, chain).await?;
    settle_external::settle(app, chain).await?;
    exposures::follow(app, chain).await
}

/// Each period starts looks at the accounts that are not being looked at. On stop the running ones end
/// first.
async fn accounts(app: Arc<App>, chain: Arc<ChainRuntime>, every_ms: u64, stop: CancellationToken) {
    let mut looks = Looks::new(app, chain);
    let mut ticks = every(every_ms);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        match stop.run_until_cancelled(looks.start()).await {
            Some(Err(error)) => tracing::warn!(job = "accounts", %error, "will be tried again"),
            Some(Ok(())) => {}
            None => break,
        }
    }
    looks.drained().await;
}

async fn gauges(app: &App) -> Result<(), AppError> {
    let (counts, waiting, head) = look(&*app.store, "gauges", |unit| {
        Box::pin(async move {
            let counts = unit.count_by_status().await?;
            Ok((counts, unit.waiting_leaf_count().await?, unit.log_head().await?))
        })
    })
    .await?;
    for status in Status::ALL {
        let found = counts.iter().find(|(name, _)| *name == status);
        let count = found.map_or(0, |(_, count)| *count);
        metrics::gauge!("claviger_transactions", "status" => status.name()).set(as_f64(count));
    }
    metrics::gauge!("claviger_audit_outbox").set(as_f64(waiting));
    let size = i64::try_from(head.size).unwrap_or(i64::MAX);
    metrics::gauge!("claviger_audit_size").set(as_f64(size));
    for chain in app.chains.values() {
        lane_gauges(app, chain).await?;
    }
    Ok(())
}

/// The accounts that have gauges of their own: what is told of an account must not stay when it is not told any
/// more.
static TOLD: Mutex<BTreeSet<(ChainId, Address)>> = Mutex::new(BTreeSet::new());

fn lock_told() -> MutexGuard<'static, BTreeSet<(ChainId, Address)>> {
    TOLD.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn lane_gauges(app: &App, chain: &ChainRuntime) -> Result<(), AppError> {
    let (id, name) = (chain.settings.id, chain.settings.name.to_string());
    let (mut lanes, is_many) = look(&*app.store, "lane_ages", move |unit| {
        Box::pin(async move { Ok((unit.lane_ages(id).await?, unit.has_many_lanes(id).await?)) })
    })
    .await?;
    let now = app.clock.now();
    if is_many {
        // Each account would be a time series for ever: they are told as one.
        let flying = lanes.iter().map(|lane| lane.flying).fold(0, i64::saturating_add);
        let oldest = lanes.iter().filter_map(|lane| lane.oldest).min();
        let own = lanes.iter().filter(|lane| app.leases.is_own(lane.lease, now)).count();
        let labels = [("chain", name.clone()), ("address", "all".to_owned())];
        metrics::gauge!("claviger_lane_in_flight", &labels).set(as_f64(flying));
        let age_ms = oldest.map_or(0, |at| now.since(at).max(0));
        metrics::gauge!("claviger_lane_oldest_seconds", &labels).set(as_f64(age_ms) / 1_000.0);
        let own = i64::try_from(own).unwrap_or(i64::MAX);
        metrics::gauge!("claviger_lane_leased", &labels).set(as_f64(own));
        lanes.clear();
    }
    let mut told = lock_told();
    for address in told.iter().filter(|(of, _)| *of == id).map(|(_, address)| *address) {
        if lanes.iter().all(|lane| lane.address != address) {
            let labels = [("chain", name.clone()), ("address", format!("{address:#x}"))];
            metrics::gauge!("claviger_lane_in_flight", &labels).set(0.0);
            metrics::gauge!("claviger_lane_oldest_seconds", &labels).set(0.0);
            metrics::gauge!("claviger_lane_leased", &labels).set(0.0);
        }
    }
    told.retain(|(of, _)| *of != id);
    told.extend(lanes.iter().map(|lane| (id, lane.address)));
    for lane in lanes {
        let labels = [("chain", name.clone()), ("address", format!("{:#x}", lane.address))];
        metrics::gauge!("claviger_lane_in_flight", &labels).set(as_f64(lane.flying));
        let age_ms = lane.oldest.map_or(0, |at| now.since(at).max(0));
        metrics::gauge!("claviger_lane_oldest_seconds", &labels).set(as_f64(age_ms) / 1_000.0);
        let own = i64::from(app.leases.is_own(lane.lease, now));
        metrics::gauge!("claviger_lane_leased", &labels).set(as_f64(own));
    }
    Ok(())
}

/// Metrics are floating point; counts beyond 2^53 do not occur.
#[expect(clippy::cast_precision_loss, reason = "a gauge for people, not for decisions")]
const fn as_f64(count: i64) -> f64 {
    count as f64
}

async fn repeat<F, Fut>(name: &'static str, every_ms: u64, stop: CancellationToken, mut job: F)
where
    F: FnMut() -> Fut + Send,
    Fut: Future<Output = Result<(), AppError>> + Send,
{
    let mut ticks = every(every_ms);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        if let Err(error) = job().await {
            tracing::warn!(job = name, %error, "will be tried again");
        }
    }
}

fn every(ms: u64) -> Interval {
    let mut ticks = tokio::time::interval(Duration::from_millis(ms));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
