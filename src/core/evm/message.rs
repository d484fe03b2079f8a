//! Messages and typed data: the exact bytes whose keccak-256 is signed.
//!
//! Sources: EIP-191 (version 0x45, `personal_sign`), EIP-712. There is no way to sign a bare digest:
//! both forms start with byte 0x19, which no transaction does.

use alloy::dyn_abi::TypedData;

const MESSAGE_PREFIX: &str = "\x19Ethereum Signed Message:\n";

/// `0x19 "Ethereum Signed Message:\n" length text` (EIP-191, version 0x45).
#[must_use]
pub fn message_bytes(text: &str) -> Vec<u8> {
    format!("{MESSAGE_PREFIX}{}{text}", text.len()).into_bytes()
}

/// `0x19 0x01 domainSeparator hashStruct(message)` (EIP-712), 66 bytes.
///
/// # Errors
/// When the message does not fit its own types.
pub fn typed_data_bytes(data: &TypedData) -> Result<Vec<u8>, alloy::dyn_abi::Error> {
    let struct_hash = data.hash_struct()?;
    let domain = data.domain().separator();
    Ok([&[0x19, 0x01], domain.as_slice(), struct_hash.as_slice()].concat())
}

/// Whether these bytes are an EIP-191 message with the right length and valid text.
#[must_use]
pub fn is_message(bytes: &[u8]) -> bool {
    let Some(rest) = bytes.strip_prefix(MESSAGE_PREFIX.as_bytes()) else {
        return false;
    };
    // The text may itself begin with digits, so each length prefix is tried.
    (1..=rest.len().min(20)).any(|digits| {
        let (Some(length), Some(text)) = (rest.get(..digits), rest.get(digits..)) else {
            return false;
        };
        length == text.len().to_string().as_bytes() && std::str::from_utf8(text).is_ok()
    })
}

/// Whether these bytes have the shape of EIP-712's encoding.
#[must_use]
pub fn is_typed_data(bytes: &[u8]) -> bool {
    bytes.len() == 66 && bytes.starts_with(&[0x19, 0x01])
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::primitives::{eip191_hash_message, keccak256};

    #[test]
    fn message_bytes_hash_as_eip_191_says() {
        for text in ["", "hello", "12 apples", "ключ"] {
            let bytes = message_bytes(text);
            assert_eq!(keccak256(&bytes), eip191_hash_message(text));
            assert!(is_message(&bytes), "{text}");
        }
        assert!(!is_message(b"\x19Ethereum Signed Message:\n4hello"));
        assert!(!is_message(b"\x19Ethereum Signed Message:\n"));
        assert!(!is_message(&[0; 32]));
    }
}
