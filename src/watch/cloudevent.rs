//! The documents that tell of events: `CloudEvents` 1.0 in JSON.
//!
//! | type | id | subject | `data`, besides `chain`, `block_number`, `block_hash`, `transaction_hash` |
//! | --- | --- | --- | --- |
//! | `claviger.chain.log` | `{chain}:{block hash}:{transaction hash}:{log index}` | the contract | `contract`, `log_index`, `topics`, `data`, `event` (its signature), `event_name`, `args` by name |
//! | `claviger.chain.native` | `{chain}:{block hash}:{transaction hash}:tx` | the recipient | `transaction_index`, `from`, `to`, `value` (wei, decimal), `args`: the last three again |
//! | `claviger.chain.call` | as the one above | the contract | `transaction_index`, `from`, `to`, `value`, `input`; if a function is watched, `function` (its signature), `function_name`, `args` by name |
//!
//! A retraction has the id of what it takes back, that type and `.retracted`, and another `source` (since
//! `source` and `id` together name one event in `CloudEvents`); it repeats the data.

mod read;

pub use read::{Fact, Found, Read, clean, fact, read, seen_log, seen_transaction};

use super::plan::{Source, Watches};
use crate::core::time::Timestamp;
use crate::core::trigger::{DecodedLog, NativeTransfer};
use crate::ports::chain::{Block, Log};
use crate::ports::chain_reader::SeenTransaction;
use alloy::primitives::Address;
use serde_json::{Value, json};

/// Type of a log.
pub const LOG: &str = "claviger.chain.log";
/// Type of a native transfer.
pub const NATIVE: &str = "claviger.chain.native";
/// Type of a call.
pub const CALL: &str = "claviger.chain.call";
/// What a retraction's type has besides.
pub const RETRACTED: &str = ".retracted";

/// The type of what a source finds.
#[must_use]
pub const fn kind(source: &Source) -> &'static str {
    match &source.watches {
        Watches::Event { .. } => LOG,
        Watches::NativeTo(_) => NATIVE,
        Watches::Calls { .. } => CALL,
    }
}

/// The version of the data of what a source finds.
const fn schema(source: &Source) -> &'static str {
    match &source.watches {
        Watches::Event { .. } => "urn:claviger:schema:chain.log:1",
        Watches::NativeTo(_) => "urn:claviger:schema:chain.native:1",
        Watches::Calls { .. } => "urn:claviger:schema:chain.call:1",
    }
}

/// What the messages of a source are routed by on a broker: `{chain}.{contract}.{event}`,
/// `{chain}.{recipient}.native`, `{chain}.{contract}.call.{function}`, or `{chain}.{contract}.call` where
/// every call is watched. Of a source with more than one subject it is a pattern, with `*` in the
/// subject's place.
#[must_use]
pub fn routing_key(chain: &str, source: &Source) -> String {
    let subject = source.subject().map_or("*".to_owned(), |subject| format!("{subject:#x}"));
    match &source.watches {
        Watches::Event { event, .. } => format!("{chain}.{subject}.{}", event.name()),
        Watches::NativeTo(_) => format!("{chain}.{subject}.native"),
        Watches::Calls { function: Some(function), .. } => {
            format!("{chain}.{subject}.call.{}", function.name())
        }
        Watches::Calls { function: None, .. } => format!("{chain}.{subject}.call"),
    }
}

/// The routing key of the retractions of a source's messages.
#[must_use]
pub fn retraction_key(chain: &str, source: &Source) -> String {
    format!("{}.retracted", routing_key(chain, source))
}

/// `{chain}:{block hash}:{transaction hash}:{log index}`.
#[must_use]
pub fn event_id(chain: &str, log: &Log) -> String {
    format!("{chain}:{}:{}:{}", log.block_hash, log.transaction_hash, log.log_index)
}

/// `{chain}:{block hash}:{transaction hash}:tx`: of what has no log.
#[must_use]
pub fn transaction_id(chain: &str, block: &Block, transaction: &SeenTransaction) -> String {
    format!("{chain}:{}:{}:tx", block.hash, transaction.hash)
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

/// The members that every transaction has, decoded or not. A native transfer's calldata is left out: it
/// means nothing to an account that has no code.
#[must_use]
pub fn raw_transaction(
    chain: &str,
    source: &Source,
    block: &Block,
    transaction: &SeenTransaction,
) -> Value {
    let mut data = json!({
        "chain": chain,
        "block_number": block.number,
        "block_hash": block.hash,
        "transaction_hash": transaction.hash,
        "transaction_index": transaction.index,
        "from": format!("{:#x}", transaction.from),
        "to": format!("{:#x}", transaction.to.unwrap_or_default()),
        "value": transaction.value.to_string(),
    });
    if let (Some(members), Watches::Calls { .. }) = (data.as_object_mut(), &source.watches) {
        members.insert("input".to_owned(), json!(transaction.data));
    }
    data
}

/// The document of a decoded log. `time` is the block's.
#[must_use]
pub fn log(chain: &str, source: &Source, block: &Block, log: &Log, decoded: &DecodedLog) -> Value {
    let mut data = raw(chain, log);
    if let (Some(members), Some(event)) = (data.as_object_mut(), source.event()) {
        members.insert("event".to_owned(), json!(event.signature()));
        members.insert("event_name".to_owned(), json!(event.name()));
        members.insert("args".to_owned(), decoded.to_json());
    }
    document(chain, source, block, &event_id(chain, log), log.address, data)
}

/// The document of a transaction: a native transfer, or a call. `decoded` are its named values, of a call
/// only where a function is watched.
#[must_use]
pub fn transaction(
    chain: &str,
    source: &Source,
    block: &Block,
    transaction: &SeenTransaction,
    decoded: Option<&DecodedLog>,
) -> Value {
    let mut data = raw_transaction(chain, source, block, transaction);
    if let Some(members) = data.as_object_mut() {
        if let Watches::Calls { function: Some(function), .. } = &source.watches {
            members.insert("function".to_owned(), json!(function.signature()));
            members.insert("function_name".to_owned(), json!(function.name()));
        }
        if let Some(decoded) = decoded {
            members.insert("args".to_owned(), decoded.to_json());
        }
    }
    let id = transaction_id(chain, block, transaction);
    document(chain, source, block, &id, transaction.to.unwrap_or_default(), data)
}

/// The named values of a transaction; `None` for a call where no function is watched.
///
/// # Errors
/// If the calldata is not the function's.
pub fn decode(
    source: &Source,
    transaction: &SeenTransaction,
) -> Result<Option<DecodedLog>, String> {
    let (from, value) = (transaction.from, transaction.value);
    match &source.watches {
        Watches::Event { .. } => Err("the source is of an event".to_owned()),
        Watches::NativeTo(_) => {
            let to = transaction.to.unwrap_or_default();
            Ok(Some(NativeTransfer { from, to, value }.values()))
        }
        Watches::Calls { function: None, .. } => Ok(None),
        Watches::Calls { function: Some(function), .. } => {
            function.decode(&transaction.data).map(Some).map_err(|error| error.to_string())
        }
    }
}

fn document(
    chain: &str,
    source: &Source,
    block: &Block,
    id: &str,
    subject: Address,
    data: Value,
) -> Value {
    let millis = block.timestamp_s.saturating_mul(1000);
    let time = Timestamp::from_millis(i64::try_from(millis).unwrap_or(i64::MAX));
    json!({
        "specversion": "1.0",
        "id": id,
        "source": source_path(chain, source),
        "type": kind(source),
        "subject": format!("{subject:#x}"),
        "time": time.to_string(),
        "datacontenttype": "application/json",
        "dataschema": schema(source),
        "data": data,
    })
}

/// The document that takes something back, out of the document that told of it. `None` if that is not one.
#[must_use]
pub fn retraction(told: &str, now: Timestamp) -> Option<String> {
    let mut event: Value = serde_json::from_str(told).ok()?;
    let members = event.as_object_mut()?;
    let source = format!("{}/retractions", members.get("source")?.as_str()?);
    let kind = format!("{}{RETRACTED}", members.get("type")?.as_str()?);
    members.insert("source".to_owned(), json!(source));
    members.insert("type".to_owned(), json!(kind));
    members.insert("time".to_owned(), json!(now.to_string()));
    Some(event.to_string())
}

fn source_path(chain: &str, source: &Source) -> String {
    format!("/chains/{chain}/sources/{}", source.name)
}
