//! Probes. They take no token and tell nothing but yes or no.

use crate::app::suspension;
use crate::http::problem::{Cause, Problem};
use crate::http::state::HttpState;
use crate::ports::signer::SignerError;
use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

/// `GET /healthz`: the process answers.
pub async fn healthz() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// `GET /readyz`: the database and at least one HSM answer, and the server does not wait for an operator. A full
/// signing queue is busy, not broken.
///
/// # Errors
/// 503 `store-unavailable`, `reconcile-required` or `hsm-unavailable`.
pub async fn readyz(State(state): State<HttpState>) -> Result<Json<Value>, Problem> {
    let ping = state.app.store.ping().await;
    ping.map_err(|error| Problem::StoreUnavailable(Some(Cause::new(error))))?;
    suspension::refuse(&state.app).await?;
    match state.app.signer.health().await {
        Ok(_) | Err(SignerError::Overloaded) => Ok(Json(json!({ "status": "ready" }))),
        Err(error) => Err(Problem::HsmUnavailable(Some(Cause::new(error)))),
    }
}
