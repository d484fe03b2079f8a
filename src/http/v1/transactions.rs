//! `/v1/transactions`

use crate::app::accept::{AcceptCommand, Accepted, accept};
use crate::app::read::FullTransaction;
use crate::app::{App, AppError, lane, read as reading};
use crate::core::access::Action;
use crate::core::id::{ChainName, RequestId};
use crate::core::principal::Principal;
use crate::core::time::duration_ms;
use crate::core::tx::state::Status;
use crate::http::body::JsonBody;
use crate::http::caller::Caller;
use crate::http::idempotency::IdempotencyKey;
use crate::http::problem::Problem;
use crate::http::query::{PathId, QueryParams, page_cursor, page_limit};
use crate::http::refusal;
use crate::http::state::HttpState;
use crate::http::v1::{parse, show};
use crate::ports::store::Filter;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;

/// How long `POST` waits for the first attempt unless told otherwise.
const WAIT_MS: i64 = 1_000;
/// No request waits longer.
const WAIT_MS_MAX: i64 = 55_000;
const METADATA_BYTES_MAX: usize = 8 * 1024;
const PAGE: i64 = 50;
const PAGE_MAX: i64 = 200;

/// The body of `POST /v1/transactions`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateBody {
    chain: String,
    signer: String,
    #[serde(rename = "type")]
    tx_type: Option<String>,
    to: Option<String>,
    value: Option<String>,
    data: Option<String>,
    gas: Option<String>,
    max_fee_per_gas: Option<String>,
    max_priority_fee_per_gas: Option<String>,
    #[serde(default)]
    access_list: Vec<parse::AccessBody>,
    not_after: Option<String>,
    source: Option<parse::SourceBody>,
    #[serde(default)]
    metadata: Map<String, Value>,
}

/// `?wait=`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateQuery {
    wait: Option<String>,
}

/// `?wait=30s&for=finalized`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadQuery {
    wait: Option<String>,
    #[serde(rename = "for")]
    until: Option<String>,
}

/// Filters of the list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    status: Option<String>,
    chain: Option<String>,
    signer: Option<String>,
    created_after: Option<String>,
    created_before: Option<String>,
    idempotency_key: Option<String>,
    transaction_hash: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

/// The use case's command of a body.
///
/// # Errors
/// When a field is not as it must be.
pub(super) fn command(
    principal: Principal,
    key: String,
    it: CreateBody,
    sha256: &[u8; 32],
) -> Result<AcceptCommand, Problem> {
    let metadata_json = Value::Object(it.metadata).to_string();
    if metadata_json.len() > METADATA_BYTES_MAX {
        return Err(Problem::invalid("metadata", "is longer than 8 KiB"));
    }
    if it.chain.len() > 64 || it.signer.len() > 128 {
        return Err(Problem::invalid("signer", "chain or signer is too long"));
    }
    let optional = |field: &'static str, text: &Option<String>| {
        text.as_deref().map(|text| parse::price(field, text)).transpose()
    };
    Ok(AcceptCommand {
        principal,
        key,
        body_hash: parse::body_hash("transactions", sha256),
        chain: it.chain,
        signer: it.signer,
        tx_type: it.tx_type.as_deref().map(|text| parse::tx_type("type", text)).transpose()?,
        to: it.to.as_deref().map(|text| parse::address("to", text)).transpose()?,
        value: it.value.as_deref().map_or(Ok(Default::default()), |v| parse::amount("value", v))?,
        data: it.data.as_deref().map_or(Ok(Default::default()), |d| parse::bytes("data", d))?,
        gas: it.gas.as_deref().map(|text| parse::gas("gas", text)).transpose()?,
        max_fee: optional("max_fee_per_gas", &it.max_fee_per_gas)?,
        max_priority_fee: optional("max_priority_fee_per_gas", &it.max_priority_fee_per_gas)?,
        access_list: parse::access_list(&it.access_list)?,
        not_after: it.not_after.as_deref().map(|t| parse::time("not_after", t)).transpose()?,
        source: it.source.as_ref().map(parse::source).transpose()?,
        metadata_json,
    })
}

fn wait_ms(wait: Option<&str>, default: i64) -> Result<i64, Problem> {
    match wait {
        None => Ok(default),
        Some("0" | "0s") => Ok(0),
        Some(text) => duration_ms(text)
            .filter(|ms| *ms <= WAIT_MS_MAX)
            .ok_or_else(|| Problem::invalid("wait", "must be a duration such as 30s, at most 55s")),
    }
}

/// `POST /v1/transactions`
///
/// # Errors
/// As `docs/problems.md` lists.
pub async fn create(
    caller: Caller,
    State(state): State<HttpState>,
    QueryParams(query): QueryParams<CreateQuery>,
    key: IdempotencyKey,
    body: JsonBody<CreateBody>,
) -> Result<Response, Problem> {
    caller.require(Action::Request)?;
    let wait = wait_ms(query.wait.as_deref(), WAIT_MS)?;
    let JsonBody { value, sha256, .. } = body;
    let command = command(caller.principal.clone(), key.as_str().to_owned(), value, &sha256)?;
    let app = Arc::clone(&state.app);
    // A caller that hangs up must not stop half-way through.
    let accepted = tokio::spawn(async move { accept(&app, command).await })
        .await
        .map_err(Problem::internal)?
        .map_err(|error| refusal::told(&caller, error))?;
    let (id, mut code) = match accepted {
        Accepted::New(id) => (id, StatusCode::CREATED),
        Accepted::Before(id) => (id, StatusCode::OK),
    };
    let location = format!("/v1/transactions/{id}");
    let found = match reading::transaction(&state.app, id, None).await {
        Ok(found) => found,
        // Accepted is accepted: from here on nothing but the resource is told, however little is known.
        Err(error) if code == StatusCode::CREATED => {
            tracing::warn!(request = %id, %error, "accepted, and could not be read back");
            let known = json!({ "id": id.to_string(), "status": Status::Queued.name() });
            return Ok((code, [(LOCATION, location)], Json(known)).into_response());
        }
        Err(error) => return Err(error.into()),
    };
    start_lane(&state.app, &found);
    let found = wait_until(&state.app, found, wait, |full| {
        full.row.status.is_end()
            || full.row.status.is_waiting()
            || full.attempts.iter().any(|attempt| attempt.hash.is_some())
    })
    .await;
    if found.row.status.is_waiting() && code == StatusCode::CREATED {
        // It was accepted, and nothing is done until time has passed or people have approved it.
        code = StatusCode::ACCEPTED;
    }
    let shown = show::story(&state.app, &found, caller.may(Action::ReadReasons)).await;
    Ok((code, [(LOCATION, location)], Json(shown)).into_response())
}

/// Works the transaction's lane in a task of its own, whatever becomes of the caller.
fn start_lane(app: &Arc<App>, full: &FullTransaction) {
    let Some(chain) = app.chain_of(full.row.new.intent.chain.id) else {
        return;
    };
    if full.row.status != Status::Queued {
        return;
    }
    let (app, chain, address) = (Arc::clone(app), Arc::clone(chain), full.row.new.address);
    tokio::spawn(async move {
        if let Err(error) = lane::work(&app, &chain, address).await {
            tracing::warn!(%address, %error, "the lane will be worked again");
        }
    });
}

/// Reads the transaction again after each change in this process, and now and then, until it is so or the
/// time is over.
async fn wait_until(
    app: &App,
    mut found: FullTransaction,
    wait_ms: i64,
    done: impl Fn(&FullTransaction) -> bool,
) -> FullTransaction {
    let id = found.row.new.id;
    let mut changes = app.changes.subscribe();
    let limit = Duration::from_millis(u64::try_from(wait_ms).unwrap_or(0));
    let waiting = async {
        while !done(&found) {
            // Another server process may be the one that works on it: look now and then all the same.
            let changed = App::change_of(&mut changes, id);
            let _ = tokio::time::timeout(Duration::from_millis(500), changed).await;
            if let Ok(newer) = reading::transaction(app, id, None).await {
                found = newer;
            }
        }
    };
    let _ = tokio::time::timeout(limit, waiting).await;
    found
}

/// Whose transactions a caller may read: all of them, or its own.
fn readable(caller: &Caller) -> Result<Option<Principal>, Problem> {
    if caller.may(Action::ReadAll) {
        return Ok(None);
    }
    caller.require(Action::ReadOwn)?;
    Ok(Some(caller.principal.clone()))
}

/// `GET /v1/transactions/{id}`
///
/// # Errors
/// As `docs/problems.md` lists.
pub async fn read(
    caller: Caller,
    State(state): State<HttpState>,
    PathId(id): PathId<RequestId>,
    QueryParams(query): QueryParams<ReadQuery>,
) -> Result<Json<Value>, Problem> {
    let only = readable(&caller)?;
    let wait = wait_ms(query.wait.as_deref(), 0)?;
    let until = match query.until.as_deref() {
        None => None,
        Some(name) => Some(
            Status::from_name(name).ok_or_else(|| Problem::invalid("for", "is not a status"))?,
        ),
    };
    let found = reading::transaction(&state.app, id, only).await?;
    let found = wait_until(&state.app, found, wait, |full| {
        full.row.status.is_end() || until == Some(full.row.status)
    })
    .await;
    Ok(Json(show::story(&state.app, &found, caller.may(Action::ReadReasons)).await))
}

/// The one transaction that the caller's idempotency key is bound to, or of which an attempt has this hash: a list
/// of one, or of none.
async fn one(
    caller: &Caller,
    state: &HttpState,
    query: &ListQuery,
) -> Result<Json<Value>, Problem> {
    let only = readable(caller)?;
    let found = match (&query.idempotency_key, &query.transaction_hash) {
        (Some(key), None) => reading::bound_to(&state.app, &caller.principal, key).await?,
        (None, Some(hash)) => {
            let hash = parse::hash("transaction_hash", hash)?;
            reading::request_of(&state.app, hash).await?
        }
        _ => return Err(Problem::invalid("transaction_hash", "comes without idempotency_key")),
    };
    let found = match found {
        Some(id) => match reading::transaction(&state.app, id, only).await {
            Ok(found) => Some(show::transaction(&found, caller.may(Action::ReadReasons))),
            Err(AppError::NotFound) => None,
            Err(error) => return Err(error.into()),
        },
        None => None,
    };
    Ok(Json(json!({ "transactions": Vec::from_iter(found), "next_cursor": Value::Null })))
}

/// `GET /v1/transactions`
///
/// # Errors
/// As `docs/problems.md` lists.
pub async fn list(
    caller: Caller,
    State(state): State<HttpState>,
    QueryParams(query): QueryParams<ListQuery>,
) -> Result<Json<Value>, Problem> {
    if query.idempotency_key.is_some() || query.transaction_hash.is_some() {
        return one(&caller, &state, &query).await;
    }
    let limit = page_limit(query.limit.as_deref(), PAGE, PAGE_MAX)?;
    let status = match query.status.as_deref() {
        None => None,
        Some(name) => Some(
            Status::from_name(name).ok_or_else(|| Problem::invalid("status", "is not a status"))?,
        ),
    };
    let before_seq = page_cursor(query.cursor.as_deref())?;
    let after = query.created_after.as_deref().map(|t| parse::time("created_after", t));
    let before = query.created_before.as_deref().map(|t| parse::time("created_before", t));
    let filter = Filter {
        principal: readable(&caller)?,
        status,
        chain: query.chain.map(ChainName::new),
        signer: query.signer,
        created_from: after.transpose()?,
        created_before: before.transpose()?,
        before_seq,
        limit,
    };
    let found = reading::transactions(&state.app, filter).await?;
    let full = i64::try_from(found.len()).is_ok_and(|count| count == limit);
    let cursor = found.last().filter(|_| full).map(|last| last.row.seq.to_string());
    let sees_all = caller.may(Action::ReadReasons);
    let shown: Vec<Value> = found.iter().map(|full| show::transaction(full, sees_all)).collect();
    Ok(Json(json!({ "transactions": shown, "next_cursor": cursor })))
}
