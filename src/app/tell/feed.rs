//! One tail of the events for each process, from which every open stream is told.
//!
//! A stream reads the database until it has caught up, and lives on what the tail hands out from then on: many
//! open streams cost one query, not one each. Each batch says above which place it begins; a stream that stands
//! below that has missed something (it was slow, or the tail has just begun), and reads the database again. So
//! nothing is missed, and nobody's memory grows with a slow reader.

use crate::app::{App, AppError};
use crate::core::principal::Principal;
use crate::ports::store::{PlacedEvent, look};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit, broadcast, watch};
use tokio_util::sync::CancellationToken;

/// How many events are read at once.
const PAGE: i64 = 64;
/// How many batches the slowest live reader may be behind before it reads the database again.
const BATCHES: usize = 32;
/// How long the database is left alone after a page of which the reader was told nothing.
const REST: Duration = Duration::from_millis(5);
/// How many streams may be open in all.
const STREAMS_MAX: usize = 1_024;

/// Events in order, with nothing left out between them.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The place above which it begins.
    pub above: i64,
    /// The events.
    pub events: Arc<[PlacedEvent]>,
}

/// What those who are told of events share in one process.
pub struct Telling {
    placed: watch::Sender<u64>,
    feed: broadcast::Sender<Batch>,
    /// Cancelled when open streams must end.
    pub end: CancellationToken,
    open: Mutex<BTreeMap<Principal, usize>>,
    each_max: usize,
    configured: OnceLock<BTreeSet<String>>,
    catching_up: Semaphore,
}

/// A stream's turn to read a page of what it has missed. Others wait for its end.
pub struct Turn<'a>(Option<SemaphorePermit<'a>>);

impl Turn<'_> {
    /// Nothing of the page was the reader's to be told, so no reader's pace holds the stream back: this does.
    pub async fn rest(self) {
        tokio::time::sleep(REST).await;
        drop(self.0);
    }
}

/// A stream that counts as open until it is dropped.
pub struct OpenStream {
    app: Arc<App>,
    principal: Principal,
}

/// Why no stream may be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoStream {
    /// This principal has as many as it may.
    Yours(usize),
    /// All together are as many as there may be.
    All,
}

impl Telling {
    /// Nobody is told yet; each principal may open so many streams.
    #[must_use]
    pub fn new(each_max: usize, end: CancellationToken) -> Self {
        let (placed, feed) = (watch::Sender::new(0), broadcast::Sender::new(BATCHES));
        let configured = OnceLock::new();
        let catching_up = Semaphore::new(1);
        Self { placed, feed, end, open: Mutex::default(), each_max, configured, catching_up }
    }

    /// Says once who is told by sinks of this process.
    pub(super) fn configure(&self, consumers: BTreeSet<String>) {
        // It is said at the start, and does not change.
        let _ = self.configured.set(consumers);
    }

    /// Whether a sink of this process tells it.
    #[must_use]
    pub fn tells(&self, consumer: &str) -> bool {
        self.configured.get().is_some_and(|configured| configured.contains(consumer))
    }

    /// Wakes those who wait for new places.
    pub fn placed(&self) {
        self.placed.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Changes each time that events have got places in this process.
    #[must_use]
    pub fn new_places(&self) -> watch::Receiver<u64> {
        self.placed.subscribe()
    }

    /// What the tail hands out from now on.
    #[must_use]
    pub fn live(&self) -> broadcast::Receiver<Batch> {
        self.feed.subscribe()
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<Principal, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenStream {
    /// Counts one more stream of this principal.
    ///
    /// # Errors
    /// When there are as many as there may be.
    pub fn new(app: &Arc<App>, principal: &Principal) -> Result<Self, NoStream> {
        let mut open = app.telling.counts();
        if open.values().fold(0, |sum: usize, count| sum.saturating_add(*count)) >= STREAMS_MAX {
            return Err(NoStream::All);
        }
        let count = open.entry(principal.clone()).or_insert(0);
        if *count >= app.telling.each_max {
            return Err(NoStream::Yours(app.telling.each_max));
        }
        *count = count.saturating_add(1);
        Ok(Self { app: Arc::clone(app), principal: principal.clone() })
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut open = self.app.telling.counts();
        if let Some(count) = open.get_mut(&self.principal) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                open.remove(&self.principal);
            }
        }
    }
}

/// How many streams are open.
#[must_use]
pub fn open_streams(app: &App) -> usize {
    app.telling.counts().values().fold(0, |sum, count| sum.saturating_add(*count))
}

/// The same as [`page`], for a stream that is behind: one at a time in each process. SQLite has two that read, and
/// a caller with many streams that begin far back would otherwise keep both.
///
/// # Errors
/// When the store does not answer.
pub async fn page_in_turn(app: &App, above: i64) -> Result<(Vec<PlacedEvent>, Turn<'_>), AppError> {
    let turn = Turn(app.telling.catching_up.acquire().await.ok());
    Ok((page(app, above).await?, turn))
}

/// Events above a place, in order; a page of them.
///
/// # Errors
/// When the store does not answer.
async fn page(app: &App, above: i64) -> Result<Vec<PlacedEvent>, AppError> {
    let found = look(&*app.store, "events_after", move |unit| {
        Box::pin(async move { unit.events_after(above, PAGE).await })
    });
    Ok(found.await?)
}

/// The lowest place that is kept, and the highest that was given; both 0 before the first.
///
/// # Errors
/// When the store does not answer.
pub async fn places(app: &App) -> Result<(i64, i64), AppError> {
    let found = look(&*app.store, "event_places", |unit| {
        Box::pin(async move {
            Ok((unit.oldest_place().await?.unwrap_or(0), unit.newest_place().await?))
        })
    });
    Ok(found.await?)
}

/// Hands what is new to the open streams. `at` is where the tail stands; it stands nowhere while nobody reads.
///
/// # Errors
/// When the store does not answer; the next call goes on there.
pub async fn tail(app: &App, at: &mut Option<i64>) -> Result<(), AppError> {
    if app.telling.feed.receiver_count() == 0 {
        *at = None;
        return Ok(());
    }
    let mut above = match *at {
        Some(above) => above,
        None => {
            let (_, newest) = places(app).await?;
            hand_out(app, newest, Vec::new());
            newest
        }
    };
    *at = Some(above);
    loop {
        let events = page(app, above).await?;
        let Some(last) = events.last().map(|last| last.place) else { return Ok(()) };
        hand_out(app, above, events);
        above = last;
        *at = Some(last);
    }
}

fn hand_out(app: &App, above: i64, events: Vec<PlacedEvent>) {
    // The last reader may just have gone.
    let _ = app.telling.feed.send(Batch { above, events: events.into() });
}
