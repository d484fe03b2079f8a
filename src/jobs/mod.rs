//! Work that recurs: one table of (name, period, use case). A job that fails is logged and comes again;
//! on stop the running ones end first.

use crate::app::lane::Idle;
use crate::app::{App, AppError, ChainRuntime, follow, lane, recover, settle_external};
use crate::core::tx::state::Status;
use crate::ports::store::look;
use futures::future::BoxFuture;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

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
        let (app, stop) = (Arc::clone(app), stop.clone());
        jobs.spawn(repeat("chain", every_ms, stop, move || {
            let (app, chain) = (Arc::clone(&app), Arc::clone(&chain));
            async move { one_chain(&app, &chain).await }
        }));
    }
    let (all, token) = (Arc::clone(app), stop.clone());
    jobs.spawn(repeat("recover", periods.recover_ms, token, move || {
        let app = Arc::clone(&all);
        async move { recover::unsigned(&app).await }
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

/// One look at a chain: follow what is out, settle what callers sent, then give nonces to what waits.
///
/// # Errors
/// When the store or the nodes do not answer.
pub async fn one_chain(app: &App, chain: &ChainRuntime) -> Result<(), AppError> {
    // One part that fails must not keep the others waiting.
    if let Err(error) = follow::follow(app, chain).await {
        tracing::warn!(chain = %chain.settings.name, %error, "could not follow");
    }
    if let Err(error) = settle_external::settle(app, chain).await {
        tracing::warn!(chain = %chain.settings.name, %error, "could not settle");
    }
    let id = chain.settings.id;
    let lanes = look(&*app.store, "waiting_lanes", move |unit| {
        Box::pin(async move { unit.waiting_accounts(id).await })
    })
    .await?;
    for address in lanes {
        match lane::work(app, chain, address).await {
            Ok(Idle::Unfunded) => tracing::warn!(%address, "the account needs a top-up"),
            Ok(Idle::AboveCap) => tracing::warn!(%address, "the base fee is above the cap"),
            Ok(Idle::Halted(reason)) => tracing::warn!(%address, reason, "the lane is halted"),
            Ok(Idle::Empty | Idle::Full | Idle::Contended) => {}
            // One lane that fails must not keep the others waiting.
            Err(error) => tracing::warn!(%address, %error, "the lane will be worked again"),
        }
    }
    Ok(())
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
    let mut ticks = tokio::time::interval(Duration::from_millis(every_ms));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        if let Err(error) = job().await {
            tracing::warn!(job = name, %error, "will be tried again");
        }
    }
}
