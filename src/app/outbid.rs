//! Decide another version at the nonce that a transaction has: what was asked at higher fees, or a no-op;
//! then sign it and send it. Whichever is mined wins.

use crate::app::{
    App, AppError, ChainRuntime, ChainSettings, lane, record, send, sign, suspension,
};
use crate::core::audit::EncodedLeaf;
use crate::core::evm::transaction::{NO_OP_GAS, NoOp, UnsignedTransaction};
use crate::core::intent::{Fees, TxType};
use crate::core::time::Timestamp;
use crate::core::tx::state::{Ending, Status};
use crate::ports::chain::CallRequest;
use crate::ports::store::{
    AttemptRow, End, Failure, NO_OP, NewAttempt, NewEvent, StatusChange, StoreError,
    TransactionRow, Unit, unit,
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
    row: TransactionRow,
    attempt: NewAttempt,
    decided: EncodedLeaf,
    /// An operator's word, where there was one.
    instructed: Option<EncodedLeaf>,
    /// The change to `cancelling`, and its event, where this begins it.
    begins: Option<(StatusChange, NewEvent)>,
}

/// Decides, signs and sends. `false` if the transaction has moved on meanwhile, or the server waits for an
/// operator: nothing was decided.
///
/// # Errors
/// When the store, or the HSM, does not answer. What was decided is signed later.
pub async fn outbid(
    app: &App,
    chain: &ChainRuntime,
    (row, attempts): (&TransactionRow, &[AttemptRow]),
    version: Version,
    fees: Fees,
    instructed: Option<EncodedLeaf>,
) -> Result<bool, AppError> {
    let now = app.clock.now();
    if suspension::current(&*app.store).await?.is_some() {
        return send_again(app, chain, (row, attempts), now).await.map(|()| false);
    }
    let last = attempts.last().map_or(0, |attempt| attempt.number);
    let number = last.checked_add(1).ok_or_else(|| AppError::internal("too many attempts"))?;
    let gas = match version {
        Version::Asked(_) => row.new.intent.gas,
        Version::NoOp(_) => no_op_gas(chain, row).await,
    };
    let shape = NoOp {
        tx_type: no_op_type(row, &chain.settings),
        chain: row.new.intent.chain.id,
        account: row.new.address,
        gas,
    };
    let what = (version, shape);
    let decision = Arc::new(decision(app, (row, attempts), what, fees, instructed, now)?);
    let decided = unit(&*app.store, "decide_version", move |unit| {
        let decision = decision.clone();
        Box::pin(async move {
            let stored = store(unit, &decision).await?;
            Ok(if stored { End::Commit(true) } else { End::Rollback(false) })
        })
    })
    .await?;
    if !decided {
        return Ok(false);
    }
    app.changed_one(row.new.id);
    crate::failpoint!("outbid.after_decided");
    if let Some(signed) = sign::sign(app, row.new.id, number).await? {
        send::send(app, chain, &signed).await?;
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
    send::send(app, chain, &signed).await
}

fn decision(
    app: &App,
    (row, attempts): (&TransactionRow, &[AttemptRow]),
    (version, shape): (Version, NoOp),
    fees: Fees,
    instructed: Option<EncodedLeaf>,
    now: Timestamp,
) -> Result<Decision, AppError> {
    let number = attempts.last().map_or(0, |attempt| attempt.number).saturating_add(1);
    let nonce = row.nonce.ok_or_else(|| AppError::internal("another version needs a nonce"))?;
    let intent = &row.new.intent;
    let (attempt, decided, begins) = match version {
        Version::Asked(reason) => {
            let unsigned = UnsignedTransaction::from_intent(intent, nonce, fees);
            let attempt = lane::new_attempt(row, &unsigned, number, reason, now)?;
            let leaf = record::decided(&attempt, &row.new.decision_json)?;
            (attempt, leaf, None)
        }
        Version::NoOp(ending) => {
            let failure = (ending == Ending::Failed).then(|| refused(attempts));
            let unsigned = UnsignedTransaction::no_op(shape, nonce, fees);
            let attempt = lane::new_attempt(row, &unsigned, number, NO_OP, now)?;
            let why = record::no_op_decision(ending, failure.as_ref().or(row.failure.as_ref()));
            let leaf = record::decided(&attempt, &why)?;
            let begins = row.ending.is_none().then(|| begin(app, row, ending, failure, now));
            (attempt, leaf, begins)
        }
    };
    Ok(Decision { row: row.clone(), attempt, decided, instructed, begins })
}

/// A no-op of the chain's own type can be outbid in its fee alone.
pub(crate) fn no_op_type(row: &TransactionRow, settings: &ChainSettings) -> TxType {
    match settings.tx_type {
        TxType::Eip1559 => TxType::Eip1559,
        TxType::Legacy | TxType::Eip2930 => row.new.intent.tx_type,
    }
}

/// What sending nothing to itself costs on this chain; the usual, if no node says.
async fn no_op_gas(chain: &ChainRuntime, row: &TransactionRow) -> u64 {
    let (account, nothing) = (row.new.address, (U256::ZERO, Bytes::new()));
    let call = CallRequest { from: account, to: Some(account), value: nothing.0, data: nothing.1 };
    match chain.port.estimate_gas(call).await {
        Ok(gas) => gas.clamp(NO_OP_GAS, NO_OP_GAS_MAX),
        Err(error) => {
            tracing::warn!(request = %row.new.id, %error, "the gas of a no-op is not known");
            NO_OP_GAS
        }
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
        failure,
        at: now,
    };
    let ends = TransactionRow { ending: Some(ending), ..row.clone() };
    let event =
        record::status_event(&ends, Status::Cancelling, app.entropy.uuid().to_string(), now);
    (change, event)
}

async fn store(unit: &mut dyn Unit, decision: &Decision) -> Result<bool, StoreError> {
    if unit.suspension().await?.is_some() {
        return Ok(false);
    }
    let id = decision.row.new.id;
    let Some(found) = unit.transaction(id).await? else {
        return Ok(false);
    };
    // Nobody may have ended it, seen it mined, or begun to cancel it since it was looked at.
    if found.version != decision.row.version || found.mined.is_some() {
        return Ok(false);
    }
    if decision.begins.is_none() && !unit.touch(id, decision.row.version).await? {
        return Ok(false);
    }
    if let Some((change, event)) = &decision.begins {
        if !unit.advance(change).await? {
            return Ok(false);
        }
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
