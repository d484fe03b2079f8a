//! Let go on what waited: each waiting request is judged again under the bundle in force, with fresh facts, and
//! only then is its spend reserved and the row queued. One unit, so a crash leaves it waiting or queued.
//!
//! What was approved is a text (`core::approval`). Where the request, judged now, is another text, whatever was
//! approved is void and people are asked anew. Approved terms let a request go on once.

mod due;

pub use due::{Line, due};

use crate::app::accept::summary;
use crate::app::ask::{self, Asked};
use crate::app::rejudge::{self, Rejudged};
use crate::app::{App, AppError, clock_watch, policies, record, source_gone};
use crate::core::approval::Approvers;
use crate::core::audit::EncodedLeaf;
use crate::core::id::RequestId;
use crate::core::intent::Fees;
use crate::core::key::NonceMode;
use crate::core::policy::{Outcome, Reason, Verdict};
use crate::core::time::Timestamp;
use crate::core::tx::state::Status;
use crate::ports::store::{
    End, GivenApproval, Hold, LaneKey, LimitExceeded, NewEvent, StatusChange, StoreError,
    TransactionRow, Unit, WaitingRequest, look, unit,
};
use alloy::primitives::B256;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// People by quorum group.
type Groups = BTreeMap<String, BTreeSet<String>>;

/// A waiting request, as it was read in one look.
#[derive(Debug, Clone)]
pub(crate) struct Waiter {
    /// The transaction.
    pub(crate) row: TransactionRow,
    /// What it waits for.
    pub(crate) wait: WaitingRequest,
    /// Who approved what of it.
    pub(crate) given: Vec<GivenApproval>,
}

impl Waiter {
    /// The approvals of what it waits for now.
    pub(crate) fn approvals(&self) -> Vec<&GivenApproval> {
        self.given.iter().filter(|given| given.hash == self.wait.hash).collect()
    }

    /// Whether enough people have approved it.
    pub(crate) fn is_approved(&self, groups: &Groups) -> bool {
        let subs = self.approvals().into_iter().map(|given| given.who.sub.as_str());
        let approvers = Approvers::new(subs, &self.row.new.principal.sub, groups);
        // Who need not be asked has not approved.
        !self.wait.quorums.is_empty() && approvers.meet(&self.wait.quorums)
    }

    /// Whether it may not be signed any more, or not be approved any more.
    fn is_over(&self, now: Timestamp) -> bool {
        self.over_at().is_some_and(|over| now >= over)
    }

    /// From when on it may not be signed any more, or not be approved any more.
    fn over_at(&self) -> Option<Timestamp> {
        let late = self.row.new.intent.not_after.map(|limit| limit.plus_millis(1));
        let due = (self.row.status == Status::AwaitingApproval).then_some(self.wait.due_at);
        late.into_iter().chain(due).min()
    }

    /// Whether there is a reason to judge it: its delay is over, it is approved, or another bundle is in
    /// force.
    fn is_ripe(&self, bundle: B256, groups: &Groups, now: Timestamp) -> bool {
        self.wait.bundle != bundle
            || match self.row.status {
                Status::Delayed => now >= self.wait.due_at,
                _ => self.is_approved(groups),
            }
    }
}

/// What is to become of a waiting request.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Next {
    /// It goes on; with the terms that were approved, if they had to be.
    Release(Option<B256>),
    /// It ends.
    Refuse(Vec<Reason>),
    /// It waits for something else than it did.
    Ask,
    /// It goes on waiting.
    Stay,
}

/// Decides from a fresh verdict. `terms` says what the terms of that verdict hash to, with this expiry.
fn next(
    waiter: &Waiter,
    verdict: &Verdict,
    terms: impl Fn(Option<Timestamp>) -> B256,
    groups: &Groups,
) -> Next {
    let (row, wait) = (&waiter.row, &waiter.wait);
    match verdict.outcome {
        Outcome::Deny => Next::Refuse(verdict.reasons.clone()),
        Outcome::Allow => Next::Release(None),
        Outcome::NeedApproval => {
            let is_same = row.status == Status::AwaitingApproval
                && wait.released_at.is_none()
                && terms(Some(wait.due_at)) == wait.hash;
            match (is_same, waiter.is_approved(groups)) {
                (false, _) => Next::Ask,
                (true, false) => Next::Stay,
                (true, true) => Next::Release(Some(wait.hash)),
            }
        }
        Outcome::Delay => {
            let due = verdict.delay.as_ref().map(|delay| row.new.at.plus_millis(delay.ms));
            let is_same = row.status == Status::Delayed
                && due == Some(wait.due_at)
                && terms(None) == wait.hash;
            if is_same { Next::Stay } else { Next::Ask }
        }
    }
}

/// Reads a request with what it waits for; `None` if it has waited for nothing.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn waiter(app: &App, id: RequestId) -> Result<Option<Waiter>, AppError> {
    let found = look(&*app.store, "waiting_request", move |unit| {
        Box::pin(async move {
            let row = unit.transaction(id).await?;
            let wait = unit.waiting_request(id).await?;
            let given = unit.approvals_of(id).await?;
            Ok(row.zip(wait).map(|(row, wait)| Waiter { row, wait, given }))
        })
    })
    .await?;
    Ok(found)
}

/// Looks at one waiting request, and does what is due.
///
/// # Errors
/// When the store or the nodes do not answer. The next look goes on.
pub(crate) async fn look_at(app: &App, id: RequestId) -> Result<(), AppError> {
    let Some(waiter) = waiter(app, id).await?.filter(|found| found.row.status.is_waiting()) else {
        return Ok(());
    };
    let now = app.clock.now();
    if waiter.is_over(now) {
        // A clock that jumped must end nothing: an end cannot be taken back.
        clock_watch::believed(app).await?;
        return expire(app, &waiter, now).await;
    }
    if waiter.wait.bundle != app.bundle().hash() {
        policies::catch_up(app).await?;
    }
    let bundle = app.bundle();
    if !waiter.is_ripe(bundle.hash(), &bundle.guardrails().quorums, now) {
        return Ok(());
    }
    let chain = app.chain_of(waiter.row.new.intent.chain.id);
    let chain = chain.ok_or_else(|| AppError::internal("its chain is not configured here"))?;
    let again = rejudge::judge_under(app, chain, &bundle, &waiter.row, now).await?;
    if let Some(why) = again.unsettled()
        && source_gone::settle(app, chain, &waiter.row, why).await?
    {
        return Ok(());
    }
    let terms = |expires| record::terms(id, again.request(), &again.verdict, expires).1;
    match next(&waiter, &again.verdict, terms, &bundle.guardrails().quorums) {
        Next::Stay => Ok(()),
        Next::Refuse(reasons) => refuse(app, &waiter, &again, &reasons, now).await,
        Next::Ask => {
            let stored = ask_anew(app, &waiter.row, &again, now).await?;
            if stored {
                tracing::info!(request = %id, "it waits for something else now");
                app.changed_one(id);
            }
            Ok(())
        }
        Next::Release(terms) => release(app, &waiter, &again, terms, now).await,
    }
}

/// The change of a row that waits.
fn change(row: &TransactionRow, status: Status, at: Timestamp) -> StatusChange {
    StatusChange {
        id: row.new.id,
        version: row.version,
        status,
        mined: None,
        ending: None,
        failure: None,
        at,
    }
}

/// Its time is over, and nobody has signed anything.
async fn expire(app: &App, waiter: &Waiter, now: Timestamp) -> Result<(), AppError> {
    let (row, id) = (&waiter.row, waiter.row.new.id);
    let uuid = || app.entropy.uuid().to_string();
    let mut events = vec![record::status_event(row, Status::Expired, uuid(), now)];
    if row.status == Status::AwaitingApproval {
        events.push(record::decided_event(row, waiter.wait.hash, "expired", uuid(), now));
    }
    let work = Arc::new((change(row, Status::Expired, now), events));
    let ended = unit(&*app.store, "expire_waiting", move |unit| {
        let work = Arc::clone(&work);
        Box::pin(async move {
            let (change, events) = &*work;
            if !unit.advance(change).await? {
                return Ok(End::Rollback(false));
            }
            unit.free_events(change.id).await?;
            for event in events {
                unit.append_event(event).await?;
            }
            Ok(End::Commit(true))
        })
    })
    .await?;
    crate::failpoint!("release.after_ended");
    if ended {
        app.changed_one(id);
    }
    Ok(())
}

/// Ends a waiting row that policy refuses now, or whose windows are full.
async fn refuse(
    app: &App,
    waiter: &Waiter,
    again: &Rejudged,
    reasons: &[Reason],
    now: Timestamp,
) -> Result<(), AppError> {
    let row = &waiter.row;
    let refusal = again.refuse(row, reasons, app.entropy.uuid().to_string(), now)?;
    let refusal = Arc::new(refusal);
    let ended = unit(&*app.store, "refuse_waiting", move |unit| {
        let refusal = Arc::clone(&refusal);
        Box::pin(async move {
            let ended = refusal.store(unit).await?;
            Ok(if ended { End::Commit(true) } else { End::Rollback(false) })
        })
    })
    .await?;
    crate::failpoint!("release.after_ended");
    if ended {
        metrics::counter!("claviger_policy_decisions_total", "outcome" => "deny").increment(1);
        tracing::warn!(request = %row.new.id, "a request that waited was refused");
        app.changed_one(row.new.id);
    }
    Ok(())
}

/// Everything that asking anew writes.
#[derive(Debug, Clone)]
pub(crate) struct Anew {
    asked: Asked,
    change: StatusChange,
    event: NewEvent,
    row: TransactionRow,
    fee_cap: Fees,
    again: Rejudged,
}

/// Prepares that a row without a nonce waits for what its new verdict wants.
///
/// # Errors
/// When the verdict wants nothing, or the terms are too long for a leaf.
pub(crate) fn anew(
    app: &App,
    row: &TransactionRow,
    again: &Rejudged,
    now: Timestamp,
) -> Result<Anew, AppError> {
    let judged = (again.request(), &again.verdict);
    let asked = ask::wanted(app, row.new.id, judged, row.new.at, now)?;
    let asked = asked.ok_or_else(|| AppError::internal("nothing is to be waited for"))?;
    let event_id = app.entropy.uuid().to_string();
    Ok(Anew {
        change: change(row, asked.status, now),
        event: record::status_event(row, asked.status, event_id, now),
        row: row.clone(),
        fee_cap: again.fee_cap(row),
        again: again.clone(),
        asked,
    })
}

impl Anew {
    /// Has it wait: what it held is free, and nothing that was approved counts. `false` if it has moved on
    /// meanwhile.
    ///
    /// # Errors
    /// As the unit.
    pub(crate) async fn store(&self, unit: &mut dyn Unit) -> Result<bool, StoreError> {
        if !unit.advance(&self.change).await? {
            return Ok(false);
        }
        let id = self.change.id;
        unit.release(&id.to_string()).await?;
        let decision = summary(&self.again.verdict);
        unit.decide_again(id, self.fee_cap, &decision, &self.again.decision_json).await?;
        unit.put_waiting(&self.asked.wait).await?;
        self.asked.tell(unit, &self.row).await?;
        unit.append_event(&self.event).await?;
        Ok(true)
    }
}

async fn ask_anew(
    app: &App,
    row: &TransactionRow,
    again: &Rejudged,
    now: Timestamp,
) -> Result<bool, AppError> {
    let anew = Arc::new(anew(app, row, again, now)?);
    let stored = unit(&*app.store, "ask_anew", move |unit| {
        let anew = Arc::clone(&anew);
        Box::pin(async move {
            let stored = anew.store(unit).await?;
            Ok(if stored { End::Commit(true) } else { End::Rollback(false) })
        })
    })
    .await?;
    crate::failpoint!("release.after_asked");
    Ok(stored)
}

/// Everything that a release writes.
struct Release {
    lane: LaneKey,
    change: StatusChange,
    fee_cap: Fees,
    again: Rejudged,
    hold: Hold,
    terms: Option<B256>,
    leaf: EncodedLeaf,
    events: Vec<NewEvent>,
    now: Timestamp,
}

enum Released {
    Done,
    Moved,
    Full(LimitExceeded),
    EventUsed(RequestId),
}

async fn release(
    app: &App,
    waiter: &Waiter,
    again: &Rejudged,
    terms: Option<B256>,
    now: Timestamp,
) -> Result<(), AppError> {
    let (row, id) = (&waiter.row, waiter.row.new.id);
    let uuid = || app.entropy.uuid().to_string();
    let mut events = vec![record::status_event(row, Status::Queued, uuid(), now)];
    if let Some(hash) = terms {
        events.push(record::decided_event(row, hash, "approved", uuid(), now));
    }
    let by = if terms.is_some() { waiter.approvals() } else { Vec::new() };
    let lane = LaneKey {
        chain: row.new.intent.chain.id,
        address: row.new.address,
        key: row.new.key,
        mode: NonceMode::Managed,
    };
    let work = Arc::new(Release {
        lane,
        change: change(row, Status::Queued, now),
        fee_cap: again.fee_cap(row),
        again: again.clone(),
        hold: Hold::of(id.to_string(), Some(row.new.intent.chain.id), &again.verdict, false),
        terms,
        leaf: record::released(id, terms, &by, &again.decision_json, now)?,
        events,
        now,
    });
    // A clock that jumped must end no delay, and free no window.
    clock_watch::believed(app).await?;
    let released = unit(&*app.store, "release", move |unit| {
        let work = Arc::clone(&work);
        Box::pin(async move {
            Ok(match release_in(unit, &work).await? {
                Released::Done => End::Commit(Released::Done),
                other => End::Rollback(other),
            })
        })
    })
    .await?;
    crate::failpoint!("release.after_released");
    match released {
        Released::Moved => Ok(()),
        Released::Done => {
            tracing::info!(request = %id, "a request that waited goes on");
            app.changed_one(id);
            Ok(())
        }
        // Nothing was signed: it ends, and may be asked for again.
        Released::Full(full) => {
            refuse(app, waiter, again, &[record::window_reason(&full)], now).await
        }
        Released::EventUsed(other) => {
            let reason = Reason {
                grant: None,
                field: "event".to_owned(),
                expected: "an event that no other request has answered".to_owned(),
                actual: format!("request {other} has it"),
            };
            refuse(app, waiter, again, &[reason], now).await
        }
    }
}

async fn release_in(unit: &mut dyn Unit, work: &Release) -> Result<Released, StoreError> {
    // Whoever gives nonces holds the lane, and takes limits after it: so does this.
    unit.lock_lane(&work.lane).await?;
    // The row's version keeps this apart from approvals, rejections, cancellations and other processes.
    if unit.suspension().await?.is_some() || !unit.advance(&work.change).await? {
        return Ok(Released::Moved);
    }
    let id = work.change.id;
    if let Some(hash) = work.terms
        && !unit.release_terms(id, hash, work.now).await?
    {
        return Ok(Released::Moved);
    }
    let verdict = &work.again.verdict;
    if let Some(event) = &verdict.event_use
        && let Some(other) = unit.claim_event(event, id).await?
        && other != id
    {
        return Ok(Released::EventUsed(other));
    }
    if let Some(full) = unit.hold(&work.hold, work.now).await? {
        return Ok(Released::Full(full));
    }
    unit.decide_again(id, work.fee_cap, &summary(verdict), &work.again.decision_json).await?;
    unit.append_leaf(&work.leaf).await?;
    for event in &work.events {
        unit.append_event(event).await?;
    }
    Ok(Released::Done)
}

#[cfg(test)]
mod tests;
