//! From what `C_Sign` returned to a signature that may leave: low `s`, recovered, compared.

use crate::core::key::PublicKey;
use crate::core::permit::RawSignature;
use alloy::primitives::B256;
use secp256k1::Message;
use secp256k1::ecdsa::{RecoverableSignature, RecoveryId, Signature};

/// A signature proved to be by the pinned key, and whether the module had given it with a high `s`.
pub(super) struct Finished {
    /// What may leave.
    pub(super) signature: RawSignature,
    /// For the metric: `s` was in the upper half before.
    pub(super) was_high: bool,
}

/// Finishes `r || s` of `CKM_ECDSA` (PKCS#11 v3.1, section 6.3.1: both halves as long as the group
/// order, so 64 bytes). A shorter answer cannot be padded with certainty and is refused.
///
/// `s` goes to the lower half first (EIP-2), so the recovery id found is the one of the signature
/// that leaves. That the recovered key equals the pinned one proves the signature (SEC 1, section
/// 4.1.6). Ids 2 and 3 mean an `r` above the group order, one in 2^127: not tried, so refused.
pub(super) fn finish(digest: &B256, raw: &[u8], pinned: &PublicKey) -> Option<Finished> {
    let raw: &[u8; 64] = raw.try_into().ok()?;
    let mut low = Signature::from_compact(raw).ok()?;
    low.normalize_s();
    let low = low.serialize_compact();
    let id = [RecoveryId::Zero, RecoveryId::One].into_iter().find(|id| {
        RecoverableSignature::from_compact(&low, *id)
            .and_then(|signature| signature.recover(Message::from_digest(digest.0)))
            .is_ok_and(|key| key.serialize_uncompressed() == *pinned.as_bytes())
    })?;
    let (r, s) = low.split_first_chunk()?;
    Some(Finished {
        signature: RawSignature { r: *r, s: s.try_into().ok()?, y_parity: id == RecoveryId::One },
        was_high: low != *raw,
    })
}

/// Whether this is a signature of the key over the digest.
#[must_use]
pub fn is_signed_by(digest: &B256, signature: &RawSignature, key: &PublicKey) -> bool {
    let id = if signature.y_parity { RecoveryId::One } else { RecoveryId::Zero };
    let bytes: Vec<u8> = [signature.r, signature.s].concat();
    <[u8; 64]>::try_from(bytes)
        .ok()
        .and_then(|bytes| RecoverableSignature::from_compact(&bytes, id).ok())
        .and_then(|signature| signature.recover(Message::from_digest(digest.0)).ok())
        .is_some_and(|found| found.serialize_uncompressed() == *key.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::primitives::keccak256;
    use ethers_core::k256::ecdsa::SigningKey;

    // Another implementation signs: it knows the parity, and both values of s.
    fn key(seed: u8) -> (SigningKey, PublicKey) {
        let key = SigningKey::from_slice(&[seed; 32]).unwrap();
        let point = key.verifying_key().to_encoded_point(false);
        (key.clone(), PublicKey::from_sec1(point.as_bytes()).unwrap())
    }

    #[test]
    fn high_and_low_s_finish_to_the_same_signature_with_the_right_parity() {
        for seed in 1..=64 {
            let (signer, public) = key(seed);
            let digest = keccak256([seed]);
            let (low, id) = signer.sign_prehash_recoverable(digest.as_slice()).unwrap();
            let high = ethers_core::k256::ecdsa::Signature::from_scalars(
                low.r().to_bytes(),
                (-*low.s()).to_bytes(),
            )
            .unwrap();
            for (given, was_high) in [(low, false), (high, true)] {
                let done = finish(&digest, &given.to_bytes(), &public).unwrap();
                assert_eq!(done.was_high, was_high);
                assert_eq!(done.signature.r, <[u8; 32]>::from(low.r().to_bytes()));
                assert_eq!(done.signature.s, <[u8; 32]>::from(low.s().to_bytes()));
                assert_eq!(done.signature.y_parity, id.is_y_odd());
                assert!(is_signed_by(&digest, &done.signature, &public));
                assert!(!is_signed_by(&digest, &done.signature, &key(seed + 1).1));
                assert!(!is_signed_by(&keccak256([seed, 0]), &done.signature, &public));
            }
        }
    }

    #[test]
    fn what_does_not_recover_to_the_pinned_key_never_leaves() {
        let (signer, public) = key(1);
        let (_, other) = key(2);
        let digest = keccak256(b"paid");
        let (good, _) = signer.sign_prehash_recoverable(digest.as_slice()).unwrap();
        let good = good.to_bytes();
        assert!(finish(&digest, &good, &public).is_some());
        assert!(finish(&digest, &good, &other).is_none());
        assert!(finish(&keccak256(b"unpaid"), &good, &public).is_none());
        for bit in 0..512_usize {
            let mut bent = good;
            bent[bit / 8] ^= 1 << (bit % 8);
            assert!(finish(&digest, &bent, &public).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn a_signature_of_another_length_or_out_of_range_is_refused() {
        let (signer, public) = key(1);
        let digest = keccak256(b"paid");
        let (good, _) = signer.sign_prehash_recoverable(digest.as_slice()).unwrap();
        let good = good.to_vec();
        assert!(finish(&digest, &good[..63], &public).is_none());
        assert!(finish(&digest, &[good.as_slice(), &[0]].concat(), &public).is_none());
        assert!(finish(&digest, &[], &public).is_none());
        assert!(finish(&digest, &[0; 64], &public).is_none());
        assert!(finish(&digest, &[0xff; 64], &public).is_none());
    }
}
