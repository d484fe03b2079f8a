//! Field by field from the API's texts to our types. Every refusal names its field.

use crate::app::signers::parse_address;
use crate::core::amount::Amount;
use crate::core::intent::{AccessListItem, EventSource, TxType};
use crate::core::time::Timestamp;
use crate::http::problem::Problem;
use alloy::primitives::{Address, B256, Bytes};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// `source` of a request.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceBody {
    block_hash: String,
    transaction_hash: String,
    log_index: u64,
}

/// An entry of `access_list`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessBody {
    address: String,
    storage_keys: Vec<String>,
}

/// Lower case or valid EIP-55.
///
/// # Errors
/// When it is not.
pub fn address(field: &str, text: &str) -> Result<Address, Problem> {
    parse_address(text).ok_or_else(|| {
        Problem::invalid(field, "must be 0x and 40 hex digits, lower case or valid EIP-55")
    })
}

/// `0x` and an even number of hex digits.
///
/// # Errors
/// When it is not.
pub fn bytes(field: &str, text: &str) -> Result<Bytes, Problem> {
    let digits = text.strip_prefix("0x");
    let decoded = digits.and_then(|digits| hex::decode(digits).ok());
    decoded
        .map(Bytes::from)
        .ok_or_else(|| Problem::invalid(field, "must be 0x and an even number of hex digits"))
}

/// 32 bytes.
///
/// # Errors
/// When it is not.
pub fn hash(field: &str, text: &str) -> Result<B256, Problem> {
    let decoded = bytes(field, text)?;
    B256::try_from(decoded.as_ref())
        .map_err(|_| Problem::invalid(field, "must be 0x and 64 hex digits"))
}

/// A decimal string of smallest units.
///
/// # Errors
/// When it is not.
pub fn amount(field: &str, text: &str) -> Result<Amount, Problem> {
    Amount::parse(text).map_err(|error| Problem::invalid(field, error.to_string()))
}

/// A decimal string of wei per gas.
///
/// # Errors
/// When it is not, or above 2^128 - 1.
pub fn price(field: &str, text: &str) -> Result<u128, Problem> {
    u128::try_from(amount(field, text)?.units())
        .map_err(|_| Problem::invalid(field, "does not fit the unit"))
}

/// A decimal string of gas.
///
/// # Errors
/// When it is not, is 0, or above 2^63 - 1.
pub fn gas(field: &str, text: &str) -> Result<u64, Problem> {
    let units = amount(field, text)?.units();
    i64::try_from(units)
        .ok()
        .and_then(|gas| u64::try_from(gas).ok())
        .filter(|gas| *gas > 0)
        .ok_or_else(|| Problem::invalid(field, "must be a number of gas above 0"))
}

/// A decimal string of an account's nonce.
///
/// # Errors
/// When it is not, or not below 2^63 - 1.
pub fn nonce(field: &str, text: &str) -> Result<u64, Problem> {
    let units = amount(field, text)?.units();
    i64::try_from(units)
        .ok()
        .filter(|nonce| *nonce < i64::MAX)
        .and_then(|nonce| u64::try_from(nonce).ok())
        .ok_or_else(|| Problem::invalid(field, "must be a nonce below 2^63 - 1"))
}

/// RFC 3339.
///
/// # Errors
/// When it is not.
pub fn time(field: &str, text: &str) -> Result<Timestamp, Problem> {
    Timestamp::parse_rfc3339(text)
        .ok_or_else(|| Problem::invalid(field, "must be an RFC 3339 time"))
}

/// `legacy`, `eip2930` or `eip1559`.
///
/// # Errors
/// When it is none of them.
pub fn tx_type(field: &str, text: &str) -> Result<TxType, Problem> {
    TxType::from_name(text)
        .ok_or_else(|| Problem::invalid(field, "must be legacy, eip2930 or eip1559"))
}

/// A request's source event.
///
/// # Errors
/// When a hash is not one.
pub fn source(body: &SourceBody) -> Result<EventSource, Problem> {
    if i64::try_from(body.log_index).is_err() {
        return Err(Problem::invalid("source.log_index", "is too large"));
    }
    Ok(EventSource {
        block_hash: hash("source.block_hash", &body.block_hash)?,
        transaction_hash: hash("source.transaction_hash", &body.transaction_hash)?,
        log_index: body.log_index,
    })
}

/// An access list.
///
/// # Errors
/// When an address or a slot is not one.
pub fn access_list(body: &[AccessBody]) -> Result<Vec<AccessListItem>, Problem> {
    body.iter()
        .map(|item| {
            let slots = item.storage_keys.iter();
            Ok(AccessListItem {
                address: address("access_list.address", &item.address)?,
                storage_keys: slots
                    .map(|slot| hash("access_list.storage_keys", slot))
                    .collect::<Result<_, _>>()?,
            })
        })
        .collect()
}

/// What an idempotency key is bound to: the door and the body, byte for byte.
#[must_use]
pub fn body_hash(door: &str, sha256: &[u8; 32]) -> B256 {
    let mut hasher = Sha256::new();
    hasher.update(door.as_bytes());
    hasher.update(sha256);
    B256::from_slice(&hasher.finalize())
}
