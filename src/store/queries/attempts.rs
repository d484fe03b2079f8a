//! Decisions and the signatures of them.

use super::column::{corrupt, exactly_one, hash, parsed, price, price_bytes};
use super::keys::custody;
use super::statement::{Tx, values};
use crate::core::id::{HsmName, RequestId};
use crate::core::intent::Fees;
use crate::core::key::PublicKey;
use crate::core::permit::{DecisionRecord, PayloadKind, RawSignature};
use crate::core::time::Timestamp;
use crate::ports::store::{AttemptRow, NewAttempt, Sent, SignedAttempt, StoreError};
use sqlx::FromRow;

/// What every answer changes, and what this one does besides.
macro_rules! told {
    ($besides:literal) => {
        concat!(
            "UPDATE attempts SET first_sent_at = COALESCE(first_sent_at, $3), sent_at = $3, \
             sends = sends + 1, answer = $4, answer_detail = $5",
            $besides,
            " WHERE request_id = $1 AND number = $2"
        )
    };
}

statements! {
    INSERT_ATTEMPT = "INSERT INTO attempts (request_id, number, reason, key_id, kind, bytes, digest, \
        max_fee, max_tip, decided_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
        ON CONFLICT (request_id, number) DO NOTHING";
    DECISION = "SELECT a.request_id, a.number, a.key_id, a.kind, a.bytes, a.digest, k.public_key, \
        k.address, k.hsm, k.wrapped, k.wrapped_under FROM attempts a JOIN operator_keys k ON k.id = a.key_id \
        WHERE a.request_id = $1 AND a.number = $2";
    ATTEMPTS = "SELECT * FROM attempts WHERE request_id = $1 ORDER BY number";
    UNSIGNED_ATTEMPTS = "SELECT a.request_id, a.number FROM attempts a \
        WHERE a.signature IS NULL AND (a.reason = 'no_op' OR NOT EXISTS (SELECT 1 \
        FROM transactions t WHERE t.id = a.request_id AND t.ending IS NOT NULL)) \
        ORDER BY a.decided_at, a.request_id, a.number";
    STORE_SIGNATURE = "UPDATE attempts SET signature = $3, raw = $4, hash = $5, signed_at = $6 \
        WHERE request_id = $1 AND number = $2 AND signature IS NULL";
    MARK_SENT = told!(", refused_since = NULL, refused_at = NULL, refusal = NULL");
    MARK_ACCEPTED = told!(", accepted_at = COALESCE(accepted_at, $3), refused_since = NULL, \
        refused_at = NULL, refusal = NULL");
    MARK_REFUSED = told!(", refused_since = COALESCE(refused_since, $3), refused_at = $3, \
        refusal = $6");
    MARK_TRIED = told!("");
}

#[derive(FromRow)]
pub(super) struct AttemptColumns {
    number: i64,
    reason: String,
    bytes: Vec<u8>,
    max_fee: Vec<u8>,
    max_tip: Vec<u8>,
    decided_at: i64,
    signature: Option<Vec<u8>>,
    raw: Option<Vec<u8>>,
    hash: Option<Vec<u8>>,
    signed_at: Option<i64>,
    first_sent_at: Option<i64>,
    sent_at: Option<i64>,
    sends: i64,
    answer: Option<String>,
    answer_detail: Option<String>,
    accepted_at: Option<i64>,
    refused_since: Option<i64>,
    refused_at: Option<i64>,
    refusal: Option<String>,
}

impl AttemptColumns {
    pub(super) fn read(self) -> Result<AttemptRow, StoreError> {
        Ok(AttemptRow {
            number: self.number,
            reason: self.reason,
            bytes: self.bytes,
            fees: Fees { max_fee: price(&self.max_fee)?, max_priority_fee: price(&self.max_tip)? },
            decided_at: Timestamp::from_millis(self.decided_at),
            signature: self.signature.as_deref().map(read_signature).transpose()?,
            raw: self.raw.map(Into::into),
            hash: self.hash.as_deref().map(hash).transpose()?,
            signed_at: self.signed_at.map(Timestamp::from_millis),
            first_sent_at: self.first_sent_at.map(Timestamp::from_millis),
            sent_at: self.sent_at.map(Timestamp::from_millis),
            sends: self.sends,
            answer: self.answer,
            answer_detail: self.answer_detail,
            accepted_at: self.accepted_at.map(Timestamp::from_millis),
            refused_since: self.refused_since.map(Timestamp::from_millis),
            refused_at: self.refused_at.map(Timestamp::from_millis),
            refusal: self.refusal,
        })
    }
}

/// `r || s || y_parity`, 65 bytes.
fn write_signature(signature: &RawSignature) -> Vec<u8> {
    [signature.r.as_slice(), &signature.s, &[u8::from(signature.y_parity)]].concat()
}

fn read_signature(bytes: &[u8]) -> Result<RawSignature, StoreError> {
    let broken = || corrupt("a signature");
    let part = |range| bytes.get(range).and_then(|part| <[u8; 32]>::try_from(part).ok());
    let y_parity = match bytes.get(64..) {
        Some([0]) => false,
        Some([1]) => true,
        _ => return Err(broken()),
    };
    let (Some(r), Some(s)) = (part(0..32), part(32..64)) else {
        return Err(broken());
    };
    Ok(RawSignature { r, s, y_parity })
}

#[derive(FromRow)]
struct DecisionColumns {
    request_id: String,
    number: i64,
    key_id: String,
    kind: String,
    bytes: Vec<u8>,
    digest: Vec<u8>,
    public_key: Option<Vec<u8>>,
    address: Option<Vec<u8>>,
    hsm: String,
    wrapped: Option<Vec<u8>>,
    wrapped_under: Option<Vec<u8>>,
}

#[derive(FromRow)]
struct Place {
    request_id: String,
    number: i64,
}

pub(super) async fn insert_attempt(tx: &mut Tx, row: &NewAttempt) -> Result<bool, StoreError> {
    let values = values![
        row.request.to_string(),
        row.number,
        row.reason,
        row.key.to_string(),
        row.kind.name(),
        row.bytes.as_slice(),
        row.digest.as_slice(),
        price_bytes(row.fees.max_fee).as_slice(),
        price_bytes(row.fees.max_priority_fee).as_slice(),
        row.at.millis(),
    ];
    Ok(tx.execute(INSERT_ATTEMPT, values).await? == 1)
}

pub(super) async fn decision(
    tx: &mut Tx,
    request: RequestId,
    attempt: i64,
) -> Result<Option<DecisionRecord>, StoreError> {
    let values = values![request.to_string(), attempt];
    let Some(row) = tx.one::<DecisionColumns>(DECISION, values).await? else {
        return Ok(None);
    };
    let key = row.public_key.as_deref().and_then(PublicKey::from_sec1);
    let key = key.ok_or_else(|| corrupt("a pinned public key"))?;
    if row.address.as_deref() != Some(key.address().as_slice()) {
        return Err(corrupt("the address of a key"));
    }
    Ok(Some(DecisionRecord {
        request: parsed(&row.request_id)?,
        attempt: row.number,
        key: parsed(&row.key_id)?,
        public_key: key,
        hsm: HsmName::new(row.hsm),
        custody: custody(row.wrapped, row.wrapped_under)?,
        kind: PayloadKind::from_name(&row.kind).ok_or_else(|| corrupt("an attempt's kind"))?,
        bytes: row.bytes,
        digest: hash(&row.digest)?,
    }))
}

pub(super) async fn attempts(
    tx: &mut Tx,
    request: RequestId,
) -> Result<Vec<AttemptRow>, StoreError> {
    let rows = tx.all::<AttemptColumns>(ATTEMPTS, values![request.to_string()]).await?;
    rows.into_iter().map(AttemptColumns::read).collect()
}

pub(super) async fn unsigned_attempts(tx: &mut Tx) -> Result<Vec<(RequestId, i64)>, StoreError> {
    let rows = tx.all::<Place>(UNSIGNED_ATTEMPTS, values![]).await?;
    rows.into_iter().map(|row| Ok((parsed(&row.request_id)?, row.number))).collect()
}

pub(super) async fn store_signature(
    tx: &mut Tx,
    signed: &SignedAttempt,
) -> Result<bool, StoreError> {
    let envelope = signed.envelope.as_ref();
    let values = values![
        signed.request.to_string(),
        signed.number,
        write_signature(&signed.signature).as_slice(),
        envelope.map(|(raw, _)| raw.to_vec()),
        envelope.map(|(_, hash)| hash.to_vec()),
        signed.at.millis(),
    ];
    Ok(tx.execute(STORE_SIGNATURE, values).await? == 1)
}

pub(super) async fn mark_sent(
    tx: &mut Tx,
    request: RequestId,
    attempt: i64,
    sent: &Sent,
    told: &str,
    at: Timestamp,
) -> Result<(), StoreError> {
    let mut values = values![request.to_string(), attempt, at.millis(), sent.name(), told];
    let rows = match sent {
        Sent::Accepted => tx.execute(MARK_ACCEPTED, values).await?,
        Sent::Unfunded | Sent::Underpriced | Sent::Idle => tx.execute(MARK_SENT, values).await?,
        Sent::Unknown => tx.execute(MARK_TRIED, values).await?,
        Sent::Refused(why) => {
            values.extend(values![why.as_str()]);
            tx.execute(MARK_REFUSED, values).await?
        }
    };
    exactly_one(tx, "mark_sent", rows)
}
