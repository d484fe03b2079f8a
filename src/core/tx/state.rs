//! Statuses of a transaction, and which may follow which.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a transaction is. The ends are told only when its nonce is final, or was never given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Accepted; spend is reserved; no nonce yet.
    Queued,
    /// A nonce was allocated to it, for ever; from here on it may be on the chain.
    Submitted,
    /// One of its attempts is in a canonical block that is not final.
    Mined,
    /// End: it succeeded in a final block.
    Finalized,
    /// End: it was mined and reverted in a final block.
    Reverted,
    /// End: `not_after` passed before it was given a nonce.
    Expired,
    /// End: it will not happen, and `failure` says why.
    Failed,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 7] = [
        Self::Queued,
        Self::Submitted,
        Self::Mined,
        Self::Finalized,
        Self::Reverted,
        Self::Expired,
        Self::Failed,
    ];

    /// The name in the API and the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Submitted => "submitted",
            Self::Mined => "mined",
            Self::Finalized => "finalized",
            Self::Reverted => "reverted",
            Self::Expired => "expired",
            Self::Failed => "failed",
        }
    }

    /// Reads [`Self::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }

    /// Whether nothing can follow.
    #[must_use]
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Finalized | Self::Reverted | Self::Expired | Self::Failed)
    }

    /// Whether `next` may follow. A nonce that was given is never taken back, so nothing leads from
    /// `submitted` to an end but the final chain.
    #[must_use]
    pub const fn may_become(self, next: Self) -> bool {
        match self {
            Self::Queued => matches!(next, Self::Submitted | Self::Expired | Self::Failed),
            Self::Submitted => matches!(next, Self::Mined),
            Self::Mined => {
                matches!(next, Self::Mined | Self::Submitted | Self::Finalized | Self::Reverted)
            }
            Self::Finalized | Self::Reverted | Self::Expired | Self::Failed => false,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_ends_are_ends() {
        for status in Status::ALL {
            assert_eq!(Status::from_name(status.name()), Some(status));
            let stuck = Status::ALL.into_iter().all(|next| !status.may_become(next));
            assert_eq!(stuck, status.is_end(), "{status}");
        }
    }

    #[test]
    fn a_given_nonce_ends_only_through_a_block() {
        for end in Status::ALL.into_iter().filter(|status| status.is_end()) {
            assert!(!Status::Submitted.may_become(end), "{end}");
        }
    }
}
