//! The server's own events: what happened, as others are told it. `docs/EVENTS.md` is the page about them.

use crate::core::key::PublicKey;
use crate::core::time::Timestamp;
use crate::core::tx::state::{Ending, Status};
use crate::ports::store::{MinedRow, NewEvent, TransactionRow};
use alloy::primitives::B256;
use serde_json::{Value, json};

/// A receipt, as resources and events show it.
#[must_use]
pub fn receipt(mined: &MinedRow) -> Value {
    json!({
        "transaction_hash": format!("{:#x}", mined.transaction_hash),
        "block_number": mined.block_number.to_string(),
        "block_hash": format!("{:#x}", mined.block_hash),
        "gas_used": mined.gas_used.to_string(),
        "effective_gas_price": mined.effective_gas_price.to_string(),
        "success": mined.success,
    })
}

/// The event of a change of status.
#[must_use]
pub fn status_event(row: &TransactionRow, status: Status, id: String, at: Timestamp) -> NewEvent {
    mined_event(row, status, None, id, at)
}

/// A receipt, and whether it is that of the request's no-op.
pub(crate) type Mined<'a> = Option<(&'a MinedRow, bool)>;

/// The event of a change of status by a block: with its receipt, and whether that is of the request's no-op.
#[must_use]
pub fn mined_event(
    row: &TransactionRow,
    status: Status,
    mined: Option<(&MinedRow, bool)>,
    id: String,
    at: Timestamp,
) -> NewEvent {
    let data = transaction_data(row, status, mined);
    NewEvent {
        id,
        kind: format!("claviger.transaction.{}", status.name()),
        subject: row.new.id.to_string(),
        data_json: data.to_string(),
        at,
    }
}

/// What every event of a transaction tells of it.
pub(super) fn transaction_data(row: &TransactionRow, status: Status, mined: Mined<'_>) -> Value {
    let intent = &row.new.intent;
    let metadata = serde_json::from_str(&row.new.metadata_json).unwrap_or_else(|_| json!({}));
    let is_failing = matches!(status, Status::Failed | Status::Cancelling | Status::Cancelled);
    let failure = row.failure.as_ref().filter(|_| is_failing).map(|failure| {
        // The first line is for everybody.
        json!({ "code": failure.code, "detail": failure.detail.lines().next().unwrap_or_default() })
    });
    let of = |is_no_op| mined.filter(|(_, no_op)| *no_op == is_no_op).map(|(it, _)| receipt(it));
    json!({
        "id": row.new.id.to_string(),
        "status": status.name(),
        "chain": intent.chain.name.as_str(),
        "chain_id": intent.chain.id.get().to_string(),
        "address": format!("{:#x}", row.new.address),
        "nonce": row.nonce.map(|nonce| nonce.to_string()),
        "to": intent.to.map(|to| format!("{to:#x}")),
        "value": intent.value.to_string(),
        "hash": mined.map(|(mined, _)| format!("{:#x}", mined.transaction_hash)),
        "receipt": of(false),
        "no_op_receipt": of(true),
        "ending": row.ending.map(Ending::name),
        "failure": failure,
        "metadata": metadata,
    })
}

/// What an event tells of a key.
pub(crate) struct KeyFacts<'a> {
    /// Its id.
    pub id: String,
    /// What people call it.
    pub label: &'a str,
    /// Its group.
    pub group: Option<&'a str>,
    /// Who gives its nonces.
    pub mode: &'a str,
    /// Its token.
    pub hsm: &'a str,
    /// Where its private half is kept.
    pub custody: &'a str,
    /// Its public key.
    pub public_key: PublicKey,
}

/// The event of a key that can be used from now on: `created` or `imported`.
pub(crate) fn key_event(key: &KeyFacts<'_>, what: &str, id: String, at: Timestamp) -> NewEvent {
    let data = json!({
        "id": key.id,
        "label": key.label,
        "group": key.group,
        "mode": key.mode,
        "hsm": key.hsm,
        "custody": key.custody,
        "address": format!("{:#x}", key.public_key.address()),
        "public_key": format!("0x{}", hex::encode(key.public_key.as_bytes())),
    });
    NewEvent {
        id,
        kind: format!("claviger.key.{what}"),
        subject: key.id.clone(),
        data_json: data.to_string(),
        at,
    }
}

/// The event of a bundle that is in force from now on, by `people` or from the `folder`. They are told in order:
/// what is told last is in force.
#[must_use]
pub fn policy_event(
    (hash, version): (B256, &str),
    replaced: Option<B256>,
    (way, serial): (&str, i64),
    id: String,
    at: Timestamp,
) -> NewEvent {
    let data = json!({
        "bundle": format!("{hash:#x}"),
        "version": version,
        "replaced": replaced.map(|hash| format!("{hash:#x}")),
        "way": way,
        "serial": serial.to_string(),
    });
    NewEvent {
        id,
        kind: "claviger.policy.activated".to_owned(),
        subject: "policy".to_owned(),
        data_json: data.to_string(),
        at,
    }
}
