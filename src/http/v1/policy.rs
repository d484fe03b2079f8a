//! `/v1/policy/evaluate`

use crate::app::evaluate::{EvaluateCommand, Evaluation, evaluate};
use crate::app::record;
use crate::core::access::Action;
use crate::http::body::JsonBody;
use crate::http::caller::Caller;
use crate::http::json;
use crate::http::problem::Problem;
use crate::http::state::HttpState;
use crate::http::v1::{signatures, transactions};
use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};

/// What only the body of `POST /v1/signatures` has.
const SIGNATURES_ONLY: [&str; 4] = ["transaction", "message", "typed_data", "authorization"];

/// `POST /v1/policy/evaluate`: what would be decided about this request now. Its body is that of
/// `POST /v1/transactions` or of `POST /v1/signatures`, and is read by their own code. Leaves no trace.
///
/// # Errors
/// As `docs/problems.md` lists; a denial is none.
pub async fn create(
    caller: Caller,
    State(state): State<HttpState>,
    body: JsonBody<Map<String, Value>>,
) -> Result<Json<Value>, Problem> {
    // Nobody asks in the name of somebody else: what is judged is the caller's own request.
    caller.require(Action::Request)?;
    let principal = caller.principal.clone();
    let command = if SIGNATURES_ONLY.iter().any(|field| body.value.contains_key(*field)) {
        let body = json::from_slice(&body.bytes)?;
        EvaluateCommand::Signature(signatures::command(&state.app, principal, None, body)?)
    } else {
        let parsed = json::from_slice(&body.bytes)?;
        let command = transactions::command(principal, String::new(), parsed, &body.sha256)?;
        EvaluateCommand::Transaction(Box::new(command))
    };
    Ok(Json(shown(&evaluate(&state.app, command).await?)?))
}

fn shown(found: &Evaluation) -> Result<Value, Problem> {
    let limits: Vec<Value> = found
        .limits
        .iter()
        .map(|(charge, found)| {
            json!({
                "label": charge.label,
                "grant": charge.grant,
                "used": found.used.to_string(),
                "asked": found.asked.to_string(),
                "max": charge.max.to_string(),
                "span": charge.period.text(),
                "has_room": found.fits,
            })
        })
        .collect();
    let effects = serde_json::to_value(record::effects(&found.verdict.effects));
    Ok(json!({
        "outcome": found.outcome.name(),
        "bundle": format!("{:#x}", found.verdict.bundle),
        "grants": found.verdict.grants,
        "effects": effects.map_err(Problem::internal)?,
        "reasons": found.reasons,
        "limits": limits,
        "address": format!("{:#x}", found.address),
    }))
}
