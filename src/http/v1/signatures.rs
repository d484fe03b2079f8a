//! `/v1/signatures`: messages, typed data, transactions and authorizations of external accounts.

use crate::app::sign_request::{SignCommand, SignOutcome, sign_for};
use crate::app::{App, read as reading};
use crate::core::access::Action;
use crate::core::id::RequestId;
use crate::core::intent::{ChainRef, FeeAsk, Fees, Intent, TransactionIntent, TxType};
use crate::core::principal::Principal;
use crate::http::body::JsonBody;
use crate::http::caller::Caller;
use crate::http::idempotency::IdempotencyKey;
use crate::http::problem::Problem;
use crate::http::query::PathId;
use crate::http::refusal;
use crate::http::state::HttpState;
use crate::http::v1::{parse, show};
use crate::ports::store::SignatureRow;
use alloy::dyn_abi::TypedData;
use alloy::primitives::B256;
use axum::Json;
use axum::extract::State;
use axum::http::header::LOCATION;
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// The body of `POST /v1/signatures`: exactly one of the four things to sign.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignBody {
    chain: Option<String>,
    signer: String,
    transaction: Option<TransactionBody>,
    message: Option<MessageBody>,
    typed_data: Option<Value>,
    authorization: Option<AuthorizationBody>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MessageBody {
    text: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TransactionBody {
    #[serde(rename = "type")]
    tx_type: Option<String>,
    nonce: String,
    gas: String,
    to: Option<String>,
    value: Option<String>,
    data: Option<String>,
    gas_price: Option<String>,
    max_fee_per_gas: Option<String>,
    max_priority_fee_per_gas: Option<String>,
    #[serde(default)]
    access_list: Vec<parse::AccessBody>,
    source: Option<parse::SourceBody>,
}

/// An EIP-7702 authorization. Its chain is the body's: 0, for every chain, cannot be said.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AuthorizationBody {
    address: String,
    nonce: String,
}

fn intent(app: &App, body: SignBody) -> Result<Intent, Problem> {
    let chain = body.chain.as_deref().map(|name| chain(app, name)).transpose()?;
    let missing = || Problem::invalid("chain", "is missing");
    match (body.transaction, body.message, body.typed_data, body.authorization) {
        (Some(tx), None, None, None) => {
            let chain = chain.ok_or_else(missing)?;
            Ok(Intent::Transaction(Box::new(transaction(chain, tx)?)))
        }
        (None, Some(message), None, None) => {
            if chain.is_some() {
                return Err(Problem::invalid("chain", "a message has no chain"));
            }
            Ok(Intent::Message { text: message.text })
        }
        (None, None, Some(data), None) => Ok(Intent::TypedData {
            chain: chain.ok_or_else(missing)?,
            data: Box::new(typed_data(data)?),
        }),
        (None, None, None, Some(asked)) => Ok(Intent::Authorization {
            chain: chain.ok_or_else(missing)?,
            address: parse::address("authorization.address", &asked.address)?,
            nonce: parse::nonce("authorization.nonce", &asked.nonce)?,
        }),
        _ => Err(Problem::invalid(
            "body",
            "must have exactly one of transaction, message, typed_data and authorization",
        )),
    }
}

fn chain(app: &App, name: &str) -> Result<ChainRef, Problem> {
    app.chain(name)
        .map(|chain| chain.reference())
        .ok_or_else(|| Problem::invalid("chain", "is not configured here"))
}

fn typed_data(value: Value) -> Result<TypedData, Problem> {
    serde_json::from_value(value)
        .map_err(|error| Problem::NotDecodable { detail: format!("typed_data: {error}") })
}

fn transaction(chain: ChainRef, body: TransactionBody) -> Result<TransactionIntent, Problem> {
    let (tx_type, fees) = fees(&body)?;
    Ok(TransactionIntent {
        chain,
        tx_type,
        to: body.to.as_deref().map(|t| parse::address("transaction.to", t)).transpose()?,
        value: match body.value.as_deref() {
            None => Default::default(),
            Some(text) => parse::amount("transaction.value", text)?,
        },
        data: match body.data.as_deref() {
            None => Default::default(),
            Some(text) => parse::bytes("transaction.data", text)?,
        },
        gas: parse::gas("transaction.gas", &body.gas)?,
        fees: FeeAsk::Exact(fees),
        access_list: parse::access_list(&body.access_list)?,
        nonce: Some(parse::nonce("transaction.nonce", &body.nonce)?),
        not_after: None,
        source: body.source.as_ref().map(parse::source).transpose()?,
    })
}

/// The envelope follows from the fee fields unless it is named; the two must agree.
fn fees(body: &TransactionBody) -> Result<(TxType, Fees), Problem> {
    let named =
        body.tx_type.as_deref().map(|text| parse::tx_type("transaction.type", text)).transpose()?;
    match (&body.gas_price, &body.max_fee_per_gas, &body.max_priority_fee_per_gas) {
        (Some(price), None, None) => {
            let price = parse::price("transaction.gas_price", price)?;
            let kind = named.unwrap_or(if body.access_list.is_empty() {
                TxType::Legacy
            } else {
                TxType::Eip2930
            });
            if kind == TxType::Eip1559 {
                return Err(Problem::invalid("transaction.gas_price", "is not of eip1559"));
            }
            Ok((kind, Fees { max_fee: price, max_priority_fee: price }))
        }
        (None, Some(fee), Some(tip)) => {
            if named.is_some_and(|kind| kind != TxType::Eip1559) {
                return Err(Problem::invalid("transaction.type", "has a gas_price"));
            }
            let max_fee = parse::price("transaction.max_fee_per_gas", fee)?;
            let tip = parse::price("transaction.max_priority_fee_per_gas", tip)?;
            Ok((TxType::Eip1559, Fees { max_fee, max_priority_fee: tip }))
        }
        _ => Err(Problem::invalid(
            "transaction",
            "needs gas_price, or max_fee_per_gas and max_priority_fee_per_gas",
        )),
    }
}

/// The use case's command of a body; with the idempotency key and what it is bound to, if there is one.
///
/// # Errors
/// When a field is not as it must be.
pub(super) fn command(
    app: &App,
    principal: Principal,
    key: Option<(String, B256)>,
    body: SignBody,
) -> Result<SignCommand, Problem> {
    let signer = body.signer.clone();
    let (key, body_hash) = key.unzip();
    let body_hash = body_hash.unwrap_or_default();
    Ok(SignCommand { principal, key, body_hash, signer, intent: intent(app, body)? })
}

/// `POST /v1/signatures`
///
/// # Errors
/// As `docs/problems.md` lists.
pub async fn create(
    caller: Caller,
    State(state): State<HttpState>,
    key: Option<IdempotencyKey>,
    body: JsonBody<SignBody>,
) -> Result<Response, Problem> {
    caller.require(Action::Request)?;
    let JsonBody { value, sha256, .. } = body;
    let key = key.map(|key| (key.as_str().to_owned(), parse::body_hash("signatures", &sha256)));
    let command = command(&state.app, caller.principal.clone(), key, value)?;
    let app = Arc::clone(&state.app);
    let outcome = tokio::spawn(async move { sign_for(&app, command).await })
        .await
        .map_err(Problem::internal)?
        .map_err(|error| refusal::told(&caller, error))?;
    let (id, code) = match outcome {
        SignOutcome::Signed(row) => return Ok(shown(StatusCode::CREATED, &row)),
        SignOutcome::Before(id) => (id, StatusCode::CREATED),
        SignOutcome::Pending(id) => (id, StatusCode::ACCEPTED),
    };
    match reading::signature(&state.app, id, None).await {
        Ok(row) => Ok(shown(code, &row)),
        // Decided is decided: the same key, or the resource, gives the signature later.
        Err(error) => {
            tracing::warn!(request = %id, %error, "decided, and could not be read back");
            let known = (location(id), Json(json!({ "id": id.to_string() })));
            Ok((StatusCode::ACCEPTED, known.0, known.1).into_response())
        }
    }
}

fn location(id: RequestId) -> [(HeaderName, String); 1] {
    [(LOCATION, format!("/v1/signatures/{id}"))]
}

fn shown(code: StatusCode, row: &SignatureRow) -> Response {
    (code, location(row.new.id), Json(show::signature(row))).into_response()
}

/// `GET /v1/signatures/{id}`
///
/// # Errors
/// As `docs/problems.md` lists.
pub async fn read(
    caller: Caller,
    State(state): State<HttpState>,
    PathId(id): PathId<RequestId>,
) -> Result<Json<Value>, Problem> {
    let only = if caller.may(Action::ReadAll) {
        None
    } else {
        caller.require(Action::ReadOwn)?;
        Some(caller.principal.clone())
    };
    let row = reading::signature(&state.app, id, only).await?;
    Ok(Json(show::signature(&row)))
}
