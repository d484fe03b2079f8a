//! Amounts: unsigned 256-bit integers in an asset's smallest unit, with checked arithmetic only.

use alloy::primitives::U256;
use std::fmt;

/// An amount in the smallest unit of some asset (wei for native currency).
///
/// There are no operators on purpose: every sum says what happens on overflow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(U256);

/// Why a text is not an amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// Not plain ASCII digits, or with a leading zero, sign, point, exponent or white space.
    #[error("not a whole decimal number")]
    NotDecimal,
    /// More than 2^256 - 1, or more decimals than the asset has.
    #[error("does not fit the unit")]
    OutOfRange,
}

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self(U256::ZERO);
    /// The largest there is.
    pub const MAX: Self = Self(U256::MAX);
    /// One unit; what one request adds to a count.
    pub const ONE: Self = Self(U256::ONE);

    /// Wraps a number of smallest units.
    #[must_use]
    pub const fn new(units: U256) -> Self {
        Self(units)
    }

    /// The number of smallest units.
    #[must_use]
    pub const fn units(self) -> U256 {
        self.0
    }

    /// Whether this is nothing.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.0.is_zero()
    }

    /// Sum, or `None` above 2^256 - 1.
    #[must_use]
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// Difference, or `None` below zero.
    #[must_use]
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    /// Product, or `None` above 2^256 - 1. Used as gas × price.
    #[must_use]
    pub fn checked_mul(self, other: Self) -> Option<Self> {
        self.0.checked_mul(other.0).map(Self)
    }

    /// Reads a decimal string of smallest units, as the API takes them: ASCII digits, no leading
    /// zero, no sign, no exponent.
    ///
    /// # Errors
    /// When the text is anything else, or above 2^256 - 1.
    pub fn parse(text: &str) -> Result<Self, AmountError> {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(AmountError::NotDecimal);
        }
        if text.len() > 1 && text.starts_with('0') {
            return Err(AmountError::NotDecimal);
        }
        U256::from_str_radix(text, 10).map(Self).map_err(|_| AmountError::OutOfRange)
    }

    /// Reads a decimal in whole units, such as `"250000.00"` with 6 decimals, exactly: more fraction
    /// digits than the asset has is an error, never a rounding.
    ///
    /// # Errors
    /// When the text is not `digits[.digits]`, has too many fraction digits, or does not fit.
    pub fn parse_scaled(text: &str, decimals: u8) -> Result<Self, AmountError> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        if text.ends_with('.') || whole.is_empty() {
            return Err(AmountError::NotDecimal);
        }
        if whole.len() > 1 && whole.starts_with('0') {
            return Err(AmountError::NotDecimal);
        }
        if !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
            return Err(AmountError::NotDecimal);
        }
        let width = usize::from(decimals);
        if fraction.len() > width {
            return Err(AmountError::OutOfRange);
        }
        let digits = format!("{whole}{fraction:0<width$}");
        U256::from_str_radix(&digits, 10).map(Self).map_err(|_| AmountError::OutOfRange)
    }

    /// 32 bytes, big-endian: the form the database keeps.
    #[must_use]
    pub fn to_be_bytes(self) -> [u8; 32] {
        self.0.to_be_bytes::<32>()
    }

    /// Reads what [`Self::to_be_bytes`] wrote; `None` unless it is exactly 32 bytes.
    #[must_use]
    pub fn from_be_slice(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; 32] = bytes.try_into().ok()?;
        Some(Self(U256::from_be_bytes(bytes)))
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<u64> for Amount {
    fn from(units: u64) -> Self {
        Self(U256::from(units))
    }
}

impl From<u128> for Amount {
    fn from(units: u128) -> Self {
        Self(U256::from(units))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_decimal_digits_are_amounts() {
        assert_eq!(Amount::parse("0"), Ok(Amount::ZERO));
        assert_eq!(Amount::parse("1000"), Ok(Amount::from(1000_u64)));
        for bad in ["", " 1", "1 ", "+1", "-1", "01", "1e3", "1.0", "0x10", "１", "1_000"] {
            assert_eq!(Amount::parse(bad), Err(AmountError::NotDecimal), "{bad:?}");
        }
        let max = U256::MAX.to_string();
        assert_eq!(Amount::parse(&max), Ok(Amount::new(U256::MAX)));
        let above = format!("{}6", max.trim_end_matches('5'));
        assert_eq!(Amount::parse(&above), Err(AmountError::OutOfRange));
    }

    #[test]
    fn scaling_is_exact_or_refused() {
        assert_eq!(Amount::parse_scaled("1.5", 6), Ok(Amount::from(1_500_000_u64)));
        assert_eq!(Amount::parse_scaled("0.000001", 6), Ok(Amount::ONE));
        assert_eq!(Amount::parse_scaled("7", 0), Ok(Amount::from(7_u64)));
        assert_eq!(Amount::parse_scaled("0.0000001", 6), Err(AmountError::OutOfRange));
        for bad in ["", ".", ".5", "5.", "1.2.3", "00.1", "1,5", "-1.0"] {
            assert_eq!(Amount::parse_scaled(bad, 6), Err(AmountError::NotDecimal), "{bad:?}");
        }
    }
}
