//! The one-shot right to sign these exact bytes with this key.
//!
//! A permit is minted from a decision record that the store has read back after its commit, by
//! [`Permit::mint`], and nowhere else; only the `hsm` room opens it. It cannot be cloned, and it can
//! be spent once. The digest is computed from its bytes: nobody can hand over a hash.
//! `tests/architecture.rs` guards who calls `mint` and who calls `open`.

use crate::core::evm::authorization::is_authorization;
use crate::core::evm::message::{is_message, is_typed_data};
use crate::core::evm::transaction::UnsignedTransaction;
use crate::core::id::{HsmName, KeyId, RequestId};
use crate::core::key::{Custody, PublicKey};
use alloy::primitives::{B256, keccak256};

/// What kind of bytes are signed. The kinds cannot be mistaken for each other: messages and typed data
/// begin with 0x19, authorizations with 0x05, transactions with 0x01, 0x02 or an RLP list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadKind {
    /// An unsigned transaction.
    Transaction,
    /// An EIP-191 message.
    Message,
    /// EIP-712 typed data.
    TypedData,
    /// An EIP-7702 authorization.
    Authorization,
}

impl PayloadKind {
    /// The name in the database and in leaves.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Transaction => "transaction",
            Self::Message => "message",
            Self::TypedData => "typed_data",
            Self::Authorization => "authorization",
        }
    }

    /// Reads [`Self::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Transaction, Self::Message, Self::TypedData, Self::Authorization]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

/// A decision as it stands committed in the database, with its `DECIDED` leaf. Only the store makes
/// these, from rows it has read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecisionRecord {
    /// Whose request.
    pub request: RequestId,
    /// Which attempt of it, from 1.
    pub attempt: i64,
    /// The key that was decided on.
    pub key: KeyId,
    /// Its pinned public key.
    pub public_key: PublicKey,
    /// The configured token that it belongs to.
    pub hsm: HsmName,
    /// Where its private half is kept.
    pub custody: Custody,
    /// What the bytes are.
    pub kind: PayloadKind,
    /// The exact bytes.
    pub bytes: Vec<u8>,
    /// keccak-256 of the bytes as the `DECIDED` leaf says.
    pub digest: B256,
}

/// Why a record gives no right to sign.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PermitError {
    /// The stored bytes are not what the leaf committed to.
    #[error("the stored bytes of {0} do not match their decision")]
    Altered(RequestId),
    /// The bytes are not of the kind the decision says.
    #[error("the stored bytes of {0} are not a canonical {1}")]
    WrongKind(RequestId, &'static str),
}

/// The right to sign. Not `Clone`, not `Copy`; spent by [`Permit::open`].
#[derive(Debug)]
pub struct Permit {
    request: RequestId,
    key: KeyId,
    public_key: PublicKey,
    hsm: HsmName,
    custody: Custody,
    bytes: Vec<u8>,
}

/// What the HSM room needs: which key, and the digest computed from the permit's own bytes.
#[derive(Debug)]
pub struct OpenPermit {
    /// Whose request; for alarms.
    pub request: RequestId,
    /// The key.
    pub key: KeyId,
    /// The public key that the signature must recover to.
    pub public_key: PublicKey,
    /// Where its private half is kept.
    pub custody: Custody,
    /// keccak-256 of the permitted bytes.
    pub digest: B256,
}

impl Permit {
    /// Mints the permit of a committed decision.
    ///
    /// # Errors
    /// When the record's bytes are not the decided ones, or not canonical bytes of their kind.
    pub fn mint(record: DecisionRecord) -> Result<Self, PermitError> {
        if keccak256(&record.bytes) != record.digest {
            return Err(PermitError::Altered(record.request));
        }
        let fits = match record.kind {
            PayloadKind::Transaction => {
                UnsignedTransaction::from_signing_bytes(&record.bytes).is_ok()
            }
            PayloadKind::Message => is_message(&record.bytes),
            PayloadKind::TypedData => is_typed_data(&record.bytes),
            PayloadKind::Authorization => is_authorization(&record.bytes),
        };
        if !fits {
            return Err(PermitError::WrongKind(record.request, record.kind.name()));
        }
        Ok(Self {
            request: record.request,
            key: record.key,
            public_key: record.public_key,
            hsm: record.hsm,
            custody: record.custody,
            bytes: record.bytes,
        })
    }

    /// Which key it is for; for queues and logs.
    #[must_use]
    pub const fn key(&self) -> KeyId {
        self.key
    }

    /// The token that its key belongs to; for queues.
    #[must_use]
    pub const fn hsm(&self) -> &HsmName {
        &self.hsm
    }

    /// Where the private half of its key is kept; for queues.
    #[must_use]
    pub const fn custody(&self) -> &Custody {
        &self.custody
    }

    /// Spends the permit.
    #[must_use]
    pub fn open(self) -> OpenPermit {
        OpenPermit {
            request: self.request,
            key: self.key,
            public_key: self.public_key,
            custody: self.custody,
            digest: keccak256(&self.bytes),
        }
    }
}

/// A secp256k1 signature as it leaves the HSM room: `s` in the lower half (EIP-2), recovered and
/// compared with the pinned key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawSignature {
    /// 32 bytes, big-endian.
    pub r: [u8; 32],
    /// 32 bytes, big-endian, at most half the group order.
    pub s: [u8; 32],
    /// Whether the recovered point's y is odd.
    pub y_parity: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::evm::authorization::authorization_bytes;
    use crate::core::evm::message::message_bytes;
    use alloy::primitives::Address;
    use uuid::Uuid;

    const ALL: [PayloadKind; 4] = [
        PayloadKind::Transaction,
        PayloadKind::Message,
        PayloadKind::TypedData,
        PayloadKind::Authorization,
    ];

    fn record(kind: PayloadKind, bytes: Vec<u8>) -> DecisionRecord {
        let mut point = [7; 65];
        point[0] = 4;
        DecisionRecord {
            request: RequestId::new(Uuid::from_u128(1)),
            attempt: 1,
            key: KeyId::new(Uuid::from_u128(2)),
            public_key: PublicKey::from_sec1(&point).unwrap(),
            hsm: HsmName::default(),
            custody: Custody::Token,
            kind,
            digest: keccak256(&bytes),
            bytes,
        }
    }

    #[test]
    fn a_permit_is_minted_only_for_the_decided_bytes() {
        let good = record(PayloadKind::Message, message_bytes("hi"));
        let digest = good.digest;
        assert_eq!(Permit::mint(good.clone()).unwrap().open().digest, digest);
        let mut altered = good;
        altered.bytes = message_bytes("ho");
        assert!(matches!(Permit::mint(altered), Err(PermitError::Altered(_))));
    }

    #[test]
    fn bytes_of_one_kind_get_no_permit_of_another() {
        let typed = [&[0x19, 0x01][..], &[7; 64]].concat();
        let chain = crate::core::id::ChainId::new(1);
        let authorization = authorization_bytes(chain, Address::repeat_byte(7), 2).unwrap();
        // A transfer of EIP-155 with nothing in it: rlp([0, 0, 21000, 0x07…, 0, "", 1, 0, 0]).
        let mut legacy = vec![0xdf, 0x80, 0x80, 0x82, 0x52, 0x08, 0x94];
        legacy.extend([7; 20]);
        legacy.extend([0x80, 0x80, 0x01, 0x80, 0x80]);
        let samples = [legacy, message_bytes("hi"), typed, authorization];
        for (own, bytes) in ALL.iter().zip(&samples) {
            for kind in ALL {
                let minted = Permit::mint(record(kind, bytes.clone()));
                assert_eq!(minted.is_ok(), kind == *own, "{own:?} as {kind:?}");
            }
        }
        for kind in ALL {
            assert_eq!(PayloadKind::from_name(kind.name()), Some(kind));
        }
    }

    #[test]
    fn a_bare_digest_gets_no_permit_of_any_kind() {
        for kind in ALL {
            let minted = Permit::mint(record(kind, vec![0xab; 32]));
            assert!(matches!(minted, Err(PermitError::WrongKind(..))), "{kind:?}");
        }
    }
}
