//! Requests for signatures: messages, typed data, transactions of external accounts.

use super::attempts::attempts;
use super::column::{address, corrupt, exactly_one, parsed, to_i64, to_u64};
use super::rows::summary;
use super::statement::{Tx, values};
use crate::core::id::{ChainId, RequestId};
use crate::core::permit::PayloadKind;
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use crate::ports::store::{NewSignatureRequest, SignatureRow, StoreError};
use sqlx::FromRow;

statements! {
    INSERT_SIGNATURE = "INSERT INTO signature_requests (id, iss, sub, kind, chain_id, nonce, key_id, \
        address, owner, settled, outcome, bundle, grants, created_at) \
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)";
    SIGNATURE = "SELECT * FROM signature_requests WHERE id = $1";
    UNSETTLED_SIGNATURES = "SELECT * FROM signature_requests WHERE chain_id = $1 AND settled = 0 \
        ORDER BY address, nonce, id";
    MARK_SETTLED = "UPDATE signature_requests SET settled = 1 WHERE owner = $1 AND settled = 0 AND NOT EXISTS \
        (SELECT 1 FROM limit_entries WHERE limit_entries.owner = $1 AND settled_at IS NULL)";
}

#[derive(FromRow)]
struct SignatureColumns {
    id: String,
    iss: String,
    sub: String,
    kind: String,
    chain_id: Option<i64>,
    nonce: Option<i64>,
    key_id: String,
    address: Vec<u8>,
    owner: Option<String>,
    outcome: String,
    bundle: Vec<u8>,
    grants: String,
    created_at: i64,
}

impl SignatureColumns {
    async fn read(self, tx: &mut Tx) -> Result<SignatureRow, StoreError> {
        let id: RequestId = parsed(&self.id)?;
        let new = NewSignatureRequest {
            id,
            principal: Principal { iss: self.iss, sub: self.sub },
            kind: PayloadKind::from_name(&self.kind).ok_or_else(|| corrupt("a kind"))?,
            chain: self.chain_id.map(to_u64).transpose()?.map(ChainId::new),
            nonce: self.nonce.map(to_u64).transpose()?,
            key: parsed(&self.key_id)?,
            address: address(&self.address)?,
            owner: self.owner,
            decision: summary(self.outcome, &self.bundle, &self.grants)?,
            at: Timestamp::from_millis(self.created_at),
        };
        let mut found = attempts(tx, id).await?;
        match found.pop() {
            Some(attempt) => Ok(SignatureRow { new, attempt }),
            None => Err(tx.corrupt("a signature request has no decision")),
        }
    }
}

pub(super) async fn insert_signature(
    tx: &mut Tx,
    row: &NewSignatureRequest,
) -> Result<(), StoreError> {
    // Only what is held under an owner with a nonce has something to settle later.
    let settled = i64::from(row.owner.is_none() || row.nonce.is_none());
    let values = values![
        row.id.to_string(),
        row.principal.iss.as_str(),
        row.principal.sub.as_str(),
        row.kind.name(),
        row.chain.map(|chain| to_i64(chain.get())).transpose()?,
        row.nonce.map(to_i64).transpose()?,
        row.key.to_string(),
        row.address.as_slice(),
        row.owner.clone(),
        settled,
        row.decision.outcome.as_str(),
        row.decision.bundle.as_slice(),
        row.decision.grants.join(","),
        row.at.millis(),
    ];
    let rows = tx.execute(INSERT_SIGNATURE, values).await?;
    exactly_one(tx, "insert_signature", rows)
}

pub(super) async fn signature(
    tx: &mut Tx,
    id: RequestId,
) -> Result<Option<SignatureRow>, StoreError> {
    match tx.one::<SignatureColumns>(SIGNATURE, values![id.to_string()]).await? {
        Some(row) => Ok(Some(row.read(tx).await?)),
        None => Ok(None),
    }
}

pub(super) async fn unsettled_signatures(
    tx: &mut Tx,
    chain: ChainId,
) -> Result<Vec<SignatureRow>, StoreError> {
    let values = values![to_i64(chain.get())?];
    let rows = tx.all::<SignatureColumns>(UNSETTLED_SIGNATURES, values).await?;
    let mut answer = Vec::with_capacity(rows.len());
    for row in rows {
        answer.push(row.read(tx).await?);
    }
    Ok(answer)
}

/// What was decided while the others settled still holds something: it stays on the list, to be settled
/// by the next look. One statement sees a decision with what it holds, or neither.
pub(super) async fn mark_settled(tx: &mut Tx, owner: &str) -> Result<bool, StoreError> {
    Ok(tx.execute(MARK_SETTLED, values![owner]).await? > 0)
}
