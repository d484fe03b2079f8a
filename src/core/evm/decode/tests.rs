//! Calldata that is not what it seems.

use super::abi::{decode_exact, encode};
use super::effects;
use crate::core::policy::evaluate::fixtures::*;
use crate::core::policy::{Bundle, Effect, Facts, PolicyRequest};
use alloy::dyn_abi::{DynSolType, DynSolValue};
use alloy::primitives::{Address, U256};
use proptest::prelude::*;

fn any_bundle() -> Bundle {
    bundle(&[native_grant("n", "1", "")])
}

fn main_effect(to: Address, value: u128, data: Vec<u8>) -> Effect {
    let request = asks(to, value, data);
    effects(&any_bundle(), &request).swap_remove(0)
}

#[track_caller]
fn opaque(to: Address, data: Vec<u8>) {
    let effect = main_effect(to, 0, data);
    assert!(matches!(effect, Effect::Opaque { .. }), "{effect:?}");
}

fn word(value: u64) -> Vec<u8> {
    U256::from(value).to_be_bytes::<32>().to_vec()
}

fn call_with(signature: &str, words: &[Vec<u8>]) -> Vec<u8> {
    [calldata(signature, vec![])[..4].to_vec(), words.concat()].concat()
}

#[test]
fn a_transfer_is_read_to_the_last_byte() {
    let amount = crate::core::amount::Amount::from(5_u64);
    let good = Effect::TokenOut { asset: "tusd".into(), from: STRANGER, to: PAYEE, amount };
    assert_eq!(main_effect(TUSD, 0, transfer(PAYEE, 5)), good);
    // 1: dirty upper bytes of the address, bytes behind, bytes missing.
    let mut dirty = transfer(PAYEE, 5);
    dirty[4] = 1;
    opaque(TUSD, dirty);
    opaque(TUSD, [transfer(PAYEE, 5), vec![0]].concat());
    opaque(TUSD, [transfer(PAYEE, 5), word(0)].concat());
    let short = transfer(PAYEE, 5);
    opaque(TUSD, short[..short.len() - 1].to_vec());
}

#[test]
fn what_is_not_a_known_function_is_opaque() {
    // 4
    for length in 1..4 {
        opaque(PROCESSOR, vec![0xa9; length]);
        opaque(TUSD, vec![0xa9; length]);
    }
    opaque(PROCESSOR, vec![1, 2, 3, 4]);
    opaque(PAYEE, vec![1, 2, 3, 4]);
    let values = vec![DynSolValue::Address(PAYEE), uint(1)];
    opaque(TUSD, calldata("transferAndCall(address,uint256)", values));
    let from = vec![DynSolValue::Address(PAYEE), DynSolValue::Address(PAYEE), uint(1)];
    opaque(TUSD, calldata("transferFrom(address,address,uint256)", from));
}

#[test]
fn code_decides_what_empty_data_means_and_must_be_known() {
    // 4, 5
    let request = asks(PAYEE, 1, vec![]);
    let main = |facts: &Facts| {
        let request = PolicyRequest { facts: facts.clone(), ..request.clone() };
        effects(&any_bundle(), &request).swap_remove(0)
    };
    assert!(matches!(main(&request.facts), Effect::NativeOut { .. }));
    let delegated = [&[0xef, 0x01, 0x00][..], &[7; 20]].concat();
    for facts in [
        Facts::default(),
        code(PAYEE, &[0x60]),
        code(PAYEE, &delegated),
        // Somebody else's code says nothing about the recipient.
        code(STRANGER, &[]),
    ] {
        assert!(matches!(main(&facts), Effect::Opaque { .. }), "{facts:?}");
    }
    let request = asks(PROCESSOR, 0, execute_charge(1, 2));
    for facts in [Facts::default(), code(PROCESSOR, &[]), code(PROCESSOR, &delegated)] {
        let request = PolicyRequest { facts, ..request.clone() };
        let main = effects(&any_bundle(), &request).swap_remove(0);
        assert!(matches!(main, Effect::Opaque { .. }), "{:?}", request.facts);
    }
}

#[test]
fn a_transaction_without_recipient_creates() {
    let mut request = asks(PAYEE, 0, vec![1, 2, 3, 4, 5]);
    tx_of(&mut request).to = None;
    let main = effects(&any_bundle(), &request).swap_remove(0);
    assert!(matches!(main, Effect::Create { .. }));
}

#[test]
fn dangerous_functions_are_opaque_even_where_the_abi_has_them() {
    // 2, 3, 8
    let approve = vec![DynSolValue::Address(PAYEE), uint(1)];
    opaque(PROCESSOR, calldata("approve(address,uint256)", approve));
    let inner = DynSolValue::Array(vec![DynSolValue::Bytes(execute_charge(1, 2))]);
    opaque(PROCESSOR, calldata("multicall(bytes[])", vec![inner]));
    let upgrade = calldata("upgradeTo(address)", vec![DynSolValue::Address(PAYEE)]);
    assert!(matches!(main_effect(PROCESSOR, 0, upgrade), Effect::AdminOp(_)));
}

#[test]
fn there_is_one_way_to_write_dynamic_arguments() {
    // 1: offsets out of order, aliased, with a gap, into the head, far away, and dirty padding.
    let signature = "note(uint256,bytes,string)";
    let good = call_with(
        signature,
        &[word(1), word(96), word(160), word(1), [vec![7], vec![0; 31]].concat(), word(0)],
    );
    assert!(matches!(main_effect(PROCESSOR, 0, good.clone()), Effect::Call { .. }));
    let tails = [word(1), [vec![7], vec![0; 31]].concat(), word(0)].concat();
    for (first, second) in [(160, 96), (96, 96), (128, 160), (0, 160), (96, 192), (96, 1 << 40)] {
        let words = [word(1), word(first), word(second), tails.clone()];
        opaque(PROCESSOR, call_with(signature, &words));
    }
    let mut padding = good.clone();
    let at = padding.len() - 33;
    padding[at] = 1;
    opaque(PROCESSOR, padding);
    opaque(PROCESSOR, [good, word(0)].concat());
}

#[test]
fn a_word_is_as_wide_as_its_type() {
    // 1: the decoder alone would take these.
    let accepts =
        |ty: &str, word: [u8; 32]| decode_exact(&[DynSolType::parse(ty).unwrap()], &word).is_some();
    let number = |n: u64| U256::from(n).to_be_bytes::<32>();
    let minus = |n: u64| (U256::MAX - U256::from(n - 1)).to_be_bytes::<32>();
    for (ty, word, good) in [
        ("uint8", number(255), true),
        ("uint8", number(256), false),
        ("int8", number(127), true),
        ("int8", number(128), false),
        ("int8", minus(128), true),
        ("int8", minus(129), false),
        ("int256", minus(1), true),
        ("bool", number(1), true),
        ("bool", number(2), false),
        ("bytes4", [[1; 4].as_slice(), &[0; 28]].concat().try_into().unwrap(), true),
        ("bytes4", [1; 32], false),
        ("bytes32", [1; 32], true),
        ("address", PAYEE.into_word().0, true),
        ("address", [1; 32], false),
        ("function", [[1; 24].as_slice(), &[0; 8]].concat().try_into().unwrap(), true),
        ("function", [1; 32], false),
    ] {
        assert_eq!(accepts(ty, word), good, "{ty} {}", hex::encode(word));
    }
}

#[test]
fn aliased_offsets_are_refused_before_they_blow_up() {
    let ty = DynSolType::parse("uint256[][][][]").unwrap();
    let mut data = word(32);
    for _ in 0..3 {
        data.extend(word(500));
        data.extend((0..500_u64).flat_map(|_| word(500 * 32)));
    }
    data.extend(word(u64::MAX));
    assert_eq!(decode_exact(&[ty], &data), None);
}

fn any_type() -> impl Strategy<Value = DynSolType> {
    let leaf = prop_oneof![
        Just(DynSolType::Bool),
        Just(DynSolType::Address),
        Just(DynSolType::Uint(256)),
        Just(DynSolType::Uint(8)),
        Just(DynSolType::Int(16)),
        Just(DynSolType::FixedBytes(4)),
        Just(DynSolType::Bytes),
        Just(DynSolType::String),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|ty| DynSolType::Array(Box::new(ty))),
            (inner.clone(), 1..3_usize).prop_map(|(ty, n)| DynSolType::FixedArray(Box::new(ty), n)),
            proptest::collection::vec(inner, 1..3).prop_map(DynSolType::Tuple),
        ]
    })
}

/// A value of a type, made from a stream of bytes.
fn value_of(ty: &DynSolType, seed: &mut impl Iterator<Item = u8>) -> DynSolValue {
    let byte = seed.next().unwrap_or(0);
    let mut many = |ty: &DynSolType, n: usize| (0..n).map(|_| value_of(ty, seed)).collect();
    match ty {
        DynSolType::Bool => DynSolValue::Bool(byte.is_multiple_of(2)),
        DynSolType::Address => DynSolValue::Address(Address::repeat_byte(byte)),
        DynSolType::Uint(bits) => DynSolValue::Uint(U256::from(byte), *bits),
        DynSolType::Int(bits) => {
            let number = alloy::primitives::I256::try_from(i64::from(byte.cast_signed())).unwrap();
            DynSolValue::Int(number, *bits)
        }
        DynSolType::FixedBytes(n) => {
            let mut word = [0; 32];
            word[..*n].fill(byte);
            DynSolValue::FixedBytes(word.into(), *n)
        }
        DynSolType::Bytes => DynSolValue::Bytes(vec![byte; usize::from(byte % 70)]),
        DynSolType::String => DynSolValue::String("ж".repeat(usize::from(byte % 40))),
        DynSolType::Array(inner) => DynSolValue::Array(many(inner, usize::from(byte % 4))),
        DynSolType::FixedArray(inner, n) => DynSolValue::FixedArray(many(inner, *n)),
        DynSolType::Tuple(inner) => {
            DynSolValue::Tuple(inner.iter().map(|ty| value_of(ty, seed)).collect())
        }
        other => panic!("{other:?}"),
    }
}

proptest! {
    #[test]
    fn every_encoded_value_is_read_back(
        types in proptest::collection::vec(any_type(), 0..4),
        seed in proptest::collection::vec(any::<u8>(), 64),
    ) {
        let mut seed = seed.into_iter();
        let values: Vec<_> = types.iter().map(|ty| value_of(ty, &mut seed)).collect();
        let data = encode(values.clone());
        prop_assert_eq!(decode_exact(&types, &data), Some(values));
    }

    #[test]
    fn what_is_accepted_encodes_to_itself(
        types in proptest::collection::vec(any_type(), 1..4),
        seed in proptest::collection::vec(any::<u8>(), 64),
        at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>(),
    ) {
        let mut seed = seed.into_iter();
        let mut data = encode(types.iter().map(|ty| value_of(ty, &mut seed)).collect());
        if !data.is_empty() {
            let at = at.index(data.len());
            data[at] = byte;
            if cut {
                data.truncate(at);
            }
        }
        if let Some(values) = decode_exact(&types, &data) {
            prop_assert_eq!(encode(values), data);
        }
    }

    #[test]
    fn random_bytes_never_panic(
        types in proptest::collection::vec(any_type(), 0..4),
        data in proptest::collection::vec(any::<u8>(), 0..300),
        words in proptest::collection::vec(0..200_u64, 0..12),
    ) {
        let _ = decode_exact(&types, &data);
        let _ = decode_exact(&types, &words.iter().flat_map(|n| word(*n)).collect::<Vec<_>>());
        let _ = main_effect(PROCESSOR, 0, data.clone());
        let _ = main_effect(TUSD, 0, data);
    }
}
