//! Who is told of events, and what is done about all that one of them is owed.

use super::column::corrupt;
use super::outbox::lock_head;
use super::statement::{Tx, values};
use crate::core::time::Timestamp;
use crate::ports::store::{EventConsumers, KindFilter, StoreError, Subscription};
use async_trait::async_trait;
use sqlx::FromRow;

// The newest are forgotten first: should it end half-way, what is left of a subject has its first one.
statements! {
    CONSUMERS = "SELECT consumer, kind FROM event_consumers ORDER BY consumer, kind";
    ADD_CONSUMER = "INSERT INTO event_consumers (consumer, kind) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    FORGET_CONSUMER = "DELETE FROM event_consumers WHERE consumer = $1";
    FORGET_DELIVERIES = "DELETE FROM event_deliveries WHERE id IN \
        (SELECT id FROM event_deliveries WHERE consumer = $1 ORDER BY place DESC LIMIT $2)";
    DEAD_AFTER = "SELECT id FROM event_deliveries WHERE consumer = $1 AND state = 'dead' AND id > $2 \
        ORDER BY id LIMIT $3";
    REPLAY_DEAD = "UPDATE event_deliveries SET state = 'open', attempts = 0, due_at = 0, \
        updated_at = $4 WHERE consumer = $1 AND state = 'dead' AND id >= $2 AND id <= $3";
}

#[derive(FromRow)]
struct ConsumerColumns {
    consumer: String,
    kind: String,
}

#[derive(FromRow)]
struct Id {
    id: i64,
}

/// All of them, with what each is told.
pub(super) async fn all(tx: &mut Tx) -> Result<Vec<Subscription>, StoreError> {
    let mut all: Vec<Subscription> = Vec::new();
    for row in tx.all::<ConsumerColumns>(CONSUMERS, values![]).await? {
        let kind = KindFilter::parse(&row.kind).ok_or_else(|| corrupt("a kind of events"))?;
        match all.last_mut().filter(|last| last.consumer == row.consumer) {
            Some(last) => last.kinds.push(kind),
            None => all.push(Subscription { consumer: row.consumer, kinds: vec![kind] }),
        }
    }
    Ok(all)
}

async fn set(tx: &mut Tx, subscription: &Subscription) -> Result<(), StoreError> {
    let consumer = subscription.consumer.as_str();
    // Whoever gives places meanwhile must see all of it, or nothing.
    lock_head(tx).await?;
    tx.execute(FORGET_CONSUMER, values![consumer]).await?;
    for kind in &subscription.kinds {
        tx.execute(ADD_CONSUMER, values![consumer, kind.text()]).await?;
    }
    Ok(())
}

async fn forget(tx: &mut Tx, consumer: &str) -> Result<bool, StoreError> {
    lock_head(tx).await?;
    Ok(tx.execute(FORGET_CONSUMER, values![consumer]).await? > 0)
}

async fn replay_dead(
    tx: &mut Tx,
    consumer: &str,
    after: i64,
    most: i64,
    now: Timestamp,
) -> Result<Option<(i64, u64)>, StoreError> {
    // Nobody may put anything behind these meanwhile that does not hold them.
    lock_head(tx).await?;
    let dead = tx.all::<Id>(DEAD_AFTER, values![consumer, after, most]).await?;
    let (Some(first), Some(last)) = (dead.first(), dead.last()) else { return Ok(None) };
    let values = values![consumer, first.id, last.id, now.millis()];
    let count = tx.execute(REPLAY_DEAD, values).await?;
    Ok(Some((last.id, count)))
}

// Whatever an operation meets forbids the commit: `kept`.
#[async_trait]
impl EventConsumers for Tx {
    async fn set_consumer(&mut self, subscription: &Subscription) -> Result<(), StoreError> {
        let answer = set(self, subscription).await;
        self.kept(answer)
    }

    async fn consumers(&mut self) -> Result<Vec<Subscription>, StoreError> {
        let answer = all(self).await;
        self.kept(answer)
    }

    async fn forget_consumer(&mut self, consumer: &str) -> Result<bool, StoreError> {
        let answer = forget(self, consumer).await;
        self.kept(answer)
    }

    async fn forget_deliveries(&mut self, consumer: &str, most: i64) -> Result<u64, StoreError> {
        let answer = self.execute(FORGET_DELIVERIES, values![consumer, most]).await;
        self.kept(answer)
    }

    async fn replay_dead(
        &mut self,
        consumer: &str,
        after: i64,
        most: i64,
        now: Timestamp,
    ) -> Result<Option<(i64, u64)>, StoreError> {
        let answer = replay_dead(self, consumer, after, most, now).await;
        self.kept(answer)
    }
}
