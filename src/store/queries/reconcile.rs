//! What a database that was restored, or overtaken, waits for; and what is found on the chain beside it.

use super::column::{address, amount, exactly_one, hash, parsed, to_i64, to_u64};
use super::rows::TransactionColumns;
use super::statement::{Tx, values};
use crate::core::id::{ChainId, RequestId};
use crate::core::time::Timestamp;
use crate::ports::store::{
    CLOCKS_DIFFER_MS, Lane, Orphan, Payment, StoreError, Suspension, TransactionRow,
};
use alloy::primitives::{Address, B256};
use sqlx::FromRow;

/// No lease of a clock that is right ends later, in milliseconds: a lease of
/// an hour, by a clock that is an hour ahead.
const LEASE_MS_MAX: i64 = 2 * CLOCKS_DIFFER_MS;

statements! {
    SUSPENSION = "SELECT reason, since FROM suspension WHERE only_row = 1";
    SUSPEND = "INSERT INTO suspension (only_row, reason, since) VALUES (1, $1, $2) \
        ON CONFLICT (only_row) DO NOTHING";
    LIFT_SUSPENSION = "DELETE FROM suspension WHERE only_row = 1";
    INSERT_ORPHAN = "INSERT INTO orphans (chain_id, address, nonce, hash, recipient, value, data, raw, \
        found_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING";
    ORPHANS = "SELECT * FROM orphans WHERE chain_id = $1 ORDER BY address, nonce";
    OPEN_ORPHANS = "SELECT * FROM orphans WHERE chain_id = $1 AND claimed_by IS NULL \
        ORDER BY found_at, address, nonce";
    CLAIM_ORPHAN = "UPDATE orphans SET claimed_by = $2 WHERE hash = $1 AND claimed_by IS NULL";
    CLOSE_ORPHANS = "UPDATE orphans SET claimed_by = 'closed' \
        WHERE chain_id = $1 AND address = $2 AND claimed_by IS NULL";
    GIVEN_NONCES = "SELECT nonce, id FROM transactions WHERE chain_id = $1 AND address = $2 \
        AND nonce IS NOT NULL ORDER BY nonce";
    ADOPT_NONCE = "UPDATE transactions SET nonce = $3, status = 'submitted', updated_at = $4, \
        version = version + 1 WHERE id = $1 AND version = $2 \
        AND status IN ('queued', 'delayed', 'awaiting_approval') AND nonce IS NULL";
    RELEASE_LANE = "UPDATE lanes SET halted = NULL, next_nonce = $3, version = version + 1 \
        WHERE chain_id = $1 AND address = $2 AND next_nonce <= $3";
    EVERY_LANE = "SELECT chain_id, address, next_nonce FROM lanes WHERE mode = 'managed' \
        ORDER BY chain_id, address";
    QUEUED_OF = "SELECT * FROM transactions WHERE chain_id = $1 \
        AND status IN ('queued', 'delayed', 'awaiting_approval') \
        AND address = $2 ORDER BY seq";
    LIVE_LEASES = "SELECT COUNT(*) AS n FROM leases WHERE until > $1 AND until <= $2";
    SAME_ORPHANS = "SELECT * FROM orphans WHERE chain_id = $1 AND value = $2 AND recipient = $3 \
        AND data = $4 AND claimed_by IS NULL ORDER BY found_at, address, nonce";
    SAME_CREATIONS = "SELECT * FROM orphans WHERE chain_id = $1 AND value = $2 \
        AND recipient IS NULL AND data = $3 AND claimed_by IS NULL \
        ORDER BY found_at, address, nonce";
    GIVE_UP_NONCE = "UPDATE transactions SET nonce = NULL, version = version + 1 \
        WHERE id = $1 AND status = 'failed' AND nonce IS NOT NULL";
}

#[derive(FromRow)]
struct SuspensionColumns {
    reason: String,
    since: i64,
}

#[derive(FromRow)]
struct OrphanColumns {
    chain_id: i64,
    address: Vec<u8>,
    nonce: i64,
    hash: Vec<u8>,
    recipient: Option<Vec<u8>>,
    value: Vec<u8>,
    data: Vec<u8>,
    raw: Option<Vec<u8>>,
    claimed_by: Option<String>,
}

#[derive(FromRow)]
struct NonceColumns {
    nonce: i64,
    id: String,
}

#[derive(FromRow)]
struct NextColumns {
    chain_id: i64,
    address: Vec<u8>,
    next_nonce: i64,
}

#[derive(FromRow)]
struct CountColumn {
    n: i64,
}

impl OrphanColumns {
    fn read(self) -> Result<Orphan, StoreError> {
        Ok(Orphan {
            chain: ChainId::new(to_u64(self.chain_id)?),
            address: address(&self.address)?,
            nonce: to_u64(self.nonce)?,
            hash: hash(&self.hash)?,
            to: self.recipient.as_deref().map(address).transpose()?,
            value: amount(&self.value)?,
            data: self.data.into(),
            raw: self.raw.map(Into::into),
            claimed_by: self.claimed_by,
        })
    }
}

pub(super) async fn suspension(tx: &mut Tx) -> Result<Option<Suspension>, StoreError> {
    let row = tx.one::<SuspensionColumns>(SUSPENSION, values![]).await?;
    Ok(row.map(|row| Suspension { reason: row.reason, since: Timestamp::from_millis(row.since) }))
}

pub(super) async fn suspend(tx: &mut Tx, why: &Suspension) -> Result<bool, StoreError> {
    Ok(tx.execute(SUSPEND, values![why.reason.as_str(), why.since.millis()]).await? == 1)
}

pub(super) async fn lift_suspension(tx: &mut Tx) -> Result<(), StoreError> {
    tx.execute(LIFT_SUSPENSION, values![]).await.map(|_| ())
}

pub(super) async fn insert_orphan(
    tx: &mut Tx,
    orphan: &Orphan,
    at: Timestamp,
) -> Result<bool, StoreError> {
    let values = values![
        to_i64(orphan.chain.get())?,
        orphan.address.as_slice(),
        to_i64(orphan.nonce)?,
        orphan.hash.as_slice(),
        orphan.to.map(|to| to.to_vec()),
        orphan.value.to_be_bytes().as_slice(),
        orphan.data.as_ref(),
        orphan.raw.as_ref().map(|raw| raw.to_vec()),
        at.millis(),
    ];
    Ok(tx.execute(INSERT_ORPHAN, values).await? == 1)
}

pub(super) async fn orphans(
    tx: &mut Tx,
    chain: ChainId,
    only_open: bool,
) -> Result<Vec<Orphan>, StoreError> {
    let statement = if only_open { OPEN_ORPHANS } else { ORPHANS };
    let rows = tx.all::<OrphanColumns>(statement, values![to_i64(chain.get())?]).await?;
    rows.into_iter().map(OrphanColumns::read).collect()
}

pub(super) async fn claim_orphan(
    tx: &mut Tx,
    hash: B256,
    request: RequestId,
) -> Result<bool, StoreError> {
    let values = values![hash.as_slice(), request.to_string()];
    Ok(tx.execute(CLAIM_ORPHAN, values).await? == 1)
}

pub(super) async fn close_orphans(
    tx: &mut Tx,
    chain: ChainId,
    account: Address,
) -> Result<u64, StoreError> {
    tx.execute(CLOSE_ORPHANS, values![to_i64(chain.get())?, account.as_slice()]).await
}

pub(super) async fn given_nonces(
    tx: &mut Tx,
    chain: ChainId,
    account: Address,
) -> Result<Vec<(u64, RequestId)>, StoreError> {
    let values = values![to_i64(chain.get())?, account.as_slice()];
    let rows = tx.all::<NonceColumns>(GIVEN_NONCES, values).await?;
    rows.into_iter().map(|row| Ok((to_u64(row.nonce)?, parsed(&row.id)?))).collect()
}

pub(super) async fn adopt_nonce(
    tx: &mut Tx,
    row: &TransactionRow,
    nonce: u64,
    at: Timestamp,
) -> Result<bool, StoreError> {
    let values = values![row.new.id.to_string(), row.version, to_i64(nonce)?, at.millis()];
    Ok(tx.execute(ADOPT_NONCE, values).await? == 1)
}

pub(super) async fn release_lane(
    tx: &mut Tx,
    lane: &Lane,
    next_nonce: u64,
) -> Result<(), StoreError> {
    let values = values![to_i64(lane.chain.get())?, lane.address.as_slice(), to_i64(next_nonce)?];
    let rows = tx.execute(RELEASE_LANE, values).await?;
    exactly_one(tx, "release_lane", rows)
}

pub(super) async fn every_lane(tx: &mut Tx) -> Result<Vec<(ChainId, Address, u64)>, StoreError> {
    let rows = tx.all::<NextColumns>(EVERY_LANE, values![]).await?;
    rows.into_iter()
        .map(|row| {
            let chain = ChainId::new(to_u64(row.chain_id)?);
            Ok((chain, address(&row.address)?, to_u64(row.next_nonce)?))
        })
        .collect()
}

pub(super) async fn queued_of(
    tx: &mut Tx,
    chain: ChainId,
    account: Address,
) -> Result<Vec<TransactionRow>, StoreError> {
    let values = values![to_i64(chain.get())?, account.as_slice()];
    let rows = tx.all::<TransactionColumns>(QUEUED_OF, values).await?;
    rows.into_iter().map(TransactionColumns::read).collect()
}

pub(super) async fn live_leases(tx: &mut Tx, now: Timestamp) -> Result<i64, StoreError> {
    // One that ends much later was taken by a clock that is wrong, and is none.
    let sane = now.plus_millis(LEASE_MS_MAX);
    let row = tx.one::<CountColumn>(LIVE_LEASES, values![now.millis(), sane.millis()]).await?;
    Ok(row.map_or(0, |row| row.n))
}

pub(super) async fn same_orphans(tx: &mut Tx, same: &Payment) -> Result<Vec<Orphan>, StoreError> {
    let (chain, value) = (to_i64(same.chain.get())?, same.value.to_be_bytes());
    let rows = match same.to {
        Some(to) => {
            let values = values![chain, value.as_slice(), to.as_slice(), same.data.as_ref()];
            tx.all::<OrphanColumns>(SAME_ORPHANS, values).await?
        }
        None => {
            let values = values![chain, value.as_slice(), same.data.as_ref()];
            tx.all::<OrphanColumns>(SAME_CREATIONS, values).await?
        }
    };
    rows.into_iter().map(OrphanColumns::read).collect()
}

pub(super) async fn give_up_nonce(tx: &mut Tx, id: RequestId) -> Result<bool, StoreError> {
    Ok(tx.execute(GIVE_UP_NONCE, values![id.to_string()]).await? == 1)
}
