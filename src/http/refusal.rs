//! From the use cases' errors to problems: one match, no wildcard.

use crate::app::{AppError, record};
use crate::core::access::Action;
use crate::core::policy::Reason;
use crate::http::caller::Caller;
use crate::http::problem::{Cause, Problem};
use crate::ports::chain::ChainError;
use crate::ports::signer::SignerError;
use serde_json::{Value, json};

/// Reasons as every caller may see them.
#[must_use]
pub fn reduced(reasons: &[Reason]) -> Vec<Value> {
    record::reduced(reasons).into_iter().map(|field| json!({ "field": field })).collect()
}

/// Reasons as this caller may see them.
#[must_use]
pub fn reasons(caller: &Caller, reasons: &[Reason]) -> Vec<Value> {
    if !caller.may(Action::ReadReasons) {
        return reduced(reasons);
    }
    reasons.iter().filter_map(|reason| serde_json::to_value(reason).ok()).collect()
}

/// A refusal, with as much of its reasons as this caller may see.
#[must_use]
pub fn told(caller: &Caller, error: AppError) -> Problem {
    match error {
        AppError::Denied(found) => Problem::PolicyDenied { reasons: reasons(caller, &found) },
        error => error.into(),
    }
}

impl From<AppError> for Problem {
    fn from(error: AppError) -> Self {
        match error {
            AppError::Invalid { field, problem } => Self::invalid(field, problem),
            AppError::NotFound => Self::NotFound,
            AppError::KeyReused(request) => {
                Self::IdempotencyMismatch { resource: request.to_string() }
            }
            AppError::Conflict { detail, request } => {
                Self::Conflict { detail, resource: request.map(|id| id.to_string()) }
            }
            error @ AppError::InsufficientBalance { .. } => {
                Self::InsufficientBalance { detail: error.to_string() }
            }
            error @ AppError::TooManyWaiting(_) => {
                Self::TooManyWaiting { detail: error.to_string() }
            }
            AppError::NonceManaged => Self::NonceManaged,
            AppError::ReconcileRequired(detail) => Self::ReconcileRequired { detail },
            AppError::ClockUnconfirmed(detail) => Self::ClockUnconfirmed { detail },
            AppError::Forbidden(detail) => Self::Forbidden { detail },
            // Who may see more is told by `told`.
            AppError::Denied(reasons) => Self::PolicyDenied { reasons: reduced(&reasons) },
            AppError::WouldRevert(detail) => Self::WouldRevert { detail },
            AppError::NotDecodable(detail) => Self::NotDecodable { detail },
            AppError::Signer(SignerError::Overloaded) => Self::Overloaded,
            AppError::KeyBegun(error) => Self::KeyBegun(Cause::new(error)),
            AppError::Signer(error @ SignerError::Down { retry_after_s, .. }) => {
                Self::HsmDown { cause: Cause::new(error), retry_after_s }
            }
            AppError::Signer(error @ (SignerError::Unavailable(_) | SignerError::Condemned(_))) => {
                Self::HsmUnavailable(Some(Cause::new(error)))
            }
            AppError::Signer(
                error @ (SignerError::KeyUnusable(_) | SignerError::WrongSignature),
            ) => Self::internal(error),
            AppError::Store(error) => Self::StoreUnavailable(Some(Cause::new(error))),
            AppError::Chain(
                error @ (ChainError::Unavailable(_)
                | ChainError::Refused(_)
                | ChainError::UnknownBlock),
            ) => Self::ChainUnavailable(Some(Cause::new(error))),
            AppError::Chain(ChainError::Reverted(detail)) => Self::WouldRevert { detail },
            AppError::Internal(detail) => Self::internal(detail),
        }
    }
}
