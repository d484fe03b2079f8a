//! From an intent to its effects: everything that it would do, or `Opaque`.
//!
//! Nothing is guessed. Calldata must be the one canonical encoding of a function that the bundle
//! binds to that address; what code stands at the recipient must be known; the rest is not
//! understood, and what is not understood is not allowed.

pub mod abi;
#[cfg(test)]
mod tests;
pub mod typed_data;
#[cfg(test)]
mod typed_data_tests;

use crate::core::amount::Amount;
use crate::core::intent::{Intent, TransactionIntent};
use crate::core::policy::bundle::abi::AbiFunction;
use crate::core::policy::effect::{CallArgument, CallEffect, Effect};
use crate::core::policy::{Bundle, Facts, PolicyRequest};
use alloy::dyn_abi::{DynSolType, DynSolValue};
use alloy::primitives::{Address, keccak256};

/// `transfer(address,uint256)` of ERC-20.
const TRANSFER: [u8; 4] = [0xa9, 0x05, 0x9c, 0xbb];
/// The first bytes of a delegated account's code (EIP-7702).
const DELEGATION: [u8; 3] = [0xef, 0x01, 0x00];

/// Everything that an intent would do, the main effect first. The fee of a transaction is the last,
/// at the highest price that the intent itself admits.
#[must_use]
pub fn effects(bundle: &Bundle, request: &PolicyRequest) -> Vec<Effect> {
    let (from, facts) = (request.address, &request.facts);
    match &request.intent {
        Intent::Message { text } => vec![message(text)],
        Intent::TypedData { chain, data } => vec![match typed_data::read(chain, data) {
            Ok(read) => Effect::TypedMessage {
                type_hash: read.type_hash,
                primary_type: data.primary_type.clone(),
                verifying_contract: read.verifying_contract,
            },
            Err(why) => opaque(&why),
        }],
        Intent::Authorization { address, nonce, .. } => {
            vec![Effect::Delegate { authority: from, to: *address, nonce: *nonce }]
        }
        Intent::Transaction(tx) => {
            let mut effects = transaction(bundle, tx, from, facts);
            effects.push(fee_max(tx.gas, tx.fees.highest().max_fee));
            effects
        }
    }
}

/// Whose code a decision over this intent looks at. A code that is not among the facts is not known, and what
/// calls it is not understood.
#[must_use]
pub fn addresses(_bundle: &Bundle, intent: &Intent, _from: Address) -> Vec<Address> {
    match intent {
        Intent::Transaction(tx) => tx.to.into_iter().collect(),
        Intent::Authorization { address, .. } => vec![*address],
        Intent::Message { .. } | Intent::TypedData { .. } => Vec::new(),
    }
}

/// What gas may cost at most, in wei.
#[must_use]
pub fn fee_max(gas: u64, price_wei: u128) -> Effect {
    match Amount::from(gas).checked_mul(Amount::from(price_wei)) {
        Some(amount) => Effect::FeeMax { amount },
        None => opaque("gas × price overflows"),
    }
}

fn opaque(why: &str) -> Effect {
    Effect::Opaque { why: why.to_owned(), call: None }
}

/// Text, and nothing that could be somebody's digest: contracts verify EIP-191 signatures over 32
/// raw bytes, and printable ones can be found by search.
fn message(text: &str) -> Effect {
    if text.len() == 32 {
        return opaque("a message of 32 bytes is as good as a digest");
    }
    if text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
        return opaque("the message has control characters: it is not text");
    }
    Effect::TextMessage { text: text.to_owned() }
}

fn transaction(
    bundle: &Bundle,
    tx: &TransactionIntent,
    from: Address,
    facts: &Facts,
) -> Vec<Effect> {
    let Some(to) = tx.to else {
        let init_code_hash = keccak256(&tx.data);
        return vec![Effect::Create { from, init_code_hash, value: tx.value }];
    };
    let Some(fact) = facts.code_at(to) else {
        return vec![opaque("the code at the recipient is not known")];
    };
    if fact.code.starts_with(&DELEGATION) {
        return vec![opaque("the recipient is an account with delegated code (EIP-7702)")];
    }
    match (tx.data.is_empty(), fact.code.is_empty()) {
        (true, true) => vec![Effect::NativeOut { from, to, amount: tx.value }],
        (true, false) => vec![opaque("no data, but the recipient has code that would run")],
        (false, true) => vec![opaque("data, but the recipient has no code")],
        (false, false) => match call(bundle, tx, from, to) {
            Ok(main @ Effect::TokenOut { .. }) if !tx.value.is_zero() => {
                vec![main, Effect::NativeOut { from, to, amount: tx.value }]
            }
            Ok(main) => vec![main],
            Err(why) => vec![opaque(&why)],
        },
    }
}

fn call(
    bundle: &Bundle,
    tx: &TransactionIntent,
    from: Address,
    to: Address,
) -> Result<Effect, String> {
    let Some((selector, data)) = tx.data.split_first_chunk::<4>() else {
        return Err("data is too short for a selector".to_owned());
    };
    let registry = bundle.registry();
    if let Some(asset) = registry.asset_at(&tx.chain.name, to) {
        if *selector != TRANSFER {
            return Err(format!(
                "function 0x{} of the asset `{}` is not a transfer",
                hex::encode(selector),
                asset.name
            ));
        }
        let types = [DynSolType::Address, DynSolType::Uint(256)];
        let values = abi::decode_exact(&types, data).ok_or("data is not canonical ABI")?;
        let [DynSolValue::Address(recipient), DynSolValue::Uint(amount, _)] = values.as_slice()
        else {
            return Err("data is not canonical ABI".to_owned());
        };
        let amount = Amount::new(*amount);
        return Ok(Effect::TokenOut { asset: asset.name.clone(), from, to: *recipient, amount });
    }
    let contract = registry
        .contract_at(&tx.chain.name, to)
        .ok_or("the recipient is not a contract of the book")?;
    let function =
        contract.abi.as_ref().and_then(|abi| abi.functions.get(selector.as_slice())).ok_or_else(
            || format!("`{}` has no known function 0x{}", contract.name, hex::encode(selector)),
        )?;
    if let Some(why) = &function.refused {
        return Err(why.clone());
    }
    let values = abi::decode_exact(&function.types(), data)
        .ok_or_else(|| format!("data is not the canonical encoding of `{}`", function.signature))?;
    Ok(Effect::Call(CallEffect {
        from,
        contract: contract.name.clone(),
        to,
        function: function.signature.clone(),
        args: arguments(function, &values),
        value: tx.value,
    }))
}

fn arguments(function: &AbiFunction, values: &[DynSolValue]) -> Vec<CallArgument> {
    let pairs = function.inputs.iter().zip(values);
    pairs
        .map(|(input, value)| CallArgument {
            name: input.name.clone(),
            kind: input.kind.clone(),
            value: abi::show(value),
            encoded: value.abi_encode().into(),
        })
        .collect()
}
