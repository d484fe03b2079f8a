//! Deliveries: claimed, ended, counted.

use super::super::Store;
use super::statement::{Tx, contradiction, height, values};
use super::{arrivals, chains, lead, look, unit, upkeep};
use crate::core::time::Timestamp;
use crate::ports::bus::{Kind, Message, STANDS_AGAIN};
use crate::ports::watch_store::{
    Attention, Claimed, Claims, Ended, Lanes, WatchStatus, WatchStoreError,
};
use async_trait::async_trait;
use sqlx::FromRow;
use tokio::sync::watch;

statements! {
    HEADS = "SELECT id, state, attempts, due_at, updated_at, kind, event_id, body FROM outbox \
             WHERE consumer = $1 AND source = $2 AND state IN ('held', 'ready') AND aside = 0 \
             ORDER BY id LIMIT $3";
    HEAD = "SELECT state, due_at, updated_at FROM outbox WHERE consumer = $1 AND source = $2 \
            AND state IN ('held', 'ready') AND aside = 0 ORDER BY id LIMIT 1";
    ASIDES = "SELECT id, state, attempts, due_at, updated_at, kind, event_id, body FROM outbox \
              WHERE consumer = $1 AND source = $2 AND state = 'ready' AND aside = 1 \
              ORDER BY due_at LIMIT $3";
    ASIDE = "SELECT state, due_at, updated_at FROM outbox \
             WHERE consumer = $1 AND source = $2 AND state = 'ready' AND aside = 1 \
             ORDER BY due_at LIMIT 1";
    // Compare and swap: of two that claim the same rows, one gets them. The condition on time is `is_due`.
    CLAIM = "UPDATE outbox SET attempts = attempts + 1, due_at = $6, claimed_by = $7, updated_at = $5 \
             WHERE consumer = $1 AND source = $2 AND id >= $3 AND id <= $4 AND state = 'ready' \
             AND aside = $8 AND (due_at <= $5 OR updated_at > $5)";
    FREE = "UPDATE outbox SET due_at = $3, updated_at = $3, claimed_by = 0 \
            WHERE consumer = $1 AND source = $2 AND state = 'ready' AND claimed_by <> 0";
    DONE = "UPDATE outbox SET state = 'done', result = $3, reason = '', claimed_by = 0, \
            updated_at = $4 WHERE id = $1 AND attempts = $2 AND state IN ('ready', 'taken')";
    // Of a retraction that told nobody: should its event go away again, there is another.
    DROP_RETRACTION = "UPDATE outbox SET state = 'cancelled', reason = $3, claimed_by = 0, \
                       updated_at = $4 WHERE id = $1 AND attempts = $2 AND kind = 'retraction' \
                       AND state IN ('ready', 'taken')";
    DONE_THOUGH_CANCELLED = "UPDATE outbox SET result = $3, updated_at = $4 \
                             WHERE id = $1 AND attempts = $2 AND state = 'cancelled'";
    RETRY = "UPDATE outbox SET due_at = $3, reason = $4, claimed_by = 0, updated_at = $5 \
             WHERE id = $1 AND attempts = $2 AND state IN ('ready', 'taken')";
    // What came over a broker is the outbox's from then on.
    STEP_ASIDE = "UPDATE outbox SET state = 'ready', aside = 1, due_at = $3, reason = $4, \
                  claimed_by = 0, updated_at = $5 \
                  WHERE id = $1 AND attempts = $2 AND state IN ('ready', 'taken')";
    PARK = "UPDATE outbox SET state = 'parked', reason = $3, claimed_by = 0, acknowledged_at = 0, \
            updated_at = $4 WHERE id = $1 AND attempts = $2 AND state IN ('ready', 'taken')";
    NOT_TRIED = "UPDATE outbox SET attempts = attempts - 1, due_at = $3, claimed_by = 0, \
                 updated_at = $3 WHERE id = $1 AND attempts = $2 AND state = 'ready'";
    UNPARK = "UPDATE outbox SET state = 'ready', due_at = $2, updated_at = $2 \
              WHERE state = 'parked' AND ($1 = 0 OR id = $1) RETURNING source";
    // A retraction shows what became of the log that it takes back. That it was published, to whom it
    // may concern, needs no look. The condition is that of an index, word for word.
    ATTENTION = "SELECT o.id, o.consumer, o.kind, o.event_id, o.state, \
                 CASE WHEN o.kind = 'retraction' AND o.state = 'done' THEN o.result ELSE o.reason END, \
                 COALESCE((SELECT MAX(l.result) FROM outbox l WHERE l.source = o.source \
                 AND l.event_id = o.event_id AND l.consumer = o.consumer AND l.kind = 'log'), '') \
                 FROM outbox o WHERE o.acknowledged_at = 0 \
                 AND (o.state = 'parked' OR (o.state = 'cancelled' AND o.result <> '') \
                 OR (o.kind = 'retraction' AND o.consumer <> 'publisher') \
                 OR (o.state = 'ready' AND SUBSTR(o.reason, 1, 14) = 'above its rate') \
                 OR (o.state IN ('ready', 'taken') AND o.attempts > 2)) ORDER BY o.id DESC LIMIT 50";
    COUNT_ATTENTION = "SELECT COUNT(*) FROM (SELECT 1 FROM outbox WHERE acknowledged_at = 0 \
                       AND (state = 'parked' OR (state = 'cancelled' AND result <> '') \
                       OR (kind = 'retraction' AND consumer <> 'publisher') \
                       OR (state = 'ready' AND SUBSTR(reason, 1, 14) = 'above its rate') \
                       OR (state IN ('ready', 'taken') AND attempts > 2)) LIMIT 100000) AS counted";
    UNDECODABLE = "SELECT event_id, reason FROM event WHERE state = 'undecodable' \
                   AND acknowledged_at = 0 ORDER BY id DESC LIMIT 50";
    COUNT_UNDECODABLE = "SELECT COUNT(*) FROM (SELECT 1 FROM event WHERE state = 'undecodable' \
                         AND acknowledged_at = 0 LIMIT 100000) AS counted";
    COUNT_UNREADABLE = "SELECT COUNT(*) FROM unreadable WHERE acknowledged_at = 0";
}

/// How far deliveries of one consumer and state are counted for `status`.
const COUNTED_MAX: u64 = 1_000_000;
/// Who claims without a term: nobody's token is this.
const NO_TERM: i64 = -1;

/// A lane, and when.
#[derive(Clone, Copy)]
struct Head<'a> {
    consumer: &'a str,
    source: &'a str,
    now: Timestamp,
    /// Of those that stepped aside, which are in no order, or of the others.
    aside: bool,
}

#[derive(FromRow)]
struct HeadRow {
    id: i64,
    state: String,
    attempts: i64,
    due_at: i64,
    updated_at: i64,
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

/// Whether what is ready may go. What was written later than now has its time from a clock that was ahead,
/// and must not wait until the clock is there again.
const fn is_due(due_at: i64, updated_at: i64, now: i64) -> bool {
    due_at <= now || updated_at > now
}

/// When the first open delivery is due; `None` if there is none, or it is held.
async fn due(tx: &mut Tx, head: Head<'_>) -> Result<Option<Timestamp>, WatchStoreError> {
    let first = if head.aside { ASIDE } else { HEAD };
    let row = tx.one::<(String, i64, i64)>(first, values![head.consumer, head.source]).await?;
    let ready = row.filter(|(state, ..)| state == "ready");
    let now = head.now.millis();
    let due = |(_, due, updated)| if is_due(due, updated, now) { now } else { due };
    Ok(ready.map(|row| Timestamp::from_millis(due(row))))
}

async fn claim(
    tx: &mut Tx,
    head: Head<'_>,
    until: Timestamp,
    limit: u32,
    token: i64,
) -> Result<Claims, WatchStoreError> {
    let (consumer, source, now) = (head.consumer, head.source, head.now.millis());
    let heads = values![consumer, source, i64::from(limit)];
    let heads_of = if head.aside { ASIDES } else { HEADS };
    let mut rows = tx.all::<HeadRow>(heads_of, heads).await?;
    let due = |row: &HeadRow| row.state == "ready" && is_due(row.due_at, row.updated_at, now);
    let count = rows.iter().take_while(|row| due(row)).count();
    rows.truncate(count);
    // What keeps its order is a range of ids.
    let ranges = rows.chunks(if head.aside { 1 } else { count.max(1) });
    for range in ranges {
        let (Some(first), Some(last)) = (range.first(), range.last()) else { continue };
        let many = u64::try_from(range.len()).unwrap_or(u64::MAX);
        let (first, last, aside) = (first.id, last.id, i64::from(head.aside));
        let range = values![consumer, source, first, last, now, until.millis(), token, aside];
        // Others may have become ready between them since, by an operator's word.
        if tx.execute(CLAIM, range).await? != many {
            return Err(WatchStoreError::Contended);
        }
    }
    let claimed = |row: HeadRow| {
        Ok(Claimed {
            id: row.id,
            attempt: row.attempts.saturating_add(1),
            message: Message {
                kind: kind(&row.kind)?,
                source: source.to_owned(),
                event_id: row.event_id,
                body: row.body,
            },
        })
    };
    let claimed = rows.into_iter().map(claimed).collect::<Result<_, WatchStoreError>>()?;
    Ok(Claims { claimed, due: None })
}

async fn free(tx: &mut Tx, head: Head<'_>) -> Result<u64, WatchStoreError> {
    tx.execute(FREE, values![head.consumer, head.source, head.now.millis()]).await
}

async fn finish_some(
    tx: &mut Tx,
    ended: &[(Claimed, Option<Ended>)],
    now: Timestamp,
) -> Result<Vec<bool>, WatchStoreError> {
    let mut kept = Vec::with_capacity(ended.len());
    for (claimed, ended) in ended {
        kept.push(match ended {
            Some(ended) => finish(tx, claimed.id, claimed.attempt, ended, now).await?,
            None => {
                let row = values![claimed.id, claimed.attempt, now.millis()];
                tx.execute(NOT_TRIED, row).await? == 1
            }
        });
    }
    Ok(kept)
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
        Ended::Done(result) if result == STANDS_AGAIN => {
            tx.execute(DROP_RETRACTION, values![id, attempt, result, now]).await?
        }
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
        Ended::Aside { due, error } => {
            tx.execute(STEP_ASIDE, values![id, attempt, due.millis(), error, now]).await?
        }
        Ended::Parked(reason) => tx.execute(PARK, values![id, attempt, reason, now]).await?,
    };
    Ok(touched == 1)
}

pub(super) async fn unpark(tx: &mut Tx, id: i64, now: Timestamp) -> Result<u64, WatchStoreError> {
    let rows = tx.all::<(String,)>(UNPARK, values![id, now.millis()]).await?;
    rows.iter().for_each(|(source,)| tx.wake(source));
    Ok(u64::try_from(rows.len()).unwrap_or(u64::MAX))
}

type AttentionRow = (i64, String, String, String, String, String, String);

pub(super) async fn status(tx: &mut Tx) -> Result<WatchStatus, WatchStoreError> {
    let chains = chains::load_all(tx).await?;
    let outbox = upkeep::counts(tx, COUNTED_MAX, true).await?;
    let mut open = 0_i64;
    for statement in [COUNT_ATTENTION, COUNT_UNDECODABLE, COUNT_UNREADABLE] {
        let count = tx.one::<(i64,)>(statement, Vec::new()).await?.map_or(0, |(count,)| count);
        open = open.saturating_add(count);
    }
    let mut attention = Vec::new();
    for row in tx.all::<AttentionRow>(ATTENTION, Vec::new()).await? {
        let (delivery, consumer, stored, event_id, state, reason, result) = row;
        let kind = kind(&stored)?;
        let reason = match (kind, state.as_str()) {
            (_, "parked") => reason,
            (Kind::Log, "ready" | "taken") => format!("still trying: {reason}"),
            (Kind::Retraction, "ready" | "taken") if !reason.is_empty() => {
                format!("retracted, and the server is not told yet: {reason}")
            }
            (Kind::Retraction, "done" | "cancelled") if !reason.is_empty() => {
                format!("retracted: {reason}")
            }
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
    let shown = u64::try_from(attention.len()).unwrap_or(u64::MAX);
    Ok(WatchStatus {
        chains,
        outbox,
        attention,
        attention_more: height(open)?.saturating_sub(shown),
        unreadable_refused: upkeep::refused(tx).await?,
        progress: upkeep::progress(tx).await?,
        duties: lead::duties(tx).await?,
    })
}

#[async_trait]
impl Lanes for Store {
    fn bell(&self, source: &str) -> watch::Receiver<u64> {
        self.shared.bells.of(source)
    }

    async fn claim_some(
        &self,
        consumer: &str,
        source: &str,
        now: Timestamp,
        until: Timestamp,
        limit: u32,
    ) -> Result<Claims, WatchStoreError> {
        self.claim_of(Head { consumer, source, now, aside: false }, until, limit).await
    }

    async fn claim_aside(
        &self,
        consumer: &str,
        source: &str,
        now: Timestamp,
        until: Timestamp,
        limit: u32,
    ) -> Result<Claims, WatchStoreError> {
        self.claim_of(Head { consumer, source, now, aside: true }, until, limit).await
    }

    async fn finish_some(
        &self,
        ended: &[(Claimed, Option<Ended>)],
        now: Timestamp,
    ) -> Result<Vec<bool>, WatchStoreError> {
        unit!(self, "finish_some", |tx| finish_some(tx, ended, now))
    }

    async fn free_claims(
        &self,
        consumer: &str,
        source: &str,
        now: Timestamp,
    ) -> Result<u64, WatchStoreError> {
        let head = Head { consumer, source, now, aside: false };
        unit!(self, "free_claims", |tx| free(tx, head))
    }
}

impl Store {
    async fn claim_of(
        &self,
        head: Head<'_>,
        until: Timestamp,
        limit: u32,
    ) -> Result<Claims, WatchStoreError> {
        // The usual answer is "nothing", and reading it takes no lock.
        match self.due(head).await? {
            Some(due) if due <= head.now => {}
            due => return Ok(Claims { claimed: Vec::new(), due }),
        }
        let token = self.shared.fence.as_ref().map_or(NO_TERM, |fence| fence.token);
        unit!(self, "claim", |tx| claim(tx, head, until, limit, token))
    }

    async fn due(&self, head: Head<'_>) -> Result<Option<Timestamp>, WatchStoreError> {
        look!(self, "due", |tx| due(tx, head))
    }
}

#[cfg(test)]
mod tests {
    /// Indexes and statements have the name as a literal.
    #[test]
    fn the_publisher_has_the_name_that_the_statements_have() {
        assert_eq!(crate::ports::bus::PUBLISHER, "publisher");
    }
}
