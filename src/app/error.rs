//! Why a use case refused or failed. Typed, so that the doors can tell callers exactly what they may
//! know.

use crate::core::amount::Amount;
use crate::core::id::RequestId;
use crate::core::policy::Reason;
use crate::ports::chain::ChainError;
use crate::ports::signer::SignerError;
use crate::ports::store::StoreError;

/// A refusal or a failure.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppError {
    /// A field of the request cannot be.
    #[error("{field}: {problem}")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no such thing, or the caller may not know of it.
    #[error("not found")]
    NotFound,
    /// The idempotency key is bound to another body.
    #[error("this idempotency key was used with another body")]
    KeyReused(RequestId),
    /// Something else has it already.
    #[error("{detail}")]
    Conflict {
        /// What and why.
        detail: String,
        /// The request that has it.
        request: Option<RequestId>,
    },
    /// The account's nonces are given by Claviger.
    #[error("the nonces of this account are managed here")]
    NonceManaged,
    /// The account cannot pay for it, and this chain parks no such requests.
    #[error("needs {needed} wei, the account has {balance} wei")]
    InsufficientBalance {
        /// Value and fee, in wei.
        needed: Amount,
        /// What there is, in wei.
        balance: Amount,
    },
    /// The caller may not do this to this one.
    #[error("{0}")]
    Forbidden(String),
    /// Policy refuses.
    #[error("policy refuses the request")]
    Denied(Vec<Reason>),
    /// As many requests of this principal wait for time or people as may.
    #[error(
        "{0} requests of this principal wait for time or people already, and no more may ([server] \
         max_waiting): ask again once one of them has gone on or ended"
    )]
    TooManyWaiting(i64),
    /// The call would revert.
    #[error("the call would revert: {0}")]
    WouldRevert(String),
    /// The typed data does not fit its own types.
    #[error("{0}")]
    NotDecodable(String),
    /// The HSM gave nothing.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// The HSM gave nothing, and a key has been begun: it is finished later, or not.
    #[error("{0}; the key was begun and may be finished later, see `claviger key list`")]
    KeyBegun(SignerError),
    /// The database gave nothing; nothing was stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The chain's nodes gave nothing.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The database may be older than the chain: nothing is signed until an operator has looked.
    #[error("waiting for `claviger reconcile`: {0}")]
    ReconcileRequired(String),
    /// The clock has jumped: windows are not used until an operator has confirmed it.
    #[error("waiting for `claviger clock confirm`: {0}")]
    ClockUnconfirmed(String),
    /// A rule of ours is broken. Nothing was done.
    #[error("{0}")]
    Internal(String),
}

impl AppError {
    /// An invalid field.
    pub fn invalid(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Invalid { field, problem: problem.into() }
    }

    /// A broken rule.
    pub fn internal(error: impl ToString) -> Self {
        Self::Internal(error.to_string())
    }
}
