//! Sign for a caller: messages, typed data, and of external accounts transactions and EIP-7702 authorizations.
//! There is no way to ask for the signature of a digest.

use crate::app::accept::{admissible, bound_before, deny, event_used, same_body, summary};
use crate::app::facts::{self, Unread};
use crate::app::signers::{self, Purpose};
use crate::app::{
    App, AppError, ask, clock_watch, finality, key_scopes, read, record, sign, suspension,
};
use crate::core::evm::authorization::authorization_bytes;
use crate::core::evm::message::{message_bytes, typed_data_bytes};
use crate::core::evm::transaction::UnsignedTransaction;
use crate::core::id::RequestId;
use crate::core::intent::{FeeAsk, Fees, Intent, TransactionIntent};
use crate::core::key::{NonceMode, OperatorKey};
use crate::core::permit::PayloadKind;
use crate::core::policy::verdict::EventUse;
use crate::core::policy::{Bundle, Outcome, PolicyRequest, Verdict, evaluate};
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use crate::ports::chain::BlockAt;
use crate::ports::chain::ChainError;
use crate::ports::store::{
    Bound, End, Hold, KeyBinding, LaneKey, LimitExceeded, NewAttempt, NewSignatureRequest,
    SignatureRow, StoreError, Suspension, Unit, unit,
};
use alloy::primitives::{B256, keccak256};
use std::sync::Arc;
use std::time::Duration;

/// How far above the account's next nonce a caller may sign: each holds spend until it is final.
const NONCES_AHEAD_MAX: u64 = 256;

/// How long a caller waits for a signature that another part of this process is making.
const ELSEWHERE: Duration = Duration::from_secs(2);

/// A caller's request for a signature, parsed.
#[derive(Debug, Clone)]
pub struct SignCommand {
    /// Who asks.
    pub principal: Principal,
    /// The idempotency key, if the caller gave one.
    pub key: Option<String>,
    /// SHA-256 of what was asked.
    pub body_hash: B256,
    /// Group, key id or address.
    pub signer: String,
    /// What to sign.
    pub intent: Intent,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignOutcome {
    /// Signed just now.
    Signed(Box<SignatureRow>),
    /// Signed before: read the resource.
    Before(RequestId),
    /// Decided, and the HSM has not answered in time: the same key later gives the signature.
    Pending(RequestId),
}

/// Judges the request, records the decision, signs.
///
/// # Errors
/// An invalid field, a reused key, a managed nonce, a denial (which is recorded), or something that is not
/// available.
pub async fn sign_for(app: &App, command: SignCommand) -> Result<SignOutcome, AppError> {
    if let Some(key) = &command.key
        && let Some(before) = bound_before(app, &command.principal, key, command.body_hash).await?
    {
        return attempt(app, before, None).await;
    }
    suspension::refuse(app).await?;
    let now = app.clock.now();
    let Judged { key, payload: (kind, bytes, fees), request, verdict, .. } =
        judge(app, &command, Purpose::Accept, now).await?;
    let id = RequestId::new(app.entropy.uuid());
    if verdict.outcome != Outcome::Allow {
        // Nobody waits at this door: what would have to wait is refused.
        let reasons = ask::cannot_wait(&verdict);
        return Err(deny(app, id, &request, &verdict, reasons, now).await);
    }
    if let Intent::Transaction(tx) = &request.intent {
        admissible(tx)?;
    }
    if request.intent.nonce().is_some()
        && let Some(chain) = request.intent.chain().and_then(|chain| app.chain_of(chain.id))
        && let Some(reason) = finality::stands_still(app, chain).await?
    {
        return Err(ChainError::Unavailable(reason).into());
    }
    signers::must_have_room(app, &key)?;
    let (scope, body_hash) = (command.principal.scope(), command.body_hash);
    let binding = command.key.map(|key| KeyBinding { scope, key, body_hash, request: id });
    let shared = |it: KeyBinding| key_scopes::bindings(app, &command.principal, &it);
    let bindings = binding.map(shared).unwrap_or_default();
    let row = row(id, &request, &verdict, kind, &key, now);
    // What has no nonce has nothing to wait for: it counts from now.
    let hold = |owner| Hold::of(owner, row.chain, &verdict, row.nonce.is_none());
    let decision = Arc::new(Decision {
        bindings,
        hold: row.owner.clone().map(hold),
        row,
        lane: lane_of(&request, &key),
        event: verdict.event_use.clone(),
        attempt: NewAttempt {
            request: id,
            number: 1,
            reason: "signature",
            key: key.id,
            kind,
            digest: keccak256(&bytes),
            bytes,
            fees,
            at: now,
        },
        decision_json: record::decision_json(&request, &verdict, now),
    });
    if let Some(hold) = &decision.hold {
        clock_watch::check(app, hold).await?;
    }
    let new = decision.row.clone();
    match store(app, decision).await? {
        Stored::New => attempt(app, id, Some(new)).await,
        Stored::Before(before) => attempt(app, same_body(&before, command.body_hash)?, None).await,
        Stored::Managed => Err(AppError::NonceManaged),
        Stored::EventUsed(other) => Err(event_used(other)),
        Stored::Suspended(why) => Err(AppError::ReconcileRequired(why.reason)),
        Stored::Full(full) => {
            let reasons = vec![record::window_reason(&full)];
            Err(deny(app, id, &request, &verdict, reasons, now).await)
        }
    }
}

/// A request with what policy says to it.
pub(crate) struct Judged {
    /// The key that would sign.
    pub(crate) key: OperatorKey,
    /// What would be signed: kind, exact bytes, fees.
    pub(crate) payload: (PayloadKind, Vec<u8>, Fees),
    /// The request with its facts.
    pub(crate) request: PolicyRequest,
    /// The bundle that decided.
    pub(crate) bundle: Arc<Bundle>,
    /// The verdict.
    pub(crate) verdict: Verdict,
}

/// Chooses the key, encodes, reads the facts, evaluates. Writes nothing but, to accept, the pin of a new
/// chain.
///
/// # Errors
/// An invalid field, a managed nonce, or something that is not available.
pub(crate) async fn judge(
    app: &App,
    command: &SignCommand,
    purpose: Purpose,
    now: Timestamp,
) -> Result<Judged, AppError> {
    let key = signers::first(app, &command.signer, &command.intent).await?;
    let payload = payload(&command.intent)?;
    app.policy.must_be_readable()?;
    let bundle = app.bundle();
    numbered(app, &command.intent, &key).await?;
    let intent = command.intent.clone();
    let unread = Unread { principal: &command.principal, key: &key, intent, waiting_since: None };
    let request = facts::gather(app, &bundle, unread, purpose).await?;
    let verdict = evaluate(&bundle, &request, now);
    Ok(Judged { key, payload, request, bundle, verdict })
}

/// The decision is committed: a silent HSM is no longer an error.
async fn attempt(
    app: &App,
    id: RequestId,
    new: Option<NewSignatureRequest>,
) -> Result<SignOutcome, AppError> {
    match sign::sign(app, id, 1).await {
        Ok(Some(signed)) => Ok(new.map_or(SignOutcome::Before(id), |new| {
            SignOutcome::Signed(Box::new(SignatureRow { new, attempt: signed.attempt }))
        })),
        Ok(None) => elsewhere(app, id).await,
        Err(AppError::Signer(error)) => {
            tracing::warn!(request = %id, %error, "decided, not signed yet");
            Ok(SignOutcome::Pending(id))
        }
        Err(AppError::Store(error @ (StoreError::Unavailable(_) | StoreError::Contended))) => {
            tracing::warn!(request = %id, %error, "decided, its signature could not be stored yet");
            Ok(SignOutcome::Pending(id))
        }
        Err(error) => Err(error),
    }
}

/// The job that signs what was left unsigned has taken it up at this very moment.
async fn elsewhere(app: &App, id: RequestId) -> Result<SignOutcome, AppError> {
    let mut changes = app.changes.subscribe();
    let signed = async {
        while read::signature(app, id, None).await?.attempt.signature.is_none() {
            App::change_of(&mut changes, id).await;
        }
        Ok(SignOutcome::Before(id))
    };
    tokio::time::timeout(ELSEWHERE, signed).await.unwrap_or(Ok(SignOutcome::Pending(id)))
}

fn payload(intent: &Intent) -> Result<(PayloadKind, Vec<u8>, Fees), AppError> {
    let none = Fees { max_fee: 0, max_priority_fee: 0 };
    match intent {
        Intent::Message { text } => Ok((PayloadKind::Message, message_bytes(text), none)),
        Intent::TypedData { data, .. } => {
            let bytes =
                typed_data_bytes(data).map_err(|e| AppError::NotDecodable(e.to_string()))?;
            Ok((PayloadKind::TypedData, bytes, none))
        }
        Intent::Authorization { chain, address, nonce } => {
            let bytes = authorization_bytes(chain.id, *address, *nonce).ok_or_else(|| {
                AppError::invalid("authorization", "no chain would take it, or every chain would")
            })?;
            Ok((PayloadKind::Authorization, bytes, none))
        }
        Intent::Transaction(tx) => {
            let (nonce, fees) = exact(tx)?;
            let bytes = UnsignedTransaction::from_intent(tx, nonce, fees)
                .signing_bytes()
                .map_err(|e| AppError::invalid("transaction", e.to_string()))?;
            Ok((PayloadKind::Transaction, bytes, fees))
        }
    }
}

fn exact(tx: &TransactionIntent) -> Result<(u64, Fees), AppError> {
    let nonce = tx.nonce.ok_or_else(|| AppError::invalid("transaction.nonce", "is missing"))?;
    match tx.fees {
        FeeAsk::Exact(fees) => Ok((nonce, fees)),
        FeeAsk::UpTo(_) => Err(AppError::invalid("transaction", "the fees are missing")),
    }
}

/// Whether what uses up a nonce is of an account that is its caller's to number, and the nonce is one that can
/// still be used.
async fn numbered(app: &App, intent: &Intent, key: &OperatorKey) -> Result<(), AppError> {
    let Some(nonce) = intent.nonce() else {
        return Ok(());
    };
    if key.mode == NonceMode::Managed {
        return Err(AppError::NonceManaged);
    }
    let chain = intent
        .chain()
        .and_then(|chain| app.chain_of(chain.id))
        .ok_or_else(|| AppError::invalid("chain", "is not configured here"))?;
    let next = chain.port.nonce(key.address, BlockAt::Latest).await?;
    if nonce < next {
        return Err(AppError::Conflict {
            detail: format!("nonce {nonce} of this account is used on the chain; next is {next}"),
            request: None,
        });
    }
    if nonce.saturating_sub(next) > NONCES_AHEAD_MAX {
        let field = match intent {
            Intent::Authorization { .. } => "authorization.nonce",
            _ => "transaction.nonce",
        };
        return Err(AppError::invalid(
            field,
            format!("is more than {NONCES_AHEAD_MAX} above the account's next, {next}"),
        ));
    }
    Ok(())
}

fn lane_of(request: &PolicyRequest, key: &OperatorKey) -> Option<LaneKey> {
    let chain = request.intent.nonce().and(request.intent.chain())?.id;
    Some(LaneKey { chain, address: key.address, key: key.id, mode: key.mode })
}

/// Every version for one nonce shares one reservation: only one of them can be mined. An authorization uses up
/// a nonce too, so it is one of its versions.
pub(crate) fn shared_owner(request: &PolicyRequest) -> Option<String> {
    let (nonce, chain) = (request.intent.nonce()?, request.intent.chain()?.id);
    Some(format!("{chain}:{:#x}:{nonce}", request.address))
}

fn row(
    id: RequestId,
    request: &PolicyRequest,
    verdict: &Verdict,
    kind: PayloadKind,
    key: &OperatorKey,
    at: Timestamp,
) -> NewSignatureRequest {
    let nonce = request.intent.nonce();
    let chain = request.intent.chain().map(|chain| chain.id);
    let owner = shared_owner(request).unwrap_or_else(|| id.to_string());
    NewSignatureRequest {
        id,
        principal: request.principal.clone(),
        kind,
        chain,
        nonce,
        key: key.id,
        address: key.address,
        owner: Some(owner),
        decision: summary(verdict),
        at,
    }
}

struct Decision {
    bindings: Vec<KeyBinding>,
    row: NewSignatureRequest,
    lane: Option<LaneKey>,
    hold: Option<Hold>,
    event: Option<EventUse>,
    attempt: NewAttempt,
    decision_json: String,
}

enum Stored {
    New,
    Before(KeyBinding),
    Managed,
    EventUsed(RequestId),
    Full(LimitExceeded),
    Suspended(Suspension),
}

async fn store(app: &App, decision: Arc<Decision>) -> Result<Stored, AppError> {
    let stored = unit(&*app.store, "decide_signature", move |unit| {
        let it = decision.clone();
        Box::pin(async move { store_in(unit, &it).await })
    })
    .await?;
    crate::failpoint!("sign_request.after_decided");
    if matches!(stored, Stored::New) {
        metrics::counter!("claviger_policy_decisions_total", "outcome" => "allow").increment(1);
    }
    Ok(stored)
}

pub(crate) async fn same_owner(
    unit: &mut dyn Unit,
    other: RequestId,
    owner: Option<&str>,
) -> Result<bool, StoreError> {
    let other = unit.signature(other).await?;
    Ok(other.is_some_and(|other| other.new.owner.as_deref() == owner))
}

async fn store_in(unit: &mut dyn Unit, it: &Decision) -> Result<End<Stored>, StoreError> {
    for binding in &it.bindings {
        if let Bound::Before(before) = unit.bind_key(binding).await? {
            return Ok(End::Rollback(Stored::Before(before)));
        }
    }
    if let Some(why) = unit.suspension().await? {
        return Ok(End::Rollback(Stored::Suspended(why)));
    }
    if let Some(lane) = &it.lane
        && unit.lock_lane(lane).await?.mode != NonceMode::External
    {
        return Ok(End::Rollback(Stored::Managed));
    }
    // Another version of the same nonce may answer the same event: only one of them can be mined.
    if let Some(event) = &it.event
        && let Some(other) = unit.claim_event(event, it.row.id).await?
        && !same_owner(unit, other, it.row.owner.as_deref()).await?
    {
        return Ok(End::Rollback(Stored::EventUsed(other)));
    }
    if let Some(hold) = &it.hold
        && let Some(full) = unit.hold(hold, it.row.at).await?
    {
        return Ok(End::Rollback(Stored::Full(full)));
    }
    unit.insert_signature(&it.row).await?;
    if !unit.insert_attempt(&it.attempt).await? {
        return Err(StoreError::Corrupt("a new request has an attempt".to_owned()));
    }
    unit.append_leaf(&record::decided(&it.attempt, &it.decision_json)?).await?;
    Ok(End::Commit(Stored::New))
}
