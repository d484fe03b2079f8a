//! Events on their way to others: their places, and what is owed to whom.

use super::column::corrupt;
use super::consumers;
use super::statement::{Tx, values};
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use crate::ports::store::{
    Backlog, Delivery, DeliveryRow, KindFilter, NewEvent, Outbox, PlacedEvent, StoreError, Told,
};
use async_trait::async_trait;
use sqlx::FromRow;

// Places are given in one statement, to all that can be seen when it runs: what was committed since the look
// at the lowest number is placed too, and what is owed is read from the places that were given.
//
// What waits behind an older delivery of its subject is `behind`, so that whoever claims what is due does not
// meet it: a receiver that is away would otherwise have every claim pass over all that waits for it. Where
// something of a subject is behind, something of it is open. A row is put behind only by a unit that holds an
// older one of its subject, and each that ends one opens the next; so on PostgreSQL, too, where the two may run
// at once, none stays behind for ever. A replay may leave a row open that has an older one: DUE_DELIVERY passes
// over those.
statements! {
    LOCK_EVENT_HEAD = locked!("SELECT place FROM event_head WHERE only_row = 1");
    EVENT_HEAD = "SELECT place FROM event_head WHERE only_row = 1";
    UNPLACED = "SELECT seq FROM events WHERE place IS NULL ORDER BY seq LIMIT $1";
    PLACE_EVENTS = "UPDATE events SET place = seq + $1 WHERE place IS NULL AND seq >= $2 AND seq <= $3";
    MOVE_EVENT_HEAD = "UPDATE event_head SET place = $1 WHERE only_row = 1";
    OWE = "INSERT INTO event_deliveries \
        (consumer, place, subject, state, attempts, due_at, reason, created_at, updated_at) \
        SELECT $1, place, subject, 'open', 0, 0, '', $5, $5 FROM events \
        WHERE place > $2 AND place <= $3 AND kind = $4 ORDER BY place \
        ON CONFLICT DO NOTHING";
    OWE_BELOW = "INSERT INTO event_deliveries \
        (consumer, place, subject, state, attempts, due_at, reason, created_at, updated_at) \
        SELECT $1, place, subject, 'open', 0, 0, '', $5, $5 FROM events \
        WHERE place > $2 AND place <= $3 AND substr(kind, 1, length($4)) = $4 ORDER BY place \
        ON CONFLICT DO NOTHING";
    EVENTS_AFTER = "SELECT e.place, e.id, e.kind, e.subject, e.data, e.created_at, \
        COALESCE(t.iss, '') AS iss, COALESCE(t.sub, '') AS sub, \
        COALESCE((SELECT MIN(k.key) FROM idempotency_keys k WHERE k.request_id = e.subject), '') AS key \
        FROM events e LEFT JOIN transactions t ON t.id = e.subject \
        WHERE e.place > $1 ORDER BY e.place LIMIT $2";
    EVENT_AT = "SELECT e.place, e.id, e.kind, e.subject, e.data, e.created_at, \
        COALESCE(t.iss, '') AS iss, COALESCE(t.sub, '') AS sub, \
        COALESCE((SELECT MIN(k.key) FROM idempotency_keys k WHERE k.request_id = e.subject), '') AS key \
        FROM events e LEFT JOIN transactions t ON t.id = e.subject WHERE e.place = $1";
    LOCK_OWED = locked!("SELECT d.id FROM event_deliveries d WHERE d.consumer = $1 AND d.state <> 'dead' \
        AND d.subject IN (SELECT subject FROM events WHERE place > $2 AND place <= $3) ORDER BY +d.place");
    PUT_BEHIND = "UPDATE event_deliveries AS d SET state = 'behind' \
        WHERE d.consumer = $1 AND d.place > $2 AND d.place <= $3 AND d.state = 'open' AND EXISTS \
        (SELECT 1 FROM event_deliveries o WHERE o.consumer = d.consumer AND o.subject = d.subject \
        AND o.place < d.place AND o.state <> 'dead')";
    DUE_DELIVERY = "SELECT d.id, d.place, d.attempts, d.due_at, d.created_at FROM event_deliveries d \
        WHERE d.consumer = $1 AND d.state = 'open' AND d.due_at >= $2 AND d.due_at <= $3 AND NOT EXISTS \
        (SELECT 1 FROM event_deliveries o WHERE o.consumer = d.consumer AND o.subject = d.subject \
        AND o.place < d.place AND o.state = 'open') ORDER BY d.due_at, d.id LIMIT 1";
    CLAIM_DELIVERY = "UPDATE event_deliveries SET attempts = attempts + 1, due_at = $4, \
        reason = '', updated_at = $5 \
        WHERE id = $1 AND state = 'open' AND attempts = $2 AND due_at = $3";
    DELIVERY_DONE = "DELETE FROM event_deliveries WHERE id = $1 AND state = 'open' AND attempts = $2";
    DELIVERY_LATER = "UPDATE event_deliveries SET due_at = $3, reason = $4, updated_at = $5 \
        WHERE id = $1 AND state = 'open' AND attempts = $2";
    DELIVERY_DEAD = "UPDATE event_deliveries SET state = 'dead', reason = $3, updated_at = $4 \
        WHERE id = $1 AND state = 'open' AND attempts = $2";
    SUBJECT_BEHIND = "UPDATE event_deliveries SET state = 'behind' WHERE consumer = $1 AND subject = $2 \
        AND place > $3 AND state = 'open' AND NOT (attempts > 0 AND reason = '' AND due_at > $4)";
    SUBJECT_NEXT = "UPDATE event_deliveries SET state = 'open' \
        WHERE consumer = $1 AND subject = $2 AND state = 'behind' AND place = (SELECT MIN(place) \
        FROM event_deliveries WHERE consumer = $1 AND subject = $2 AND state = 'behind')";
    HAS_UNPLACED = "SELECT seq FROM events WHERE place IS NULL ORDER BY seq LIMIT 1";
    OLDEST_PLACE = "SELECT place FROM events WHERE place IS NOT NULL ORDER BY place LIMIT 1";
    NEXT_DUE = "SELECT due_at FROM event_deliveries WHERE consumer = $1 AND state = 'open' \
        ORDER BY due_at LIMIT 1";
    FORGET_DELIVERY_CLAIMS = "UPDATE event_deliveries SET attempts = attempts - 1, due_at = $1, \
        updated_at = $1 \
        WHERE state = 'open' AND attempts > 0 AND reason = '' AND due_at > $1";
    DELIVERY = "SELECT d.id, d.consumer, d.place, e.id AS event_id, e.kind, d.subject, d.state, \
        d.attempts, d.due_at, d.reason, d.created_at FROM event_deliveries d \
        JOIN events e ON e.place = d.place WHERE d.id = $1";
    DELIVERIES = "SELECT d.id, d.consumer, d.place, e.id AS event_id, e.kind, d.subject, d.state, \
        d.attempts, d.due_at, d.reason, d.created_at FROM event_deliveries d \
        JOIN events e ON e.place = d.place WHERE d.id > $1 AND ($2 = '' OR d.consumer = $2) \
        AND ($3 = '' OR (d.state = 'dead') = ($3 = 'dead')) ORDER BY d.id LIMIT $4";
    REPLAY_DELIVERY = "UPDATE event_deliveries SET state = 'open', attempts = 0, due_at = 0, \
        updated_at = $2 WHERE id = $1 AND (state = 'dead' \
        OR (state = 'open' AND ((attempts > 0 AND reason <> '') OR due_at > $3)))";
    NEXT_OWED = "SELECT consumer FROM event_deliveries WHERE consumer > $1 ORDER BY consumer LIMIT 1";
    COUNT_OWED = "SELECT COUNT(*) AS n FROM \
        (SELECT id FROM event_deliveries WHERE consumer = $1 AND state = $2 LIMIT $3) AS counted";
    OLDEST_OWED = "SELECT created_at AS since FROM event_deliveries WHERE consumer = $1 AND state = $2 \
        ORDER BY id LIMIT 1";
}

/// What has been due for so long goes before what is new each other time, in milliseconds.
const OVERDUE_MS: i64 = 60_000;
/// No claim is as long, in milliseconds: what is due later than that is in nobody's hand.
const CLAIM_MS_MAX: i64 = 300_000;
/// No pause is as long, in milliseconds. What is due later was put off by a clock that was wrong, and is due.
const PAUSE_MS_MAX: i64 = 172_800_000;
/// How far deliveries are counted.
const COUNT_MAX: i64 = 100_000;

#[derive(FromRow)]
struct Place {
    place: i64,
}

#[derive(FromRow)]
struct Id {
    #[expect(dead_code, reason = "the rows are locked, and not looked at")]
    id: i64,
}

#[derive(FromRow)]
struct Seq {
    seq: i64,
}

#[derive(FromRow)]
struct PlacedColumns {
    place: i64,
    id: String,
    kind: String,
    subject: String,
    data: String,
    created_at: i64,
    iss: String,
    sub: String,
    key: String,
}

impl PlacedColumns {
    fn event(self) -> PlacedEvent {
        let owner = Principal { iss: self.iss, sub: self.sub };
        PlacedEvent {
            place: self.place,
            event: NewEvent {
                id: self.id,
                kind: self.kind,
                subject: self.subject,
                data_json: self.data,
                at: Timestamp::from_millis(self.created_at),
            },
            owner: Some(owner).filter(|owner| !owner.sub.is_empty()),
            idempotency_key: Some(self.key).filter(|key| !key.is_empty()),
        }
    }
}

#[derive(FromRow)]
struct DueAt {
    due_at: i64,
}

#[derive(FromRow)]
struct DueColumns {
    id: i64,
    place: i64,
    attempts: i64,
    due_at: i64,
    created_at: i64,
}

#[derive(FromRow)]
struct DeliveryColumns {
    id: i64,
    consumer: String,
    place: i64,
    event_id: String,
    kind: String,
    subject: String,
    state: String,
    attempts: i64,
    due_at: i64,
    reason: String,
    created_at: i64,
}

impl DeliveryColumns {
    fn row(self) -> DeliveryRow {
        DeliveryRow {
            id: self.id,
            consumer: self.consumer,
            place: self.place,
            event_id: self.event_id,
            kind: self.kind,
            subject: self.subject,
            is_dead: self.state == state(true),
            attempts: self.attempts,
            // What was not tried is due since it is owed.
            due_at: Timestamp::from_millis(self.due_at.max(self.created_at)),
            reason: self.reason,
            since: Timestamp::from_millis(self.created_at),
        }
    }
}

#[derive(FromRow)]
struct Consumer {
    consumer: String,
}

#[derive(FromRow)]
struct Count {
    n: i64,
}

#[derive(FromRow)]
struct Since {
    since: i64,
}

const fn state(is_dead: bool) -> &'static str {
    if is_dead { "dead" } else { "open" }
}

/// Excludes whoever gives places.
pub(super) async fn lock_head(tx: &mut Tx) -> Result<i64, StoreError> {
    head(tx, LOCK_EVENT_HEAD).await
}

async fn head(tx: &mut Tx, statement: crate::store::Named) -> Result<i64, StoreError> {
    let row = tx.one::<Place>(statement, values![]).await?;
    row.map(|row| row.place).ok_or_else(|| corrupt("the head of the events"))
}

async fn place(tx: &mut Tx, most: i64, now: Timestamp) -> Result<u64, StoreError> {
    let before = lock_head(tx).await?;
    let waiting = tx.all::<Seq>(UNPLACED, values![most]).await?;
    let (Some(first), Some(last)) = (waiting.first(), waiting.last()) else { return Ok(0) };
    let delta = before.saturating_add(1).saturating_sub(first.seq);
    let after = last.seq.saturating_add(delta);
    let placed = tx.execute(PLACE_EVENTS, values![delta, first.seq, last.seq]).await?;
    for subscription in consumers::all(tx).await? {
        let consumer = subscription.consumer.as_str();
        // What is older of the same subjects stays owed until this unit has ended: who ends one of them then
        // sees what was put behind it.
        tx.all::<Id>(LOCK_OWED, values![consumer, before, after]).await?;
        for kind in &subscription.kinds {
            owe(tx, consumer, kind, (before, after), now).await?;
        }
        tx.execute(PUT_BEHIND, values![consumer, before, after]).await?;
    }
    tx.execute(MOVE_EVENT_HEAD, values![after]).await?;
    Ok(placed)
}

async fn owe(
    tx: &mut Tx,
    consumer: &str,
    kind: &KindFilter,
    (above, up_to): (i64, i64),
    now: Timestamp,
) -> Result<(), StoreError> {
    let now = now.millis();
    match kind {
        KindFilter::Is(kind) => {
            tx.execute(OWE, values![consumer, above, up_to, kind.as_str(), now]).await?;
        }
        KindFilter::Begins(begin) => {
            tx.execute(OWE_BELOW, values![consumer, above, up_to, begin.as_str(), now]).await?;
        }
    }
    Ok(())
}

/// What is due. What was not tried has no time, and sorts first; so each other time, by the clock's last digit, what
/// has been due for long goes before it. Neither much that is new keeps what failed waiting, nor much that fails
/// what is new.
async fn due(
    tx: &mut Tx,
    consumer: &str,
    now: Timestamp,
) -> Result<Option<DueColumns>, StoreError> {
    let now = now.millis();
    let overdue = if now & 1 == 0 { now.saturating_sub(OVERDUE_MS) } else { 0 };
    let windows = [(1, overdue), (0, now), (now.saturating_add(PAUSE_MS_MAX), i64::MAX)];
    for (from, to) in windows {
        let due = tx.one::<DueColumns>(DUE_DELIVERY, values![consumer, from, to]).await?;
        if due.is_some() {
            return Ok(due);
        }
    }
    Ok(None)
}

async fn claim(
    tx: &mut Tx,
    consumer: &str,
    now: Timestamp,
    until: Timestamp,
) -> Result<Option<Delivery>, StoreError> {
    let Some(due) = due(tx, consumer, now).await? else { return Ok(None) };
    let values = values![due.id, due.attempts, due.due_at, until.millis(), now.millis()];
    if tx.execute(CLAIM_DELIVERY, values).await? != 1 {
        return Ok(None);
    }
    let event = tx.one::<PlacedColumns>(EVENT_AT, values![due.place]).await?;
    let event = event.ok_or_else(|| corrupt("a delivery without its event"))?;
    Ok(Some(Delivery {
        id: due.id,
        attempt: due.attempts.saturating_add(1),
        placed: event.event(),
        since: Timestamp::from_millis(due.created_at),
    }))
}

async fn finish(
    tx: &mut Tx,
    consumer: &str,
    delivery: &Delivery,
    told: &Told,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let (id, attempt) = (delivery.id, delivery.attempt);
    let (subject, place) = (delivery.placed.event.subject.as_str(), delivery.placed.place);
    match told {
        Told::Done => {
            if tx.execute(DELIVERY_DONE, values![id, attempt]).await? != 1 {
                return Ok(false);
            }
            tx.execute(SUBJECT_NEXT, values![consumer, subject]).await?;
            Ok(true)
        }
        Told::Retry { due, reason } => {
            let values = values![id, attempt, due.millis(), reason.as_str(), now.millis()];
            if tx.execute(DELIVERY_LATER, values).await? != 1 {
                return Ok(false);
            }
            // After a replay some may be open that are not first: they would be passed over by each claim.
            tx.execute(SUBJECT_BEHIND, values![consumer, subject, place, now.millis()]).await?;
            Ok(true)
        }
        Told::Dead { reason } => {
            let values = values![id, attempt, reason.as_str(), now.millis()];
            if tx.execute(DELIVERY_DEAD, values).await? != 1 {
                return Ok(false);
            }
            tx.execute(SUBJECT_NEXT, values![consumer, subject]).await?;
            Ok(true)
        }
    }
}

async fn replay(tx: &mut Tx, id: i64, now: Timestamp) -> Result<bool, StoreError> {
    // Nobody may put anything behind it meanwhile that does not hold it.
    lock_head(tx).await?;
    let in_hand = now.plus_millis(CLAIM_MS_MAX).millis();
    Ok(tx.execute(REPLAY_DELIVERY, values![id, now.millis(), in_hand]).await? == 1)
}

async fn deliveries(
    tx: &mut Tx,
    consumer: Option<&str>,
    is_dead: Option<bool>,
    after: i64,
    most: i64,
) -> Result<Vec<DeliveryRow>, StoreError> {
    let values = values![after, consumer.unwrap_or_default(), is_dead.map_or("", state), most];
    let rows = tx.all::<DeliveryColumns>(DELIVERIES, values).await?;
    Ok(rows.into_iter().map(DeliveryColumns::row).collect())
}

async fn backlogs(tx: &mut Tx) -> Result<Vec<Backlog>, StoreError> {
    let (mut all, mut last) = (Vec::new(), String::new());
    while let Some(next) = tx.one::<Consumer>(NEXT_OWED, values![last.as_str()]).await? {
        for (is_dead, states) in [(true, &["dead"][..]), (false, &["open", "behind"])] {
            let (mut count, mut since) = (0_i64, i64::MAX);
            for state in states {
                let name = next.consumer.as_str();
                let counted = tx.one::<Count>(COUNT_OWED, values![name, *state, COUNT_MAX]).await?;
                count = count.saturating_add(counted.map_or(0, |it| it.n)).min(COUNT_MAX);
                let oldest = tx.one::<Since>(OLDEST_OWED, values![name, *state]).await?;
                since = since.min(oldest.map_or(i64::MAX, |it| it.since));
            }
            if count > 0 {
                let (consumer, since) = (next.consumer.clone(), Timestamp::from_millis(since));
                all.push(Backlog { consumer, is_dead, count, since });
            }
        }
        last = next.consumer;
    }
    Ok(all)
}

// Whatever an operation meets forbids the commit: `kept`.
#[async_trait]
impl Outbox for Tx {
    async fn place_events(&mut self, most: i64, now: Timestamp) -> Result<u64, StoreError> {
        let answer = place(self, most, now).await;
        self.kept(answer)
    }

    async fn has_unplaced(&mut self) -> Result<bool, StoreError> {
        let row = self.one::<Seq>(HAS_UNPLACED, values![]).await;
        self.kept(row).map(|row| row.is_some())
    }

    async fn oldest_place(&mut self) -> Result<Option<i64>, StoreError> {
        let row = self.one::<Place>(OLDEST_PLACE, values![]).await;
        self.kept(row).map(|row| row.map(|row| row.place))
    }

    async fn newest_place(&mut self) -> Result<i64, StoreError> {
        let answer = head(self, EVENT_HEAD).await;
        self.kept(answer)
    }

    async fn events_after(
        &mut self,
        place: i64,
        most: i64,
    ) -> Result<Vec<PlacedEvent>, StoreError> {
        let rows = self.all::<PlacedColumns>(EVENTS_AFTER, values![place, most]).await;
        self.kept(rows).map(|rows| rows.into_iter().map(PlacedColumns::event).collect())
    }

    async fn claim_delivery(
        &mut self,
        consumer: &str,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Option<Delivery>, StoreError> {
        let answer = claim(self, consumer, now, until).await;
        self.kept(answer)
    }

    async fn finish_delivery(
        &mut self,
        consumer: &str,
        delivery: &Delivery,
        told: &Told,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let answer = finish(self, consumer, delivery, told, now).await;
        self.kept(answer)
    }

    async fn next_due(&mut self, consumer: &str) -> Result<Option<Timestamp>, StoreError> {
        let row = self.one::<DueAt>(NEXT_DUE, values![consumer]).await;
        self.kept(row).map(|row| row.map(|row| Timestamp::from_millis(row.due_at)))
    }

    async fn forget_delivery_claims(&mut self, now: Timestamp) -> Result<u64, StoreError> {
        let rows = self.execute(FORGET_DELIVERY_CLAIMS, values![now.millis()]).await;
        self.kept(rows)
    }

    async fn delivery(&mut self, id: i64) -> Result<Option<DeliveryRow>, StoreError> {
        let row = self.one::<DeliveryColumns>(DELIVERY, values![id]).await;
        self.kept(row).map(|row| row.map(DeliveryColumns::row))
    }

    async fn deliveries(
        &mut self,
        consumer: Option<&str>,
        is_dead: Option<bool>,
        after: i64,
        most: i64,
    ) -> Result<Vec<DeliveryRow>, StoreError> {
        let answer = deliveries(self, consumer, is_dead, after, most).await;
        self.kept(answer)
    }

    async fn replay_delivery(&mut self, id: i64, now: Timestamp) -> Result<bool, StoreError> {
        let answer = replay(self, id, now).await;
        self.kept(answer)
    }

    async fn backlogs(&mut self) -> Result<Vec<Backlog>, StoreError> {
        let answer = backlogs(self).await;
        self.kept(answer)
    }
}
