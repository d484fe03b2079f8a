//! `/admin/v1/policies`: bundles are proposed, compared, replayed and put in force.

use crate::app::policies::{self, Activated, Files, Listing, Shown, replay};
use crate::core::access::Action;
use crate::core::policy::change::Standing;
use crate::core::policy::diff::Diff;
use crate::core::time::Timestamp;
use crate::http::body::JsonBody;
use crate::http::caller::Caller;
use crate::http::problem::Problem;
use crate::http::query::PathId;
use crate::http::state::HttpState;
use crate::ports::store::{Activation, BundleRow};
use alloy::primitives::B256;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// The body of `POST /admin/v1/policies`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProposeBody {
    files: Files,
}

/// The body of `POST /admin/v1/policies/{hash}/activate` and of `…/reject`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActivateBody {
    reason: String,
}

/// The body of `POST /admin/v1/policies/{hash}/replay`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplayBody {
    from: Option<String>,
    most: Option<u64>,
}

/// `POST /admin/v1/policies`: proposes a bundle. Nothing is decided by it before it is put in force.
///
/// # Errors
/// As `docs/problems.md` lists.
pub async fn propose(
    caller: Caller,
    State(state): State<HttpState>,
    body: JsonBody<ProposeBody>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    caller.require(Action::ChangePolicy)?;
    let (app, files) = (Arc::clone(&state.app), body.value.files);
    let who = caller.principal.clone();
    let hash = tokio::spawn(async move { policies::propose(&app, who, files).await })
        .await
        .map_err(Problem::internal)??;
    Ok((StatusCode::CREATED, Json(whole(&state, hash).await?)))
}

/// `GET /admin/v1/policies`: all bundles, and what is in force.
///
/// # Errors
/// As `docs/problems.md` lists.
pub async fn list(caller: Caller, State(state): State<HttpState>) -> Result<Json<Value>, Problem> {
    caller.require(Action::ReadPolicy)?;
    let Listing { active, bundles, activations } = policies::list(&state.app).await?;
    let in_force = active.as_ref().map(|active| active.bundle);
    let bundles: Vec<Value> =
        bundles.iter().map(|row| Value::Object(head(row, in_force == Some(row.hash)))).collect();
    Ok(Json(json!({
        "active": active.as_ref().map(activation),
        "bundles": bundles,
        "activations": activations.iter().map(activation).collect::<Vec<_>>(),
    })))
}

/// `GET /admin/v1/policies/{hash}`: one bundle with its files, and what keeps it from being in force.
///
/// # Errors
/// As `docs/problems.md` lists.
pub async fn read(
    caller: Caller,
    State(state): State<HttpState>,
    PathId(hash): PathId<B256>,
) -> Result<Json<Value>, Problem> {
    caller.require(Action::ReadPolicy)?;
    Ok(Json(whole(&state, hash).await?))
}

/// `GET /admin/v1/policies/{hash}/diff`: what it newly permits and refuses, against the bundle in force.
///
/// # Errors
/// As `docs/problems.md` lists.
pub async fn diff(
    caller: Caller,
    State(state): State<HttpState>,
    PathId(hash): PathId<B256>,
) -> Result<Json<Value>, Problem> {
    caller.require(Action::ReadPolicy)?;
    let (found, in_force) = policies::diff_of(&state.app, hash).await?;
    let mut shown = changes(&found);
    shown.insert("from".to_owned(), hex(in_force).into());
    shown.insert("to".to_owned(), hex(hash).into());
    Ok(Json(Value::Object(shown)))
}

/// `POST /admin/v1/policies/{hash}/activate`: says that the bundle may be put in force. 200 once it is, 202
/// while it waits for others or for its delay.
///
/// # Errors
/// As `docs/problems.md` lists.
pub async fn activate(
    caller: Caller,
    State(state): State<HttpState>,
    PathId(hash): PathId<B256>,
    body: JsonBody<ActivateBody>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    caller.require(Action::ChangePolicy)?;
    let (app, who) = (Arc::clone(&state.app), caller.principal.clone());
    let reason = body.value.reason;
    let done = tokio::spawn(async move { policies::activate(&app, hash, who, reason).await })
        .await
        .map_err(Problem::internal)??;
    let Activated { is_active, standing, diff } = done;
    let mut shown = changes(&diff);
    shown.insert("hash".to_owned(), hex(hash).into());
    shown.insert("active".to_owned(), is_active.into());
    waits(&mut shown, Some(&standing).filter(|_| !is_active));
    let status = if is_active { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(Value::Object(shown))))
}

/// `POST /admin/v1/policies/{hash}/reject`: says that the bundle must not be put in force. It is not any more,
/// whoever has said that it may be.
///
/// # Errors
/// As `docs/problems.md` lists.
pub async fn reject(
    caller: Caller,
    State(state): State<HttpState>,
    PathId(hash): PathId<B256>,
    body: JsonBody<ActivateBody>,
) -> Result<Json<Value>, Problem> {
    caller.require(Action::ChangePolicy)?;
    let (app, who) = (Arc::clone(&state.app), caller.principal.clone());
    let reason = body.value.reason;
    tokio::spawn(async move { policies::reject(&app, hash, who, reason).await })
        .await
        .map_err(Problem::internal)??;
    Ok(Json(whole(&state, hash).await?))
}

/// `POST /admin/v1/policies/{hash}/replay`: judges the newest recorded decisions by this bundle and tells what
/// would come out differently. Changes nothing.
///
/// # Errors
/// As `docs/problems.md` lists.
pub async fn replayed(
    caller: Caller,
    State(state): State<HttpState>,
    PathId(hash): PathId<B256>,
    body: Option<JsonBody<ReplayBody>>,
) -> Result<Json<Value>, Problem> {
    caller.require(Action::ReadPolicy)?;
    let (from, most) = body.map_or((None, None), |body| (body.value.from, body.value.most));
    let since = match from {
        None => None,
        Some(text) => Some(
            Timestamp::parse_rfc3339(&text)
                .ok_or_else(|| Problem::invalid("from", "must be a time as in RFC 3339"))?,
        ),
    };
    let most = most.unwrap_or(replay::DECISIONS_MAX);
    if most == 0 || most > replay::DECISIONS_MAX {
        let problem = format!("must be 1 to {}", replay::DECISIONS_MAX);
        return Err(Problem::invalid("most", problem));
    }
    let found = replay::newest(&state.app, hash, since, most).await?;
    Ok(Json(found.json(hash)))
}

async fn whole(state: &HttpState, hash: B256) -> Result<Value, Problem> {
    let Shown { row, bundle, is_active, voices, standing, rejection } =
        policies::read(&state.app, hash).await?;
    let mut shown = head(&row, is_active);
    let files: Value = serde_json::from_str(&row.files_json).map_err(Problem::internal)?;
    shown.insert("files".to_owned(), files);
    let said: Vec<Value> = voices
        .iter()
        .map(|voice| json!({ "sub": voice.sub, "at": voice.at.to_string() }))
        .collect();
    shown.insert("said_by".to_owned(), said.into());
    let rejection = rejection
        .map(|it| json!({ "sub": it.who.sub, "reason": it.reason, "at": it.at.to_string() }));
    shown.insert("rejected_by".to_owned(), rejection.into());
    waits(&mut shown, standing.as_ref());
    match bundle {
        Ok(bundle) => {
            shown.insert("parent".to_owned(), bundle.parent().map(hex).into());
            shown.insert("grants".to_owned(), json!(bundle.grants()));
            shown.insert("cases".to_owned(), json!(bundle.cases()));
        }
        Err(problem) => {
            shown.insert("does_not_load".to_owned(), problem.into());
        }
    }
    Ok(Value::Object(shown))
}

fn head(row: &BundleRow, is_active: bool) -> Map<String, Value> {
    let author = Some(&row.author).filter(|author| !author.sub.is_empty());
    Map::from_iter([
        ("hash".to_owned(), hex(row.hash).into()),
        ("version".to_owned(), row.version.as_str().into()),
        ("author".to_owned(), json!(author)),
        ("proposed_at".to_owned(), row.at.to_string().into()),
        ("active".to_owned(), is_active.into()),
    ])
}

fn activation(it: &Activation) -> Value {
    json!({
        "number": it.serial.to_string(),
        "hash": hex(it.bundle),
        "by": it.way,
        "at": it.at.to_string(),
    })
}

fn changes(diff: &Diff) -> Map<String, Value> {
    Map::from_iter([
        ("loosens".to_owned(), diff.is_looser().into()),
        ("changes".to_owned(), json!(diff.changes)),
    ])
}

/// What it waits for, in words, and until when where that is known.
fn waits(shown: &mut Map<String, Value>, standing: Option<&Standing>) {
    let until = match standing {
        Some(Standing::Waits { until }) => Some(until.to_string()),
        _ => None,
    };
    shown.insert("waits_for".to_owned(), standing.map(ToString::to_string).into());
    shown.insert("not_before".to_owned(), until.into());
}

fn hex(hash: B256) -> String {
    format!("{hash:#x}")
}
