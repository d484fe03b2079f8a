//! What providers do to their callers: quotas (F7), logs that are cut, empty or doubled (F8), receipts that are
//! missing (F9), ranges that are too long (F10). Each helper injects one rule.

use super::{Fault, FaultProxy, RuleId, Times};
use serde_json::{Value, json};
use std::sync::Arc;

const LOGS: &str = "eth_getLogs";

/// Whose words are said when too much is asked for. Codes and texts are those that users of these clients and
/// providers have reported, or that are in the clients' sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    Alchemy,
    AlchemyFree,
    Ankr,
    Besu,
    Bsc,
    Cloudflare,
    Infura,
    InfuraRange,
    Moonbeam,
    Quicknode,
    RethBlocks,
    RethResults,
    Scroll,
    Thirdweb,
}

impl Provider {
    pub const ALL: [Self; 14] = [
        Self::Alchemy,
        Self::AlchemyFree,
        Self::Ankr,
        Self::Besu,
        Self::Bsc,
        Self::Cloudflare,
        Self::Infura,
        Self::InfuraRange,
        Self::Moonbeam,
        Self::Quicknode,
        Self::RethBlocks,
        Self::RethResults,
        Self::Scroll,
        Self::Thirdweb,
    ];

    /// The error object for a question from `from` to `to` where `most` are allowed.
    pub fn error(self, from: u64, to: u64, most: u64) -> Value {
        let end = from + most.saturating_sub(1);
        let (code, message) = match self {
            Self::Alchemy => (
                -32602,
                format!(
                    "Log response size exceeded. You can make eth_getLogs requests with up to a 2K \
                     block range and no limit on the response size, or you can request any block \
                     range with a cap of 10K logs in the response. Based on your parameters and the \
                     response size limit, this block range should work: [{from:#x}, {end:#x}]"
                ),
            ),
            Self::AlchemyFree => (
                -32600,
                format!(
                    "Under the Free tier plan, you can make eth_getLogs requests with up to a {most} \
                     block range. Based on your parameters, this block range should work: \
                     [{from:#x}, {end:#x}]. Upgrade to PAYG for expanded block range."
                ),
            ),
            Self::Ankr => (-32600, "block range is too wide".to_owned()),
            Self::Besu => (-32005, "Requested range exceeds maximum RPC range limit".to_owned()),
            Self::Bsc => (-32000, format!("exceed maximum block range: {most}")),
            Self::Cloudflare => (
                -32047,
                format!(
                    "Invalid eth_getLogs request. 'fromBlock'-'toBlock' range too large. Max range: \
                     {most}"
                ),
            ),
            Self::Infura => (
                -32005,
                format!(
                    "query returned more than 10000 results. Try with this block range [{from:#X}, \
                     {end:#X}]."
                ),
            ),
            Self::InfuraRange => {
                (-32602, format!("range {} exceeds limit of {most}", to.saturating_sub(from)))
            }
            Self::Moonbeam => (-32603, format!("block range is too wide (maximum {most})")),
            Self::Quicknode => (-32614, format!("eth_getLogs is limited to a {most} range")),
            Self::RethBlocks => (-32602, format!("query exceeds max block range {most}")),
            Self::RethResults => (
                -32602,
                format!("query exceeds max results 20000, retry with the range {from}-{end}"),
            ),
            Self::Scroll => (-32000, "block range is bigger than maxBlockRange".to_owned()),
            Self::Thirdweb => {
                let range = to.saturating_sub(from);
                let data = format!("range {range} is bigger than range limit {most}");
                return json!({ "code": -32602, "message": "invalid params", "data": data });
            }
        };
        json!({ "code": code, "message": message })
    }
}

impl FaultProxy {
    /// Every call is answered with 429 and this `Retry-After`, in seconds (F7).
    pub fn throttle(&self, times: Times, retry_after_s: Option<u64>) -> RuleId {
        self.inject("*", times, Fault::Busy { status: 429, retry_after_s })
    }

    /// Every call is answered with this status of 500 and above, without a body (F7).
    pub fn break_down(&self, times: Times, status: u16) -> RuleId {
        self.inject("*", times, Fault::Status(status))
    }

    /// Every call is answered with EIP-1474's −32005, as a plan that is used up is (F7).
    pub fn exhaust(&self, times: Times) -> RuleId {
        self.inject("*", times, Fault::Say(json!({ "code": -32005, "message": "limit exceeded" })))
    }

    /// Lists of logs are empty (F8).
    pub fn empty_logs(&self, times: Times) -> RuleId {
        self.inject(LOGS, times, Fault::Answer(json!([])))
    }

    /// Lists of logs end after so many (F8).
    pub fn cut_logs(&self, times: Times, most: usize) -> RuleId {
        self.rewrite_logs(times, move |logs| logs.truncate(most))
    }

    /// Each log is there twice (F8).
    pub fn repeat_logs(&self, times: Times) -> RuleId {
        self.rewrite_logs(times, |logs| {
            *logs = logs.iter().flat_map(|log| [log.clone(), log.clone()]).collect();
        })
    }

    /// No transaction has a receipt (F9).
    pub fn null_receipts(&self, times: Times) -> RuleId {
        self.inject("eth_getTransactionReceipt", times, Fault::Answer(Value::Null))
    }

    /// Logs of more than so many blocks at once are refused in a provider's words (F10). A range that ends at
    /// a tag counts as endless.
    pub fn limit_range(&self, times: Times, provider: Provider, most: u64) -> RuleId {
        self.refuse_ranges(times, most, move |from, to| provider.error(from, to, most))
    }

    /// The same, in any words.
    pub fn refuse_ranges(
        &self,
        times: Times,
        most: u64,
        error: impl Fn(u64, u64) -> Value + Send + Sync + 'static,
    ) -> RuleId {
        let rewrite = move |params: &Value, answer: Value| match range(params) {
            Some((from, to)) if to.saturating_sub(from) >= most => {
                json!({ "error": error(from, to) })
            }
            _ => answer,
        };
        self.inject(LOGS, times, Fault::Rewrite(Arc::new(rewrite)))
    }

    /// No list of logs, of a range or of a block, has more than so many: it is refused (F10).
    pub fn limit_results(&self, times: Times, most: usize) -> RuleId {
        let rewrite = move |_: &Value, answer: Value| {
            let count = answer["result"].as_array().map_or(0, Vec::len);
            if count <= most {
                return answer;
            }
            let message = format!("query exceeds max results {most}");
            json!({ "error": { "code": -32602, "message": message } })
        };
        self.inject(LOGS, times, Fault::Rewrite(Arc::new(rewrite)))
    }

    /// Lists of logs of ranges lack what this picks; those of single blocks do not (F8).
    pub fn leave_out(
        &self,
        times: Times,
        lacks: impl Fn(&Value) -> bool + Send + Sync + 'static,
    ) -> RuleId {
        let rewrite = move |params: &Value, mut answer: Value| {
            if range(params).is_some()
                && let Some(logs) = answer["result"].as_array_mut()
            {
                logs.retain(|log| !lacks(log));
            }
            answer
        };
        self.inject(LOGS, times, Fault::Rewrite(Arc::new(rewrite)))
    }

    /// Headers whose height this picks say that their block has no log.
    pub fn zero_blooms(&self, picks: impl Fn(u64) -> bool + Send + Sync + 'static) {
        let picks = Arc::new(picks);
        for method in ["eth_getBlockByNumber", "eth_getBlockByHash"] {
            let picks = picks.clone();
            let rewrite = move |_: &Value, mut answer: Value| {
                if number(&answer["result"]["number"]).is_some_and(|at| picks(at)) {
                    answer["result"]["logsBloom"] = json!(format!("0x{}", "0".repeat(512)));
                }
                answer
            };
            self.inject(method, Times::UntilLifted, Fault::Rewrite(Arc::new(rewrite)));
        }
    }

    fn rewrite_logs(
        &self,
        times: Times,
        change: impl Fn(&mut Vec<Value>) + Send + Sync + 'static,
    ) -> RuleId {
        let rewrite = move |_: &Value, mut answer: Value| {
            if let Some(logs) = answer["result"].as_array_mut() {
                change(logs);
            }
            answer
        };
        self.inject(LOGS, times, Fault::Rewrite(Arc::new(rewrite)))
    }
}

/// The heights of a call for the logs of a range; `None` of one for a block's. A range that ends at a tag
/// counts as endless.
pub fn range(params: &Value) -> Option<(u64, u64)> {
    let filter = &params[0];
    if filter.get("blockHash").is_some() {
        return None;
    }
    let from = number(&filter["fromBlock"]).unwrap_or_default();
    Some((from, number(&filter["toBlock"]).unwrap_or(u64::MAX)))
}

fn number(value: &Value) -> Option<u64> {
    u64::from_str_radix(value.as_str()?.strip_prefix("0x")?, 16).ok()
}
