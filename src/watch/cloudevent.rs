//! The documents that tell of events: `CloudEvents` 1.0 in JSON.
//!
//! A retraction has the id of the log that it takes back, another type, and another `source` (since
//! `source` and `id` together name one event in `CloudEvents`); it repeats the log's data.

use super::plan::{ChainPlan, Source};
use crate::core::time::Timestamp;
use crate::core::trigger::DecodedLog;
use crate::ports::bus::{Kind, Message};
use crate::ports::chain::{Block, Log};
use alloy::primitives::{Address, B256, Bytes};
use serde::Deserialize;
use serde_json::{Value, json};

/// Type of a log.
pub const LOG: &str = "claviger.chain.log";
/// Type of a retraction.
pub const RETRACTED: &str = "claviger.chain.log.retracted";
/// The version of the data.
const SCHEMA: &str = "urn:claviger:schema:chain.log:1";

/// `{chain}.{contract}.{event}`: what the messages of a source's logs are routed by on a broker.
#[must_use]
pub fn routing_key(chain: &str, source: &Source) -> String {
    format!("{chain}.{:#x}.{}", source.address, source.event.name())
}

/// The routing key of the retractions of a source's logs.
#[must_use]
pub fn retraction_key(chain: &str, source: &Source) -> String {
    format!("{}.retracted", routing_key(chain, source))
}

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
        "source": source_path(chain, source),
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

/// A document as it is read back: every member is known, and none is there twice.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    specversion: String,
    id: String,
    source: String,
    #[serde(rename = "type")]
    kind: String,
    subject: String,
    time: String,
    datacontenttype: String,
    dataschema: String,
    data: Data,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Data {
    chain: String,
    contract: Address,
    block_number: u64,
    block_hash: B256,
    transaction_hash: B256,
    log_index: u64,
    topics: Vec<B256>,
    data: Bytes,
    // What the log says, decoded: must agree with its bytes.
    #[serde(default)]
    event: String,
    #[serde(default)]
    event_name: String,
    #[serde(default)]
    args: Value,
}

/// A document that came from somewhere, and the source of ours that it says it is of.
#[derive(Debug)]
pub struct Read<'a> {
    /// The chain of the source.
    pub chain: &'a str,
    /// The source.
    pub source: &'a Source,
    /// The block that it names.
    pub block_number: u64,
    /// The message; its body is the document as it came.
    pub message: Message,
}

/// Reads a document strictly: it must be one that a watcher with these sources writes. That it is true
/// is not said: whoever signs reads the event from the chain.
///
/// # Errors
/// What is wrong with it.
pub fn read<'a>(bytes: &[u8], chains: &'a [ChainPlan]) -> Result<Read<'a>, String> {
    let body = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    // The parser quotes names and values of the message in its errors.
    let document: Document =
        serde_json::from_str(body).map_err(|error| short(&error.to_string()))?;
    let (path, kind) = match document.kind.as_str() {
        LOG => (document.source.as_str(), Kind::Log),
        RETRACTED => {
            let path = document.source.strip_suffix("/retractions");
            (path.ok_or("a retraction of no source")?, Kind::Retraction)
        }
        other => return Err(format!("type `{}` is not known", short(other))),
    };
    let sources = chains.iter().flat_map(|plan| plan.sources.iter().map(move |of| (plan, of)));
    let (plan, source) = { sources }
        .find(|(plan, source)| path == source_path(&plan.chain.name, source))
        .ok_or_else(|| format!("source `{}` is not configured here", short(path)))?;
    check(&document, &plan.chain.name, source)?;
    Ok(Read {
        chain: &plan.chain.name,
        source,
        block_number: document.data.block_number,
        message: Message {
            kind,
            source: source.name.clone(),
            event_id: document.id,
            body: body.to_owned(),
        },
    })
}

fn source_path(chain: &str, source: &Source) -> String {
    format!("/chains/{chain}/sources/{}", source.name)
}

/// Whether a document agrees with itself and with its source.
fn check(document: &Document, chain: &str, source: &Source) -> Result<(), String> {
    let data = &document.data;
    let id = format!("{chain}:{}:{}:{}", data.block_hash, data.transaction_hash, data.log_index);
    let contract = format!("{:#x}", source.address);
    let height = i64::try_from(data.block_number);
    let decoded = source.event.decode(&data.topics, &data.data);
    let agrees = decoded.is_ok_and(|decoded| decoded.to_json() == data.args);
    let rules = [
        (document.specversion == "1.0", "specversion is not 1.0"),
        (document.datacontenttype == "application/json", "datacontenttype is not JSON"),
        (document.dataschema == SCHEMA, "dataschema is not known"),
        (document.subject == contract, "subject is not the source's contract"),
        (Timestamp::parse_rfc3339(&document.time).is_some(), "time is not one of RFC 3339"),
        (height.is_ok(), "block_number is out of range"),
        (data.chain == chain, "the data is of another chain"),
        (data.contract == source.address, "the data is of another contract"),
        (data.topics.first() == Some(&source.event.topic0()), "the log is of another event"),
        (document.id == id, "id is not the log's place"),
        (data.event == source.event.signature(), "event is not the source's"),
        (data.event_name == source.event.name(), "event_name is not the source's"),
        (agrees, "args is not what topics and data say"),
    ];
    match rules.iter().find(|(holds, _)| !holds) {
        Some((_, broken)) => Err((*broken).to_owned()),
        None => Ok(()),
    }
}

/// What strangers wrote, short enough for a line of the log.
fn short(text: &str) -> String {
    text.chars().take(100).flat_map(char::escape_default).collect()
}

/// The most characters of a reason that is kept with a message.
const REASON_CHARS_MAX: usize = 1000;

/// A reason as it may be kept and logged, whatever of a stranger's message is in it: not long, and
/// without control characters. PostgreSQL refuses a text with a NUL, and a message that cannot be kept
/// would hold up its queue for ever.
#[must_use]
pub fn clean(reason: &str) -> String {
    reason.chars().filter(|character| !character.is_control()).take(REASON_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_message_is_short_and_has_no_control_characters() {
        let huge = format!("{{\"{}\":1}}", "x".repeat(1 << 20));
        let newline = "{\"type\":\"a\\n\\u001bb\"}";
        for bytes in ["{\"\\u0000\":1}", newline, "{\"data\":\"\\u0000\"}", &huge] {
            let reason = read(bytes.as_bytes(), &[]).unwrap_err();
            assert!(!reason.is_empty() && reason.len() < 2000, "{}", reason.len());
            assert!(!reason.chars().any(char::is_control), "{reason:?}");
            assert_eq!(clean(&reason), reason);
        }
        assert_eq!(clean("a\0b\nc"), "abc");
        assert_eq!(clean(&"x".repeat(5000)).len(), REASON_CHARS_MAX);
    }
}
