//! Functions of tokens: what leaves, who may take, and what is not said.

use super::fixtures::*;
use crate::core::amount::Amount;
use crate::core::policy::Effect;
use crate::core::policy::bundle::abi::{ContractAbi, FunctionClass};
use crate::core::policy::effect::ApprovalForm;
use crate::core::policy::evaluate::fixtures::{calldata, uint};
use alloy::dyn_abi::DynSolValue;
use alloy::primitives::{Address, U256};

fn allows(owner: Address, spender: Address, amount: U256, form: ApprovalForm) -> Effect {
    let (asset, amount) = ("tusd".to_owned(), Amount::new(amount));
    Effect::Approve { asset, owner, spender, amount, form, permit: None }
}

fn operator(asset: &str, operator: Address, id: Option<u64>, approved: bool) -> Effect {
    let (asset, id) = (asset.to_owned(), id.map(U256::from));
    Effect::OperatorApproval { asset, owner: SIGNER, operator, id, approved }
}

fn nft(asset: &str, id: u64, amount: u64) -> Effect {
    let (asset, id, amount) = (asset.to_owned(), U256::from(id), amount.into());
    Effect::NftOut { asset, from: SIGNER, to: PAYEE, id, amount }
}

#[test]
fn tokens_that_leave_are_the_callers_own() {
    let from = |owner: Address| vec![address(owner), address(PAYEE), uint(5)];
    let own = calldata("transferFrom(address,address,uint256)", from(SIGNER));
    assert_eq!(does(TUSD, 0, transfer(PAYEE, 5)), [token_out(SIGNER, PAYEE, 5)]);
    assert_eq!(does(TUSD, 0, own), [token_out(SIGNER, PAYEE, 5)]);
    let others = calldata("transferFrom(address,address,uint256)", from(VAULT));
    refused(&does(TUSD, 0, others.clone()), "another account");
    refused(&does(PUNKS, 0, others), "another account");
    let send = |data: &[u8]| {
        calldata("send(address,uint256,bytes)", vec![address(PAYEE), uint(5), bytes(data)])
    };
    assert_eq!(does(TUSD, 0, send(&[])), [token_out(SIGNER, PAYEE, 5)]);
    refused(&does(TUSD, 0, send(&[1])), "hands data to the receiver");
    // Native value beside it is an effect of its own.
    let both = [token_out(SIGNER, PAYEE, 5), native_out(SIGNER, TUSD, 9)];
    assert_eq!(does(TUSD, 9, transfer(PAYEE, 5)), both);
}

#[test]
fn an_allowance_without_end_is_the_highest_number() {
    // 8
    let half = U256::ONE << 255;
    for (asked, amount) in [
        (U256::ZERO, U256::ZERO),
        (U256::from(7), U256::from(7)),
        (half - U256::ONE, half - U256::ONE),
        (half, U256::MAX),
        (U256::MAX - U256::ONE, U256::MAX),
        (U256::MAX, U256::MAX),
    ] {
        let values = || vec![address(VAULT), number(asked, 256)];
        for (signature, amount, form) in [
            ("approve(address,uint256)", amount, ApprovalForm::Approve),
            ("increaseAllowance(address,uint256)", amount, ApprovalForm::Increase),
            ("decreaseAllowance(address,uint256)", U256::ZERO, ApprovalForm::Increase),
        ] {
            let done = does(TUSD, 0, calldata(signature, values()));
            assert_eq!(done, [allows(SIGNER, VAULT, amount, form)], "{signature}");
        }
    }
    for (amount, expected) in [
        ((U256::ONE << 160) - U256::ONE, U256::MAX),
        ((U256::ONE << 160) - U256::from(2), (U256::ONE << 160) - U256::from(2)),
    ] {
        let values =
            vec![address(TUSD), address(VAULT), number(amount, 160), number(U256::ONE, 48)];
        let data = calldata("approve(address,address,uint160,uint48)", values);
        let done = does(PERMIT2, 0, data);
        assert_eq!(done, [allows(SIGNER, VAULT, expected, ApprovalForm::Permit2Approve(PERMIT2))]);
    }
}

#[test]
fn operators_are_approved_and_taken_back() {
    let all = |to: Address, yes: bool| {
        calldata("setApprovalForAll(address,bool)", vec![address(to), DynSolValue::Bool(yes)])
    };
    for (asset, name) in [(PUNKS, "punks"), (TICKETS, "tickets")] {
        assert_eq!(does(asset, 0, all(VAULT, true)), [operator(name, VAULT, None, true)]);
        assert_eq!(does(asset, 0, all(VAULT, false)), [operator(name, VAULT, None, false)]);
    }
    assert_eq!(does(PUNKS, 0, approve(VAULT, 7)), [operator("punks", VAULT, Some(7), true)]);
    let nobody = operator("punks", Address::ZERO, Some(7), false);
    assert_eq!(does(PUNKS, 0, approve(Address::ZERO, 7)), [nobody]);
    for (signature, approved) in
        [("authorizeOperator(address)", true), ("revokeOperator(address)", false)]
    {
        let done = does(TUSD, 0, calldata(signature, vec![address(VAULT)]));
        assert_eq!(done, [operator("tusd", VAULT, None, approved)]);
    }
    // 1: true is written in one way.
    let mut two = all(VAULT, true);
    *two.last_mut().unwrap() = 2;
    refused(&does(PUNKS, 0, two), "canonical");
}

#[test]
fn unique_tokens_are_counted_and_nothing_is_handed_to_their_receiver() {
    let values = || vec![address(SIGNER), address(PAYEE), uint(7)];
    for signature in
        ["transferFrom(address,address,uint256)", "safeTransferFrom(address,address,uint256)"]
    {
        assert_eq!(does(PUNKS, 0, calldata(signature, values())), [nft("punks", 7, 1)]);
    }
    let with = |data: &[u8]| {
        let values = [values(), vec![bytes(data)]].concat();
        calldata("safeTransferFrom(address,address,uint256,bytes)", values)
    };
    assert_eq!(does(PUNKS, 0, with(&[])), [nft("punks", 7, 1)]);
    refused(&does(PUNKS, 0, with(&[0])), "hands data to the receiver");
    let one = |data: &[u8], from: Address| {
        let values = vec![address(from), address(PAYEE), uint(7), uint(3), bytes(data)];
        calldata("safeTransferFrom(address,address,uint256,uint256,bytes)", values)
    };
    assert_eq!(does(TICKETS, 0, one(&[], SIGNER)), [nft("tickets", 7, 3)]);
    refused(&does(TICKETS, 0, one(&[0; 32], SIGNER)), "hands data to the receiver");
    refused(&does(TICKETS, 0, one(&[], VAULT)), "another account");
}

#[test]
fn a_batch_is_summed_by_token() {
    // 6, 13
    let batch = |ids: &[u64], amounts: Vec<U256>, data: &[u8]| {
        let ids = list(ids.iter().map(|id| uint(*id)).collect());
        let amounts = list(amounts.into_iter().map(|amount| number(amount, 256)).collect());
        let values = vec![address(SIGNER), address(PAYEE), ids, amounts, bytes(data)];
        let signature = "safeBatchTransferFrom(address,address,uint256[],uint256[],bytes)";
        does(TICKETS, 0, calldata(signature, values))
    };
    let amounts = |all: &[u64]| all.iter().map(|n| U256::from(*n)).collect::<Vec<_>>();
    let sums = [nft("tickets", 4, 10), nft("tickets", 9, 2)];
    assert_eq!(batch(&[9, 4, 4], amounts(&[2, 3, 7]), &[]), sums);
    refused(&batch(&[9, 4], amounts(&[2]), &[]), "not as many");
    refused(&batch(&[], vec![], &[]), "empty");
    refused(&batch(&[4, 4], vec![U256::MAX, U256::ONE], &[]), "overflows");
    refused(&batch(&[4], amounts(&[1]), &[1]), "hands data to the receiver");
    let many: Vec<u64> = (0..65).collect();
    refused(&batch(&many, amounts(&many), &[]), "more than 64 effects");
}

#[test]
fn a_function_means_what_it_does_only_where_the_standard_has_it() {
    // 22
    let all = vec![address(VAULT), DynSolValue::Bool(true)];
    let data = calldata("setApprovalForAll(address,bool)", all);
    refused(&does(TUSD, 0, data.clone()), "of the asset `tusd`");
    refused(&does(PUNKS, 0, transfer(PAYEE, 1)), "of the asset `punks`");
    refused(&does(TICKETS, 0, approve(PAYEE, 1)), "of the asset `tickets`");
    // The same calldata at a contract that is no asset, bound or not, moves nothing that is known.
    grantable(&does(BLANK, 0, data.clone()), BLANK, selector(&data));
    grantable(&does(VAULT, 0, approve(PAYEE, 1)), VAULT, selector(&approve(PAYEE, 1)));
    refused(&does(UNKNOWN, 0, data), "not a contract of the book");
    for signature in ["transferAndCall(address,uint256)", "burn(address,uint256)"] {
        let data = calldata(signature, vec![address(PAYEE), uint(1)]);
        refused(&does(TUSD, 0, data), "of the asset `tusd`");
    }
}

#[test]
fn permit2_moves_and_approves_registered_tokens_of_the_caller() {
    let transfer = |from: Address, token: Address| {
        vec![address(from), address(PAYEE), number(U256::from(5), 160), address(token)]
    };
    let one = |from, token| {
        calldata("transferFrom(address,address,uint160,address)", transfer(from, token))
    };
    assert_eq!(does(PERMIT2, 0, one(SIGNER, TUSD)), [token_out(SIGNER, PAYEE, 5)]);
    refused(&does(PERMIT2, 0, one(VAULT, TUSD)), "another account");
    refused(&does(PERMIT2, 0, one(SIGNER, UNKNOWN)), "not a registered ERC-20 asset");
    refused(&does(PERMIT2, 0, one(SIGNER, PUNKS)), "not a registered ERC-20 asset");
    let batch = |all: Vec<DynSolValue>| {
        does(
            PERMIT2,
            0,
            calldata("transferFrom((address,address,uint160,address)[])", vec![list(all)]),
        )
    };
    let two = batch(vec![tuple(transfer(SIGNER, TUSD)), tuple(transfer(SIGNER, TUSD))]);
    assert_eq!(two, [token_out(SIGNER, PAYEE, 5), token_out(SIGNER, PAYEE, 5)]);
    let mixed = vec![tuple(transfer(SIGNER, TUSD)), tuple(transfer(VAULT, TUSD))];
    refused(&batch(mixed), "another account");
    refused(&batch(vec![]), "empty");
    let pair = tuple(vec![address(TUSD), address(VAULT)]);
    let data = calldata("lockdown((address,address)[])", vec![list(vec![pair])]);
    let none = allows(SIGNER, VAULT, U256::ZERO, ApprovalForm::Permit2Approve(PERMIT2));
    assert_eq!(does(PERMIT2, 0, data.clone()), [none]);
    // Elsewhere it is not Permit2.
    grantable(&does(BLANK, 0, data.clone()), BLANK, selector(&data));
}

#[test]
fn no_abi_gives_a_function_that_is_known_another_name() {
    // 22: these names were searched for: they have the selectors of `transfer` and of `approve`.
    let read = |signature: &str| {
        let abi = alloy::json_abi::JsonAbi::parse([&*format!("function {signature}")]).unwrap();
        let abi = ContractAbi::read(&serde_json::to_vec(&abi).unwrap()).unwrap();
        abi.functions.into_values().next().unwrap()
    };
    for (signature, class) in [
        ("many_msg_babbage(bytes1)", FunctionClass::Refused),
        ("join_tg_invmru_haha_fd06787(address,bool)", FunctionClass::Refused),
        ("sign_szabo_bytecode(bytes16,uint128)", FunctionClass::Refused),
        ("multicall(bytes32,bytes[])", FunctionClass::Refused),
        ("multicall(bytes,uint8)", FunctionClass::Refused),
        ("approveHash(bytes32)", FunctionClass::Refused),
        ("upgradeTo(address)", FunctionClass::Admin),
        ("enableModule(address)", FunctionClass::Admin),
        ("setGuard(address)", FunctionClass::Admin),
        ("upgradeTo(bytes,uint8)", FunctionClass::Admin),
        ("deposit(uint256)", FunctionClass::Plain),
    ] {
        let function = read(signature);
        assert_eq!(function.class, class, "{signature}");
        assert_eq!(function.refused.is_some(), class != FunctionClass::Plain, "{signature}");
    }
    for signature in super::known::signatures() {
        assert_eq!(read(signature).class, FunctionClass::Refused, "{signature}");
    }
}
