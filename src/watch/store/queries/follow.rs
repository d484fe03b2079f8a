//! A chain that is followed again after a halt; a consumer that came later; decoding again.

use super::advance::retract_above;
use super::statement::{Tx, height, place, stored, values};
use super::{Store, WatchStoreError, look, unit};
use crate::core::chain_view::Place;
use crate::ports::watch_store::{Again, Backlog, FollowStore, Resume};
use async_trait::async_trait;

statements! {
    // Also the lock of the unit. What was final before is final no more: the nodes say what is.
    LIFT = "UPDATE chain SET cursor_number = $4, cursor_hash = $5, final_number = $6, \
            final_hash = $7, halted = '' \
            WHERE name = $1 AND cursor_number = $2 AND cursor_hash = $3 AND halted <> ''";
    WHY_HALTED = "SELECT halted FROM chain WHERE name = $1";
    IS_IN_WINDOW = "SELECT COUNT(*) FROM block WHERE chain = $1 AND number = $2 AND hash = $3";
    DROP_WINDOW = "DELETE FROM block WHERE chain = $1";
    CUT_WINDOW = "DELETE FROM block WHERE chain = $1 AND number > $2";
    ANCHOR = "INSERT INTO block (chain, number, hash, parent) VALUES ($1, $2, $3, $4)";
    ADD_RESUMED = "INSERT INTO resumed (chain, halted, reason, ancestor, anchor, retracted, at) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7)";
    EVENT_BLOCKS = "SELECT DISTINCT block_number, block_hash FROM event WHERE chain = $1 \
                    AND block_number < $2 AND state <> 'retracted' \
                    ORDER BY block_number DESC LIMIT $3";
    NEWEST_PRUNED = "SELECT count FROM tally WHERE name = 'pruned:' || $1";
    // Where it is not known, in a database from before this column.
    NOTE_FIRST = "UPDATE source SET first_block = $2 WHERE name = $1 AND first_block = 0 \
                  AND next_block >= $2";
    BEGIN_BACKLOG = "INSERT INTO backlog (consumer, source, after_event, done) VALUES ($1, $2, 0, 0) \
                     ON CONFLICT (consumer, source) DO NOTHING";
    BACKLOG = "SELECT after_event FROM backlog WHERE consumer = $1 AND source = $2 AND done = 0";
    NEXT_EVENTS = "SELECT id FROM event WHERE source = $1 AND id > $2 ORDER BY id LIMIT $3";
    // What it was told already, or is about to be, is not told again.
    TELL_BACKLOG = "INSERT INTO outbox (consumer, source, chain, event_id, kind, block_number, body, \
                    state, attempts, due_at, reason, result, created_at, updated_at) \
                    SELECT $1, e.source, e.chain, e.event_id, 'log', e.block_number, e.body, $5, 0, \
                    CAST($6 AS BIGINT), '', '', CAST($6 AS BIGINT), CAST($6 AS BIGINT) FROM event e WHERE e.source = $2 AND e.id > $3 AND e.id <= $4 \
                    AND e.state = 'standing' AND NOT EXISTS (SELECT 1 FROM outbox o \
                    WHERE o.source = e.source AND o.event_id = e.event_id AND o.consumer = $1 \
                    AND o.kind = 'log' AND o.state <> 'cancelled') ORDER BY e.id";
    MOVE_BACKLOG = "UPDATE backlog SET after_event = $3, done = $4 WHERE consumer = $1 AND source = $2";
    MARK = "UPDATE event SET state = 'again' WHERE source = $1 AND state = 'undecodable'";
    MARKED = "SELECT source, event_id, block_number, block_hash, body FROM event \
              WHERE chain = $1 AND state = 'again' ORDER BY id LIMIT $2";
}

async fn resume(tx: &mut Tx, resume: &Resume) -> Result<(), WatchStoreError> {
    let (chain, expected, tip) = (resume.chain.as_str(), resume.expected, resume.tip);
    let why = tx.one::<(String,)>(WHY_HALTED, values![chain]).await?;
    let row = values![
        chain,
        stored(expected.number)?,
        expected.hash,
        stored(tip.number)?,
        tip.hash,
        stored(resume.finalized.number)?,
        resume.finalized.hash
    ];
    if tx.execute(LIFT, row).await? != 1 {
        return Err(WatchStoreError::CursorMoved);
    }
    let ancestor = stored(resume.ancestor)?;
    retract_above(tx, chain, resume.ancestor, &resume.retractions, resume.now).await?;
    let at = stored(tip.number)?;
    if tx.one::<(i64,)>(IS_IN_WINDOW, values![chain, at, tip.hash]).await? == Some((1,)) {
        tx.execute(CUT_WINDOW, values![chain, at]).await?;
    } else {
        tx.execute(DROP_WINDOW, values![chain]).await?;
        tx.execute(ANCHOR, values![chain, at, tip.hash, tip.parent]).await?;
    }
    let halted = why.map_or(String::new(), |(why,)| why);
    let retracted = i64::try_from(resume.retractions.len()).unwrap_or(i64::MAX);
    let row = values![
        chain,
        &halted,
        &resume.reason,
        ancestor,
        stored(resume.finalized.number)?,
        retracted,
        resume.now.millis()
    ];
    tx.execute(ADD_RESUMED, row).await.map(|_| ())
}

async fn event_blocks_below(
    tx: &mut Tx,
    chain: &str,
    number: u64,
    most: u32,
) -> Result<Vec<Place>, WatchStoreError> {
    let row = values![chain, stored(number)?, i64::from(most)];
    let rows = tx.all::<(i64, Vec<u8>)>(EVENT_BLOCKS, row).await?;
    rows.iter().map(|(number, hash)| place(*number, hash)).collect()
}

async fn newest_pruned(tx: &mut Tx, chain: &str) -> Result<u64, WatchStoreError> {
    height(tx.one::<(i64,)>(NEWEST_PRUNED, values![chain]).await?.map_or(0, |(number,)| number))
}

async fn note_first_block(tx: &mut Tx, source: &str, first: u64) -> Result<(), WatchStoreError> {
    tx.execute(NOTE_FIRST, values![source, stored(first)?]).await.map(|_| ())
}

async fn tell_backlog(tx: &mut Tx, backlog: &Backlog) -> Result<bool, WatchStoreError> {
    let (consumer, source) = (&backlog.consumer, &backlog.source);
    tx.execute(BEGIN_BACKLOG, values![consumer, source]).await?;
    let begun = tx.one::<(i64,)>(BACKLOG, values![consumer, source]).await?;
    let Some((after,)) = begun else { return Ok(false) };
    let row = values![source, after, i64::from(backlog.most)];
    let ids = tx.all::<(i64,)>(NEXT_EVENTS, row).await?;
    let upto = ids.last().map_or(after, |(id,)| *id);
    let (state, now) = (if backlog.held { "held" } else { "ready" }, backlog.now.millis());
    tx.execute(TELL_BACKLOG, values![consumer, source, after, upto, state, now]).await?;
    let more = ids.len() >= usize::try_from(backlog.most).unwrap_or(usize::MAX);
    tx.execute(MOVE_BACKLOG, values![consumer, source, upto, i64::from(!more)]).await?;
    Ok(more)
}

async fn mark_undecodable(tx: &mut Tx, sources: &[String]) -> Result<u64, WatchStoreError> {
    let mut marked = 0_u64;
    for source in sources {
        marked = marked.saturating_add(tx.execute(MARK, values![source]).await?);
    }
    Ok(marked)
}

async fn to_decode_again(
    tx: &mut Tx,
    chain: &str,
    most: u32,
) -> Result<Vec<Again>, WatchStoreError> {
    let rows = tx
        .all::<(String, String, i64, Vec<u8>, String)>(MARKED, values![chain, i64::from(most)])
        .await?;
    let again = |(source, event_id, number, hash, body): (String, String, i64, Vec<u8>, String)| {
        height(number)?;
        Ok(Again { source, event_id, block: place(number, &hash)?, body })
    };
    rows.into_iter().map(again).collect()
}

#[async_trait]
impl FollowStore for Store {
    async fn resume(&self, order: &Resume) -> Result<(), WatchStoreError> {
        unit!(self, "resume", |tx| resume(tx, order))
    }

    async fn event_blocks_below(
        &self,
        chain: &str,
        number: u64,
        most: u32,
    ) -> Result<Vec<Place>, WatchStoreError> {
        look!(self, "event_blocks_below", |tx| event_blocks_below(tx, chain, number, most))
    }

    async fn newest_pruned(&self, chain: &str) -> Result<u64, WatchStoreError> {
        look!(self, "newest_pruned", |tx| newest_pruned(tx, chain))
    }

    async fn note_first_block(&self, source: &str, first: u64) -> Result<(), WatchStoreError> {
        unit!(self, "note_first_block", |tx| note_first_block(tx, source, first))
    }

    async fn tell_backlog(&self, backlog: &Backlog) -> Result<bool, WatchStoreError> {
        unit!(self, "tell_backlog", |tx| tell_backlog(tx, backlog))
    }

    async fn mark_undecodable(&self, sources: &[String]) -> Result<u64, WatchStoreError> {
        unit!(self, "mark_undecodable", |tx| mark_undecodable(tx, sources))
    }

    async fn to_decode_again(&self, chain: &str, most: u32) -> Result<Vec<Again>, WatchStoreError> {
        look!(self, "to_decode_again", |tx| to_decode_again(tx, chain, most))
    }
}
