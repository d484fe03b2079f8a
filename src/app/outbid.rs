//! Decide another version at the nonce that a transaction has: what was asked at higher fees, or a no-op;
//! then sign it and send it. Whichever is mined wins.

use crate::app::{
    App, AppError, ChainRuntime, ChainSettings, finality, lane, lease, record, send, sign,
    suspension,
};
use crate::core::audit::EncodedLeaf;
use crate::core::evm::transaction::{NO_OP_GAS, NoOp, UnsignedTransaction};
use crate::core::intent::{Fees, TxType};
use crate::core::time::Timestamp;
use crate::core::tx::state::{Ending, Status};
use crate::ports::chain::CallRequest;
use crate::ports::store::{
    AttemptRow, End, Failure, Lease, NO_OP, NewAttempt, NewEvent, StatusChange, StoreError,
    TransactionRow, Unit,
};
use alloy::primitives::{Bytes, U256};
use std::sync::Arc;

/// No chain wants more for a transaction that does nothing; a node that says more is not believed.
const NO_OP_GAS_MAX: u64 = 1_000_000;

/// What the new version is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// What was asked, for this reason.
    Asked(&'static str),
    /// A no-op, for this reason.
    NoOp(Ending),
}

/// Everything that the unit writes.
struct Decision {
    /// The version of the transaction's row that it was decided from.
    version: i64,
    attempt: NewAttempt,
    decided: EncodedLeaf,
    /// An operator's word, where there was one.
    instructed: Option<EncodedLeaf>,
    /// The change to `cancelling`, and its event, where this begins it.
    begins: Option<(StatusChange, NewEvent)>,
}

/// Decides, signs and sends. `false` if the transaction has moved on meanwhile, its lane is another process's
/// by now, or the server waits for an operator: nothing was decided.
///
/// # Errors
/// When the store, or the HSM, does not answer. What was decided is signed later.
pub async fn outbid(
    app: &App,
    chain: &ChainRuntime,
    lease: &Lease,
    (row, attempts): (&TransactionRow, &[AttemptRow]),
    version: Version,
    fees: Fees,
    instructed: Option<EncodedLeaf>,
) -> Result<bool, AppError> {
    if row.mined.is_some() {
        return Ok(false);
    }
    if let Some(detail) = finality::stands_still(app, chain).await? {
        return Err(AppError::Conflict { detail, request: Some(row.new.id) });
    }
    let now = app.clock.now();
    if suspension::current(&*app.store).await?.is_some() {
        return send_again(app, chain, (row, attempts), now).await.map(|()| false);
    }
    let nonce = row.nonce.ok_or_else(|| AppError::internal("another version needs a nonce"))?;
    let unsigned = match version {
        Version::Asked(_) => UnsignedTransaction::from_intent(&row.new.intent, nonce, fees),
        Version::NoOp(_) => UnsignedTransaction::no_op(no_op(chain, row).await, nonce, fees),
    };
    let failure = failure(chain, (row, attempts), version, now).await;
    let (what, why) = ((version, &unsigned), (failure, instructed));
    let decision = decision(app, (row, attempts), what, why, now)?;
    // A refused no-op at its cap, for which the nodes want no other gas: its stored bytes go out again.
    let same = |last: &&AttemptRow| last.raw.is_some() && last.bytes == decision.attempt.bytes;
    if let Some(last) = attempts.last().filter(same) {
        let signed = sign::Signed { request: row.new.id, attempt: last.clone() };
        return send::send(app, &signed).await.map(|()| true);
    }
    let number = decision.attempt.number;
    let decision = Arc::new(decision);
    let decided = lease::fenced(app, lease, "decide_version", move |unit| {
        let decision = decision.clone();
        Box::pin(async move {
            let stored = store(unit, &decision).await?;
            Ok(if stored { End::Commit(true) } else { End::Rollback(false) })
        })
    })
    .await?;
    if decided != Some(true) {
        return Ok(false);
    }
    app.changed_one(row.new.id);
    crate::failpoint!("outbid.after_decided");
    if let Some(signed) = sign::sign(app, row.new.id, number).await? {
        send::send(app, &signed).await?;
    }
    Ok(true)
}

/// While the server waits for an operator nothing new is decided, and what there is goes out again.
async fn send_again(
    app: &App,
    chain: &ChainRuntime,
    (row, attempts): (&TransactionRow, &[AttemptRow]),
    now: Timestamp,
) -> Result<(), AppError> {
    let Some(newest) = attempts.iter().rev().find(|attempt| attempt.raw.is_some()) else {
        return Ok(());
    };
    let after_ms = chain.settings.pace.rebroadcast_after_ms;
    if newest.sent_at.is_some_and(|at| now.since(at) < after_ms) {
        return Ok(());
    }
    let signed = sign::Signed { request: row.new.id, attempt: newest.clone() };
    send::send(app, &signed).await
}

fn decision(
    app: &App,
    (row, attempts): (&TransactionRow, &[AttemptRow]),
    (version, unsigned): (Version, &UnsignedTransaction),
    (failure, instructed): (Option<Failure>, Option<EncodedLeaf>),
    now: Timestamp,
) -> Result<Decision, AppError> {
    let last = attempts.last().map_or(0, |attempt| attempt.number);
    let number = last.checked_add(1).ok_or_else(|| AppError::internal("too many attempts"))?;
    let (attempt, decided, begins) = match version {
        Version::Asked(reason) => {
            let attempt = lane::new_attempt(row, unsigned, number, reason, now)?;
            let leaf = record::decided(&attempt, &row.new.decision_json)?;
            (attempt, leaf, None)
        }
        Version::NoOp(ending) => {
            let attempt = lane::new_attempt(row, unsigned, number, NO_OP, now)?;
            let why = record::no_op_decision(ending, failure.as_ref().or(row.failure.as_ref()));
            let leaf = record::decided(&attempt, &why)?;
            let begins = row.ending.is_none().then(|| begin(app, row, ending, failure, now));
            (attempt, leaf, begins)
        }
    };
    Ok(Decision { version: row.version, attempt, decided, instructed, begins })
}

/// A no-op of the chain's own type can be outbid in its fee alone.
pub(crate) fn no_op_type(row: &TransactionRow, settings: &ChainSettings) -> TxType {
    match settings.tx_type {
        TxType::Eip1559 => TxType::Eip1559,
        TxType::Legacy | TxType::Eip2930 => row.new.intent.tx_type,
    }
}

/// Sending nothing to itself, with the gas that it costs on this chain; the usual, if no node says.
async fn no_op(chain: &ChainRuntime, row: &TransactionRow) -> NoOp {
    let account = row.new.address;
    let call =
        CallRequest { from: account, to: Some(account), value: U256::ZERO, data: Bytes::new() };
    let gas = match chain.port.estimate_gas(call).await {
        Ok(gas) => gas.clamp(NO_OP_GAS, NO_OP_GAS_MAX),
        Err(error) => {
            tracing::warn!(request = %row.new.id, %error, "the gas of a no-op is not known");
            NO_OP_GAS
        }
    };
    let tx_type = no_op_type(row, &chain.settings);
    NoOp { tx_type, chain: row.new.intent.chain.id, account, gas }
}

/// Why it fails, where it does.
async fn failure(
    chain: &ChainRuntime,
    (row, attempts): (&TransactionRow, &[AttemptRow]),
    version: Version,
    now: Timestamp,
) -> Option<Failure> {
    match version {
        Version::NoOp(Ending::Failed) => Some(refused(attempts)),
        Version::NoOp(Ending::Outpriced) if row.ending.is_none() => {
            let cap = row.new.fee_cap.at_most(chain.settings.cap).max_fee;
            let base_fee = chain.market(now).await.map_or_else(
                |_| "not known".to_owned(),
                |market| format!("{} wei per gas", market.base_fee),
            );
            let since = row.waits.as_ref().map_or_else(String::new, |wait| wait.since.to_string());
            let detail = format!(
                "its fee cap is {cap} wei per gas and the base fee is {base_fee}: it was not mined, and \
                 others of its account have waited behind it since {since}"
            );
            Some(Failure { code: "fee-cap-too-low".to_owned(), detail })
        }
        Version::NoOp(_) | Version::Asked(_) => None,
    }
}

/// What the nodes said last.
fn refused(attempts: &[AttemptRow]) -> Failure {
    let said = attempts.last().and_then(|attempt| attempt.refusal.clone());
    Failure { code: "refused-by-nodes".to_owned(), detail: said.unwrap_or_default() }
}

/// The change to `cancelling`.
pub(crate) fn begin(
    app: &App,
    row: &TransactionRow,
    ending: Ending,
    failure: Option<Failure>,
    now: Timestamp,
) -> (StatusChange, NewEvent) {
    let change = StatusChange {
        id: row.new.id,
        version: row.version,
        status: Status::Cancelling,
        mined: None,
        ending: Some(ending),
        failure: failure.clone(),
        at: now,
    };
    let failure = failure.or_else(|| row.failure.clone());
    let ends = TransactionRow { ending: Some(ending), failure, ..row.clone() };
    let event =
        record::status_event(&ends, Status::Cancelling, app.entropy.uuid().to_string(), now);
    (change, event)
}

async fn store(unit: &mut dyn Unit, decision: &Decision) -> Result<bool, StoreError> {
    if unit.suspension().await?.is_some() {
        return Ok(false);
    }
    // Nobody may have ended it, seen it mined, or begun to cancel it since it was looked at: each of these
    // moves its version on.
    let is_unmoved = match &decision.begins {
        Some((change, _)) => unit.advance(change).await?,
        None => unit.touch(decision.attempt.request, decision.version).await?,
    };
    if !is_unmoved {
        return Ok(false);
    }
    if let Some((_, event)) = &decision.begins {
        unit.append_event(event).await?;
    }
    if !unit.insert_attempt(&decision.attempt).await? {
        return Ok(false);
    }
    if let Some(leaf) = &decision.instructed {
        unit.append_leaf(leaf).await?;
    }
    unit.append_leaf(&decision.decided).await?;
    Ok(true)
}
