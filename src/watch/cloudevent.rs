//! The documents that tell of events: `CloudEvents` 1.0 in JSON.
//!
//! A retraction has the id of the log that it takes back, another type, and another `source` (since
//! `source` and `id` together name one event in `CloudEvents`); it repeats the log's data.

use super::plan::Source;
use crate::core::time::Timestamp;
use crate::core::trigger::DecodedLog;
use crate::ports::chain::{Block, Log};
use serde_json::{Value, json};

/// Type of a log.
pub const LOG: &str = "claviger.chain.log";
/// Type of a retraction.
pub const RETRACTED: &str = "claviger.chain.log.retracted";
/// The version of the data.
const SCHEMA: &str = "urn:claviger:schema:chain.log:1";

/// `{chain}:{block hash}:{transaction hash}:{log index}`.
#[must_use]
pub fn event_id(chain: &str, log: &Log) -> String {
    format!("{chain}:{}:{}:{}", log.block_hash, log.transaction_hash, log.log_index)
}

/// The members that every log has, decoded or not.
#[must_use]
pub fn raw(chain: &str, log: &Log) -> Value {
    json!({
        "chain": chain,
        "contract": format!("{:#x}", log.address),
        "block_number": log.block_number,
        "block_hash": log.block_hash,
        "transaction_hash": log.transaction_hash,
        "log_index": log.log_index,
        "topics": log.topics,
        "data": log.data,
    })
}

/// The document of a decoded log. `time` is the block's.
#[must_use]
pub fn log(chain: &str, source: &Source, block: &Block, log: &Log, decoded: &DecodedLog) -> Value {
    let mut data = raw(chain, log);
    if let Some(members) = data.as_object_mut() {
        members.insert("event".to_owned(), json!(source.event.signature()));
        members.insert("event_name".to_owned(), json!(source.event.name()));
        members.insert("args".to_owned(), decoded.to_json());
    }
    let millis = block.timestamp_s.saturating_mul(1000);
    let time = Timestamp::from_millis(i64::try_from(millis).unwrap_or(i64::MAX));
    json!({
        "specversion": "1.0",
        "id": event_id(chain, log),
        "source": format!("/chains/{chain}/sources/{}", source.name),
        "type": LOG,
        "subject": format!("{:#x}", log.address),
        "time": time.to_string(),
        "datacontenttype": "application/json",
        "dataschema": SCHEMA,
        "data": data,
    })
}

/// The document that takes a log back, out of the document that told of it. `None` if that is not one.
#[must_use]
pub fn retraction(told: &str, now: Timestamp) -> Option<String> {
    let mut event: Value = serde_json::from_str(told).ok()?;
    let members = event.as_object_mut()?;
    let source = format!("{}/retractions", members.get("source")?.as_str()?);
    members.insert("source".to_owned(), json!(source));
    members.insert("type".to_owned(), json!(RETRACTED));
    members.insert("time".to_owned(), json!(now.to_string()));
    Some(event.to_string())
}
