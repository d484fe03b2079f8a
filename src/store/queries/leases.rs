//! Leases of lanes: which server process works an account. A row is never deleted and its token never goes
//! back, so a token names one holder's time for ever.

use super::column::{address, parsed, to_i64, to_u64};
use super::statement::{Tx, Value, values};
use crate::core::id::{ChainId, HolderId};
use crate::core::time::Timestamp;
use crate::ports::store::{CLOCKS_DIFFER_MS, Lease, LeaseRow, StoreError};
use alloy::primitives::Address;
use sqlx::FromRow;

statements! {
    TAKE_LEASE = "INSERT INTO leases (chain_id, address, holder, token, until) \
        VALUES ($1, $2, $3, 1, $4) ON CONFLICT (chain_id, address) DO UPDATE \
        SET token = CASE WHEN leases.holder = excluded.holder THEN leases.token \
        ELSE leases.token + 1 END, holder = excluded.holder, until = excluded.until \
        WHERE leases.holder = excluded.holder OR leases.until <= $5 \
        OR leases.until > $6 RETURNING token";
    SEIZE_LEASE = "INSERT INTO leases (chain_id, address, holder, token, until) \
        VALUES ($1, $2, $3, 1, $4) ON CONFLICT (chain_id, address) DO UPDATE \
        SET token = CASE WHEN leases.holder = excluded.holder THEN leases.token \
        ELSE leases.token + 1 END, holder = excluded.holder, until = excluded.until \
        RETURNING token";
    HOLDS_LEASE = locked!("SELECT token FROM leases WHERE chain_id = $1 AND address = $2 \
        AND holder = $3 AND token = $4");
    LEASE = "SELECT * FROM leases WHERE chain_id = $1 AND address = $2";
    RELEASE_LEASE = "UPDATE leases SET until = 0 WHERE chain_id = $1 AND address = $2 \
        AND holder = $3 AND token = $4";
    RELEASE_LEASES = "UPDATE leases SET until = 0 WHERE holder = $1";
    END_LEASES = "UPDATE leases SET until = 0";
}

#[derive(FromRow)]
struct Token {
    token: i64,
}

#[derive(FromRow)]
struct LeaseColumns {
    chain_id: i64,
    address: Vec<u8>,
    holder: String,
    token: i64,
    until: i64,
}

impl LeaseColumns {
    fn read(self) -> Result<LeaseRow, StoreError> {
        Ok(LeaseRow {
            lease: Lease {
                chain: ChainId::new(to_u64(self.chain_id)?),
                address: address(&self.address)?,
                holder: parsed(&self.holder)?,
                token: self.token,
            },
            until: Timestamp::from_millis(self.until),
        })
    }
}

pub(super) async fn take_lease(
    tx: &mut Tx,
    (chain, account): (ChainId, Address),
    holder: HolderId,
    now: Timestamp,
    until: Timestamp,
) -> Result<Option<Lease>, StoreError> {
    // A lease that ends an hour later than this one was taken by a clock that is ahead.
    let insane = until.plus_millis(CLOCKS_DIFFER_MS);
    let values = values![
        to_i64(chain.get())?,
        account.as_slice(),
        holder.to_string(),
        until.millis(),
        now.millis(),
        insane.millis(),
    ];
    let taken = tx.one::<Token>(TAKE_LEASE, values).await?;
    Ok(taken.map(|row| Lease { chain, address: account, holder, token: row.token }))
}

pub(super) async fn seize_lease(
    tx: &mut Tx,
    (chain, account): (ChainId, Address),
    holder: HolderId,
    until: Timestamp,
) -> Result<Lease, StoreError> {
    let values =
        values![to_i64(chain.get())?, account.as_slice(), holder.to_string(), until.millis()];
    match tx.one::<Token>(SEIZE_LEASE, values).await? {
        Some(row) => Ok(Lease { chain, address: account, holder, token: row.token }),
        None => Err(tx.corrupt("a lease was seized and has no token")),
    }
}

fn exactly(lease: &Lease) -> Result<Vec<Value>, StoreError> {
    Ok(values![
        to_i64(lease.chain.get())?,
        lease.address.as_slice(),
        lease.holder.to_string(),
        lease.token,
    ])
}

pub(super) async fn holds_lease(tx: &mut Tx, lease: &Lease) -> Result<bool, StoreError> {
    let found = tx.one::<Token>(HOLDS_LEASE, exactly(lease)?).await?;
    Ok(found.is_some_and(|row| row.token == lease.token))
}

pub(super) async fn release_lease(tx: &mut Tx, lease: &Lease) -> Result<(), StoreError> {
    tx.execute(RELEASE_LEASE, exactly(lease)?).await.map(|_| ())
}

pub(super) async fn lease(
    tx: &mut Tx,
    chain: ChainId,
    account: Address,
) -> Result<Option<LeaseRow>, StoreError> {
    let values = values![to_i64(chain.get())?, account.as_slice()];
    tx.one::<LeaseColumns>(LEASE, values).await?.map(LeaseColumns::read).transpose()
}

pub(super) async fn release_leases(tx: &mut Tx, holder: HolderId) -> Result<(), StoreError> {
    tx.execute(RELEASE_LEASES, values![holder.to_string()]).await.map(|_| ())
}

pub(super) async fn end_leases(tx: &mut Tx) -> Result<(), StoreError> {
    tx.execute(END_LEASES, values![]).await.map(|_| ())
}
