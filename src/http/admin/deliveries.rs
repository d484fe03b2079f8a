//! `/admin/v1/deliveries`: what is owed to webhooks and buses, and what could not be told.

use crate::app::record::Instruction;
use crate::app::tell::operate::{self, DeliveryFilter};
use crate::core::access::Action;
use crate::http::body::JsonBody;
use crate::http::caller::Caller;
use crate::http::problem::Problem;
use crate::http::query::{PathId, QueryParams, page_cursor, page_limit};
use crate::http::state::HttpState;
use crate::ports::store::DeliveryRow;
use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};

const REASON_CHARS_MAX: usize = 500;
/// `webhook:` and a name.
const CONSUMER_BYTES_MAX: usize = 72;
const PAGE: i64 = 50;
const PAGE_MAX: i64 = 200;

/// Filters of the list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    consumer: Option<String>,
    state: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

/// The body of a replay.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplayBody {
    reason: String,
}

/// The body of what is done about all that one consumer is owed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsumerBody {
    consumer: String,
    reason: String,
}

fn shown(row: &DeliveryRow) -> Value {
    json!({
        "id": row.id.to_string(),
        "consumer": row.consumer,
        "event": row.event_id,
        "place": row.place.to_string(),
        "type": row.kind,
        "subject": row.subject,
        "state": if row.is_dead { "dead" } else { "open" },
        "attempts": row.attempts,
        "due_at": (!row.is_dead).then(|| row.due_at.to_string()),
        "reason": row.reason,
        "since": row.since.to_string(),
    })
}

/// `GET /admin/v1/deliveries`: oldest first.
///
/// # Errors
/// As `docs/problems.md` lists.
pub async fn list(
    caller: Caller,
    State(state): State<HttpState>,
    QueryParams(query): QueryParams<ListQuery>,
) -> Result<Json<Value>, Problem> {
    caller.require(Action::ReadAll)?;
    let is_dead = match query.state.as_deref() {
        None => None,
        Some("open") => Some(false),
        Some("dead") => Some(true),
        Some(_) => return Err(Problem::invalid("state", "must be open or dead")),
    };
    let limit = page_limit(query.limit.as_deref(), PAGE, PAGE_MAX)?;
    let after = page_cursor(query.cursor.as_deref())?.unwrap_or(0);
    let filter = DeliveryFilter { consumer: query.consumer, is_dead, after, limit };
    let found = operate::deliveries(&state.app, filter).await?;
    let full = i64::try_from(found.len()).is_ok_and(|count| count == limit);
    let cursor = found.last().filter(|_| full).map(|last| last.id.to_string());
    let rows: Vec<Value> = found.iter().map(shown).collect();
    Ok(Json(json!({ "deliveries": rows, "next_cursor": cursor })))
}

/// `POST /admin/v1/deliveries/{id}/replay`: it is tried again now, from the first attempt. Recorded.
///
/// # Errors
/// As `docs/problems.md` lists.
pub async fn replay(
    caller: Caller,
    State(state): State<HttpState>,
    PathId(id): PathId<i64>,
    body: JsonBody<ReplayBody>,
) -> Result<Json<Value>, Problem> {
    let said = said(caller, body.value.reason)?;
    let row = operate::replay(&state.app, id, &said).await?;
    Ok(Json(shown(&row)))
}

/// `POST /admin/v1/deliveries/replay`: all that was given up of one consumer. Recorded.
///
/// # Errors
/// As `docs/problems.md` lists.
pub async fn replay_all(
    caller: Caller,
    State(state): State<HttpState>,
    body: JsonBody<ConsumerBody>,
) -> Result<Json<Value>, Problem> {
    let ConsumerBody { consumer, reason } = body.value;
    let said = said(caller, reason)?;
    let replayed = operate::replay_all(&state.app, named(&consumer)?, &said).await?;
    Ok(Json(json!({ "consumer": consumer, "replayed": replayed })))
}

/// `POST /admin/v1/deliveries/forget`: a consumer, and all that it is owed. Recorded.
///
/// # Errors
/// As `docs/problems.md` lists.
pub async fn forget(
    caller: Caller,
    State(state): State<HttpState>,
    body: JsonBody<ConsumerBody>,
) -> Result<Json<Value>, Problem> {
    let ConsumerBody { consumer, reason } = body.value;
    let said = said(caller, reason)?;
    let forgotten = operate::forget(&state.app, named(&consumer)?, &said).await?;
    Ok(Json(json!({ "consumer": consumer, "forgotten": forgotten })))
}

fn said(caller: Caller, reason: String) -> Result<Instruction, Problem> {
    caller.require(Action::Intervene)?;
    let length = reason.trim().chars().count();
    if length == 0 || length > REASON_CHARS_MAX {
        return Err(Problem::invalid("reason", "must have 1 to 500 characters"));
    }
    Ok(Instruction { who: caller.principal, reason: Some(reason) })
}

fn named(consumer: &str) -> Result<&str, Problem> {
    let fits = !consumer.is_empty() && consumer.len() <= CONSUMER_BYTES_MAX;
    fits.then_some(consumer).ok_or_else(|| Problem::invalid("consumer", "is bus, or webhook:NAME"))
}
