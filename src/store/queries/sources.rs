//! Source events that are gone, keys that are bound anew, requests by the hash of an attempt.

use super::column::parsed;
use super::statement::{Tx, values};
use crate::core::id::RequestId;
use crate::core::time::Timestamp;
use crate::ports::store::{KeyBinding, Sources, StoreError};
use alloy::primitives::B256;
use async_trait::async_trait;
use sqlx::FromRow;

statements! {
    MARK_SOURCE_GONE = "UPDATE transactions SET source_gone_at = $2 \
        WHERE id = $1 AND source_gone_at IS NULL";
    // Compare and swap: of two requests that would have the key, one gets it.
    REBIND_KEY = "UPDATE idempotency_keys SET body_hash = $4, request_id = $5 \
        WHERE scope = $1 AND key = $2 AND request_id = $3";
    REQUEST_OF_HASH = "SELECT a.request_id FROM attempts a JOIN transactions t ON t.id = a.request_id \
        WHERE a.hash = $1";
}

#[derive(FromRow)]
struct RequestColumn {
    request_id: String,
}

async fn mark_source_gone(tx: &mut Tx, id: RequestId, at: Timestamp) -> Result<bool, StoreError> {
    Ok(tx.execute(MARK_SOURCE_GONE, values![id.to_string(), at.millis()]).await? == 1)
}

async fn rebind_key(
    tx: &mut Tx,
    before: &KeyBinding,
    anew: &KeyBinding,
) -> Result<bool, StoreError> {
    let values = values![
        before.scope.as_str(),
        before.key.as_str(),
        before.request.to_string(),
        anew.body_hash.as_slice(),
        anew.request.to_string(),
    ];
    Ok(tx.execute(REBIND_KEY, values).await? == 1)
}

async fn request_of_hash(tx: &mut Tx, hash: B256) -> Result<Option<RequestId>, StoreError> {
    let found = tx.one::<RequestColumn>(REQUEST_OF_HASH, values![hash.as_slice()]).await?;
    found.map(|row| parsed(&row.request_id)).transpose()
}

/// The first error of a unit is kept, so that it cannot be committed.
macro_rules! kept {
    ($tx:ident, $operation:expr) => {{
        let answer = $operation.await;
        $tx.kept(answer)
    }};
}

#[async_trait]
impl Sources for Tx {
    async fn mark_source_gone(&mut self, id: RequestId, at: Timestamp) -> Result<bool, StoreError> {
        kept!(self, mark_source_gone(self, id, at))
    }

    async fn rebind_key(
        &mut self,
        before: &KeyBinding,
        anew: &KeyBinding,
    ) -> Result<bool, StoreError> {
        kept!(self, rebind_key(self, before, anew))
    }

    async fn request_of_hash(&mut self, hash: B256) -> Result<Option<RequestId>, StoreError> {
        kept!(self, request_of_hash(self, hash))
    }
}
