//! `GET /v1/events`: server-sent events (WHATWG HTML section 9.2), only what the caller may read.
//!
//! Each stream has a task of its own that fills a small buffer, and a place up to which it has told. It reads
//! the database until it has caught up and lives on the process's tail from then on. Who does not read is
//! dropped, and comes back with `Last-Event-ID`.

use crate::app::App;
use crate::app::key_scopes::KeyScopes;
use crate::app::tell::feed::{self, NoStream};
use crate::app::tell::{Batch, OpenStream, for_requester, notice};
use crate::core::access::Action;
use crate::core::kinds::{KindFilter, known_filter};
use crate::core::principal::Principal;
use crate::http::auth::Authenticator;
use crate::http::caller::Caller;
use crate::http::problem::Problem;
use crate::http::query::QueryParams;
use crate::http::state::HttpState;
use crate::ports::store::PlacedEvent;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Texts that wait for a reader; each has the events of one page at most.
const BUFFER: usize = 2;
/// Who takes nothing for so long is dropped.
const STALL: Duration = Duration::from_secs(30);
/// Proxies end connections on which nothing goes.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// How long a reader waits before it comes back, in milliseconds.
const RETRY_MS: u32 = 2_000;
const TYPES_MAX: usize = 16;
/// What people have to do before another stream may be opened takes them longer than this.
const RETRY_AFTER_S: u32 = 10;
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// `?types=claviger.transaction.*,claviger.key.created&last_event_id=17`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    types: Option<String>,
    last_event_id: Option<String>,
}

/// `GET /v1/events`
///
/// # Errors
/// As `docs/problems.md` lists.
pub async fn stream(
    caller: Caller,
    State(state): State<HttpState>,
    QueryParams(query): QueryParams<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let sees = Sees::of(&caller)?;
    let kinds = kinds(query.types.as_deref())?;
    let open = OpenStream::new(&state.app, &caller.principal).map_err(|no| match no {
        NoStream::Yours(_) => Problem::RateLimited { retry_after_s: RETRY_AFTER_S },
        NoStream::All => Problem::Overloaded,
    })?;
    // From here on nothing that is placed is missed.
    let live = state.app.telling.live();
    let last = begin(&state.app, &headers, query.last_event_id.as_deref()).await?;
    let (sender, receiver) = mpsc::channel(BUFFER);
    let left_ms = caller.token_expires_at.since(state.app.clock.now()).max(0);
    let left = Duration::from_millis(u64::try_from(left_ms).unwrap_or(0));
    let stream = Stream {
        app: Arc::clone(&state.app),
        auth: Arc::clone(&state.auth),
        caller,
        sees,
        kinds,
        last,
        said: last,
        token_ends: Instant::now().checked_add(left).unwrap_or_else(Instant::now),
        quiet: Instant::now(),
        sender,
        _open: open,
    };
    tokio::spawn(stream.run(live));
    let body = futures::stream::unfold(receiver, async |mut receiver| {
        let text: Bytes = receiver.recv().await?;
        Some((Ok::<_, Infallible>(text), receiver))
    });
    let headers = [
        (CONTENT_TYPE, "text/event-stream"),
        (CACHE_CONTROL, "no-store, no-transform"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::from_stream(body)).into_response())
}

fn kinds(text: Option<&str>) -> Result<Vec<KindFilter>, Problem> {
    let Some(text) = text else { return Ok(Vec::new()) };
    let wrong = || {
        let detail =
            "must be up to 16 types or beginnings such as claviger.transaction.*, with commas";
        Problem::invalid("types", detail)
    };
    let kinds: Option<Vec<KindFilter>> = text.split(',').map(known_filter).collect();
    kinds.filter(|kinds| kinds.len() <= TYPES_MAX).ok_or_else(wrong)
}

/// The place above which the stream begins: where the reader left off, or now.
async fn begin(app: &App, headers: &HeaderMap, query: Option<&str>) -> Result<i64, Problem> {
    let header = headers.get(LAST_EVENT_ID);
    let wrong = || Problem::invalid("last_event_id", "is not an id of this stream");
    // A browser repeats the URL that it began with: where it came to by itself counts.
    let text = match header {
        Some(value) => Some(value.to_str().map_err(|_| wrong())?),
        None => query,
    };
    let (oldest, newest) = feed::places(app).await?;
    // An empty one is that of a reader who has been told nothing.
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(newest) };
    let is_plain = text.len() <= 19 && text.bytes().all(|byte| byte.is_ascii_digit());
    let last: i64 = text.parse().ok().filter(|_| is_plain).ok_or_else(wrong)?;
    if last > newest {
        return Err(Problem::StreamGone {
            detail: format!(
                "event {last} is not known here, and the newest is {newest}: the database was restored, or it is \
                 another one. Read what you need anew, and begin without Last-Event-ID"
            ),
        });
    }
    // 0 asks for all there is.
    if last != 0 && last.saturating_add(1) < oldest {
        return Err(Problem::StreamGone {
            detail: format!(
                "events after {last} are no longer kept, the oldest is {oldest}: read what you need anew, and \
                 begin without Last-Event-ID"
            ),
        });
    }
    Ok(last)
}

/// What a caller may be told, by its roles.
struct Sees {
    all: bool,
    approvals: bool,
    policy: bool,
    own: Option<Principal>,
}

impl Sees {
    fn of(caller: &Caller) -> Result<Self, Problem> {
        let own = caller.may(Action::ReadOwn).then(|| caller.principal.clone());
        let sees = Self {
            all: caller.may(Action::ReadAll),
            approvals: caller.may(Action::ReadApprovals),
            policy: caller.may(Action::ReadPolicy),
            own,
        };
        if !(sees.all || sees.approvals || sees.policy || sees.own.is_some()) {
            caller.require(Action::ReadOwn)?;
        }
        Ok(sees)
    }

    /// The event as this caller may see it; `None` if it may not.
    fn shown(&self, event: &PlacedEvent, scopes: &KeyScopes) -> Option<PlacedEvent> {
        let kind = event.event.kind.as_str();
        let in_full = self.all
            || (self.approvals && kind.starts_with("claviger.approval."))
            || (self.policy && kind.starts_with("claviger.policy."));
        if in_full {
            return Some(event.clone());
        }
        // What it may read it is told of: its own, and that of those who share its keys.
        let both = self.own.as_ref().zip(event.owner.as_ref());
        let is_own = both.is_some_and(|(own, owner)| scopes.share(own, owner));
        is_own.then(|| for_requester(event.clone()))
    }
}

/// Why a stream ends.
enum Ended {
    /// The reader went away.
    Gone,
    /// The reader takes nothing.
    Stalled,
    /// With this word to the reader.
    Said(&'static str),
}

struct Stream {
    app: Arc<App>,
    auth: Arc<Authenticator>,
    caller: Caller,
    sees: Sees,
    kinds: Vec<KindFilter>,
    /// All events up to this place were looked at.
    last: i64,
    /// The newest id that the reader has.
    said: i64,
    token_ends: Instant,
    /// Since when nothing was sent.
    quiet: Instant,
    sender: mpsc::Sender<Bytes>,
    _open: OpenStream,
}

impl Stream {
    async fn run(mut self, live: Receiver<Batch>) {
        let sub = self.caller.principal.sub.clone();
        let why = match self.told(live).await {
            Ok(()) | Err(Ended::Gone) => "the reader went away",
            Err(Ended::Stalled) => "the reader took nothing",
            Err(Ended::Said(why)) => {
                // If there is no room for it the reader sees the end without it.
                let _ = self.sender.try_send(Bytes::from(format!(": {why}\n\n")));
                why
            }
        };
        tracing::info!(sub, last = self.last, why, "a stream of events ended");
    }

    async fn told(&mut self, mut live: Receiver<Batch>) -> Result<(), Ended> {
        // The id without data dispatches nothing, and is where a reader resumes who is told nothing.
        self.send(format!("retry: {RETRY_MS}\nid: {}\n\n", self.last)).await?;
        self.catch_up().await?;
        let end = self.app.telling.end.clone();
        loop {
            // Events that are not this reader's keep no connection alive.
            let due = self.quiet.checked_add(KEEPALIVE).unwrap_or(self.quiet);
            let batch = tokio::select! {
                () = end.cancelled() => return Err(Ended::Said("the server stops")),
                () = tokio::time::sleep_until(self.token_ends) => return Err(TOKEN_ENDED),
                () = self.sender.closed() => return Err(Ended::Gone),
                batch = live.recv() => Some(batch),
                () = tokio::time::sleep_until(due) => None,
            };
            match batch {
                None => self.keep_alive().await?,
                Some(Ok(batch)) => {
                    if self.last < batch.above {
                        self.catch_up().await?;
                    }
                    self.tell(&batch.events).await?;
                }
                Some(Err(RecvError::Lagged(_))) => self.catch_up().await?,
                Some(Err(RecvError::Closed)) => return Err(Ended::Said("the server stops")),
            }
        }
    }

    /// Reads the database until nothing is left. What cannot be read now is read when the next event comes, or
    /// the reader comes back for it.
    async fn catch_up(&mut self) -> Result<(), Ended> {
        let app = Arc::clone(&self.app);
        loop {
            let page = tokio::select! {
                page = feed::page_in_turn(&app, self.last) => page,
                () = app.telling.end.cancelled() => return Err(Ended::Said("the server stops")),
                () = self.sender.closed() => return Err(Ended::Gone),
            };
            let (events, turn) = match page {
                Ok(page) => page,
                Err(error) => {
                    tracing::warn!(%error, "a stream of events ends");
                    return Err(Ended::Said("the database does not answer"));
                }
            };
            if events.is_empty() {
                return Ok(());
            }
            let text = self.text(&events)?;
            if text.is_empty() {
                turn.rest().await;
            } else {
                // Nobody waits for this reader to take it.
                drop(turn);
                self.send(text).await?;
            }
            // Pages that hold nothing for this reader send nothing: neither may it be gone unnoticed while they
            // are read, nor hear nothing for long, nor have to begin so far back when it comes again.
            if self.sender.is_closed() {
                return Err(Ended::Gone);
            }
            if self.app.telling.end.is_cancelled() {
                return Err(Ended::Said("the server stops"));
            }
            if self.quiet.elapsed() >= KEEPALIVE {
                self.keep_alive().await?;
            }
        }
    }

    /// Tells of the events that are new to this stream, wanted, and the caller's to see.
    async fn tell(&mut self, events: &[PlacedEvent]) -> Result<(), Ended> {
        let text = self.text(events)?;
        if text.is_empty() { Ok(()) } else { self.send(text).await }
    }

    fn text(&mut self, events: &[PlacedEvent]) -> Result<String, Ended> {
        self.still_may()?;
        let mut text = String::new();
        for event in events {
            if event.place <= self.last {
                continue;
            }
            self.last = event.place;
            let kind = event.event.kind.as_str();
            let wanted = self.kinds.is_empty() || self.kinds.iter().any(|it| it.takes(kind));
            let shown = self.sees.shown(event, &self.app.key_scopes);
            if let Some(shown) = shown.filter(|_| wanted) {
                let body = notice(&shown).body;
                // Writing to a string does not fail.
                let _ = write!(text, "id: {}\nevent: {kind}\ndata: {body}\n\n", event.place);
                self.said = event.place;
            }
        }
        Ok(text)
    }

    async fn keep_alive(&mut self) -> Result<(), Ended> {
        self.still_may()?;
        let mut text = ": keepalive\n".to_owned();
        if self.said < self.last {
            // Nobody should begin far back who was told nothing for long.
            let _ = writeln!(text, "id: {}", self.last);
            self.said = self.last;
        }
        text.push('\n');
        self.send(text).await
    }

    /// Neither the token has ended, nor may its issuer no longer vouch for it.
    fn still_may(&self) -> Result<(), Ended> {
        if self.app.clock.now() >= self.caller.token_expires_at {
            return Err(TOKEN_ENDED);
        }
        if !self.auth.vouches(&self.caller) {
            return Err(Ended::Said(
                "the active policy bundle does not let the issuer vouch any more",
            ));
        }
        Ok(())
    }

    async fn send(&mut self, text: String) -> Result<(), Ended> {
        let end = &self.app.telling.end;
        self.quiet = Instant::now();
        tokio::select! {
            sent = self.sender.send(Bytes::from(text)) => sent.map_err(|_| Ended::Gone),
            () = end.cancelled() => Err(Ended::Said("the server stops")),
            () = tokio::time::sleep_until(self.token_ends) => Err(TOKEN_ENDED),
            () = tokio::time::sleep(STALL) => Err(Ended::Stalled),
        }
    }
}

const TOKEN_ENDED: Ended = Ended::Said("the token has ended");
