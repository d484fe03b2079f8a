//! From a grant as written to a grant as checked: calls, with their conditions and events, and typed data.

use super::Bundle;
use super::abi::{AbiFunction, FunctionClass, read_event};
use super::condition::{ArgRule, read_hex};
use super::grant::{Action, CallRule, EventInput, EventRule, TypedRule};
use super::read_grant::need;
use super::read_rule::scaled;
use super::registry::Contract;
use super::syntax::{RawCondition, RawEvent, RawGrant};
use crate::core::amount::Amount;
use crate::core::evm::decode::abi::{carries_bytes, is_supported};
use crate::core::evm::decode::typed_data::{moves_value, primary_fields};
use crate::core::id::ChainName;
use alloy::dyn_abi::DynSolType;
use alloy::primitives::{B256, keccak256};
use std::collections::BTreeMap;

impl Bundle {
    /// A contract of the book by its name.
    pub(super) fn book_contract(&self, chain: &ChainName, name: &str) -> Result<&Contract, String> {
        let found = self.registry.contract(chain, name);
        found.ok_or_else(|| format!("the book has no contract `{name}` there"))
    }

    /// Reads a call: of a function that only calls, or (`admin`) of one that changes who rules the contract
    /// or its code.
    pub(super) fn read_call(
        &self,
        raw: &RawGrant,
        chain: &ChainName,
        admin: bool,
    ) -> Result<CallRule, String> {
        let name = need("contract", raw.contract.as_deref())?;
        let contract = self.book_contract(chain, name)?;
        if !admin && self.registry.asset_at(chain, contract.address).is_some() {
            return Err(format!("`{name}` is a registered asset: use erc20.transfer"));
        }
        let abi = contract
            .abi
            .as_ref()
            .ok_or_else(|| format!("contract `{name}` has no `abi` in the book"))?;
        let signature = need("function", raw.function.as_deref())?;
        let function = abi
            .function(signature)
            .ok_or_else(|| format!("the ABI of `{name}` has no function `{signature}`"))?
            .clone();
        match (admin, is_admin(&function), &function.refused) {
            (true, true, _) | (false, false, None) => {}
            (true, false, _) => {
                return Err(format!(
                    "`{signature}` does not change who rules `{name}` or its code: use action \"call\""
                ));
            }
            (false, true, _) => {
                return Err(format!(
                    "`{signature}` changes who rules `{name}` or its code: use action \"admin\""
                ));
            }
            (false, false, Some(why)) => return Err(why.clone()),
        }
        let types: Vec<(String, DynSolType)> =
            function.inputs.iter().map(|input| (input.name.clone(), input.ty.clone())).collect();
        let args = read_args(raw.args.as_ref(), &types)?;
        for (name, ty) in &types {
            if has_many(ty) && !args.iter().any(|arg| arg.name == *name) {
                return Err(format!(
                    "args: `{name}` can carry anything: it needs a condition (perhaps any = true)"
                ));
            }
        }
        if raw.value.is_some() && raw.event.is_some() {
            return Err("a call that answers an event carries no value".to_owned());
        }
        if raw.through.is_some() && raw.event.is_some() {
            return Err("a call that answers an event is made by the account itself".to_owned());
        }
        let value_max = self.read_value_max(raw, chain)?;
        let event = raw
            .event
            .as_ref()
            .map(|event| self.read_event_rule(event, chain, &function))
            .transpose()?;
        Ok(CallRule { contract: contract.name.clone(), function, args, value_max, event })
    }

    /// Reads a call that is not understood: which contract, and which first four bytes.
    pub(super) fn read_opaque(&self, raw: &RawGrant, chain: &ChainName) -> Result<Action, String> {
        let name = need("contract", raw.contract.as_deref())?;
        let contract = self.book_contract(chain, name)?;
        if self.registry.asset_at(chain, contract.address).is_some() {
            return Err(format!(
                "`{name}` is a registered asset: what it moves must be understood"
            ));
        }
        let text = need("selector", raw.selector.as_deref())?;
        let selector = match text {
            "none" => None,
            text => {
                let bytes = read_hex(text)?;
                let four: [u8; 4] = bytes.try_into().map_err(|_| {
                    format!("selector: `{text}` is not 4 bytes, or \"none\" for no data at all")
                })?;
                Some(four)
            }
        };
        if let Some(four) = selector
            && let Some(known) =
                contract.abi.as_ref().and_then(|abi| abi.functions.get(four.as_slice()))
        {
            return Err(format!(
                "selector: `{text}` is `{}` in the ABI of `{name}`: name the function",
                known.signature
            ));
        }
        let code_hash = raw.code_hash.as_deref();
        Ok(Action::Opaque {
            contract: contract.name.clone(),
            address: contract.address,
            selector,
            value_max: self.read_value_max(raw, chain)?,
            code_hash: code_hash.map(|text| read_hash("code_hash", text)).transpose()?,
        })
    }

    /// How much native value may go with it; none unless it is said.
    pub(super) fn read_value_max(
        &self,
        raw: &RawGrant,
        chain: &ChainName,
    ) -> Result<Amount, String> {
        raw.value.as_ref().map_or(Ok(Amount::ZERO), |value| {
            scaled("value.max", &value.max, self.registry.native_decimals(chain))
        })
    }

    fn read_event_rule(
        &self,
        raw: &RawEvent,
        chain: &ChainName,
        function: &AbiFunction,
    ) -> Result<EventRule, String> {
        let contract = self.book_contract(chain, &raw.contract)?;
        let (event, types) = read_event(&raw.signature)?;
        let indexed: Vec<bool> = event.inputs.iter().map(|input| input.indexed).collect();
        if let Some(abi) = &contract.abi
            && !abi.events.contains(&(event.signature(), indexed))
        {
            return Err(format!(
                "event: the ABI of `{}` has no such event with these `indexed`",
                raw.contract
            ));
        }
        let inputs: Vec<(String, EventInput)> = event
            .inputs
            .iter()
            .zip(types)
            .map(|(input, ty)| (input.name.clone(), EventInput { ty, indexed: input.indexed }))
            .collect();
        if let Some(name) =
            raw.args.keys().find(|name| !function.inputs.iter().any(|input| input.name == **name))
        {
            return Err(format!("event.args: `{}` has no `{name}`", function.signature));
        }
        let mapping = function
            .inputs
            .iter()
            .map(|input| map_argument(&input.name, &input.ty, raw, &inputs))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(EventRule {
            contract: contract.name.clone(),
            address: contract.address,
            signature: raw.signature.clone(),
            topic0: event.selector(),
            inputs: inputs.into_iter().map(|(_, input)| input).collect(),
            mapping,
        })
    }

    /// Reads typed data that moves nothing.
    pub(super) fn read_typed(
        &self,
        raw: &RawGrant,
        chain: &ChainName,
    ) -> Result<TypedRule, String> {
        let name = need("verifying_contract", raw.verifying_contract.as_deref())?;
        let contract = self.book_contract(chain, name)?;
        let primary_type = need("primary_type", raw.primary_type.as_deref())?.to_owned();
        if moves_value(&primary_type) {
            return Err(format!(
                "typed data `{primary_type}` moves value: not supported by this version"
            ));
        }
        let type_hash = read_hash("type_hash", need("type_hash", raw.type_hash.as_deref())?)?;
        let fields = match &raw.encode_type {
            None if raw.args.is_some() => {
                return Err("args of typed data need `encode_type`, to know their types".to_owned());
            }
            None => Vec::new(),
            Some(text) => {
                if keccak256(text.as_bytes()) != type_hash {
                    return Err("type_hash is not the hash of encode_type".to_owned());
                }
                primary_fields(&primary_type, text)
                    .ok_or_else(|| format!("encode_type does not begin with `{primary_type}(`"))?
            }
        };
        let args = read_args(raw.args.as_ref(), &fields)?;
        let verifying_contract = contract.address;
        let contract = contract.name.clone();
        Ok(TypedRule { contract, verifying_contract, primary_type, type_hash, args })
    }
}

/// Whether a function changes who rules its contract, or its code.
fn is_admin(function: &AbiFunction) -> bool {
    function.class == FunctionClass::Admin
}

/// Whether a value of this type can be many, or arbitrary bytes.
fn has_many(ty: &DynSolType) -> bool {
    carries_bytes(ty)
        || matches!(ty, DynSolType::Array(_) | DynSolType::FixedArray(..) | DynSolType::Tuple(_))
}

/// Reads 32 bytes.
pub(super) fn read_hash(field: &str, text: &str) -> Result<B256, String> {
    let bytes = read_hex(text).map_err(|problem| format!("{field}: {problem}"))?;
    let bytes: [u8; 32] = bytes.try_into().map_err(|_| format!("{field}: not 32 bytes"))?;
    Ok(B256::from(bytes))
}

fn read_args(
    raw: Option<&BTreeMap<String, RawCondition>>,
    types: &[(String, DynSolType)],
) -> Result<Vec<ArgRule>, String> {
    let Some(raw) = raw else {
        return Ok(Vec::new());
    };
    if raw.is_empty() {
        return Err("args is empty: leave it out if there is no condition".to_owned());
    }
    let mut args = Vec::new();
    for (name, condition) in raw {
        let mut matching = types.iter().filter(|(other, _)| other == name && !name.is_empty());
        let (Some((_, ty)), None) = (matching.next(), matching.next()) else {
            return Err(format!("args: there is not exactly one argument named `{name}`"));
        };
        args.push(ArgRule::read(name, ty, condition)?);
    }
    Ok(args)
}

fn map_argument(
    name: &str,
    ty: &DynSolType,
    raw: &RawEvent,
    inputs: &[(String, EventInput)],
) -> Result<usize, String> {
    let source =
        raw.args.get(name).ok_or_else(|| format!("event.args: where does `{name}` come from?"))?;
    let mut matching = inputs.iter().enumerate().filter(|(_, (other, _))| other == source);
    let (Some((index, (_, input))), None) = (matching.next(), matching.next()) else {
        return Err(format!("event.args: the event has not exactly one `{source}`"));
    };
    if input.ty != *ty {
        return Err(format!("event.args: `{name}` and `{source}` have different types"));
    }
    if input.indexed && !is_one_word(&input.ty) {
        return Err(format!("event.args: of `{source}` the chain keeps only a hash"));
    }
    Ok(index)
}

/// Whether a topic holds the value itself (Solidity's event encoding).
fn is_one_word(ty: &DynSolType) -> bool {
    let sequence =
        matches!(ty, DynSolType::Array(_) | DynSolType::FixedArray(..) | DynSolType::Tuple(_));
    !sequence && !ty.is_dynamic() && is_supported(ty)
}
