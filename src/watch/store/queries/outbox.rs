//! Deliveries: claimed, ended, counted.

use super::statement::{Tx, contradiction, height, values};
use super::{arrivals, chains};
use crate::core::time::Timestamp;
use crate::ports::bus::{Kind, Message, PUBLISHER};
use crate::ports::watch_store::{
    Attention, Claimed, Ended, OutboxCount, WatchStatus, WatchStoreError,
};
use sqlx::FromRow;

statements! {
    HEAD = "SELECT id, state, attempts, due_at, kind, event_id, body FROM outbox \
            WHERE consumer = $1 AND source = $2 AND state IN ('held', 'ready') ORDER BY id LIMIT 1";
    // Compare and swap: of two that claim the same row, one gets it.
    CLAIM = "UPDATE outbox SET attempts = attempts + 1, due_at = $3, updated_at = $4 \
             WHERE id = $1 AND attempts = $2 AND state = 'ready'";
    FORGET = "UPDATE outbox SET due_at = $1 WHERE state = 'ready' AND due_at > $1";
    DONE = "UPDATE outbox SET state = 'done', result = $3, reason = '', updated_at = $4 \
            WHERE id = $1 AND attempts = $2 AND state IN ('ready', 'taken')";
    DONE_THOUGH_CANCELLED = "UPDATE outbox SET result = $3, updated_at = $4 \
                             WHERE id = $1 AND attempts = $2 AND state = 'cancelled'";
    RETRY = "UPDATE outbox SET due_at = $3, reason = $4, updated_at = $5 \
             WHERE id = $1 AND attempts = $2 AND state IN ('ready', 'taken')";
    PARK = "UPDATE outbox SET state = 'parked', reason = $3, updated_at = $4 \
            WHERE id = $1 AND attempts = $2 AND state IN ('ready', 'taken')";
    UNPARK = "UPDATE outbox SET state = 'ready', due_at = $2, updated_at = $2 \
              WHERE state = 'parked' AND ($1 = 0 OR id = $1)";
    COUNTS = "SELECT consumer, state, COUNT(*) FROM outbox GROUP BY consumer, state \
              ORDER BY consumer, state";
    // A retraction shows what became of the log that it takes back. That it was published, to whom it
    // may concern, needs no look.
    ATTENTION = "SELECT o.id, o.consumer, o.kind, o.event_id, o.state, o.reason, \
                 COALESCE((SELECT MAX(l.result) FROM outbox l WHERE l.source = o.source \
                 AND l.event_id = o.event_id AND l.consumer = o.consumer AND l.kind = 'log'), '') \
                 FROM outbox o WHERE o.state = 'parked' OR (o.state = 'cancelled' AND o.result <> '') \
                 OR (o.kind = 'retraction' AND o.consumer <> $1) \
                 OR (o.state IN ('ready', 'taken') AND o.attempts > 2) ORDER BY o.id DESC LIMIT 50";
    UNDECODABLE = "SELECT event_id, reason FROM event WHERE state = 'undecodable' \
                   ORDER BY id DESC LIMIT 50";
}

/// Whose oldest open delivery, and when.
pub(super) struct Head<'a> {
    pub(super) consumer: &'a str,
    pub(super) source: &'a str,
    pub(super) now: Timestamp,
}

#[derive(FromRow)]
struct HeadRow {
    id: i64,
    state: String,
    attempts: i64,
    due_at: i64,
    kind: String,
    event_id: String,
    body: String,
}

fn kind(stored: &str) -> Result<Kind, WatchStoreError> {
    match stored {
        "log" => Ok(Kind::Log),
        "retraction" => Ok(Kind::Retraction),
        other => Err(contradiction(format!("a stored message of kind {other}"))),
    }
}

pub(super) const fn stored_kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Log => "log",
        Kind::Retraction => "retraction",
    }
}

async fn due(tx: &mut Tx, head: &Head<'_>) -> Result<Option<HeadRow>, WatchStoreError> {
    let row = tx.one::<HeadRow>(HEAD, values![head.consumer, head.source]).await?;
    Ok(row.filter(|row| row.state == "ready" && row.due_at <= head.now.millis()))
}

pub(super) async fn has_due(tx: &mut Tx, head: &Head<'_>) -> Result<bool, WatchStoreError> {
    Ok(due(tx, head).await?.is_some())
}

pub(super) async fn claim(
    tx: &mut Tx,
    head: &Head<'_>,
    lease_ms: i64,
) -> Result<Option<Claimed>, WatchStoreError> {
    let Some(row) = due(tx, head).await? else { return Ok(None) };
    let until = head.now.plus_millis(lease_ms).millis();
    let claim = values![row.id, row.attempts, until, head.now.millis()];
    if tx.execute(CLAIM, claim).await? != 1 {
        return Ok(None);
    }
    Ok(Some(Claimed {
        id: row.id,
        attempt: row.attempts.saturating_add(1),
        message: Message {
            kind: kind(&row.kind)?,
            source: head.source.to_owned(),
            event_id: row.event_id,
            body: row.body,
        },
    }))
}

pub(super) async fn forget_claims(tx: &mut Tx, now: Timestamp) -> Result<(), WatchStoreError> {
    tx.execute(FORGET, values![now.millis()]).await.map(|_| ())
}

pub(super) async fn finish(
    tx: &mut Tx,
    id: i64,
    attempt: i64,
    ended: &Ended,
    now: Timestamp,
) -> Result<bool, WatchStoreError> {
    let now = now.millis();
    let touched = match ended {
        Ended::Done(result) => {
            let row = values![id, attempt, result, now];
            let touched = tx.execute(DONE, row.clone()).await?;
            if touched == 0 {
                tx.execute(DONE_THOUGH_CANCELLED, row).await?;
            }
            touched
        }
        Ended::Retry { due, error } => {
            tx.execute(RETRY, values![id, attempt, due.millis(), error, now]).await?
        }
        Ended::Parked(reason) => tx.execute(PARK, values![id, attempt, reason, now]).await?,
    };
    Ok(touched == 1)
}

pub(super) async fn unpark(tx: &mut Tx, id: i64, now: Timestamp) -> Result<u64, WatchStoreError> {
    tx.execute(UNPARK, values![id, now.millis()]).await
}

type AttentionRow = (i64, String, String, String, String, String, String);

pub(super) async fn status(tx: &mut Tx) -> Result<WatchStatus, WatchStoreError> {
    let chains = chains::load_all(tx).await?;
    let counts = tx.all::<(String, String, i64)>(COUNTS, Vec::new()).await?;
    let count = |(consumer, state, count): (String, String, i64)| {
        Ok(OutboxCount { consumer, state, count: height(count)? })
    };
    let outbox = counts.into_iter().map(count).collect::<Result<_, WatchStoreError>>()?;
    let mut attention = Vec::new();
    for row in tx.all::<AttentionRow>(ATTENTION, values![PUBLISHER]).await? {
        let (delivery, consumer, stored, event_id, state, reason, result) = row;
        let kind = kind(&stored)?;
        let reason = match (kind, state.as_str()) {
            (_, "parked") => reason,
            (Kind::Log, "ready" | "taken") => format!("still trying: {reason}"),
            _ if result.is_empty() => "retracted after it was tried".to_owned(),
            _ => format!("retracted after it became {result}"),
        };
        let became = Some(result).filter(|result| !result.is_empty());
        attention.push(Attention { delivery, consumer, kind, event_id, reason, became });
    }
    attention.extend(arrivals::attention(tx).await?);
    for (event_id, reason) in tx.all::<(String, String)>(UNDECODABLE, Vec::new()).await? {
        let reason = format!("undecodable: {reason}");
        let consumer = String::new();
        let kind = Kind::Log;
        attention.push(Attention { delivery: 0, consumer, kind, event_id, reason, became: None });
    }
    Ok(WatchStatus { chains, outbox, attention })
}
