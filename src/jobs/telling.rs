//! The loops that tell others of events: one gives places, one tails them for open streams, one for each sink.

use super::{as_f64, every};
use crate::app::tell::{self, feed, operate};
use crate::app::{App, AppError};
use crate::ports::bus::Sink;
use crate::ports::store::Subscription;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// How often it is looked for events without a place, in milliseconds. Those of this process are placed at once.
const PLACE_MS: u64 = 50;
/// Least pause between two placements, so that many changes share one.
const PLACE_PAUSE: Duration = Duration::from_millis(10);
/// How often the tail looks for what other processes have placed.
const TAIL_MS: u64 = 200;
/// How often a sink's debts are looked at, where nobody wakes it.
const SINK_MS: i64 = 1_000;
/// Least pause where something is due that cannot be taken now.
const SINK_PAUSE_MS: i64 = 100;
const GAUGES_MS: u64 = 5_000;

/// Who is told.
pub struct Tellers {
    /// Those who are told by sinks of this process, and what they want.
    pub subscriptions: Vec<Subscription>,
    /// The sinks, by the names of the subscriptions.
    pub sinks: Vec<Arc<dyn Sink>>,
}

/// Starts the loops, beside other jobs. On stop each ends what it has in hand.
pub fn start(jobs: &mut JoinSet<()>, app: &Arc<App>, tellers: Tellers, stop: &CancellationToken) {
    let names = tellers.subscriptions.iter().map(|it| it.consumer.clone()).collect();
    jobs.spawn(place(Arc::clone(app), stop.clone()));
    jobs.spawn(tail(Arc::clone(app), stop.clone()));
    jobs.spawn(gauges(Arc::clone(app), names, stop.clone()));
    for sink in tellers.sinks {
        jobs.spawn(tell_sink(Arc::clone(app), sink, stop.clone()));
    }
}

async fn place(app: Arc<App>, stop: CancellationToken) {
    let mut changes = app.changes.subscribe();
    let mut ticks = every(PLACE_MS);
    loop {
        let woken = async {
            tokio::select! {
                _ = ticks.tick() => {}
                changed = changes.recv() => if changed == Err(RecvError::Closed) {
                    ticks.tick().await;
                },
            }
        };
        if stop.run_until_cancelled(woken).await.is_none() {
            return;
        }
        match tell::place(&app).await {
            Ok(0) => {}
            Ok(_) => tokio::time::sleep(PLACE_PAUSE).await,
            Err(error) => warn("place_events", &error),
        }
    }
}

async fn tail(app: Arc<App>, stop: CancellationToken) {
    let (mut places, mut at) = (app.telling.new_places(), None);
    let mut ticks = every(TAIL_MS);
    loop {
        let woken = async {
            tokio::select! {
                _ = ticks.tick() => {}
                changed = places.changed() => if changed.is_err() { ticks.tick().await; },
            }
        };
        if stop.run_until_cancelled(woken).await.is_none() {
            return;
        }
        if let Err(error) = feed::tail(&app, &mut at).await {
            warn("tail_events", &error);
        }
    }
}

async fn tell_sink(app: Arc<App>, sink: Arc<dyn Sink>, stop: CancellationToken) {
    let mut places = app.telling.new_places();
    let mut running: JoinSet<Result<(), AppError>> = JoinSet::new();
    while !stop.is_cancelled() {
        while let Some(ended) = running.try_join_next() {
            told(sink.name(), ended);
        }
        while running.len() < sink.width() {
            match tell::claim(&app, &*sink).await {
                Ok(Some(delivery)) => {
                    let (app, sink) = (Arc::clone(&app), Arc::clone(&sink));
                    running.spawn(async move { tell::deliver(&app, &*sink, delivery).await });
                }
                Ok(None) => break,
                Err(error) => {
                    warn(sink.name(), &error);
                    break;
                }
            }
        }
        let pause = pause(&app, &*sink, running.is_empty()).await;
        tokio::select! {
            () = stop.cancelled() => {}
            ended = running.join_next(), if !running.is_empty() => {
                if let Some(ended) = ended {
                    told(sink.name(), ended);
                }
            }
            _ = places.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
    while let Some(ended) = running.join_next().await {
        told(sink.name(), ended);
    }
}

/// How long nothing need be looked at. What is in hand wakes the loop when it ends.
async fn pause(app: &App, sink: &dyn Sink, is_idle: bool) -> Duration {
    let due = if is_idle && sink.ready() { tell::due_in(app, sink).await } else { Ok(None) };
    let ms = match due {
        Ok(Some(ms)) => ms.clamp(SINK_PAUSE_MS, SINK_MS),
        // The database does not answer, or nothing is owed.
        Ok(None) | Err(_) => SINK_MS,
    };
    Duration::from_millis(u64::try_from(ms).unwrap_or(1_000))
}

fn told(sink: &str, ended: Result<Result<(), AppError>, JoinError>) {
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn(sink, &error),
        Err(error) => tracing::error!(sink, %error, "telling ended by itself; it is told again"),
    }
}

fn warn(job: &str, error: &AppError) {
    tracing::warn!(job, %error, "will be tried again");
}

async fn gauges(app: Arc<App>, configured: BTreeSet<String>, stop: CancellationToken) {
    let mut ticks = every(GAUGES_MS);
    // What was told of a consumer must not stay when it is owed nothing any more.
    let mut known = configured;
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let owed = match operate::backlogs(&app).await {
            Ok(owed) => owed,
            Err(error) => {
                warn("event_gauges", &error);
                continue;
            }
        };
        known.extend(owed.iter().map(|it| it.consumer.clone()));
        let now = app.clock.now();
        for consumer in &known {
            for (is_dead, state) in [(false, "open"), (true, "dead")] {
                let found =
                    owed.iter().find(|it| it.consumer == *consumer && it.is_dead == is_dead);
                let labels = [("consumer", consumer.clone()), ("state", state.to_owned())];
                let count = found.map_or(0, |it| it.count);
                let age_ms = found.map_or(0, |it| now.since(it.since).max(0));
                metrics::gauge!("claviger_event_backlog", &labels).set(as_f64(count));
                metrics::gauge!("claviger_event_backlog_oldest_seconds", &labels)
                    .set(as_f64(age_ms) / 1_000.0);
            }
        }
        let open = i64::try_from(feed::open_streams(&app)).unwrap_or(i64::MAX);
        metrics::gauge!("claviger_event_streams").set(as_f64(open));
    }
}
