//! Make the database agree with the chain, on an operator's word: one unit an account, then the log, then
//! the server goes on. What is interrupted is begun again, and finds what was done.

use super::charges::{self, Charges};
use super::{Account, Finding, Standstill, What};
use crate::app::adopt::{self, OnChain};
use crate::app::suspension::{self, Standing};
use crate::app::{AppError, record};
use crate::core::amount::Amount;
use crate::core::audit::EncodedLeaf;
use crate::core::id::RequestId;
use crate::core::key::NonceMode;
use crate::core::time::Timestamp;
use crate::core::tx::state::{Ending, Status};
use crate::ports::chain::{BlockAt, Chain};
use crate::ports::clock::{Clock, Entropy};
use crate::ports::store::{
    DATABASE_IDENTITY, End, Failure, LaneKey, Orphan, Settlement, StatusChange, Store, StoreError,
    TransactionRow, Unit, look, unit,
};
use std::sync::Arc;

/// The failure of a request whose nonce somebody else used.
const STRANGER: &str = "nonce-used-by-stranger";

/// Who says it, and with what.
pub struct Order<'a> {
    /// The database.
    pub store: &'a dyn Store,
    /// The clock.
    pub clock: &'a dyn Clock,
    /// Ids of events.
    pub entropy: &'a dyn Entropy,
    /// Why, in the operator's words.
    pub reason: &'a str,
    /// Go on although transactions may be pending.
    pub even_if_pending: bool,
}

/// What became of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// It agrees with the chain, and its lane goes on from this nonce.
    Done(u64),
    /// Something has to happen first.
    Waits,
    /// It changed while it was looked at: look again.
    Moved,
}

/// A signed checkpoint that the log does not continue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// Its size.
    pub size: u64,
    /// Its root, base64.
    pub root: String,
    /// The signed note.
    pub note: String,
    /// The size at which the log was signed last and does continue.
    pub goes_on_from: u64,
}

/// What one unit needs, read before it.
struct Plan {
    account: Account,
    leaf: EncodedLeaf,
    /// Two ids for each finding.
    events: Vec<[String; 2]>,
    next: u64,
    /// What is to be held for requests that wait in this database.
    charges: Charges,
    now: Timestamp,
}

/// Puts one account right.
///
/// # Errors
/// When the store does not answer, or holds something it must not.
pub async fn settle_account(order: &Order<'_>, account: &Account) -> Result<Applied, AppError> {
    let stops = |wait: &super::Wait| !(order.even_if_pending && wait.may_be_overruled());
    if account.waits().iter().any(stops) {
        return Ok(Applied::Waits);
    }
    let now = order.clock.now();
    let next = account.next.max(account.latest);
    let plan = Arc::new(Plan {
        leaf: record::reconciled_account(account, order.reason, next, now)?,
        events: account.findings.iter().map(|_| [event_id(order), event_id(order)]).collect(),
        account: account.clone(),
        charges: charges::of(order.store, account).await?,
        next,
        now,
    });
    let done = unit(order.store, "reconcile_account", move |unit| {
        let plan = plan.clone();
        Box::pin(async move {
            let done = settle_in(unit, &plan).await?;
            Ok(if done { End::Commit(true) } else { End::Rollback(false) })
        })
    })
    .await?;
    crate::failpoint!("reconcile.after_account");
    Ok(if done { Applied::Done(next) } else { Applied::Moved })
}

fn event_id(order: &Order<'_>) -> String {
    order.entropy.uuid().to_string()
}

async fn settle_in(unit: &mut dyn Unit, plan: &Plan) -> Result<bool, StoreError> {
    let Account { chain, address, key, .. } = &plan.account;
    let open = LaneKey { chain: chain.id, address: *address, key: *key, mode: NonceMode::Managed };
    let lane = unit.lock_lane(&open).await?;
    if lane.next_nonce != plan.account.next || lane.mode != NonceMode::Managed {
        return Ok(false);
    }
    for (finding, events) in plan.account.findings.iter().zip(&plan.events) {
        if !one(unit, plan, finding, events.clone()).await? {
            return Ok(false);
        }
    }
    unit.release_lane(&lane, plan.next).await?;
    unit.append_leaf(&plan.leaf).await?;
    Ok(true)
}

async fn one(
    unit: &mut dyn Unit,
    plan: &Plan,
    finding: &Finding,
    [event_id, second_id]: [String; 2],
) -> Result<bool, StoreError> {
    let now = plan.now;
    let unread = || StoreError::Corrupt("what is to be adopted was not read".to_owned());
    let found = || finding.found.as_ref().ok_or_else(unread);
    match finding.what {
        What::Attempt(request) => further(unit, request, found()?, now).await,
        What::NoOp(request) => no_op(unit, request, found()?, event_id, now).await,
        What::Queued(request) => take(unit, plan, request, found()?, event_id).await,
        What::Foreign(request) => lost(unit, plan, request, finding, [event_id, second_id]).await,
        What::Orphan => orphan(unit, plan, finding).await,
        What::Unseen | What::Undecided => Ok(false),
        // What was told stays told; bytes are sent when the unit has ended.
        What::Vanished(_) | What::Turned(_) => Ok(true),
    }
}

/// An attempt that the database lost.
async fn further(
    unit: &mut dyn Unit,
    request: RequestId,
    found: &OnChain,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let Some(row) = unit.transaction(request).await?.filter(|row| !row.status.is_end()) else {
        return Ok(false);
    };
    if !unit.touch(request, row.version).await? {
        return Ok(false);
    }
    adopt::adopt(unit, &row, found, now).await?;
    Ok(true)
}

/// A no-op that the database lost, with the wish behind it.
async fn no_op(
    unit: &mut dyn Unit,
    request: RequestId,
    found: &OnChain,
    event_id: String,
    now: Timestamp,
) -> Result<bool, StoreError> {
    if !further(unit, request, found, now).await? {
        return Ok(false);
    }
    let Some(row) = unit.transaction(request).await?.filter(|row| row.ending.is_none()) else {
        return Ok(true);
    };
    let change = change(&row, Status::Cancelling, Ending::Cancelled, None, now);
    let ends = TransactionRow { ending: Some(Ending::Cancelled), ..row };
    let event = record::status_event(&ends, Status::Cancelling, event_id, now);
    unit.append_event(&event).await?;
    unit.advance(&change).await
}

/// The nonce is final with another transaction: what the request asked can never be mined. It is not given
/// another nonce, since a request has one for ever: whoever still wants it asks again, with a key of its own.
///
/// What our key signed belonged to a request that is gone, and so does the nonce: it is kept for whoever asks
/// for the same, and bound at once to a request that waits here and does.
async fn lost(
    unit: &mut dyn Unit,
    plan: &Plan,
    request: RequestId,
    finding: &Finding,
    [event_id, second_id]: [String; 2],
) -> Result<bool, StoreError> {
    if !lost_to_another(unit, request, finding, event_id, plan.now).await? {
        return Ok(false);
    }
    let Some(found) = &finding.found else { return Ok(true) };
    if !unit.give_up_nonce(request).await? {
        return Ok(false);
    }
    let Some(asked_by) = finding.asked_by else {
        return orphan(unit, plan, finding).await;
    };
    take(unit, plan, asked_by, found, second_id).await
}

/// Gives a request without a nonce what is mined for it. What waits holds nothing of the windows yet, and the
/// money has moved: it is held now, whatever room there is, so that it settles as everything else does.
async fn take(
    unit: &mut dyn Unit,
    plan: &Plan,
    request: RequestId,
    found: &OnChain,
    event_id: String,
) -> Result<bool, StoreError> {
    let Some(row) = unit.transaction(request).await? else {
        return Ok(false);
    };
    if !adopt::take(unit, &row, found, event_id, plan.now).await? {
        return Ok(false);
    }
    if !row.status.is_waiting() {
        return Ok(true);
    }
    match plan.charges.get(&request) {
        Some((version, hold)) if *version == row.version => {
            match unit.hold(hold, plan.now).await? {
                None => Ok(true),
                Some(_) => {
                    Err(StoreError::Corrupt("a window would hold more than 2^256".to_owned()))
                }
            }
        }
        // It began to wait, or waits for something else, since it was looked at.
        _ => Ok(false),
    }
}

async fn lost_to_another(
    unit: &mut dyn Unit,
    request: RequestId,
    finding: &Finding,
    event_id: String,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let (Some(row), Some(mined)) = (unit.transaction(request).await?, &finding.mined) else {
        return Ok(false);
    };
    if row.status.is_end() || !finding.is_final {
        return Ok(false);
    }
    let detail = format!("its nonce {} was used by {:#x}", finding.nonce, mined.hash);
    let failure = Failure { code: STRANGER.to_owned(), detail };
    let change = change(&row, Status::Failed, Ending::Failed, Some(failure.clone()), now);
    let (hash, block) = (format!("{:#x}", mined.hash), format!("{:#x}", mined.block_hash));
    // What the stranger spent is not this request's: nothing of what it held was spent.
    let nothing =
        Settlement { value_moved: false, fee_paid: Some(Amount::ZERO), fee_from_value: false };
    if !unit.advance(&change).await? {
        return Ok(false);
    }
    if finding.found.is_some() {
        // As if it had never had the nonce.
        unit.release(&request.to_string()).await?;
    } else {
        unit.settle(&request.to_string(), nothing, now).await?;
    }
    unit.append_leaf(&record::settled(request, "failed", &hash, &block, "0", now)?).await?;
    let ended = TransactionRow { ending: Some(Ending::Failed), failure: Some(failure), ..row };
    unit.append_event(&record::status_event(&ended, Status::Failed, event_id, now)).await?;
    Ok(true)
}

fn change(
    row: &TransactionRow,
    status: Status,
    ending: Ending,
    failure: Option<Failure>,
    at: Timestamp,
) -> StatusChange {
    let (id, version) = (row.new.id, row.version);
    StatusChange { id, version, status, mined: None, ending: Some(ending), failure, at }
}

async fn orphan(unit: &mut dyn Unit, plan: &Plan, finding: &Finding) -> Result<bool, StoreError> {
    let Some(mined) = &finding.mined else {
        return Ok(false);
    };
    let orphan = Orphan {
        chain: plan.account.chain.id,
        address: plan.account.address,
        nonce: finding.nonce,
        hash: mined.hash,
        to: mined.to,
        value: Amount::new(mined.value),
        data: mined.data.clone(),
        raw: finding.found.as_ref().and(mined.raw.clone()),
        claimed_by: None,
    };
    unit.insert_orphan(&orphan, plan.now).await
}

/// Closes the unclaimed orphans of an account. Answers how many.
///
/// # Errors
/// When the store does not answer.
pub async fn close_orphans(order: &Order<'_>, account: &Account) -> Result<u64, AppError> {
    let (chain, address) = (account.chain.id, account.address);
    let subject = format!("{chain}:{address:#x}");
    let leaf = Arc::new(record::orphans_closed(&subject, order.reason, order.clock.now())?);
    let closed = unit(order.store, "close_orphans", move |unit| {
        let leaf = leaf.clone();
        Box::pin(async move {
            let closed = unit.close_orphans(chain, address).await?;
            if closed == 0 {
                return Ok(End::Rollback(0));
            }
            unit.append_leaf(&leaf).await?;
            Ok(End::Commit(closed))
        })
    })
    .await?;
    Ok(closed)
}

/// States the lost checkpoint in the log that goes on without it, before the signer forgets it.
///
/// # Errors
/// When the store does not answer.
pub async fn declare_lost(order: &Order<'_>, lost: &Lost) -> Result<(), AppError> {
    let leaf = Arc::new(record::checkpoint_lost(lost, order.reason, order.clock.now())?);
    unit(order.store, "declare_lost", move |unit| {
        let leaf = leaf.clone();
        Box::pin(async move { Ok(End::Commit(unit.append_leaf(&leaf).await?)) })
    })
    .await?;
    crate::failpoint!("reconcile.after_declared");
    Ok(())
}

/// Servers' leases that have not ended, where several servers may work.
///
/// # Errors
/// When the store does not answer.
pub async fn live_servers(order: &Order<'_>) -> Result<i64, AppError> {
    if order.store.is_alone() {
        // Nobody else has the file; what a killed server left behind says nothing.
        return Ok(0);
    }
    let now = order.clock.now();
    Ok(look(order.store, "live_leases", move |unit| {
        Box::pin(async move { unit.live_leases(now).await })
    })
    .await?)
}

/// Lets the server go on, with this copy of the database. `false` if it is another copy, or waits for
/// something else, than when the accounts were looked at.
///
/// # Errors
/// When the store does not answer.
pub async fn lift(order: &Order<'_>, before: &Standing) -> Result<bool, AppError> {
    if suspension::standing(order.store).await? != *before {
        return Ok(false);
    }
    let leaf = Arc::new(record::resumed(order.reason, order.clock.now())?);
    let before = Arc::new(before.clone());
    let lifted = unit(order.store, "lift_suspension", move |unit| {
        let (leaf, before) = (leaf.clone(), before.clone());
        Box::pin(async move {
            if unit.suspension().await? != before.suspension {
                return Ok(End::Rollback(false));
            }
            if let Some(identity) = &before.identity {
                unit.set_meta(DATABASE_IDENTITY, identity).await?;
            }
            if before.suspension.is_some() {
                unit.lift_suspension().await?;
                unit.append_leaf(&leaf).await?;
            }
            Ok(End::Commit(true))
        })
    })
    .await?;
    crate::failpoint!("reconcile.after_lifted");
    Ok(lifted)
}

/// Sends what was told as final and is gone to all nodes again, so that its nonce does not stay empty and what
/// was told becomes so once more. Answers what the nodes said, by nonce.
pub async fn send_again(port: &dyn Chain, account: &Account) -> Vec<String> {
    let mut told = Vec::new();
    for finding in &account.findings {
        if let Some(raw) = &finding.again {
            let (_, said) = port.broadcast_told(raw).await;
            told.push(format!("nonce {} was sent again ({said})", finding.nonce));
        }
    }
    told
}

/// Lets a chain go on that was reorganised below its finality: from now on its newest final block, by the word
/// of the first node that answers, is what later blocks must continue.
///
/// # Errors
/// When the store does not answer, or no node does.
pub async fn release_chain(
    order: &Order<'_>,
    port: &dyn Chain,
    still: &Standstill,
) -> Result<(), AppError> {
    let last_final = port.block(BlockAt::Final).await?;
    let anchor = last_final.map(|block| (block.number, block.hash));
    let id = still.chain.id;
    let leaf = record::chain_resumed(still, anchor, order.reason, order.clock.now())?;
    let leaf = Arc::new(leaf);
    unit(order.store, "release_chain", move |unit| {
        let leaf = leaf.clone();
        Box::pin(async move {
            unit.replace_anchor(id, anchor).await?;
            unit.append_leaf(&leaf).await?;
            Ok(End::Commit(()))
        })
    })
    .await?;
    crate::failpoint!("reconcile.after_chain");
    Ok(())
}
