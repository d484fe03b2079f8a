//! One node behind one URL. URLs can carry keys, so they are never shown: a node is named by its place
//! in the configuration, from 1.

use super::classify::{NodeError, bounded};
use super::wire;
use crate::ports::chain::{Block, ChainError};
use alloy::rpc::client::RpcClient;
use alloy::rpc::json_rpc::{ErrorPayload, RpcError, RpcRecv, RpcSend};
use alloy::rpc::types::Header;
use alloy::transports::{TransportError, TransportErrorKind};
use std::borrow::Cow;

/// Why one node gave nothing.
#[derive(Debug)]
pub(super) enum Fault {
    /// It answered with a JSON-RPC error.
    Said(NodeError),
    /// It did not answer, or with an HTTP error: in a few words, without the URL.
    Silent { class: &'static str, detail: String },
    /// It answered something that cannot be read, or cannot be so.
    Unreadable(String),
}

impl Fault {
    pub(super) fn unreadable(detail: &str) -> Self {
        Self::Unreadable(detail.to_owned())
    }

    /// As if the node had said that it does not have the block.
    pub(super) fn unknown_block() -> Self {
        Self::Said(NodeError { code: 0, message: "unknown block".to_owned(), data: None })
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
                    ChainError::Unavailable(format!("node {node}: error {}: {text}", error.code))
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
    pub(super) client: RpcClient,
}

impl Node {
    /// One call. Counts what went wrong under `claviger_rpc_errors_total`.
    pub(super) async fn call<P: RpcSend, R: RpcRecv>(
        &self,
        method: &'static str,
        params: P,
    ) -> Result<R, Fault> {
        let answer = self.client.request::<P, R>(Cow::Borrowed(method), params).await;
        answer.map_err(|error| {
            let fault = fault(error);
            let class = fault.class();
            metrics::counter!("claviger_rpc_errors_total", "class" => class).increment(1);
            tracing::debug!(node = self.place, method, class, "a node gave no answer");
            fault
        })
    }

    /// A block's header by number, tag or hash; `None` if the node answers null.
    pub(super) async fn header<P: RpcSend>(
        &self,
        method: &'static str,
        which: P,
    ) -> Result<Option<Block>, Fault> {
        let header: Option<Header> = self.call(method, (which, false)).await?;
        Ok(header.as_ref().map(wire::block))
    }
}

fn fault(error: TransportError) -> Fault {
    match error {
        RpcError::ErrorResp(payload) => Fault::Said(said(&payload)),
        RpcError::NullResp => Fault::unreadable("null where an answer was due"),
        RpcError::DeserError { err, .. } => Fault::Unreadable(format!("unreadable answer: {err}")),
        RpcError::SerError(_) | RpcError::UnsupportedFeature(_) | RpcError::LocalUsageError(_) => {
            Fault::unreadable("the request could not be written")
        }
        RpcError::Transport(kind) => silent(&kind),
    }
}

fn silent(kind: &TransportErrorKind) -> Fault {
    if let Some(http) = kind.as_http_error() {
        let class = if http.is_rate_limit_err() { "rate_limited" } else { "http" };
        return Fault::Silent { class, detail: format!("HTTP status {}", http.status) };
    }
    let transport = kind.as_custom().and_then(|error| error.downcast_ref::<reqwest::Error>());
    let (class, detail) = match transport {
        Some(error) if error.is_timeout() => ("timeout", "no answer in time"),
        Some(error) if error.is_connect() => ("transport", "cannot connect"),
        _ => ("transport", "the connection broke"),
    };
    Fault::Silent { class, detail: detail.to_owned() }
}

fn said(payload: &ErrorPayload) -> NodeError {
    let data = payload
        .data
        .as_ref()
        .and_then(|data| serde_json::from_str::<serde_json::Value>(data.get()).ok())
        .and_then(|data| first_string(&data, 8));
    NodeError { code: payload.code, message: payload.message.clone().into_owned(), data }
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
