//! Pruning, counting, and what an operator sees and acknowledges. Each statement looks at a bounded number
//! of rows, by an index.

use super::super::Store;
use super::statement::{Tx, hash, height, stored, values};
use super::{look, unit};
use crate::core::time::Timestamp;
use crate::ports::watch_store::{
    OldestOpen, OpenLane, OutboxCount, Parked, ParkedFrom, ParkedPage, Progress, PruneFrom, Pruned,
    Seen, Unreadable, Upkeep, WatchStoreError,
};
use alloy::primitives::B256;
use async_trait::async_trait;
use std::collections::BTreeMap;

/// A delivery that keeps its event, and all other deliveries of that, from being pruned; `$3` is the time
/// before which it must have ended.
macro_rules! kept {
    ($row:literal) => {
        concat!(
            $row,
            ".state NOT IN ('done', 'cancelled') OR ",
            $row,
            ".updated_at >= $3 OR (",
            $row,
            ".acknowledged_at = 0 AND ((",
            $row,
            ".state = 'cancelled' AND ",
            $row,
            ".result <> '') OR (",
            $row,
            ".kind = 'retraction' AND ",
            $row,
            ".consumer <> 'publisher')))"
        )
    };
}

/// Events that can go: final, behind their source and its second reading, and nothing open, young or unseen
/// hangs on them. One that stands was told to somebody, since who comes later may want it else; and whoever
/// takes it over a broker has answered it, since its message would be of an unknown event else.
macro_rules! spent {
    () => {
        concat!(
            "SELECT e.id FROM event e JOIN chain c ON c.name = e.chain \
             JOIN source s ON s.name = e.source \
             WHERE e.id > $1 AND e.id <= $2 AND e.block_number <= c.final_number \
             AND e.block_number < s.next_block \
             AND NOT EXISTS (SELECT 1 FROM checked r WHERE r.source = e.source \
             AND r.next_block <= e.block_number) \
             AND (e.state = 'retracted' OR (e.state = 'undecodable' AND e.acknowledged_at > 0) \
             OR (e.state = 'standing' AND EXISTS (SELECT 1 FROM outbox t WHERE t.source = e.source \
             AND t.event_id = e.event_id) AND NOT EXISTS (SELECT 1 FROM taker w \
             WHERE w.source = e.source AND w.active = 1 AND w.after_event < e.id \
             AND NOT EXISTS (SELECT 1 FROM outbox d WHERE d.source = e.source \
             AND d.event_id = e.event_id AND d.consumer = w.consumer AND d.kind = 'log' \
             AND d.state = 'done' AND NOT EXISTS (SELECT 1 FROM outbox b \
             WHERE b.source = e.source AND b.event_id = e.event_id AND b.kind = 'retraction' \
             AND b.id > d.id))))) \
             AND NOT EXISTS (SELECT 1 FROM outbox k WHERE k.source = e.source \
             AND k.event_id = e.event_id AND (",
            kept!("k"),
            "))"
        )
    };
}

/// The events of one batch that were found to be spent.
macro_rules! going {
    ($what:literal) => {
        concat!($what, " FROM event e WHERE e.id > $1 AND e.id <= $2 AND e.state = 'spent'")
    };
}

statements! {
    BEGAN = "INSERT INTO progress (source, first_block, from_block, to_block, resume_block, told, rate, \
             sampled_at) VALUES ($1, $2, $2, -1, -1, 0, 0, 0) ON CONFLICT (source) DO NOTHING";
    SENT_BACK = "UPDATE progress SET from_block = $2, to_block = $3, resume_block = $4, rate = 0, \
                 first_block = CASE WHEN first_block > $2 THEN $2 ELSE first_block END \
                 WHERE source = $1";
    READ_AGAIN = "SELECT p.source, p.resume_block FROM progress p JOIN source s ON s.name = p.source \
                  WHERE s.chain = $1 AND p.to_block >= 0 AND s.next_block > p.to_block";
    GO_ON = "UPDATE source SET next_block = $2 WHERE name = $1 AND next_block < $2";
    WENT_ON = "UPDATE progress SET to_block = -1, resume_block = -1 WHERE source = $1";
    // As PULL_SOURCES: not to before a source's own first block.
    PULLED = "UPDATE progress SET resume_block = (SELECT CASE WHEN s.first_block > $2 \
              THEN s.first_block ELSE $2 END FROM source s WHERE s.name = progress.source) \
              WHERE resume_block > $2 AND source IN (SELECT name FROM source WHERE chain = $1)";
    CHECK_PULLED = "UPDATE checked SET \
                    next_block = CASE WHEN next_block > $2 THEN $2 ELSE next_block END, \
                    resume_block = CASE WHEN resume_block > $2 THEN $2 ELSE resume_block END \
                    WHERE (next_block > $2 OR resume_block > $2) \
                    AND source IN (SELECT name FROM source WHERE chain = $1)";
    CHECK = "SELECT next_block, to_block, resume_block FROM checked WHERE source = $1";
    SET_CHECK = "UPDATE checked SET next_block = $2, to_block = $3, resume_block = $4 \
                 WHERE source = $1";
    NEXT_AND_RESUME = "SELECT s.next_block, p.to_block, p.resume_block FROM source s \
                       JOIN progress p ON p.source = s.name WHERE s.name = $1";
    BACK = "UPDATE source SET next_block = CASE WHEN next_block > $2 THEN $2 ELSE next_block END, \
            first_block = CASE WHEN first_block > $2 THEN $2 ELSE first_block END WHERE name = $1";
    PROGRESS = "SELECT source, first_block, from_block, to_block, told, rate, sampled_at FROM progress \
                ORDER BY source";
    NOTE_RATE = "UPDATE progress SET rate = $2, sampled_at = $3 WHERE source = $1";
    EVENTS_BEHIND = "SELECT id, seen_at FROM event WHERE id > $1 ORDER BY id LIMIT 500";
    ROWS_BEHIND = "SELECT id, created_at FROM outbox WHERE id > $1 ORDER BY id LIMIT 500";
    // Nobody sees this state: what is spent goes in the same transaction.
    SPEND_EVENTS = concat!("UPDATE event SET state = 'spent' WHERE id IN (", spent!(), ")");
    NOTE_PRUNED = concat!("INSERT INTO tally (name, count) ",
        going!("SELECT 'pruned:' || e.chain, MAX(e.block_number)"), " GROUP BY e.chain \
        ON CONFLICT (name) DO UPDATE SET count = \
        CASE WHEN excluded.count > tally.count THEN excluded.count ELSE tally.count END");
    PRUNE_TURNS = concat!("DELETE FROM trigger_turn WHERE event_id IN (",
        going!("SELECT e.event_id"), ")");
    PRUNE_DELIVERIES = concat!("DELETE FROM outbox WHERE id IN (SELECT o.id FROM outbox o JOIN (",
        going!("SELECT e.source, e.event_id"), ") AS gone \
        ON gone.source = o.source AND gone.event_id = o.event_id)");
    PRUNE_EVENTS = "DELETE FROM event WHERE id > $1 AND id <= $2 AND state = 'spent'";
    NO_TAKERS = "UPDATE taker SET active = 0 WHERE active = 1";
    ADD_TAKER = "INSERT INTO taker (consumer, source, after_event, active) \
                 SELECT $1, $2, COALESCE(MAX(id), 0), 1 FROM event WHERE id > 0 \
                 ON CONFLICT (consumer, source) DO UPDATE SET active = 1";
    PRUNE_STRANGERS = concat!("DELETE FROM outbox WHERE id IN (SELECT o.id FROM outbox o \
        JOIN chain c ON c.name = o.chain WHERE o.id > $1 AND o.id <= $2 \
        AND o.block_number <= c.final_number AND NOT EXISTS (SELECT 1 FROM event e \
        WHERE e.source = o.source AND e.event_id = o.event_id) \
        AND NOT EXISTS (SELECT 1 FROM outbox k WHERE k.source = o.source \
        AND k.event_id = o.event_id AND (", kept!("k"), ")))");
    PRUNE_UNREADABLE = "DELETE FROM unreadable WHERE acknowledged_at > 0";
    NEXT_CONSUMER = "SELECT consumer FROM outbox WHERE consumer > $1 ORDER BY consumer LIMIT 1";
    COUNT_STATE = "SELECT COUNT(*) FROM (SELECT 1 FROM outbox WHERE consumer = $1 AND state = $2 \
                   LIMIT $3) AS counted";
    NEXT_LANE = "SELECT source FROM outbox WHERE consumer = $1 AND source > $2 \
                 AND state IN ('held', 'ready') ORDER BY source LIMIT 1";
    COUNT_LANE = "SELECT COUNT(*) FROM (SELECT 1 FROM outbox WHERE consumer = $1 AND source = $2 \
                  AND state IN ('held', 'ready') LIMIT $3) AS counted";
    // Of what a broker has handed out there is not much at a time.
    COUNT_TAKEN = "SELECT source, COUNT(*) FROM outbox WHERE consumer = $1 AND state = 'taken' \
                   GROUP BY source";
    OLDEST_OPEN = "SELECT created_at FROM outbox WHERE consumer = $1 AND state IN ('ready', 'taken') \
                   ORDER BY id LIMIT 1";
    IS_KEPT = "SELECT COUNT(*) FROM unreadable WHERE consumer = $1 AND digest = $2";
    KEPT_IN_ALL = "SELECT COUNT(*), COALESCE(SUM(LENGTH(bytes)), 0) FROM unreadable";
    COUNT_MORE = "INSERT INTO tally (name, count) VALUES ($1, 1) \
                  ON CONFLICT (name) DO UPDATE SET count = tally.count + 1";
    TALLY = "SELECT count FROM tally WHERE name = $1";
    SEE_DELIVERY = "UPDATE outbox SET acknowledged_at = $2 WHERE id = $1 AND acknowledged_at = 0";
    SEE_DELIVERIES = "UPDATE outbox SET acknowledged_at = $1 WHERE acknowledged_at = 0 \
                      AND (state = 'parked' OR (state = 'cancelled' AND result <> '') \
                      OR (kind = 'retraction' AND consumer <> 'publisher') \
                      OR (state = 'ready' AND SUBSTR(reason, 1, 14) = 'above its rate') \
                      OR (state IN ('ready', 'taken') AND attempts > 2))";
    SEE_EVENT = "UPDATE event SET acknowledged_at = $2 WHERE event_id = $1 AND state = 'undecodable' \
                 AND acknowledged_at = 0";
    SEE_EVENTS = "UPDATE event SET acknowledged_at = $1 WHERE state = 'undecodable' \
                  AND acknowledged_at = 0";
    SEE_UNREADABLE = "UPDATE unreadable SET acknowledged_at = $2 WHERE digest = $1 \
                      AND acknowledged_at = 0";
    SEE_ALL_UNREADABLE = "UPDATE unreadable SET acknowledged_at = $1 WHERE acknowledged_at = 0";
    PUBLISH_AGAIN = "UPDATE outbox SET state = 'ready', due_at = $3, updated_at = $3 \
                     WHERE consumer = 'publisher' AND source = $1 AND kind = 'log' AND state = 'done' \
                     AND block_number >= $2 AND EXISTS (SELECT 1 FROM event e \
                     WHERE e.source = outbox.source AND e.event_id = outbox.event_id \
                     AND e.state = 'standing') AND NOT EXISTS (SELECT 1 FROM outbox t \
                     WHERE t.source = outbox.source AND t.event_id = outbox.event_id \
                     AND t.kind = 'log' AND t.consumer <> 'publisher')";
    PARKED_ROWS = "SELECT id, consumer, event_id, reason, body FROM outbox \
                   WHERE state = 'parked' AND id > $1 ORDER BY id LIMIT $2";
    UNDECODED = "SELECT id, source, event_id, block_number, reason, body FROM event \
                 WHERE state = 'undecodable' AND id > $1 ORDER BY id LIMIT $2";
    UNREAD = "SELECT id, consumer, digest, bytes, reason FROM unreadable \
              WHERE id > $1 ORDER BY id LIMIT $2";
}

/// How many messages that cannot be read are kept, and how many bytes of them.
const UNREADABLE_MAX: i64 = 1000;
const UNREADABLE_BYTES_MAX: i64 = 64 << 20;
const REFUSED: &str = "unreadable_refused";

pub(super) async fn began(tx: &mut Tx, source: &str, first: i64) -> Result<(), WatchStoreError> {
    tx.execute(BEGAN, values![source, first]).await.map(|_| ())
}

pub(super) async fn sent_back(tx: &mut Tx, source: &str, from: i64) -> Result<(), WatchStoreError> {
    check_again(tx, source, from, None).await?;
    tx.execute(SENT_BACK, values![source, from, -1, -1]).await.map(|_| ())
}

/// What is read once more is read a second time too; of some blocks no more than those, since of what is
/// above them some may be pruned, and would pass for left out.
async fn check_again(
    tx: &mut Tx,
    source: &str,
    from: i64,
    to: Option<i64>,
) -> Result<(), WatchStoreError> {
    let row = tx.one::<(i64, i64, i64)>(CHECK, values![source]).await?;
    let Some((next, open, resume)) = row else { return Ok(()) };
    let resume = next.max(resume);
    if from >= resume {
        return Ok(());
    }
    let row = match to {
        // What is still open of an order ends before this begins.
        None if open >= 0 && from > open.saturating_add(1) => values![source, next, open, from],
        None => values![source, next.min(from), -1, -1],
        // It is part of this one.
        Some(to) => {
            let (next, to) = (next.min(from), to.max(open));
            let (to, resume) = if to.saturating_add(1) < resume { (to, resume) } else { (-1, -1) };
            values![source, next, to, resume]
        }
    };
    tx.execute(SET_CHECK, row).await.map(|_| ())
}

/// Sources that were to read some blocks again, and have, go on where they were.
pub(super) async fn go_on(tx: &mut Tx, chain: &str) -> Result<(), WatchStoreError> {
    for (source, at) in tx.all::<(String, i64)>(READ_AGAIN, values![chain]).await? {
        tx.execute(GO_ON, values![&source, at]).await?;
        tx.execute(WENT_ON, values![&source]).await?;
    }
    Ok(())
}

/// After a reorg nobody goes on above the common ancestor, and what was read there twice was another block.
pub(super) async fn pulled(tx: &mut Tx, chain: &str, next: i64) -> Result<(), WatchStoreError> {
    tx.execute(CHECK_PULLED, values![chain, next]).await?;
    tx.execute(PULLED, values![chain, next]).await.map(|_| ())
}

async fn reread(tx: &mut Tx, source: &str, from: i64, to: i64) -> Result<bool, WatchStoreError> {
    let row = tx.one::<(i64, i64, i64)>(NEXT_AND_RESUME, values![source]).await?;
    let Some((next, open, resume)) = row else { return Ok(false) };
    let resume = next.max(resume);
    if from >= resume {
        return Ok(false);
    }
    tx.execute(BACK, values![source, from]).await?;
    check_again(tx, source, from, Some(to)).await?;
    // What is still open of another order is part of this one.
    let (from, to) = (from.min(next), to.max(open));
    // What reaches to where it was is a plain step back.
    let (to, resume) = if to.saturating_add(1) < resume { (to, resume) } else { (-1, -1) };
    tx.execute(SENT_BACK, values![source, from, to, resume]).await?;
    Ok(true)
}

pub(super) async fn progress(tx: &mut Tx) -> Result<Vec<Progress>, WatchStoreError> {
    let rows = tx.all::<(String, i64, i64, i64, i64, i64, i64)>(PROGRESS, Vec::new()).await?;
    let progress =
        |(source, first, from, to, told, rate, at): (String, i64, i64, i64, i64, i64, i64)| {
            Ok(Progress {
                source,
                first_block: height(first)?,
                from_block: height(from)?,
                to_block: u64::try_from(to).ok(),
                told: height(told)?,
                rate: height(rate)?,
                sampled_at: Timestamp::from_millis(at),
            })
        };
    rows.into_iter().map(progress).collect()
}

/// The last of these rows, by id, that is old enough, if the first is.
fn old_until(rows: &[(i64, i64)], before: Timestamp) -> Option<i64> {
    rows.iter().take_while(|(_, at)| *at < before.millis()).last().map(|(id, _)| *id)
}

async fn prune(tx: &mut Tx, from: PruneFrom, before: Timestamp) -> Result<Pruned, WatchStoreError> {
    let mut pruned = Pruned { rows: tx.execute(PRUNE_UNREADABLE, Vec::new()).await?, next: None };
    let mut next = from;
    let events = tx.all::<(i64, i64)>(EVENTS_BEHIND, values![from.event]).await?;
    if let Some(to) = old_until(&events, before) {
        let (range, spend) = (values![from.event, to], values![from.event, to, before.millis()]);
        if tx.execute(SPEND_EVENTS, spend).await? > 0 {
            tx.execute(NOTE_PRUNED, range.clone()).await?;
            for statement in [PRUNE_TURNS, PRUNE_DELIVERIES, PRUNE_EVENTS] {
                let gone = tx.execute(statement, range.clone()).await?;
                pruned.rows = pruned.rows.saturating_add(gone);
            }
        }
        next.event = to;
        pruned.next = Some(next);
    }
    let rows = tx.all::<(i64, i64)>(ROWS_BEHIND, values![from.delivery]).await?;
    if let Some(to) = old_until(&rows, before) {
        let range = values![from.delivery, to, before.millis()];
        pruned.rows = pruned.rows.saturating_add(tx.execute(PRUNE_STRANGERS, range).await?);
        next.delivery = to;
        pruned.next = Some(next);
    }
    Ok(pruned)
}

async fn set_takers(tx: &mut Tx, takers: &[(String, String)]) -> Result<(), WatchStoreError> {
    tx.execute(NO_TAKERS, Vec::new()).await?;
    for (consumer, source) in takers {
        tx.execute(ADD_TAKER, values![consumer, source]).await?;
    }
    Ok(())
}

async fn consumers(tx: &mut Tx) -> Result<Vec<String>, WatchStoreError> {
    let mut found: Vec<String> = Vec::new();
    loop {
        let last = found.last().cloned().unwrap_or_default();
        match tx.one::<(String,)>(NEXT_CONSUMER, values![&last]).await? {
            Some((consumer,)) => found.push(consumer),
            None => return Ok(found),
        }
    }
}

pub(super) async fn counts(
    tx: &mut Tx,
    most: u64,
    all: bool,
) -> Result<Vec<OutboxCount>, WatchStoreError> {
    let most = stored(most)?;
    let mut counts = Vec::new();
    for consumer in consumers(tx).await? {
        for state in ["cancelled", "done", "held", "parked", "ready", "taken"] {
            if !all && ["cancelled", "done"].contains(&state) {
                continue;
            }
            let row = values![&consumer, state, most.saturating_add(1)];
            let count = tx.one::<(i64,)>(COUNT_STATE, row).await?.map_or(0, |(count,)| count);
            if count > 0 {
                let (consumer, state) = (consumer.clone(), state.to_owned());
                let (count, more) = (height(count.min(most))?, count > most);
                counts.push(OutboxCount { consumer, state, count, more });
            }
        }
    }
    Ok(counts)
}

async fn open_lanes(tx: &mut Tx, most: u64) -> Result<Vec<OpenLane>, WatchStoreError> {
    let most = stored(most)?;
    let mut lanes = Vec::new();
    for consumer in consumers(tx).await? {
        let mut of = BTreeMap::<String, (i64, i64)>::new();
        let mut last = String::new();
        while let Some((source,)) =
            tx.one::<(String,)>(NEXT_LANE, values![&consumer, &last]).await?
        {
            let row = values![&consumer, &source, most];
            let count = tx.one::<(i64,)>(COUNT_LANE, row).await?.map_or(0, |(count,)| count);
            of.insert(source.clone(), (count, 0));
            last = source;
        }
        for (source, taken) in tx.all::<(String, i64)>(COUNT_TAKEN, values![&consumer]).await? {
            of.entry(source).or_default().1 = taken;
        }
        for (source, (waiting, taken)) in of {
            let (consumer, waiting, taken) = (consumer.clone(), height(waiting)?, height(taken)?);
            lanes.push(OpenLane { consumer, source, waiting, taken });
        }
    }
    Ok(lanes)
}

async fn oldest_open(tx: &mut Tx) -> Result<Vec<OldestOpen>, WatchStoreError> {
    let mut oldest = Vec::new();
    for consumer in consumers(tx).await? {
        if let Some((at,)) = tx.one::<(i64,)>(OLDEST_OPEN, values![&consumer]).await? {
            oldest.push(OldestOpen { consumer, since: Timestamp::from_millis(at) });
        }
    }
    Ok(oldest)
}

/// Whether a message that cannot be read may be kept; if not, it is counted.
pub(super) async fn has_room(
    tx: &mut Tx,
    consumer: &str,
    digest: B256,
    length: usize,
) -> Result<bool, WatchStoreError> {
    if tx.one::<(i64,)>(IS_KEPT, values![consumer, digest]).await? != Some((0,)) {
        return Ok(true);
    }
    let (count, bytes) = tx.one::<(i64, i64)>(KEPT_IN_ALL, Vec::new()).await?.unwrap_or_default();
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    if count < UNREADABLE_MAX && bytes.saturating_add(length) <= UNREADABLE_BYTES_MAX {
        return Ok(true);
    }
    tx.execute(COUNT_MORE, values![REFUSED]).await?;
    Ok(false)
}

pub(super) async fn refused(tx: &mut Tx) -> Result<u64, WatchStoreError> {
    height(tx.one::<(i64,)>(TALLY, values![REFUSED]).await?.map_or(0, |(count,)| count))
}

async fn publish_again(
    tx: &mut Tx,
    source: &str,
    from_block: u64,
    now: Timestamp,
) -> Result<u64, WatchStoreError> {
    let row = values![source, stored(from_block)?, now.millis()];
    let count = tx.execute(PUBLISH_AGAIN, row).await?;
    tx.wake(source);
    Ok(count)
}

async fn acknowledge(tx: &mut Tx, seen: &Seen, now: i64) -> Result<u64, WatchStoreError> {
    match seen {
        Seen::Delivery(id) => tx.execute(SEE_DELIVERY, values![*id, now]).await,
        Seen::Event(id) => match id.strip_prefix("sha256:").map(str::parse::<B256>) {
            Some(Ok(digest)) => tx.execute(SEE_UNREADABLE, values![digest, now]).await,
            _ => tx.execute(SEE_EVENT, values![id, now]).await,
        },
        Seen::All => {
            let mut count = 0_u64;
            for statement in [SEE_DELIVERIES, SEE_EVENTS, SEE_ALL_UNREADABLE] {
                count = count.saturating_add(tx.execute(statement, values![now]).await?);
            }
            Ok(count)
        }
    }
}

type DeliveryRow = (i64, String, String, String, String);
type EventRow = (i64, String, String, i64, String, String);
type UnreadRow = (i64, String, Vec<u8>, Vec<u8>, String);

async fn parked_page(
    tx: &mut Tx,
    from: ParkedFrom,
    limit: u32,
) -> Result<ParkedPage, WatchStoreError> {
    let mut page = ParkedPage { items: Vec::new(), next: Some(from) };
    let full = |count: usize| u32::try_from(count).is_ok_and(|count| count >= limit);
    let mut at = from;
    let rows = tx.all::<DeliveryRow>(PARKED_ROWS, values![at.delivery, i64::from(limit)]).await?;
    at.delivery = rows.last().map_or(at.delivery, |row| row.0);
    page.next = Some(at);
    let is_full = full(rows.len());
    page.items.extend(rows.into_iter().map(|(delivery, consumer, event_id, reason, body)| {
        Parked::Delivery { delivery, consumer, event_id, reason, body }
    }));
    if is_full {
        return Ok(page);
    }
    let rows = tx.all::<EventRow>(UNDECODED, values![at.event, i64::from(limit)]).await?;
    at.event = rows.last().map_or(at.event, |row| row.0);
    page.next = Some(at);
    let is_full = full(rows.len());
    for (_, source, event_id, number, reason, raw) in rows {
        let block_number = height(number)?;
        page.items.push(Parked::Undecodable { source, event_id, block_number, reason, raw });
    }
    if is_full {
        return Ok(page);
    }
    let rows = tx.all::<UnreadRow>(UNREAD, values![at.unreadable, i64::from(limit)]).await?;
    at.unreadable = rows.last().map_or(at.unreadable, |row| row.0);
    page.next = full(rows.len()).then_some(at);
    for (_, consumer, digest, bytes, reason) in rows {
        let (digest, bytes) = (hash(&digest)?, bytes.into());
        page.items.push(Parked::Unreadable(Unreadable { consumer, digest, bytes, reason }));
    }
    Ok(page)
}

#[async_trait]
impl Upkeep for Store {
    async fn prune(&self, from: PruneFrom, before: Timestamp) -> Result<Pruned, WatchStoreError> {
        unit!(self, "prune", |tx| prune(tx, from, before))
    }

    async fn set_takers(&self, takers: &[(String, String)]) -> Result<(), WatchStoreError> {
        unit!(self, "set_takers", |tx| set_takers(tx, takers))
    }

    async fn counts(&self, most: u64, all: bool) -> Result<Vec<OutboxCount>, WatchStoreError> {
        look!(self, "counts", |tx| counts(tx, most, all))
    }

    async fn open_lanes(&self, most: u64) -> Result<Vec<OpenLane>, WatchStoreError> {
        look!(self, "open_lanes", |tx| open_lanes(tx, most))
    }

    async fn oldest_open(&self) -> Result<Vec<OldestOpen>, WatchStoreError> {
        look!(self, "oldest_open", |tx| oldest_open(tx))
    }

    async fn publish_again(
        &self,
        source: &str,
        from_block: u64,
        now: Timestamp,
    ) -> Result<u64, WatchStoreError> {
        unit!(self, "publish_again", |tx| publish_again(tx, source, from_block, now))
    }

    async fn acknowledge(&self, seen: &Seen, now: Timestamp) -> Result<u64, WatchStoreError> {
        unit!(self, "acknowledge", |tx| acknowledge(tx, seen, now.millis()))
    }

    async fn parked_page(
        &self,
        from: ParkedFrom,
        limit: u32,
    ) -> Result<ParkedPage, WatchStoreError> {
        look!(self, "parked_page", |tx| parked_page(tx, from, limit))
    }

    async fn progress(&self) -> Result<Vec<Progress>, WatchStoreError> {
        look!(self, "progress", |tx| progress(tx))
    }

    async fn note_rate(
        &self,
        source: &str,
        rate: u64,
        now: Timestamp,
    ) -> Result<(), WatchStoreError> {
        let rate = stored(rate)?;
        unit!(self, "note_rate", |tx| note_rate(tx, source, rate, now))
    }

    async fn reread(&self, source: &str, from: u64, to: u64) -> Result<bool, WatchStoreError> {
        // Block 0 has no logs.
        let (from, to) = (stored(from.max(1))?, stored(to)?);
        unit!(self, "reread", |tx| reread(tx, source, from, to))
    }
}

async fn note_rate(
    tx: &mut Tx,
    source: &str,
    rate: i64,
    now: Timestamp,
) -> Result<(), WatchStoreError> {
    tx.execute(NOTE_RATE, values![source, rate, now.millis()]).await.map(|_| ())
}
