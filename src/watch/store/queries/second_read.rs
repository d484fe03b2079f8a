//! The second reading of final blocks.

use super::super::Store;
use super::advance::add_event;
use super::statement::{Tx, height, stored, values};
use super::{look, unit};
use crate::ports::watch_store::{Checked, ReadAgain, SecondReads, SourceMove, WatchStoreError};
use async_trait::async_trait;

statements! {
    BEGIN_CHECK = "INSERT INTO checked (source, next_block, to_block, resume_block, late, nodes) \
                   VALUES ($1, $2, -1, -1, 0, 0) \
                   ON CONFLICT (source) DO NOTHING";
    CHECKED = "SELECT source, next_block, to_block, late, nodes FROM checked WHERE source = $1";
    ALL_CHECKED = "SELECT source, next_block, to_block, late, nodes FROM checked ORDER BY source";
    KNOWN_BETWEEN = "SELECT source, event_id FROM event \
                     WHERE chain = $1 AND block_number >= $2 AND block_number <= $3 \
                     AND state <> 'retracted' ORDER BY id";
    // What was to be read again is: it goes on where it was.
    MOVE_CHECK = "UPDATE checked SET late = late + $4, nodes = $5, \
                  next_block = CASE WHEN to_block >= 0 AND $3 > to_block AND resume_block > $3 \
                  THEN resume_block ELSE $3 END, \
                  resume_block = CASE WHEN $3 > to_block THEN -1 ELSE resume_block END, \
                  to_block = CASE WHEN $3 > to_block THEN -1 ELSE to_block END \
                  WHERE source = $1 AND next_block = $2";
}

#[async_trait]
impl SecondReads for Store {
    async fn checked(&self, begin: &[(String, u64)]) -> Result<Vec<Checked>, WatchStoreError> {
        unit!(self, "checked", |tx| checked(tx, begin))
    }

    async fn all_checked(&self) -> Result<Vec<Checked>, WatchStoreError> {
        look!(self, "all_checked", |tx| all_checked(tx))
    }

    async fn known_between(
        &self,
        chain: &str,
        from: u64,
        to: u64,
    ) -> Result<Vec<(String, String)>, WatchStoreError> {
        look!(self, "known_between", |tx| known_between(tx, chain, from, to))
    }

    async fn read_again(&self, again: &ReadAgain) -> Result<Vec<String>, WatchStoreError> {
        unit!(self, "read_again", |tx| read_again(tx, again))
    }
}

fn as_checked(
    (source, next, to, late, nodes): (String, i64, i64, i64, i64),
) -> Result<Checked, WatchStoreError> {
    let (next_block, late, nodes) = (height(next)?, height(late)?, height(nodes)?);
    let to_block = u64::try_from(to).ok();
    Ok(Checked { source, next_block, to_block, late, nodes })
}

async fn all_checked(tx: &mut Tx) -> Result<Vec<Checked>, WatchStoreError> {
    tx.all(ALL_CHECKED, Vec::new()).await?.into_iter().map(as_checked).collect()
}

async fn checked(tx: &mut Tx, begin: &[(String, u64)]) -> Result<Vec<Checked>, WatchStoreError> {
    let mut found = Vec::with_capacity(begin.len());
    for (source, from) in begin {
        tx.execute(BEGIN_CHECK, values![source, stored(*from)?]).await?;
        let row = tx.one(CHECKED, values![source]).await?;
        found.extend(row.map(as_checked).transpose()?);
    }
    Ok(found)
}

async fn known_between(
    tx: &mut Tx,
    chain: &str,
    from: u64,
    to: u64,
) -> Result<Vec<(String, String)>, WatchStoreError> {
    tx.all(KNOWN_BETWEEN, values![chain, stored(from)?, stored(to)?]).await
}

async fn read_again(tx: &mut Tx, again: &ReadAgain) -> Result<Vec<String>, WatchStoreError> {
    let mut told = Vec::new();
    for SourceMove { source, from, to } in &again.moves {
        let mut late = 0_u64;
        for event in again.events.iter().filter(|event| event.source == *source) {
            if add_event(tx, &again.chain, event, again.now).await? {
                told.push(event.event_id.clone());
                late = late.saturating_add(1);
            }
        }
        let row =
            values![source, stored(*from)?, stored(*to)?, stored(late)?, stored(again.nodes)?];
        if tx.execute(MOVE_CHECK, row).await? != 1 {
            return Err(WatchStoreError::CursorMoved);
        }
    }
    Ok(told)
}
