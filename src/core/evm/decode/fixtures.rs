//! A bundle that binds every wrapper and has an asset of every standard (the one of the fuzz targets), and
//! calls to write.

use super::effects;
use crate::core::intent::Intent;
use crate::core::policy::evaluate::fixtures::{calldata, request, transaction, uint};
use crate::core::policy::{Bundle, CodeFact, Effect, Facts, PolicyRequest};
use alloy::dyn_abi::DynSolValue;
use alloy::primitives::{Address, B256, U256};
use std::collections::BTreeMap;
use std::sync::OnceLock;

pub(super) const TUSD: Address = Address::repeat_byte(0x11);
pub(super) const PUNKS: Address = Address::repeat_byte(0x22);
pub(super) const TICKETS: Address = Address::repeat_byte(0x33);
pub(super) const MULTICALL3: Address = Address::repeat_byte(0x44);
pub(super) const ROUTER: Address = Address::repeat_byte(0x55);
pub(super) const SAFE: Address = Address::repeat_byte(0x66);
pub(super) const MULTISEND: Address = Address::repeat_byte(0x77);
pub(super) const ACCOUNT: Address = Address::repeat_byte(0x88);
pub(super) const PERMIT2: Address = Address::repeat_byte(0x99);
pub(super) const SEAPORT: Address = Address::repeat_byte(0x10);
/// In the book, with an ABI; it wraps nothing.
pub(super) const VAULT: Address = Address::repeat_byte(0x12);
/// An account without code.
pub(super) const PAYEE: Address = Address::repeat_byte(0x13);
/// In the book, without an ABI.
pub(super) const BLANK: Address = Address::repeat_byte(0x14);
/// Code that the book does not know.
pub(super) const UNKNOWN: Address = Address::repeat_byte(0x15);

pub(super) const CONTRACTS: [Address; 13] = [
    TUSD, PUNKS, TICKETS, MULTICALL3, ROUTER, SAFE, MULTISEND, ACCOUNT, PERMIT2, SEAPORT, VAULT,
    BLANK, UNKNOWN,
];

macro_rules! file {
    ($path:literal) => {
        (
            $path.to_owned(),
            include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/bundle/", $path)).to_vec(),
        )
    };
}

pub(super) fn world() -> &'static Bundle {
    static WORLD: OnceLock<Bundle> = OnceLock::new();
    WORLD.get_or_init(read_world)
}

fn read_world() -> Bundle {
    let files = BTreeMap::from([
        file!("bundle.toml"),
        file!("book.toml"),
        file!("assets.toml"),
        file!("grants.toml"),
        file!("abi/all.json"),
    ]);
    Bundle::load(&files).unwrap_or_else(|error| panic!("{error}"))
}

/// The code at every address.
pub(super) fn facts() -> Facts {
    let fact = |(address, code): (Address, Vec<u8>)| CodeFact {
        address,
        block: B256::ZERO,
        code: code.into(),
    };
    let codes = CONTRACTS.map(|address| (address, vec![0x60]));
    let codes = codes.into_iter().chain([(PAYEE, vec![])]).map(fact).collect();
    Facts { codes, ..Facts::default() }
}

/// A transaction of [`SIGNER`].
pub(super) fn asks(to: Address, value: u128, data: Vec<u8>) -> PolicyRequest {
    request(Intent::Transaction(Box::new(transaction(to, value, data))), facts())
}

pub(super) const SIGNER: Address = crate::core::policy::evaluate::fixtures::STRANGER;

/// Everything but the fee.
pub(super) fn effects_of(request: &PolicyRequest) -> Vec<Effect> {
    let mut effects = effects(world(), request);
    if matches!(request.intent, Intent::Transaction(_)) {
        assert!(matches!(effects.pop(), Some(Effect::FeeMax { .. })));
    }
    assert!(!effects.is_empty());
    effects
}

pub(super) fn does(to: Address, value: u128, data: Vec<u8>) -> Vec<Effect> {
    effects_of(&asks(to, value, data))
}

pub(super) fn is_opaque(effect: &Effect) -> bool {
    matches!(effect, Effect::Opaque { .. })
}

/// Not understood, for a reason, and no grant can allow it.
#[track_caller]
pub(super) fn refused(effects: &[Effect], why: &str) {
    let found = effects
        .iter()
        .any(|effect| matches!(effect, Effect::Opaque { why: is, call: None } if is.contains(why)));
    assert!(found, "{why} is not in {effects:?}");
}

/// Not understood, and a grant may name the call.
#[track_caller]
pub(super) fn grantable(effects: &[Effect], to: Address, selector: Option<[u8; 4]>) {
    let found = effects.iter().any(|effect| {
        matches!(effect, Effect::Opaque { call: Some(call), .. }
            if call.to == to && call.selector == selector && call.code_hash.is_some())
    });
    assert!(found, "{to} {selector:?} is not in {effects:?}");
}

pub(super) fn address(address: Address) -> DynSolValue {
    DynSolValue::Address(address)
}

pub(super) fn number(value: U256, bits: usize) -> DynSolValue {
    DynSolValue::Uint(value, bits)
}

pub(super) fn bytes(data: &[u8]) -> DynSolValue {
    DynSolValue::Bytes(data.to_vec())
}

pub(super) fn list(values: Vec<DynSolValue>) -> DynSolValue {
    DynSolValue::Array(values)
}

pub(super) fn tuple(values: Vec<DynSolValue>) -> DynSolValue {
    DynSolValue::Tuple(values)
}

/// A call inside another.
#[derive(Clone, Debug)]
pub(super) struct Inner(pub Address, pub u64, pub Vec<u8>);

pub(super) fn selector(data: &[u8]) -> Option<[u8; 4]> {
    data.first_chunk::<4>().copied()
}

pub(super) fn aggregate3_value(calls: &[Inner]) -> Vec<u8> {
    let one = |Inner(to, value, data): &Inner| {
        tuple(vec![address(*to), DynSolValue::Bool(false), uint(*value), bytes(data)])
    };
    let calls = list(calls.iter().map(one).collect());
    calldata("aggregate3Value((address,bool,uint256,bytes)[])", vec![calls])
}

pub(super) fn multicall(calls: &[Vec<u8>]) -> Vec<u8> {
    let calls = list(calls.iter().map(|data| bytes(data)).collect());
    calldata("multicall(bytes[])", vec![calls])
}

pub(super) fn exec_transaction(Inner(to, value, data): &Inner, operation: u64) -> Vec<u8> {
    exec_with(&Inner(*to, *value, data.clone()), operation, [0, 0, 0])
}

/// With gas price, gas token and refund receiver.
pub(super) fn exec_with(
    Inner(to, value, data): &Inner,
    operation: u64,
    [price, token, refunded]: [u8; 3],
) -> Vec<u8> {
    let values = vec![
        address(*to),
        uint(*value),
        bytes(data),
        number(U256::from(operation), 8),
        uint(0),
        uint(0),
        uint(u64::from(price)),
        address(Address::left_padding_from(&[token])),
        address(Address::left_padding_from(&[refunded])),
        bytes(&[7; 65]),
    ];
    calldata(
        "execTransaction(address,uint256,bytes,uint8,uint256,uint256,uint256,address,address,bytes)",
        values,
    )
}

/// The packed transactions of a MultiSend, each with its operation.
pub(super) fn packed(calls: &[(u8, Inner)]) -> Vec<u8> {
    let one = |(operation, Inner(to, value, data)): &(u8, Inner)| {
        let word = |n: u64| U256::from(n).to_be_bytes::<32>();
        let length = u64::try_from(data.len()).unwrap();
        [&[*operation][..], to.as_slice(), &word(*value), &word(length), data].concat()
    };
    calls.iter().flat_map(one).collect()
}

pub(super) fn multi_send(calls: &[(u8, Inner)]) -> Vec<u8> {
    calldata("multiSend(bytes)", vec![bytes(&packed(calls))])
}

pub(super) fn execute(Inner(to, value, data): &Inner) -> Vec<u8> {
    calldata("execute(address,uint256,bytes)", vec![address(*to), uint(*value), bytes(data)])
}

pub(super) fn transfer(to: Address, amount: u64) -> Vec<u8> {
    calldata("transfer(address,uint256)", vec![address(to), uint(amount)])
}

pub(super) fn approve(spender: Address, amount: u64) -> Vec<u8> {
    calldata("approve(address,uint256)", vec![address(spender), uint(amount)])
}

pub(super) fn token_out(from: Address, to: Address, amount: u64) -> Effect {
    Effect::TokenOut { asset: "tusd".into(), from, to, amount: amount.into() }
}

pub(super) fn native_out(from: Address, to: Address, amount: u64) -> Effect {
    Effect::NativeOut { from, to, amount: amount.into() }
}
