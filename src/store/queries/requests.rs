//! Idempotency keys, claimed events, transactions.

use super::column::{exactly_one, hash, parsed, price_bytes, to_i64};
use super::rows::{TX_ACCESS, TransactionColumns};
use super::statement::{Tx, Value, values};
use crate::core::id::RequestId;
use crate::core::intent::Fees;
use crate::core::policy::verdict::EventUse;
use crate::core::tx::state::Status;
use crate::ports::store::{
    Bound, DecisionSummary, Filter, KeyBinding, MinedRow, NewEvent, NewTransaction, StatusChange,
    StoreError, TransactionRow,
};
use sqlx::FromRow;

statements! {
    BIND_KEY = "INSERT INTO idempotency_keys (scope, key, body_hash, request_id) \
        VALUES ($1, $2, $3, $4) ON CONFLICT (scope, key) DO NOTHING";
    BOUND_KEY = "SELECT body_hash, request_id FROM idempotency_keys WHERE scope = $1 AND key = $2";
    CLAIM_EVENT = "INSERT INTO claimed_events \
        (chain, block_hash, log_index, used_for, transaction_hash, request_id) \
        VALUES ($1, $2, $3, $4, $5, $6) \
        ON CONFLICT (chain, block_hash, log_index, used_for) DO NOTHING";
    CLAIMED_BY = "SELECT request_id FROM claimed_events \
        WHERE chain = $1 AND block_hash = $2 AND log_index = $3 AND used_for = $4";
    FREE_EVENTS = "DELETE FROM claimed_events WHERE request_id = $1 \
        AND NOT EXISTS (SELECT 1 FROM attempts WHERE request_id = $1)";
    INSERT_TRANSACTION = "INSERT INTO transactions (id, iss, sub, chain, chain_id, signer, key_id, \
        address, status, tx_type, recipient, value, data, gas, cap_fee, cap_tip, access_list, \
        not_after, source_block, source_tx, source_log, outcome, bundle, grants, decision, metadata, \
        created_at, updated_at, version) \
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, \
        $19, $20, $21, $22, $23, $24, $25, $26, $27, $27, 0)";
    TRANSACTION = "SELECT * FROM transactions WHERE id = $1";
    TRANSACTIONS = "SELECT * FROM transactions WHERE ((iss = $1 AND sub = $2) OR $1 IS NULL) \
        AND (status = $3 OR $3 IS NULL) AND (chain = $4 OR $4 IS NULL) \
        AND (signer = $5 OR $5 IS NULL) \
        AND created_at >= $6 AND created_at < $7 AND seq < $8 ORDER BY seq DESC LIMIT $9";
    COUNT_BY_STATUS = "SELECT status, COUNT(*) AS n FROM transactions GROUP BY status";
    ADVANCE = "UPDATE transactions SET status = $3, mined_hash = $4, mined_block = $5, \
        mined_number = $6, mined_gas_used = $7, mined_price = $8, mined_success = $9, \
        failure_code = COALESCE($10, failure_code), \
        failure_detail = COALESCE($11, failure_detail), updated_at = $12, \
        ending = COALESCE($13, ending), waits_code = NULL, waits_detail = NULL, \
        waits_since = NULL, version = version + 1 \
        WHERE id = $1 AND version = $2";
    TOUCH = "UPDATE transactions SET version = version + 1 WHERE id = $1 AND version = $2";
    DECIDE_AGAIN = "UPDATE transactions SET cap_fee = $2, cap_tip = $3, outcome = $4, bundle = $5, \
        grants = $6, decision = $7 WHERE id = $1 \
        AND status IN ('queued', 'delayed', 'awaiting_approval')";
    APPEND_EVENT = "INSERT INTO events (id, kind, subject, data, created_at) \
        VALUES ($1, $2, $3, $4, $5)";
    EVENTS_OF = "SELECT id, kind, subject, data, created_at FROM events WHERE subject = $1 \
        ORDER BY seq";
    META = "SELECT value FROM meta WHERE name = $1";
    SET_META_ONCE = "INSERT INTO meta (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
    SET_META = "INSERT INTO meta (name, value) VALUES ($1, $2) \
        ON CONFLICT (name) DO UPDATE SET value = excluded.value";
}

#[derive(FromRow)]
struct BindingColumns {
    body_hash: Vec<u8>,
    request_id: String,
}

#[derive(FromRow)]
struct RequestColumn {
    request_id: String,
}

#[derive(FromRow)]
struct StatusCount {
    status: String,
    n: i64,
}

#[derive(FromRow)]
struct ValueColumn {
    value: String,
}

#[derive(FromRow)]
struct EventColumns {
    id: String,
    kind: String,
    subject: String,
    data: String,
    created_at: i64,
}

pub(super) async fn bind_key(tx: &mut Tx, bind: &KeyBinding) -> Result<Bound, StoreError> {
    let values = values![
        bind.scope.as_str(),
        bind.key.as_str(),
        bind.body_hash.as_slice(),
        bind.request.to_string(),
    ];
    if tx.execute(BIND_KEY, values).await? == 1 {
        return Ok(Bound::New);
    }
    match bound_key(tx, &bind.scope, &bind.key).await? {
        Some(before) => Ok(Bound::Before(before)),
        None => Err(tx.corrupt("an idempotency key is taken and not there")),
    }
}

pub(super) async fn bound_key(
    tx: &mut Tx,
    scope: &str,
    key: &str,
) -> Result<Option<KeyBinding>, StoreError> {
    let row = tx.one::<BindingColumns>(BOUND_KEY, values![scope, key]).await?;
    row.map(|row| {
        Ok(KeyBinding {
            scope: scope.to_owned(),
            key: key.to_owned(),
            body_hash: hash(&row.body_hash)?,
            request: parsed(&row.request_id)?,
        })
    })
    .transpose()
}

pub(super) async fn claim_event(
    tx: &mut Tx,
    event: &EventUse,
    request: RequestId,
) -> Result<Option<RequestId>, StoreError> {
    let mut claim = place_of(event)?;
    claim.extend(values![event.transaction_hash.as_slice(), request.to_string()]);
    if tx.execute(CLAIM_EVENT, claim).await? == 1 {
        return Ok(None);
    }
    // Where it was freed in between, the unit begins anew.
    claimed_by(tx, event).await?.map(Some).ok_or(StoreError::Contended)
}

pub(super) async fn free_events(tx: &mut Tx, request: RequestId) -> Result<(), StoreError> {
    tx.execute(FREE_EVENTS, values![request.to_string()]).await.map(|_| ())
}

/// What an event is found by.
fn place_of(event: &EventUse) -> Result<Vec<Value>, StoreError> {
    Ok(values![
        event.chain.as_str(),
        event.block_hash.as_slice(),
        to_i64(event.log_index)?,
        event.used_for.as_str(),
    ])
}

pub(super) async fn claimed_by(
    tx: &mut Tx,
    event: &EventUse,
) -> Result<Option<RequestId>, StoreError> {
    let found = tx.one::<RequestColumn>(CLAIMED_BY, place_of(event)?).await?;
    found.map(|row| parsed(&row.request_id)).transpose()
}

pub(super) async fn insert_transaction(
    tx: &mut Tx,
    row: &NewTransaction,
) -> Result<(), StoreError> {
    insert_transaction_as(tx, row, Status::Queued).await
}

/// Stores a new transaction in its first status.
pub(super) async fn insert_transaction_as(
    tx: &mut Tx,
    row: &NewTransaction,
    status: Status,
) -> Result<(), StoreError> {
    let intent = &row.intent;
    let source = intent.source;
    let values = values![
        row.id.to_string(),
        row.principal.iss.as_str(),
        row.principal.sub.as_str(),
        intent.chain.name.as_str(),
        to_i64(intent.chain.id.get())?,
        row.signer.as_str(),
        row.key.to_string(),
        row.address.as_slice(),
        status.name(),
        intent.tx_type.name(),
        intent.to.map(|to| to.to_vec()),
        intent.value.to_be_bytes().as_slice(),
        intent.data.as_ref(),
        to_i64(intent.gas)?,
        price_bytes(row.fee_cap.max_fee).as_slice(),
        price_bytes(row.fee_cap.max_priority_fee).as_slice(),
        TX_ACCESS.write(&intent.access_list),
        intent.not_after.map(|at| at.millis()),
        source.map(|source| source.block_hash.to_vec()),
        source.map(|source| source.transaction_hash.to_vec()),
        source.map(|source| to_i64(source.log_index)).transpose()?,
        row.decision.outcome.as_str(),
        row.decision.bundle.as_slice(),
        row.decision.grants.join(","),
        row.decision_json.as_str(),
        row.metadata_json.as_str(),
        row.at.millis(),
    ];
    let rows = tx.execute(INSERT_TRANSACTION, values).await?;
    exactly_one(tx, "insert_transaction", rows)
}

pub(super) async fn transaction(
    tx: &mut Tx,
    id: RequestId,
) -> Result<Option<TransactionRow>, StoreError> {
    let row = tx.one::<TransactionColumns>(TRANSACTION, values![id.to_string()]).await?;
    row.map(TransactionColumns::read).transpose()
}

pub(super) async fn transactions(
    tx: &mut Tx,
    filter: &Filter,
) -> Result<Vec<TransactionRow>, StoreError> {
    let who = filter.principal.as_ref();
    let values = values![
        who.map(|principal| principal.iss.clone()),
        who.map(|principal| principal.sub.clone()),
        filter.status.map(|status| status.name().to_owned()),
        filter.chain.as_ref().map(ToString::to_string),
        filter.signer.clone(),
        filter.created_from.map_or(i64::MIN, |at| at.millis()),
        filter.created_before.map_or(i64::MAX, |at| at.millis()),
        filter.before_seq.unwrap_or(i64::MAX),
        filter.limit,
    ];
    let rows = tx.all::<TransactionColumns>(TRANSACTIONS, values).await?;
    rows.into_iter().map(TransactionColumns::read).collect()
}

pub(super) async fn count_by_status(tx: &mut Tx) -> Result<Vec<(Status, i64)>, StoreError> {
    let rows = tx.all::<StatusCount>(COUNT_BY_STATUS, values![]).await?;
    rows.into_iter()
        .map(|row| {
            let status = Status::from_name(&row.status);
            Ok((status.ok_or_else(|| super::column::corrupt("a status"))?, row.n))
        })
        .collect()
}

pub(super) async fn advance(tx: &mut Tx, change: &StatusChange) -> Result<bool, StoreError> {
    let mined = change.mined.as_ref();
    let failure = change.failure.as_ref();
    let number = |get: fn(&MinedRow) -> u64| mined.map(|row| to_i64(get(row))).transpose();
    let values = values![
        change.id.to_string(),
        change.version,
        change.status.name(),
        mined.map(|row| row.transaction_hash.to_vec()),
        mined.map(|row| row.block_hash.to_vec()),
        number(|row| row.block_number)?,
        number(|row| row.gas_used)?,
        mined.map(|row| price_bytes(row.effective_gas_price).to_vec()),
        mined.map(|row| i64::from(row.success)),
        failure.map(|failure| failure.code.clone()),
        failure.map(|failure| failure.detail.clone()),
        change.at.millis(),
        change.ending.map(|ending| ending.name().to_owned()),
    ];
    Ok(tx.execute(ADVANCE, values).await? == 1)
}

pub(super) async fn touch(tx: &mut Tx, id: RequestId, version: i64) -> Result<bool, StoreError> {
    Ok(tx.execute(TOUCH, values![id.to_string(), version]).await? == 1)
}

pub(super) async fn decide_again(
    tx: &mut Tx,
    id: RequestId,
    fee_cap: Fees,
    decision: &DecisionSummary,
    decision_json: &str,
) -> Result<(), StoreError> {
    let values = values![
        id.to_string(),
        price_bytes(fee_cap.max_fee).as_slice(),
        price_bytes(fee_cap.max_priority_fee).as_slice(),
        decision.outcome.as_str(),
        decision.bundle.as_slice(),
        decision.grants.join(","),
        decision_json,
    ];
    let rows = tx.execute(DECIDE_AGAIN, values).await?;
    exactly_one(tx, "decide_again", rows)
}

pub(super) async fn append_event(tx: &mut Tx, event: &NewEvent) -> Result<(), StoreError> {
    let values = values![
        event.id.as_str(),
        event.kind.as_str(),
        event.subject.as_str(),
        event.data_json.as_str(),
        event.at.millis(),
    ];
    let rows = tx.execute(APPEND_EVENT, values).await?;
    exactly_one(tx, "append_event", rows)
}

pub(super) async fn events_of(tx: &mut Tx, subject: &str) -> Result<Vec<NewEvent>, StoreError> {
    let rows = tx.all::<EventColumns>(EVENTS_OF, values![subject]).await?;
    Ok(rows
        .into_iter()
        .map(|row| NewEvent {
            id: row.id,
            kind: row.kind,
            subject: row.subject,
            data_json: row.data,
            at: crate::core::time::Timestamp::from_millis(row.created_at),
        })
        .collect())
}

pub(super) async fn meta(tx: &mut Tx, name: &str) -> Result<Option<String>, StoreError> {
    Ok(tx.one::<ValueColumn>(META, values![name]).await?.map(|row| row.value))
}

pub(super) async fn set_meta(tx: &mut Tx, name: &str, value: &str) -> Result<(), StoreError> {
    let rows = tx.execute(SET_META, values![name, value]).await?;
    exactly_one(tx, "set_meta", rows)
}

/// `false` if it has a value already.
pub(super) async fn set_meta_once(
    tx: &mut Tx,
    name: &str,
    value: &str,
) -> Result<bool, StoreError> {
    Ok(tx.execute(SET_META_ONCE, values![name, value]).await? == 1)
}
