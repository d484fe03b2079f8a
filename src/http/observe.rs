//! What stands outermost around each request: its id, its one log event, its duration, and the
//! last word on how a failure looks.
//!
//! The event has the route's pattern and never the path or the query, the principal and never the
//! token, the status and never a body.

use crate::core::principal::Principal;
use crate::http::problem::{Cause, Document, PROBLEM_JSON, Problem};
use crate::ports::clock::Entropy;
use axum::body::Body;
use axum::extract::{ConnectInfo, FromRequestParts, MatchedPath, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use tracing::Instrument;

/// The header with the request's id, in and out.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest id taken from a caller, in characters.
const REQUEST_ID_CHARS_MAX: usize = 64;

/// The route of what matched none.
const NO_ROUTE: &str = "none";

/// The status in logs and metrics of a request whose caller went away.
const CALLER_GONE: u16 = 499;

/// The id of this HTTP request: the caller's if it is well-formed, else a UUIDv7.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRequestId(Arc<str>);

impl HttpRequestId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn of(headers: &HeaderMap, entropy: &dyn Entropy) -> Self {
        let mut values = headers.get_all(X_REQUEST_ID).iter();
        let given = match (values.next(), values.next()) {
            (Some(one), None) => one.to_str().ok(),
            _ => None,
        };
        let sound = given.filter(|id| {
            (1..=REQUEST_ID_CHARS_MAX).contains(&id.len())
                && id.bytes().all(|byte| byte.is_ascii_graphic())
        });
        Self(sound.map_or_else(|| entropy.uuid().to_string().into(), Arc::from))
    }
}

impl fmt::Display for HttpRequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for HttpRequestId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let id = parts.extensions.get::<Self>().cloned();
        id.ok_or_else(|| Problem::internal("the router was not dressed by the listener"))
    }
}

/// Where the [`crate::http::caller::Caller`] extractor leaves the principal for the log event.
#[derive(Clone, Default)]
pub struct CallerSlot(Arc<OnceLock<Principal>>);

impl CallerSlot {
    /// Notes the principal; the first one counts.
    pub fn fill(&self, principal: &Principal) {
        // A second extractor of the same request finds the slot filled with the same principal.
        let _ = self.0.set(principal.clone());
    }
}

/// In a response's extensions: this error answer is of a foreign protocol (JSON-RPC, Web3Signer)
/// and is sent as it is, instead of as a problem document.
#[derive(Clone, Copy, Debug)]
pub struct AsIs;

/// What the layer needs.
#[derive(Clone)]
pub(super) struct Observer {
    pub(super) listener: &'static str,
    pub(super) entropy: Arc<dyn Entropy>,
}

/// The outermost layer.
pub(super) async fn observe(
    State(observer): State<Observer>,
    mut request: Request,
    next: Next,
) -> Response {
    let id = HttpRequestId::of(request.headers(), observer.entropy.as_ref());
    let mut event = Event::begin(observer.listener, &id, &request);
    request.extensions_mut().insert(id.clone());
    request.extensions_mut().insert(event.caller.clone());
    let span = tracing::info_span!("request", request_id = %id);
    let mut response = next.run(request).instrument(span).await;
    event.code = show(&mut response, &id);
    event.status = response.status().as_u16();
    let headers = response.headers_mut();
    // The id is visible ASCII, so this cannot fail.
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        headers.insert(X_REQUEST_ID, value);
    }
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Gives a failure its final form and logs its cause. Answers with the problem's code.
fn show(response: &mut Response, id: &HttpRequestId) -> Option<&'static str> {
    let document = match response.extensions_mut().remove::<Document>() {
        Some(document) => document,
        None if is_bare_failure(response) => {
            let document = document_for(response.status());
            let allowed = response.headers_mut().remove(axum::http::header::ALLOW);
            *response = document.clone().into_response();
            if let Some(allowed) = allowed {
                response.headers_mut().insert(axum::http::header::ALLOW, allowed);
            }
            document
        }
        None => return None,
    };
    if let Some(cause) = &document.cause {
        let code = document.code.name();
        tracing::error!(request_id = %id, code, %cause, "a request failed inside");
    }
    let code = document.code.name();
    response.headers_mut().remove(CONTENT_LENGTH);
    *response.body_mut() = Body::from(document.with_request_id(id.as_str()).to_json());
    Some(code)
}

/// A failure that some library worded, or a handler that forgot to.
fn is_bare_failure(response: &Response) -> bool {
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error()) {
        return false;
    }
    let media_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    media_type != Some(PROBLEM_JSON) && response.extensions().get::<AsIs>().is_none()
}

fn document_for(status: StatusCode) -> Document {
    let problem = match status {
        StatusCode::NOT_FOUND => Problem::NotFound,
        StatusCode::METHOD_NOT_ALLOWED => Problem::MethodNotAllowed,
        StatusCode::REQUEST_TIMEOUT => Problem::Timeout,
        StatusCode::PAYLOAD_TOO_LARGE => Problem::TooLarge,
        StatusCode::UNSUPPORTED_MEDIA_TYPE => Problem::UnsupportedMediaType,
        StatusCode::SERVICE_UNAVAILABLE => Problem::Overloaded,
        other if other.is_client_error() => {
            Problem::invalid("request", "the request cannot be understood")
        }
        other => Problem::Internal(Cause::new(format!("an answer {other} without a problem"))),
    };
    problem.document()
}

/// The one event of a request, told when it is dropped: so also for a caller who went away.
struct Event {
    listener: &'static str,
    request_id: HttpRequestId,
    caller: CallerSlot,
    method: &'static str,
    route: String,
    peer: Option<SocketAddr>,
    began: Instant,
    status: u16,
    code: Option<&'static str>,
}

impl Event {
    fn begin(listener: &'static str, id: &HttpRequestId, request: &Request) -> Self {
        let extensions = request.extensions();
        let route = extensions.get::<MatchedPath>().map_or(NO_ROUTE, MatchedPath::as_str);
        Self {
            listener,
            request_id: id.clone(),
            caller: CallerSlot::default(),
            method: method_name(request.method()),
            route: route.to_owned(),
            peer: extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0),
            began: Instant::now(),
            status: CALLER_GONE,
            code: None,
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        metrics::histogram!(
            "claviger_http_request_duration_seconds",
            "route" => self.route.clone(),
            "method" => self.method,
            "status" => self.status.to_string(),
        )
        .record(took.as_secs_f64());
        let principal = self.caller.0.get();
        tracing::info!(
            request_id = %self.request_id,
            listener = self.listener,
            method = self.method,
            route = self.route,
            status = self.status,
            code = self.code,
            ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            iss = principal.map(|principal| principal.iss.as_str()),
            sub = principal.map(|principal| principal.sub.as_str()),
            peer = self.peer.map(tracing::field::display),
            "request"
        );
    }
}

/// Methods are an open set, and a metric's labels must not be.
fn method_name(method: &Method) -> &'static str {
    const KNOWN: [Method; 7] = [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::HEAD,
        Method::OPTIONS,
    ];
    const NAMES: [&str; 7] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];
    let known = KNOWN.iter().zip(NAMES).find(|(known, _)| *known == method);
    known.map_or("other", |(_, name)| name)
}
