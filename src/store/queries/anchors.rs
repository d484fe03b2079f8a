//! The newest blocks in which ends were told: one row a chain.

use super::column::{hash, to_i64, to_u64};
use super::statement::{Tx, values};
use crate::core::id::ChainId;
use crate::ports::store::{Anchor, StoreError};
use alloy::primitives::B256;
use sqlx::FromRow;

statements! {
    ANCHOR = "SELECT number, hash, broken FROM anchors WHERE chain_id = $1";
    RAISE_ANCHOR = "INSERT INTO anchors (chain_id, number, hash) VALUES ($1, $2, $3) \
        ON CONFLICT (chain_id) DO UPDATE SET number = excluded.number, hash = excluded.hash \
        WHERE anchors.number < excluded.number AND anchors.broken IS NULL";
    BREAK_ANCHOR = "UPDATE anchors SET broken = $4 \
        WHERE chain_id = $1 AND number = $2 AND hash = $3 AND broken IS NULL";
    FORGET_ANCHOR = "DELETE FROM anchors WHERE chain_id = $1";
}

#[derive(FromRow)]
struct AnchorColumns {
    number: i64,
    hash: Vec<u8>,
    broken: Option<String>,
}

pub(super) async fn anchor(tx: &mut Tx, chain: ChainId) -> Result<Option<Anchor>, StoreError> {
    let row = tx.one::<AnchorColumns>(ANCHOR, values![to_i64(chain.get())?]).await?;
    row.map(|row| {
        Ok(Anchor { number: to_u64(row.number)?, hash: hash(&row.hash)?, broken: row.broken })
    })
    .transpose()
}

pub(super) async fn raise_anchor(
    tx: &mut Tx,
    chain: ChainId,
    number: u64,
    hash: B256,
) -> Result<(), StoreError> {
    let values = values![to_i64(chain.get())?, to_i64(number)?, hash.as_slice()];
    tx.execute(RAISE_ANCHOR, values).await.map(|_| ())
}

pub(super) async fn break_anchor(
    tx: &mut Tx,
    chain: ChainId,
    anchor: &Anchor,
    reason: &str,
) -> Result<bool, StoreError> {
    let place = to_i64(anchor.number)?;
    let values = values![to_i64(chain.get())?, place, anchor.hash.as_slice(), reason];
    Ok(tx.execute(BREAK_ANCHOR, values).await? == 1)
}

pub(super) async fn replace_anchor(
    tx: &mut Tx,
    chain: ChainId,
    anchor: Option<(u64, B256)>,
) -> Result<(), StoreError> {
    tx.execute(FORGET_ANCHOR, values![to_i64(chain.get())?]).await?;
    match anchor {
        Some((number, hash)) => raise_anchor(tx, chain, number, hash).await,
        None => Ok(()),
    }
}
