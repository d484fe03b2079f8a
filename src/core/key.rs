//! Operator keys: what is pinned about them, and what they may be used for.

use crate::core::id::{GroupName, HsmName, KeyId};
use crate::core::time::Timestamp;
use alloy::primitives::{Address, keccak256};
use serde::{Deserialize, Serialize};
use std::fmt;

/// An uncompressed SEC1 point of secp256k1: `0x04 || x || y`, 65 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; 65]);

impl PublicKey {
    /// Takes the 65 bytes of an uncompressed point; `None` for any other shape. Whether the point
    /// lies on the curve is checked where curve arithmetic is at hand (the `hsm` room).
    #[must_use]
    pub fn from_sec1(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; 65] = bytes.try_into().ok()?;
        (bytes.first() == Some(&4)).then_some(Self(bytes))
    }

    /// The 65 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 65] {
        &self.0
    }

    /// The Ethereum address: the last 20 bytes of `keccak256(x || y)` (Yellow Paper, appendix F).
    #[must_use]
    pub fn address(&self) -> Address {
        let hash = keccak256(self.0.get(1..).unwrap_or_default());
        Address::from_slice(hash.get(12..).unwrap_or_default())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey(0x{})", hex::encode(self.0))
    }
}

/// Who gives the nonces of an account, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NonceMode {
    /// Claviger does.
    Managed,
    /// Callers do, over `POST /v1/signatures`.
    External,
}

impl NonceMode {
    /// The name in the database and the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Managed => "managed",
            Self::External => "external",
        }
    }

    /// Reads [`Self::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Managed, Self::External].into_iter().find(|mode| mode.name() == name)
    }
}

/// Where a key is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyState {
    /// The pair is being made in the HSM; nothing may use it yet.
    Creating,
    /// In use.
    Active,
}

impl KeyState {
    /// The name in the database and the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Active => "active",
        }
    }

    /// Reads [`Self::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Creating, Self::Active].into_iter().find(|state| state.name() == name)
    }
}

/// How the HSM finds a key: its `CKA_ID` (PKCS#11 v3.1, section 4.1.4), 16 random bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CkaId(Vec<u8>);

impl CkaId {
    /// Wraps the bytes.
    #[must_use]
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Where a key pair is: which token, and its `CKA_ID` there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyPlace {
    /// The configured token.
    pub hsm: HsmName,
    /// Its id in that token.
    pub cka_id: CkaId,
}

/// A private key that the HSM has wrapped: of no use without the wrapping key, which never leaves the HSM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappedKey {
    /// What `C_WrapKey` gave, by `CKM_AES_KEY_WRAP_PAD` (PKCS#11 v3.1, section 6.13.3; RFC 5649).
    pub blob: Vec<u8>,
    /// The `CKA_ID` of the wrapping key, in the same token.
    pub under: CkaId,
}

/// Where the private half of a key is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Custody {
    /// It is an object of the token.
    Token,
    /// It is in our database, wrapped by the HSM, and is unwrapped inside it to sign.
    Wrapped(WrappedKey),
}

impl Custody {
    /// The name in the API.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Wrapped(_) => "wrapped",
        }
    }
}

/// An operator key as pinned when it was made. Public facts only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorKey {
    /// Our id.
    pub id: KeyId,
    /// The configured token that it belongs to.
    pub hsm: HsmName,
    /// The HSM's id.
    pub cka_id: CkaId,
    /// Where its private half is kept.
    pub custody: Custody,
    /// What people call it.
    pub label: String,
    /// The group that spreads work over it, if any.
    pub group: Option<GroupName>,
    /// Who gives the nonces on chains where nothing else was said at creation.
    pub mode: NonceMode,
    /// The pinned public key.
    pub public_key: PublicKey,
    /// The address of the pinned public key.
    pub address: Address,
    /// Where it is in its life.
    pub state: KeyState,
    /// When it was made.
    pub created_at: Timestamp,
}

impl OperatorKey {
    /// Where the pair is.
    #[must_use]
    pub fn place(&self) -> KeyPlace {
        KeyPlace { hsm: self.hsm.clone(), cka_id: self.cka_id.clone() }
    }
}
