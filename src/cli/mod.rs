//! Operator commands: one file per command. They print results to standard output and everything else to
//! standard error; 2 is bad usage, 1 is failure, 78 a failure that starting again makes worse.

pub mod approval;
pub mod args;
pub mod audit;
pub mod ceremony;
pub mod client;
pub mod clock;
pub mod config_check;
pub mod delivery;
pub mod explain;
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
#[error("{text}")]
pub struct Failure {
    text: String,
    for_good: bool,
}

/// `EX_CONFIG` of sysexits.h.
const FOR_GOOD: u8 = 78;

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::new(error.to_string())
    }
}

impl Failure {
    /// A failure.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), for_good: false }
    }

    /// A failure that a person must look at before the program is started again: each start may make it worse.
    pub fn for_good(text: impl Into<String>) -> Self {
        Self { text: text.into(), for_good: true }
    }

    /// A failure with its cause.
    pub fn of(what: &str, error: impl std::fmt::Display) -> Self {
        Self::new(format!("{what}: {error}"))
    }

    /// The exit code.
    #[must_use]
    pub const fn code(&self) -> u8 {
        if self.for_good { FOR_GOOD } else { 1 }
    }
}
