//! What approvals and delays leave in the audit log and tell as events.

use super::{Instruction, effects, finish, intent, list, map, or_none};
use crate::core::approval::{Terms, hash};
use crate::core::audit::{EncodedLeaf, Leaf, LeafKind, Value};
use crate::core::id::RequestId;
use crate::core::policy::verdict::{ApprovalNeed, DelayNeed};
use crate::core::policy::{PolicyRequest, Verdict};
use crate::core::time::Timestamp;
use crate::ports::store::{GivenApproval, NewEvent, StoreError, TransactionRow, WaitingRequest};
use alloy::primitives::B256;
use std::collections::BTreeMap;

/// The text that people approve, and its hash. Facts are not in it: the block at which a contract's code was
/// read may be another one each time, and what follows from them is in the effects.
#[must_use]
pub fn terms(
    id: RequestId,
    request: &PolicyRequest,
    verdict: &Verdict,
    expires_at: Option<Timestamp>,
) -> (String, B256) {
    let terms = Terms {
        request: id,
        principal: &request.principal,
        key: request.key,
        address: request.address,
        asked: intent(&request.intent),
        effects: effects(&verdict.effects),
        grants: &verdict.grants,
        need: verdict.approval.as_ref(),
        bundle: verdict.bundle,
        expires_at,
    };
    let text = terms.text();
    let hash = hash(&text);
    (text, hash)
}

/// Who must approve, as a decision says it.
pub(super) fn need(need: &ApprovalNeed) -> Value {
    let quorum = |quorum: &BTreeMap<String, u32>| {
        list_of(quorum.iter().map(|(group, count)| format!("{count} of {group}").into()))
    };
    map([
        ("grants", list(&need.grants, |grant| grant.into())),
        ("quorums", list(&need.quorums, quorum)),
        ("ttl_ms", need.ttl_ms.into()),
    ])
}

/// How long it must wait, as a decision says it.
pub(super) fn delay(delay: &DelayNeed) -> Value {
    map([
        ("grants", list(&delay.grants, |grant| grant.into())),
        ("ms", delay.ms.into()),
        ("why", (&delay.why).into()),
    ])
}

fn list_of(items: impl Iterator<Item = Value>) -> Value {
    Value::List(items.collect())
}

/// The `APPROVAL_REQUESTED` leaf: the terms in full.
///
/// # Errors
/// When the leaf would be too long.
pub fn approval_requested(wait: &WaitingRequest) -> Result<EncodedLeaf, StoreError> {
    finish(
        Leaf::new(LeafKind::ApprovalRequested, wait.request, wait.asked_at)
            .with("hash", format!("{:#x}", wait.hash))
            .with("terms", &wait.terms)
            .with("expires_at", wait.due_at),
    )
}

/// The `APPROVED` leaf.
///
/// # Errors
/// When the leaf would be too long.
pub fn approved(given: &GivenApproval) -> Result<EncodedLeaf, StoreError> {
    finish(
        Leaf::new(LeafKind::Approved, given.request, given.at)
            .with("hash", format!("{:#x}", given.hash))
            .with("iss", &given.who.iss)
            .with("sub", &given.who.sub)
            .with("reason", &given.reason),
    )
}

/// The `REJECTED` leaf.
///
/// # Errors
/// When the leaf would be too long.
pub fn rejected(
    id: RequestId,
    hash: B256,
    said: &Instruction,
    at: Timestamp,
) -> Result<EncodedLeaf, StoreError> {
    finish(
        Leaf::new(LeafKind::Rejected, id, at)
            .with("hash", format!("{hash:#x}"))
            .with("iss", &said.who.iss)
            .with("sub", &said.who.sub)
            .with("reason", or_none(said.reason.as_ref())),
    )
}

/// The `RELEASED` leaf: what it was judged to be now, and whose approvals let it go on.
///
/// # Errors
/// When the leaf would be too long.
pub fn released(
    id: RequestId,
    terms: Option<B256>,
    approved_by: &[&GivenApproval],
    decision_json: &str,
    at: Timestamp,
) -> Result<EncodedLeaf, StoreError> {
    let people = approved_by.iter().map(|given| Value::from(&given.who.sub)).collect();
    finish(
        Leaf::new(LeafKind::Released, id, at)
            .with("hash", or_none(terms.map(|hash| format!("{hash:#x}"))))
            .with("approved_by", Value::List(people))
            .with("decision", decision_json),
    )
}

/// The event that tells who may approve that they are asked.
#[must_use]
pub fn requested_event(row: &TransactionRow, wait: &WaitingRequest, id: String) -> NewEvent {
    let groups = wait.quorums.iter().flat_map(|quorum| quorum.keys());
    let groups: std::collections::BTreeSet<&String> = groups.collect();
    event(row, "requested", id, wait.asked_at, |data| {
        data.insert("hash".to_owned(), format!("{:#x}", wait.hash).into());
        data.insert("groups".to_owned(), serde_json::json!(groups));
        data.insert("expires_at".to_owned(), wait.due_at.to_string().into());
    })
}

/// The event that tells how it was decided: `approved`, `rejected` or `expired`.
#[must_use]
pub fn decided_event(
    row: &TransactionRow,
    hash: B256,
    decision: &str,
    id: String,
    at: Timestamp,
) -> NewEvent {
    event(row, "decided", id, at, |data| {
        data.insert("hash".to_owned(), format!("{hash:#x}").into());
        data.insert("decision".to_owned(), decision.into());
    })
}

fn event(
    row: &TransactionRow,
    what: &str,
    id: String,
    at: Timestamp,
    fill: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>),
) -> NewEvent {
    let mut data = serde_json::Map::new();
    data.insert("id".to_owned(), row.new.id.to_string().into());
    data.insert("chain".to_owned(), row.new.intent.chain.name.as_str().into());
    fill(&mut data);
    NewEvent {
        id,
        kind: format!("claviger.approval.{what}"),
        subject: row.new.id.to_string(),
        data_json: serde_json::Value::Object(data).to_string(),
        at,
    }
}
