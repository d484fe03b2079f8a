//! From a grant as written to a grant as checked: what each action has of its own, on one chain.

use super::Bundle;
use super::abi::{AbiFunction, read_event};
use super::condition::{ArgRule, read_hex};
use super::grant::{
    Action, CallRule, ChainRule, Destinations, EventInput, EventRule, FeeRule, TypedRule,
};
use super::read_grant::{need, read_fee, read_windows};
use super::registry::{Contract, read_addresses};
use super::syntax::{RawCondition, RawEvent, RawGrant, RawTo};
use crate::core::amount::Amount;
use crate::core::evm::decode::abi::{carries_bytes, is_supported};
use crate::core::evm::decode::typed_data::{moves_value, primary_fields};
use crate::core::id::ChainName;
use alloy::dyn_abi::DynSolType;
use alloy::primitives::{B256, keccak256};
use std::collections::{BTreeMap, BTreeSet};

impl Bundle {
    /// Resolves a grant's action on one of its chains.
    pub(super) fn read_chain_rule(
        &self,
        raw: &RawGrant,
        chain: &ChainName,
    ) -> Result<ChainRule, String> {
        let native = self.registry.native_decimals(chain);
        let (action, decimals) = match raw.action.as_str() {
            "native.transfer" => {
                let to = self.read_to(need("to", raw.to.as_ref())?, chain)?;
                let per_tx = scaled("per_tx", need("per_tx", raw.per_tx.as_ref())?, native)?;
                (Action::NativeTransfer { to, per_tx }, Some(native))
            }
            "erc20.transfer" => self.read_token(raw, chain)?,
            "call" => (Action::Call(Box::new(self.read_call(raw, chain)?)), Some(native)),
            "typed_data" => (Action::TypedData(Box::new(self.read_typed(raw, chain)?)), None),
            other => return Err(format!("action `{other}` is unknown")),
        };
        let windows = read_windows(raw.windows.as_deref(), decimals)?;
        let fee: Option<FeeRule> = match action {
            Action::TypedData(_) => None,
            _ => Some(read_fee(need("fee", raw.fee.as_ref())?, native)?),
        };
        let through = BTreeSet::new();
        Ok(ChainRule { action, through, windows, fee, approval: None, delay: None })
    }

    fn read_token(
        &self,
        raw: &RawGrant,
        chain: &ChainName,
    ) -> Result<(Action, Option<u8>), String> {
        let name = need("asset", raw.asset.as_deref())?;
        let asset = self
            .registry
            .asset(chain, name)
            .ok_or_else(|| format!("assets.toml has no asset `{name}` there"))?;
        let to = self.read_to(need("to", raw.to.as_ref())?, chain)?;
        let per_tx = scaled("per_tx", need("per_tx", raw.per_tx.as_ref())?, asset.decimals)?;
        let (asset, address, decimals) = (asset.name.clone(), asset.address, asset.decimals);
        Ok((Action::TokenTransfer { asset, address, to, per_tx }, Some(decimals)))
    }

    fn read_to(&self, raw: &RawTo, chain: &ChainName) -> Result<Destinations, String> {
        match (&raw.book, &raw.address, raw.any) {
            (Some(name), None, None) => {
                let list = self.registry.list(chain, name);
                let addresses =
                    list.cloned().ok_or_else(|| format!("the book has no list `{name}` there"))?;
                Ok(Destinations::These { label: format!("book list {name}"), addresses })
            }
            (None, Some(texts), None) => {
                let addresses = read_addresses("to.address", texts)?;
                Ok(Destinations::These { label: texts.join(", "), addresses })
            }
            (None, None, Some(true)) => Ok(Destinations::Any),
            _ => Err("to: say exactly one of book, address, any = true".to_owned()),
        }
    }

    fn book_contract(&self, chain: &ChainName, name: &str) -> Result<&Contract, String> {
        let found = self.registry.contract(chain, name);
        found.ok_or_else(|| format!("the book has no contract `{name}` there"))
    }

    fn read_call(&self, raw: &RawGrant, chain: &ChainName) -> Result<CallRule, String> {
        let name = need("contract", raw.contract.as_deref())?;
        let contract = self.book_contract(chain, name)?;
        if self.registry.asset_at(chain, contract.address).is_some() {
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
        if let Some(why) = &function.refused {
            return Err(why.clone());
        }
        let types: Vec<(String, DynSolType)> =
            function.inputs.iter().map(|input| (input.name.clone(), input.ty.clone())).collect();
        let args = read_args(raw.args.as_ref(), &types)?;
        for (name, ty) in &types {
            if carries_bytes(ty) && !args.iter().any(|arg| arg.name == *name) {
                return Err(format!(
                    "args: `{name}` can carry anything: it needs a condition (perhaps any = true)"
                ));
            }
        }
        let value_max = match (&raw.value, &raw.event) {
            (Some(_), Some(_)) => {
                return Err("a call that answers an event carries no value".to_owned());
            }
            (Some(value), None) => {
                scaled("value.max", &value.max, self.registry.native_decimals(chain))?
            }
            (None, _) => Amount::ZERO,
        };
        let event = raw
            .event
            .as_ref()
            .map(|event| self.read_event_rule(event, chain, &function))
            .transpose()?;
        Ok(CallRule { contract: contract.name.clone(), function, args, value_max, event })
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

    fn read_typed(&self, raw: &RawGrant, chain: &ChainName) -> Result<TypedRule, String> {
        let name = need("verifying_contract", raw.verifying_contract.as_deref())?;
        let contract = self.book_contract(chain, name)?;
        let primary_type = need("primary_type", raw.primary_type.as_deref())?.to_owned();
        if moves_value(&primary_type) {
            return Err(format!(
                "typed data `{primary_type}` moves value: not supported by this version"
            ));
        }
        let bytes = read_hex(need("type_hash", raw.type_hash.as_deref())?)?;
        let bytes: [u8; 32] =
            bytes.try_into().map_err(|_| "type_hash is not 32 bytes".to_owned())?;
        let type_hash = B256::from(bytes);
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

fn scaled(field: &str, text: &str, decimals: u8) -> Result<Amount, String> {
    Amount::parse_scaled(text, decimals)
        .map_err(|error| format!("{field}: `{text}` with {decimals} decimals: {error}"))
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
