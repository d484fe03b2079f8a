//! The HSM, as the use cases see it.

use crate::core::id::HsmName;
use crate::core::key::{CkaId, KeyPlace, OperatorKey, PublicKey, WrappedKey};
use crate::core::key_report::{KeyReport, TokenReport};
use crate::core::permit::{Permit, RawSignature};
use async_trait::async_trait;

/// Why the signer gave nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SignerError {
    /// The bounded queue is full: ask again later. Nothing was signed.
    #[error("the signing queue is full")]
    Overloaded,
    /// The module, token or login is not there. Nothing that was signed has left.
    #[error("the HSM is not available: {0}")]
    Unavailable(String),
    /// The token has no such key, or one with other attributes than were pinned. An alarm.
    #[error("the key cannot be used: {0}")]
    KeyUnusable(String),
    /// The module returned a signature that does not verify. It was thrown away. An alarm.
    #[error("the HSM returned a wrong signature; it was discarded")]
    WrongSignature,
}

/// The only way to a key.
#[async_trait]
pub trait Signer: Send + Sync {
    /// The configured tokens, in the order of the configuration.
    fn hsms(&self) -> Vec<HsmName>;

    /// Signs the permit's bytes. The answer has been recovered and compared with the pinned public
    /// key, and its `s` is low. May be called concurrently; never blocks the caller's thread; never
    /// waits for room in the queue. A dropped future does not stop a signature under way, which is
    /// then thrown away.
    async fn sign(&self, permit: Permit) -> Result<RawSignature, SignerError>;

    /// Makes a key pair inside the HSM and answers its public key. Durable in the token on return. The
    /// new key signs nothing until it is enrolled.
    async fn create_key(&self, place: &KeyPlace, label: &str) -> Result<PublicKey, SignerError>;

    /// The `CKA_ID` of the key that wraps others in this token, if one is configured.
    fn wrapping_key(&self, hsm: &HsmName) -> Option<CkaId>;

    /// Makes a key pair inside the HSM and answers its public key and its private half, wrapped. Proved before
    /// it is answered: unwrapped, it has signed, and the signature was verified. Nothing of it stays in the
    /// HSM: only who keeps the answer has the key. It needs no enrolment.
    async fn create_wrapped(&self, hsm: &HsmName) -> Result<(PublicKey, WrappedKey), SignerError>;

    /// The public key of an existing pair, if the token has it. Used to finish a creation that a
    /// crash interrupted.
    async fn find_key(&self, place: &KeyPlace) -> Result<Option<PublicKey>, SignerError>;

    /// What the token tells of an existing pair, whether it may be used or not; `None` if it has none with this
    /// id. Nothing is signed.
    async fn describe_key(&self, place: &KeyPlace) -> Result<Option<KeyReport>, SignerError>;

    /// What a token tells of itself, with the names of all that lies in it. As slow as the token has objects:
    /// for ceremonies and `doctor`.
    async fn describe_token(&self, hsm: &HsmName) -> Result<TokenReport, SignerError>;

    /// Makes a key usable: found by its id, public key equal to the pinned one, private part sensitive
    /// and not extractable (or excepted in the configuration), and a proof of possession over fixed-prefix
    /// bytes signed and verified. A wrapped key proves itself in the same way, and is usable with or without
    /// it.
    async fn enroll(&self, key: &OperatorKey) -> Result<(), SignerError>;

    /// Whether the token answers now, in a sentence for `doctor` and `readyz`.
    async fn health(&self) -> Result<String, SignerError>;
}
