//! Say what would be decided, and leave no trace: the real doors' own judgement, and then only looking.
//! Nothing is recorded, bound, held, claimed or pinned.

use crate::app::accept::{self, AcceptCommand, event_used};
use crate::app::sign_request::{self, SignCommand, same_owner, shared_owner};
use crate::app::signers::Purpose;
use crate::app::{App, AppError, ask, record};
use crate::core::id::RequestId;
use crate::core::intent::Intent;
use crate::core::key::NonceMode;
use crate::core::policy::verdict::EventUse;
use crate::core::policy::{Bundle, Charge, Miss, Outcome, PolicyRequest, Reason, Verdict, explain};
use crate::core::time::Timestamp;
use crate::ports::store::{Hold, LimitExceeded, LimitUse, StoreError, Unit, look};
use alloy::primitives::Address;
use std::sync::Arc;

/// What is to be judged: the command that the real door would be given.
#[derive(Debug, Clone)]
pub enum EvaluateCommand {
    /// As `POST /v1/transactions`.
    Transaction(Box<AcceptCommand>),
    /// As `POST /v1/signatures`.
    Signature(SignCommand),
}

/// What would be decided now.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// Deny also where policy allows and a window is full.
    pub outcome: Outcome,
    /// What policy says.
    pub verdict: Verdict,
    /// Why not: the verdict's reasons, or the full windows.
    pub reasons: Vec<Reason>,
    /// What each window would be charged, and what it holds now: empty where no grants cover the request, or a
    /// guardrail refuses it.
    pub limits: Vec<(Charge, LimitUse)>,
    /// What was judged, by which bundle, and when.
    judged: (PolicyRequest, Arc<Bundle>, Timestamp),
    /// The account that would sign.
    pub address: Address,
}

/// Judges a command as its door would.
///
/// # Errors
/// Whatever the door would answer beside a denial: an invalid field, a managed nonce, an event that
/// another request has answered, a transaction that nodes would not take, something not available.
pub async fn evaluate(app: &App, command: EvaluateCommand) -> Result<Evaluation, AppError> {
    let now = app.clock.now();
    let (request, bundle, verdict) = match &command {
        EvaluateCommand::Transaction(command) => {
            let judged = accept::judge(app, command, Purpose::Tell, now).await?;
            if judged.verdict.outcome != Outcome::Deny {
                if let Some(missing) = accept::no_event(&judged.request) {
                    let (of, judged) = (judged.verdict, (judged.request, judged.bundle, now));
                    return Ok(refused(judged, of, missing));
                }
                judged.sendable?;
            }
            (judged.request, judged.bundle, judged.verdict)
        }
        EvaluateCommand::Signature(command) => {
            let judged = sign_request::judge(app, command, Purpose::Tell, now).await?;
            if let Intent::Transaction(tx) = &judged.request.intent
                && judged.verdict.outcome == Outcome::Allow
            {
                accept::admissible(tx)?;
            }
            (judged.request, judged.bundle, judged.verdict)
        }
    };
    let (outcome, reasons) = match (&command, verdict.outcome) {
        (EvaluateCommand::Signature(_), Outcome::Delay | Outcome::NeedApproval) => {
            (Outcome::Deny, ask::cannot_wait(&verdict))
        }
        (_, outcome) => (outcome, verdict.reasons.clone()),
    };
    let address = request.address;
    let judged = (request, bundle, now);
    let mut said = Evaluation { outcome, verdict, reasons, limits: Vec::new(), address, judged };
    if said.verdict.outcome == Outcome::Deny {
        return Ok(said);
    }
    let found = room(app, &said.judged.0, &said.verdict, now).await?;
    said.limits = charges_of(&said.verdict).into_iter().zip(found.uses).collect();
    if said.outcome == Outcome::Deny {
        return Ok(said);
    }
    found.free?;
    // What waits is judged again when it goes on: how full the windows are now decides nothing.
    if said.outcome == Outcome::Allow {
        let full = said.limits.iter().filter(|(_, found)| !found.fits);
        said.reasons = full.map(|(charge, found)| window_reason(charge, found)).collect();
        if !said.reasons.is_empty() {
            said.outcome = Outcome::Deny;
        }
    }
    Ok(said)
}

impl Evaluation {
    /// Every grant that decides, with what it does not cover, whatever the outcome.
    #[must_use]
    pub fn misses(&self) -> Vec<Miss> {
        let (request, bundle, now) = &self.judged;
        explain(bundle, request, *now).misses
    }
}

/// Refused at the door, whatever policy says.
fn refused(
    judged: (PolicyRequest, Arc<Bundle>, Timestamp),
    verdict: Verdict,
    reason: Reason,
) -> Evaluation {
    let (outcome, reasons, address) = (Outcome::Deny, vec![reason], judged.0.address);
    Evaluation { outcome, verdict, reasons, limits: Vec::new(), address, judged }
}

/// What each window would be asked for, with what others may take later.
fn charges_of(verdict: &Verdict) -> Vec<Charge> {
    Hold::of(String::new(), None, verdict, false).all_charges()
}

fn window_reason(charge: &Charge, found: &LimitUse) -> Reason {
    record::window_reason(&LimitExceeded {
        label: charge.label.clone(),
        grant: charge.grant.as_str().to_owned(),
        used: found.used,
        asked: found.asked,
        max: charge.max,
    })
}

/// What is in the database beside the request.
struct Room {
    /// What the windows hold now.
    uses: Vec<LimitUse>,
    /// Whether the event that the request answers is free, and its nonce the caller's to give.
    free: Result<(), AppError>,
}

/// What the windows hold now, and whether anything else has what the request needs. Versions of one nonce share
/// what is held, and their event, as at the real door.
async fn room(
    app: &App,
    request: &PolicyRequest,
    verdict: &Verdict,
    now: Timestamp,
) -> Result<Room, AppError> {
    // Without a nonce of the caller's, the request would be a new owner, who holds nothing.
    let asked = Arc::new((shared_owner(request), charges_of(verdict), verdict.event_use.clone()));
    let lane = request.intent.nonce().and(request.intent.chain());
    let lane = lane.map(|chain| (chain.id, request.address));
    let (other, mode, uses) = look(&*app.store, "evaluate", move |unit| {
        let asked = asked.clone();
        Box::pin(async move {
            let (owner, charges, event) = &*asked;
            let other = match event {
                Some(event) => another(unit, event, owner.as_deref()).await?,
                None => None,
            };
            let lane = match lane {
                Some((chain, address)) => unit.lane(chain, address).await?,
                None => None,
            };
            let uses = unit.room(owner.as_deref().unwrap_or_default(), charges, now).await?;
            Ok((other, lane.map(|lane| lane.mode), uses))
        })
    })
    .await?;
    let free = match other {
        Some(other) => Err(event_used(other)),
        None if mode.is_some_and(|mode| mode != NonceMode::External) => Err(AppError::NonceManaged),
        None => Ok(()),
    };
    Ok(Room { uses, free })
}

/// The request that has the event, unless it is another version of the same nonce.
async fn another(
    unit: &mut dyn Unit,
    event: &EventUse,
    owner: Option<&str>,
) -> Result<Option<RequestId>, StoreError> {
    let Some(other) = unit.claimed_by(event).await? else {
        return Ok(None);
    };
    let same = owner.is_some() && same_owner(unit, other, owner).await?;
    Ok((!same).then_some(other))
}
