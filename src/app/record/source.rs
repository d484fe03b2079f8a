//! What is written of source events that went away, and of keys that are bound anew.

use super::event::{Mined, transaction_data};
use super::{finish, map, or_none};
use crate::core::audit::{EncodedLeaf, Leaf, LeafKind, Value};
use crate::core::id::RequestId;
use crate::core::intent::EventSource;
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use crate::core::tx::state::Status;
use crate::ports::store::{KeyBinding, NewEvent, StoreError, TransactionRow};
use serde_json::json;

/// What became of a request whose source event is gone.
#[derive(Debug)]
pub struct SourceEnd<'a> {
    /// How it ended; `None` if it has a nonce, or was over, and is only flagged.
    pub became: Option<Status>,
    /// What the nodes say.
    pub why: &'a str,
    /// Who told us; nobody where it was seen before a nonce was given.
    pub by: Option<&'a Principal>,
}

fn place(source: EventSource) -> Value {
    map([
        ("block_hash", format!("{:#x}", source.block_hash).into()),
        ("transaction_hash", format!("{:#x}", source.transaction_hash).into()),
        ("log_index", source.log_index.into()),
    ])
}

/// The `SOURCE_GONE` leaf.
///
/// # Errors
/// When the leaf would be too long.
pub fn source_gone(
    row: &TransactionRow,
    end: &SourceEnd<'_>,
    at: Timestamp,
) -> Result<EncodedLeaf, StoreError> {
    let source = row.new.intent.source.map_or_else(|| Value::from(""), place);
    finish(
        Leaf::new(LeafKind::SourceGone, row.new.id, at)
            .with("source", source)
            .with("because", end.why)
            .with("was", row.status.name())
            .with("became", or_none(end.became.map(Status::name)))
            .with("iss", or_none(end.by.map(|by| &by.iss)))
            .with("sub", or_none(end.by.map(|by| &by.sub))),
    )
}

/// The `KEY_REBOUND` leaf: this request has the idempotency key of one that ended unsigned.
///
/// # Errors
/// When the leaf would be too long.
pub fn key_rebound(
    id: RequestId,
    before: &KeyBinding,
    at: Timestamp,
) -> Result<EncodedLeaf, StoreError> {
    finish(
        Leaf::new(LeafKind::KeyRebound, id, at)
            .with("scope", &before.scope)
            .with("key", &before.key)
            .with("before", before.request),
    )
}

/// The event `claviger.transaction.source_retracted`: with all that an event of its status has.
#[must_use]
pub(crate) fn source_retracted(
    row: &TransactionRow,
    mined: Mined<'_>,
    id: String,
    at: Timestamp,
) -> NewEvent {
    let source = row.new.intent.source.map(|source| {
        json!({
            "block_hash": format!("{:#x}", source.block_hash),
            "transaction_hash": format!("{:#x}", source.transaction_hash),
            "log_index": source.log_index,
        })
    });
    let mut data = transaction_data(row, row.status, mined);
    if let Some(fields) = data.as_object_mut() {
        fields.insert("source".to_owned(), source.into());
    }
    NewEvent {
        id,
        kind: "claviger.transaction.source_retracted".to_owned(),
        subject: row.new.id.to_string(),
        data_json: data.to_string(),
        at,
    }
}
