//! What transactions wait for, and which of those that have no nonce can be mined now.

use super::column::{price_bytes, to_i64};
use super::rows::TransactionColumns;
use super::statement::{Tx, values};
use crate::core::id::{ChainId, RequestId};
use crate::core::time::Timestamp;
use crate::ports::store::{Place, StoreError, TransactionRow, Wait};
use alloy::primitives::Address;
use sqlx::FromRow;

// Caps are 32 bytes, big-endian, so bytes compare as numbers do.
statements! {
    NOTE_WAIT = "UPDATE transactions SET \
        waits_since = CASE WHEN waits_code = $3 THEN waits_since ELSE $5 END, \
        waits_code = $3, waits_detail = $4 WHERE id = $1 AND version = $2";
    NOTE_UNPAYABLE = "UPDATE transactions SET waits_since = $6, waits_code = $4, waits_detail = $5 \
        WHERE chain_id = $1 AND status = 'queued' AND address = $2 AND cap_fee < $3 \
        AND (waits_code IS NULL OR waits_code <> $4)";
    FORGET_PAYABLE = "UPDATE transactions SET waits_since = NULL, waits_code = NULL, \
        waits_detail = NULL WHERE chain_id = $1 AND status = 'queued' AND address = $2 \
        AND cap_fee >= $3 AND waits_code = $4";
    NEXT_PAYABLE = "SELECT * FROM transactions WHERE chain_id = $1 AND status = 'queued' \
        AND address = $2 AND (cap_fee >= $3 OR not_after < $4) ORDER BY seq LIMIT 1";
    QUEUED_AHEAD = "SELECT COUNT(*) AS n FROM transactions WHERE chain_id = $1 \
        AND status = 'queued' AND address = $2 AND seq < $3";
    FLYING_BELOW = "SELECT COUNT(*) AS n FROM transactions WHERE chain_id = $1 \
        AND status IN ('submitted', 'cancelling') AND mined_hash IS NULL AND address = $2 \
        AND nonce < $3";
}

#[derive(FromRow)]
struct Count {
    n: i64,
}

pub(super) async fn note_wait(
    tx: &mut Tx,
    id: RequestId,
    version: i64,
    wait: Option<&Wait>,
) -> Result<(), StoreError> {
    let values = values![
        id.to_string(),
        version,
        wait.map(|wait| wait.code.clone()),
        wait.map(|wait| wait.detail.clone()),
        wait.map(|wait| wait.since.millis()),
    ];
    // Nobody, if it has moved on: then what was found is old.
    tx.execute(NOTE_WAIT, values).await.map(|_| ())
}

pub(super) async fn note_unpayable(
    tx: &mut Tx,
    chain: ChainId,
    account: Address,
    base_fee: u128,
    wait: &Wait,
) -> Result<(), StoreError> {
    let base_fee = price_bytes(base_fee);
    let lane =
        values![to_i64(chain.get())?, account.as_slice(), base_fee.as_slice(), wait.code.as_str(),];
    tx.execute(FORGET_PAYABLE, lane.clone()).await?;
    let mut noted = lane;
    noted.extend(values![wait.detail.as_str(), wait.since.millis()]);
    tx.execute(NOTE_UNPAYABLE, noted).await.map(|_| ())
}

pub(super) async fn next_payable(
    tx: &mut Tx,
    chain: ChainId,
    account: Address,
    base_fee: u128,
    now: Timestamp,
) -> Result<Option<TransactionRow>, StoreError> {
    let base_fee = price_bytes(base_fee);
    let values =
        values![to_i64(chain.get())?, account.as_slice(), base_fee.as_slice(), now.millis()];
    let row = tx.one::<TransactionColumns>(NEXT_PAYABLE, values).await?;
    row.map(TransactionColumns::read).transpose()
}

pub(super) async fn place(tx: &mut Tx, row: &TransactionRow) -> Result<Place, StoreError> {
    let lane = values![to_i64(row.new.intent.chain.id.get())?, row.new.address.as_slice()];
    let count = |found: Option<Count>| found.map_or(0, |row| row.n);
    let below = |limit: i64| {
        let mut values = lane.clone();
        values.extend(values![limit]);
        values
    };
    let flying = count(tx.one::<Count>(FLYING_BELOW, below(i64::MAX)).await?);
    let ahead = match row.nonce {
        None => tx.one::<Count>(QUEUED_AHEAD, below(row.seq)).await?,
        Some(nonce) => tx.one::<Count>(FLYING_BELOW, below(to_i64(nonce)?)).await?,
    };
    Ok(Place { ahead: count(ahead), flying })
}
