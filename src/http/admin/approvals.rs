//! `/admin/v1/approvals`: what waits for time or people, and what people say to it.

use crate::app::approve::{self, WaitingView};
use crate::app::read::FullTransaction;
use crate::app::record::Instruction;
use crate::core::access::Action;
use crate::core::id::RequestId;
use crate::core::tx::state::Status;
use crate::http::body::JsonBody;
use crate::http::caller::Caller;
use crate::http::problem::Problem;
use crate::http::query::{PathId, QueryParams, page_cursor, page_limit};
use crate::http::state::HttpState;
use crate::http::v1::show;
use crate::ports::store::WaitingFilter;
use alloy::primitives::B256;
use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

const PAGE: i64 = 50;
const PAGE_MAX: i64 = 200;
const REASON_CHARS_MAX: usize = 500;

/// Filters of the list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    status: Option<String>,
    requester: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

/// The body of both answers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerBody {
    hash: String,
    reason: Option<String>,
}

/// What somebody answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Approve,
    Reject,
}

/// `GET /admin/v1/approvals`: what waits, newest first; in one status, or of one requester, if so asked.
///
/// # Errors
/// As `docs/problems.md` lists.
pub async fn list(
    caller: Caller,
    State(state): State<HttpState>,
    QueryParams(query): QueryParams<ListQuery>,
) -> Result<Json<Value>, Problem> {
    caller.require(Action::ReadApprovals)?;
    let limit = page_limit(query.limit.as_deref(), PAGE, PAGE_MAX)?;
    let status = match query.status.as_deref() {
        None => None,
        Some(name) => {
            Some(Status::from_name(name).filter(|status| status.is_waiting()).ok_or_else(|| {
                Problem::invalid("status", "must be delayed or awaiting_approval")
            })?)
        }
    };
    if query.requester.as_ref().is_some_and(String::is_empty) {
        return Err(Problem::invalid("requester", "must be the `sub` of who asked"));
    }
    let before_seq = page_cursor(query.cursor.as_deref())?;
    let filter = WaitingFilter { status, requester: query.requester, before_seq };
    let found = approve::list(&state.app, filter, limit).await?;
    let is_full = i64::try_from(found.len()).is_ok_and(|count| count == limit);
    let cursor = found.last().filter(|_| is_full).map(|last| last.row.seq.to_string());
    let shown: Vec<Value> = found.into_iter().map(shown).collect();
    Ok(Json(json!({ "approvals": shown, "next_cursor": cursor })))
}

/// `GET /admin/v1/approvals/{id}`: one of them, also after it went on or ended.
///
/// # Errors
/// As `docs/problems.md` lists.
pub async fn read(
    caller: Caller,
    State(state): State<HttpState>,
    PathId(id): PathId<RequestId>,
) -> Result<Json<Value>, Problem> {
    caller.require(Action::ReadApprovals)?;
    Ok(Json(shown(approve::one(&state.app, id).await?)))
}

/// `POST /admin/v1/approvals/{id}/approve`: approves exactly the terms with this hash.
///
/// # Errors
/// As `docs/problems.md` lists; 409 `conflict` where something else waits by now.
pub async fn approve(
    caller: Caller,
    State(state): State<HttpState>,
    PathId(id): PathId<RequestId>,
    body: JsonBody<AnswerBody>,
) -> Result<Json<Value>, Problem> {
    answer(caller, state, id, body.value, Answer::Approve).await
}

/// `POST /admin/v1/approvals/{id}/reject`: ends it. One no is enough.
///
/// # Errors
/// As `docs/problems.md` lists; 409 `conflict` where something else waits by now.
pub async fn reject(
    caller: Caller,
    State(state): State<HttpState>,
    PathId(id): PathId<RequestId>,
    body: JsonBody<AnswerBody>,
) -> Result<Json<Value>, Problem> {
    answer(caller, state, id, body.value, Answer::Reject).await
}

async fn answer(
    caller: Caller,
    state: HttpState,
    id: RequestId,
    body: AnswerBody,
    answer: Answer,
) -> Result<Json<Value>, Problem> {
    caller.require(Action::Approve)?;
    let bytes = body.hash.strip_prefix("0x").and_then(|hex| hex::decode(hex).ok());
    let hash = bytes
        .and_then(|bytes| B256::try_from(bytes.as_slice()).ok())
        .ok_or_else(|| Problem::invalid("hash", "must be 0x and 64 hex digits"))?;
    if body.reason.as_ref().is_some_and(|reason| reason.chars().count() > REASON_CHARS_MAX) {
        return Err(Problem::invalid("reason", "is longer than 500 characters"));
    }
    let said = Instruction { who: caller.principal, reason: body.reason };
    let app = Arc::clone(&state.app);
    // A caller that hangs up must not stop half-way through.
    let done = tokio::spawn(async move {
        match answer {
            Answer::Approve => approve::approve(&app, id, hash, &said).await,
            Answer::Reject => approve::reject(&app, id, hash, &said).await,
        }
    });
    done.await.map_err(Problem::internal)??;
    Ok(Json(shown(approve::one(&state.app, id).await?)))
}

/// Everything that a person needs to decide, in full. `terms` is the very text whose SHA-256 is `hash`; what
/// stands beside it is read from it.
fn shown(view: WaitingView) -> Value {
    let WaitingView { row, wait, given, progress } = view;
    let quorums: Vec<Value> = progress
        .iter()
        .map(|(groups, progress)| {
            json!({
                "groups": groups,
                "needed": progress.needed,
                "taken": progress.taken,
                "met": progress.is_met(),
            })
        })
        .collect();
    let approvals: Vec<Value> = given
        .iter()
        .map(|given| {
            json!({
                "sub": given.who.sub,
                "iss": given.who.iss,
                "reason": given.reason,
                "at": given.at.to_string(),
                "hash": format!("{:#x}", given.hash),
                "counts": given.hash == wait.hash,
            })
        })
        .collect();
    let terms: Value = serde_json::from_str(&wait.terms).unwrap_or_default();
    let of = |name: &str| terms.get(name).cloned().unwrap_or_default();
    let is_delay = wait.quorums.is_empty();
    let due = wait.due_at.to_string();
    json!({
        "id": row.new.id.to_string(),
        "status": row.status.name(),
        "requester": { "iss": row.new.principal.iss, "sub": row.new.principal.sub },
        "hash": format!("{:#x}", wait.hash),
        "terms": wait.terms,
        "request": of("request"),
        "effects": of("effects"),
        "grants": of("grants"),
        "asked_by": of("asked_by"),
        "bundle": format!("{:#x}", wait.bundle),
        "quorums": quorums,
        "approvals": approvals,
        "asked_at": wait.asked_at.to_string(),
        "expires_at": if is_delay { Value::Null } else { json!(due) },
        "until": if is_delay { json!(due) } else { Value::Null },
        "released_at": wait.released_at.map(|at| at.to_string()),
        "transaction": show::transaction(
            &FullTransaction { row, attempts: Vec::new(), waits: None },
            true,
        ),
    })
}
