//! Judge a transaction without a nonce again, where the policy in force is another than the one that accepted
//! it, or where it has waited: a grant that was removed or has expired signs nothing, and what people approved
//! is signed only while it is, to the letter, what they approved.

use crate::app::facts::{self, Unread};
use crate::app::signers::Purpose;
use crate::app::{App, AppError, ChainRuntime, ask, clock_watch, policies, record};
use crate::core::audit::EncodedLeaf;
use crate::core::intent::{Fees, Intent};
use crate::core::policy::{Bundle, Outcome, PolicyRequest, Reason, Verdict, evaluate};
use crate::core::time::Timestamp;
use crate::core::tx::state::Status;
use crate::ports::store::{
    Failure, Hold, NewEvent, StatusChange, StoreError, TransactionRow, Unit, WaitingRequest, look,
};

/// The code of the failure of what policy refused after it was accepted.
pub const POLICY_DENIED: &str = "policy-denied";

/// A decision this old is made again before a nonce is given, in milliseconds.
const DECISION_MS_MAX: i64 = 60_000;

/// A second verdict over a transaction without a nonce.
#[derive(Debug, Clone)]
pub struct Rejudged {
    request: PolicyRequest,
    /// The version of the row that was judged.
    pub version: i64,
    /// What policy says now.
    pub verdict: Verdict,
    /// The whole decision, for the `DECIDED` leaf.
    pub decision_json: String,
    /// Whether the verdict wants approvals, and these very terms were approved and have let it go on.
    is_approved: bool,
    /// Whether it waited, and was let go on.
    was_released: bool,
    /// Why the verdict is not acted on yet, if it is not.
    unsettled: Option<&'static str>,
}

/// What a second verdict makes of a queued transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Again {
    /// It may be signed.
    Goes,
    /// It is refused.
    Refused(Vec<Reason>),
    /// It has to wait, or to be approved, or to be approved anew: it goes back to where it does.
    Waits,
}

/// Whether the verdict that accepted the row is too old to sign under.
#[must_use]
pub fn is_stale(app: &App, row: &TransactionRow, now: Timestamp) -> bool {
    is_foreign(app, row) || is_old(row, now)
}

/// Whether another bundle than the one in force decided, or the one in force is not known here.
#[must_use]
pub fn is_foreign(app: &App, row: &TransactionRow) -> bool {
    let unreadable = app.policy.must_be_readable().is_err();
    unreadable || row.new.decision.bundle != app.bundle().hash()
}

/// Whether the verdict is too old, whatever bundle is in force.
#[must_use]
pub fn is_old(row: &TransactionRow, now: Timestamp) -> bool {
    now.since(row.new.at) > DECISION_MS_MAX
}

/// Judges the row with fresh facts.
///
/// # Errors
/// When the store or the nodes do not answer.
pub async fn rejudge(
    app: &App,
    chain: &ChainRuntime,
    row: &TransactionRow,
    now: Timestamp,
) -> Result<Rejudged, AppError> {
    if row.new.decision.bundle != app.bundle().hash() {
        // Another process may have judged it by a newer bundle than this one knows yet.
        policies::catch_up(app).await?;
    }
    judge_under(app, chain, &app.bundle(), row, now).await
}

/// As [`rejudge`], by this bundle.
///
/// # Errors
/// When the store or the nodes do not answer.
pub async fn judge_under(
    app: &App,
    chain: &ChainRuntime,
    bundle: &Bundle,
    row: &TransactionRow,
    now: Timestamp,
) -> Result<Rejudged, AppError> {
    app.policy.must_be_readable()?;
    let (id, key) = (row.new.id, row.new.key);
    let (key, waited) = look(&*app.store, "rejudge", move |unit| {
        Box::pin(async move { Ok((unit.key(key).await?, unit.waiting_request(id).await?)) })
    })
    .await?;
    let key = key.ok_or_else(|| AppError::internal("a transaction's key is not there"))?;
    let intent = Intent::Transaction(Box::new(row.new.intent.clone()));
    let unread = Unread {
        principal: &row.new.principal,
        key: &key,
        intent,
        waiting_since: Some(row.new.at),
    };
    let mut request = facts::gather(app, bundle, unread, Purpose::Accept).await?;
    let verdict = evaluate(bundle, &request, now);
    let verdict = ask::settled(bundle, &mut request, verdict, now);
    let hold = Hold::of(id.to_string(), Some(chain.settings.id), &verdict, false);
    clock_watch::check(app, &hold).await?;
    let decision_json = record::decision_json(&request, &verdict, now);
    let was_released = waited.as_ref().is_some_and(|waited| waited.released_at.is_some());
    let is_approved = waited.is_some_and(|waited| is_approved(row, &waited, &request, &verdict));
    Ok(Rejudged {
        unsettled: unsettled(&request, &verdict),
        request,
        version: row.version,
        verdict,
        decision_json,
        is_approved,
        was_released,
    })
}

/// Why a second verdict over a request that names an event says nothing yet. The event was there when the request
/// was accepted, and this is one node's word: a node that lags does not see it, or not that its block is final.
/// A denial would stand for ever.
fn unsettled(request: &PolicyRequest, verdict: &Verdict) -> Option<&'static str> {
    let Intent::Transaction(intent) = &request.intent else { return None };
    intent.source?;
    if !request.facts.event.as_ref().is_some_and(|event| event.canonical) {
        return Some("the node that was asked does not see its source event");
    }
    let is_early = verdict.reasons.iter().any(|reason| reason.field == "event.finalized");
    let early = "by the node that was asked, its source event is not final yet";
    (verdict.outcome == Outcome::Deny && is_early).then_some(early)
}

/// Whether what the verdict wants to be approved is, to the letter, what was approved and has let the row go on.
pub(crate) fn is_approved(
    row: &TransactionRow,
    waited: &WaitingRequest,
    request: &PolicyRequest,
    verdict: &Verdict,
) -> bool {
    verdict.outcome == Outcome::NeedApproval
        && row.status == Status::Queued
        && waited.released_at.is_some()
        && record::terms(row.new.id, request, verdict, Some(waited.due_at)).1 == waited.hash
}

/// Everything that ending a refused row writes.
#[derive(Debug, Clone)]
pub struct Refusal {
    change: StatusChange,
    leaf: EncodedLeaf,
    event: NewEvent,
}

impl Rejudged {
    /// What becomes of a queued row.
    #[must_use]
    pub fn again(&self) -> Again {
        match self.verdict.outcome {
            Outcome::Allow => Again::Goes,
            Outcome::NeedApproval if self.is_approved => Again::Goes,
            Outcome::NeedApproval | Outcome::Delay => Again::Waits,
            Outcome::Deny => Again::Refused(self.verdict.reasons.clone()),
        }
    }

    /// Why this verdict must not be acted on where it ends, or lets go on, what has no nonce: one node's word
    /// about its source event is not what it was. Whoever asks looks whether the event still stands.
    pub(crate) const fn unsettled(&self) -> Option<&'static str> {
        self.unsettled
    }

    /// The request with the facts it was judged with.
    pub(crate) const fn request(&self) -> &PolicyRequest {
        &self.request
    }

    /// The most that may be offered: no more than before.
    pub(crate) fn fee_cap(&self, row: &TransactionRow) -> Fees {
        let before = row.new.fee_cap;
        self.verdict.fee_cap.map_or(before, |cap| before.at_most(cap))
    }

    /// The most that a transaction which has its nonce may offer; `None` where policy would not sign it now. What
    /// people let go on once is not asked for again: its bytes are out, and only its fees are new.
    pub(crate) fn most(&self, row: &TransactionRow) -> Option<Fees> {
        match self.verdict.outcome {
            Outcome::Allow => Some(self.fee_cap(row)),
            Outcome::NeedApproval if self.was_released => Some(self.fee_cap(row)),
            Outcome::NeedApproval | Outcome::Delay | Outcome::Deny => None,
        }
    }

    /// Prepares the end of a row that is refused for these reasons.
    ///
    /// # Errors
    /// When the leaf would be too long.
    pub fn refuse(
        &self,
        row: &TransactionRow,
        reasons: &[Reason],
        event_id: String,
        now: Timestamp,
    ) -> Result<Refusal, StoreError> {
        let failure =
            Failure { code: POLICY_DENIED.to_owned(), detail: record::refusal_detail(reasons) };
        let ended = TransactionRow { failure: Some(failure.clone()), ..row.clone() };
        Ok(Refusal {
            leaf: record::denied(row.new.id, &self.request, &self.verdict, reasons, now)?,
            event: record::status_event(&ended, Status::Failed, event_id, now),
            change: StatusChange {
                id: row.new.id,
                version: row.version,
                status: Status::Failed,
                mined: None,
                ending: None,
                failure: Some(failure),
                at: now,
            },
        })
    }
}

impl Refusal {
    /// Ends the row: nothing was signed, so what it held is free, and so is
    /// the event that it answered. `false` if it has moved on meanwhile.
    ///
    /// # Errors
    /// As the unit.
    pub async fn store(&self, unit: &mut dyn Unit) -> Result<bool, StoreError> {
        if !unit.advance(&self.change).await? {
            return Ok(false);
        }
        unit.release(&self.change.id.to_string()).await?;
        unit.free_events(self.change.id).await?;
        unit.append_leaf(&self.leaf).await?;
        unit.append_event(&self.event).await?;
        Ok(true)
    }
}
