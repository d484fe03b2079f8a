//! Conditions on arguments: typed at load, compared in the argument's own type.

use super::syntax::{RawCondition, RawScalar};
use crate::core::amount::Amount;
use crate::core::evm::decode::abi::{fits, show};
use crate::core::policy::effect::CallArgument;
use alloy::dyn_abi::{DynSolType, DynSolValue};
use alloy::primitives::{Address, B256, Bytes, I256, U256};

/// A condition on one argument.
#[derive(Clone, Debug)]
pub struct ArgRule {
    /// The argument's name.
    pub name: String,
    /// What must hold.
    pub test: ArgTest,
}

/// What must hold of an argument.
#[derive(Clone, Debug)]
pub enum ArgTest {
    /// Anything: said out loud.
    Any,
    /// One of these; shown text and ABI encoding of each.
    OneOf(Vec<(String, Bytes)>),
    /// Inclusive bounds of an unsigned integer.
    Unsigned {
        /// Lowest.
        min: Option<U256>,
        /// Highest.
        max: Option<U256>,
    },
    /// Inclusive bounds of a signed integer.
    Signed {
        /// Lowest.
        min: Option<I256>,
        /// Highest.
        max: Option<I256>,
    },
    /// The same of every element of an array, those of arrays inside it one by one. An empty array has none
    /// that could fail.
    All {
        /// The type of the whole array.
        ty: DynSolType,
        /// What must hold of each element; never `Any` or `All`.
        each: Box<ArgTest>,
    },
}

impl ArgRule {
    /// Types a condition against the argument it is about.
    ///
    /// # Errors
    /// When it says nothing, two things, or something that the type does not have.
    pub(super) fn read(name: &str, ty: &DynSolType, raw: &RawCondition) -> Result<Self, String> {
        let test = match &raw.all {
            None => ArgTest::read(name, ty, raw)?,
            Some(each) => ArgTest::read_all(name, ty, raw, each)?,
        };
        Ok(Self { name: name.to_owned(), test })
    }

    /// Which part of the condition does not hold of the argument; `None` if all of it does.
    #[must_use]
    pub fn failing(&self, argument: &CallArgument) -> Option<&'static str> {
        self.test.failing(&argument.encoded)
    }

    /// What a part of the condition expects, for people.
    #[must_use]
    pub fn expected(&self, part: &str) -> String {
        fn bound<T: ToString>(part: &str, min: Option<&T>, max: Option<&T>) -> String {
            let bound = if part == "min" { min } else { max };
            let bound = bound.filter(|_| part != "type");
            bound.map_or_else(|| "a number".to_owned(), ToString::to_string)
        }
        let test = match &self.test {
            ArgTest::All { each, .. } => each.as_ref(),
            test => test,
        };
        let part = part.rsplit('.').next().unwrap_or(part);
        match test {
            ArgTest::Any | ArgTest::All { .. } => "anything".to_owned(),
            ArgTest::OneOf(choices) => {
                let shown: Vec<&str> = choices.iter().map(|(text, _)| text.as_str()).collect();
                shown.join(", ")
            }
            ArgTest::Unsigned { min, max } => bound(part, min.as_ref(), max.as_ref()),
            ArgTest::Signed { min, max } => bound(part, min.as_ref(), max.as_ref()),
        }
    }
}

impl ArgTest {
    fn read(name: &str, ty: &DynSolType, raw: &RawCondition) -> Result<Self, String> {
        let bounds = raw.min.is_some() || raw.max.is_some();
        match (raw.any, &raw.eq, &raw.one_of, bounds) {
            (Some(true), None, None, false) => Ok(Self::Any),
            (None, Some(value), None, false) => Ok(Self::OneOf(vec![read_choice(ty, value)?])),
            (None, None, Some(values), false) if !values.is_empty() => {
                let choices = values.iter().map(|value| read_choice(ty, value));
                Ok(Self::OneOf(choices.collect::<Result<_, _>>()?))
            }
            (None, None, None, true) => read_bounds(ty, raw),
            _ => Err(format!(
                "args.{name}: say exactly one of eq, in (not empty), min and max, all (of an array), \
                 any = true"
            )),
        }
    }

    /// `all = { … }`, beside which nothing else may stand.
    fn read_all(
        name: &str,
        ty: &DynSolType,
        raw: &RawCondition,
        each: &RawCondition,
    ) -> Result<Self, String> {
        let alone = raw.eq.is_none()
            && raw.one_of.is_none()
            && raw.min.is_none()
            && raw.max.is_none()
            && raw.any.is_none();
        if !alone || each.any.is_some() || each.all.is_some() {
            return Err(format!(
                "args.{name}: `all` stands alone, and holds exactly one of eq, in (not empty), min and max"
            ));
        }
        let mut leaf = ty;
        while let DynSolType::Array(inner) | DynSolType::FixedArray(inner, _) = leaf {
            leaf = inner.as_ref();
        }
        if std::ptr::eq(leaf, ty) || matches!(leaf, DynSolType::Tuple(_)) {
            let kind = ty.sol_type_name();
            return Err(format!(
                "args.{name}: `all` is for arrays of plain values, not for `{kind}`"
            ));
        }
        Ok(Self::All { ty: ty.clone(), each: Box::new(Self::read(name, leaf, each)?) })
    }

    fn failing(&self, encoded: &Bytes) -> Option<&'static str> {
        let word = || -> Option<[u8; 32]> { encoded.as_ref().try_into().ok() };
        match self {
            Self::Any => None,
            Self::OneOf(choices) => {
                let inside = choices.iter().any(|(_, choice)| choice == encoded);
                (!inside).then_some(if choices.len() == 1 { "eq" } else { "in" })
            }
            Self::Unsigned { min, max } => {
                outside(word().map(U256::from_be_bytes), min.as_ref(), max.as_ref())
            }
            Self::Signed { min, max } => {
                outside(word().map(I256::from_be_bytes), min.as_ref(), max.as_ref())
            }
            Self::All { ty, each } => match ty.abi_decode(encoded) {
                Ok(value) => each.failing_in(&value),
                Err(_) => Some("type"),
            },
        }
    }

    /// Of the elements of an array, and of arrays in it.
    fn failing_in(&self, value: &DynSolValue) -> Option<&'static str> {
        match value {
            DynSolValue::Array(inner) | DynSolValue::FixedArray(inner) => {
                inner.iter().find_map(|value| self.failing_in(value))
            }
            value => self.failing(&value.abi_encode().into()).map(|part| match part {
                "eq" => "all.eq",
                "in" => "all.in",
                "min" => "all.min",
                "max" => "all.max",
                _ => "type",
            }),
        }
    }
}

fn outside<T: PartialOrd>(
    actual: Option<T>,
    min: Option<&T>,
    max: Option<&T>,
) -> Option<&'static str> {
    let Some(actual) = actual else {
        return Some("type");
    };
    if min.is_some_and(|min| actual < *min) {
        return Some("min");
    }
    max.is_some_and(|max| actual > *max).then_some("max")
}

fn read_choice(ty: &DynSolType, value: &RawScalar) -> Result<(String, Bytes), String> {
    let value = read_value(ty, value)?;
    Ok((show(&value), value.abi_encode().into()))
}

fn read_bounds(ty: &DynSolType, raw: &RawCondition) -> Result<ArgTest, String> {
    let read = |text: &Option<String>| -> Result<Option<DynSolValue>, String> {
        text.as_ref().map(|text| read_value(ty, &RawScalar::Text(text.clone()))).transpose()
    };
    let (min, max) = (read(&raw.min)?, read(&raw.max)?);
    let crossed = || "min is above max: nothing could ever match".to_owned();
    match ty {
        DynSolType::Uint(_) => {
            let of = |v: Option<DynSolValue>| v.and_then(|v| v.as_uint()).map(|(n, _)| n);
            let (min, max) = (of(min), of(max));
            if min.zip(max).is_some_and(|(min, max)| min > max) {
                return Err(crossed());
            }
            Ok(ArgTest::Unsigned { min, max })
        }
        DynSolType::Int(_) => {
            let of = |v: Option<DynSolValue>| v.and_then(|v| v.as_int()).map(|(n, _)| n);
            let (min, max) = (of(min), of(max));
            if min.zip(max).is_some_and(|(min, max)| min > max) {
                return Err(crossed());
            }
            Ok(ArgTest::Signed { min, max })
        }
        other => Err(format!("`{}` has no min and max", other.sol_type_name())),
    }
}

/// Reads an address that people wrote into a bundle: EIP-55 to the letter.
///
/// # Errors
/// When it is anything else.
pub(super) fn read_address(text: &str) -> Result<Address, String> {
    let address: Address = text.parse().map_err(|_| format!("`{text}` is not an address"))?;
    let checksummed = address.to_checksum(None);
    if checksummed != text {
        return Err(format!("`{text}` is not in EIP-55 form; its bytes would be {checksummed}"));
    }
    Ok(address)
}

/// Reads `0x` and lower-case hex.
///
/// # Errors
/// When it is anything else.
pub(super) fn read_hex(text: &str) -> Result<Vec<u8>, String> {
    let wrong = || format!("`{text}` is not 0x and lower-case hex");
    let digits = text.strip_prefix("0x").ok_or_else(wrong)?;
    if digits.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(wrong());
    }
    hex::decode(digits).map_err(|_| wrong())
}

/// Reads a value of an ABI type: decimal integers that fit, EIP-55 addresses, lower-case hex,
/// booleans and strings. Arrays and tuples cannot be written.
///
/// # Errors
/// When the text is not exactly one value of the type.
pub(super) fn read_value(ty: &DynSolType, value: &RawScalar) -> Result<DynSolValue, String> {
    let text = match (ty, value) {
        (DynSolType::Bool, RawScalar::Flag(flag)) => return Ok(DynSolValue::Bool(*flag)),
        (DynSolType::Bool, RawScalar::Text(_)) | (_, RawScalar::Flag(_)) => {
            return Err(format!("not a value of `{}`", ty.sol_type_name()));
        }
        (_, RawScalar::Text(text)) => text,
    };
    let wrong = || format!("`{text}` is not a value of `{}`", ty.sol_type_name());
    match ty {
        DynSolType::Uint(bits) => {
            let number = Amount::parse(text).map_err(|_| wrong())?.units();
            let value = DynSolValue::Uint(number, *bits);
            if fits(&value) { Ok(value) } else { Err(wrong()) }
        }
        DynSolType::Int(bits) => {
            let digits = text.strip_prefix('-').unwrap_or(text);
            Amount::parse(digits).map_err(|_| wrong())?;
            let number = I256::from_dec_str(text).map_err(|_| wrong())?;
            let value = DynSolValue::Int(number, *bits);
            if fits(&value) { Ok(value) } else { Err(wrong()) }
        }
        DynSolType::Address => read_address(text).map(DynSolValue::Address),
        DynSolType::Bytes => read_hex(text).map(DynSolValue::Bytes),
        DynSolType::FixedBytes(size) => {
            let bytes = read_hex(text)?;
            if bytes.len() != *size {
                return Err(wrong());
            }
            Ok(DynSolValue::FixedBytes(B256::right_padding_from(&bytes), *size))
        }
        DynSolType::String => Ok(DynSolValue::String(text.clone())),
        other => Err(format!("values of `{}` cannot be written here", other.sol_type_name())),
    }
}
