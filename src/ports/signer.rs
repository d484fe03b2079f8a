//! The HSM, as the use cases see it.

use crate::core::id::{HsmName, KeyId, RequestId};
use crate::core::key::{CkaId, KeyPlace, OperatorKey, PublicKey, WrappedKey};
use crate::core::key_report::{KeyReport, TokenReport};
use crate::core::permit::{Permit, RawSignature};
use async_trait::async_trait;
use std::time::Duration;

/// Why the signer gave nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SignerError {
    /// The bounded queue is full: ask again later. Nothing was signed.
    #[error("the signing queue is full")]
    Overloaded,
    /// The module, token or login is not there. Nothing that was signed has left.
    #[error("the HSM is not available: {0}")]
    Unavailable(String),
    /// The token is known to be down, and is being probed: nothing was asked of it.
    #[error("the HSM is down: {reason}")]
    Down {
        /// What it said last.
        reason: String,
        /// Seconds until it is probed again, 1 to 30.
        retry_after_s: u32,
    },
    /// The token has refused the PIN, which this process does not send again: a person must look.
    #[error("the HSM refuses the PIN: {0}")]
    Condemned(String),
    /// The token has no such key, or one with other attributes than were pinned. An alarm.
    #[error("the key cannot be used: {0}")]
    KeyUnusable(String),
    /// The module returned a signature that does not verify. It was thrown away. An alarm.
    #[error("the HSM returned a wrong signature; it was discarded")]
    WrongSignature,
}

impl SignerError {
    /// Whether the token does not answer, whatever the key.
    #[must_use]
    pub const fn is_unavailable(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::Down { .. } | Self::Condemned(_) => true,
            Self::Overloaded | Self::KeyUnusable(_) | Self::WrongSignature => false,
        }
    }
}

/// What happened to a token, for the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HsmNews {
    /// It does not answer any more.
    Down {
        /// What it said.
        reason: String,
    },
    /// It answers again.
    Up {
        /// How long it did not.
        lasted: Duration,
    },
    /// It gave a signature that does not verify, which was thrown away.
    WrongSignature {
        /// By which key it was to be.
        key: KeyId,
        /// For which request; `None` for a proof of possession.
        request: Option<RequestId>,
    },
}

/// Something that happened to a token and is not in the audit log yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HsmEvent {
    /// Later ones have higher numbers.
    pub number: u64,
    /// Which token.
    pub hsm: HsmName,
    /// How long ago it happened.
    pub age: Duration,
    /// How often, where several are told as one: they come faster than they can be recorded.
    pub times: u64,
    /// What.
    pub news: HsmNews,
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

    /// Whether a signature of this key may be asked for now: its token, or one that stands by for it, is not
    /// known to be down and has room in its queue, and the key has not been found unusable. Cheap: it asks no
    /// module.
    ///
    /// # Errors
    /// Why not.
    fn ready(&self, key: &OperatorKey) -> Result<(), SignerError>;

    /// Whether this very token is not known to be down. Cheap: it asks no module.
    ///
    /// # Errors
    /// Why not.
    fn is_up(&self, hsm: &HsmName) -> Result<(), SignerError>;

    /// What happened and is not recorded yet, in its order. It stays until [`Self::events_recorded`].
    fn events(&self) -> Vec<HsmEvent>;

    /// As [`Self::events`], at the end of the process: nothing waits any longer to be told together with what
    /// comes after it.
    fn last_events(&self) -> Vec<HsmEvent>;

    /// What happened up to this number is recorded.
    fn events_recorded(&self, up_to: u64);

    /// Whether a token answers now, in a line for each token, for `doctor` and `readyz`. An error only if
    /// none does.
    async fn health(&self) -> Result<String, SignerError>;
}
