//! Follow transactions until their block is final: receipts of all attempts, resends, the end.

use crate::app::inclusion::{self, Elsewhere, RowLook};
use crate::app::outbid::{Version, no_op_type, outbid};
use crate::app::sign::Signed;
use crate::app::{
    App, AppError, ChainRuntime, ChainSettings, bump, chains, finality, lease, read, record, send,
    waiting,
};
use crate::core::id::RequestId;
use crate::core::time::Timestamp;
use crate::core::tx::state::Status;
use crate::core::tx::step::{
    AttemptView, ChainLook, Step, TransactionView, ending, sendable, step,
};
use crate::ports::chain::{Claim, Found, Receipt, Sought};
use crate::ports::store::{
    AttemptRow, End, Lease, MinedRow, Sent, Settlement, StatusChange, TransactionRow, Wait,
    is_no_op, look,
};
use alloy::primitives::Address;
use std::sync::Arc;

/// How long the chain must say that somebody else used a nonce of ours before we believe it: its nodes may
/// be at different blocks for a while.
const FOREIGN_AFTER_MS: i64 = 60_000;

/// How many mined transactions of an account are looked at, of the oldest and of the newest.
const MINED_EACH: usize = 32;

/// How long beyond its time a replacement waits for a block that another node says it has.
const ELSEWHERE_MS: i64 = 60_000;

/// Looks once at every transaction of an account that has a nonce and no end, and does what is due.
///
/// # Errors
/// When the store or the nodes do not answer. The next look goes on.
pub async fn follow(app: &App, chain: &ChainRuntime, lease: &Lease) -> Result<(), AppError> {
    let (id, address) = (chain.settings.id, lease.address);
    let open = look(&*app.store, "open_transactions", move |unit| {
        Box::pin(async move {
            let mut open = Vec::new();
            for row in unit.open_of(id, address).await? {
                let attempts = unit.attempts(row.new.id).await?;
                open.push((row, attempts));
            }
            Ok(open)
        })
    })
    .await?;
    if open.is_empty() {
        return Ok(());
    }
    chains::verify(app, chain).await?;
    let open = of_one_look(open);
    let sought: Vec<Sought> =
        open.iter().map(|(row, attempts)| inclusion::sought(row, attempts)).collect();
    // All below the lowest nonce that is open has come to its end.
    let final_below = sought.iter().map(|one| one.nonce).min().unwrap_or(0);
    let looks = inclusion::of_account(chain, address, &sought, final_below).await?;
    for (((row, attempts), sought), look) in open.iter().zip(&sought).zip(looks) {
        if !lease::is_kept(app, chain, lease).await? {
            return Ok(());
        }
        if let Err(error) = follow_one(app, chain, lease, (row, attempts), sought, look).await {
            // One that cannot be read now must not keep the others waiting.
            tracing::warn!(request = %row.new.id, %error, "could not follow");
        }
    }
    Ok(())
}

/// All that is not mined, and of what is mined and not final the oldest, which end first, and the newest, which a
/// reorganisation takes first: a look stays bounded however long the chain's finality stands still.
fn of_one_look(
    open: Vec<(TransactionRow, Vec<AttemptRow>)>,
) -> Vec<(TransactionRow, Vec<AttemptRow>)> {
    let mined = open.iter().filter(|(row, _)| row.mined.is_some()).count();
    let middle = MINED_EACH..mined.saturating_sub(MINED_EACH);
    let mut place = 0_usize;
    let is_left = |(row, _): &(TransactionRow, Vec<AttemptRow>)| {
        if row.mined.is_none() {
            return true;
        }
        let left = !middle.contains(&place);
        place = place.saturating_add(1);
        left
    };
    let mut open = open;
    open.retain(is_left);
    open
}

/// Looks at one transaction now, without waiting for the next look at its account; if another process works
/// the account, its next look does.
///
/// # Errors
/// When the store or the nodes do not answer. The next look goes on.
pub(crate) async fn follow_up(app: &App, id: RequestId) -> Result<(), AppError> {
    let found = read::transaction(app, id, None).await?;
    let Some(chain) = app.chain_of(found.row.new.intent.chain.id) else {
        return Ok(());
    };
    let Some(lease) = lease::hold(app, chain, found.row.new.address).await? else {
        return Ok(());
    };
    chains::verify(app, chain).await?;
    let (row, attempts) = (&found.row, found.attempts.as_slice());
    let sought = inclusion::sought(row, attempts);
    let one = std::slice::from_ref(&sought);
    let mut looks = inclusion::of_account(chain, row.new.address, one, 0).await?;
    match looks.pop() {
        Some(look) => follow_one(app, chain, &lease, (row, attempts), &sought, look).await,
        None => Ok(()),
    }
}

async fn follow_one(
    app: &App,
    chain: &ChainRuntime,
    lease: &Lease,
    (row, attempts): (&TransactionRow, &[AttemptRow]),
    sought: &Sought,
    mut look: RowLook,
) -> Result<(), AppError> {
    let now = app.clock.now();
    chain.saw_final(look.last_final.map(|block| block.number));
    let nonce = row.nonce.ok_or_else(|| AppError::internal("an open transaction has no nonce"))?;
    let mut view = view(row, nonce, attempts, &chain.settings);
    view.cap = bump::cap(app, chain, (row, attempts), view.cap, now).await;
    let pace = chain.settings.pace;
    let view = waiting::behind(app, row, view, look.nonce_latest, chain).await?;
    let signed_at = attempts.last().and_then(|last| last.signed_at);
    let waited = |ms: i64| signed_at.is_some_and(|at| now.since(at) >= ms);
    let ends = ending(now, &view, pace).is_some();
    let is_due = |latest: u64| ends || (latest == nonce && waited(pace.resend_after_ms));
    let mut due = is_due(look.nonce_latest);
    if look.found == Found::Nothing && (due || look.nonce_latest > nonce) {
        match inclusion::elsewhere(chain, row.new.address, sought, &look).await {
            Elsewhere::Nothing => {}
            // A node that is alone with what it says holds nothing up for ever.
            Elsewhere::Wait => due &= waited(pace.resend_after_ms.saturating_add(ELSEWHERE_MS)),
            Elsewhere::Overruled(other) => {
                look = *other;
                due = is_due(look.nonce_latest);
            }
        }
    }
    let included = look.inclusion(row);
    // Without a market nothing new is signed.
    let market = if included.is_none() && due { chain.market(now).await.ok() } else { None };
    let chain_look = ChainLook {
        inclusion: included,
        displaced: look.found == Found::Displaced,
        nonce_latest: look.nonce_latest,
        nonce_final: look.nonce_final,
        final_number: look.last_final.map_or(0, |block| block.number),
        market,
    };
    let due = step(now, &view, &chain_look, pace);
    let due = believed(app, chain, (row.new.address, sought), &look, due).await?;
    if due != Step::ForeignNonce {
        chain.not_foreign(row.new.id);
    }
    perform(app, chain, lease, (row, attempts), &view, due, look.receipt().cloned()).await
}

/// What of a step may be done: nothing ends by one node's word alone, and nothing is signed, sent or ended on a
/// chain that stands still.
async fn believed(
    app: &App,
    chain: &ChainRuntime,
    (address, sought): (Address, &Sought),
    look: &RowLook,
    due: Step,
) -> Result<Step, AppError> {
    if finality::stands_still(app, chain).await?.is_some() && !matches!(due, Step::Mined(..)) {
        return Ok(Step::Wait);
    }
    let is_believed = match &due {
        // An end without its receipt would settle nothing.
        Step::End { .. } => match look.receipt() {
            Some(receipt) => finality::may_end(app, chain, receipt, look.node).await?,
            None => false,
        },
        Step::ForeignNonce => {
            let claim = Claim::Foreign {
                address,
                sought: sought.clone(),
                final_number: look.last_final.map_or(0, |block| block.number),
            };
            finality::is_agreed(app, chain, &claim, look.node).await
        }
        _ => true,
    };
    Ok(if is_believed { due } else { Step::Wait })
}

/// What deciding needs to know.
pub(crate) fn view(
    row: &TransactionRow,
    nonce: u64,
    attempts: &[AttemptRow],
    settings: &ChainSettings,
) -> TransactionView {
    let view = |attempt: &AttemptRow| AttemptView {
        number: attempt.number,
        no_op: attempt.is_no_op(),
        hash: attempt.hash,
        fees: attempt.fees,
        signed_at: attempt.signed_at,
        sent_at: attempt.sent_at,
        accepted: attempt.accepted_at.is_some(),
        unfunded: attempt.answer.as_deref() == Some(Sent::Unfunded.name()),
        refused_since: attempt.refused_since,
        refused_at: attempt.refused_at,
    };
    TransactionView {
        status: row.status,
        ending: row.ending,
        nonce,
        tx_type: row.new.intent.tx_type,
        no_op_type: no_op_type(row, settings),
        cap: row.new.fee_cap.at_most(settings.cap),
        chain_cap: settings.cap,
        not_after: row.new.intent.not_after,
        attempts: attempts.iter().map(view).collect(),
        mined_in: row.mined.as_ref().map(|mined| mined.block_hash),
        blocks_others: false,
        capped_since: row.waits.as_ref().filter(|it| it.code == Wait::AT_CAP).map(|it| it.since),
    }
}

async fn perform(
    app: &App,
    chain: &ChainRuntime,
    lease: &Lease,
    (row, attempts): (&TransactionRow, &[AttemptRow]),
    view: &TransactionView,
    due: Step,
    receipt: Option<Receipt>,
) -> Result<(), AppError> {
    match due {
        Step::Wait => Ok(()),
        Step::Rebroadcast(number) => resend(app, row, attempts, number).await,
        Step::AtCap(number) => {
            tracing::warn!(request = %row.new.id, "not mined, and its fees are at the cap");
            metrics::counter!("claviger_attempts_total", "kind" => "at_cap").increment(1);
            resend(app, row, attempts, number).await
        }
        Step::Replace(fees) => {
            let version = Version::Asked("replacement");
            outbid(app, chain, lease, (row, attempts), version, fees, None).await.map(|_| ())
        }
        Step::NoOp(ending, fees) => {
            if row.ending.is_none() {
                tracing::warn!(request = %row.new.id, ?ending, "a no-op is to take its nonce");
            }
            let version = Version::NoOp(ending);
            outbid(app, chain, lease, (row, attempts), version, fees, None).await.map(|_| ())
        }
        Step::Mined(_, status) | Step::End { status, .. } => {
            change(app, lease, (row, attempts), status, receipt).await.map(|_| ())
        }
        Step::Reopen(status) => {
            let reopened = change(app, lease, (row, attempts), status, None).await?;
            let newest = sendable(app.clock.now(), view, chain.settings.pace);
            match newest.filter(|_| reopened) {
                Some(attempt) => resend(app, row, attempts, attempt.number).await,
                None => Ok(()),
            }
        }
        Step::ForeignNonce => {
            let now = app.clock.now();
            let since = chain.foreign_since(row.new.id, now);
            if now.since(since) < FOREIGN_AFTER_MS {
                return Ok(());
            }
            foreign(app, lease, row, now).await
        }
    }
}

async fn resend(
    app: &App,
    row: &TransactionRow,
    attempts: &[AttemptRow],
    number: i64,
) -> Result<(), AppError> {
    let found = attempts.iter().find(|attempt| attempt.number == number && attempt.raw.is_some());
    match found {
        Some(attempt) => {
            let signed = Signed { request: row.new.id, attempt: attempt.clone() };
            send::send(app, &signed).await
        }
        None => Ok(()),
    }
}

/// Records a change of status; an end settles what was held.
async fn change(
    app: &App,
    lease: &Lease,
    (row, attempts): (&TransactionRow, &[AttemptRow]),
    status: Status,
    receipt: Option<Receipt>,
) -> Result<bool, AppError> {
    let now = app.clock.now();
    if !row.status.may_become(status) {
        return Err(AppError::Internal(format!("{} cannot become {status}", row.status)));
    }
    let fee_paid = receipt.as_ref().and_then(Receipt::fee_paid);
    // A no-op moves nothing but its fee.
    let no_op =
        receipt.as_ref().is_some_and(|receipt| is_no_op(attempts, receipt.transaction_hash));
    let value_moved = receipt.as_ref().is_some_and(|receipt| receipt.success) && !no_op;
    let settlement = Settlement { value_moved, fee_paid, fee_from_value: no_op };
    let change = StatusChange {
        id: row.new.id,
        version: row.version,
        status,
        mined: receipt.as_ref().map(mined_row),
        ending: None,
        failure: None,
        at: now,
    };
    // A no-op that is mined is no news until it is final.
    let is_news = status != row.status || status != Status::Cancelling;
    let event = is_news.then(|| {
        let told = change.mined.as_ref().map(|mined| (mined, no_op));
        record::mined_event(row, status, told, app.entropy.uuid().to_string(), now)
    });
    let leaf = match &receipt {
        Some(receipt) if status.is_end() => Some(record::settled(
            row.new.id,
            status.name(),
            &format!("{:#x}", receipt.transaction_hash),
            &format!("{:#x}", receipt.block_hash),
            &fee_paid.unwrap_or_default().to_string(),
            now,
        )?),
        _ => None,
    };
    let chain = row.new.intent.chain.id;
    let work = Arc::new((change, event, leaf, settlement));
    let stored = lease::fenced(app, lease, "change_status", move |unit| {
        let work = work.clone();
        Box::pin(async move {
            let (change, event, leaf, settlement) = &*work;
            if !unit.advance(change).await? {
                return Ok(End::Rollback(false));
            }
            if let Some(leaf) = leaf {
                let block = change.mined.as_ref().map(MinedRow::block);
                if !finality::anchor_end(unit, chain, block).await? {
                    return Ok(End::Rollback(false));
                }
                unit.settle(&change.id.to_string(), *settlement, change.at).await?;
                unit.append_leaf(leaf).await?;
            }
            if let Some(event) = event {
                unit.append_event(event).await?;
            }
            Ok(End::Commit(true))
        })
    })
    .await?;
    let stored = stored == Some(true);
    crate::failpoint!("follow.after_change");
    app.changed_one(row.new.id);
    if stored {
        tracing::info!(request = %row.new.id, %status, "transaction changed");
    }
    Ok(stored)
}

fn mined_row(receipt: &Receipt) -> MinedRow {
    MinedRow {
        transaction_hash: receipt.transaction_hash,
        block_hash: receipt.block_hash,
        block_number: receipt.block_number,
        gas_used: receipt.gas_used,
        effective_gas_price: receipt.effective_gas_price,
        success: receipt.success,
    }
}

/// Somebody else used a nonce of ours: the lane stands still, and nothing is issued again by itself.
async fn foreign(
    app: &App,
    lease: &Lease,
    row: &TransactionRow,
    now: Timestamp,
) -> Result<(), AppError> {
    let (chain, address) = (row.new.intent.chain.id, row.new.address);
    let reason = format!(
        "nonce {} of request {} is final, and none of our transactions used it",
        row.nonce.unwrap_or_default(),
        row.new.id
    );
    let leaf = Arc::new(record::alarm(row.new.id, &reason, now)?);
    let told = reason.clone();
    let halted = lease::fenced(app, lease, "halt_lane", move |unit| {
        let (reason, leaf) = (reason.clone(), leaf.clone());
        Box::pin(async move {
            let lane = unit.lane(chain, address).await?;
            if lane.is_some_and(|lane| lane.halted.is_some()) {
                return Ok(End::Rollback(false));
            }
            unit.halt_lane(chain, address, &reason).await?;
            unit.append_leaf(&leaf).await?;
            Ok(End::Commit(true))
        })
    })
    .await?;
    crate::failpoint!("follow.after_halt");
    if halted == Some(true) {
        tracing::error!(request = %row.new.id, reason = told, "the lane was halted");
    }
    Ok(())
}
