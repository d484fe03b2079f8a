//! What a request has to wait for before it is queued, and asking for it: some time, or some people.

use crate::app::{App, AppError, record};
use crate::core::audit::EncodedLeaf;
use crate::core::id::{GrantId, RequestId};
use crate::core::intent::{FeeAsk, Intent};
use crate::core::policy::{Bundle, Outcome, PolicyRequest, Reason, Verdict, evaluate};
use crate::core::time::{Timestamp, duration_text};
use crate::core::tx::state::Status;
use crate::ports::store::{End, StoreError, TransactionRow, Unit, WaitingRequest, look, unit};
use std::sync::{Arc, PoisonError};

/// How often the log is told that no more requests of a principal may wait, in milliseconds.
const TOLD_EVERY_MS: i64 = 3_600_000;

/// How long it is believed that the log was told by another process, in milliseconds.
const ASK_AGAIN_MS: i64 = 60_000;

/// Where a verdict makes a request wait, and what for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    /// `delayed` or `awaiting_approval`.
    pub(crate) status: Status,
    /// What it waits for.
    pub(crate) wait: WaitingRequest,
    /// What is written into the log, where people are asked.
    leaf: Option<EncodedLeaf>,
    event_id: String,
}

/// The verdict over a request that waits as its row will say it: of the fees, the row keeps what may be offered
/// at most. What people approve must be, to the letter, what the row gives when it is judged again.
pub(crate) fn settled(
    bundle: &Bundle,
    request: &mut PolicyRequest,
    verdict: Verdict,
    now: Timestamp,
) -> Verdict {
    if !matches!(verdict.outcome, Outcome::Delay | Outcome::NeedApproval) {
        return verdict;
    }
    if let (Intent::Transaction(tx), Some(cap)) = (&mut request.intent, verdict.fee_cap)
        && let FeeAsk::UpTo(asked) = tx.fees
        && asked.at_most(cap) != asked
    {
        tx.fees = FeeAsk::UpTo(asked.at_most(cap));
        return evaluate(bundle, request, now);
    }
    verdict
}

/// What this verdict makes a request wait for; `None` if it makes it wait for nothing. A delay counts from
/// when the request was accepted, approvals from now.
///
/// # Errors
/// When a verdict does not say what it wants, or the terms are too long for a leaf.
pub(crate) fn wanted(
    app: &App,
    id: RequestId,
    (request, verdict): (&PolicyRequest, &Verdict),
    accepted_at: Timestamp,
    now: Timestamp,
) -> Result<Option<Asked>, AppError> {
    let missing = || AppError::internal("a verdict does not say what is to be waited for");
    let (status, due_at) = match verdict.outcome {
        Outcome::Deny | Outcome::Allow => return Ok(None),
        Outcome::Delay => {
            let delay = verdict.delay.as_ref().ok_or_else(missing)?;
            (Status::Delayed, accepted_at.plus_millis(delay.ms))
        }
        Outcome::NeedApproval => {
            let need = verdict.approval.as_ref().ok_or_else(missing)?;
            (Status::AwaitingApproval, now.plus_millis(need.ttl_ms))
        }
    };
    let expires_at = (status == Status::AwaitingApproval).then_some(due_at);
    let (terms, hash) = record::terms(id, request, verdict, expires_at);
    let quorums = verdict.approval.as_ref().filter(|_| expires_at.is_some());
    let wait = WaitingRequest {
        request: id,
        hash,
        terms,
        quorums: quorums.map(|need| need.quorums.clone()).unwrap_or_default(),
        bundle: verdict.bundle,
        asked_at: now,
        due_at,
        wake_at: wake_at(&request.intent, due_at),
        released_at: None,
    };
    let leaf = match expires_at {
        Some(_) => Some(record::approval_requested(&wait)?),
        None => None,
    };
    let event_id = app.entropy.uuid().to_string();
    Ok(Some(Asked { status, wait, leaf, event_id }))
}

/// At its time, or when it may not be signed any more.
fn wake_at(intent: &Intent, due_at: Timestamp) -> Timestamp {
    let limit = match intent {
        Intent::Transaction(tx) => tx.not_after,
        _ => None,
    };
    limit.map_or(due_at, |limit| due_at.min(limit.plus_millis(1)))
}

impl Asked {
    /// Writes into the log that people are asked, and tells them.
    ///
    /// # Errors
    /// As the unit.
    pub(crate) async fn tell(
        &self,
        unit: &mut dyn Unit,
        row: &TransactionRow,
    ) -> Result<(), StoreError> {
        if let Some(leaf) = &self.leaf {
            unit.append_leaf(leaf).await?;
            let event = record::requested_event(row, &self.wait, self.event_id.clone());
            unit.append_event(&event).await?;
        }
        Ok(())
    }
}

/// Whether one more of its principal may wait, as of now. Nothing is locked for it.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn is_there_room(app: &App, request: &PolicyRequest) -> Result<bool, AppError> {
    let (sub, most) = (request.principal.sub.clone(), app.max_waiting);
    Ok(look(&*app.store, "room_to_wait", move |unit| {
        let sub = sub.clone();
        Box::pin(async move { unit.waits_below(&sub, most).await })
    })
    .await?)
}

/// What is said where no more of a principal may wait. Who has the token could have it said without end, so the
/// log is told once an hour for each principal, with the request of that moment; a metric counts them all.
pub(crate) async fn crowded(
    app: &App,
    id: RequestId,
    (request, verdict): (&PolicyRequest, &Verdict),
    now: Timestamp,
) -> AppError {
    metrics::counter!("claviger_waiting_refused_total").increment(1);
    let (sub, max) = (request.principal.sub.clone(), app.max_waiting);
    let steady_ms = app.clock.steady_ms();
    let until = app.crowded.lock().unwrap_or_else(PoisonError::into_inner).get(&sub).copied();
    if until.is_some_and(|until| steady_ms < until) {
        return AppError::TooManyWaiting(max);
    }
    let reason = Reason {
        grant: None,
        field: "max_waiting".to_owned(),
        expected: format!("fewer than {max} requests of {sub} that wait for time or people"),
        actual: format!(
            "{max}; what else is refused so within {} is not recorded",
            duration_text(TOLD_EVERY_MS)
        ),
    };
    let leaf = match record::denied(id, request, verdict, &[reason], now) {
        Ok(leaf) => Arc::new((sub, leaf)),
        Err(error) => return error.into(),
    };
    let told = unit(&*app.store, "record_crowded", move |unit| {
        let leaf = Arc::clone(&leaf);
        Box::pin(async move {
            let (sub, leaf) = &*leaf;
            if !unit.tell_waiter(sub, now, TOLD_EVERY_MS).await? {
                return Ok(End::Rollback(false));
            }
            unit.append_leaf(leaf).await?;
            Ok(End::Commit(true))
        })
    })
    .await;
    match told {
        Ok(is_news) => {
            // Another process may have told it at any time within the hour.
            let quiet_ms = if is_news { TOLD_EVERY_MS } else { ASK_AGAIN_MS };
            let mut crowded = app.crowded.lock().unwrap_or_else(PoisonError::into_inner);
            crowded.retain(|_, until| steady_ms < *until);
            crowded.insert(request.principal.sub.clone(), steady_ms.saturating_add(quiet_ms));
            drop(crowded);
            if is_news {
                let sub = &request.principal.sub;
                tracing::warn!(sub, max, "no more requests of this principal may wait");
            }
            AppError::TooManyWaiting(max)
        }
        Err(error) => error.into(),
    }
}

/// What is said where a request cannot wait: at the door for signatures.
pub(crate) fn cannot_wait(verdict: &Verdict) -> Vec<Reason> {
    let reason = |grant: Option<&GrantId>, field: &str, expected: String| Reason {
        grant: grant.cloned(),
        field: field.to_owned(),
        expected,
        actual: "what is to be signed at once cannot wait; ask for a transaction".to_owned(),
    };
    match verdict.outcome {
        Outcome::Deny | Outcome::Allow => verdict.reasons.clone(),
        Outcome::Delay => {
            let delay = verdict.delay.as_ref();
            let why = delay.map_or_else(String::new, |delay| delay.why.clone());
            vec![reason(delay.and_then(|delay| delay.grants.first()), "delay", why)]
        }
        Outcome::NeedApproval => {
            let need = verdict.approval.as_ref();
            let quorums = need.map_or_else(String::new, |need| {
                serde_json::to_string(&need.quorums).unwrap_or_default()
            });
            let expected = format!("to be approved by {quorums}");
            vec![reason(need.and_then(|need| need.grants.first()), "approval", expected)]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::policy::verdict::{ApprovalNeed, DelayNeed};
    use alloy::primitives::B256;
    use std::collections::BTreeMap;

    fn verdict(outcome: Outcome) -> Verdict {
        let grants = vec![GrantId::new("payouts")];
        let quorum = BTreeMap::from([("treasury".to_owned(), 2)]);
        Verdict {
            outcome,
            bundle: B256::ZERO,
            grants: vec![],
            effects: vec![],
            reasons: vec![],
            charges: vec![],
            exposures: vec![],
            approval: Some(ApprovalNeed {
                grants: grants.clone(),
                quorums: vec![quorum],
                ttl_ms: 1,
            }),
            delay: Some(DelayNeed { grants, ms: 1, why: "a new destination".to_owned() }),
            shadows: vec![],
            fee_cap: None,
            event_use: None,
        }
    }

    #[test]
    fn where_nobody_can_wait_the_reason_is_what_would_be_waited_for() {
        let field = |outcome| {
            let reasons = cannot_wait(&verdict(outcome));
            reasons.into_iter().map(|reason| reason.field).collect::<Vec<_>>()
        };
        assert_eq!(field(Outcome::Delay), ["delay"]);
        assert_eq!(field(Outcome::NeedApproval), ["approval"]);
        assert!(field(Outcome::Deny).is_empty(), "its own reasons");
        let reason = cannot_wait(&verdict(Outcome::NeedApproval)).remove(0);
        assert_eq!(reason.grant, Some(GrantId::new("payouts")));
        assert!(reason.expected.contains("treasury"), "{reason:?}");
    }
}
