//! Between our types and columns. A column that cannot be what it should be is an error, never a guess.

use super::statement::Tx;
use crate::core::amount::Amount;
use crate::ports::store::StoreError;
use alloy::primitives::{Address, B256};

pub(super) fn corrupt(what: &str) -> StoreError {
    StoreError::Corrupt(format!("{what} has a value that it cannot have"))
}

/// A u64 as the i64 that the database keeps.
pub(super) fn to_i64(value: u64) -> Result<i64, StoreError> {
    i64::try_from(value).map_err(|_| StoreError::Corrupt(format!("{value} is above 2^63 - 1")))
}

pub(super) fn to_u64(value: i64) -> Result<u64, StoreError> {
    u64::try_from(value).map_err(|_| corrupt("an unsigned column"))
}

pub(super) fn amount(bytes: &[u8]) -> Result<Amount, StoreError> {
    Amount::from_be_slice(bytes).ok_or_else(|| corrupt("an amount column"))
}

/// Fees and prices share the amounts' 32 bytes.
pub(super) fn price(bytes: &[u8]) -> Result<u128, StoreError> {
    u128::try_from(amount(bytes)?.units()).map_err(|_| corrupt("a price column"))
}

pub(super) fn price_bytes(price: u128) -> [u8; 32] {
    Amount::from(price).to_be_bytes()
}

pub(super) fn hash(bytes: &[u8]) -> Result<B256, StoreError> {
    B256::try_from(bytes).map_err(|_| corrupt("a hash column"))
}

pub(super) fn address(bytes: &[u8]) -> Result<Address, StoreError> {
    Address::try_from(bytes).map_err(|_| corrupt("an address column"))
}

pub(super) fn parsed<T: std::str::FromStr>(text: &str) -> Result<T, StoreError> {
    text.parse().map_err(|_| corrupt("an id column"))
}

/// Exactly one row must have been touched.
pub(super) fn exactly_one(tx: &mut Tx, what: &str, rows: u64) -> Result<(), StoreError> {
    if rows == 1 { Ok(()) } else { Err(tx.corrupt(format!("{what} touched {rows} rows"))) }
}
