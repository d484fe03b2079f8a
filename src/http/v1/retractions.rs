//! `/v1/transactions/{id}/retraction`: a caller says that the event it asked for is gone.

use crate::app::source_gone::Told;
use crate::app::{read as reading, source_gone};
use crate::core::access::Action;
use crate::core::id::RequestId;
use crate::http::body::JsonBody;
use crate::http::caller::Caller;
use crate::http::problem::Problem;
use crate::http::query::PathId;
use crate::http::refusal;
use crate::http::state::HttpState;
use crate::http::v1::{parse, show};
use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;

/// The body: the event, as the request names it. `source` of a request that has one; of a request that has none,
/// the `event_id` in its metadata.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetractionBody {
    source: Option<parse::SourceBody>,
    event_id: Option<String>,
}

impl RetractionBody {
    fn told(self) -> Result<Told, Problem> {
        match (self.source, self.event_id) {
            (Some(source), None) => Ok(Told::Source(parse::source(&source)?)),
            (None, Some(event_id)) => Ok(Told::Event(event_id)),
            (None, None) => Err(Problem::invalid("source", "or event_id is required")),
            (Some(_), Some(_)) => Err(Problem::invalid("event_id", "comes without source")),
        }
    }
}

/// `POST /v1/transactions/{id}/retraction`: a request without a nonce is cancelled, and one with a nonce is
/// flagged; where it names a source, only if the chain says so too. Said again, it answers the same.
///
/// # Errors
/// As `docs/problems.md` lists; 404 of what is not the caller's; 400 with `source` or `event_id` where it is
/// another event's request; 409 `conflict` where the event stands, or the nodes have not come so far: say it again later.
pub async fn create(
    caller: Caller,
    State(state): State<HttpState>,
    PathId(id): PathId<RequestId>,
    body: JsonBody<RetractionBody>,
) -> Result<Json<Value>, Problem> {
    caller.require(Action::Request)?;
    let told = body.value.told()?;
    let (app, who) = (Arc::clone(&state.app), caller.principal.clone());
    // A caller that hangs up must not stop half-way through.
    let done = tokio::spawn(async move { source_gone::retract(&app, id, &told, &who).await }).await;
    done.map_err(Problem::internal)?.map_err(|error| refusal::told(&caller, error))?;
    let found = reading::transaction(&state.app, id, Some(caller.principal.clone())).await?;
    Ok(Json(show::story(&state.app, &found, caller.may(Action::ReadReasons)).await))
}
