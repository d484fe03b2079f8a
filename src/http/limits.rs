//! How much of anything one listener takes: bytes, time, requests, connections.

use crate::http::problem::Problem;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::CONTENT_LENGTH;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::any::Any;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Routes that answer however busy the server is: a probe that is shed would have a busy server
/// restarted.
const PROBES: [&str; 2] = ["/healthz", "/readyz"];

/// The limits of a listener. Every one has a default, and none can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest body, in bytes.
    pub body_bytes_max: usize,
    /// Longest time from a request's head to its answer's head, in milliseconds. A stream that has
    /// begun to answer is not cut.
    pub request_ms: u64,
    /// Longest time for a body to arrive, in milliseconds.
    pub body_read_ms: u64,
    /// Longest time for a head to arrive, in milliseconds; also how long a connection may idle.
    pub head_read_ms: u64,
    /// Longest head, in bytes.
    pub head_bytes_max: usize,
    /// Requests in hand; more are answered 503 `overloaded`.
    pub requests_max: usize,
    /// Connections; more are closed at once.
    pub connections_max: usize,
    /// How long requests in hand may take to end when the server stops, in milliseconds.
    pub drain_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 256 * 1024,
            request_ms: 60_000,
            body_read_ms: 10_000,
            head_read_ms: 30_000,
            head_bytes_max: 64 * 1024,
            requests_max: 512,
            connections_max: 2_048,
            drain_ms: 30_000,
        }
    }
}

/// In a request's extensions: how long its body may take to arrive.
#[derive(Clone, Copy, Debug)]
pub struct BodyTime(pub Duration);

impl Default for BodyTime {
    fn default() -> Self {
        Self(Duration::from_millis(Limits::default().body_read_ms))
    }
}

/// The gate of one listener.
#[derive(Clone)]
pub(super) struct Gate {
    limits: Limits,
    room: Arc<Semaphore>,
}

impl Gate {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, room: Arc::new(Semaphore::new(limits.requests_max)) }
    }
}

/// Lets a request in, for as long as it may take. A body that says it is too long is refused before
/// a byte of it is read; one that does not say is cut while it streams (`DefaultBodyLimit`).
pub(super) async fn pass(
    State(gate): State<Gate>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let length = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let length: Option<usize> = length.and_then(|text| text.parse().ok());
    if length.is_some_and(|bytes| bytes > gate.limits.body_bytes_max) {
        return Err(Problem::TooLarge);
    }
    let route = request.extensions().get::<MatchedPath>();
    let probe = route.is_some_and(|route| PROBES.contains(&route.as_str()));
    let _place = match gate.room.try_acquire() {
        Ok(place) => Some(place),
        Err(_) if probe => None,
        Err(_) => return Err(Problem::Overloaded),
    };
    request.extensions_mut().insert(BodyTime(Duration::from_millis(gate.limits.body_read_ms)));
    let limit = Duration::from_millis(gate.limits.request_ms);
    tokio::time::timeout(limit, next.run(request)).await.map_err(|_elapsed| Problem::Timeout)
}

/// What a handler's panic is answered with.
pub(super) fn on_panic(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    Problem::internal(format!("a handler panicked: {text}")).into_response()
}
