//! Calls inside calls: what the functions of wrappers carry, and as whom it is called.
//!
//! Sources: Multicall3, OpenZeppelin's and Uniswap's `multicall`, Safe's `execTransaction` and `MultiSend`,
//! ERC-4337's `SimpleAccount` and its like.

use super::known::{Fields, Known, NOT_CANONICAL};
use crate::core::amount::Amount;
use crate::core::id::ChainName;
use crate::core::policy::bundle::registry::{Registry, Wrapper};
use alloy::dyn_abi::DynSolValue;
use alloy::primitives::{Address, U256};

/// A call, wherever it stands.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// Who calls.
    pub actor: Address,
    /// Who is called.
    pub to: Address,
    /// Wei.
    pub value: Amount,
    /// Calldata.
    pub data: Vec<u8>,
}

/// What a wrapper's function does.
#[derive(Debug)]
pub(super) struct Unwrapped {
    /// The calls, in order.
    pub calls: Vec<Call>,
    /// A MultiSend whose code runs as the wrapper's own (delegatecall).
    pub runs: Option<Address>,
    /// Whether the wrapper keeps the value that came with the call; else the calls have it.
    pub keeps_value: bool,
}

/// The calls inside a call of a wrapper; `None` if such a wrapper does not have the function.
pub(super) fn unwrap(
    registry: &Registry,
    chain: &ChainName,
    (wrapper, function): (Wrapper, Known),
    call: &Call,
    data: &[u8],
) -> Option<Result<Unwrapped, String>> {
    use Known::{
        Aggregate, Aggregate3, Aggregate3Value, BlockAndAggregate, ExecTransaction, Execute,
        ExecuteBatch, ExecuteBatchCalls, ExecuteBatchValues, Multicall, MulticallBlockHash,
        MulticallDeadline, TryAggregate, TryBlockAndAggregate,
    };
    match (wrapper, function) {
        (
            Wrapper::Multicall3,
            Aggregate | BlockAndAggregate | TryAggregate | TryBlockAndAggregate | Aggregate3
            | Aggregate3Value,
        )
        | (Wrapper::SelfMulticall, Multicall | MulticallDeadline | MulticallBlockHash)
        | (Wrapper::Safe, ExecTransaction)
        | (
            Wrapper::SmartAccount,
            Execute | ExecuteBatch | ExecuteBatchValues | ExecuteBatchCalls,
        ) => {}
        _ => return None,
    }
    let values = match function.arguments(data) {
        Ok(values) => values,
        Err(why) => return Some(Err(why)),
    };
    let unwrapped = match function {
        Multicall | MulticallDeadline | MulticallBlockHash => to_itself(call, &values),
        ExecTransaction => {
            let mut values = Fields::new(&values);
            safe_call(registry, chain, call.to, &mut values)
        }
        _ => as_itself(function, call.to, &values)
            .map(|calls| Ok(Unwrapped { calls, runs: None, keeps_value: true })),
    };
    let unwrapped = unwrapped.unwrap_or_else(|| Err(NOT_CANONICAL.to_owned()));
    Some(unwrapped.and_then(|unwrapped| {
        if unwrapped.calls.is_empty() {
            return Err("it wraps no call at all".to_owned());
        }
        Ok(unwrapped)
    }))
}

/// `multicall`: the contract calls itself by delegatecall, so that the caller stays the caller. Each call sees
/// the whole value, which moves once: with more than one call it cannot be said whose it is.
fn to_itself(call: &Call, values: &[DynSolValue]) -> Option<Result<Unwrapped, String>> {
    let Some(DynSolValue::Array(all)) = values.last() else { return None };
    if all.len() > 1 && !call.value.is_zero() {
        let why = "each call of a multicall sees the value that is sent once";
        return Some(Err(why.to_owned()));
    }
    let calls: Option<Vec<Call>> = all
        .iter()
        .map(|data| {
            let data = data.as_bytes()?.to_vec();
            Some(Call { actor: call.actor, to: call.to, value: call.value, data })
        })
        .collect();
    Some(Ok(Unwrapped { calls: calls?, runs: None, keeps_value: false }))
}

/// Functions by which a contract calls others as itself.
fn as_itself(function: Known, actor: Address, values: &[DynSolValue]) -> Option<Vec<Call>> {
    let call = |to: Address, value: U256, data: &[u8]| {
        Some(Call { actor, to, value: Amount::new(value), data: data.to_vec() })
    };
    let mut fields = Fields::new(values);
    match function {
        Known::Execute => Some(vec![call(fields.address()?, fields.uint()?, fields.bytes()?)?]),
        Known::ExecuteBatch => {
            let (to, data) = (fields.array()?, fields.array()?);
            if to.len() != data.len() {
                return None;
            }
            to.iter()
                .zip(data)
                .map(|(to, data)| call(to.as_address()?, U256::ZERO, data.as_bytes()?))
                .collect()
        }
        Known::ExecuteBatchValues => {
            let (to, value, data) = (fields.array()?, fields.array()?, fields.array()?);
            if to.len() != data.len() || to.len() != value.len() {
                return None;
            }
            to.iter()
                .zip(value)
                .zip(data)
                .map(|((to, value), data)| {
                    call(to.as_address()?, value.as_uint()?.0, data.as_bytes()?)
                })
                .collect()
        }
        _ => {
            if matches!(function, Known::TryAggregate | Known::TryBlockAndAggregate) {
                fields.flag()?;
            }
            fields
                .array()?
                .iter()
                .map(|one| {
                    let mut one = Fields::of(one)?;
                    let to = one.address()?;
                    if matches!(function, Known::Aggregate3 | Known::Aggregate3Value) {
                        one.flag()?;
                    }
                    let value = match function {
                        Known::Aggregate3Value | Known::ExecuteBatchCalls => one.uint()?,
                        _ => U256::ZERO,
                    };
                    call(to, value, one.bytes()?)
                })
                .collect()
        }
    }
}

/// A transaction of a Safe, from the ten fields that `execTransaction` begins with.
fn safe_call(
    registry: &Registry,
    chain: &ChainName,
    safe: Address,
    values: &mut Fields<'_>,
) -> Option<Result<Unwrapped, String>> {
    let (to, value, data) = (values.address()?, values.uint()?, values.bytes()?);
    let (operation, _safe_tx_gas, _base_gas) = (values.uint()?, values.uint()?, values.uint()?);
    let (gas_price, gas_token, refunded) = (values.uint()?, values.address()?, values.address()?);
    if !gas_price.is_zero() || !gas_token.is_zero() || !refunded.is_zero() {
        return Some(Err("the Safe would pay for the gas to whoever submits it".to_owned()));
    }
    if operation.is_zero() {
        let call = Call { actor: safe, to, value: Amount::new(value), data: data.to_vec() };
        return Some(Ok(Unwrapped { calls: vec![call], runs: None, keeps_value: true }));
    }
    if operation != U256::ONE {
        return Some(Err("the Safe's operation is neither call nor delegatecall".to_owned()));
    }
    let bound = registry.contract_at(chain, to).and_then(|contract| contract.wraps);
    if bound != Some(Wrapper::MultiSend) || !value.is_zero() {
        return Some(Err("delegatecall: foreign code would run as the Safe".to_owned()));
    }
    let calls =
        multi_send(safe, data).map(|calls| Unwrapped { calls, runs: Some(to), keeps_value: true });
    Some(calls)
}

/// `multiSend(bytes)`: each transaction is packed as operation (1 byte), to (20), value (32), length of the
/// data (32), data, with nothing between them and nothing behind.
fn multi_send(safe: Address, data: &[u8]) -> Result<Vec<Call>, String> {
    let not_packed = || "data is not the packed transactions of a MultiSend".to_owned();
    let (selector, data) = data.split_first_chunk::<4>().ok_or_else(not_packed)?;
    if Known::find(*selector) != Some(Known::MultiSend) {
        return Err("delegatecall: not `multiSend(bytes)`".to_owned());
    }
    let values = Known::MultiSend.arguments(data)?;
    let mut rest = Fields::new(&values).bytes().ok_or_else(not_packed)?;
    let mut calls = Vec::new();
    while !rest.is_empty() {
        let (operation, behind) = rest.split_first_chunk::<1>().ok_or_else(not_packed)?;
        let (to, behind) = behind.split_first_chunk::<20>().ok_or_else(not_packed)?;
        let (value, behind) = behind.split_first_chunk::<32>().ok_or_else(not_packed)?;
        let (length, behind) = behind.split_first_chunk::<32>().ok_or_else(not_packed)?;
        let length = usize::try_from(U256::from_be_bytes(*length)).map_err(|_| not_packed())?;
        let (data, behind) = behind.split_at_checked(length).ok_or_else(not_packed)?;
        if *operation != [0] {
            return Err("delegatecall: foreign code would run as the Safe".to_owned());
        }
        let to = Address::from(*to);
        // Newer versions of MultiSend take the zero address for the Safe itself.
        if to.is_zero() {
            return Err("a MultiSend with the zero address".to_owned());
        }
        let value = Amount::new(U256::from_be_bytes(*value));
        calls.push(Call { actor: safe, to, value, data: data.to_vec() });
        rest = behind;
    }
    if calls.is_empty() {
        return Err("it wraps no call at all".to_owned());
    }
    Ok(calls)
}
