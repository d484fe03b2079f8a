//! A node that is some blocks behind, for each kind of answer separately (F6).

use super::{Recorded, Shared};
use serde_json::{Value, json};

/// By how many blocks a kind of answer is behind the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// `eth_getTransactionCount`, `eth_getBalance`.
    pub nonces: u64,
    /// `eth_getTransactionReceipt`.
    pub receipts: u64,
    /// `eth_blockNumber`, `eth_getBlockBy…`, `eth_feeHistory`.
    pub blocks: u64,
    /// `eth_getLogs`: what is above is missing, without an error.
    pub logs: u64,
    /// The blocks of the tags `finalized` and `safe`, besides `blocks`.
    pub finals: u64,
}

impl Lag {
    /// Everything is this many blocks behind.
    pub fn all(blocks: u64) -> Self {
        Self { nonces: blocks, receipts: blocks, blocks, logs: blocks, finals: 0 }
    }
}

/// A call's answer as of some blocks ago: `result` or `error`.
pub(super) async fn ask(shared: &Shared, call: &Recorded, lag: Lag) -> Option<Value> {
    let behind = match call.method.as_str() {
        "eth_getTransactionCount" | "eth_getBalance" => lag.nonces,
        "eth_getTransactionReceipt" => lag.receipts,
        "eth_getBlockByNumber" if is_final(&call.params[0]) => lag.finals.max(lag.blocks),
        "eth_blockNumber" | "eth_getBlockByNumber" | "eth_getBlockByHash" | "eth_feeHistory" => {
            lag.blocks
        }
        "eth_getLogs" => lag.logs,
        _ => 0,
    };
    if behind == 0 {
        return shared.ask(&call.method, &call.params).await;
    }
    let head = number(&shared.read("eth_blockNumber", json!([])).await?)?;
    let top = head.saturating_sub(behind);
    let mut params = call.params.clone();
    match call.method.as_str() {
        "eth_blockNumber" => Some(json!({ "result": quantity(top) })),
        "eth_getTransactionCount" | "eth_getBalance" | "eth_feeHistory" => {
            match place(shared, &params[1], top, behind).await? {
                Some(at) if at <= top => {
                    params[1] = json!(quantity(at));
                    shared.ask(&call.method, &params).await
                }
                _ => Some(json!({ "error": { "code": -32000, "message": "header not found" } })),
            }
        }
        "eth_getBlockByNumber" => match place(shared, &params[0], top, behind).await? {
            Some(at) if at <= top => {
                params[0] = json!(quantity(at));
                shared.ask(&call.method, &params).await
            }
            _ => Some(json!({ "result": null })),
        },
        "eth_getBlockByHash" => {
            let answer = shared.ask(&call.method, &params).await?;
            Some(unless_above(answer, "number", top))
        }
        "eth_getTransactionReceipt" => {
            let answer = shared.ask(&call.method, &params).await?;
            Some(unless_above(answer, "blockNumber", top))
        }
        _ => {
            let mut answer = shared.ask(&call.method, &params).await?;
            if let Some(logs) = answer["result"].as_array_mut() {
                logs.retain(|log| number(&log["blockNumber"]).is_some_and(|at| at <= top));
            }
            Some(answer)
        }
    }
}

fn is_final(tag: &Value) -> bool {
    ["finalized", "safe"].iter().any(|of| tag == of)
}

/// The height that a block parameter means on the lagging node; `None` inside for a hash it has not seen.
async fn place(shared: &Shared, block: &Value, top: u64, behind: u64) -> Option<Option<u64>> {
    Some(match block.as_str() {
        Some("latest" | "pending") | None if !block.is_object() => Some(top),
        Some("earliest") => Some(0),
        Some(tag @ ("finalized" | "safe")) => {
            let found = shared.read("eth_getBlockByNumber", json!([tag, false])).await?;
            Some(number(&found["number"])?.saturating_sub(behind))
        }
        Some(_) => number(block),
        None => {
            let hash = block["blockHash"].clone();
            let found = shared.read("eth_getBlockByHash", json!([hash, false])).await?;
            number(&found["number"])
        }
    })
}

/// `null` in place of what is in a block that the node does not have yet.
fn unless_above(mut answer: Value, field: &str, top: u64) -> Value {
    if number(&answer["result"][field]).is_some_and(|at| at > top) {
        answer["result"] = Value::Null;
    }
    answer
}

fn number(value: &Value) -> Option<u64> {
    u64::from_str_radix(value.as_str()?.trim_start_matches("0x"), 16).ok()
}

fn quantity(number: u64) -> String {
    format!("{number:#x}")
}
