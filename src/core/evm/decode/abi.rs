//! Strict ABI decoding: exactly one byte string stands for each value.
//!
//! The ABI specification lets offsets point anywhere, and decoders accept that. Here the layout
//! is the one that every encoder writes: tails in order, without gaps, overlaps or left-overs.
//! It is walked before anything is decoded, in time linear in the data, so that aliased offsets
//! cannot blow up either. Then the decoded value is encoded again and compared.

use alloy::dyn_abi::{DynSolType, DynSolValue};
use alloy::primitives::U256;

const WORD: usize = 32;

/// Decodes the parameters of a call or the data of an event; `None` unless the bytes are the one
/// canonical encoding of these types.
#[must_use]
pub fn decode_exact(types: &[DynSolType], data: &[u8]) -> Option<Vec<DynSolValue>> {
    if walk_sequence(types.iter(), data)? != data.len() {
        return None;
    }
    if types.is_empty() {
        return Some(Vec::new());
    }
    let value = DynSolType::Tuple(types.to_vec()).abi_decode_params(data).ok()?;
    if value.abi_encode_params() != data {
        return None;
    }
    match value {
        DynSolValue::Tuple(values) if values.iter().all(fits) => Some(values),
        _ => None,
    }
}

/// Whether every number and every fixed string of bytes has the width that its type says. The
/// decoder keeps the whole word (a `uint8` of 256, a `bytes4` of 32), and so does the encoder, so
/// comparing the encodings does not tell.
#[must_use]
pub fn fits(value: &DynSolValue) -> bool {
    match value {
        DynSolValue::Uint(number, bits) => number.bit_len() <= *bits,
        DynSolValue::Int(number, bits) => {
            let word = number.to_be_bytes::<WORD>();
            let spare = WORD.saturating_sub(bits.div_ceil(8));
            let (above, inside) = word.split_at_checked(spare).unwrap_or((&word, &[]));
            let negative = inside.first().is_some_and(|byte| byte & 0x80 != 0);
            let extension = if negative { 0xff } else { 0 };
            !inside.is_empty() && above.iter().all(|byte| *byte == extension)
        }
        DynSolValue::FixedBytes(word, size) => {
            word.get(*size..).is_some_and(|rest| rest.iter().all(|byte| *byte == 0))
        }
        DynSolValue::Array(inner)
        | DynSolValue::FixedArray(inner)
        | DynSolValue::Tuple(inner)
        | DynSolValue::CustomStruct { tuple: inner, .. } => inner.iter().all(fits),
        DynSolValue::Bool(_)
        | DynSolValue::Address(_)
        | DynSolValue::Function(_)
        | DynSolValue::Bytes(_)
        | DynSolValue::String(_) => true,
    }
}

/// Encodes parameters.
#[must_use]
pub fn encode(values: Vec<DynSolValue>) -> Vec<u8> {
    DynSolValue::Tuple(values).abi_encode_params()
}

/// Whether a type can be decoded here: nothing of zero size, and not nested without end.
#[must_use]
pub fn is_supported(ty: &DynSolType) -> bool {
    supported_below(ty, 8)
}

fn supported_below(ty: &DynSolType, depth: usize) -> bool {
    let Some(below) = depth.checked_sub(1) else {
        return false;
    };
    match ty {
        DynSolType::Array(inner) => supported_below(inner, below),
        DynSolType::FixedArray(inner, n) => (1..=1024).contains(n) && supported_below(inner, below),
        DynSolType::Tuple(inner) => {
            !inner.is_empty() && inner.iter().all(|ty| supported_below(ty, below))
        }
        DynSolType::CustomStruct { .. } => false,
        _ => true,
    }
}

/// Whether a value of this type can carry arbitrary bytes, such as another call.
#[must_use]
pub fn carries_bytes(ty: &DynSolType) -> bool {
    match ty {
        DynSolType::Bytes => true,
        DynSolType::Array(inner) | DynSolType::FixedArray(inner, _) => carries_bytes(inner),
        DynSolType::Tuple(inner) => inner.iter().any(carries_bytes),
        _ => false,
    }
}

/// Bytes that a value takes in the head of what contains it.
fn head_size(ty: &DynSolType) -> Option<usize> {
    if ty.is_dynamic() {
        return Some(WORD);
    }
    match ty {
        DynSolType::Tuple(inner) => {
            inner.iter().try_fold(0_usize, |sum, ty| sum.checked_add(head_size(ty)?))
        }
        DynSolType::FixedArray(inner, n) => head_size(inner)?.checked_mul(*n),
        _ => Some(WORD),
    }
}

fn word_at(data: &[u8], at: usize) -> Option<usize> {
    let word = data.get(at..at.checked_add(WORD)?)?;
    usize::try_from(U256::from_be_slice(word)).ok()
}

/// Length of the canonical encoding of a sequence at the start of `data`.
fn walk_sequence<'a>(
    types: impl Iterator<Item = &'a DynSolType> + Clone,
    data: &[u8],
) -> Option<usize> {
    let head = types.clone().try_fold(0_usize, |sum, ty| sum.checked_add(head_size(ty)?))?;
    if head > data.len() {
        return None;
    }
    let (mut at, mut end) = (0_usize, head);
    for ty in types {
        if ty.is_dynamic() {
            if word_at(data, at)? != end {
                return None;
            }
            end = end.checked_add(walk_tail(ty, data.get(end..)?)?)?;
        }
        at = at.checked_add(head_size(ty)?)?;
    }
    Some(end)
}

/// Length of the canonical tail of a dynamic value at the start of `data`.
fn walk_tail(ty: &DynSolType, data: &[u8]) -> Option<usize> {
    match ty {
        DynSolType::Bytes | DynSolType::String => {
            let padded = word_at(data, 0)?.checked_next_multiple_of(WORD)?;
            let end = padded.checked_add(WORD)?;
            (end <= data.len()).then_some(end)
        }
        DynSolType::Array(inner) => {
            let (length, rest) = (word_at(data, 0)?, data.get(WORD..)?);
            // Every element takes at least its head, so this bounds the loop below.
            if head_size(inner)?.max(1).checked_mul(length)? > rest.len() {
                return None;
            }
            let types = std::iter::repeat_n(inner.as_ref(), length);
            walk_sequence(types, rest)?.checked_add(WORD)
        }
        DynSolType::FixedArray(inner, n) => {
            walk_sequence(std::iter::repeat_n(inner.as_ref(), *n), data)
        }
        DynSolType::Tuple(inner) => walk_sequence(inner.iter(), data),
        _ => None,
    }
}

/// A value as text: decimal integers, lower-case hex, `true`/`false`; strings as they are, quoted
/// inside arrays and tuples.
#[must_use]
pub fn show(value: &DynSolValue) -> String {
    match value {
        DynSolValue::Bool(flag) => flag.to_string(),
        DynSolValue::Int(number, _) => number.to_string(),
        DynSolValue::Uint(number, _) => number.to_string(),
        DynSolValue::FixedBytes(word, size) => {
            format!("0x{}", hex::encode(word.get(..*size).unwrap_or_default()))
        }
        DynSolValue::Address(address) => format!("0x{}", hex::encode(address)),
        DynSolValue::Function(function) => format!("0x{}", hex::encode(function)),
        DynSolValue::Bytes(bytes) => format!("0x{}", hex::encode(bytes)),
        DynSolValue::String(text) => text.clone(),
        DynSolValue::Array(inner) | DynSolValue::FixedArray(inner) => {
            format!("[{}]", show_all(inner))
        }
        DynSolValue::Tuple(inner) | DynSolValue::CustomStruct { tuple: inner, .. } => {
            format!("({})", show_all(inner))
        }
    }
}

fn show_all(values: &[DynSolValue]) -> String {
    let shown: Vec<String> = values
        .iter()
        .map(|value| match value {
            DynSolValue::String(text) => format!("{text:?}"),
            other => show(other),
        })
        .collect();
    shown.join(",")
}
