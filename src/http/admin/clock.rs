//! `/admin/v1/clock`

use crate::app::clock_watch;
use crate::app::record::Instruction;
use crate::core::access::Action;
use crate::http::body::JsonBody;
use crate::http::caller::Caller;
use crate::http::problem::Problem;
use crate::http::state::HttpState;
use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};

const REASON_CHARS_MAX: usize = 500;

/// The body.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfirmBody {
    reason: String,
}

/// `POST /admin/v1/clock/confirm`: the server's clock is right, and windows go by it again. Recorded.
///
/// # Errors
/// As `docs/problems.md` lists.
pub async fn confirm(
    caller: Caller,
    State(state): State<HttpState>,
    body: JsonBody<ConfirmBody>,
) -> Result<Json<Value>, Problem> {
    caller.require(Action::Intervene)?;
    let reason = body.value.reason;
    let length = reason.trim().chars().count();
    if length == 0 || length > REASON_CHARS_MAX {
        return Err(Problem::invalid("reason", "must have 1 to 500 characters"));
    }
    let said = Instruction { who: caller.principal, reason: Some(reason) };
    let at = clock_watch::confirm(&state.app, &said).await?;
    Ok(Json(json!({ "confirmed_at": at.to_string() })))
}
