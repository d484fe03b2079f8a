//! `/admin/v1/keys`

use crate::app::create_key::{CreateKey, create as create_key};
use crate::app::import_key::{ImportKey, import as import_key};
use crate::core::access::Action;
use crate::core::id::{GroupName, HsmName};
use crate::core::key::{CkaId, NonceMode};
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

/// The longest `CKA_ID` that is taken, in bytes.
const CKA_ID_BYTES_MAX: usize = 255;

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
    let mode = mode_named(body.value.mode.as_deref())?;
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

/// The body of `POST /admin/v1/keys/import`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportBody {
    /// Hex, with or without `0x`.
    cka_id: String,
    label: String,
    group: Option<String>,
    mode: Option<String>,
    hsm: Option<String>,
}

/// `POST /admin/v1/keys/import`: takes over a key pair that the HSM has already.
///
/// # Errors
/// As `docs/problems.md` lists.
pub async fn import(
    caller: Caller,
    State(state): State<HttpState>,
    body: JsonBody<ImportBody>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    caller.require(Action::CreateKey)?;
    let ImportBody { cka_id, label, group, mode, hsm } = body.value;
    let id = hex::decode(cka_id.strip_prefix("0x").unwrap_or(&cka_id));
    let id = id.ok().filter(|id| (1..=CKA_ID_BYTES_MAX).contains(&id.len()));
    let id = id.ok_or_else(|| Problem::invalid("cka_id", "must be 1 to 255 bytes in hex"))?;
    let command = ImportKey {
        principal: caller.principal.clone(),
        cka_id: CkaId::new(id),
        label,
        group: group.map(GroupName::new),
        mode: mode_named(mode.as_deref())?,
        hsm: hsm.map(HsmName::new).unwrap_or_default(),
    };
    let app = Arc::clone(&state.app);
    let key = tokio::spawn(async move { import_key(&app, command).await })
        .await
        .map_err(Problem::internal)??;
    Ok((StatusCode::CREATED, Json(show::key(&key))))
}

fn mode_named(name: Option<&str>) -> Result<NonceMode, Problem> {
    match name {
        None => Ok(NonceMode::Managed),
        Some(name) => NonceMode::from_name(name)
            .ok_or_else(|| Problem::invalid("mode", "must be managed or external")),
    }
}
