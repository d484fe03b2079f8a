//! Which server process works a lane: gives its nonces, decides its versions, changes its statuses, sends
//! again. A lease saves work. Safety rests on row versions; the lease's token is a second wall in front of
//! them: a worker that was stopped for too long writes nothing when it goes on.
//!
//! The token decides, and no clock: processes whose clocks differ take leases from each other too early or
//! too late, and no write is let through for it.

use crate::app::{App, AppError, ChainRuntime};
use crate::core::id::{ChainId, HolderId};
use crate::core::time::Timestamp;
use crate::ports::signer::SignerError;
use crate::ports::store::{CLOCKS_DIFFER_MS, End, Lease, LeaseRow, StoreError, Unit, look, unit};
use alloy::primitives::Address;
use futures::future::BoxFuture;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A lane, by its chain and account.
type LaneName = (ChainId, Address);

/// The leases that this process believes to hold. The database decides.
#[derive(Debug)]
pub struct Leases {
    holder: HolderId,
    lasts_ms: i64,
    held: Mutex<HashMap<LaneName, LeaseRow>>,
    /// Lanes that were left to others, until when.
    left: Mutex<HashMap<LaneName, Timestamp>>,
    /// Whether this process stops: then it takes no more.
    closed: AtomicBool,
}

impl Leases {
    /// None yet, for a process with this random id. Each lasts so many milliseconds unless it is renewed.
    #[must_use]
    pub fn new(holder: HolderId, lasts_ms: i64) -> Self {
        Self {
            holder,
            lasts_ms,
            held: Mutex::default(),
            left: Mutex::default(),
            closed: AtomicBool::new(false),
        }
    }

    /// This process, in leases and leaves.
    #[must_use]
    pub const fn holder(&self) -> HolderId {
        self.holder
    }

    /// Whether a lane with this lease is another process's to work.
    #[must_use]
    pub fn is_foreign(&self, lease: Option<(HolderId, Timestamp)>, now: Timestamp) -> bool {
        lease.is_some_and(|(holder, until)| {
            // One that ends later than any does was taken by a clock that is ahead: it is as good as over.
            let is_sane = until.since(now) <= self.lasts_ms.saturating_add(CLOCKS_DIFFER_MS);
            holder != self.holder && now < until && is_sane
        })
    }

    /// Whether a lane with this lease is this process's.
    #[must_use]
    pub fn is_own(&self, lease: Option<(HolderId, Timestamp)>, now: Timestamp) -> bool {
        lease.is_some_and(|(holder, until)| holder == self.holder && now < until)
    }

    /// The lease of a lane as this process knows it; it may have lost it since.
    #[must_use]
    pub fn of(&self, lane: LaneName) -> Option<Lease> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.get(&lane).map(|row| row.lease)
    }

    /// The lease, where more than half of its time is left: nothing has to be written to go on with it.
    fn young(&self, lane: LaneName, now: Timestamp) -> Option<Lease> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let left = |row: &LeaseRow| row.until.since(now);
        // More than all of it is left where our clock was set back: then it is renewed.
        let young = |row: &&LeaseRow| left(row).saturating_mul(2) > self.lasts_ms;
        held.get(&lane).filter(young).filter(|row| left(row) <= self.lasts_ms).map(|row| row.lease)
    }

    fn leave(&self, lane: LaneName, now: Timestamp) {
        let until = now.plus_millis(self.lasts_ms.div_euclid(2));
        self.left.lock().unwrap_or_else(PoisonError::into_inner).insert(lane, until);
    }

    fn is_left(&self, lane: LaneName, now: Timestamp) -> bool {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let still = left.get(&lane).is_some_and(|until| now < *until);
        if !still {
            left.remove(&lane);
        }
        still
    }

    fn keep(&self, lease: Lease, until: Timestamp) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.insert((lease.chain, lease.address), LeaseRow { lease, until });
    }

    fn lose(&self, lane: LaneName) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&lane);
    }
}

/// The lease of an account's lane, taken or renewed where need be. `None` while another process holds it:
/// then this one leaves the lane alone.
///
/// # Errors
/// When the store does not answer.
pub async fn hold(
    app: &App,
    chain: &ChainRuntime,
    address: Address,
) -> Result<Option<Lease>, StoreError> {
    let lane @ (id, _) = (chain.settings.id, address);
    let now = app.clock.now();
    if let Some(lease) = app.leases.young(lane, now) {
        return Ok(Some(lease));
    }
    if app.leases.closed.load(Ordering::Acquire) || app.leases.is_left(lane, now) {
        return Ok(None);
    }
    // Looked at first: what another process holds is asked for at each look, and costs no commit.
    let found = look(&*app.store, "lease", move |unit| {
        Box::pin(async move { unit.lease(id, address).await })
    })
    .await?;
    if app.leases.is_foreign(found.map(|row| (row.lease.holder, row.until)), now) {
        app.leases.lose(lane);
        return Ok(None);
    }
    let (holder, until) = (app.leases.holder, now.plus_millis(app.leases.lasts_ms));
    let taken = unit(&*app.store, "take_lease", move |unit| {
        Box::pin(async move {
            let taken = unit.take_lease(lane, holder, now, until).await?;
            Ok(if taken.is_some() { End::Commit(taken) } else { End::Rollback(None) })
        })
    })
    .await?;
    crate::failpoint!("lease.after_taken");
    match taken {
        Some(lease) => {
            if found.is_none_or(|row| row.lease.token != lease.token) {
                tracing::info!(chain = %chain.settings.name, %address, lease.token, "lane taken");
            }
            app.leases.keep(lease, until);
        }
        None => app.leases.lose(lane),
    }
    Ok(taken)
}

/// Takes the lease whoever holds it: for an operator's word, which is carried out where it arrives.
///
/// # Errors
/// When the store does not answer.
pub async fn seize(app: &App, chain: &ChainRuntime, address: Address) -> Result<Lease, StoreError> {
    let lane = (chain.settings.id, address);
    let (holder, until) = (app.leases.holder, app.clock.now().plus_millis(app.leases.lasts_ms));
    let lease = unit(&*app.store, "seize_lease", move |unit| {
        Box::pin(async move { Ok(End::Commit(unit.seize_lease(lane, holder, until).await?)) })
    })
    .await?;
    tracing::info!(chain = %chain.settings.name, %address, lease.token, "lane seized");
    app.leases.keep(lease, until);
    Ok(lease)
}

/// Whether this process cannot sign, and another may. One that has too much to do can.
#[must_use]
pub const fn is_unable(error: &AppError) -> bool {
    matches!(error, AppError::Signer(error) if !matches!(error, SignerError::Overloaded))
}

/// Leaves a lane to the other processes for a while: this one cannot sign for it. Where there is no other,
/// nothing changes.
///
/// # Errors
/// When the store does not answer.
pub async fn leave(app: &App, lease: &Lease) -> Result<(), StoreError> {
    if app.store.is_alone() {
        return Ok(());
    }
    let (kept, lane) = (*lease, (lease.chain, lease.address));
    app.leases.leave(lane, app.clock.now());
    app.leases.lose(lane);
    tracing::warn!(address = %lease.address, "the lane is left to other servers for a while");
    unit(&*app.store, "release_lease", move |unit| {
        Box::pin(async move { Ok(End::Commit(unit.release_lease(&kept).await?)) })
    })
    .await
}

/// Whether work that began under this lease may go on: renews it in time.
///
/// # Errors
/// When the store does not answer.
pub async fn is_kept(app: &App, chain: &ChainRuntime, lease: &Lease) -> Result<bool, StoreError> {
    Ok(hold(app, chain, lease.address).await? == Some(*lease))
}

/// Runs a unit that writes for a lane. `None` if the lane has another lease by now: nothing was stored,
/// whatever the closure would have done.
///
/// # Errors
/// As the unit.
pub async fn fenced<T, F>(
    app: &App,
    lease: &Lease,
    name: &'static str,
    work: F,
) -> Result<Option<T>, StoreError>
where
    T: Send + 'static,
    F: for<'u> Fn(&'u mut dyn Unit) -> BoxFuture<'u, Result<End<T>, StoreError>>
        + Send
        + Sync
        + 'static,
{
    let (lease, work) = (*lease, Arc::new(work));
    let answer = unit(&*app.store, name, move |unit| {
        let work = Arc::clone(&work);
        Box::pin(async move {
            // The first lock after idempotency: whoever takes the lease over waits until this unit has
            // ended, or is seen here.
            if !unit.holds_lease(&lease).await? {
                return Ok(End::Rollback(None));
            }
            Ok(match work(unit).await? {
                End::Commit(value) => End::Commit(Some(value)),
                End::Rollback(value) => End::Rollback(Some(value)),
            })
        })
    })
    .await?;
    if answer.is_none() {
        was_fenced(app, &lease, name);
    }
    Ok(answer)
}

/// A late write was kept out.
pub(crate) fn was_fenced(app: &App, lease: &Lease, name: &'static str) {
    app.leases.lose((lease.chain, lease.address));
    metrics::counter!("claviger_fenced_writes_total", "unit" => name).increment(1);
    tracing::warn!(address = %lease.address, lease.token, unit = name, "late: the lane has another holder");
}

/// At the start: where no other process can be there, the leases of the one before are over.
///
/// # Errors
/// When the store does not answer.
pub async fn begin(app: &App) -> Result<(), StoreError> {
    if !app.store.is_alone() {
        return Ok(());
    }
    unit(&*app.store, "end_leases", |unit| {
        Box::pin(async move { Ok(End::Commit(unit.end_leases().await?)) })
    })
    .await
}

/// At the end: others need not wait until the leases have run out.
///
/// # Errors
/// When the store does not answer; then they wait.
pub async fn release(app: &App) -> Result<(), StoreError> {
    app.leases.closed.store(true, Ordering::Release);
    app.leases.held.lock().unwrap_or_else(PoisonError::into_inner).clear();
    let holder = app.leases.holder;
    unit(&*app.store, "release_leases", move |unit| {
        Box::pin(async move { Ok(End::Commit(unit.release_leases(holder).await?)) })
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const LANE: LaneName = (ChainId::new(1), Address::ZERO);

    fn leases() -> Leases {
        let leases = Leases::new(HolderId::new(Uuid::from_u128(7)), 1_000);
        let (chain, address) = LANE;
        let lease = Lease { chain, address, holder: leases.holder, token: 3 };
        leases.keep(lease, Timestamp::from_millis(11_000));
        leases
    }

    #[test]
    fn a_lease_is_renewed_when_half_of_its_time_is_over_or_the_clock_was_set_back() {
        let leases = leases();
        for (now, young) in [(10_000, true), (10_499, true), (10_500, false), (12_000, false)] {
            let found = leases.young(LANE, Timestamp::from_millis(now));
            assert_eq!(found.is_some(), young, "{now}");
        }
        assert!(leases.young(LANE, Timestamp::from_millis(9_000)).is_none(), "set back");
        leases.lose(LANE);
        assert!(leases.young(LANE, Timestamp::from_millis(10_000)).is_none());
        assert!(leases.of(LANE).is_none());
    }

    #[test]
    fn a_lane_that_was_left_is_left_for_half_the_time_of_a_lease() {
        let leases = leases();
        leases.leave(LANE, Timestamp::from_millis(1_000));
        assert!(leases.is_left(LANE, Timestamp::from_millis(1_499)));
        assert!(!leases.is_left(LANE, Timestamp::from_millis(1_500)));
        assert!(!leases.is_left((ChainId::new(2), Address::ZERO), Timestamp::from_millis(1_000)));
    }

    #[test]
    fn a_lane_is_foreign_only_while_another_has_time_left() {
        let leases = leases();
        let (own, other) = (leases.holder, HolderId::new(Uuid::from_u128(8)));
        let until = Timestamp::from_millis(50);
        let (before, after) = (Timestamp::from_millis(49), Timestamp::from_millis(50));
        assert!(leases.is_foreign(Some((other, until)), before));
        assert!(!leases.is_foreign(Some((other, until)), after));
        assert!(!leases.is_foreign(Some((own, until)), before));
        assert!(!leases.is_foreign(None, before));
        assert!(leases.is_own(Some((own, until)), before));
        assert!(!leases.is_own(Some((own, until)), after));
        assert!(!leases.is_own(Some((other, until)), before));
    }
}
