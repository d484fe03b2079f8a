//! In which order what waits is looked at, and what becomes of the turn of one that cannot be judged now.
//!
//! Each has its place in one line. What was never put off comes first, the oldest before the others. What could
//! not be judged (a node does not answer, say) goes to the end of the line, later each time, so that a page full
//! of such requests keeps no other from being judged, and none is tried again and again without a pause.

use super::{look_at, waiter};
use crate::app::{App, AppError, clock_watch, suspension};
use crate::core::id::RequestId;
use crate::core::time::Timestamp;
use crate::ports::clock::Clock;
use crate::ports::store::{DueRequest, End, PUT_OFF_MS_MAX, Store, StoreError, look, unit};
use alloy::primitives::B256;
use futures::stream::{self, StreamExt};

/// How many due requests are read at once.
const PAGE: i64 = 64;
/// How many are judged at once: one that waits for its nodes keeps few others.
const AT_ONCE: usize = 8;
/// After so long nothing more is begun: the next look begins at the head of the line again.
const LOOK_MS: i64 = 5_000;
/// How long what could not be judged is put off, the first time and at most.
const PUT_OFF_MS: (i64, i64) = (1_000, PUT_OFF_MS_MAX);

/// Looks at every waiting request whose time has come, or that another bundle judged.
///
/// # Errors
/// When the store does not answer. What cannot be judged now is looked at again.
pub async fn due(app: &App) -> Result<(), AppError> {
    if suspension::refuse(app).await.is_err() {
        return Ok(());
    }
    // By a clock that jumped everything looks due, and what would be put off would be put off by it.
    match clock_watch::believed(app).await {
        Err(AppError::ClockUnconfirmed(_)) => return Ok(()),
        believed => believed?,
    }
    let line = Line { store: &*app.store, clock: &*app.clock, bundle: app.bundle().hash() };
    line.walk(|due| async move {
        let Err(error) = look_at(app, due.request).await else {
            return None;
        };
        let id = due.request;
        tracing::warn!(request = %id, %error, "what waits could not be judged, and will be again");
        metrics::counter!("claviger_waiting_failures_total").increment(1);
        if matches!(error, AppError::ClockUnconfirmed(_)) {
            // The clock jumped in this very round: until when would be a wrong time.
            return None;
        }
        // Its end is not put off.
        waiter(app, id).await.ok().flatten().map(|waiter| waiter.over_at())
    })
    .await?;
    Ok(())
}

/// All that waits, in the order in which it is looked at.
pub struct Line<'a> {
    /// The database.
    pub store: &'a dyn Store,
    /// The clock.
    pub clock: &'a dyn Clock,
    /// The bundle in force: what another one has judged is due.
    pub bundle: B256,
}

impl std::fmt::Debug for Line<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").field("bundle", &self.bundle).finish_non_exhaustive()
    }
}

impl Line<'_> {
    /// Has each that is due judged once, as long as there is time. Where `judge` answers `Some`, it could not
    /// be judged, and is put off, but not beyond the moment in the answer, at which it ends by itself.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn walk<F, Fut>(&self, judge: F) -> Result<(), StoreError>
    where
        F: Fn(DueRequest) -> Fut + Sync,
        Fut: Future<Output = Option<Option<Timestamp>>> + Send,
    {
        let (began_ms, now) = (self.clock.steady_ms(), self.clock.now());
        let is_over = || self.clock.steady_ms().saturating_sub(began_ms) >= LOOK_MS;
        let (bundle, mut after) = (self.bundle, None);
        while !is_over() {
            let page = look(self.store, "due_requests", move |unit| {
                Box::pin(async move { unit.due_requests(now, bundle, after, PAGE).await })
            })
            .await?;
            let Some(last) = page.last().copied() else {
                return Ok(());
            };
            let judge = &judge;
            let is_over = &is_over;
            let one = |due: DueRequest| async move {
                if is_over() {
                    return;
                }
                if let Some(over_at) = judge(due).await
                    && let Err(error) = self.put_off(due, over_at).await
                {
                    tracing::warn!(request = %due.request, %error, "it could not be put off");
                }
            };
            stream::iter(page).for_each_concurrent(AT_ONCE, one).await;
            after = Some(last);
        }
        Ok(())
    }

    async fn put_off(&self, due: DueRequest, over_at: Option<Timestamp>) -> Result<(), StoreError> {
        let (id, failures): (RequestId, i64) = (due.request, due.failures);
        let until = retry_at(self.clock.now(), failures, over_at);
        unit(self.store, "put_off", move |unit| {
            Box::pin(async move {
                let is_put = unit.put_off(id, failures, until).await?;
                Ok(if is_put { End::Commit(()) } else { End::Rollback(()) })
            })
        })
        .await
    }
}

/// When it is tried again after so many failures before this one: twice as late each time, and no later than it
/// ends by itself.
pub(super) fn retry_at(now: Timestamp, failures: i64, over_at: Option<Timestamp>) -> Timestamp {
    let (first, most) = PUT_OFF_MS;
    let doublings = u32::try_from(failures.clamp(0, 16)).unwrap_or(0);
    let wait = first.saturating_mul(1_i64.checked_shl(doublings).unwrap_or(i64::MAX)).min(most);
    let retry = now.plus_millis(wait);
    over_at.filter(|over| *over > now).map_or(retry, |over| over.min(retry))
}
