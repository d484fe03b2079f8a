//! Documents read back, strictly.

use super::{CALL, LOG, NATIVE, RETRACTED, kind, schema, source_path};
use crate::core::time::Timestamp;
use crate::core::trigger::{DecodedLog, NativeTransfer};
use crate::ports::bus::{Kind, Message};
use crate::ports::chain::Log;
use crate::ports::chain_reader::SeenTransaction;
use crate::watch::plan::{ChainPlan, Source, Watches};
use alloy::primitives::{Address, B256, Bytes, U256};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

/// A document as it is read back: every member is known, and none is there twice.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document<D> {
    specversion: String,
    id: String,
    source: String,
    #[serde(rename = "type")]
    kind: String,
    subject: String,
    time: String,
    datacontenttype: String,
    dataschema: String,
    data: D,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogData {
    chain: String,
    contract: Address,
    block_number: u64,
    block_hash: B256,
    transaction_hash: B256,
    log_index: u64,
    topics: Vec<B256>,
    data: Bytes,
    // What the log says, decoded: must agree with its bytes, but for the names.
    #[serde(default)]
    event: String,
    #[serde(default)]
    event_name: String,
    #[serde(default)]
    args: Value,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TransactionData {
    chain: String,
    block_number: u64,
    block_hash: B256,
    transaction_hash: B256,
    #[serde(rename = "transaction_index")]
    index: u64,
    from: Address,
    to: Address,
    value: String,
    // Of calls.
    input: Option<Bytes>,
    // What the calldata says, decoded: must agree with it, but for the names.
    #[serde(default)]
    function: String,
    #[serde(default)]
    function_name: String,
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
    /// What it tells of.
    pub fact: Fact,
    /// The message; its body is the document as it came.
    pub message: Message,
}

/// What a document tells of, decoded from the raw bytes in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Fact {
    /// The emitter of the log, the recipient of the transfer, the contract that was called.
    pub subject: Address,
    /// Its block.
    pub block_number: u64,
    /// Its block.
    pub block_hash: B256,
    /// Its transaction.
    pub transaction_hash: B256,
    /// Which log of the block; `None` if it is a transaction.
    pub log_index: Option<u64>,
    /// What a node must have at its place.
    pub found: Found,
    /// Its named values; none for a call of whatever function.
    pub values: Option<DecodedLog>,
}

/// What a document says that is in its block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A log.
    Log(Log),
    /// A transaction that succeeded. Of native transfers the calldata is left out.
    Transaction(SeenTransaction),
}

/// Reads a document strictly: it must be one that a watcher with these sources writes. That it is true
/// is not said: whoever signs reads the event from the chain.
///
/// # Errors
/// What is wrong with it.
pub fn read<'a>(bytes: &[u8], chains: &'a [ChainPlan]) -> Result<Read<'a>, String> {
    let body = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    // Its type says how the data is to be read.
    let typed: Document<IgnoredAny> = parse(body)?;
    let (path, kind) = match typed.kind.strip_suffix(RETRACTED).unwrap_or(&typed.kind) {
        LOG | NATIVE | CALL if typed.kind.ends_with(RETRACTED) => {
            let path = typed.source.strip_suffix("/retractions");
            (path.ok_or("a retraction of no source")?, Kind::Retraction)
        }
        LOG | NATIVE | CALL => (typed.source.as_str(), Kind::Log),
        other => return Err(format!("type `{}` is not known", short(other))),
    };
    let sources = chains.iter().flat_map(|plan| plan.sources.iter().map(move |of| (plan, of)));
    let (plan, source) = { sources }
        .find(|(plan, source)| path == source_path(&plan.chain.name, source))
        .ok_or_else(|| format!("source `{}` is not configured here", short(path)))?;
    let (id, fact) = checked(body, &plan.chain.name, source)?;
    Ok(Read {
        chain: &plan.chain.name,
        source,
        block_number: fact.block_number,
        fact,
        message: Message { kind, source: source.name.clone(), event_id: id, body: body.to_owned() },
    })
}

/// What a document of this source tells of, read as strictly.
///
/// # Errors
/// What is wrong with it.
pub fn fact(body: &str, chain: &str, source: &Source) -> Result<Fact, String> {
    checked(body, chain, source).map(|(_, fact)| fact)
}

/// The id, and what it names.
fn checked(body: &str, chain: &str, source: &Source) -> Result<(String, Fact), String> {
    match &source.watches {
        Watches::Event { .. } => check_log(parse(body)?, chain, source),
        Watches::NativeTo(_) | Watches::Calls { .. } => {
            check_transaction(parse(body)?, chain, source)
        }
    }
}

/// The parser quotes names and values of the message in its errors.
fn parse<D: DeserializeOwned>(body: &str) -> Result<D, String> {
    serde_json::from_str(body).map_err(|error| short(&error.to_string()))
}

/// The first rule that does not hold.
fn broken(rules: &[(bool, &str)]) -> Result<(), String> {
    match rules.iter().find(|(holds, _)| !holds) {
        Some((_, broken)) => Err((*broken).to_owned()),
        None => Ok(()),
    }
}

/// What all documents have around their data.
fn check_envelope<D>(document: &Document<D>, chain: &str, source: &Source) -> Result<(), String> {
    let known = document.kind.strip_suffix(RETRACTED).unwrap_or(&document.kind);
    let path = document.source.strip_suffix("/retractions").unwrap_or(&document.source);
    broken(&[
        (path == source_path(chain, source), "source is another one"),
        (document.specversion == "1.0", "specversion is not 1.0"),
        (document.datacontenttype == "application/json", "datacontenttype is not JSON"),
        (known == kind(source), "type is not the source's"),
        (document.dataschema == schema(source), "dataschema is not known"),
        (Timestamp::parse_rfc3339(&document.time).is_some(), "time is not one of RFC 3339"),
    ])
}

/// Whether the arguments of a document are these, under whatever names: parameters may be named anew, which leaves
/// the source what it is, and what was written before that is still told. Nobody takes a value from here.
fn same_values(decoded: &Value, args: &Value) -> bool {
    let (Value::Object(decoded), Value::Object(args)) = (decoded, args) else {
        return decoded == args;
    };
    let mut left: Vec<&Value> = args.values().collect();
    let mut take = |value: &Value| {
        let place = left.iter().position(|other| *other == value)?;
        Some(left.swap_remove(place))
    };
    decoded.len() == args.len() && decoded.values().all(|value| take(value).is_some())
}

/// Whether a document agrees with itself and with its source.
fn check_log(
    document: Document<LogData>,
    chain: &str,
    source: &Source,
) -> Result<(String, Fact), String> {
    check_envelope(&document, chain, source)?;
    let data = document.data;
    let event = source.event().ok_or("the source is of no event")?;
    let id = format!("{chain}:{}:{}:{}", data.block_hash, data.transaction_hash, data.log_index);
    let emitter = source.emitter().unwrap_or(data.contract);
    let decoded = event.decode(&data.topics, &data.data);
    let agrees = decoded.as_ref().is_ok_and(|decoded| same_values(&decoded.to_json(), &data.args));
    broken(&[
        (document.subject == format!("{emitter:#x}"), "subject is not the source's contract"),
        (i64::try_from(data.block_number).is_ok(), "block_number is out of range"),
        (data.chain == chain, "the data is of another chain"),
        (data.contract == emitter, "the data is of another contract"),
        (data.topics.first() == Some(&event.topic0()), "the log is of another event"),
        (document.id == id, "id is not the log's place"),
        (data.event == event.signature(), "event is not the source's"),
        (data.event_name == event.name(), "event_name is not the source's"),
        (agrees, "args is not what topics and data say"),
    ])?;
    let fact = Fact {
        subject: data.contract,
        block_number: data.block_number,
        block_hash: data.block_hash,
        transaction_hash: data.transaction_hash,
        log_index: Some(data.log_index),
        found: Found::Log(log_of(data)),
        values: decoded.ok(),
    };
    Ok((id, fact))
}

/// The named values of a transaction's document, by its raw members, and the function that it must name.
fn values_of(
    data: &TransactionData,
    value: U256,
    source: &Source,
) -> Result<(Option<DecodedLog>, String, String), String> {
    match (&source.watches, &data.input) {
        (Watches::NativeTo(addresses), None) => {
            broken(&[
                (addresses.contains(&data.to), "the recipient is none of the source's"),
                (!value.is_zero(), "value is zero"),
            ])?;
            let (from, to) = (data.from, data.to);
            let values = NativeTransfer { from, to, value }.values();
            Ok((Some(values), String::new(), String::new()))
        }
        (Watches::Calls { to, function }, Some(input)) => {
            broken(&[(data.to == *to, "the data is of another contract")])?;
            let Some(function) = function else { return Ok((None, String::new(), String::new())) };
            let values = function.decode(input).map_err(|error| error.to_string())?;
            Ok((Some(values), function.signature().to_owned(), function.name().to_owned()))
        }
        _ => Err("input is of calls, and of them only".to_owned()),
    }
}

fn check_transaction(
    document: Document<TransactionData>,
    chain: &str,
    source: &Source,
) -> Result<(String, Fact), String> {
    check_envelope(&document, chain, source)?;
    let data = document.data;
    let value = data.value.parse::<U256>().ok();
    let value = value.filter(|value| value.to_string() == data.value);
    let value = value.ok_or("value is no decimal number")?;
    let (values, function, function_name) = values_of(&data, value, source)?;
    let args = values.as_ref().map_or(Value::Null, DecodedLog::to_json);
    let id = format!("{chain}:{}:{}:tx", data.block_hash, data.transaction_hash);
    broken(&[
        (document.subject == format!("{:#x}", data.to), "subject is not the recipient"),
        (i64::try_from(data.block_number).is_ok(), "block_number is out of range"),
        (data.chain == chain, "the data is of another chain"),
        (document.id == id, "id is not the transaction's place"),
        (data.function == function, "function is not the source's"),
        (data.function_name == function_name, "function_name is not the source's"),
        (same_values(&args, &data.args), "args is not what the transaction says"),
    ])?;
    let fact = Fact {
        subject: data.to,
        block_number: data.block_number,
        block_hash: data.block_hash,
        transaction_hash: data.transaction_hash,
        log_index: None,
        found: Found::Transaction(transaction_of(data, value)),
        values,
    };
    Ok((id, fact))
}

/// The log in the raw members of one that did not decode.
#[must_use]
pub fn seen_log(raw: &Value) -> Option<Log> {
    LogData::deserialize(raw).ok().map(log_of)
}

fn log_of(data: LogData) -> Log {
    Log {
        address: data.contract,
        topics: data.topics,
        data: data.data,
        block_number: data.block_number,
        block_hash: data.block_hash,
        transaction_hash: data.transaction_hash,
        log_index: data.log_index,
    }
}

/// The transaction in the raw members of one that did not decode.
#[must_use]
pub fn seen_transaction(raw: &Value) -> Option<SeenTransaction> {
    let data = TransactionData::deserialize(raw).ok()?;
    let value = data.value.parse().ok()?;
    Some(transaction_of(data, value))
}

fn transaction_of(data: TransactionData, value: U256) -> SeenTransaction {
    SeenTransaction {
        hash: data.transaction_hash,
        index: data.index,
        from: data.from,
        to: Some(data.to),
        value,
        data: data.input.unwrap_or_default(),
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
    use crate::config::file;
    use crate::ports::chain::Block;
    use crate::watch::cloudevent::{log, retraction, transaction};
    use crate::watch::plan::Plan;
    use alloy::primitives::keccak256;
    use serde_json::json;
    use std::path::Path;

    /// One source of each kind: `event`, `any`, `native`, `call`, `calls`.
    fn chains() -> Vec<ChainPlan> {
        let to = Address::repeat_byte(0xcc);
        let event = "Asked(uint256 indexed orderId, uint256 amount)";
        let mut text = String::from(
            "[store]\nurl = \"sqlite:x\"\n[[chain]]\nname = \"local\"\nchain_id = 1\n\
             rpc = [\"http://x\"]\n",
        );
        for (name, rest) in [
            ("event", format!("address = \"{to:#x}\"\nevent = \"{event}\"")),
            ("any", format!("event = \"{event}\"")),
            ("native", format!("native_to = [\"{to:#x}\"]")),
            ("call", format!("calls_to = \"{to:#x}\"\nfunction = \"pay(uint256 id)\"")),
            ("calls", format!("calls_to = \"{to:#x}\"")),
        ] {
            text += &format!("[[source]]\nname = \"{name}\"\nchain = \"local\"\n{rest}\n");
        }
        let config = file::parse(Path::new("x.toml"), &text, std::iter::empty()).unwrap();
        Plan::new(config).unwrap().chains
    }

    fn block() -> Block {
        Block {
            number: 7,
            hash: B256::repeat_byte(7),
            parent: B256::repeat_byte(6),
            timestamp_s: 1_700_000_000,
            base_fee: 0,
            logs_bloom: Bytes::new(),
        }
    }

    fn told(source: &Source) -> String {
        let seen = SeenTransaction {
            hash: B256::repeat_byte(9),
            index: 3,
            from: Address::repeat_byte(1),
            to: Some(Address::repeat_byte(0xcc)),
            value: U256::from(5),
            data: [&keccak256("pay(uint256)")[..4], &B256::with_last_byte(8)[..]].concat().into(),
        };
        let Some(event) = source.event() else {
            let values = crate::watch::cloudevent::decode(source, &seen).unwrap();
            return transaction("local", source, &block(), &seen, values.as_ref()).to_string();
        };
        let found = Log {
            address: Address::repeat_byte(0xcc),
            topics: vec![event.topic0(), B256::with_last_byte(1)],
            data: Bytes::copy_from_slice(B256::with_last_byte(2).as_slice()),
            block_number: 7,
            block_hash: block().hash,
            transaction_hash: B256::repeat_byte(9),
            log_index: 4,
        };
        let decoded = event.decode(&found.topics, &found.data).unwrap();
        log("local", source, &block(), &found, &decoded).to_string()
    }

    #[test]
    fn documents_of_every_kind_are_read_back_and_so_are_their_retractions() {
        let chains = chains();
        for source in &chains[0].sources {
            let told = told(source);
            let back = read(told.as_bytes(), &chains).unwrap();
            assert_eq!((back.source.name.as_str(), back.message.kind), (&*source.name, Kind::Log));
            assert_eq!(back.fact.subject, Address::repeat_byte(0xcc));
            assert_eq!(back.fact.values.is_none(), source.name == "calls");
            assert_eq!(back.message.event_id.ends_with(":tx"), source.reads_transactions());
            let taken_back = retraction(&told, Timestamp::from_millis(5)).unwrap();
            let back = read(taken_back.as_bytes(), &chains).unwrap();
            assert_eq!(back.message.kind, Kind::Retraction, "{}", source.name);
        }
    }

    #[test]
    fn names_of_parameters_may_be_others_and_values_may_not() {
        let chains = chains();
        for source in chains[0].sources.iter().filter(|source| source.name != "calls") {
            let good: Value = serde_json::from_str(&told(source)).unwrap();
            let args = good["data"]["args"].as_object().unwrap();
            let renamed = |(name, value): (&String, &Value)| (format!("old_{name}"), value.clone());
            let mut before = good.clone();
            before["data"]["args"] = Value::Object(args.iter().map(renamed).collect());
            let back = read(before.to_string().as_bytes(), &chains).unwrap();
            assert_eq!(back.fact.values.unwrap().to_json(), good["data"]["args"]);
            for name in args.keys() {
                let mut other = good.clone();
                other["data"]["args"][name] = json!("9999");
                assert!(read(other.to_string().as_bytes(), &chains).is_err());
            }
            let mut more = good.clone();
            more["data"]["args"]["more"] = json!("1");
            assert!(read(more.to_string().as_bytes(), &chains).is_err());
        }
    }

    #[test]
    fn a_document_that_was_changed_anywhere_is_refused() {
        let chains = chains();
        let other = json!("0x00000000000000000000000000000000000000aa");
        for source in &chains[0].sources {
            let good: Value = serde_json::from_str(&told(source)).unwrap();
            let members = good["data"].as_object().unwrap().keys().cloned();
            for member in members {
                // The place in the block is nowhere else in the document.
                if member == "transaction_index" || (member == "value" && source.name != "native") {
                    continue;
                }
                let mut bad = good.clone();
                let changed = match &good["data"][&member] {
                    Value::Number(number) => json!(number.as_u64().unwrap() + 1),
                    Value::String(text) if text.len() == 42 => other.clone(),
                    Value::String(text) => json!(format!("{text}0")),
                    _ => json!([]),
                };
                // Who sent it is in the arguments of a transfer only.
                if (member == "from" && source.name != "native") || member == "block_number" {
                    continue;
                }
                if member == "input" && source.name == "calls" {
                    continue;
                }
                bad["data"][&member] = changed;
                let refused = read(bad.to_string().as_bytes(), &chains);
                assert!(refused.is_err(), "{} {member}", source.name);
                let mut less = good.clone();
                less["data"].as_object_mut().unwrap().remove(&member);
                let refused = read(less.to_string().as_bytes(), &chains);
                assert!(refused.is_err(), "{} without {member}", source.name);
            }
            let mut more = good.clone();
            more["data"]["more"] = json!(1);
            assert!(read(more.to_string().as_bytes(), &chains).is_err());
            for kind in [LOG, NATIVE, CALL, "claviger.chain.other"] {
                let mut bad = good.clone();
                bad["type"] = json!(kind);
                let is_its_own = good["type"] == kind;
                assert_eq!(read(bad.to_string().as_bytes(), &chains).is_ok(), is_its_own);
            }
        }
    }

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
