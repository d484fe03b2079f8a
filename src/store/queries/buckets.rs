//! What is spent of a limit, in pieces of its span: at most about 256 of them, so that what leaves the span is
//! taken out piece by piece, whatever the number of settlements in it. A piece counts until its last moment
//! has left the span: nothing is freed early.

use super::column::amount;
use super::spend::Sums;
use super::statement::{Tx, values};
use crate::core::amount::Amount;
use crate::core::policy::Period;
use crate::core::time::Timestamp;
use crate::ports::store::StoreError;
use sqlx::FromRow;

statements! {
    DROP_GONE = "DELETE FROM limit_buckets WHERE limit_id = $1 AND last_at <= $2 RETURNING spent";
    GONE = "SELECT spent FROM limit_buckets WHERE limit_id = $1 AND last_at <= $2";
    BUCKET = "SELECT spent FROM limit_buckets WHERE limit_id = $1 AND bucket = $2";
    FILL_BUCKET = "INSERT INTO limit_buckets (limit_id, bucket, last_at, spent) \
        VALUES ($1, $2, $3, $4) ON CONFLICT (limit_id, bucket) DO UPDATE SET \
        spent = excluded.spent, last_at = CASE WHEN excluded.last_at > limit_buckets.last_at \
        THEN excluded.last_at ELSE limit_buckets.last_at END";
    FORGET_SETTLED = "DELETE FROM limit_entries WHERE limit_id = $1 AND owner IN \
        (SELECT owner FROM limit_entries WHERE limit_id = $1 AND settled_at <= $2 \
        ORDER BY settled_at LIMIT 2)";
}

/// Into how many pieces a rolling span is cut.
const PIECES: i64 = 256;

const DAY_MS: i64 = 86_400_000;

#[derive(FromRow)]
struct SpentColumn {
    spent: Vec<u8>,
}

/// The piece that a moment is in. Calendar periods begin and end with days.
fn piece(period: Period, at: Timestamp) -> i64 {
    let width = match period {
        Period::Rolling(span_ms) => span_ms.div_euclid(PIECES).saturating_add(1),
        Period::Day | Period::Week | Period::Month => DAY_MS,
    };
    at.millis().div_euclid(width)
}

/// Takes what left the span out of `spent`.
pub(super) async fn age(
    tx: &mut Tx,
    id: &[u8],
    sums: &mut Sums,
    now: Timestamp,
) -> Result<(), StoreError> {
    let before = sums.period.gone_before(now).millis();
    let gone = tx.all::<SpentColumn>(DROP_GONE, values![id, before]).await?;
    without(tx, sums, &gone)
}

/// The same as of `now`, and nothing is written.
pub(super) async fn aged(
    tx: &mut Tx,
    id: &[u8],
    sums: &mut Sums,
    now: Timestamp,
) -> Result<(), StoreError> {
    let before = sums.period.gone_before(now).millis();
    let gone = tx.all::<SpentColumn>(GONE, values![id, before]).await?;
    without(tx, sums, &gone)
}

fn without(tx: &mut Tx, sums: &mut Sums, gone: &[SpentColumn]) -> Result<(), StoreError> {
    for piece in gone {
        match sums.spent.checked_sub(amount(&piece.spent)?) {
            Some(rest) => sums.spent = rest,
            None => return Err(tx.corrupt("a limit has spent less than its pieces")),
        }
    }
    Ok(())
}

/// Adds to `spent`, as of a moment. The sums are saved by the caller.
pub(super) async fn add(
    tx: &mut Tx,
    id: &[u8],
    sums: &mut Sums,
    kept: Amount,
    at: Timestamp,
) -> Result<(), StoreError> {
    // Rows of what has left the span are forgotten faster than new ones come.
    let before = sums.period.gone_before(at).millis();
    tx.execute(FORGET_SETTLED, values![id, before]).await?;
    if kept.is_zero() {
        return Ok(());
    }
    let bucket = piece(sums.period, at);
    let found = tx.one::<SpentColumn>(BUCKET, values![id, bucket]).await?;
    let before = found.map_or(Ok(Amount::ZERO), |row| amount(&row.spent))?;
    let (Some(spent), Some(all)) = (before.checked_add(kept), sums.spent.checked_add(kept)) else {
        return Err(tx.corrupt("a limit's sum is above 2^256"));
    };
    sums.spent = all;
    let spent = spent.to_be_bytes();
    let values = values![id, bucket, at.millis(), spent.as_slice()];
    tx.execute(FILL_BUCKET, values).await.map(|_| ())
}
