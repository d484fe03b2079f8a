//! `/v1/limits`

use crate::app::read_limits::{LimitView, limits};
use crate::core::access::Action;
use crate::http::caller::Caller;
use crate::http::problem::Problem;
use crate::http::query::QueryParams;
use crate::http::state::HttpState;
use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};

/// It takes no parameters.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoQuery {}

/// `GET /v1/limits`: to a client the windows of grants that name it, with amounts where nobody else spends from
/// them; to operators and auditors all.
///
/// # Errors
/// As `docs/problems.md` lists.
pub async fn list(
    caller: Caller,
    State(state): State<HttpState>,
    QueryParams(NoQuery {}): QueryParams<NoQuery>,
) -> Result<Json<Value>, Problem> {
    caller.require(Action::ReadLimits)?;
    let only = if caller.may(Action::ReadAll) { None } else { Some(&caller.principal) };
    let (at, found) = limits(&state.app, only).await?;
    let sees_all = caller.may(Action::ReadReasons);
    let shown: Vec<Value> = found.iter().map(|limit| shown(limit, sees_all)).collect();
    Ok(Json(json!({ "limits": shown, "at": at.to_string() })))
}

/// A counter of an older bundle has no window: what it holds goes on, and no longer limits anything.
fn shown(limit: &LimitView, sees_all: bool) -> Value {
    let window = limit.window.as_ref();
    let mut shown = json!({
        "label": limit.label,
        "grant": limit.grant,
        "counts": window.map(|window| window.counts),
        "unit": window.map(|window| window.unit.as_str()),
        "scope": window.map(|window| window.scope),
        "instance": window.map(|window| window.instance.as_str()),
        "span": limit.period.text(),
    });
    // How much a window holds that others spend from too would tell a stolen token how far it can go.
    if let (true, Value::Object(fields)) = (sees_all || limit.is_own(), &mut shown) {
        let amounts = [
            ("held", json!(limit.held.to_string())),
            ("spent", json!(limit.spent.to_string())),
            ("max", json!(window.map(|window| window.max.to_string()))),
            ("free", json!(limit.free().map(|free| free.to_string()))),
        ];
        fields.extend(amounts.map(|(name, value)| (name.to_owned(), value)));
    }
    shown
}
