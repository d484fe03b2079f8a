//! What operators see of what is owed, and do about what could not be told.

use crate::app::record::Instruction;
use crate::app::{App, AppError, record};
use crate::ports::store::{Backlog, DeliveryRow, End, Subscription, look, unit};
use std::collections::BTreeSet;
use std::sync::Arc;

/// How many deliveries are changed in one unit: whoever writes besides need not wait for long.
const BATCH: i64 = 1_000;

/// Which deliveries to list.
#[derive(Debug, Clone, Default)]
pub struct DeliveryFilter {
    /// Only to this consumer.
    pub consumer: Option<String>,
    /// Only those that are given up, or only those that are not.
    pub is_dead: Option<bool>,
    /// Only above this number (the cursor).
    pub after: i64,
    /// At most so many.
    pub limit: i64,
}

/// Deliveries that match, oldest first.
///
/// # Errors
/// When the store does not answer.
pub async fn deliveries(app: &App, filter: DeliveryFilter) -> Result<Vec<DeliveryRow>, AppError> {
    let found = look(&*app.store, "deliveries", move |unit| {
        let filter = filter.clone();
        Box::pin(async move {
            let consumer = filter.consumer.as_deref();
            unit.deliveries(consumer, filter.is_dead, filter.after, filter.limit).await
        })
    });
    Ok(found.await?)
}

/// What became of a wish to tell something again.
enum Replayed {
    Yes(DeliveryRow),
    Open,
    Unknown,
}

/// An operator has a delivery tried again now, from the first attempt: one that was given up, or waits for its
/// next attempt. Recorded.
///
/// # Errors
/// When there is none, or it has not failed; or the store does not answer.
pub async fn replay(app: &App, id: i64, said: &Instruction) -> Result<DeliveryRow, AppError> {
    let now = app.clock.now();
    let leaf = record::instructed(format!("delivery/{id}"), "replay_delivery", said, now)?;
    let leaf = Arc::new(leaf);
    let replayed = unit(&*app.store, "replay_delivery", move |unit| {
        let leaf = Arc::clone(&leaf);
        Box::pin(async move {
            if !unit.replay_delivery(id, now).await? {
                let is_there = unit.delivery(id).await?.is_some();
                return Ok(End::Rollback(if is_there {
                    Replayed::Open
                } else {
                    Replayed::Unknown
                }));
            }
            unit.append_leaf(&leaf).await?;
            Ok(match unit.delivery(id).await? {
                Some(row) => End::Commit(Replayed::Yes(row)),
                None => End::Rollback(Replayed::Unknown),
            })
        })
    })
    .await?;
    match replayed {
        Replayed::Yes(row) => {
            app.telling.placed();
            tracing::info!(delivery = id, consumer = row.consumer, sub = %said.who.sub, "replayed");
            Ok(row)
        }
        Replayed::Unknown => Err(AppError::NotFound),
        Replayed::Open => Err(AppError::Conflict {
            detail: "it has not failed: it is told as soon as nothing is before it".to_owned(),
            request: None,
        }),
    }
}

/// An operator has all that was given up of one consumer tried again, from the first attempt. Recorded once. How
/// many they are; what is given up meanwhile is not taken again.
///
/// # Errors
/// When the store does not answer; what was not taken by then is taken by the next call.
pub async fn replay_all(app: &App, consumer: &str, said: &Instruction) -> Result<u64, AppError> {
    let now = app.clock.now();
    let leaf = record::instructed(subject_of(consumer), "replay_deliveries", said, now)?;
    let (mut leaf, mut after, mut count) = (Some(Arc::new(leaf)), 0, 0_u64);
    loop {
        let (name, written) = (consumer.to_owned(), leaf.clone());
        let batch = unit(&*app.store, "replay_dead", move |unit| {
            let (name, written) = (name.clone(), written.clone());
            Box::pin(async move {
                let batch = unit.replay_dead(&name, after, BATCH, now).await?;
                if batch.is_none() {
                    return Ok(End::Rollback(None));
                }
                if let Some(leaf) = &written {
                    unit.append_leaf(leaf).await?;
                }
                Ok(End::Commit(batch))
            })
        })
        .await?;
        let Some((last, replayed)) = batch else { break };
        (leaf, after, count) = (None, last, count.saturating_add(replayed));
        app.telling.placed();
    }
    tracing::info!(consumer, count, sub = %said.who.sub, "what was given up is told again");
    Ok(count)
}

/// An operator takes a consumer out: it is owed nothing from here on, and what it was owed is forgotten. Recorded.
/// How many deliveries that were.
///
/// # Errors
/// When this process tells it, or nobody knows it; or the store does not answer. What is not forgotten by then is
/// by the next call.
pub async fn forget(app: &App, consumer: &str, said: &Instruction) -> Result<u64, AppError> {
    if app.telling.tells(consumer) {
        return Err(AppError::Conflict {
            detail:
                "it is in this server's configuration: take it out there, at every server over the \
                     database, and start them again"
                    .to_owned(),
            request: None,
        });
    }
    let leaf = record::instructed(subject_of(consumer), "forget_consumer", said, app.clock.now())?;
    let (mut leaf, mut count) = (Some(Arc::new(leaf)), 0_u64);
    loop {
        let (name, written) = (consumer.to_owned(), leaf.clone());
        let forgotten = unit(&*app.store, "forget_consumer", move |unit| {
            let (name, written) = (name.clone(), written.clone());
            Box::pin(async move {
                let was_known = unit.forget_consumer(&name).await?;
                let forgotten = unit.forget_deliveries(&name, BATCH).await?;
                if !was_known && forgotten == 0 {
                    return Ok(End::Rollback(None));
                }
                if let Some(leaf) = &written {
                    unit.append_leaf(leaf).await?;
                }
                Ok(End::Commit(Some(forgotten)))
            })
        })
        .await?;
        match forgotten {
            None if leaf.is_some() => return Err(AppError::NotFound),
            None => break,
            Some(forgotten) => (leaf, count) = (None, count.saturating_add(forgotten)),
        }
    }
    tracing::warn!(consumer, count, sub = %said.who.sub, "a consumer of events was forgotten");
    Ok(count)
}

fn subject_of(consumer: &str) -> String {
    format!("consumer/{consumer}")
}

/// What everybody is owed.
///
/// # Errors
/// When the store does not answer.
pub async fn backlogs(app: &App) -> Result<Vec<Backlog>, AppError> {
    let found =
        look(&*app.store, "backlogs", |unit| Box::pin(async move { unit.backlogs().await }));
    Ok(found.await?)
}

/// When a server starts: writes down who is told what by it, so that whichever server gives places owes it, and says
/// who is told or owed what and is not configured here. Where nobody else has the database, what a process before
/// this one had in hand is due at once.
///
/// # Errors
/// When the store does not answer.
pub async fn begin(app: &App, subscriptions: &[Subscription]) -> Result<(), AppError> {
    let configured: BTreeSet<String> = subscriptions.iter().map(|it| it.consumer.clone()).collect();
    app.telling.configure(configured.clone());
    let (subscriptions, now) = (subscriptions.to_vec(), app.clock.now());
    let is_alone = app.store.is_alone();
    let others = unit(&*app.store, "begin_telling", move |unit| {
        let subscriptions = subscriptions.clone();
        Box::pin(async move {
            for subscription in &subscriptions {
                unit.set_consumer(subscription).await?;
            }
            if is_alone {
                unit.forget_delivery_claims(now).await?;
            }
            Ok(End::Commit(unit.consumers().await?))
        })
    })
    .await?;
    for other in others.iter().filter(|it| !configured.contains(&it.consumer)) {
        tracing::warn!(
            consumer = other.consumer,
            "a consumer that is not configured here is owed events: another server must tell it, or \
             `claviger delivery forget` takes it out"
        );
    }
    for owed in backlogs(app).await?.iter().filter(|it| !configured.contains(&it.consumer)) {
        let state = if owed.is_dead { "dead" } else { "open" };
        tracing::warn!(
            consumer = owed.consumer,
            count = owed.count,
            state,
            "events wait for a consumer that is not configured here; they are kept"
        );
    }
    Ok(())
}
