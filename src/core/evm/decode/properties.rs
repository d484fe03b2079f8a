//! What holds of every call, whatever is inside.

use super::fixtures::*;
use super::{addresses, effects};
use crate::core::policy::Effect;
use crate::core::policy::evaluate::fixtures::{calldata, uint};
use alloy::dyn_abi::DynSolValue;
use alloy::primitives::{Address, U256};
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// Calls of everything, nested.
fn any_call() -> impl Strategy<Value = Inner> {
    let leaf = prop_oneof![
        (select(vec![PAYEE, VAULT, UNKNOWN]), 0..3_u64).prop_map(|(to, n)| Inner(to, n, vec![])),
        (0..9_u64, 0..2_u64).prop_map(|(n, value)| Inner(TUSD, value, transfer(PAYEE, n))),
        (0..9_u64).prop_map(|n| Inner(PUNKS, 0, approve(VAULT, n))),
        (0..9_u64).prop_map(|n| {
            let values = vec![address(SAFE), address(PAYEE), uint(n)];
            Inner(TUSD, 0, calldata("transferFrom(address,address,uint256)", values))
        }),
        (select(vec![VAULT, ROUTER, BLANK]), 0..3_u64)
            .prop_map(|(to, value)| { Inner(to, value, calldata("pay(uint256)", vec![uint(1)])) }),
        (0..2_u64).prop_map(|value| {
            let all = vec![address(VAULT), DynSolValue::Bool(true)];
            Inner(TICKETS, value, calldata("setApprovalForAll(address,bool)", all))
        }),
        proptest::collection::vec(any::<u8>(), 1..9).prop_map(|data| Inner(VAULT, 0, data)),
    ];
    leaf.prop_recursive(4, 24, 3, |inner| {
        let several = proptest::collection::vec(inner.clone(), 1..4);
        prop_oneof![
            (several.clone(), 0..3_u64).prop_map(|(calls, value)| Inner(
                MULTICALL3,
                value,
                aggregate3_value(&calls)
            )),
            (several.clone(), 0..2_u64).prop_map(|(calls, value)| {
                let calls: Vec<Vec<u8>> = calls.into_iter().map(|Inner(.., data)| data).collect();
                Inner(ROUTER, value, multicall(&calls))
            }),
            (inner.clone(), 0..3_u64).prop_map(|(call, value)| Inner(
                ACCOUNT,
                value,
                execute(&call)
            )),
            (inner, 0..3_u64, 0..2_u64).prop_map(|(call, value, operation)| {
                Inner(SAFE, value, exec_transaction(&call, operation))
            }),
            (several, 0..2_u64).prop_map(|(calls, value)| {
                let calls: Vec<(u8, Inner)> = calls.into_iter().map(|call| (0, call)).collect();
                let sent = Inner(MULTISEND, 0, multi_send(&calls));
                Inner(SAFE, value, exec_transaction(&sent, 1))
            }),
        ]
    })
}

/// Whether no grant at all could allow it.
fn never(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Opaque { call: None, .. }))
}

/// Native value that leaves an account by these effects.
fn native_of(effects: &[Effect], account: Address) -> U256 {
    let own = effects.iter().filter(|effect| effect.actor() == Some(account));
    own.map(|effect| effect.native().units()).sum()
}

proptest! {
    #[test]
    fn value_that_leaves_the_account_is_counted_exactly_once(call in any_call()) {
        let Inner(to, value, data) = call;
        let request = asks(to, u128::from(value), data);
        let done = effects_of(&request);
        prop_assert!(never(&done) || native_of(&done, SIGNER) == U256::from(value), "{:?}", done);
    }

    #[test]
    fn no_fact_less_makes_a_call_better_understood(call in any_call(), at in any::<Index>()) {
        let Inner(to, value, data) = call;
        let request = asks(to, u128::from(value), data);
        let before = effects_of(&request);
        let needed = addresses(world(), &request.intent, SIGNER);
        let mut only = request.clone();
        only.facts.codes.retain(|fact| needed.contains(&fact.address));
        prop_assert_eq!(&effects_of(&only), &before);
        let without = needed[at.index(needed.len())];
        let mut less = request;
        less.facts.codes.retain(|fact| fact.address != without);
        prop_assert!(never(&effects_of(&less)), "{} {:?}", without, before);
    }

    #[test]
    fn a_changed_byte_means_something_else_or_nothing(
        call in any_call(), at in any::<Index>(), flip in 1..=255_u8,
    ) {
        let Inner(to, value, data) = call;
        prop_assume!(!data.is_empty());
        let before = does(to, u128::from(value), data.clone());
        let mut changed = data.clone();
        let at = at.index(data.len());
        changed[at] ^= flip;
        let after = does(to, u128::from(value), changed);
        // What no effect shows: a Safe's signatures and gas, whether a call may fail, opaque bytes.
        let shown = matches!(to, TUSD | PUNKS | TICKETS | PAYEE) && !after.iter().any(is_opaque);
        let silent = before == after && !shown;
        prop_assert!(never(&after) || silent || before != after, "{} {:?}", at, after);
    }

    #[test]
    fn bytes_behind_are_never_read_over(call in any_call(), more in 1..70_usize, byte in any::<u8>()) {
        let Inner(to, value, mut data) = call;
        prop_assume!(data.len() >= 4 && to != VAULT && to != BLANK);
        data.extend(vec![byte; more]);
        prop_assert!(never(&does(to, u128::from(value), data)));
    }

    #[test]
    fn nothing_panics_whatever_the_bytes(
        to in select(CONTRACTS.to_vec()),
        known in any::<Index>(),
        data in proptest::collection::vec(any::<u8>(), 0..200),
        words in proptest::collection::vec(0..300_u64, 0..12),
        call in any_call(), cut in any::<Index>(),
    ) {
        let signatures: Vec<&str> = super::known::signatures().collect();
        let selector = calldata(signatures[known.index(signatures.len())], vec![]);
        let words = words.iter().flat_map(|n| U256::from(*n).to_be_bytes::<32>());
        let Inner(other, _, whole) = call;
        let cut = whole[..cut.index(whole.len().max(1))].to_vec();
        for (to, data) in [
            (to, data.clone()),
            (to, [&selector[..4], &data].concat()),
            (to, [selector[..4].to_vec(), words.collect()].concat()),
            (other, cut),
        ] {
            let request = asks(to, 1, data);
            prop_assert!(effects(world(), &request).len() >= 2);
            let _ = addresses(world(), &request.intent, SIGNER);
        }
    }
}
