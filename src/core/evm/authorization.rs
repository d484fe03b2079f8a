//! EIP-7702 authorizations: the exact bytes whose keccak-256 is signed, and strictly back.
//!
//! `0x05 || rlp([chain_id, address, nonce])`. Byte 0x05 begins no transaction, message or typed data. A chain
//! id of 0 would be good on every chain, so it is never encoded and never read.

use crate::core::id::ChainId;
use alloy::eips::eip7702::Authorization;
use alloy::eips::eip7702::constants::MAGIC;
use alloy::primitives::{Address, U256};
use alloy::rlp::{Decodable as _, Encodable as _};

/// The bytes to sign. `None` for what no chain would take, or every chain would: chain id 0, and the nonce
/// 2^64 - 1, which cannot be used up (EIP-7702, behaviour).
#[must_use]
pub fn authorization_bytes(chain: ChainId, address: Address, nonce: u64) -> Option<Vec<u8>> {
    if chain.get() == 0 || nonce == u64::MAX {
        return None;
    }
    let authorization = Authorization { chain_id: U256::from(chain.get()), address, nonce };
    let mut bytes = vec![MAGIC];
    authorization.encode(&mut bytes);
    Some(bytes)
}

/// Whether these bytes are the one encoding of an authorization for one chain.
#[must_use]
pub fn is_authorization(bytes: &[u8]) -> bool {
    let Some((&MAGIC, mut rest)) = bytes.split_first() else {
        return false;
    };
    let Ok(read) = Authorization::decode(&mut rest) else {
        return false;
    };
    let chain = u64::try_from(read.chain_id).map(ChainId::new);
    chain.is_ok_and(|chain| {
        authorization_bytes(chain, read.address, read.nonce).is_some_and(|again| again == bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::primitives::keccak256;

    #[test]
    fn authorization_bytes_hash_as_eip_7702_says() {
        for (chain, nonce) in [(1, 0), (31_337, 127), (u64::MAX, 128), (10, u64::MAX - 1)] {
            let address = Address::repeat_byte(7);
            let bytes = authorization_bytes(ChainId::new(chain), address, nonce).unwrap();
            let known = Authorization { chain_id: U256::from(chain), address, nonce };
            assert_eq!(keccak256(&bytes), known.signature_hash());
            assert!(is_authorization(&bytes), "{chain} {nonce}");
        }
        // By hand, from the EIP's text: 0x05, a list of 23 bytes, then 1, 20 bytes, 2.
        let by_hand = [&[0x05, 0xd7, 0x01, 0x94][..], &[7; 20], &[0x02]].concat();
        assert_eq!(
            authorization_bytes(ChainId::new(1), Address::repeat_byte(7), 2).unwrap(),
            by_hand
        );
    }

    #[test]
    fn what_every_chain_or_no_chain_would_take_has_no_bytes() {
        let address = Address::repeat_byte(7);
        assert_eq!(authorization_bytes(ChainId::new(0), address, 1), None);
        assert_eq!(authorization_bytes(ChainId::new(1), address, u64::MAX), None);
        let encoded = |chain: U256, nonce| {
            let mut bytes = vec![MAGIC];
            Authorization { chain_id: chain, address, nonce }.encode(&mut bytes);
            bytes
        };
        assert!(is_authorization(&encoded(U256::from(1), 1)));
        for (chain, nonce) in [(U256::ZERO, 1), (U256::from(1), u64::MAX), (U256::MAX, 1)] {
            assert!(!is_authorization(&encoded(chain, nonce)), "{chain} {nonce}");
        }
    }

    #[test]
    fn only_the_one_encoding_is_read() {
        let good = authorization_bytes(ChainId::new(1), Address::repeat_byte(7), 2).unwrap();
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        // Another first byte, a longer list, a nonce of zero that is written as a zero.
        for bad in [
            with(0, 0x04),
            with(0, 0x19),
            with(1, 0xd8),
            with(good.len() - 1, 0),
            [&good[..], &[0]].concat(),
            good[..good.len() - 1].to_vec(),
            vec![MAGIC],
            Vec::new(),
        ] {
            assert!(!is_authorization(&bad), "{}", hex::encode(bad));
        }
    }
}
