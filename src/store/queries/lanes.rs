//! Lanes: nonces are given here and nowhere else.

use super::column::{address, amount, corrupt, exactly_one, parsed, price, to_i64, to_u64};
use super::rows::TransactionColumns;
use super::statement::{Tx, values};
use crate::core::id::{ChainId, HolderId};
use crate::core::key::NonceMode;
use crate::core::time::Timestamp;
use crate::ports::store::{
    FEW_LANES, Lane, LaneAge, LaneKey, LaneLoad, Owed, StoreError, TransactionRow,
};
use alloy::primitives::Address;
use sqlx::FromRow;

/// The accounts of chain $1 that have transactions without an end: one step through the index for each, however
/// many keys there are, and however much waits at one of them.
macro_rules! busy {
    () => {
        "WITH RECURSIVE busy (status, address) AS (\
            SELECT s.status, (SELECT t.address FROM transactions t WHERE t.chain_id = $1 \
                AND t.status = s.status ORDER BY t.address LIMIT 1) \
            FROM (SELECT 'queued' AS status UNION ALL SELECT 'submitted' \
                UNION ALL SELECT 'cancelling' UNION ALL SELECT 'mined') s \
            UNION ALL \
            SELECT b.status, (SELECT t.address FROM transactions t WHERE t.chain_id = $1 \
                AND t.status = b.status AND t.address > b.address ORDER BY t.address LIMIT 1) \
            FROM busy b WHERE b.address IS NOT NULL) "
    };
}

statements! {
    OPEN_LANE = "INSERT INTO lanes (chain_id, address, key_id, mode, next_nonce, version) \
        VALUES ($1, $2, $3, $4, 0, 0) ON CONFLICT (chain_id, address) DO NOTHING";
    LOCK_LANE = locked!("SELECT * FROM lanes WHERE chain_id = $1 AND address = $2");
    LANE = "SELECT * FROM lanes WHERE chain_id = $1 AND address = $2";
    LANES = "SELECT * FROM lanes WHERE chain_id = $1 ORDER BY address";
    NEXT_QUEUED = "SELECT * FROM transactions WHERE chain_id = $1 AND status = 'queued' \
        AND address = $2 ORDER BY seq LIMIT 1";
    IN_FLIGHT = "SELECT COUNT(*) AS n FROM transactions WHERE chain_id = $1 \
        AND status IN ('submitted', 'cancelling') AND mined_hash IS NULL AND address = $2";
    OWED = "SELECT t.nonce, t.value, t.gas, COALESCE((SELECT a.max_fee FROM attempts a \
        WHERE a.request_id = t.id ORDER BY a.number DESC LIMIT 1), t.cap_fee) AS max_fee \
        FROM transactions t WHERE t.chain_id = $1 AND t.status IN ('submitted', 'cancelling') \
        AND t.mined_hash IS NULL AND t.address = $2";
    OPEN_OF = "SELECT * FROM transactions WHERE chain_id = $1 \
        AND status IN ('submitted', 'cancelling', 'mined') AND address = $2";
    NEXT_EXPIRED = "SELECT * FROM transactions WHERE chain_id = $1 AND status = 'queued' \
        AND address = $2 AND not_after IS NOT NULL AND not_after < $3 ORDER BY not_after LIMIT 1";
    BUSY_ACCOUNTS = concat!(busy!(), "SELECT DISTINCT address FROM busy \
        WHERE address IS NOT NULL ORDER BY address");
    LOADS = "SELECT lanes.address, mode, halted, holder, until, (SELECT COUNT(*) FROM transactions \
        WHERE transactions.chain_id = lanes.chain_id AND transactions.address = lanes.address \
        AND status IN ('submitted', 'cancelling') AND mined_hash IS NULL) AS flying, \
        (SELECT COUNT(*) FROM (SELECT 1 FROM transactions \
        WHERE transactions.chain_id = lanes.chain_id AND transactions.address = lanes.address \
        AND status = 'queued' LIMIT 256) AS waiting) AS queued \
        FROM lanes LEFT JOIN leases ON leases.chain_id = lanes.chain_id \
        AND leases.address = lanes.address WHERE lanes.chain_id = $1 ORDER BY lanes.address";
    LANE_AGES = concat!(busy!(), "SELECT lanes.address, holder, until, (SELECT COUNT(*) FROM transactions \
        WHERE transactions.chain_id = lanes.chain_id AND transactions.address = lanes.address \
        AND status IN ('submitted', 'cancelling') AND mined_hash IS NULL) AS flying, \
        (SELECT created_at FROM transactions \
        WHERE transactions.chain_id = lanes.chain_id AND transactions.address = lanes.address \
        AND status = 'queued' ORDER BY seq LIMIT 1) AS waits_since, \
        (SELECT MIN(created_at) FROM transactions \
        WHERE transactions.chain_id = lanes.chain_id AND transactions.address = lanes.address \
        AND status IN ('submitted', 'cancelling') AND mined_hash IS NULL) AS flies_since \
        FROM lanes LEFT JOIN leases ON leases.chain_id = lanes.chain_id \
        AND leases.address = lanes.address WHERE lanes.chain_id = $1 \
        AND ((SELECT COUNT(*) FROM (SELECT 1 FROM lanes few WHERE few.chain_id = $1 LIMIT $2) x) < $2 \
        OR lanes.address IN (SELECT address FROM busy WHERE address IS NOT NULL)) \
        ORDER BY lanes.address");
    LANES_UP_TO = "SELECT COUNT(*) AS n FROM \
        (SELECT 1 FROM lanes WHERE chain_id = $1 LIMIT $2) few";
    TAKE_NONCE = "UPDATE lanes SET next_nonce = next_nonce + 1, version = version + 1 \
        WHERE chain_id = $1 AND address = $2 AND version = $3 AND halted IS NULL \
        AND mode = 'managed'";
    PUT_NONCE_BACK = "UPDATE lanes SET next_nonce = next_nonce - 1, version = version - 1 \
        WHERE chain_id = $1 AND address = $2";
    GIVE_NONCE = "UPDATE transactions SET nonce = $3, status = 'submitted', updated_at = $4, \
        waits_code = NULL, waits_detail = NULL, waits_since = NULL, \
        version = version + 1 WHERE id = $1 AND version = $2 AND status = 'queued' \
        AND nonce IS NULL AND chain_id = $5 AND address = $6";
    HALT_LANE = "UPDATE lanes SET halted = $3, version = version + 1 \
        WHERE chain_id = $1 AND address = $2";
}

#[derive(FromRow)]
struct LaneColumns {
    chain_id: i64,
    address: Vec<u8>,
    key_id: String,
    mode: String,
    next_nonce: i64,
    halted: Option<String>,
    version: i64,
}

#[derive(FromRow)]
struct LoadColumns {
    address: Vec<u8>,
    mode: String,
    halted: Option<String>,
    holder: Option<String>,
    until: Option<i64>,
    flying: i64,
    queued: i64,
}

#[derive(FromRow)]
struct AgeColumns {
    address: Vec<u8>,
    holder: Option<String>,
    until: Option<i64>,
    flying: i64,
    waits_since: Option<i64>,
    flies_since: Option<i64>,
}

#[derive(FromRow)]
struct OwedColumns {
    nonce: i64,
    value: Vec<u8>,
    gas: i64,
    max_fee: Vec<u8>,
}

#[derive(FromRow)]
struct AddressColumn {
    address: Vec<u8>,
}

#[derive(FromRow)]
struct Count {
    n: i64,
}

impl LaneColumns {
    fn read(self) -> Result<Lane, StoreError> {
        Ok(Lane {
            chain: ChainId::new(to_u64(self.chain_id)?),
            address: address(&self.address)?,
            key: parsed(&self.key_id)?,
            mode: NonceMode::from_name(&self.mode).ok_or_else(|| corrupt("a lane's mode"))?,
            next_nonce: to_u64(self.next_nonce)?,
            halted: self.halted,
            version: self.version,
        })
    }
}

pub(super) async fn lock_lane(tx: &mut Tx, open: &LaneKey) -> Result<Lane, StoreError> {
    let chain = to_i64(open.chain.get())?;
    let place = values![chain, open.address.as_slice()];
    if let Some(row) = tx.one::<LaneColumns>(LOCK_LANE, place.clone()).await? {
        return row.read();
    }
    let new = values![chain, open.address.as_slice(), open.key.to_string(), open.mode.name()];
    tx.execute(OPEN_LANE, new).await?;
    match tx.one::<LaneColumns>(LOCK_LANE, place).await? {
        Some(row) => row.read(),
        None => Err(tx.corrupt("a lane was opened and is not there")),
    }
}

pub(super) async fn lane(
    tx: &mut Tx,
    chain: ChainId,
    account: Address,
) -> Result<Option<Lane>, StoreError> {
    let values = values![to_i64(chain.get())?, account.as_slice()];
    tx.one::<LaneColumns>(LANE, values).await?.map(LaneColumns::read).transpose()
}

pub(super) async fn lanes(tx: &mut Tx, chain: ChainId) -> Result<Vec<Lane>, StoreError> {
    let rows = tx.all::<LaneColumns>(LANES, values![to_i64(chain.get())?]).await?;
    rows.into_iter().map(LaneColumns::read).collect()
}

pub(super) async fn next_queued(
    tx: &mut Tx,
    chain: ChainId,
    account: Address,
) -> Result<Option<TransactionRow>, StoreError> {
    let values = values![to_i64(chain.get())?, account.as_slice()];
    let row = tx.one::<TransactionColumns>(NEXT_QUEUED, values).await?;
    row.map(TransactionColumns::read).transpose()
}

pub(super) async fn busy_accounts(tx: &mut Tx, chain: ChainId) -> Result<Vec<Address>, StoreError> {
    let rows = tx.all::<AddressColumn>(BUSY_ACCOUNTS, values![to_i64(chain.get())?]).await?;
    rows.into_iter().map(|row| address(&row.address)).collect()
}

pub(super) async fn open_of(
    tx: &mut Tx,
    chain: ChainId,
    account: Address,
) -> Result<Vec<TransactionRow>, StoreError> {
    let values = values![to_i64(chain.get())?, account.as_slice()];
    let rows = tx.all::<TransactionColumns>(OPEN_OF, values).await?;
    let rows = rows.into_iter().map(TransactionColumns::read).collect::<Result<Vec<_>, _>>();
    // Asked to sort them, SQLite would go by nonce through all that the account has ever done.
    rows.map(|mut rows| {
        rows.sort_by_key(|row| row.nonce);
        rows
    })
}

pub(super) async fn next_expired(
    tx: &mut Tx,
    chain: ChainId,
    account: Address,
    now: Timestamp,
) -> Result<Option<TransactionRow>, StoreError> {
    let values = values![to_i64(chain.get())?, account.as_slice(), now.millis()];
    let row = tx.one::<TransactionColumns>(NEXT_EXPIRED, values).await?;
    row.map(TransactionColumns::read).transpose()
}

pub(super) async fn in_flight(
    tx: &mut Tx,
    chain: ChainId,
    account: Address,
) -> Result<i64, StoreError> {
    let values = values![to_i64(chain.get())?, account.as_slice()];
    Ok(tx.one::<Count>(IN_FLIGHT, values).await?.map_or(0, |row| row.n))
}

pub(super) async fn owed(
    tx: &mut Tx,
    chain: ChainId,
    account: Address,
) -> Result<Vec<Owed>, StoreError> {
    let values = values![to_i64(chain.get())?, account.as_slice()];
    let rows = tx.all::<OwedColumns>(OWED, values).await?;
    let read = |row: OwedColumns| {
        Ok(Owed {
            nonce: to_u64(row.nonce)?,
            value: amount(&row.value)?,
            gas: to_u64(row.gas)?,
            max_fee: price(&row.max_fee)?,
        })
    };
    let rows = rows.into_iter().map(read).collect::<Result<Vec<_>, StoreError>>();
    rows.map(|mut rows| {
        rows.sort_by_key(|row| row.nonce);
        rows
    })
}

pub(super) async fn take_nonce(
    tx: &mut Tx,
    lane: &Lane,
    transaction: &TransactionRow,
    now: Timestamp,
) -> Result<Option<u64>, StoreError> {
    let chain = to_i64(lane.chain.get())?;
    let taken = values![chain, lane.address.as_slice(), lane.version];
    if tx.execute(TAKE_NONCE, taken).await? != 1 {
        return Ok(None);
    }
    let given = values![
        transaction.new.id.to_string(),
        transaction.version,
        to_i64(lane.next_nonce)?,
        now.millis(),
        chain,
        lane.address.as_slice(),
    ];
    if tx.execute(GIVE_NONCE, given).await? != 1 {
        // Nobody wanted it: a caller that commits nevertheless must not leave a gap. The row is locked
        // since it was taken, so nobody saw it.
        let back = values![chain, lane.address.as_slice()];
        let rows = tx.execute(PUT_NONCE_BACK, back).await?;
        return exactly_one(tx, "put_nonce_back", rows).map(|()| None);
    }
    Ok(Some(lane.next_nonce))
}

pub(super) async fn halt_lane(
    tx: &mut Tx,
    chain: ChainId,
    account: Address,
    reason: &str,
) -> Result<(), StoreError> {
    let values = values![to_i64(chain.get())?, account.as_slice(), reason];
    let rows = tx.execute(HALT_LANE, values).await?;
    exactly_one(tx, "halt_lane", rows)
}

/// One statement for all lanes, because each request for a transaction asks.
pub(super) async fn loads(tx: &mut Tx, chain: ChainId) -> Result<Vec<LaneLoad>, StoreError> {
    let rows = tx.all::<LoadColumns>(LOADS, values![to_i64(chain.get())?]).await?;
    rows.into_iter()
        .map(|row| {
            Ok(LaneLoad {
                address: address(&row.address)?,
                mode: NonceMode::from_name(&row.mode).ok_or_else(|| corrupt("a lane's mode"))?,
                halted: row.halted.is_some(),
                flying: row.flying,
                queued: row.queued,
                lease: held(row.holder.as_deref(), row.until)?,
            })
        })
        .collect()
}

pub(super) async fn has_many_lanes(tx: &mut Tx, chain: ChainId) -> Result<bool, StoreError> {
    let values = values![to_i64(chain.get())?, FEW_LANES.saturating_add(1)];
    Ok(tx.one::<Count>(LANES_UP_TO, values).await?.is_some_and(|row| row.n > FEW_LANES))
}

pub(super) async fn lane_ages(tx: &mut Tx, chain: ChainId) -> Result<Vec<LaneAge>, StoreError> {
    let values = values![to_i64(chain.get())?, FEW_LANES.saturating_add(1)];
    let rows = tx.all::<AgeColumns>(LANE_AGES, values).await?;
    let read = |row: AgeColumns| {
        let oldest = [row.waits_since, row.flies_since].into_iter().flatten().min();
        Ok(LaneAge {
            address: address(&row.address)?,
            flying: row.flying,
            oldest: oldest.map(Timestamp::from_millis),
            lease: held(row.holder.as_deref(), row.until)?,
        })
    };
    rows.into_iter().map(read).collect()
}

pub(super) fn held(
    holder: Option<&str>,
    until: Option<i64>,
) -> Result<Option<(HolderId, Timestamp)>, StoreError> {
    let Some((holder, until)) = holder.zip(until) else {
        return Ok(None);
    };
    Ok(Some((parsed(holder)?, Timestamp::from_millis(until))))
}
