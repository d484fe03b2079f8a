//! What the functions of registered assets do: tokens that leave an account, and who may take them.
//!
//! Sources: ERC-20, ERC-721, ERC-777, ERC-1155, and `AllowanceTransfer` of Permit2.

use super::known::{Fields, Known, NOT_CANONICAL};
use crate::core::amount::Amount;
use crate::core::id::ChainName;
use crate::core::policy::bundle::registry::{Asset, Registry, Standard};
use crate::core::policy::effect::{ApprovalForm, Effect};
use alloy::dyn_abi::DynSolValue;
use alloy::primitives::{Address, U256};
use std::collections::BTreeMap;

/// Effects, or why not; `None` where a value is not what its type says, which strict decoding rules out.
type Found = Option<Result<Vec<Effect>, String>>;

/// Reads the arguments of one standard's functions.
type Reading = fn(&Asset, Known, Address, &[DynSolValue]) -> Found;

/// A contract that is Permit2, and who calls it.
#[derive(Clone, Copy)]
pub(super) struct Permit2Call {
    pub contract: Address,
    pub actor: Address,
}

/// Reads one token's part of a function of Permit2.
type Permit2Reading =
    fn(&Registry, &ChainName, Permit2Call, Fields<'_>) -> Option<Result<Effect, String>>;

const OF_ANOTHER: &str = "it moves tokens of another account";
const HANDED_ON: &str = "it hands data to the receiver, who may do anything with it";

/// An allowance, where one that never runs out is the highest number there is: at least 2^255, or all that the
/// type can hold.
pub(super) fn allowance(amount: U256, bits: usize) -> Amount {
    let all = U256::MAX.wrapping_shr(256_usize.saturating_sub(bits));
    Amount::new(if amount.bit(255) || amount >= all { U256::MAX } else { amount })
}

/// What a function of an asset does; `None` if the asset's standard does not have the function.
pub(super) fn effects(asset: &Asset, function: Known, actor: Address, data: &[u8]) -> Found {
    use Known::{
        Approve, AuthorizeOperator, DecreaseAllowance, IncreaseAllowance, RevokeOperator,
        SafeBatchTransfer, SafeTransfer, SafeTransferAmount, SafeTransferData, Send,
        SetApprovalForAll, Transfer, TransferFrom,
    };
    let read: Reading = match (asset.standard, function) {
        (
            Standard::Erc20,
            Transfer | TransferFrom | Approve | IncreaseAllowance | DecreaseAllowance | Send
            | AuthorizeOperator | RevokeOperator,
        ) => fungible,
        (
            Standard::Erc721,
            TransferFrom | Approve | SafeTransfer | SafeTransferData | SetApprovalForAll,
        ) => unique,
        (Standard::Erc1155, SafeTransferAmount | SafeBatchTransfer | SetApprovalForAll) => many,
        _ => return None,
    };
    let values = match function.arguments(data) {
        Ok(values) => values,
        Err(why) => return Some(Err(why)),
    };
    Some(read(asset, function, actor, &values).unwrap_or_else(|| Err(NOT_CANONICAL.to_owned())))
}

/// ERC-20 and ERC-777.
fn fungible(asset: &Asset, function: Known, actor: Address, values: &[DynSolValue]) -> Found {
    let mut values = Fields::new(values);
    let name = || asset.name.clone();
    let out = |to, amount| Effect::TokenOut {
        asset: name(),
        from: actor,
        to,
        amount: Amount::new(amount),
    };
    let approve = |spender, amount, form| Effect::Approve {
        asset: name(),
        owner: actor,
        spender,
        amount,
        form,
        permit: None,
    };
    let effect = match function {
        Known::Transfer => out(values.address()?, values.uint()?),
        Known::TransferFrom => {
            if values.address()? != actor {
                return Some(Err(OF_ANOTHER.to_owned()));
            }
            out(values.address()?, values.uint()?)
        }
        Known::Send => {
            let effect = out(values.address()?, values.uint()?);
            if !values.bytes()?.is_empty() {
                return Some(Err(HANDED_ON.to_owned()));
            }
            effect
        }
        Known::Approve => {
            let (spender, amount) = (values.address()?, values.uint()?);
            approve(spender, allowance(amount, 256), ApprovalForm::Approve)
        }
        Known::IncreaseAllowance => {
            let (spender, amount) = (values.address()?, values.uint()?);
            approve(spender, allowance(amount, 256), ApprovalForm::Increase)
        }
        // It adds nothing. It sets nothing either: the allowance after it is not known here.
        Known::DecreaseAllowance => {
            approve(values.address()?, Amount::ZERO, ApprovalForm::Increase)
        }
        Known::AuthorizeOperator => operator(asset, actor, values.address()?, None, true),
        Known::RevokeOperator => operator(asset, actor, values.address()?, None, false),
        _ => return None,
    };
    Some(Ok(vec![effect]))
}

/// ERC-721.
fn unique(asset: &Asset, function: Known, actor: Address, values: &[DynSolValue]) -> Found {
    let mut values = Fields::new(values);
    let effect = match function {
        Known::SetApprovalForAll => {
            let (to, approved) = (values.address()?, values.flag()?);
            operator(asset, actor, to, None, approved)
        }
        Known::Approve => {
            let (to, id) = (values.address()?, values.uint()?);
            // The zero address takes the approval back.
            operator(asset, actor, to, Some(id), !to.is_zero())
        }
        _ => {
            if values.address()? != actor {
                return Some(Err(OF_ANOTHER.to_owned()));
            }
            let (to, id) = (values.address()?, values.uint()?);
            if function == Known::SafeTransferData && !values.bytes()?.is_empty() {
                return Some(Err(HANDED_ON.to_owned()));
            }
            nft_out(asset, actor, to, id, U256::ONE)
        }
    };
    Some(Ok(vec![effect]))
}

/// ERC-1155.
fn many(asset: &Asset, function: Known, actor: Address, values: &[DynSolValue]) -> Found {
    let mut values = Fields::new(values);
    if function == Known::SetApprovalForAll {
        let (to, approved) = (values.address()?, values.flag()?);
        return Some(Ok(vec![operator(asset, actor, to, None, approved)]));
    }
    if values.address()? != actor {
        return Some(Err(OF_ANOTHER.to_owned()));
    }
    let to = values.address()?;
    let effects = if function == Known::SafeTransferAmount {
        vec![nft_out(asset, actor, to, values.uint()?, values.uint()?)]
    } else {
        let (ids, amounts) = (values.array()?, values.array()?);
        match sums(ids, amounts)? {
            Ok(sums) => {
                sums.into_iter().map(|(id, sum)| nft_out(asset, actor, to, id, sum)).collect()
            }
            Err(why) => return Some(Err(why)),
        }
    };
    if !values.bytes()?.is_empty() {
        return Some(Err(HANDED_ON.to_owned()));
    }
    Some(Ok(effects))
}

/// How many of each token a batch moves: the same token may be there more than once.
fn sums(
    ids: &[DynSolValue],
    amounts: &[DynSolValue],
) -> Option<Result<BTreeMap<U256, U256>, String>> {
    if ids.is_empty() || ids.len() != amounts.len() {
        return Some(Err("ids and amounts are empty, or not as many of each".to_owned()));
    }
    let mut sums: BTreeMap<U256, U256> = BTreeMap::new();
    for (id, amount) in ids.iter().zip(amounts) {
        let sum = sums.entry(id.as_uint()?.0).or_default();
        match sum.checked_add(amount.as_uint()?.0) {
            Some(more) => *sum = more,
            None => return Some(Err("the sum of one token overflows".to_owned())),
        }
    }
    Some(Ok(sums))
}

fn nft_out(asset: &Asset, from: Address, to: Address, id: U256, amount: U256) -> Effect {
    Effect::NftOut { asset: asset.name.clone(), from, to, id, amount: Amount::new(amount) }
}

/// An operator of an asset.
pub(super) fn operator(
    asset: &Asset,
    owner: Address,
    operator: Address,
    id: Option<U256>,
    approved: bool,
) -> Effect {
    Effect::OperatorApproval { asset: asset.name.clone(), owner, operator, id, approved }
}

/// A registered asset whose tokens are fungible.
pub(super) fn token<'a>(
    registry: &'a Registry,
    chain: &ChainName,
    address: Address,
) -> Result<&'a Asset, String> {
    registry
        .asset_at(chain, address)
        .filter(|asset| asset.standard == Standard::Erc20)
        .ok_or_else(|| format!("{address} is not a registered ERC-20 asset"))
}

/// What a function of Permit2 does; `None` if it does not have the function.
pub(super) fn permit2(
    registry: &Registry,
    chain: &ChainName,
    function: Known,
    call: Permit2Call,
    data: &[u8],
) -> Found {
    let read: Permit2Reading = match function {
        Known::Permit2Approve => permit2_approve,
        Known::Permit2Transfer | Known::Permit2TransferBatch => permit2_transfer,
        Known::Permit2Lockdown => permit2_lockdown,
        _ => return None,
    };
    let values = match function.arguments(data) {
        Ok(values) => values,
        Err(why) => return Some(Err(why)),
    };
    let all: Found = match (function, values.as_slice()) {
        (Known::Permit2TransferBatch | Known::Permit2Lockdown, [DynSolValue::Array(each)]) => {
            if each.is_empty() {
                return Some(Err("the list is empty".to_owned()));
            }
            each.iter().map(|one| read(registry, chain, call, Fields::of(one)?)).collect()
        }
        _ => read(registry, chain, call, Fields::new(&values)).map(|one| one.map(|e| vec![e])),
    };
    Some(all.unwrap_or_else(|| Err(NOT_CANONICAL.to_owned())))
}

fn permit2_approve(
    registry: &Registry,
    chain: &ChainName,
    call: Permit2Call,
    mut values: Fields<'_>,
) -> Option<Result<Effect, String>> {
    let (address, spender, amount) = (values.address()?, values.address()?, values.uint()?);
    Some(token(registry, chain, address).map(|asset| Effect::Approve {
        asset: asset.name.clone(),
        owner: call.actor,
        spender,
        amount: allowance(amount, 160),
        form: ApprovalForm::Permit2Approve(call.contract),
        permit: None,
    }))
}

fn permit2_transfer(
    registry: &Registry,
    chain: &ChainName,
    call: Permit2Call,
    mut values: Fields<'_>,
) -> Option<Result<Effect, String>> {
    let (from, to) = (values.address()?, values.address()?);
    let (amount, address) = (values.uint()?, values.address()?);
    if from != call.actor {
        return Some(Err(OF_ANOTHER.to_owned()));
    }
    Some(token(registry, chain, address).map(|asset| Effect::TokenOut {
        asset: asset.name.clone(),
        from,
        to,
        amount: Amount::new(amount),
    }))
}

fn permit2_lockdown(
    registry: &Registry,
    chain: &ChainName,
    call: Permit2Call,
    mut values: Fields<'_>,
) -> Option<Result<Effect, String>> {
    let (address, spender) = (values.address()?, values.address()?);
    Some(token(registry, chain, address).map(|asset| Effect::Approve {
        asset: asset.name.clone(),
        owner: call.actor,
        spender,
        amount: Amount::ZERO,
        form: ApprovalForm::Permit2Approve(call.contract),
        permit: None,
    }))
}
