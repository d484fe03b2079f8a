//! Operator commands: one file per command. They print results to standard output and everything else to
//! standard error; 2 is bad usage, 1 is failure.

pub mod args;
pub mod audit;
pub mod ceremony;
pub mod client;
pub mod config_check;
pub mod key;
pub mod load;
pub mod policy;
pub mod print;
pub mod reconcile;
pub mod token;
pub mod tx;

use crate::ports::store::StoreError;

/// A command that failed, in a sentence for people.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Failure(String);

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self(error.to_string())
    }
}

impl Failure {
    /// A failure.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// A failure with its cause.
    pub fn of(what: &str, error: impl std::fmt::Display) -> Self {
        Self(format!("{what}: {error}"))
    }
}
