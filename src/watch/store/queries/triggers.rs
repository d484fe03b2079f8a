//! Triggers: their buckets, and the events they are at.

use super::super::Store;
use super::statement::{Tx, values};
use super::{look, unit};
use crate::core::time::Timestamp;
use crate::core::trigger::{Rate, Turn};
use crate::ports::watch_store::{TriggerBook, WatchStoreError};
use async_trait::async_trait;

statements! {
    ADMITTED = "SELECT admitted FROM trigger_turn WHERE consumer = $1 AND event_id = $2";
    ADMIT = "INSERT INTO trigger_turn (consumer, event_id, admitted, refused_at) \
             VALUES ($1, $2, 1, 0) ON CONFLICT (consumer, event_id) DO UPDATE SET admitted = 1";
    FULL_AT = "SELECT full_at FROM trigger_rate WHERE consumer = $1";
    NEW_BUCKET = "INSERT INTO trigger_rate (consumer, full_at) VALUES ($1, $2) \
                  ON CONFLICT (consumer) DO NOTHING";
    // Compare and swap: of two that take the same token, one gets it.
    TAKE_TOKEN = "UPDATE trigger_rate SET full_at = $3 WHERE consumer = $1 AND full_at = $2";
    // A time that is still to come was told by a clock that was ahead: patience would never end.
    REFUSE_TURN = "INSERT INTO trigger_turn (consumer, event_id, admitted, refused_at) \
              VALUES ($1, $2, 0, $3) ON CONFLICT (consumer, event_id) DO UPDATE \
              SET refused_at = excluded.refused_at WHERE trigger_turn.refused_at = 0 \
              OR trigger_turn.refused_at > excluded.refused_at";
    REFUSED_AT = "SELECT refused_at FROM trigger_turn WHERE consumer = $1 AND event_id = $2";
    // Of those who had a delivery of it.
    CANCEL_TURNS = "DELETE FROM trigger_turn WHERE event_id = $2 AND consumer IN \
                    (SELECT o.consumer FROM outbox o WHERE o.source = $1 AND o.event_id = $2 \
                    AND o.kind = 'log')";
    FORGET_TURN = "DELETE FROM trigger_turn WHERE consumer = $1 AND event_id = $2";
    STANDS = "SELECT COUNT(*) FROM event WHERE source = $1 AND event_id = $2 AND state = 'standing'";
}

async fn admit(
    tx: &mut Tx,
    consumer: &str,
    event_id: &str,
    rate: Rate,
    now: Timestamp,
) -> Result<Option<i64>, WatchStoreError> {
    let turn = tx.one::<(i64,)>(ADMITTED, values![consumer, event_id]).await?;
    if turn == Some((1,)) {
        return Ok(None);
    }
    let full = tx.one::<(i64,)>(FULL_AT, values![consumer]).await?;
    let next = match rate.take(full.map_or(0, |(full,)| full), now) {
        Turn::In(wait) => return Ok(Some(wait)),
        Turn::Now(next) => next,
    };
    let touched = match full {
        Some((full,)) => tx.execute(TAKE_TOKEN, values![consumer, full, next]).await?,
        None => tx.execute(NEW_BUCKET, values![consumer, next]).await?,
    };
    if touched != 1 {
        // Another process has it.
        return Err(WatchStoreError::Contended);
    }
    tx.execute(ADMIT, values![consumer, event_id]).await?;
    Ok(None)
}

async fn refused_since(
    tx: &mut Tx,
    consumer: &str,
    event_id: &str,
    now: Timestamp,
) -> Result<Timestamp, WatchStoreError> {
    tx.execute(REFUSE_TURN, values![consumer, event_id, now.millis().max(1)]).await?;
    let since = tx.one::<(i64,)>(REFUSED_AT, values![consumer, event_id]).await?;
    Ok(since.map_or(now, |(since,)| Timestamp::from_millis(since)))
}

/// An event was retracted: whoever was at it is not any more.
pub(super) async fn cancel_turns(
    tx: &mut Tx,
    source: &str,
    event_id: &str,
) -> Result<(), WatchStoreError> {
    tx.execute(CANCEL_TURNS, values![source, event_id]).await.map(|_| ())
}

async fn forget_turn(tx: &mut Tx, consumer: &str, event_id: &str) -> Result<(), WatchStoreError> {
    tx.execute(FORGET_TURN, values![consumer, event_id]).await.map(|_| ())
}

async fn stands(tx: &mut Tx, source: &str, event_id: &str) -> Result<bool, WatchStoreError> {
    let count = tx.one::<(i64,)>(STANDS, values![source, event_id]).await?;
    Ok(count.is_some_and(|(count,)| count > 0))
}

#[async_trait]
impl TriggerBook for Store {
    async fn admit(
        &self,
        consumer: &str,
        event_id: &str,
        rate: Rate,
        now: Timestamp,
    ) -> Result<Option<i64>, WatchStoreError> {
        unit!(self, "admit", |tx| admit(tx, consumer, event_id, rate, now))
    }

    async fn refused_since(
        &self,
        consumer: &str,
        event_id: &str,
        now: Timestamp,
    ) -> Result<Timestamp, WatchStoreError> {
        unit!(self, "refused_since", |tx| refused_since(tx, consumer, event_id, now))
    }

    async fn forget_turn(&self, consumer: &str, event_id: &str) -> Result<(), WatchStoreError> {
        unit!(self, "forget_turn", |tx| forget_turn(tx, consumer, event_id))
    }

    async fn stands(&self, source: &str, event_id: &str) -> Result<bool, WatchStoreError> {
        look!(self, "stands", |tx| stands(tx, source, event_id))
    }
}
