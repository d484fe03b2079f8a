//! How many requests of a principal wait, and which of all that wait is looked at next.

use super::column::parsed;
use super::statement::{Tx, values};
use crate::core::id::RequestId;
use crate::core::time::Timestamp;
use crate::ports::store::{DueRequest, PUT_OFF_MS_MAX, StoreError};
use alloy::primitives::B256;
use sqlx::FromRow;

statements! {
    OPEN_WAITER = "INSERT INTO waiters (sub, told_at) VALUES ($1, 0) ON CONFLICT (sub) DO NOTHING";
    LOCK_WAITER = locked!("SELECT told_at AS n FROM waiters WHERE sub = $1");
    WAITING_UP_TO = "SELECT COUNT(*) AS n FROM (SELECT 1 FROM transactions \
        WHERE status IN ('delayed', 'awaiting_approval') AND sub = $1 LIMIT $2) few";
    TELL_WAITER = "UPDATE waiters SET told_at = $2 WHERE sub = $1 \
        AND (told_at <= $3 OR told_at > $2)";
    DUE_REQUESTS = "SELECT w.request_id, w.retry_at, w.failures FROM transactions t \
        JOIN waiting_requests w ON w.request_id = t.id \
        WHERE t.status IN ('delayed', 'awaiting_approval') \
        AND (w.retry_at <= $1 OR w.retry_at > $6) AND (w.wake_at <= $1 OR w.bundle <> $2) \
        AND (w.retry_at > $3 OR (w.retry_at = $3 AND w.request_id > $4)) \
        ORDER BY w.retry_at, w.request_id LIMIT $5";
    PUT_OFF = "UPDATE waiting_requests SET retry_at = $3, failures = failures + 1 \
        WHERE request_id = $1 AND failures = $2";
}

#[derive(FromRow)]
struct Number {
    n: i64,
}

#[derive(FromRow)]
struct DueColumns {
    request_id: String,
    retry_at: i64,
    failures: i64,
}

/// The row is locked before anything is counted: a statement sees what was committed before it began, and so
/// whatever the holder before has added.
pub(super) async fn has_room_to_wait(
    tx: &mut Tx,
    sub: &str,
    most: i64,
) -> Result<bool, StoreError> {
    tx.execute(OPEN_WAITER, values![sub]).await?;
    if tx.one::<Number>(LOCK_WAITER, values![sub]).await?.is_none() {
        return Err(tx.corrupt("a waiter was opened and is not there"));
    }
    waits_below(tx, sub, most).await
}

pub(super) async fn waits_below(tx: &mut Tx, sub: &str, most: i64) -> Result<bool, StoreError> {
    let found = tx.one::<Number>(WAITING_UP_TO, values![sub, most]).await?;
    Ok(found.is_some_and(|count| count.n < most))
}

pub(super) async fn tell_waiter(
    tx: &mut Tx,
    sub: &str,
    now: Timestamp,
    every_ms: i64,
) -> Result<bool, StoreError> {
    tx.execute(OPEN_WAITER, values![sub]).await?;
    let before = now.plus_millis(every_ms.saturating_neg());
    Ok(tx.execute(TELL_WAITER, values![sub, now.millis(), before.millis()]).await? == 1)
}

pub(super) async fn due_requests(
    tx: &mut Tx,
    now: Timestamp,
    bundle: B256,
    after: Option<DueRequest>,
    most: i64,
) -> Result<Vec<DueRequest>, StoreError> {
    let (retry_at, id) = after.map_or((i64::MIN, String::new()), |after| {
        (after.retry_at.millis(), after.request.to_string())
    });
    // No clock that is right puts anything off so far, not even during a long look or in another process.
    let wrong = now.plus_millis(PUT_OFF_MS_MAX.saturating_mul(2)).millis();
    let values = values![now.millis(), bundle.as_slice(), retry_at, id, most, wrong];
    let rows = tx.all::<DueColumns>(DUE_REQUESTS, values).await?;
    let read = |row: DueColumns| {
        Ok(DueRequest {
            request: parsed(&row.request_id)?,
            retry_at: Timestamp::from_millis(row.retry_at),
            failures: row.failures,
        })
    };
    rows.into_iter().map(read).collect()
}

pub(super) async fn put_off(
    tx: &mut Tx,
    id: RequestId,
    failures: i64,
    until: Timestamp,
) -> Result<bool, StoreError> {
    let values = values![id.to_string(), failures, until.millis()];
    Ok(tx.execute(PUT_OFF, values).await? == 1)
}
