//! `/v1/policy/evaluate`

use crate::app::evaluate::{EvaluateCommand, Evaluation, evaluate};
use crate::app::read_limits::own_windows;
use crate::app::{App, record};
use crate::core::access::Action;
use crate::core::policy::Charge;
use crate::core::time::duration_text;
use crate::http::body::JsonBody;
use crate::http::caller::Caller;
use crate::http::json;
use crate::http::problem::Problem;
use crate::http::refusal;
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
    let found = evaluate(&state.app, command).await?;
    Ok(Json(shown(&state.app, &caller, &found)?))
}

/// Of windows that others spend from too, a caller who might probe for them is told nothing.
fn shown(app: &App, caller: &Caller, found: &Evaluation) -> Result<Value, Problem> {
    let sees_all = caller.may(Action::ReadReasons);
    let own = own_windows(app, &caller.principal);
    let is_told = |charge: &Charge| sees_all || own.contains(&charge.limit);
    let limits: Vec<Value> = found
        .limits
        .iter()
        .filter(|(charge, _)| is_told(charge))
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
    let approval = found.verdict.approval.as_ref().map(|need| {
        let people = need.quorums.iter().map(|quorum| quorum.values().map(|n| u64::from(*n)).sum());
        let mut shown = json!({ "needed": people.max().unwrap_or(0_u64) });
        if let (true, Value::Object(fields)) = (sees_all, &mut shown) {
            fields.insert("quorums".to_owned(), json!(need.quorums));
            fields.insert("grants".to_owned(), json!(need.grants));
        }
        shown
    });
    let delay = found.verdict.delay.as_ref();
    let delay = delay.map(|delay| json!({ "for": duration_text(delay.ms) }));
    let effects = serde_json::to_value(record::effects(&found.verdict.effects));
    let mut shown = json!({
        "outcome": found.outcome.name(),
        "bundle": format!("{:#x}", found.verdict.bundle),
        "grants": found.verdict.grants,
        "effects": effects.map_err(Problem::internal)?,
        "reasons": refusal::reasons(caller, &found.reasons),
        "limits": limits,
        "address": format!("{:#x}", found.address),
        "approval": approval,
        "delay": delay,
    });
    if let (true, Value::Object(fields)) = (sees_all, &mut shown) {
        let shadows = serde_json::to_value(record::shadows(&found.verdict));
        fields.insert("shadows".to_owned(), shadows.map_err(Problem::internal)?);
        let misses = serde_json::to_value(found.misses());
        fields.insert("misses".to_owned(), misses.map_err(Problem::internal)?);
    }
    Ok(shown)
}
