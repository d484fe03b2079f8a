//! Resources as the API shows them.

use crate::app::read::FullTransaction;
use crate::app::rejudge::POLICY_DENIED;
use crate::app::{App, record, story};
use crate::core::key::OperatorKey;
use crate::core::tx::state::Status;
use crate::ports::store::{ADOPTED, AttemptRow, DecisionSummary, SignatureRow, is_no_op};
use serde_json::{Map, Value, json};

/// A transaction with what it waits for. Where that cannot be read, it is not told.
pub async fn story(app: &App, full: &FullTransaction, sees_all: bool) -> Value {
    let mut shown = transaction(full, sees_all);
    let waiting = story::waiting(app, full).await;
    if let (Ok(Some(waiting)), Value::Object(fields)) = (waiting, &mut shown) {
        let told = json!({
            "code": waiting.code.name(),
            "detail": waiting.detail,
            "since": waiting.since.map(|at| at.to_string()),
        });
        fields.insert("waiting".to_owned(), told);
    }
    shown
}

/// What its requester may know of the people it waits for: how many, and until when.
fn approval(full: &FullTransaction) -> Option<Value> {
    let (wait, given) = full.waits.as_ref()?;
    let status = full.row.status.name();
    if full.row.status == Status::Delayed {
        return Some(json!({ "status": status, "until": wait.due_at.to_string() }));
    }
    let people = wait.quorums.iter().map(|quorum| quorum.values().map(|n| u64::from(*n)).sum());
    Some(json!({
        "status": status,
        "needed": people.max().unwrap_or(0_u64),
        "given": given.iter().filter(|given| given.hash == wait.hash).count(),
        "expires_at": wait.due_at.to_string(),
    }))
}

/// A transaction. Why policy refused it after it was accepted has a line for everybody, and more for those who
/// may see all reasons.
#[must_use]
pub fn transaction(full: &FullTransaction, sees_all: bool) -> Value {
    let row = &full.row;
    let intent = &row.new.intent;
    let attempts: Vec<Value> = full.attempts.iter().map(|it| attempt(full, it)).collect();
    let mut shown = json!({
        "id": row.new.id.to_string(),
        "status": row.status.name(),
        "chain": intent.chain.name.as_str(),
        "signer": row.new.signer,
        "address": format!("{:#x}", row.new.address),
        "nonce": row.nonce.map(|nonce| nonce.to_string()),
        "type": intent.tx_type.name(),
        "to": intent.to.map(|to| format!("{to:#x}")),
        "value": intent.value.to_string(),
        "data": format!("{:#x}", intent.data),
        "gas": intent.gas.to_string(),
        "attempts": attempts,
        "decision": decision(&row.new.decision),
        "metadata": metadata(&row.new.metadata_json),
        "created_at": row.new.at.to_string(),
        "updated_at": row.updated_at.to_string(),
    });
    let mut optional = Map::new();
    if let Some(mined) = &row.mined {
        // Who reads `receipt.success` must not take a no-op for what was asked.
        let name = if is_no_op(&full.attempts, mined.transaction_hash) {
            "no_op_receipt"
        } else {
            "receipt"
        };
        optional.insert(name.to_owned(), record::receipt(mined));
    }
    if let Some(ending) = row.ending.filter(|_| row.status == Status::Cancelling) {
        optional.insert("ending".to_owned(), json!(ending.name()));
    }
    let tells_failure =
        matches!(row.status, Status::Failed | Status::Cancelling | Status::Cancelled);
    if let Some(failure) = row.failure.as_ref().filter(|_| tells_failure) {
        let is_told = sees_all || failure.code != POLICY_DENIED;
        let line = failure.detail.lines().next().unwrap_or_default();
        let detail = if is_told { failure.detail.as_str() } else { line };
        let shown = json!({ "code": failure.code, "detail": detail });
        optional.insert("failure".to_owned(), shown);
    }
    if let Some(approval) = approval(full) {
        optional.insert("approval".to_owned(), approval);
    }
    if full.attempts.iter().any(|attempt| attempt.reason == ADOPTED) {
        optional.insert("adopted".to_owned(), json!(true));
    }
    if let Some(limit) = intent.not_after {
        optional.insert("not_after".to_owned(), json!(limit.to_string()));
    }
    if let Some(source) = intent.source {
        let shown = json!({
            "block_hash": format!("{:#x}", source.block_hash),
            "transaction_hash": format!("{:#x}", source.transaction_hash),
            "log_index": source.log_index,
        });
        optional.insert("source".to_owned(), shown);
    }
    if let Some(at) = row.source_gone_at {
        optional.insert("source_gone_at".to_owned(), json!(at.to_string()));
    }
    if let Value::Object(fields) = &mut shown {
        fields.extend(optional);
    }
    shown
}

fn metadata(json: &str) -> Value {
    serde_json::from_str(json).unwrap_or_else(|_| json!({}))
}

fn attempt(full: &FullTransaction, attempt: &AttemptRow) -> Value {
    json!({
        "number": attempt.number,
        "state": story::state(full, attempt),
        "reason": attempt.reason,
        "because": story::because(full, attempt),
        "kind": if attempt.is_no_op() { "no_op" } else { "payload" },
        "hash": attempt.hash.map(|hash| format!("{hash:#x}")),
        "raw": attempt.raw.as_ref().map(|raw| format!("{raw:#x}")),
        "max_fee_per_gas": attempt.fees.max_fee.to_string(),
        "max_priority_fee_per_gas": attempt.fees.max_priority_fee.to_string(),
        "decided_at": attempt.decided_at.to_string(),
        "signed_at": attempt.signed_at.map(|at| at.to_string()),
        "first_sent_at": attempt.first_sent_at.map(|at| at.to_string()),
        "sent_at": attempt.sent_at.map(|at| at.to_string()),
        "sends": attempt.sends,
        "accepted_at": attempt.accepted_at.map(|at| at.to_string()),
        "answer": attempt.answer,
        "answer_detail": attempt.answer_detail,
        "refused_since": attempt.refused_since.map(|at| at.to_string()),
        "refusal": attempt.refusal,
    })
}

fn decision(decision: &DecisionSummary) -> Value {
    json!({
        "outcome": decision.outcome,
        "bundle": format!("{:#x}", decision.bundle),
        "grants": decision.grants,
    })
}

/// A signature, or the promise of one.
#[must_use]
pub fn signature(row: &SignatureRow) -> Value {
    let attempt = &row.attempt;
    let mut shown = json!({
        "id": row.new.id.to_string(),
        "kind": row.new.kind.name(),
        "address": format!("{:#x}", row.new.address),
        "decision": decision(&row.new.decision),
        "created_at": row.new.at.to_string(),
    });
    let Value::Object(fields) = &mut shown else {
        return shown;
    };
    if let Some(signature) = &attempt.signature {
        let v: u8 = if signature.y_parity { 28 } else { 27 };
        let bytes = [signature.r.as_slice(), &signature.s, &[v]].concat();
        let parts = json!({
            "r": format!("0x{}", hex::encode(signature.r)),
            "s": format!("0x{}", hex::encode(signature.s)),
            "v": v,
            "y_parity": u8::from(signature.y_parity),
            "bytes": format!("0x{}", hex::encode(bytes)),
        });
        fields.insert("signature".to_owned(), parts);
    }
    if let (Some(raw), Some(hash)) = (&attempt.raw, &attempt.hash) {
        fields.insert("raw".to_owned(), json!(format!("{raw:#x}")));
        fields.insert("hash".to_owned(), json!(format!("{hash:#x}")));
    }
    shown
}

/// A key: public facts only.
#[must_use]
pub fn key(key: &OperatorKey) -> Value {
    json!({
        "id": key.id.to_string(),
        "label": key.label,
        "hsm": key.hsm.as_str(),
        "custody": key.custody.name(),
        "group": key.group.as_ref().map(|group| group.as_str()),
        "mode": key.mode.name(),
        "state": key.state.name(),
        "address": format!("{:#x}", key.address),
        "public_key": format!("0x{}", hex::encode(key.public_key.as_bytes())),
        "created_at": key.created_at.to_string(),
    })
}
