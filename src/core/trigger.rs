//! From an event of a contract to the call that it asks for. Pure: the same event gives the same bytes
//! and the same idempotency key, on every run and on every process.

mod business;
mod call;
mod event;
pub mod loop_guard;
mod rate;
mod transaction;

pub use business::{BusinessField, BusinessId, idempotency_key};
pub use call::Trigger;
pub use event::{DecodedLog, EventAbi, Parameters};
pub use rate::{Full, Rate, Turn};
pub use transaction::{CallAbi, NativeTransfer};

/// Why a signature, a mapping or a log cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TriggerError {
    /// Not a human-readable ABI signature of what was expected here.
    #[error("`{signature}` is not a signature: {reason}")]
    Signature {
        /// As configured.
        signature: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An argument of the mapping.
    #[error("argument `{name}`: {reason}")]
    Argument {
        /// Its name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A field of the business id.
    #[error("business_id field `{field}`: {reason}")]
    Business {
        /// As configured.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The log does not decode as the event.
    #[error("the log does not decode: {0}")]
    Log(String),
    /// The calldata does not decode as the function's.
    #[error("the call does not decode: {0}")]
    Call(String),
}

fn signature(signature: &str, reason: impl ToString) -> TriggerError {
    TriggerError::Signature { signature: signature.to_owned(), reason: reason.to_string() }
}

fn argument(name: &str, reason: impl ToString) -> TriggerError {
    TriggerError::Argument { name: name.to_owned(), reason: reason.to_string() }
}
