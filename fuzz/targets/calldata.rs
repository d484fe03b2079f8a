//! Any call to any address of the bundle. The first byte says to whom, the second what value goes with it, the
//! rest is calldata.
//!
//! Of what is understood: another decoder reads the same, and encodes it to the very same bytes, of the call
//! itself and of every call inside it; the value that leaves the account is counted once; the code that was
//! asked for beforehand is all that was needed; and without any one of those facts it is not understood.

#![no_main]

#[path = "common.rs"]
#[allow(dead_code, reason = "each target uses a part of it")]
mod common;

use alloy::dyn_abi::{DynSolValue, JsonAbiExt as _};
use alloy::json_abi::{Function, JsonAbi};
use alloy::primitives::{Address, U256};
use claviger::core::evm::decode::{addresses, effects, known};
use claviger::core::policy::Effect;
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Every function that can be understood, by selector, for alloy's own decoder.
static FUNCTIONS: LazyLock<BTreeMap<[u8; 4], Function>> = LazyLock::new(|| {
    let abi: JsonAbi = serde_json::from_slice(include_bytes!("../bundle/abi/all.json")).unwrap();
    let known = known::signatures().map(|text| Function::parse(text).unwrap());
    abi.functions().cloned().chain(known).map(|f| (f.selector().0, f)).collect()
});

/// Functions whose bytes are calls; and the one whose bytes are packed calls.
const WRAPPERS: [&str; 9] = [
    "aggregate",
    "blockAndAggregate",
    "tryAggregate",
    "tryBlockAndAggregate",
    "aggregate3",
    "aggregate3Value",
    "multicall",
    "execute",
    "executeBatch",
];

fn never(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Opaque { call: None, .. }))
}

fn understood(effects: &[Effect]) -> bool {
    !effects.iter().any(|effect| matches!(effect, Effect::Opaque { .. }))
}

/// Decodes and encodes again, with everything inside.
fn identity(data: &[u8]) {
    let Some((selector, arguments)) = data.split_first_chunk::<4>() else {
        return assert!(data.is_empty(), "too short for a selector, and understood");
    };
    let function = FUNCTIONS.get(selector).expect("understood, so known");
    let values = function.abi_decode_input(arguments).expect("understood, so decodable");
    let again = function.abi_encode_input(&values).expect("decoded, so encodable");
    assert_eq!(again, data, "another way to write the same call was understood");
    let name = function.name.as_str();
    if WRAPPERS.contains(&name) {
        values.iter().for_each(calls);
    }
    if name == "execTransaction" {
        let DynSolValue::Bytes(inner) = &values[2] else { panic!("{values:?}") };
        match values[3].as_uint().map(|(operation, _)| operation) {
            Some(U256::ZERO) => identity(inner),
            _ => packed(inner),
        }
    }
}

fn calls(value: &DynSolValue) {
    match value {
        DynSolValue::Bytes(data) => identity(data),
        DynSolValue::Array(inner) | DynSolValue::Tuple(inner) => inner.iter().for_each(calls),
        _ => {}
    }
}

/// `multiSend(bytes)`: the packed calls are written again, one after the other.
fn packed(data: &[u8]) {
    let function = &FUNCTIONS[&[0x8d, 0x80, 0xff, 0x0a]];
    let values = function.abi_decode_input(&data[4..]).expect("understood, so decodable");
    assert_eq!(function.abi_encode_input(&values).unwrap(), data);
    let DynSolValue::Bytes(all) = &values[0] else { panic!("{values:?}") };
    let (mut at, mut again) = (0, Vec::new());
    while at < all.len() {
        let length = usize::try_from(U256::from_be_slice(&all[at + 53..at + 85])).unwrap();
        let inner = &all[at + 85..at + 85 + length];
        identity(inner);
        again.push(0);
        again.extend_from_slice(&all[at + 1..at + 53]);
        again.extend(U256::from(length).to_be_bytes::<32>());
        again.extend_from_slice(inner);
        at += 85 + length;
    }
    assert_eq!(again, *all);
}

fuzz_target!(|data: &[u8]| {
    let [to, value, data @ ..] = data else { return };
    let to = common::ADDRESSES[usize::from(*to) % common::ADDRESSES.len()];
    let request = common::transaction(Address::repeat_byte(to), *value, data);
    let bundle = &*common::BUNDLE;
    let mut done = effects(bundle, &request);
    assert!(matches!(done.pop(), Some(Effect::FeeMax { .. })));
    assert!(!done.is_empty() && done.len() <= 65, "{}", done.len());
    let needed = addresses(bundle, &request.intent, common::SIGNER);
    if never(&done) {
        return;
    }
    let own = done.iter().filter(|effect| effect.actor() == Some(common::SIGNER));
    let native: U256 = own.map(|effect| effect.native().units()).sum();
    assert_eq!(native, U256::from(*value), "{done:?}");
    let mut only = request.clone();
    only.facts.codes.retain(|fact| needed.contains(&fact.address));
    assert_eq!(effects(bundle, &only)[..done.len()], done);
    for address in needed {
        let mut less = request.clone();
        less.facts.codes.retain(|fact| fact.address != address);
        assert!(never(&effects(bundle, &less)), "{address} is asked for and not needed");
    }
    if understood(&done) {
        identity(data);
    }
});
