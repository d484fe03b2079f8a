//! `/admin/v1/keys`

use crate::app::create_key::{CreateKey, create as create_key};
use crate::core::access::Action;
use crate::core::id::{GroupName, HsmName};
use crate::core::key::NonceMode;
use crate::http::body::JsonBody;
use crate::http::caller::Caller;
use crate::http::key_list::is_wrapped;
use crate::http::problem::Problem;
use crate::http::state::HttpState;
use crate::http::v1::show;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;

/// The body of `POST /admin/v1/keys`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateBody {
    label: String,
    group: Option<String>,
    mode: Option<String>,
    hsm: Option<String>,
    custody: Option<String>,
}

/// `POST /admin/v1/keys`: makes a key pair inside the HSM. With `"custody": "wrapped"` its private half is kept
/// wrapped in the database.
///
/// # Errors
/// As `docs/problems.md` lists.
pub async fn create(
    caller: Caller,
    State(state): State<HttpState>,
    body: JsonBody<CreateBody>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    caller.require(Action::CreateKey)?;
    let mode = match body.value.mode.as_deref() {
        None => NonceMode::Managed,
        Some(name) => NonceMode::from_name(name)
            .ok_or_else(|| Problem::invalid("mode", "must be managed or external"))?,
    };
    let command = CreateKey {
        principal: caller.principal.clone(),
        label: body.value.label,
        group: body.value.group.map(GroupName::new),
        mode,
        hsm: body.value.hsm.map(HsmName::new).unwrap_or_default(),
        is_wrapped: body.value.custody.as_deref().map_or(Ok(false), is_wrapped)?,
    };
    let app = Arc::clone(&state.app);
    let key = tokio::spawn(async move { create_key(&app, command).await })
        .await
        .map_err(Problem::internal)??;
    Ok((StatusCode::CREATED, Json(show::key(&key))))
}
