//! What comes over a broker: taken in hand once, or kept unread.

use super::outbox::stored_kind;
use super::statement::{Tx, Value, hash, height, stored, values};
use super::upkeep;
use crate::core::time::Timestamp;
use crate::ports::bus::{Kind, Message};
use crate::ports::watch_store::{
    Arrived, Attention, Claimed, Received, Unreadable, WatchStoreError,
};

statements! {
    // Below it, the own poller has read everything.
    PLACE = "SELECT next_block FROM source WHERE name = $1 AND chain = $2";
    // What this watcher's own poller knows of the event: its document, how many of its deliveries are
    // held, and how many were let go. An event that was found before it had a consumer has no delivery
    // of either kind; the chain's own finality stands in for its source's then.
    OWN = "SELECT e.state, e.body, e.block_number, \
           (SELECT COUNT(*) FROM outbox h WHERE h.source = e.source AND h.event_id = e.event_id \
           AND h.kind = 'log' AND h.state = 'held'), \
           (SELECT COUNT(*) FROM outbox r WHERE r.source = e.source AND r.event_id = e.event_id \
           AND r.kind = 'log' AND r.origin = 'chain' AND r.state NOT IN ('held', 'cancelled')) \
           + (SELECT COUNT(*) FROM chain c WHERE c.name = e.chain \
           AND c.final_number >= e.block_number) \
           FROM event e WHERE e.source = $1 AND e.event_id = $2";
    // The newest: a block that came back has its event told again, after its retraction.
    KNOWN = "SELECT id, state, attempts, origin, body FROM outbox \
             WHERE consumer = $1 AND source = $2 AND event_id = $3 AND kind = $4 \
             ORDER BY id DESC LIMIT 1";
    TAKE = "INSERT INTO outbox (consumer, source, chain, event_id, kind, block_number, body, state, \
            attempts, due_at, reason, result, created_at, updated_at, origin) \
            VALUES ($1, $2, $3, $4, $5, $6, $7, 'taken', 1, $8, '', '', $8, $8, 'bus') RETURNING id";
    // Of what is parked, or waits to be tried again, only a body that was not the event's.
    TAKE_AGAIN = "UPDATE outbox SET state = 'taken', attempts = attempts + 1, due_at = $3, \
                  updated_at = $3, body = $4 WHERE id = $1 AND attempts = $2 \
                  AND (state IN ('taken', 'cancelled') \
                  OR (state IN ('parked', 'ready') AND origin = 'bus' AND body <> $4))";
    CANCEL_UNANSWERED = "UPDATE outbox SET state = 'cancelled', reason = 'retracted by a reorg', \
                         updated_at = $2 WHERE id = $1 AND state IN ('ready', 'taken', 'parked')";
    // Its event went away since, whoever was told of that, and is another matter if it comes back.
    IS_RETRACTED_SINCE = "SELECT COUNT(*) FROM outbox WHERE source = $1 AND event_id = $2 \
                          AND kind = 'retraction' AND id > $3";
    KEEP = "INSERT INTO unreadable (consumer, digest, bytes, reason, seen_at) \
            VALUES ($1, $2, $3, $4, $5) ON CONFLICT (consumer, digest) DO NOTHING";
    NEWEST_UNREAD = "SELECT consumer, digest, reason FROM unreadable WHERE acknowledged_at = 0 \
                     ORDER BY id DESC LIMIT 50";
}

/// A row of the outbox: id, state, attempts, origin, body.
type Row = (i64, String, i64, String, String);

/// An event as this watcher's own poller found it.
struct Own {
    state: String,
    body: String,
    block_number: i64,
    /// Final by its source's rule, as a trigger in the same process would wait for.
    released: bool,
}

async fn own(tx: &mut Tx, arrived: &Arrived) -> Result<Option<Own>, WatchStoreError> {
    let event = values![&arrived.message.source, &arrived.message.event_id];
    let row = tx.one::<(String, String, i64, i64, i64)>(OWN, event).await?;
    Ok(row.map(|(state, body, block_number, held, released)| Own {
        state,
        body,
        block_number,
        released: held == 0 && released > 0,
    }))
}

async fn known(tx: &mut Tx, arrived: &Arrived, kind: Kind) -> Result<Option<Row>, WatchStoreError> {
    let (consumer, message) = (&arrived.consumer, &arrived.message);
    let row = values![consumer, &message.source, &message.event_id, stored_kind(kind)];
    tx.one(KNOWN, row).await
}

pub(super) async fn receive(
    tx: &mut Tx,
    arrived: &Arrived,
    now: Timestamp,
) -> Result<Received, WatchStoreError> {
    let source = &arrived.message.source;
    let place = tx.one::<(i64,)>(PLACE, values![source, &arrived.chain]).await?;
    let Some((next_block,)) = place else { return Ok(Received::TooEarly) };
    let is_read = height(next_block)? > arrived.block_number;
    let log = known(tx, arrived, Kind::Log).await?;
    let own = own(tx, arrived).await?;
    match arrived.message.kind {
        Kind::Log => receive_log(tx, arrived, (own, is_read), log, now).await,
        Kind::Retraction => {
            // Anybody who may publish can write one. The broker brings it again when it is true, since
            // this watcher's own poller publishes it.
            if own.is_some_and(|own| own.state == "standing") {
                return Ok(Received::Settled("it stands here"));
            }
            receive_retraction(tx, arrived, log, now).await
        }
    }
}

async fn receive_log(
    tx: &mut Tx,
    arrived: &Arrived,
    (own, is_read): (Option<Own>, bool),
    log: Option<Row>,
    now: Timestamp,
) -> Result<Received, WatchStoreError> {
    let event = own.as_ref().map(|own| own.state.as_str());
    let retracted = event == Some("retracted");
    let log = current(tx, arrived, log).await?;
    match &log {
        Some((_, state, ..)) if state == "done" => {
            return Ok(Received::Settled("it was answered before"));
        }
        Some((id, ..)) if retracted => {
            tx.execute(CANCEL_UNANSWERED, values![*id, now.millis()]).await?;
            return Ok(Received::Settled("its event was retracted before it was answered"));
        }
        None if retracted => {
            return Ok(Received::Settled("its event was retracted before it came"));
        }
        // The outbox's own, from before there was a broker: it lets it go when it is final.
        Some((_, state, ..)) if state == "held" => {
            return Ok(Received::Settled("the outbox delivers it"));
        }
        _ => {}
    }
    if event == Some("undecodable") {
        return Ok(Received::Settled("its log does not decode here"));
    }
    let arrived = match own {
        Some(own) if !own.released => return Ok(Received::TooEarly),
        Some(own) => ours(arrived, own)?,
        // Anybody who may publish can write one. What this watcher has not found itself is not asked for; when
        // it finds it, it publishes it too, and the broker brings that.
        None if is_read => return Ok(Received::Absent),
        None => return Ok(Received::Unread),
    };
    take(tx, &arrived, log, now).await
}

/// The delivery that this arrival is about: what ended before its event was retracted is none.
async fn current(
    tx: &mut Tx,
    arrived: &Arrived,
    log: Option<Row>,
) -> Result<Option<Row>, WatchStoreError> {
    let Some((id, state, ..)) = &log else { return Ok(None) };
    if !["done", "cancelled"].contains(&state.as_str()) {
        return Ok(log);
    }
    let row = values![&arrived.message.source, &arrived.message.event_id, *id];
    let since = tx.one::<(i64,)>(IS_RETRACTED_SINCE, row).await?;
    Ok(log.filter(|_| since.is_none_or(|(count,)| count == 0)))
}

/// The arrival with what this watcher itself read from the chain. Whoever may publish can send an
/// event's id with another document, or before it is final, and must not have it parked by that.
fn ours(arrived: &Arrived, own: Own) -> Result<Arrived, WatchStoreError> {
    let block_number = height(own.block_number)?;
    let message = Message { body: own.body, ..arrived.message.clone() };
    Ok(Arrived { block_number, message, ..arrived.clone() })
}

async fn take(
    tx: &mut Tx,
    arrived: &Arrived,
    log: Option<Row>,
    now: Timestamp,
) -> Result<Received, WatchStoreError> {
    let Some((id, state, attempts, origin, body)) = log else {
        return first(tx, arrived, now).await;
    };
    // What is parked, or due again by an operator's word, has another document than this one.
    let differs = origin == "bus" && body != arrived.message.body;
    match state.as_str() {
        "taken" | "cancelled" => again(tx, arrived, id, attempts, now).await,
        _ if differs => again(tx, arrived, id, attempts, now).await,
        "parked" => Ok(Received::Settled("it is parked")),
        _ => Ok(Received::Settled("the outbox delivers it")),
    }
}

async fn receive_retraction(
    tx: &mut Tx,
    arrived: &Arrived,
    log: Option<Row>,
    now: Timestamp,
) -> Result<Received, WatchStoreError> {
    let Some((log_id, _, attempts, origin, _)) = log else {
        return Ok(Received::Settled("its event never came"));
    };
    tx.execute(CANCEL_UNANSWERED, values![log_id, now.millis()]).await?;
    // An older one took back what was asked for before this; one that was dropped told nobody.
    let told = known(tx, arrived, Kind::Retraction).await?;
    match told.filter(|(id, state, ..)| *id > log_id && state != "cancelled") {
        Some((id, state, attempts, ..)) if state == "taken" => {
            again(tx, arrived, id, attempts, now).await
        }
        Some(_) => Ok(Received::Settled("it was told before")),
        None if attempts == 0 => Ok(Received::Settled("nothing was asked for its event")),
        // Delivered without the broker, before there was one: its retraction goes the same way.
        None if origin == "chain" => Ok(Received::Settled("the outbox tells it")),
        None => first(tx, arrived, now).await,
    }
}

async fn first(
    tx: &mut Tx,
    arrived: &Arrived,
    now: Timestamp,
) -> Result<Received, WatchStoreError> {
    let message = &arrived.message;
    let row = values![
        &arrived.consumer,
        &message.source,
        &arrived.chain,
        &message.event_id,
        stored_kind(message.kind),
        stored(arrived.block_number)?,
        &message.body,
        now.millis()
    ];
    let id = tx.one::<(i64,)>(TAKE, row).await?;
    let (id,) = id.ok_or_else(|| super::statement::contradiction("an inserted row has no id"))?;
    Ok(Received::Ask(Claimed { id, attempt: 1, message: message.clone() }))
}

async fn again(
    tx: &mut Tx,
    arrived: &Arrived,
    id: i64,
    attempts: i64,
    now: Timestamp,
) -> Result<Received, WatchStoreError> {
    let row = values![id, attempts, now.millis(), &arrived.message.body];
    if tx.execute(TAKE_AGAIN, row).await? != 1 {
        // Another process has it in hand since.
        return Err(WatchStoreError::Contended);
    }
    let (attempt, message) = (attempts.saturating_add(1), arrived.message.clone());
    Ok(Received::Ask(Claimed { id, attempt, message }))
}

pub(super) async fn keep_unreadable(
    tx: &mut Tx,
    message: &Unreadable,
    now: Timestamp,
) -> Result<bool, WatchStoreError> {
    if !upkeep::has_room(tx, &message.consumer, message.digest, message.bytes.len()).await? {
        return Ok(false);
    }
    let bytes = Value::Bytes(message.bytes.to_vec());
    let mut row = values![&message.consumer, message.digest];
    row.push(bytes);
    row.extend(values![&message.reason, now.millis()]);
    tx.execute(KEEP, row).await.map(|_| true)
}

pub(super) async fn attention(tx: &mut Tx) -> Result<Vec<Attention>, WatchStoreError> {
    let rows = tx.all::<(String, Vec<u8>, String)>(NEWEST_UNREAD, Vec::new()).await?;
    let item = |(consumer, digest, reason): (String, Vec<u8>, String)| {
        Ok(Attention {
            delivery: 0,
            consumer,
            kind: Kind::Log,
            event_id: format!("sha256:{:x}", hash(&digest)?),
            reason: format!("unreadable: {reason}"),
            became: None,
        })
    };
    rows.into_iter().map(item).collect()
}
