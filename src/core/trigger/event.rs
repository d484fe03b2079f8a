//! Events by their human-readable ABI signature, with the names and the word `indexed`.

use super::{TriggerError, signature};
use alloy::dyn_abi::{DynSolEvent, DynSolType, DynSolValue, Specifier};
use alloy::json_abi::Event;
use alloy::primitives::{B256, hex};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// One parameter, by name.
#[derive(Debug, Clone)]
struct Parameter {
    name: String,
    ty: DynSolType,
    indexed: bool,
}

/// An event that can be decoded.
#[derive(Debug, Clone)]
pub struct EventAbi {
    name: String,
    signature: String,
    topic0: B256,
    parameters: Vec<Parameter>,
    resolved: DynSolEvent,
}

/// What triggers take their arguments and their business id from: values with names.
pub trait Parameters {
    /// The type of the value of this name.
    ///
    /// # Errors
    /// Says why there is no such value, or why it cannot be used.
    fn usable(&self, name: &str) -> Result<&DynSolType, String>;
}

/// A decoded log, or what else has named values: the parameters in their order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DecodedLog {
    args: Vec<(String, DynSolValue)>,
}

/// Types whose indexed form is a hash of the value rather than the value (Solidity ABI, "Encoding of
/// indexed event parameters").
fn is_hashed_when_indexed(ty: &DynSolType) -> bool {
    !matches!(
        ty,
        DynSolType::Bool
            | DynSolType::Int(_)
            | DynSolType::Uint(_)
            | DynSolType::FixedBytes(_)
            | DynSolType::Address
            | DynSolType::Function
    )
}

impl EventAbi {
    /// Reads a signature such as `Paid(uint256 indexed id, address payer)`.
    ///
    /// # Errors
    /// If it is not an event, is anonymous, has more topics than logs can have, or a parameter without
    /// a name of its own.
    pub fn parse(text: &str) -> Result<Self, TriggerError> {
        let event = Event::parse(text).map_err(|error| signature(text, error))?;
        if event.anonymous {
            return Err(signature(text, "anonymous events cannot be watched"));
        }
        let resolved: DynSolEvent = event.resolve().map_err(|error| signature(text, error))?;
        let mut names = BTreeSet::new();
        let mut parameters = Vec::with_capacity(event.inputs.len());
        for input in &event.inputs {
            if input.name.is_empty() || !names.insert(input.name.clone()) {
                return Err(signature(text, "every parameter needs a name of its own"));
            }
            let ty: DynSolType = input.resolve().map_err(|error| signature(text, error))?;
            parameters.push(Parameter { name: input.name.clone(), ty, indexed: input.indexed });
        }
        let topic0 = event.selector();
        Ok(Self { signature: event.signature(), name: event.name, topic0, parameters, resolved })
    }

    /// The event's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The canonical signature, as it is hashed: `Paid(uint256,address)`.
    #[must_use]
    pub fn signature(&self) -> &str {
        &self.signature
    }

    /// Keccak-256 of the signature: the first topic of its logs.
    #[must_use]
    pub const fn topic0(&self) -> B256 {
        self.topic0
    }

    /// Decodes strictly: what was decoded must encode to the same topics and data again.
    ///
    /// # Errors
    /// If it does not; other events of the same signature with other `indexed` words are such a case.
    pub fn decode(&self, topics: &[B256], data: &[u8]) -> Result<DecodedLog, TriggerError> {
        let decoded = self
            .resolved
            .decode_log_parts(topics.iter().copied(), data)
            .map_err(|error| TriggerError::Log(error.to_string()))?;
        let again = decoded.encode_log_data();
        if again.topics() != topics || again.data.as_ref() != data {
            return Err(TriggerError::Log("it does not encode to the same bytes again".to_owned()));
        }
        let mut indexed = decoded.indexed.into_iter();
        let mut body = decoded.body.into_iter();
        let mut args = Vec::with_capacity(self.parameters.len());
        for parameter in &self.parameters {
            let next = if parameter.indexed { indexed.next() } else { body.next() };
            let value = next.ok_or_else(|| TriggerError::Log("a value is missing".to_owned()))?;
            args.push((parameter.name.clone(), value));
        }
        Ok(DecodedLog { args })
    }
}

/// The event's parameters, but those of which logs carry only a hash.
impl Parameters for EventAbi {
    fn usable(&self, name: &str) -> Result<&DynSolType, String> {
        let Some(parameter) = self.parameters.iter().find(|parameter| parameter.name == name)
        else {
            return Err(format!("the event {} has no `{name}`", self.signature));
        };
        if parameter.indexed && is_hashed_when_indexed(&parameter.ty) {
            return Err(format!("`{name}` is indexed: its logs carry only a hash of it"));
        }
        Ok(&parameter.ty)
    }
}

impl DecodedLog {
    /// The values of something else that has named ones.
    pub(super) const fn new(args: Vec<(String, DynSolValue)>) -> Self {
        Self { args }
    }

    /// A value by name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&DynSolValue> {
        self.args.iter().find(|(given, _)| given == name).map(|(_, value)| value)
    }

    /// All of them as JSON: numbers as decimal strings, bytes and addresses as lower-case hex, arrays
    /// and tuples as arrays.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let members = self.args.iter().map(|(name, value)| (name.clone(), json(value)));
        Value::Object(members.collect::<Map<_, _>>())
    }
}

fn json(value: &DynSolValue) -> Value {
    match value {
        DynSolValue::Array(values)
        | DynSolValue::FixedArray(values)
        | DynSolValue::Tuple(values)
        | DynSolValue::CustomStruct { tuple: values, .. } => {
            Value::Array(values.iter().map(json).collect())
        }
        plain => Value::String(text(plain)),
    }
}

/// A value as text. Two values of one type never have the same text.
pub(super) fn text(value: &DynSolValue) -> String {
    match value {
        DynSolValue::Bool(value) => value.to_string(),
        DynSolValue::Int(value, _) => value.to_string(),
        DynSolValue::Uint(value, _) => value.to_string(),
        DynSolValue::FixedBytes(word, size) => {
            hex::encode_prefixed(word.get(..*size).unwrap_or_default())
        }
        DynSolValue::Address(address) => hex::encode_prefixed(address),
        DynSolValue::Function(function) => hex::encode_prefixed(function),
        DynSolValue::Bytes(bytes) => hex::encode_prefixed(bytes),
        DynSolValue::String(text) => text.clone(),
        nested => json(nested).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::primitives::keccak256;

    const CHARGE: &str =
        "ChargeRequested(uint256 indexed orderId, address indexed payer, uint256 amount)";

    fn word(last: u8) -> B256 {
        B256::with_last_byte(last)
    }

    #[test]
    fn a_log_is_decoded_to_strings() {
        let event = EventAbi::parse(CHARGE).unwrap();
        assert_eq!(event.signature(), "ChargeRequested(uint256,address,uint256)");
        let topics = [event.topic0(), word(7), word(0xbb)];
        let log = event.decode(&topics, word(9).as_slice()).unwrap();
        assert_eq!(
            log.to_json(),
            serde_json::json!({
                "orderId": "7",
                "payer": "0x00000000000000000000000000000000000000bb",
                "amount": "9",
            })
        );
    }

    #[test]
    fn a_log_of_another_layout_is_refused() {
        let event = EventAbi::parse(CHARGE).unwrap();
        let topics = [event.topic0(), word(7)];
        assert!(event.decode(&topics, &[0; 64]).is_err(), "fewer topics");
        let topics = [event.topic0(), word(7), word(1)];
        assert!(event.decode(&topics, &[0; 31]).is_err(), "too short");
        assert!(event.decode(&topics, &[0; 64]).is_err(), "bytes that are not decoded");
        let dirty = [event.topic0(), word(7), B256::repeat_byte(0xff)];
        assert!(event.decode(&dirty, &[0; 32]).is_err(), "an address with more than 20 bytes");
        assert!(event.decode(&[], &[]).is_err(), "no topics");
    }

    #[test]
    fn indexed_strings_are_hashes_and_cannot_be_used() {
        let event = EventAbi::parse("Named(string indexed name, string note)").unwrap();
        assert!(event.usable("name").is_err());
        assert!(event.usable("note").is_ok());
        assert!(event.usable("other").is_err());
        let topics = [event.topic0(), keccak256("x")];
        let mut data = Vec::from(word(0x20).as_slice());
        data.extend_from_slice(word(2).as_slice());
        data.extend_from_slice(b"hi");
        data.extend_from_slice(&[0; 30]);
        let log = event.decode(&topics, &data).unwrap();
        assert_eq!(log.to_json()["note"], "hi");
        assert_eq!(log.to_json()["name"], keccak256("x").to_string());
    }

    #[test]
    fn signatures_that_cannot_be_watched_are_refused() {
        for text in ["", "Paid", "Paid(uint256)", "Paid(uint256 a, uint256 a)", "Paid(nonsense x)"]
        {
            assert!(EventAbi::parse(text).is_err(), "{text}");
        }
    }
}
