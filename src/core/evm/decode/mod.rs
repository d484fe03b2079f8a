//! From an intent to its effects: everything that it would do, or `Opaque`.
//!
//! Nothing is guessed. Calldata must be the one canonical encoding of a function that the bundle
//! binds to that address; what code stands at the recipient must be known; the rest is not
//! understood, and what is not understood is not allowed.
//!
//! - `calls` reads a call, and the calls inside it; `wrappers` knows which functions carry calls, `assets`
//!   what the functions of tokens do, `known` all these functions' selectors, [`abi`] the strict encoding.
//! - [`typed_data`] reads typed data strictly; `permits` recognises by type hash what moves value.

pub mod abi;
#[cfg(test)]
mod asset_tests;
mod assets;
mod calls;
#[cfg(test)]
mod digest_tests;
#[cfg(test)]
mod fixtures;
pub mod known;
#[cfg(test)]
mod permit_tests;
mod permits;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
pub mod typed_data;
#[cfg(test)]
mod typed_data_tests;
#[cfg(test)]
mod wrapper_tests;
mod wrappers;

use crate::core::amount::Amount;
use crate::core::intent::{Intent, TransactionIntent};
use crate::core::policy::effect::Effect;
use crate::core::policy::{Bundle, PolicyRequest};
use alloy::primitives::{Address, keccak256};
use calls::Reader;
use wrappers::Call;

/// Everything that an intent would do, the main effect first; never empty. The fee of a transaction is the
/// last, at the highest price that the intent itself admits.
#[must_use]
pub fn effects(bundle: &Bundle, request: &PolicyRequest) -> Vec<Effect> {
    let (from, facts) = (request.address, &request.facts);
    match &request.intent {
        Intent::Message { text } => vec![message(text)],
        Intent::TypedData { chain, data } => permits::read(bundle, chain, data, from),
        Intent::Authorization { address, nonce, .. } => {
            vec![Effect::Delegate { authority: from, to: *address, nonce: *nonce }]
        }
        Intent::Transaction(tx) => {
            let mut effects = match top_call(tx, from) {
                Some(call) => {
                    let mut reader = Reader::new(bundle, &tx.chain.name, facts);
                    reader.read(&call);
                    reader.effects()
                }
                None => {
                    let init_code_hash = keccak256(&tx.data);
                    vec![Effect::Create { from, init_code_hash, value: tx.value }]
                }
            };
            effects.push(fee_max(tx.gas, tx.fees.highest().max_fee));
            effects
        }
    }
}

/// Whose code must be known before [`effects`] can understand an intent: whoever is called or paid, by the
/// transaction itself and by every call inside it. Each once; no more than there may be calls, and one for each
/// delegatecall. What more than these an intent would call is not understood in any case.
#[must_use]
pub fn addresses(bundle: &Bundle, intent: &Intent, from: Address) -> Vec<Address> {
    match intent {
        Intent::Message { .. } | Intent::TypedData { .. } => Vec::new(),
        Intent::Authorization { address, .. } => vec![*address],
        Intent::Transaction(tx) => {
            let mut reader = Reader::without_facts(bundle, &tx.chain.name);
            if let Some(call) = top_call(tx, from) {
                reader.read(&call);
            }
            reader.addresses()
        }
    }
}

/// The call that a transaction makes; `None` if it creates a contract.
fn top_call(tx: &TransactionIntent, from: Address) -> Option<Call> {
    Some(Call { actor: from, to: tx.to?, value: tx.value, data: tx.data.to_vec() })
}

/// What gas may cost at most, in wei.
#[must_use]
pub fn fee_max(gas: u64, price_wei: u128) -> Effect {
    match Amount::from(gas).checked_mul(Amount::from(price_wei)) {
        Some(amount) => Effect::FeeMax { amount },
        None => opaque("gas × price overflows"),
    }
}

/// What no grant can allow.
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
