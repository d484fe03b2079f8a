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
use crate::core::policy::{Charge, Outcome, PolicyRequest, Reason, Verdict};
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
    /// What each window would be charged, and what it holds now.
    pub limits: Vec<(Charge, LimitUse)>,
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
    let (request, verdict) = match &command {
        EvaluateCommand::Transaction(command) => {
            let judged = accept::judge(app, command, Purpose::Tell, now).await?;
            if judged.verdict.outcome != Outcome::Deny {
                judged.sendable?;
            }
            (judged.request, judged.verdict)
        }
        EvaluateCommand::Signature(command) => {
            let judged = sign_request::judge(app, command, Purpose::Tell, now).await?;
            if let Intent::Transaction(tx) = &judged.request.intent
                && judged.verdict.outcome == Outcome::Allow
            {
                accept::admissible(tx)?;
            }
            (judged.request, judged.verdict)
        }
    };
    let address = request.address;
    if verdict.outcome != Outcome::Allow {
        // What waits is judged again when it goes on: how full the windows are now does not matter.
        let (outcome, reasons) = match &command {
            EvaluateCommand::Transaction(_) => (verdict.outcome, verdict.reasons.clone()),
            EvaluateCommand::Signature(_) => (Outcome::Deny, ask::cannot_wait(&verdict)),
        };
        return Ok(Evaluation { outcome, verdict, reasons, limits: Vec::new(), address });
    }
    let uses = room(app, &request, &verdict, now).await?;
    let limits: Vec<(Charge, LimitUse)> = charges_of(&verdict).into_iter().zip(uses).collect();
    let full = limits.iter().filter(|(_, found)| !found.fits);
    let reasons: Vec<Reason> = full.map(|(charge, found)| window_reason(charge, found)).collect();
    let outcome = if reasons.is_empty() { Outcome::Allow } else { Outcome::Deny };
    Ok(Evaluation { outcome, verdict, reasons, limits, address })
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

/// What the windows hold now, if the event that the request answers is free. Versions of one nonce share
/// what is held, and their event, as at the real door.
async fn room(
    app: &App,
    request: &PolicyRequest,
    verdict: &Verdict,
    now: Timestamp,
) -> Result<Vec<LimitUse>, AppError> {
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
    if let Some(other) = other {
        return Err(event_used(other));
    }
    if mode.is_some_and(|mode| mode != NonceMode::External) {
        return Err(AppError::NonceManaged);
    }
    Ok(uses)
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
