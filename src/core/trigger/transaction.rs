//! Transactions that are watched for themselves: native transfers, and calls of a function.

use super::event::{DecodedLog, Parameters};
use super::{TriggerError, signature};
use alloy::dyn_abi::{DynSolType, DynSolValue, JsonAbiExt, Specifier};
use alloy::json_abi::Function;
use alloy::primitives::{Address, U256};
use std::collections::BTreeSet;

static ADDRESS: DynSolType = DynSolType::Address;
static UINT256: DynSolType = DynSolType::Uint(256);

/// A transfer of the chain's own coin: `from`, `to` and `value` (wei).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NativeTransfer {
    /// Who sent the transaction.
    pub from: Address,
    /// The recipient.
    pub to: Address,
    /// In wei.
    pub value: U256,
}

impl NativeTransfer {
    /// The type of a value, by name.
    ///
    /// # Errors
    /// If it is none of the three.
    pub fn usable(name: &str) -> Result<&'static DynSolType, String> {
        match name {
            "from" | "to" => Ok(&ADDRESS),
            "value" => Ok(&UINT256),
            _ => Err(format!("a native transfer has `from`, `to` and `value`, but no `{name}`")),
        }
    }

    /// Its values by name.
    #[must_use]
    pub fn values(&self) -> DecodedLog {
        let value = |name: &str, value| (name.to_owned(), value);
        DecodedLog::new(vec![
            value("from", DynSolValue::Address(self.from)),
            value("to", DynSolValue::Address(self.to)),
            value("value", DynSolValue::Uint(self.value, 256)),
        ])
    }
}

/// A function whose calls can be decoded.
#[derive(Debug, Clone)]
pub struct CallAbi {
    function: Function,
    signature: String,
    parameters: Vec<(String, DynSolType)>,
}

impl CallAbi {
    /// Reads a signature such as `pay(uint256 id, address payee)`.
    ///
    /// # Errors
    /// If it is not a function, or a parameter has no name of its own.
    pub fn parse(text: &str) -> Result<Self, TriggerError> {
        let function = Function::parse(text).map_err(|error| signature(text, error))?;
        let mut names = BTreeSet::new();
        let mut parameters = Vec::with_capacity(function.inputs.len());
        for input in &function.inputs {
            if input.name.is_empty() || !names.insert(input.name.clone()) {
                return Err(signature(text, "every parameter needs a name of its own"));
            }
            let ty: DynSolType = input.resolve().map_err(|error| signature(text, error))?;
            parameters.push((input.name.clone(), ty));
        }
        Ok(Self { signature: function.signature(), function, parameters })
    }

    /// The function's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.function.name
    }

    /// The canonical signature, as it is hashed: `pay(uint256,address)`.
    #[must_use]
    pub fn signature(&self) -> &str {
        &self.signature
    }

    /// Whether calldata begins with this function's selector.
    #[must_use]
    pub fn is_called_by(&self, calldata: &[u8]) -> bool {
        calldata.starts_with(self.function.selector().as_slice())
    }

    /// Decodes calldata strictly: what was decoded must encode to the same bytes again.
    ///
    /// # Errors
    /// If it does not; calldata with something appended is such a case.
    pub fn decode(&self, calldata: &[u8]) -> Result<DecodedLog, TriggerError> {
        let misfit = |why: String| TriggerError::Call(why);
        if !self.is_called_by(calldata) {
            return Err(misfit("it is a call of another function".to_owned()));
        }
        let arguments = calldata.get(4..).unwrap_or_default();
        let values =
            self.function.abi_decode_input(arguments).map_err(|error| misfit(error.to_string()))?;
        let again =
            self.function.abi_encode_input(&values).map_err(|error| misfit(error.to_string()))?;
        if again != calldata {
            return Err(misfit("it does not encode to the same bytes again".to_owned()));
        }
        let names = self.parameters.iter().map(|(name, _)| name.clone());
        Ok(DecodedLog::new(names.zip(values).collect()))
    }
}

impl Parameters for CallAbi {
    fn usable(&self, name: &str) -> Result<&DynSolType, String> {
        let found = self.parameters.iter().find(|(given, _)| given == name);
        let missing = || format!("the function {} has no `{name}`", self.signature);
        found.map(|(_, ty)| ty).ok_or_else(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::primitives::{B256, keccak256};
    use serde_json::json;

    fn pay() -> CallAbi {
        CallAbi::parse("pay(uint256 id, address payee)").unwrap()
    }

    fn calldata(words: &[B256]) -> Vec<u8> {
        let selector = keccak256("pay(uint256,address)");
        let words = words.iter().flat_map(|word| word.to_vec());
        selector[..4].iter().copied().chain(words).collect()
    }

    #[test]
    fn a_call_is_decoded_to_strings() {
        let data = calldata(&[B256::with_last_byte(7), B256::with_last_byte(0xbb)]);
        assert!(pay().is_called_by(&data));
        let payee = "0x00000000000000000000000000000000000000bb";
        assert_eq!(pay().decode(&data).unwrap().to_json(), json!({ "id": "7", "payee": payee }));
        assert!(pay().usable("payee").is_ok() && pay().usable("other").is_err());
    }

    #[test]
    fn what_is_not_exactly_that_call_is_refused() {
        let good = calldata(&[B256::with_last_byte(7), B256::with_last_byte(0xbb)]);
        let longer = [&good[..], &[0]].concat();
        let dirty = calldata(&[B256::ZERO, B256::repeat_byte(0xff)]);
        for data in [&good[..67], &longer[..], &dirty[..], &[], &[1, 2, 3, 4]] {
            assert!(pay().decode(data).is_err(), "{data:?}");
        }
    }

    #[test]
    fn a_function_without_parameters_is_its_selector() {
        let poke = CallAbi::parse("poke()").unwrap();
        let selector = keccak256("poke()");
        assert_eq!(poke.decode(&selector[..4]).unwrap().to_json(), json!({}));
        assert!(poke.decode(&selector[..5]).is_err());
    }

    #[test]
    fn signatures_that_cannot_be_watched_are_refused() {
        for text in ["", "pay", "pay(uint256)", "pay(uint256 a, uint256 a)", "pay(nonsense x)"] {
            assert!(CallAbi::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_native_transfer_has_three_values() {
        let (from, to) = (Address::repeat_byte(1), Address::repeat_byte(2));
        let values = NativeTransfer { from, to, value: U256::from(5) }.values();
        for name in ["from", "to", "value"] {
            assert!(NativeTransfer::usable(name).is_ok() && values.get(name).is_some(), "{name}");
        }
        assert!(NativeTransfer::usable("data").is_err());
    }
}
