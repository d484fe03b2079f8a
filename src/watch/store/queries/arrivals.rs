//! What comes over a broker: taken in hand once, or kept unread.

use super::outbox::stored_kind;
use super::statement::{Tx, Value, hash, stored, values};
use crate::core::time::Timestamp;
use crate::ports::bus::Kind;
use crate::ports::watch_store::{
    Arrived, Attention, Claimed, Parked, Received, Unreadable, WatchStoreError,
};

statements! {
    PLACE = "SELECT COUNT(*) FROM source WHERE name = $1 AND chain = $2";
    EVENT_STATE = "SELECT state FROM event WHERE source = $1 AND event_id = $2";
    // The newest: a block that came back has its event told again, after its retraction.
    KNOWN = "SELECT id, state, attempts, origin FROM outbox \
             WHERE consumer = $1 AND source = $2 AND event_id = $3 AND kind = $4 \
             ORDER BY id DESC LIMIT 1";
    TAKE = "INSERT INTO outbox (consumer, source, chain, event_id, kind, block_number, body, state, \
            attempts, due_at, reason, result, created_at, updated_at, origin) \
            VALUES ($1, $2, $3, $4, $5, $6, $7, 'taken', 1, $8, '', '', $8, $8, 'bus') RETURNING id";
    TAKE_AGAIN = "UPDATE outbox SET state = 'taken', attempts = attempts + 1, due_at = $3, \
                  updated_at = $3 WHERE id = $1 AND attempts = $2 \
                  AND state IN ('taken', 'cancelled')";
    CANCEL_UNANSWERED = "UPDATE outbox SET state = 'cancelled', reason = 'retracted by a reorg', \
                         updated_at = $2 WHERE id = $1 AND state IN ('ready', 'taken', 'parked')";
    KEEP = "INSERT INTO unreadable (consumer, digest, bytes, reason, seen_at) \
            VALUES ($1, $2, $3, $4, $5) ON CONFLICT (consumer, digest) DO NOTHING";
    UNREAD = "SELECT consumer, digest, bytes, reason FROM unreadable ORDER BY id";
    NEWEST_UNREAD = "SELECT consumer, digest, reason FROM unreadable ORDER BY id DESC LIMIT 50";
    PARKED = "SELECT id, consumer, event_id, reason, body FROM outbox WHERE state = 'parked' \
              ORDER BY id";
}

/// A row of the outbox.
type Row = (i64, String, i64, String);

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
    if tx.one::<(i64,)>(PLACE, values![source, &arrived.chain]).await? != Some((1,)) {
        return Ok(Received::TooEarly);
    }
    let log = known(tx, arrived, Kind::Log).await?;
    match arrived.message.kind {
        Kind::Log => receive_log(tx, arrived, log, now).await,
        Kind::Retraction => receive_retraction(tx, arrived, log, now).await,
    }
}

async fn receive_log(
    tx: &mut Tx,
    arrived: &Arrived,
    log: Option<Row>,
    now: Timestamp,
) -> Result<Received, WatchStoreError> {
    let message = &arrived.message;
    let event = values![&message.source, &message.event_id];
    let event = tx.one::<(String,)>(EVENT_STATE, event).await?;
    let retracted = event.is_some_and(|(state,)| state == "retracted");
    match log {
        Some((_, state, ..)) if state == "done" => Ok(Received::Settled("it was answered before")),
        Some((id, ..)) if retracted => {
            tx.execute(CANCEL_UNANSWERED, values![id, now.millis()]).await?;
            Ok(Received::Settled("its event was retracted before it was answered"))
        }
        None if retracted => Ok(Received::Settled("its event was retracted before it came")),
        Some((id, state, attempts, _)) if state == "taken" || state == "cancelled" => {
            again(tx, arrived, id, attempts, now).await
        }
        Some((_, state, ..)) if state == "parked" => Ok(Received::Settled("it is parked")),
        // Held or ready: the outbox delivers it itself.
        Some(_) => Ok(Received::Settled("the outbox delivers it")),
        None => first(tx, arrived, now).await,
    }
}

async fn receive_retraction(
    tx: &mut Tx,
    arrived: &Arrived,
    log: Option<Row>,
    now: Timestamp,
) -> Result<Received, WatchStoreError> {
    let Some((id, _, attempts, origin)) = log else {
        return Ok(Received::Settled("its event never came"));
    };
    tx.execute(CANCEL_UNANSWERED, values![id, now.millis()]).await?;
    match known(tx, arrived, Kind::Retraction).await? {
        Some((id, state, attempts, _)) if state == "taken" => {
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
    if tx.execute(TAKE_AGAIN, values![id, attempts, now.millis()]).await? != 1 {
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
) -> Result<(), WatchStoreError> {
    let bytes = Value::Bytes(message.bytes.to_vec());
    let mut row = values![&message.consumer, message.digest];
    row.push(bytes);
    row.extend(values![&message.reason, now.millis()]);
    tx.execute(KEEP, row).await.map(|_| ())
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

pub(super) async fn parked(tx: &mut Tx) -> Result<Vec<Parked>, WatchStoreError> {
    let rows = tx.all::<(i64, String, String, String, String)>(PARKED, Vec::new()).await?;
    let delivery = |(delivery, consumer, event_id, reason, body)| Parked::Delivery {
        delivery,
        consumer,
        event_id,
        reason,
        body,
    };
    let mut parked: Vec<Parked> = rows.into_iter().map(delivery).collect();
    for row in tx.all::<(String, Vec<u8>, Vec<u8>, String)>(UNREAD, Vec::new()).await? {
        let (consumer, digest, bytes, reason) = row;
        let digest = hash(&digest)?;
        parked.push(Parked::Unreadable(Unreadable {
            consumer,
            digest,
            bytes: bytes.into(),
            reason,
        }));
    }
    Ok(parked)
}
