//! Calls inside calls: who calls, what is counted, and what is not believed.

use super::calls::{CALLS_MAX, DEPTH_MAX};
use super::fixtures::*;
use super::{addresses, effects};
use crate::core::intent::Intent;
use crate::core::policy::evaluate::fixtures::{calldata, tx_of, uint};
use crate::core::policy::{CodeFact, Effect};
use alloy::dyn_abi::DynSolValue;
use alloy::primitives::{Address, B256, U256, keccak256};

fn pay(to: Address, value: u64) -> Inner {
    Inner(to, value, vec![])
}

fn send(amount: u64) -> Inner {
    Inner(TUSD, 0, transfer(PAYEE, amount))
}

fn note() -> Vec<u8> {
    let values = vec![uint(1), bytes(b"memo"), DynSolValue::String("title".into())];
    calldata("note(uint256,bytes,string)", values)
}

fn function(name: &str, value: u64) -> Vec<u8> {
    calldata(&format!("{name}(uint256)"), vec![uint(value)])
}

fn nested(depth: usize) -> Vec<u8> {
    (0..depth).fold(transfer(PAYEE, 1), |data, level| {
        let to = if level == 0 { TUSD } else { ACCOUNT };
        execute(&Inner(to, 0, data))
    })
}

#[test]
fn every_form_of_aggregate_calls_as_multicall3() {
    let pair = |Inner(to, _, data): &Inner| tuple(vec![address(*to), bytes(data)]);
    let flagged = |Inner(to, _, data): &Inner| {
        tuple(vec![address(*to), DynSolValue::Bool(true), bytes(data)])
    };
    let calls = [send(5), send(6)];
    let pairs = || list(calls.iter().map(pair).collect());
    let flag = DynSolValue::Bool(false);
    for data in [
        calldata("aggregate((address,bytes)[])", vec![pairs()]),
        calldata("blockAndAggregate((address,bytes)[])", vec![pairs()]),
        calldata("tryAggregate(bool,(address,bytes)[])", vec![flag.clone(), pairs()]),
        calldata("tryBlockAndAggregate(bool,(address,bytes)[])", vec![flag, pairs()]),
        calldata(
            "aggregate3((address,bool,bytes)[])",
            vec![list(calls.iter().map(flagged).collect())],
        ),
        aggregate3_value(&calls),
    ] {
        let moved = [5, 6].map(|amount| token_out(MULTICALL3, PAYEE, amount));
        assert_eq!(does(MULTICALL3, 0, data.clone()), moved);
        // Value that is sent along is Multicall3's from then on.
        let [first, second] = moved;
        let paid = native_out(SIGNER, MULTICALL3, 9);
        assert_eq!(does(MULTICALL3, 9, data.clone()), [paid, first, second]);
        // Nobody else is believed to do that with it.
        for other in [BLANK, SAFE, ROUTER, ACCOUNT, MULTISEND, PERMIT2, VAULT] {
            grantable(&does(other, 0, data.clone()), other, selector(&data));
        }
        refused(&does(UNKNOWN, 0, data.clone()), "not a contract of the book");
        let mut dirty = data.clone();
        dirty.extend([0; 32]);
        refused(&does(MULTICALL3, 0, dirty), "canonical");
    }
    let values = [pay(PAYEE, 4), Inner(VAULT, 3, function("pay", 7))];
    let done = does(MULTICALL3, 7, aggregate3_value(&values));
    let expected = [native_out(SIGNER, MULTICALL3, 7), native_out(MULTICALL3, PAYEE, 4)];
    assert_eq!(done[..2], expected);
    let Effect::Call(call) = &done[2] else { panic!("{done:?}") };
    assert_eq!((call.from, call.to, call.value), (MULTICALL3, VAULT, 3_u64.into()));
}

#[test]
fn whoever_calls_through_a_wrapper_does_not_move_the_signers_tokens() {
    let own = |owner: Address| {
        let values = vec![address(owner), address(PAYEE), uint(5)];
        Inner(TUSD, 0, calldata("transferFrom(address,address,uint256)", values))
    };
    refused(&does(MULTICALL3, 0, aggregate3_value(&[own(SIGNER)])), "another account");
    let moved = [token_out(SAFE, PAYEE, 5)];
    assert_eq!(does(SAFE, 0, exec_transaction(&own(SAFE), 0)), moved);
    refused(&does(SAFE, 0, exec_transaction(&own(SIGNER), 0)), "another account");
    // A Safe calls an account, which calls Multicall3: each acts as itself.
    let inner = aggregate3_value(&[send(5)]);
    let inner = execute(&Inner(MULTICALL3, 2, inner));
    let done = does(SAFE, 1, exec_transaction(&Inner(ACCOUNT, 3, inner), 0));
    let expected = [
        native_out(SIGNER, SAFE, 1),
        native_out(SAFE, ACCOUNT, 3),
        native_out(ACCOUNT, MULTICALL3, 2),
        token_out(MULTICALL3, PAYEE, 5),
    ];
    assert_eq!(done, expected);
}

#[test]
fn a_multicall_of_a_contract_to_itself_keeps_the_caller() {
    let two = || list(vec![bytes(&function("pay", 1)), bytes(&note())]);
    let blockhash = DynSolValue::FixedBytes(B256::repeat_byte(1), 32);
    for data in [
        calldata("multicall(bytes[])", vec![two()]),
        calldata("multicall(uint256,bytes[])", vec![uint(9), two()]),
        calldata("multicall(bytes32,bytes[])", vec![blockhash.clone(), two()]),
    ] {
        let done = does(ROUTER, 0, data.clone());
        let [Effect::Call(pay), Effect::Call(note)] = done.as_slice() else { panic!("{done:?}") };
        assert_eq!((pay.from, pay.to, pay.function.as_str()), (SIGNER, ROUTER, "pay(uint256)"));
        assert_eq!((note.from, note.to), (SIGNER, ROUTER));
        // Both would see the one value that was sent.
        refused(&does(ROUTER, 1, data.clone()), "sees the value");
        // A contract of the book with the very function in its ABI, and not bound.
        grantable(&does(VAULT, 0, data.clone()), VAULT, selector(&data));
    }
    let done = does(ROUTER, 8, multicall(&[multicall(&[function("pay", 1)])]));
    let [Effect::Call(call)] = done.as_slice() else { panic!("{done:?}") };
    assert_eq!((call.from, call.value), (SIGNER, 8_u64.into()));
    // Through a Safe, the Safe is the caller.
    let inner = Inner(ROUTER, 0, multicall(&[note()]));
    let done = does(SAFE, 0, exec_transaction(&inner, 0));
    assert!(matches!(&done[..], [Effect::Call(call)] if call.from == SAFE), "{done:?}");
}

#[test]
fn one_call_that_is_not_understood_is_told_beside_the_others() {
    let unknown = Inner(VAULT, 3, vec![1, 2, 3, 4]);
    let done = does(MULTICALL3, 3, aggregate3_value(&[send(5), unknown, send(6)]));
    assert_eq!(done.len(), 4, "{done:?}");
    grantable(&done, VAULT, Some([1, 2, 3, 4]));
    let value: Vec<u64> = done.iter().map(|effect| effect.native().units().to()).collect();
    assert_eq!(value, [3, 0, 3, 0]);
    for inner in [
        Inner(TUSD, 0, transfer(PAYEE, 1)[..40].to_vec()),
        Inner(UNKNOWN, 0, note()),
        Inner(VAULT, 0, vec![1, 2]),
        Inner(PAYEE, 0, note()),
        Inner(Address::repeat_byte(0x77), 0, multi_send(&[(0, send(1))])),
    ] {
        let done = does(MULTICALL3, 0, aggregate3_value(&[send(5), inner.clone()]));
        assert!(done.len() == 2 && is_opaque(&done[1]), "{inner:?} {done:?}");
    }
    // Plain value to a contract runs its code; a contract of the book has a name for that.
    grantable(&does(MULTICALL3, 0, aggregate3_value(&[pay(VAULT, 1)])), VAULT, None);
    refused(&does(MULTICALL3, 0, aggregate3_value(&[pay(UNKNOWN, 1)])), "code that would run");
}

#[test]
fn a_safe_calls_as_itself_and_pays_nobody_for_the_gas() {
    let done = does(SAFE, 0, exec_transaction(&pay(PAYEE, 5), 0));
    assert_eq!(done, [native_out(SAFE, PAYEE, 5)]);
    for gas in [[1, 0, 0], [0, 1, 0], [0, 0, 1]] {
        refused(&does(SAFE, 0, exec_with(&send(1), 0, gas)), "pay for the gas");
    }
    for operation in [2, 255] {
        refused(&does(SAFE, 0, exec_transaction(&send(1), operation)), "neither call nor");
    }
    let mut wide = exec_transaction(&send(1), 0);
    wide[4 + 3 * 32 + 30] = 1;
    refused(&does(SAFE, 0, wide), "canonical");
    // Its own administration is an effect of its kind; consent to a hash is none at all.
    let owner = vec![address(VAULT), uint(1)];
    let owner = calldata("addOwnerWithThreshold(address,uint256)", owner);
    let done = does(SAFE, 0, exec_transaction(&Inner(SAFE, 0, owner), 0));
    let [Effect::AdminOp(call)] = done.as_slice() else { panic!("{done:?}") };
    assert_eq!((call.from, call.to), (SAFE, SAFE));
    let hash = DynSolValue::FixedBytes(B256::repeat_byte(1), 32);
    let consent = calldata("approveHash(bytes32)", vec![hash]);
    grantable(&does(SAFE, 0, consent.clone()), SAFE, selector(&consent));
}

#[test]
fn delegatecall_is_nothing_but_a_bound_multisend() {
    // 3
    for to in [VAULT, UNKNOWN, TUSD, SAFE, MULTICALL3, PAYEE, BLANK] {
        for data in [vec![], note(), transfer(PAYEE, 1), multi_send(&[(0, send(1))])] {
            refused(&does(SAFE, 0, exec_transaction(&Inner(to, 0, data), 1)), "delegatecall");
        }
    }
    let multisend = |value: u64, data: Vec<u8>| {
        does(SAFE, 0, exec_transaction(&Inner(MULTISEND, value, data), 1))
    };
    let done = multisend(0, multi_send(&[(0, send(5)), (0, pay(PAYEE, 2))]));
    assert_eq!(done, [token_out(SAFE, PAYEE, 5), native_out(SAFE, PAYEE, 2)]);
    refused(&multisend(1, multi_send(&[(0, send(5))])), "delegatecall");
    refused(&multisend(0, multi_send(&[(0, send(5)), (1, send(5))])), "delegatecall");
    refused(&multisend(0, multi_send(&[(2, send(5))])), "delegatecall");
    refused(&multisend(0, multi_send(&[(0, pay(Address::ZERO, 0))])), "zero address");
    refused(&multisend(0, multi_send(&[])), "no call at all");
    refused(&multisend(0, note()), "not `multiSend(bytes)`");
    refused(&multisend(0, vec![]), "packed");
    // Called and not delegated to, it acts as itself: nothing that is understood.
    let data = multi_send(&[(0, send(5))]);
    grantable(&does(MULTISEND, 0, data.clone()), MULTISEND, selector(&data));
    let called = does(SAFE, 0, exec_transaction(&Inner(MULTISEND, 0, data), 0));
    assert!(called.iter().any(is_opaque), "{called:?}");
}

#[test]
fn packed_transactions_have_nothing_missing_and_nothing_left() {
    // 1
    let good = packed(&[(0, send(5)), (0, send(6))]);
    let with = |packed: &[u8]| {
        let data = calldata("multiSend(bytes)", vec![bytes(packed)]);
        does(SAFE, 0, exec_transaction(&Inner(MULTISEND, 0, data), 1))
    };
    assert_eq!(with(&good).len(), 2);
    refused(&with(&[&good[..], &[0]].concat()), "packed");
    let half = good.len() / 2;
    for length in [1, 20, 21, 53, 84, 85, 100, half - 1, half + 1, good.len() - 1] {
        refused(&with(&good[..length]), "packed");
    }
    let mut long = good;
    for at in [53, 60, 84] {
        let was = long[at];
        long[at] ^= 0x80;
        assert!(with(&long).iter().any(is_opaque), "{at}");
        long[at] = was;
    }
}

#[test]
fn smart_accounts_execute_one_call_or_many_of_equal_lengths() {
    let to = |n: usize| list(vec![address(TUSD); n]);
    let data = |n: usize| list(vec![bytes(&transfer(PAYEE, 5)); n]);
    let value = |n: usize| list(vec![uint(0); n]);
    let moved = |n: usize| vec![token_out(ACCOUNT, PAYEE, 5); n];
    assert_eq!(does(ACCOUNT, 0, execute(&send(5))), moved(1));
    let pairs = |a: usize, b: usize| {
        does(ACCOUNT, 0, calldata("executeBatch(address[],bytes[])", vec![to(a), data(b)]))
    };
    let triples = |a: usize, b: usize, c: usize| {
        let values = vec![to(a), value(b), data(c)];
        does(ACCOUNT, 0, calldata("executeBatch(address[],uint256[],bytes[])", values))
    };
    assert_eq!(pairs(2, 2), moved(2));
    assert_eq!(triples(2, 2, 2), moved(2));
    for done in [pairs(2, 1), pairs(1, 2), triples(2, 1, 2), triples(2, 0, 2), triples(1, 2, 2)] {
        assert!(matches!(&done[..], [Effect::Opaque { call: None, .. }]), "{done:?}");
    }
    refused(&pairs(0, 0), "no call at all");
    refused(&triples(0, 0, 0), "no call at all");
    let call = tuple(vec![address(TUSD), uint(0), bytes(&transfer(PAYEE, 5))]);
    let batch = |calls: Vec<DynSolValue>| {
        does(ACCOUNT, 4, calldata("executeBatch((address,uint256,bytes)[])", vec![list(calls)]))
    };
    let paid = vec![native_out(SIGNER, ACCOUNT, 4)];
    assert_eq!(batch(vec![call.clone(), call]), [paid, moved(2)].concat());
    refused(&batch(vec![]), "no call at all");
}

#[test]
fn depth_and_count_have_an_end() {
    // 2
    assert_eq!(does(ACCOUNT, 0, nested(DEPTH_MAX)), [token_out(ACCOUNT, PAYEE, 1)]);
    refused(&does(ACCOUNT, 0, nested(DEPTH_MAX + 1)), "nested deeper");
    refused(&does(ACCOUNT, 0, nested(60)), "nested deeper");
    let many = |n: usize| does(MULTICALL3, 0, aggregate3_value(&vec![send(1); n]));
    assert_eq!(many(CALLS_MAX - 1).len(), CALLS_MAX - 1);
    assert!(!many(CALLS_MAX - 1).iter().any(is_opaque));
    refused(&many(CALLS_MAX), "more than 64 calls");
    refused(&many(5_000), "more than 64 calls");
    assert!(many(5_000).len() <= CALLS_MAX + 1);
    // The calls of all levels count together, …
    let level = aggregate3_value(&vec![send(1); 40]);
    let both = [Inner(MULTICALL3, 0, level.clone()), Inner(MULTICALL3, 0, level)];
    refused(&does(MULTICALL3, 0, aggregate3_value(&both)), "more than 64 calls");
    // … and a call may have two effects.
    let paid = vec![Inner(TUSD, 1, transfer(PAYEE, 1)); 40];
    refused(&does(MULTICALL3, 0, aggregate3_value(&paid)), "more than 64 effects");
}

#[test]
fn what_wraps_nothing_is_not_nothing() {
    for (to, data) in [(MULTICALL3, aggregate3_value(&[])), (ROUTER, multicall(&[]))] {
        for value in [0, 5] {
            refused(&does(to, value, data.clone()), "no call at all");
        }
    }
}

#[test]
fn aliased_and_overlapping_offsets_of_inner_calls_are_refused() {
    // 1: the second element's offset points at the first: alloy reads that as the same call twice.
    let good = multicall(&[note(), note()]);
    assert!(!does(ROUTER, 0, good.clone()).iter().any(is_opaque));
    let at = 4 + 32 + 32;
    let first = good[at..at + 32].to_vec();
    let mut aliased = good.clone();
    aliased[at + 32..at + 64].copy_from_slice(&first);
    refused(&does(ROUTER, 0, aliased), "canonical");
    let mut far = good.clone();
    far[at + 60] = 0xff;
    refused(&does(ROUTER, 0, far), "canonical");
    let mut into_head = good;
    into_head[at..at + 32].fill(0);
    refused(&does(ROUTER, 0, into_head), "canonical");
}

#[test]
fn the_code_of_everybody_inside_must_be_known_and_the_list_of_them_is_complete() {
    // 4, 5
    let inner = execute(&Inner(MULTICALL3, 0, aggregate3_value(&[send(5), pay(PAYEE, 1)])));
    let sent =
        multi_send(&[(0, Inner(ACCOUNT, 0, inner)), (0, Inner(ROUTER, 0, multicall(&[note()])))]);
    let data = exec_transaction(&Inner(MULTISEND, 0, sent), 1);
    let good = asks(SAFE, 0, data);
    let bundle = world();
    let needed = addresses(bundle, &good.intent, SIGNER);
    assert_eq!(needed, [SAFE, MULTISEND, ACCOUNT, MULTICALL3, TUSD, PAYEE, ROUTER]);
    assert!(!effects_of(&good).iter().any(is_opaque));
    let mut only = good.clone();
    only.facts.codes.retain(|fact| needed.contains(&fact.address));
    assert_eq!(effects_of(&only), effects_of(&good));
    for address in needed {
        let mut less = good.clone();
        less.facts.codes.retain(|fact| fact.address != address);
        refused(&effects_of(&less), "not known");
        let mut delegated = less.clone();
        let code = [&[0xef, 0x01, 0x00][..], &[7; 20]].concat().into();
        delegated.facts.codes.push(CodeFact { address, block: B256::ZERO, code });
        refused(&effects_of(&delegated), "EIP-7702");
        let mut other = less;
        let code = if address == PAYEE { vec![0x60].into() } else { vec![].into() };
        other.facts.codes.push(CodeFact { address, block: B256::ZERO, code });
        assert!(effects_of(&other).iter().any(is_opaque), "{address}");
    }
    let mut creates = good;
    tx_of(&mut creates).to = None;
    assert_eq!(addresses(bundle, &creates.intent, SIGNER), Vec::<Address>::new());
    assert!(addresses(bundle, &Intent::Message { text: "hi".into() }, SIGNER).is_empty());
    let many: Vec<Inner> =
        (0..500_u64).map(|n| pay(Address::left_padding_from(&n.to_be_bytes()), 0)).collect();
    let many = asks(MULTICALL3, 0, aggregate3_value(&many));
    assert_eq!(addresses(bundle, &many.intent, SIGNER).len(), CALLS_MAX);
}

#[test]
fn an_opaque_call_says_who_would_be_called_with_what() {
    let done = does(BLANK, 5, vec![1, 2, 3, 4, 5]);
    let [Effect::Opaque { call: Some(call), .. }] = done.as_slice() else { panic!("{done:?}") };
    assert_eq!((call.from, call.to, call.selector), (SIGNER, BLANK, Some([1, 2, 3, 4])));
    assert_eq!((call.value, call.code_hash), (5_u64.into(), Some(keccak256([0x60]))));
    grantable(&does(VAULT, 5, vec![]), VAULT, None);
    // Not a question of a name: bytes that are not the encoding of a known function, or no selector.
    let mut dirty = function("pay", 1);
    dirty.push(0);
    refused(&does(VAULT, 0, dirty), "canonical");
    for length in 1..4 {
        refused(&does(VAULT, 0, vec![9; length]), "too short");
    }
}

#[test]
fn admin_functions_are_named_as_such() {
    for signature in ["upgradeTo(address)", "transferOwnership(address)"] {
        let done = does(VAULT, 0, calldata(signature, vec![address(PAYEE)]));
        assert!(matches!(&done[..], [Effect::AdminOp(call)] if call.function == signature));
    }
}

#[test]
fn an_intent_has_effects_whatever_it_is() {
    let huge = asks(MULTICALL3, 0, aggregate3_value(&vec![send(1); 300]));
    let done = effects(world(), &huge);
    assert!(matches!(done.last(), Some(Effect::FeeMax { .. })));
    let deep = number(U256::MAX, 256);
    let data = calldata("multicall(uint256,bytes[])", vec![deep, list(vec![bytes(&note())])]);
    assert_eq!(does(ROUTER, 0, data).len(), 1);
}
