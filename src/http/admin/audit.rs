//! `/admin/v1/audit`

use crate::app::read as reading;
use crate::core::access::Action;
use crate::http::caller::Caller;
use crate::http::problem::Problem;
use crate::http::state::HttpState;
use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

/// `GET /admin/v1/audit/checkpoint`: size and RFC 6962 root of the log, and how many leaves are committed
/// and wait for their index.
///
/// # Errors
/// As `docs/problems.md` lists.
pub async fn checkpoint(
    caller: Caller,
    State(state): State<HttpState>,
) -> Result<Json<Value>, Problem> {
    caller.require(Action::ReadAudit)?;
    let (head, waiting) = reading::log_head(&state.app).await?;
    Ok(Json(json!({
        "size": head.size.to_string(),
        "root_hash": format!("0x{}", hex::encode(head.root)),
        "waiting": waiting.to_string(),
    })))
}
