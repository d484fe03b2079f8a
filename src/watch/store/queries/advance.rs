//! The cursor, forward and back.

use super::statement::{Tx, contradiction, stored, values};
use super::{triggers, upkeep};
use crate::core::chain_view::Place;
use crate::core::time::Timestamp;
use crate::ports::watch_store::{
    Advance, NewEvent, RollBack, Settle, SourceMove, StandingEvent, WatchStoreError,
};

statements! {
    // Also the lock of the unit: a second one waits here, and then finds another cursor. A process that
    // has not heard of a halt moves nothing either; it loads again, and finds it.
    MOVE_CURSOR = "UPDATE chain SET cursor_number = $4, cursor_hash = $5 \
                   WHERE name = $1 AND cursor_number = $2 AND cursor_hash = $3 AND halted = ''";
    ADD_LINK = "INSERT INTO block (chain, number, hash, parent) VALUES ($1, $2, $3, $4)";
    DROP_ABOVE = "DELETE FROM block WHERE chain = $1 AND number > $2";
    DROP_BELOW = "DELETE FROM block WHERE chain = $1 AND number < $2";
    MOVE_SOURCE = "UPDATE source SET next_block = $3 WHERE name = $1 AND next_block = $2";
    // Not to before its own first block: see `next_after` of the core.
    PULL_SOURCES = "UPDATE source SET next_block = CASE WHEN first_block > $2 THEN first_block \
                    ELSE $2 END WHERE chain = $1 AND next_block > $2";
    ADD_EVENT = "INSERT INTO event (source, event_id, chain, block_number, block_hash, state, body, \
                 reason, seen_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
                 ON CONFLICT (source, event_id) DO UPDATE SET state = excluded.state, \
                 body = excluded.body, reason = excluded.reason \
                 WHERE event.state IN ('retracted', 'again') \
                 OR (event.state = 'undecodable' AND excluded.state = 'standing') RETURNING id";
    ADD_DELIVERY = "INSERT INTO outbox (consumer, source, chain, event_id, kind, block_number, body, \
                    state, attempts, due_at, reason, result, created_at, updated_at) \
                    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, $9, '', '', $9, $9)";
    STANDING = "SELECT source, event_id, body FROM event \
                WHERE chain = $1 AND block_number > $2 AND state = 'standing' ORDER BY id";
    RETRACT = "UPDATE event SET state = 'retracted' \
               WHERE source = $1 AND event_id = $2 AND state = 'standing' RETURNING block_number";
    RETRACT_UNDECODABLE = "UPDATE event SET state = 'retracted' \
                           WHERE chain = $1 AND block_number > $2 \
                           AND state IN ('undecodable', 'again')";
    COUNT_STANDING = "SELECT COUNT(*) FROM event \
                      WHERE chain = $1 AND block_number > $2 AND state = 'standing'";
    // Deliveries that were tried before, or are done: their consumers must hear of the retraction. Who
    // takes them over a bus hears of it over the bus; who does not any more, from here. What a retraction
    // took back already, when the block went for the first time, is not taken back again. One that is in
    // hand, or was dropped since the event stood again, has told nothing, and one that was published may
    // have come to its readers while it stood again.
    TOLD = "SELECT DISTINCT l.consumer FROM outbox l \
            WHERE l.source = $1 AND l.event_id = $2 AND l.kind = 'log' AND l.attempts > 0 \
            AND (l.origin = 'chain' OR NOT EXISTS (SELECT 1 FROM taker t \
            WHERE t.consumer = l.consumer AND t.source = l.source AND t.active = 1)) \
            AND NOT EXISTS (SELECT 1 FROM outbox r WHERE r.source = l.source \
            AND r.event_id = l.event_id AND r.consumer = l.consumer AND r.kind = 'retraction' \
            AND r.id > l.id AND ((r.state IN ('ready', 'parked') AND r.claimed_by = 0) \
            OR (r.state = 'done' AND r.consumer <> 'publisher'))) ORDER BY l.consumer";
    CANCEL = "UPDATE outbox SET state = 'cancelled', reason = 'retracted by a reorg', updated_at = $3 \
              WHERE source = $1 AND event_id = $2 AND kind = 'log' \
              AND state IN ('held', 'ready', 'taken', 'parked')";
    SET_FINAL = "UPDATE chain SET final_number = $2, final_hash = $3 \
                 WHERE name = $1 AND final_number < $2";
    RELEASE = "UPDATE outbox SET state = 'ready', due_at = $4, updated_at = $4 \
               WHERE chain = $1 AND source = $2 AND state = 'held' AND block_number <= $3";
}

async fn move_cursor(
    tx: &mut Tx,
    chain: &str,
    from: Place,
    to: Place,
) -> Result<(), WatchStoreError> {
    let row = values![chain, stored(from.number)?, from.hash, stored(to.number)?, to.hash];
    match tx.execute(MOVE_CURSOR, row).await? {
        1 => Ok(()),
        _ => Err(WatchStoreError::CursorMoved),
    }
}

pub(super) async fn advance(tx: &mut Tx, advance: &Advance) -> Result<(), WatchStoreError> {
    let chain = advance.chain.as_str();
    let to = advance.blocks.last().map_or(advance.expected, |block| block.place());
    move_cursor(tx, chain, advance.expected, to).await?;
    for event in &advance.events {
        add_event(tx, chain, event, advance.now).await?;
    }
    crate::failpoint!("watch.mid_block");
    for SourceMove { source, from, to } in &advance.moves {
        let row = values![source, stored(*from)?, stored(*to)?];
        if tx.execute(MOVE_SOURCE, row).await? != 1 {
            return Err(WatchStoreError::CursorMoved);
        }
    }
    if !advance.moves.is_empty() {
        upkeep::go_on(tx, chain).await?;
    }
    for block in &advance.blocks {
        let row = values![chain, stored(block.number)?, block.hash, block.parent];
        tx.execute(ADD_LINK, row).await?;
    }
    if !advance.blocks.is_empty() {
        let oldest = to.number.saturating_sub(advance.keep.saturating_sub(1));
        tx.execute(DROP_BELOW, values![chain, stored(oldest)?]).await?;
    }
    Ok(())
}

/// Adds an event with its deliveries. `false` if it stands already, and was told.
pub(super) async fn add_event(
    tx: &mut Tx,
    chain: &str,
    event: &NewEvent,
    now: Timestamp,
) -> Result<bool, WatchStoreError> {
    let number = stored(event.block.number)?;
    let state = if event.undecodable.is_some() { "undecodable" } else { "standing" };
    let reason = event.undecodable.as_deref().unwrap_or_default();
    let (source, id, at) = (&event.source, &event.event_id, now.millis());
    let row = values![source, id, chain, number, event.block.hash, state, &event.body, reason, at];
    if tx.one::<(i64,)>(ADD_EVENT, row).await?.is_none() {
        return Ok(false);
    }
    if event.undecodable.is_none() {
        tx.told(source);
    }
    for delivery in &event.deliveries {
        let state = if delivery.held { "held" } else { "ready" };
        let row =
            values![&delivery.consumer, source, chain, id, "log", number, &event.body, state, at];
        tx.execute(ADD_DELIVERY, row).await?;
    }
    Ok(true)
}

pub(super) async fn standing_above(
    tx: &mut Tx,
    chain: &str,
    number: u64,
) -> Result<Vec<StandingEvent>, WatchStoreError> {
    let rows =
        tx.all::<(String, String, String)>(STANDING, values![chain, stored(number)?]).await?;
    let event = |(source, event_id, body)| StandingEvent { source, event_id, body };
    Ok(rows.into_iter().map(event).collect())
}

pub(super) async fn roll_back(tx: &mut Tx, back: &RollBack) -> Result<(), WatchStoreError> {
    let chain = back.chain.as_str();
    let ancestor = stored(back.ancestor.number)?;
    move_cursor(tx, chain, back.expected, back.ancestor).await?;
    retract_above(tx, chain, back.ancestor.number, &back.retractions, back.now).await?;
    tx.execute(DROP_ABOVE, values![chain, ancestor]).await.map(|_| ())
}

/// Takes back what stands above the ancestor: exactly these, or else something came in meanwhile. The
/// sources read it again.
pub(super) async fn retract_above(
    tx: &mut Tx,
    chain: &str,
    ancestor: u64,
    retractions: &[StandingEvent],
    now: Timestamp,
) -> Result<(), WatchStoreError> {
    let above = stored(ancestor)?;
    for event in retractions {
        retract(tx, chain, event, now).await?;
    }
    let left = tx.one::<(i64,)>(COUNT_STANDING, values![chain, above]).await?;
    if left != Some((0,)) {
        return Err(WatchStoreError::CursorMoved);
    }
    tx.execute(RETRACT_UNDECODABLE, values![chain, above]).await?;
    let next = above.checked_add(1).ok_or_else(|| contradiction("a number is out of range"))?;
    tx.execute(PULL_SOURCES, values![chain, next]).await?;
    upkeep::pulled(tx, chain, next).await
}

async fn retract(
    tx: &mut Tx,
    chain: &str,
    event: &StandingEvent,
    now: Timestamp,
) -> Result<(), WatchStoreError> {
    let (source, id) = (&event.source, &event.event_id);
    let Some((number,)) = tx.one::<(i64,)>(RETRACT, values![source, id]).await? else {
        return Err(WatchStoreError::CursorMoved);
    };
    let told = tx.all::<(String,)>(TOLD, values![source, id]).await?;
    tx.execute(CANCEL, values![source, id, now.millis()]).await?;
    triggers::cancel_turns(tx, source, id).await?;
    tx.wake(source);
    for (consumer,) in told {
        let row = values![
            &consumer,
            source,
            chain,
            id,
            "retraction",
            number,
            &event.body,
            "ready",
            now.millis()
        ];
        tx.execute(ADD_DELIVERY, row).await?;
    }
    Ok(())
}

pub(super) async fn settle(tx: &mut Tx, settle: &Settle) -> Result<(), WatchStoreError> {
    let chain = settle.chain.as_str();
    move_cursor(tx, chain, settle.expected, settle.expected).await?;
    if let Some(finalized) = settle.finalized {
        let row = values![chain, stored(finalized.number)?, finalized.hash];
        tx.execute(SET_FINAL, row).await?;
    }
    for (source, number) in &settle.releases {
        let row = values![chain, source, stored(*number)?, settle.now.millis()];
        if tx.execute(RELEASE, row).await? > 0 {
            tx.wake(source);
        }
    }
    Ok(())
}
