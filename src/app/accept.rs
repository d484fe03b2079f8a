//! Accept a transaction: facts, verdict, then one unit that binds the key, holds the spend and queues the
//! row. What was answered 2xx is never lost.

use crate::app::adopt::{self, OnChain};
use crate::app::ask::{self, Asked};
use crate::app::facts::{self, Unread};
use crate::app::key_scopes::{self, Keyed, Keys};
use crate::app::signers::{self, Purpose};
use crate::app::{App, AppError, ChainRuntime, clock_watch, record, source_gone};
use crate::core::amount::Amount;
use crate::core::evm::transaction::{DATA_BYTES_MAX, intrinsic_gas};
use crate::core::id::RequestId;
use crate::core::intent::{
    AccessListItem, EventSource, FeeAsk, Fees, Intent, TransactionIntent, TxType,
};
use crate::core::key::OperatorKey;
use crate::core::policy::{
    Bundle, Outcome, PolicyRequest, Reason, Verdict, evaluate, verdict::EventUse,
};
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use crate::core::tx::fee::{self, Market};
use crate::ports::chain::{CallRequest, ChainError};
use crate::ports::store::{
    DecisionSummary, End, Hold, KeyBinding, LimitExceeded, NewTransaction, StoreError, Suspension,
    TransactionRow, unit,
};
use alloy::primitives::{Address, B256, Bytes, U256};
use std::sync::Arc;

/// A caller's request for a transaction, parsed.
#[derive(Debug, Clone)]
pub struct AcceptCommand {
    /// Who asks.
    pub principal: Principal,
    /// The idempotency key.
    pub key: String,
    /// SHA-256 of what was asked.
    pub body_hash: B256,
    /// Chain name or CAIP-2 id.
    pub chain: String,
    /// Group, key id or address.
    pub signer: String,
    /// The envelope; the chain's if none.
    pub tx_type: Option<TxType>,
    /// The recipient.
    pub to: Option<Address>,
    /// Native value, in wei.
    pub value: Amount,
    /// Calldata.
    pub data: Bytes,
    /// Gas limit; estimated if none.
    pub gas: Option<u64>,
    /// The caller's caps.
    pub max_fee: Option<u128>,
    /// The caller's caps.
    pub max_priority_fee: Option<u128>,
    /// EIP-2930 access list.
    pub access_list: Vec<AccessListItem>,
    /// Never signed after this.
    pub not_after: Option<Timestamp>,
    /// The event it answers.
    pub source: Option<EventSource>,
    /// The caller's metadata (a JSON object).
    pub metadata_json: String,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// A new transaction.
    New(RequestId),
    /// The same request was accepted before.
    Before(RequestId),
}

/// Accepts a transaction, or says why not. On `Ok` it is committed: with its spend held, or waiting for time or
/// people with nothing held.
///
/// # Errors
/// An invalid field, a reused key, a denial (which is recorded), or something that is not available.
pub async fn accept(app: &App, command: AcceptCommand) -> Result<Accepted, AppError> {
    let before = key_scopes::bound(app, &command.principal, &command.key).await?;
    let renews = match before {
        None => None,
        Some((before, row)) if may_renew(&command, row.as_ref()) => Some(before),
        Some((before, _)) => {
            key_scopes::make_own(app, &command.principal, &before).await?;
            return same_body(&before, command.body_hash).map(Accepted::Before);
        }
    };
    let repeated = adopt::repeated(app, &command).await?;
    let now = app.clock.now();
    let judged = repeated.as_ref().map_or(&command, |repeated| &repeated.command);
    let Judged { key, request, verdict, sendable, .. } =
        judge(app, judged, Purpose::Accept, now).await?;
    let id = RequestId::new(app.entropy.uuid());
    let missing = no_event(&request).filter(|_| repeated.is_none());
    if verdict.outcome == Outcome::Deny || missing.is_some() {
        if let Some(before) = renews.filter(|before| before.body_hash == command.body_hash) {
            // A repeat of what ended: its event is not back.
            return Ok(Accepted::Before(before.request));
        }
        let denied = verdict.outcome == Outcome::Deny;
        let reasons = missing.filter(|_| !denied).map_or(verdict.reasons.clone(), |it| vec![it]);
        return Err(deny(app, id, &request, &verdict, reasons, now).await);
    }
    let mut asked = None;
    // What is mined need not be sendable any more, and there is nothing left to wait for: nothing is signed.
    if repeated.is_none() {
        sendable?;
        asked = ask::wanted(app, id, (&request, &verdict), now, now)?;
        if asked.is_none() {
            signers::must_be_up(app, &key)?;
        } else if !ask::is_there_room(app, &request).await? {
            // The unit looks again; a flood that is refused does not come to the writer.
            return Err(ask::crowded(app, id, (&request, &verdict), now).await);
        }
    }
    let row = new_transaction(id, &command, &key, &request, &verdict, now)?;
    let (scope, body_hash) = (command.principal.scope(), command.body_hash);
    let binding = KeyBinding { scope, key: command.key, body_hash, request: id };
    let keys = Keys::new(app, &command.principal, &binding, renews);
    let found = repeated.map(|repeated| repeated.found);
    match store(app, (keys, row, found, asked), &verdict, now).await? {
        Stored::New => Ok(Accepted::New(id)),
        Stored::Before(before) => same_body(&before, body_hash).map(Accepted::Before),
        Stored::EventUsed(other) => Err(event_used(other)),
        Stored::Suspended(why) => Err(AppError::ReconcileRequired(why.reason)),
        Stored::Claimed => Err(StoreError::Contended.into()),
        Stored::Crowded => Err(ask::crowded(app, id, (&request, &verdict), now).await),
        Stored::Full(full) => {
            let reasons = vec![record::window_reason(&full)];
            Err(deny(app, id, &request, &verdict, reasons, now).await)
        }
    }
}

/// Whether the key of a request that ended unsigned may be bound anew: its event went away, and this one names an
/// event too. That this one's is there is looked at with everything else. Where neither names a source, this one
/// must be of another event: nobody can see whether the one that its caller took back is there again.
fn may_renew(command: &AcceptCommand, row: Option<&TransactionRow>) -> bool {
    let Some(row) = row.filter(|row| source_gone::ended_unsigned(row, false)) else {
        return false;
    };
    if command.source.is_some() || row.new.intent.source.is_some() {
        return command.source.is_some();
    }
    let anew = source_gone::event_id(&command.metadata_json);
    anew.is_some() && anew != source_gone::event_id(&row.new.metadata_json)
}

/// Who names an event must name one that is on the chain, whatever the grant says of events.
pub(crate) fn no_event(request: &PolicyRequest) -> Option<Reason> {
    let Intent::Transaction(intent) = &request.intent else { return None };
    let is_there = |fact: &crate::core::policy::EventFact| fact.canonical;
    let missing = intent.source.is_some() && !request.facts.event.as_ref().is_some_and(is_there);
    missing.then(record::no_event)
}

/// A request with what policy says to it.
pub(crate) struct Judged {
    /// The key that would sign.
    pub(crate) key: OperatorKey,
    /// The request with its facts.
    pub(crate) request: PolicyRequest,
    /// The bundle that decided.
    pub(crate) bundle: Arc<Bundle>,
    /// The verdict.
    pub(crate) verdict: Verdict,
    /// Whether nodes would take what policy allows; told only after it has.
    pub(crate) sendable: Result<(), AppError>,
}

/// Chooses the key, reads the facts, evaluates. Writes nothing but, to accept, the pin of a new chain.
///
/// # Errors
/// An invalid field, or something that is not available.
pub(crate) async fn judge(
    app: &App,
    command: &AcceptCommand,
    purpose: Purpose,
    now: Timestamp,
) -> Result<Judged, AppError> {
    if command.not_after.is_some_and(|limit| limit <= now) {
        return Err(AppError::invalid("not_after", "is in the past"));
    }
    let chain = app
        .chain(&command.chain)
        .ok_or_else(|| AppError::invalid("chain", "is not configured here"))?;
    let key = signers::least_busy(app, chain, &command.signer, purpose).await?;
    app.policy.must_be_readable()?;
    let bundle = app.bundle();
    let judged = judged_request(app, (chain, &bundle), command, &key, purpose);
    let (mut request, estimate) = judged.await?;
    let verdict = evaluate(&bundle, &request, now);
    let verdict = ask::settled(&bundle, &mut request, verdict, now);
    let sendable = match (estimate, verdict.outcome) {
        (Ok(()), Outcome::Allow) => mineable(chain, &request, &verdict, now).await,
        // The market and the balance may be others by then.
        (Ok(()), Outcome::Delay | Outcome::NeedApproval) => match &request.intent {
            Intent::Transaction(intent) => admissible(intent),
            _ => Ok(()),
        },
        (estimate, _) => estimate,
    };
    Ok(Judged { key, request, bundle, verdict, sendable })
}

/// What no node would ever take must not get a nonce: it would block every later one.
///
/// # Errors
/// When the gas is below the intrinsic cost, or the calldata is over what pools take.
pub(crate) fn admissible(intent: &TransactionIntent) -> Result<(), AppError> {
    if intent.data.len() > DATA_BYTES_MAX {
        return Err(AppError::invalid("data", format!("is longer than {DATA_BYTES_MAX} bytes")));
    }
    match intrinsic_gas(intent.to, &intent.data, &intent.access_list) {
        Some(least) if intent.gas >= least => Ok(()),
        least => Err(AppError::invalid(
            "gas",
            format!("{} is below the intrinsic cost, {}", intent.gas, least.unwrap_or(u64::MAX)),
        )),
    }
}

async fn mineable(
    chain: &ChainRuntime,
    request: &PolicyRequest,
    verdict: &Verdict,
    now: Timestamp,
) -> Result<(), AppError> {
    if let Intent::Transaction(intent) = &request.intent {
        admissible(intent)?;
    }
    let cap = verdict.fee_cap.unwrap_or(Fees { max_fee: 0, max_priority_fee: 0 });
    let market = chain.market(now).await?;
    if cap.max_fee < market.base_fee {
        let (cap, base) = (cap.max_fee, market.base_fee);
        let why =
            format!("the cap of {cap} wei is below the base fee, {base} wei: it cannot be mined");
        return Err(AppError::invalid("max_fee_per_gas", why));
    }
    if let Intent::Transaction(intent) = &request.intent {
        tipped(intent.tx_type, cap, &market)?;
    }
    match &request.intent {
        Intent::Transaction(intent) if chain.settings.refuses_over_balance => {
            let fees = fee::first(&market, cap, intent.tx_type);
            let balance = chain.balance(request.address, now).await?;
            affordable(intent, fees.max_fee, Amount::new(balance))
        }
        _ => Ok(()),
    }
}

/// What offers nothing to whoever makes the blocks, where others do, would hold up all that come after it.
fn tipped(tx_type: TxType, cap: Fees, market: &Market) -> Result<(), AppError> {
    let pays_all = market.tips.iter().min().is_some_and(|least| *least >= fee::MIN_TIP_WEI);
    if tx_type != TxType::Eip1559 || !pays_all || cap.max_priority_fee >= fee::MIN_TIP_WEI {
        return Ok(());
    }
    let (tip, least) = (cap.max_priority_fee, fee::MIN_TIP_WEI);
    let why = format!("the cap of {tip} wei is below {least} wei, and all others pay more");
    Err(AppError::invalid("max_priority_fee_per_gas", why))
}

/// Whether the account can pay for this request alone, at the fees of now.
fn affordable(intent: &TransactionIntent, price: u128, balance: Amount) -> Result<(), AppError> {
    let fee = Amount::from(intent.gas).checked_mul(Amount::from(price));
    match fee.and_then(|fee| fee.checked_add(intent.value)) {
        Some(needed) if needed <= balance => Ok(()),
        needed => Err(AppError::InsufficientBalance {
            needed: needed.unwrap_or(Amount::new(U256::MAX)),
            balance,
        }),
    }
}

/// An event answers one request.
pub(crate) fn event_used(other: RequestId) -> AppError {
    AppError::Conflict {
        detail: "this event has been answered by another request".to_owned(),
        request: Some(other),
    }
}

/// What an idempotency key is bound to already, if to this very body.
pub(crate) async fn bound_before(
    app: &App,
    principal: &Principal,
    key: &str,
    body_hash: B256,
) -> Result<Option<RequestId>, AppError> {
    let Some((before, _)) = key_scopes::bound(app, principal, key).await? else {
        return Ok(None);
    };
    key_scopes::make_own(app, principal, &before).await?;
    same_body(&before, body_hash).map(Some)
}

pub(crate) fn same_body(before: &KeyBinding, body_hash: B256) -> Result<RequestId, AppError> {
    if before.body_hash == body_hash {
        Ok(before.request)
    } else {
        Err(AppError::KeyReused(before.request))
    }
}

/// The request with its facts. The second part says whether the gas could be estimated; it is told only
/// after policy has allowed the request.
async fn judged_request(
    app: &App,
    (chain, bundle): (&ChainRuntime, &Bundle),
    command: &AcceptCommand,
    key: &OperatorKey,
    purpose: Purpose,
) -> Result<(PolicyRequest, Result<(), AppError>), AppError> {
    let cap = chain.settings.cap;
    let caller = Fees {
        max_fee: command.max_fee.unwrap_or(u128::MAX).min(cap.max_fee),
        max_priority_fee: command.max_priority_fee.unwrap_or(u128::MAX).min(cap.max_priority_fee),
    };
    let fees = Fees { max_priority_fee: caller.max_priority_fee.min(caller.max_fee), ..caller };
    let tx = TransactionIntent {
        chain: chain.reference(),
        tx_type: command.tx_type.unwrap_or(chain.settings.tx_type),
        to: command.to,
        value: command.value,
        data: command.data.clone(),
        gas: command.gas.unwrap_or_default(),
        fees: FeeAsk::UpTo(fees),
        access_list: command.access_list.clone(),
        nonce: None,
        not_after: command.not_after,
        source: command.source,
    };
    let unread = Unread {
        principal: &command.principal,
        key,
        intent: Intent::Transaction(Box::new(tx)),
        waiting_since: None,
    };
    let mut request = facts::gather(app, bundle, unread, purpose).await?;
    let estimate = match (command.gas, &mut request.intent) {
        (None, Intent::Transaction(tx)) => {
            let (gas, estimate) = estimate(chain, command, key.address).await?;
            tx.gas = gas;
            estimate
        }
        _ => Ok(()),
    };
    Ok((request, estimate))
}

/// Gas with a fifth to spare, since state may change until it is mined; a plain transfer always costs the
/// same. A call that would revert gets 0 and the error.
async fn estimate(
    chain: &ChainRuntime,
    command: &AcceptCommand,
    from: Address,
) -> Result<(u64, Result<(), AppError>), AppError> {
    let call = CallRequest {
        from,
        to: command.to,
        value: command.value.units(),
        data: command.data.clone(),
    };
    match chain.port.estimate_gas(call).await {
        Ok(gas) => {
            let plain = command.data.is_empty() && command.access_list.is_empty();
            let spare = if plain { 0 } else { gas.div_ceil(5) };
            let gas = gas.checked_add(spare).ok_or_else(|| AppError::internal("gas overflow"))?;
            Ok((gas, Ok(())))
        }
        Err(ChainError::Reverted(why)) => Ok((0, Err(AppError::WouldRevert(why)))),
        Err(error) => Err(error.into()),
    }
}

/// Records a denial in a unit of its own. It binds no idempotency key.
pub(crate) async fn deny(
    app: &App,
    id: RequestId,
    request: &PolicyRequest,
    verdict: &Verdict,
    reasons: Vec<Reason>,
    now: Timestamp,
) -> AppError {
    metrics::counter!("claviger_policy_decisions_total", "outcome" => "deny").increment(1);
    record::count_shadows(verdict);
    let leaf = match record::denied(id, request, verdict, &reasons, now) {
        Ok(leaf) => Arc::new(leaf),
        Err(error) => return error.into(),
    };
    let stored = unit(&*app.store, "record_denial", move |unit| {
        let leaf = leaf.clone();
        Box::pin(async move { Ok(End::Commit(unit.append_leaf(&leaf).await?)) })
    })
    .await;
    crate::failpoint!("accept.after_denied");
    match stored {
        Ok(()) => AppError::Denied(reasons),
        Err(error) => error.into(),
    }
}

fn new_transaction(
    id: RequestId,
    command: &AcceptCommand,
    key: &OperatorKey,
    request: &PolicyRequest,
    verdict: &Verdict,
    now: Timestamp,
) -> Result<NewTransaction, AppError> {
    let Intent::Transaction(intent) = &request.intent else {
        return Err(AppError::internal("a transaction was judged as something else"));
    };
    let fee_cap = verdict
        .fee_cap
        .ok_or_else(|| AppError::internal("a transaction was allowed without a fee cap"))?;
    Ok(NewTransaction {
        id,
        principal: command.principal.clone(),
        intent: (**intent).clone(),
        fee_cap,
        signer: command.signer.clone(),
        key: key.id,
        address: key.address,
        decision: summary(verdict),
        decision_json: record::decision_json(request, verdict, now),
        metadata_json: command.metadata_json.clone(),
        at: now,
    })
}

pub(crate) fn summary(verdict: &Verdict) -> DecisionSummary {
    DecisionSummary {
        outcome: verdict.outcome.name().to_owned(),
        bundle: verdict.bundle,
        grants: verdict.grants.iter().map(|grant| grant.as_str().to_owned()).collect(),
    }
}

enum Stored {
    New,
    Before(KeyBinding),
    EventUsed(RequestId),
    Full(LimitExceeded),
    /// The database is to be reconciled first.
    Suspended(Suspension),
    /// What is on the chain for it was bound to another request just now.
    Claimed,
    /// It would have to wait, and no more of its principal may.
    Crowded,
}

struct Acceptance {
    keys: Keys,
    row: NewTransaction,
    hold: Hold,
    event: Option<EventUse>,
    event_id: String,
    found: Option<(OnChain, String)>,
    asked: Option<Asked>,
    now: Timestamp,
}

/// The one unit: all of it or nothing.
async fn store(
    app: &App,
    (keys, row, found, asked): (Keys, NewTransaction, Option<OnChain>, Option<Asked>),
    verdict: &Verdict,
    now: Timestamp,
) -> Result<Stored, AppError> {
    let chain = row.intent.chain.id;
    let acceptance = Arc::new(Acceptance {
        hold: Hold::of(row.id.to_string(), Some(chain), verdict, false),
        keys,
        row,
        event: verdict.event_use.clone(),
        event_id: app.entropy.uuid().to_string(),
        found: found.map(|found| (found, app.entropy.uuid().to_string())),
        asked,
        now,
    });
    clock_watch::check(app, &acceptance.hold).await?;
    let max_waiting = app.max_waiting;
    let stored = unit(&*app.store, "accept_transaction", move |unit| {
        let it = acceptance.clone();
        Box::pin(async move {
            match it.keys.bind(unit, it.now).await? {
                Keyed::Bound => {}
                Keyed::Before(before) => return Ok(End::Rollback(Stored::Before(before))),
                Keyed::Moved => return Ok(End::Rollback(Stored::Claimed)),
            }
            if let Some(why) = unit.suspension().await? {
                return Ok(End::Rollback(Stored::Suspended(why)));
            }
            if it.asked.is_some()
                && !unit.has_room_to_wait(&it.row.principal.sub, max_waiting).await?
            {
                return Ok(End::Rollback(Stored::Crowded));
            }
            if let Some(event) = &it.event
                && let Some(other) = unit.claim_event(event, it.row.id).await?
            {
                return Ok(End::Rollback(Stored::EventUsed(other)));
            }
            match &it.asked {
                None => {
                    if let Some(full) = unit.hold(&it.hold, it.now).await? {
                        return Ok(End::Rollback(Stored::Full(full)));
                    }
                    unit.insert_transaction(&it.row).await?;
                }
                Some(asked) => {
                    unit.insert_waiting(&it.row, asked.status, &asked.wait).await?;
                }
            }
            let Some(row) = unit.transaction(it.row.id).await? else {
                return Err(StoreError::Corrupt(
                    "a transaction was stored and is not there".to_owned(),
                ));
            };
            let event = queued_event(&row, it.event_id.clone(), it.now);
            unit.append_event(&event).await?;
            if let Some(asked) = &it.asked {
                asked.tell(unit, &row).await?;
            }
            if it.found.is_none() && adopt::is_mined_for(unit, &row).await? {
                // It was found since this request was looked at: whoever asks again is bound to it.
                return Ok(End::Rollback(Stored::Claimed));
            }
            if let Some((found, event_id)) = &it.found
                && !adopt::claim(unit, &row, found, event_id.clone(), it.now).await?
            {
                return Ok(End::Rollback(Stored::Claimed));
            }
            Ok(End::Commit(Stored::New))
        })
    })
    .await?;
    crate::failpoint!("accept.after_commit");
    if matches!(stored, Stored::New) {
        let outcome = verdict.outcome.name();
        metrics::counter!("claviger_policy_decisions_total", "outcome" => outcome).increment(1);
        record::count_shadows(verdict);
    }
    Ok(stored)
}

fn queued_event(row: &TransactionRow, id: String, now: Timestamp) -> crate::ports::store::NewEvent {
    record::status_event(row, row.status, id, now)
}
