//! Lists of keys, by pages: the same on both listeners.

use crate::app::read as reading;
use crate::core::access::Action;
use crate::core::id::{GroupName, HsmName};
use crate::core::key::KeyState;
use crate::http::caller::Caller;
use crate::http::problem::Problem;
use crate::http::query::{QueryParams, page_cursor, page_limit};
use crate::http::state::HttpState;
use crate::http::v1::show;
use crate::ports::store::KeyFilter;
use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};

const PAGE: i64 = 200;
const PAGE_MAX: i64 = 1_000;

/// Filters of the list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    group: Option<String>,
    hsm: Option<String>,
    custody: Option<String>,
    state: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

/// Whether a custody is that of wrapped keys.
///
/// # Errors
/// When it is none.
pub fn is_wrapped(name: &str) -> Result<bool, Problem> {
    match name {
        "token" => Ok(false),
        "wrapped" => Ok(true),
        _ => Err(Problem::invalid("custody", "must be token or wrapped")),
    }
}

/// `GET /v1/keys`, `GET /admin/v1/keys`: public facts of keys, oldest first. `next_cursor` is there while there
/// are more.
///
/// # Errors
/// As `docs/problems.md` lists.
pub async fn list(
    caller: Caller,
    State(state): State<HttpState>,
    QueryParams(query): QueryParams<ListQuery>,
) -> Result<Json<Value>, Problem> {
    caller.require(Action::ReadKeys)?;
    let limit = page_limit(query.limit.as_deref(), PAGE, PAGE_MAX)?;
    let after = page_cursor(query.cursor.as_deref())?;
    let state_asked = match query.state.as_deref() {
        None => None,
        Some(name) => Some(
            KeyState::from_name(name).ok_or_else(|| Problem::invalid("state", "is not a state"))?,
        ),
    };
    let filter = KeyFilter {
        after,
        group: query.group.map(GroupName::new),
        hsm: query.hsm.map(HsmName::new),
        state: state_asked,
        is_wrapped: query.custody.as_deref().map(is_wrapped).transpose()?,
        limit,
    };
    let keys = reading::keys(&state.app, filter).await?;
    let is_full = i64::try_from(keys.len()).is_ok_and(|count| count == limit);
    let cursor = keys.last().filter(|_| is_full).map(|last| last.id.to_string());
    let shown: Vec<Value> = keys.iter().map(show::key).collect();
    Ok(Json(json!({ "keys": shown, "next_cursor": cursor })))
}
