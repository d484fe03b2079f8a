//! Judge a queued transaction again, where the policy in force is another than the one that accepted it,
//! or where it has waited: a grant that was removed or has expired signs nothing.

use crate::app::signers::Purpose;
use crate::app::{App, AppError, ChainRuntime, clock_watch, facts, record};
use crate::core::audit::EncodedLeaf;
use crate::core::intent::Intent;
use crate::core::policy::{Outcome, PolicyRequest, Reason, Verdict, evaluate};
use crate::core::time::Timestamp;
use crate::core::tx::state::Status;
use crate::ports::store::{
    Failure, Hold, NewEvent, StatusChange, StoreError, TransactionRow, Unit, look,
};

/// A decision this old is made again before a nonce is given, in milliseconds.
const DECISION_MS_MAX: i64 = 60_000;

/// A second verdict over a queued transaction.
#[derive(Debug, Clone)]
pub struct Rejudged {
    request: PolicyRequest,
    /// What policy says now.
    pub verdict: Verdict,
    /// The whole decision, for the `DECIDED` leaf.
    pub decision_json: String,
}

/// Whether the verdict that accepted the row is too old to sign under.
#[must_use]
pub fn is_stale(app: &App, row: &TransactionRow, now: Timestamp) -> bool {
    row.new.decision.bundle != app.bundle().hash() || is_old(row, now)
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
    let id = row.new.key;
    let key =
        look(&*app.store, "key", move |unit| Box::pin(async move { unit.key(id).await })).await?;
    let key = key.ok_or_else(|| AppError::internal("a transaction's key is not there"))?;
    let intent = Intent::Transaction(Box::new(row.new.intent.clone()));
    let bundle = app.bundle();
    let asked = (&intent, key.address);
    let facts = facts::read(app, chain, &bundle, asked, Purpose::Accept).await?;
    let request = PolicyRequest {
        principal: row.new.principal.clone(),
        group: key.group,
        key: key.id,
        address: key.address,
        facts,
        intent,
    };
    let verdict = evaluate(&bundle, &request, now);
    let hold = Hold::of(row.new.id.to_string(), Some(chain.settings.id), &verdict, false);
    clock_watch::check(app, &hold).await?;
    let decision_json = record::decision_json(&request, &verdict, now);
    Ok(Rejudged { request, verdict, decision_json })
}

/// Everything that ending a refused row writes.
#[derive(Debug, Clone)]
pub struct Refusal {
    change: StatusChange,
    leaf: EncodedLeaf,
    event: NewEvent,
}

impl Rejudged {
    /// Why it is refused now, if it is.
    #[must_use]
    pub fn refusal(&self) -> Option<Vec<Reason>> {
        (self.verdict.outcome != Outcome::Allow).then(|| self.verdict.reasons.clone())
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
        let fields: Vec<&str> = reasons.iter().map(|reason| reason.field.as_str()).collect();
        let failure = Failure {
            code: "policy-denied".to_owned(),
            detail: format!("refused before a nonce was given: {}", fields.join(", ")),
        };
        Ok(Refusal {
            leaf: record::denied(row.new.id, &self.request, &self.verdict, reasons, now)?,
            event: record::status_event(row, Status::Failed, event_id, now),
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
    /// Ends the row: nothing was signed, so what it held is free. `false` if it has moved on meanwhile.
    ///
    /// # Errors
    /// As the unit.
    pub async fn store(&self, unit: &mut dyn Unit) -> Result<bool, StoreError> {
        if !unit.advance(&self.change).await? {
            return Ok(false);
        }
        unit.release(&self.change.id.to_string()).await?;
        unit.append_leaf(&self.leaf).await?;
        unit.append_event(&self.event).await?;
        Ok(true)
    }
}
