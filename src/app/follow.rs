//! Follow transactions until their block is final: receipts of all attempts, resends, the end.

use crate::app::outbid::{Version, no_op_type, outbid};
use crate::app::sign::Signed;
use crate::app::{App, AppError, ChainRuntime, ChainSettings, chains, read, record, send, waiting};
use crate::core::amount::Amount;
use crate::core::id::RequestId;
use crate::core::time::Timestamp;
use crate::core::tx::state::Status;
use crate::core::tx::step::{
    AttemptView, ChainLook, Inclusion, Step, TransactionView, ending, sendable, step,
};
use crate::ports::chain::{BlockAt, ChainError, Receipt};
use crate::ports::store::{
    AttemptRow, End, MinedRow, Sent, Settlement, StatusChange, TransactionRow, Wait, is_no_op,
    look, unit,
};
use alloy::primitives::Address;
use std::collections::HashMap;
use std::sync::Arc;

/// Accounts' nonces at the head: one reading a look.
type Nonces = HashMap<Address, u64>;

/// How long the chain must say that somebody else used a nonce of ours before we believe it: its nodes may
/// be at different blocks for a while.
const FOREIGN_AFTER_MS: i64 = 60_000;

/// Looks once at every transaction of a chain that has a nonce and no end, and does what is due.
///
/// # Errors
/// When the store or the nodes do not answer. The next look goes on.
pub async fn follow(app: &App, chain: &ChainRuntime) -> Result<(), AppError> {
    let id = chain.settings.id;
    let open = look(&*app.store, "open_transactions", move |unit| {
        Box::pin(async move {
            let mut open = Vec::new();
            for row in unit.open_transactions(id).await? {
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
    let last_final = chain.port.block(BlockAt::Final).await?;
    let final_number = last_final.map(|block| block.number);
    let mut nonces = Nonces::new();
    for (row, attempts) in open {
        let latest = nonce_of(chain, &mut nonces, row.new.address).await?;
        if let Err(error) = follow_one(app, chain, &row, &attempts, latest, final_number).await {
            // One that cannot be read now must not keep the others waiting.
            tracing::warn!(request = %row.new.id, %error, "could not follow");
        }
    }
    Ok(())
}

async fn nonce_of(
    chain: &ChainRuntime,
    known: &mut Nonces,
    address: Address,
) -> Result<u64, ChainError> {
    if let Some(nonce) = known.get(&address) {
        return Ok(*nonce);
    }
    let latest = chain.port.nonce(address, BlockAt::Latest).await?;
    known.insert(address, latest);
    Ok(latest)
}

/// Looks at one transaction now, without waiting for the next look at its chain.
///
/// # Errors
/// When the store or the nodes do not answer. The next look goes on.
pub(crate) async fn follow_up(app: &App, id: RequestId) -> Result<(), AppError> {
    let found = read::transaction(app, id, None).await?;
    let Some(chain) = app.chain_of(found.row.new.intent.chain.id) else {
        return Ok(());
    };
    chains::verify(app, chain).await?;
    let last_final = chain.port.block(BlockAt::Final).await?;
    let latest = chain.port.nonce(found.row.new.address, BlockAt::Latest).await?;
    let final_number = last_final.map(|block| block.number);
    follow_one(app, chain, &found.row, &found.attempts, latest, final_number).await
}

async fn follow_one(
    app: &App,
    chain: &ChainRuntime,
    row: &TransactionRow,
    attempts: &[AttemptRow],
    nonce_latest: u64,
    final_number: Option<u64>,
) -> Result<(), AppError> {
    let now = app.clock.now();
    chain.saw_final(final_number);
    let nonce = row.nonce.ok_or_else(|| AppError::internal("an open transaction has no nonce"))?;
    let view = view(row, nonce, attempts, &chain.settings);
    let pace = chain.settings.pace;
    let view = waiting::behind(app, row, view, nonce_latest, pace).await?;
    let looks_mined = nonce_latest > nonce || row.mined.is_some();
    let receipt = if looks_mined { inclusion(chain, attempts).await? } else { None };
    let overdue = attempts
        .last()
        .and_then(|last| last.signed_at)
        .is_some_and(|at| now.since(at) >= pace.resend_after_ms);
    let due = (overdue && nonce_latest == nonce) || ending(now, &view, pace).is_some();
    // Without a market nothing new is signed.
    let market = if receipt.is_none() && due && !is_mined_elsewhere(chain, attempts).await {
        chain.market(now).await.ok()
    } else {
        None
    };
    // A node may have forgotten the state of its final block: then nothing is concluded from it.
    let nonce_final = match final_number {
        Some(number) if receipt.is_none() && nonce_latest > nonce => {
            chain.port.nonce(row.new.address, BlockAt::Number(number)).await.ok()
        }
        _ => None,
    };
    let displaced = match &row.mined {
        Some(mined) if receipt.is_none() => {
            let block = chain.port.block(BlockAt::Number(mined.block_number)).await?;
            block.is_some_and(|block| block.hash != mined.block_hash)
        }
        _ => false,
    };
    let look = ChainLook {
        inclusion: receipt.as_ref().map(included),
        displaced,
        nonce_latest,
        nonce_final,
        final_number: final_number.unwrap_or(0),
        market,
    };
    let due = step(now, &view, &look, pace);
    if due != Step::ForeignNonce {
        chain.not_foreign(row.new.id);
    }
    perform(app, chain, (row, attempts), &view, due, receipt).await
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

/// The receipt of whichever attempt is mined in a canonical block.
async fn inclusion(
    chain: &ChainRuntime,
    attempts: &[AttemptRow],
) -> Result<Option<Receipt>, ChainError> {
    for hash in attempts.iter().rev().filter_map(|attempt| attempt.hash) {
        if let Some(receipt) = canonical_receipt(chain, hash).await? {
            return Ok(Some(receipt));
        }
    }
    Ok(None)
}

/// Whether any node has an attempt mined in a block that the first node has too, or has not reached yet: it
/// is behind, and nothing new is signed. In a block in whose place the first node has another, it is on a
/// fork, or lies, and must not keep the transaction from going on.
async fn is_mined_elsewhere(chain: &ChainRuntime, attempts: &[AttemptRow]) -> bool {
    for hash in attempts.iter().rev().filter_map(|attempt| attempt.hash) {
        let Ok(Some(receipt)) = chain.port.receipt_anywhere(hash).await else {
            continue;
        };
        match chain.port.block(BlockAt::Number(receipt.block_number)).await {
            Ok(Some(block)) if block.hash != receipt.block_hash => {
                tracing::warn!(%hash, "a node has it mined in a block of another fork");
            }
            _ => return true,
        }
    }
    false
}

/// A transaction's receipt, if its block is on the canonical chain.
pub(crate) async fn canonical_receipt(
    chain: &ChainRuntime,
    hash: alloy::primitives::B256,
) -> Result<Option<Receipt>, ChainError> {
    let Some(receipt) = chain.port.receipt(hash).await? else {
        return Ok(None);
    };
    let block = chain.port.block(BlockAt::Number(receipt.block_number)).await?;
    let canonical = block.is_some_and(|block| block.hash == receipt.block_hash);
    Ok(Some(receipt).filter(|receipt| canonical && receipt.transaction_hash == hash))
}

const fn included(receipt: &Receipt) -> Inclusion {
    Inclusion {
        hash: receipt.transaction_hash,
        block_hash: receipt.block_hash,
        block_number: receipt.block_number,
        success: receipt.success,
    }
}

async fn perform(
    app: &App,
    chain: &ChainRuntime,
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
            outbid(app, chain, (row, attempts), version, fees, None).await.map(|_| ())
        }
        Step::NoOp(ending, fees) => {
            if row.ending.is_none() {
                tracing::warn!(request = %row.new.id, ?ending, "a no-op is to take its nonce");
            }
            let version = Version::NoOp(ending);
            outbid(app, chain, (row, attempts), version, fees, None).await.map(|_| ())
        }
        Step::Mined(_, status) | Step::End { status, .. } => {
            change(app, row, attempts, status, receipt).await.map(|_| ())
        }
        Step::Reopen(status) => {
            let reopened = change(app, row, attempts, status, None).await?;
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
            foreign(app, row, now).await
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
    row: &TransactionRow,
    attempts: &[AttemptRow],
    status: Status,
    receipt: Option<Receipt>,
) -> Result<bool, AppError> {
    let now = app.clock.now();
    if !row.status.may_become(status) {
        return Err(AppError::Internal(format!("{} cannot become {status}", row.status)));
    }
    let fee_paid = receipt.as_ref().and_then(|receipt| {
        Amount::from(receipt.gas_used).checked_mul(Amount::from(receipt.effective_gas_price))
    });
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
    let event =
        is_news.then(|| record::status_event(row, status, app.entropy.uuid().to_string(), now));
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
    let work = Arc::new((change, event, leaf, settlement));
    let stored = unit(&*app.store, "change_status", move |unit| {
        let work = work.clone();
        Box::pin(async move {
            let (change, event, leaf, settlement) = &*work;
            if !unit.advance(change).await? {
                return Ok(End::Rollback(false));
            }
            if let Some(leaf) = leaf {
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
async fn foreign(app: &App, row: &TransactionRow, now: Timestamp) -> Result<(), AppError> {
    let (chain, address) = (row.new.intent.chain.id, row.new.address);
    let reason = format!(
        "nonce {} of request {} is final, and none of our transactions used it",
        row.nonce.unwrap_or_default(),
        row.new.id
    );
    let leaf = Arc::new(record::alarm(row.new.id, &reason, now)?);
    let told = reason.clone();
    let halted = unit(&*app.store, "halt_lane", move |unit| {
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
    if halted {
        tracing::error!(request = %row.new.id, reason = told, "the lane was halted");
    }
    Ok(())
}
