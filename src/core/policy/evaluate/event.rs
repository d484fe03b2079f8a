//! A call that answers an event: the event is real, final, and says exactly this call.
//!
//! The caller only says where the event is. The server read it; here the calldata is computed again
//! from what it read, and compared byte by byte with what was asked.

use super::matching::{Told, told};
use crate::core::evm::decode::abi;
use crate::core::id::ChainName;
use crate::core::intent::TransactionIntent;
use crate::core::policy::EventFact;
use crate::core::policy::bundle::grant::{CallRule, EventRule};
use crate::core::policy::effect::CallEffect;
use crate::core::policy::verdict::EventUse;
use alloy::dyn_abi::{DynSolType, DynSolValue};

/// What the event is used up for, if the request answers it.
pub(super) fn check(
    rule: &EventRule,
    call: &CallRule,
    actual: &CallEffect,
    tx: &TransactionIntent,
    fact: Option<&EventFact>,
) -> Result<EventUse, Told> {
    // The whole transaction is the answer: inside a batch, one event could be answered twice.
    if tx.to != Some(actual.to) {
        return Err(told("event", "the transaction itself", "a call inside of it"));
    }
    let source = tx.source.ok_or_else(|| told("source", &rule.signature, "no source event"))?;
    let fact = fact
        .filter(|fact| fact.source == source)
        .ok_or_else(|| told("event", &rule.signature, "no such event on the chain"))?;
    if !fact.canonical {
        return Err(told("event.canonical", "on the canonical chain", "not on it"));
    }
    if !fact.finalized {
        return Err(told("event.finalized", "in a final block", "not final"));
    }
    if fact.emitter != rule.address {
        let expected = format!("{} ({})", rule.contract, rule.address);
        return Err(told("event.contract", expected, fact.emitter.to_string()));
    }
    let values = read(rule, fact)?;
    if !tx.value.is_zero() {
        return Err(told("value", "0", tx.value.to_string()));
    }
    let arguments: Option<Vec<DynSolValue>> =
        rule.mapping.iter().map(|index| values.get(*index).cloned()).collect();
    let arguments = arguments.ok_or_else(|| told("event.args", "all of them", "too few"))?;
    let expected = [call.function.selector.as_slice(), &abi::encode(arguments)].concat();
    if expected != tx.data {
        let (expected, actual) = (hex::encode(expected), hex::encode(&tx.data));
        return Err(told("event.args", format!("0x{expected}"), format!("0x{actual}")));
    }
    Ok(EventUse {
        // Names of the configuration and of the book may change; what was used up stays used up.
        chain: ChainName::new(format!("eip155:{}", tx.chain.id)),
        block_hash: source.block_hash,
        transaction_hash: source.transaction_hash,
        log_index: source.log_index,
        used_for: format!(
            "{:#x}.{}",
            tx.to.unwrap_or_default(),
            hex::encode(call.function.selector)
        ),
    })
}

/// The event's arguments in order. An indexed argument that the chain keeps only as a hash comes as
/// that hash; a rule never maps it.
fn read(rule: &EventRule, fact: &EventFact) -> Result<Vec<DynSolValue>, Told> {
    let wrong = |what: &str| told("event.signature", &rule.signature, what);
    let mut topics = fact.topics.iter();
    if topics.next() != Some(&rule.topic0) {
        return Err(wrong("another event"));
    }
    let plain: Vec<DynSolType> =
        rule.inputs.iter().filter(|input| !input.indexed).map(|input| input.ty.clone()).collect();
    let mut data = abi::decode_exact(&plain, &fact.data)
        .ok_or_else(|| wrong("data that is not its canonical encoding"))?
        .into_iter();
    let mut values = Vec::with_capacity(rule.inputs.len());
    for input in &rule.inputs {
        let value = if input.indexed {
            let topic = topics.next().ok_or_else(|| wrong("too few topics"))?;
            if input.ty.is_dynamic() || !is_word(&input.ty) {
                DynSolValue::FixedBytes(*topic, 32)
            } else {
                abi::decode_exact(std::slice::from_ref(&input.ty), topic.as_slice())
                    .and_then(|values| values.into_iter().next())
                    .ok_or_else(|| wrong("a topic that is not canonical"))?
            }
        } else {
            data.next().ok_or_else(|| wrong("too little data"))?
        };
        values.push(value);
    }
    if topics.next().is_some() {
        return Err(wrong("too many topics"));
    }
    Ok(values)
}

const fn is_word(ty: &DynSolType) -> bool {
    !matches!(ty, DynSolType::Array(_) | DynSolType::FixedArray(..) | DynSolType::Tuple(_))
}
