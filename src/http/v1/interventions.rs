//! `/v1/transactions/{id}/cancel` and `/speed-up`: an operator steps in.

use crate::app::record::Instruction;
use crate::app::{App, AppError, cancel, read as reading, speed_up};
use crate::core::access::Action;
use crate::core::id::RequestId;
use crate::http::body::JsonBody;
use crate::http::caller::Caller;
use crate::http::problem::Problem;
use crate::http::query::PathId;
use crate::http::refusal;
use crate::http::state::HttpState;
use crate::http::v1::show;
use axum::Json;
use axum::extract::State;
use futures::future::BoxFuture;
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;

const REASON_CHARS_MAX: usize = 500;

/// The body of both; it may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterventionBody {
    reason: Option<String>,
}

/// `POST /v1/transactions/{id}/cancel`: ends what has no nonce; sends a no-op of the same nonce against
/// what has one. Asked again, it answers the same.
///
/// # Errors
/// As `docs/problems.md` lists; 409 `conflict` where it is mined or over.
pub async fn cancel(
    caller: Caller,
    State(state): State<HttpState>,
    PathId(id): PathId<RequestId>,
    body: Option<JsonBody<InterventionBody>>,
) -> Result<Json<Value>, Problem> {
    intervene(caller, state, id, body, move |app, said| Box::pin(cancel::cancel(app, id, said)))
        .await
}

/// `POST /v1/transactions/{id}/speed-up`: signs and sends another version at the next higher fees.
///
/// # Errors
/// As `docs/problems.md` lists; 409 `conflict` where it is mined, over, or at its cap; 403 `policy-denied`
/// where a newer bundle would not sign it.
pub async fn speed_up(
    caller: Caller,
    State(state): State<HttpState>,
    PathId(id): PathId<RequestId>,
    body: Option<JsonBody<InterventionBody>>,
) -> Result<Json<Value>, Problem> {
    intervene(caller, state, id, body, move |app, said| Box::pin(speed_up::speed_up(app, id, said)))
        .await
}

async fn intervene<F>(
    caller: Caller,
    state: HttpState,
    id: RequestId,
    body: Option<JsonBody<InterventionBody>>,
    work: F,
) -> Result<Json<Value>, Problem>
where
    F: for<'a> FnOnce(&'a App, &'a Instruction) -> BoxFuture<'a, Result<(), AppError>>
        + Send
        + 'static,
{
    caller.require(Action::Intervene)?;
    let reason = body.and_then(|body| body.value.reason);
    if reason.as_ref().is_some_and(|reason| reason.chars().count() > REASON_CHARS_MAX) {
        return Err(Problem::invalid("reason", "is longer than 500 characters"));
    }
    let sees_all = caller.may(Action::ReadReasons);
    let said = Instruction { who: caller.principal.clone(), reason };
    let app = Arc::clone(&state.app);
    // A caller that hangs up must not stop half-way through.
    let done = tokio::spawn(async move { work(&app, &said).await });
    let done = done.await.map_err(Problem::internal)?;
    done.map_err(|error| refusal::told(&caller, error))?;
    let found = reading::transaction(&state.app, id, None).await?;
    Ok(Json(show::story(&state.app, &found, sees_all).await))
}
