//! One node behind one URL. URLs can carry keys, so they are never shown: a node is named by its place
//! in the configuration, from 1.

use super::classify::{NodeError, bounded};
use super::health::Health;
use super::wire;
use crate::core::id::ChainId;
use crate::ports::chain::{Block, ChainError};
use alloy::rpc::json_rpc::{ErrorPayload, Response, ResponsePayload};
use alloy::rpc::types::Header;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use std::sync::Arc;
use std::time::{Duration, Instant};
use url::Url;

/// The longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The class of an answer above that.
pub(super) const TOO_LONG: &str = "too_long";

/// A JSON-RPC 2.0 request. Each has a connection's answer to itself, so one id serves all.
#[derive(Serialize)]
struct Request<P> {
    jsonrpc: &'static str,
    id: u64,
    method: &'static str,
    params: P,
}

/// Why one node gave nothing.
#[derive(Debug)]
pub(super) enum Fault {
    /// It answered with a JSON-RPC error.
    Said(NodeError),
    /// It did not answer, or with an HTTP error: in a few words, without the URL.
    Silent {
        /// For metrics.
        class: &'static str,
        detail: String,
        /// The HTTP status, if there was one.
        status: Option<u16>,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// It answered something that cannot be read, or cannot be so.
    Unreadable(String),
}

impl Fault {
    pub(super) fn unreadable(detail: &str) -> Self {
        Self::Unreadable(detail.to_owned())
    }

    /// As if the node had said that it does not have the block.
    pub(super) fn unknown_block() -> Self {
        Self::Said(NodeError {
            code: 0,
            message: "unknown block".to_owned(),
            data: None,
            raw: None,
        })
    }

    fn class(&self) -> &'static str {
        match self {
            Self::Silent { class, .. } => class,
            Self::Unreadable(_) => "unreadable",
            Self::Said(error) if error.revert_reason().is_some() => "reverted",
            Self::Said(error) if error.is_unknown_block() => "unknown_block",
            Self::Said(error) if error.is_busy() => "rate_limited",
            Self::Said(_) => "node",
        }
    }

    /// What it means to a reader.
    pub(super) fn into_error(self, node: usize) -> ChainError {
        match self {
            Self::Said(error) => match error.revert_reason() {
                Some(reason) => ChainError::Reverted(reason),
                None if error.is_unknown_block() => ChainError::UnknownBlock,
                None => {
                    let text = bounded(&error.message);
                    let told = format!("node {node}: error {}: {text}", error.code);
                    // One that is short of time or quota says nothing about what was asked.
                    if error.is_busy() {
                        ChainError::Unavailable(told)
                    } else {
                        ChainError::Refused(told)
                    }
                }
            },
            Self::Silent { detail, .. } | Self::Unreadable(detail) => {
                ChainError::Unavailable(format!("node {node}: {detail}"))
            }
        }
    }
}

/// A node.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Its place in the configuration, from 1.
    pub(super) place: usize,
    pub(super) health: Arc<Health>,
    http: reqwest::Client,
    url: Url,
}

impl Node {
    /// `is_alone`: the chain has no other.
    pub(super) fn new(
        place: usize,
        chain: ChainId,
        http: reqwest::Client,
        (url, is_alone): (Url, bool),
    ) -> Self {
        let health = Arc::new(Health::new(chain.to_string(), place, is_alone));
        Self { place, health, http, url }
    }

    /// One call. Counts what went wrong under `claviger_rpc_errors_total`, and keeps the node's health.
    pub(super) async fn call<P: Serialize + Send, R: DeserializeOwned>(
        &self,
        method: &'static str,
        params: P,
    ) -> Result<R, Fault> {
        let answer = self.ask(method, params).await;
        match &answer {
            Ok(_) => self.health.answered(),
            Err(fault) => self.note(method, fault),
        }
        answer
    }

    /// One call, whose outcome says nothing yet about how the node does.
    pub(super) async fn ask<P: Serialize + Send, R: DeserializeOwned>(
        &self,
        method: &'static str,
        params: P,
    ) -> Result<R, Fault> {
        let answer = self.post(method, params).await?;
        serde_json::from_str(answer.get())
            .map_err(|error| Fault::Unreadable(format!("unreadable answer: {error}")))
    }

    /// Counts a call that went wrong, and keeps the node's health.
    pub(super) fn note(&self, method: &'static str, fault: &Fault) {
        let class = fault.class();
        metrics::counter!("claviger_rpc_errors_total", "class" => class).increment(1);
        tracing::debug!(node = self.place, method, class, "a node gave no answer");
        match fault {
            // What a caller asks may take longer than a node allows: that is no fault of the node.
            _ if method == "eth_estimateGas" => {}
            Fault::Said(error) if !error.is_busy() => self.health.answered(),
            Fault::Silent { retry_after, .. } => {
                self.health.failed(Instant::now(), *retry_after);
            }
            Fault::Said(_) | Fault::Unreadable(_) => {
                self.health.failed(Instant::now(), None);
            }
        }
    }

    async fn post<P: Serialize + Send>(
        &self,
        method: &'static str,
        params: P,
    ) -> Result<Box<RawValue>, Fault> {
        let request = self.http.post(self.url.clone()).json(&Request {
            jsonrpc: "2.0",
            id: 1,
            method,
            params,
        });
        let mut answer = request.send().await.map_err(|error| silent(&error))?;
        let (status, retry_after) = (answer.status(), retry_after(answer.headers()));
        let mut body = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(|error| silent(&error))? {
            if body.len().saturating_add(part.len()) > ANSWER_BYTES_MAX {
                return Err(Fault::Silent {
                    class: TOO_LONG,
                    detail: "an answer that is too long".to_owned(),
                    status: None,
                    retry_after: None,
                });
            }
            body.extend_from_slice(&part);
        }
        let read = serde_json::from_slice::<Response>(&body);
        let is_limit = status.as_u16() == 429;
        match read.map(|answer| answer.payload) {
            // Some answer a call that failed with an error status and the usual body.
            Ok(ResponsePayload::Failure(payload)) if !is_limit => Err(Fault::Said(said(&payload))),
            Ok(ResponsePayload::Success(result)) if status.is_success() => Ok(result),
            Err(_) if status.is_success() => {
                Err(Fault::unreadable("an answer that is no JSON-RPC"))
            }
            _ => {
                let class = if is_limit { "rate_limited" } else { "http" };
                let detail = format!("HTTP status {}", status.as_u16());
                Err(Fault::Silent { class, detail, status: Some(status.as_u16()), retry_after })
            }
        }
    }

    /// A block's header by number, tag or hash; `None` if the node answers null.
    pub(super) async fn header<P: Serialize + Send>(
        &self,
        method: &'static str,
        which: P,
    ) -> Result<Option<Block>, Fault> {
        let header: Option<Header> = self.call(method, (which, false)).await?;
        Ok(header.as_ref().map(wire::block))
    }
}

/// Seconds that the node asks to be left alone for. A date (the header's other form) is not read.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

fn silent(error: &reqwest::Error) -> Fault {
    let (class, detail) = if error.is_timeout() {
        ("timeout", "no answer in time")
    } else if error.is_connect() {
        ("transport", "cannot connect")
    } else if error.is_builder() {
        ("transport", "the request could not be written")
    } else {
        ("transport", "the connection broke")
    };
    Fault::Silent { class, detail: detail.to_owned(), status: None, retry_after: None }
}

fn said(payload: &ErrorPayload) -> NodeError {
    let raw = payload.data.as_ref();
    let raw = raw.and_then(|data| serde_json::from_str::<serde_json::Value>(data.get()).ok());
    let data = raw.as_ref().and_then(|data| first_string(data, 8));
    NodeError { code: payload.code, message: payload.message.clone().into_owned(), data, raw }
}

/// The first string in a value; `depth` bounds the search.
fn first_string(value: &serde_json::Value, depth: u8) -> Option<String> {
    let deeper = depth.checked_sub(1)?;
    match value {
        serde_json::Value::String(text) => Some(text.clone()),
        serde_json::Value::Object(members) => {
            members.values().find_map(|member| first_string(member, deeper))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_no_answer_and_a_refusal_in_words_is_one() {
        let said = |code, text: &str| {
            Fault::Said(NodeError { code, message: text.to_owned(), data: None, raw: None })
                .into_error(2)
        };
        let refused = said(-32000, "state is pruned");
        assert!(matches!(refused, ChainError::Refused(_)), "{refused:?}");
        assert_eq!(refused.to_string(), "no node answered: node 2: error -32000: state is pruned");
        assert!(matches!(said(-32000, "header not found"), ChainError::UnknownBlock));
        for silence in [
            said(-32005, "Rate limit exceeded"),
            said(-32000, "request timed out"),
            said(429, "slow down"),
            Fault::unreadable("an answer that is too long").into_error(2),
        ] {
            assert!(matches!(silence, ChainError::Unavailable(_)), "{silence:?}");
        }
    }
}
