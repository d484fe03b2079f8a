//! Tell others of events: give them places, and hand what is owed to the sinks.
//!
//! Events are committed with what caused them. Places are given afterwards, by one process at a time, and what
//! is owed to whom is written in the same unit; so nothing that was committed is ever untold, and a sink that is
//! away for long costs rows and nothing else. At least once, and in order for each subject.
//!
//! Who reads a stream is told from the same order: see [`feed`]. What operators do with what could not be told
//! is in [`operate`].

pub mod feed;
pub mod operate;

pub use feed::{Batch, OpenStream, Telling};

use crate::app::{App, AppError};
use crate::core::time::Timestamp;
use crate::ports::bus::{Notice, Outcome, Patience, Sink};
use crate::ports::store::{Delivery, End, PlacedEvent, Told, look, unit};
use serde_json::{Value, json};

/// How many events get their places in one unit.
const PLACED_AT_ONCE: i64 = 256;
/// How long a sink may take for one notice before another process may tell it, in milliseconds. Longer than
/// any sink's own timeouts.
const CLAIM_MS: i64 = 60_000;
/// The first pause of a sink that is tried for ever.
const PAUSE_MS: i64 = 500;
/// The longest reason that is kept.
const REASON_CHARS: usize = 500;
/// The version of the documents.
const SCHEMA: &str = "urn:claviger:schema";

/// Gives places to the events that have none, and wakes those who tell of them. What is owed to whom is by all
/// servers' consumers, not by this one's. The number of those that got one.
///
/// # Errors
/// When the store does not answer; nothing is lost then.
pub async fn place(app: &App) -> Result<u64, AppError> {
    // Mostly there are none, and whoever writes need not be disturbed to see it.
    let waits = look(&*app.store, "has_unplaced", |unit| {
        Box::pin(async move { unit.has_unplaced().await })
    });
    if !waits.await? {
        return Ok(0);
    }
    let now = app.clock.now();
    let placed = unit(&*app.store, "place_events", move |unit| {
        Box::pin(async move {
            let placed = unit.place_events(PLACED_AT_ONCE, now).await?;
            Ok(if placed == 0 { End::Rollback(0) } else { End::Commit(placed) })
        })
    })
    .await?;
    if placed > 0 {
        app.telling.placed();
    }
    Ok(placed)
}

/// Takes the next thing that a sink is owed, to be told at once by [`deliver`]. `None` if nothing is due.
///
/// # Errors
/// When the store does not answer.
pub async fn claim(app: &App, sink: &dyn Sink) -> Result<Option<Delivery>, AppError> {
    if !sink.ready() {
        return Ok(None);
    }
    let (name, now) = (sink.name().to_owned(), app.clock.now());
    let claimed = unit(&*app.store, "claim_delivery", move |unit| {
        let name = name.clone();
        Box::pin(async move {
            let until = now.plus_millis(CLAIM_MS);
            let claimed = unit.claim_delivery(&name, now, until).await?;
            Ok(if claimed.is_none() { End::Rollback(None) } else { End::Commit(claimed) })
        })
    })
    .await?;
    Ok(claimed)
}

/// Tells a sink what was taken for it, and writes down what became of it.
///
/// # Errors
/// When the store does not answer; it is told again once the claim has ended.
pub async fn deliver(app: &App, sink: &dyn Sink, delivery: Delivery) -> Result<(), AppError> {
    let outcome = sink.tell(&notice(&delivery.placed)).await;
    crate::failpoint!("tell.after_told");
    let now = app.clock.now();
    let told = told(outcome, &sink.patience(), delivery.attempt, now);
    note(sink.name(), &delivery, &told);
    let name = sink.name().to_owned();
    unit(&*app.store, "finish_delivery", move |unit| {
        let (name, delivery, told) = (name.clone(), delivery.clone(), told.clone());
        Box::pin(async move {
            Ok(End::Commit(unit.finish_delivery(&name, &delivery, &told, now).await?))
        })
    })
    .await?;
    Ok(())
}

/// Tells a sink the next thing that it is owed. `false` if nothing is due.
///
/// # Errors
/// When the store does not answer; it is told again then.
pub async fn step(app: &App, sink: &dyn Sink) -> Result<bool, AppError> {
    let Some(delivery) = claim(app, sink).await? else { return Ok(false) };
    deliver(app, sink, delivery).await?;
    Ok(true)
}

/// How long until something may be due for a sink, in milliseconds. `None` if it is owed nothing.
///
/// # Errors
/// When the store does not answer.
pub async fn due_in(app: &App, sink: &dyn Sink) -> Result<Option<i64>, AppError> {
    let name = sink.name().to_owned();
    let due = look(&*app.store, "next_due", move |unit| {
        let name = name.clone();
        Box::pin(async move { unit.next_due(&name).await })
    })
    .await?;
    Ok(due.map(|due| due.since(app.clock.now()).max(0)))
}

fn told(outcome: Outcome, patience: &Patience, attempt: i64, now: Timestamp) -> Told {
    let (after_ms, error) = match outcome {
        Outcome::Done(_) => return Told::Done,
        Outcome::Park(reason) => return Told::Dead { reason: short(&reason) },
        Outcome::Retry { after_ms, error } => (after_ms, error),
        Outcome::Aside(error) => (None, error),
    };
    let failures = usize::try_from(attempt.saturating_sub(1)).unwrap_or(usize::MAX);
    let pause = match patience {
        Patience::Endless { longest_ms } => {
            let doublings = u32::try_from(failures.min(32)).unwrap_or(32);
            Some(PAUSE_MS.saturating_mul(2_i64.saturating_pow(doublings)).min(*longest_ms))
        }
        Patience::Schedule(pauses) => pauses.get(failures).copied(),
    };
    match pause {
        Some(pause) => Told::Retry {
            due: now.plus_millis(pause.max(after_ms.unwrap_or(0))),
            reason: short(&error),
        },
        None => Told::Dead { reason: short(&format!("tried {attempt} times; the last: {error}")) },
    }
}

fn note(sink: &str, delivery: &Delivery, told: &Told) {
    let (event, kind) = (delivery.placed.event.id.as_str(), delivery.placed.event.kind.as_str());
    let attempt = delivery.attempt;
    let outcome = match told {
        Told::Done => {
            tracing::debug!(sink, event, kind, attempt, "told");
            "told"
        }
        Told::Retry { reason, .. } => {
            tracing::warn!(sink, event, kind, attempt, reason, "not told; will be again");
            "failed"
        }
        Told::Dead { reason } => {
            tracing::error!(sink, event, kind, attempt, reason, "not told, and given up");
            "dead"
        }
    };
    let sink = sink.to_owned();
    metrics::counter!("claviger_deliveries_total", "sink" => sink, "outcome" => outcome)
        .increment(1);
}

/// Without control characters, and not long: strangers may have written it.
fn short(text: &str) -> String {
    let kept: String =
        text.chars().filter(|character| !character.is_control()).take(REASON_CHARS).collect();
    // An empty one is that of a delivery which somebody has in hand.
    if kept.is_empty() { "no reason was given".to_owned() } else { kept }
}

/// An event as others are told it.
#[must_use]
pub fn notice(placed: &PlacedEvent) -> Notice {
    let event = &placed.event;
    let mut data: Value = serde_json::from_str(&event.data_json).unwrap_or(Value::Null);
    if let (Some(fields), Some(key)) = (data.as_object_mut(), &placed.idempotency_key) {
        fields.insert("idempotency_key".to_owned(), key.as_str().into());
    }
    let what = event.kind.strip_prefix("claviger.").unwrap_or(&event.kind);
    let chain = data.get("chain").and_then(Value::as_str).unwrap_or("server");
    let noun = what.split('.').next().unwrap_or(what);
    let body = json!({
        "specversion": "1.0",
        "id": event.id,
        "source": "/claviger",
        "type": event.kind,
        "subject": event.subject,
        "time": event.at.to_string(),
        "datacontenttype": "application/json",
        "dataschema": format!("{SCHEMA}:{noun}:1"),
        "data": data,
    });
    Notice {
        id: event.id.clone(),
        kind: event.kind.clone(),
        subject: event.subject.clone(),
        routing_key: format!("{}.{what}", one_word(chain)),
        at: event.at,
        body: body.to_string(),
    }
}

/// A chain's name as one word of a routing key, whose words dots separate and `*` and `#` stand for.
fn one_word(chain: &str) -> String {
    chain.replace(['.', '*', '#', ' '], "_")
}

/// An event as whoever asked for the transaction may be told it: who else may approve it, and by which hash, is
/// not theirs to know.
#[must_use]
pub fn for_requester(mut placed: PlacedEvent) -> PlacedEvent {
    if !placed.event.kind.starts_with("claviger.approval.") {
        return placed;
    }
    let data: Value = serde_json::from_str(&placed.event.data_json).unwrap_or(Value::Null);
    let Value::Object(mut fields) = data else { return placed };
    fields.retain(|name, _| !["hash", "groups"].contains(&name.as_str()));
    placed.event.data_json = Value::Object(fields).to_string();
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> Outcome {
        Outcome::Retry { after_ms: None, error: "503".to_owned() }
    }

    fn due(told: &Told) -> Option<i64> {
        match told {
            Told::Retry { due, .. } => Some(due.millis()),
            Told::Done | Told::Dead { .. } => None,
        }
    }

    #[test]
    fn a_schedule_ends_and_endless_patience_does_not() {
        let now = Timestamp::from_millis(1_000);
        let schedule = Patience::Schedule(vec![5, 50]);
        let after = |attempt| due(&told(failed(), &schedule, attempt, now));
        assert_eq!([after(1), after(2), after(3)], [Some(1_005), Some(1_050), None]);
        let endless = Patience::Endless { longest_ms: 3_000 };
        let after = |attempt| due(&told(failed(), &endless, attempt, now));
        assert_eq!([after(1), after(2)], [Some(1_500), Some(2_000)]);
        assert_eq!(after(i64::MAX), Some(4_000));
    }

    #[test]
    fn who_asks_for_a_longer_pause_gets_it() {
        let now = Timestamp::from_millis(0);
        let asked = Outcome::Retry { after_ms: Some(90_000), error: "429".to_owned() };
        let told = told(asked, &Patience::Schedule(vec![5]), 1, now);
        assert_eq!(due(&told), Some(90_000));
    }

    #[test]
    fn a_notice_is_one_cloud_event_with_the_key_of_who_asked() {
        let placed = PlacedEvent {
            place: 7,
            event: crate::ports::store::NewEvent {
                id: "01890a5d".to_owned(),
                kind: "claviger.transaction.finalized".to_owned(),
                subject: "tx".to_owned(),
                data_json: r#"{"chain":"my.chain"}"#.to_owned(),
                at: Timestamp::from_millis(0),
            },
            owner: None,
            idempotency_key: Some("order-7".to_owned()),
        };
        let notice = notice(&placed);
        assert_eq!(notice.routing_key, "my_chain.transaction.finalized");
        let body: Value = serde_json::from_str(&notice.body).unwrap();
        assert_eq!(body["data"]["idempotency_key"], "order-7");
        assert_eq!(body["dataschema"], "urn:claviger:schema:transaction:1");
        assert!(!notice.body.contains('\n'), "it goes on one line");
    }

    #[test]
    fn who_asked_is_not_told_by_which_hash_others_approve() {
        let placed = PlacedEvent {
            place: 1,
            event: crate::ports::store::NewEvent {
                id: "e".to_owned(),
                kind: "claviger.approval.requested".to_owned(),
                subject: "tx".to_owned(),
                data_json: r#"{"expires_at":"x","groups":["treasury"],"hash":"0x1"}"#.to_owned(),
                at: Timestamp::from_millis(0),
            },
            owner: None,
            idempotency_key: None,
        };
        assert_eq!(for_requester(placed).event.data_json, r#"{"expires_at":"x"}"#);
    }
}
