//! Approve or reject a request that waits, and read what waits.

use crate::app::record::Instruction;
use crate::app::release::{self, Waiter};
use crate::app::{App, AppError, record, suspension};
use crate::core::approval::{Approvers, Progress, Quorum, is_member};
use crate::core::audit::EncodedLeaf;
use crate::core::id::RequestId;
use crate::core::time::Timestamp;
use crate::core::tx::state::Status;
use crate::ports::store::{
    End, GivenApproval, NewEvent, StatusChange, StoreError, TransactionRow, Unit, WaitingFilter,
    WaitingRequest, look, unit,
};
use alloy::primitives::B256;
use std::sync::Arc;

/// How often a row that changes under our hands is looked at again.
const TRIES: u8 = 8;

/// A request that waits, or has waited.
#[derive(Debug, Clone)]
pub struct WaitingView {
    /// The transaction.
    pub row: TransactionRow,
    /// What it waits for, or waited for last.
    pub wait: WaitingRequest,
    /// All that was approved of it, also of terms that are void.
    pub given: Vec<GivenApproval>,
    /// How far each quorum has come, by the groups of the bundle in force.
    pub progress: Vec<(Quorum, Progress)>,
}

/// A request with this id, if it waits or has waited.
///
/// # Errors
/// `NotFound`; when the store does not answer.
pub async fn one(app: &App, id: RequestId) -> Result<WaitingView, AppError> {
    let waiter = release::waiter(app, id).await?.ok_or(AppError::NotFound)?;
    Ok(view(app, waiter))
}

/// What waits, newest first, at most so many.
///
/// # Errors
/// When the store does not answer.
pub async fn list(
    app: &App,
    filter: WaitingFilter,
    most: i64,
) -> Result<Vec<WaitingView>, AppError> {
    let found = look(&*app.store, "waiting_page", move |unit| {
        let filter = filter.clone();
        Box::pin(async move {
            let mut found = Vec::new();
            for row in unit.waiting_page(&filter, most).await? {
                let given = unit.approvals_of(row.new.id).await?;
                let wait = unit.waiting_request(row.new.id).await?;
                found.extend(wait.map(|wait| Waiter { row, wait, given }));
            }
            Ok(found)
        })
    })
    .await?;
    Ok(found.into_iter().map(|waiter| view(app, waiter)).collect())
}

fn view(app: &App, waiter: Waiter) -> WaitingView {
    let bundle = app.bundle();
    let subs = waiter.approvals().into_iter().map(|given| given.who.sub.as_str());
    let requester = &waiter.row.new.principal.sub;
    let approvers = Approvers::new(subs, requester, &bundle.guardrails().quorums);
    let quorums = waiter.wait.quorums.iter();
    let progress = quorums.map(|quorum| (quorum.clone(), approvers.progress(quorum))).collect();
    WaitingView { row: waiter.row, wait: waiter.wait, given: waiter.given, progress }
}

/// What is the same for both answers: it waits, these are its terms, and another person asked for it.
fn answerable(waiter: &Waiter, hash: B256, sub: &str) -> Result<(), AppError> {
    let row = &waiter.row;
    if row.new.principal.sub == sub {
        let why = "nobody approves or rejects a request of their own";
        return Err(AppError::Forbidden(why.to_owned()));
    }
    if !row.status.is_waiting() {
        return Err(conflict(row, format!("it is {}, and waits for nobody", row.status)));
    }
    if waiter.wait.hash != hash {
        let why = "the hash is not of what waits now: read it again, and see what has changed";
        return Err(conflict(row, why.to_owned()));
    }
    Ok(())
}

fn conflict(row: &TransactionRow, detail: String) -> AppError {
    AppError::Conflict { detail, request: Some(row.new.id) }
}

/// Approves these terms. Who has approved them already has approved them.
///
/// # Errors
/// `NotFound`; `Forbidden` for the requester, and for who is in no group that is asked; `Conflict` where it
/// does not wait, waits for something else, or the time is over. When the store does not answer.
pub async fn approve(
    app: &App,
    id: RequestId,
    hash: B256,
    said: &Instruction,
) -> Result<(), AppError> {
    // What waits here may be mined.
    suspension::refuse(app).await?;
    for _ in 0..TRIES {
        let waiter = release::waiter(app, id).await?.ok_or(AppError::NotFound)?;
        let now = app.clock.now();
        let Some(work) = approval(app, waiter, hash, said, now)? else {
            return Ok(());
        };
        let (work, is_met) = (Arc::new(work.0), work.1);
        let stored = unit(&*app.store, "approve", move |unit| {
            let work = Arc::clone(&work);
            Box::pin(async move {
                let stored = approve_in(unit, &work, is_met).await?;
                Ok(if stored { End::Commit(true) } else { End::Rollback(false) })
            })
        })
        .await?;
        if !stored {
            continue;
        }
        crate::failpoint!("approve.after_stored");
        app.changed_one(id);
        if is_met && let Err(error) = release::look_at(app, id).await {
            // Said is said: if it cannot go on now, the next look lets it.
            tracing::warn!(request = %id, %error, "approved, and will be judged again");
        }
        return Ok(());
    }
    Err(StoreError::Contended.into())
}

/// Everything that an approval writes.
struct Approval {
    version: i64,
    given: GivenApproval,
    leaf: EncodedLeaf,
}

/// The approval, and whether it is the last that is needed; `None` if it was given before.
fn approval(
    app: &App,
    mut waiter: Waiter,
    hash: B256,
    said: &Instruction,
    now: Timestamp,
) -> Result<Option<(Approval, bool)>, AppError> {
    answerable(&waiter, hash, &said.who.sub)?;
    let bundle = app.bundle();
    let groups = &bundle.guardrails().quorums;
    let row = &waiter.row;
    if row.status == Status::Delayed {
        let why = format!("it waits until {} first, and asks nobody before", waiter.wait.due_at);
        return Err(conflict(row, why));
    }
    if now >= waiter.wait.due_at {
        return Err(conflict(row, "the time in which it could be approved is over".to_owned()));
    }
    if waiter.wait.bundle != bundle.hash() {
        let why = "another policy is in force now: it is judged by that one first";
        return Err(conflict(row, why.to_owned()));
    }
    if !is_member(&said.who.sub, &waiter.wait.quorums, groups) {
        let why = "not a member of a group that is asked to approve this";
        return Err(AppError::Forbidden(why.to_owned()));
    }
    if waiter.approvals().iter().any(|given| given.who.sub == said.who.sub) {
        return Ok(None);
    }
    let version = row.version;
    let given = GivenApproval {
        request: row.new.id,
        hash,
        who: said.who.clone(),
        reason: said.reason.clone().unwrap_or_default(),
        at: now,
    };
    let leaf = record::approved(&given)?;
    waiter.given.push(given.clone());
    let is_met = waiter.is_approved(groups);
    Ok(Some((Approval { version, given, leaf }, is_met)))
}

/// The row's version is moved on: of two approvers at the same moment the second looks again, and sees the
/// first.
async fn approve_in(
    unit: &mut dyn Unit,
    work: &Approval,
    is_met: bool,
) -> Result<bool, StoreError> {
    let id = work.given.request;
    if unit.suspension().await?.is_some() || !unit.touch(id, work.version).await? {
        return Ok(false);
    }
    if !unit.insert_approval(&work.given).await? {
        return Ok(false);
    }
    unit.append_leaf(&work.leaf).await?;
    if is_met {
        unit.wake(id, work.given.at).await?;
    }
    Ok(true)
}

/// Everything that a rejection writes.
struct Rejection {
    change: StatusChange,
    leaf: EncodedLeaf,
    events: [NewEvent; 2],
}

/// Rejects: one no ends it, also while it is delayed.
///
/// # Errors
/// As [`approve`]; any approver may say no but the requester.
pub async fn reject(
    app: &App,
    id: RequestId,
    hash: B256,
    said: &Instruction,
) -> Result<(), AppError> {
    suspension::refuse(app).await?;
    for _ in 0..TRIES {
        let waiter = release::waiter(app, id).await?.ok_or(AppError::NotFound)?;
        answerable(&waiter, hash, &said.who.sub)?;
        let (row, now) = (&waiter.row, app.clock.now());
        let uuid = || app.entropy.uuid().to_string();
        let change = StatusChange {
            id,
            version: row.version,
            status: Status::Rejected,
            mined: None,
            ending: None,
            failure: None,
            at: now,
        };
        let work = Arc::new(Rejection {
            change,
            leaf: record::rejected(id, hash, said, now)?,
            events: [
                record::status_event(row, Status::Rejected, uuid(), now),
                record::decided_event(row, hash, "rejected", uuid(), now),
            ],
        });
        let stored = unit(&*app.store, "reject", move |unit| {
            let work = Arc::clone(&work);
            Box::pin(async move {
                if !unit.advance(&work.change).await? {
                    return Ok(End::Rollback(false));
                }
                unit.free_events(id).await?;
                unit.append_leaf(&work.leaf).await?;
                for event in &work.events {
                    unit.append_event(event).await?;
                }
                Ok(End::Commit(true))
            })
        })
        .await?;
        if stored {
            crate::failpoint!("reject.after_rejected");
            app.changed_one(id);
            return Ok(());
        }
    }
    Err(StoreError::Contended.into())
}
