//! Statuses of a transaction, and which may follow which.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a transaction is. The ends are told only when its nonce is final, or was never given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Accepted, and it has to wait first; nothing is reserved.
    Delayed,
    /// Accepted, and people have to approve it; nothing is reserved.
    AwaitingApproval,
    /// Accepted; spend is reserved; no nonce yet.
    Queued,
    /// A nonce was allocated to it, for ever; from here on it may be on the chain.
    Submitted,
    /// A no-op of the same nonce is out, or about to be: whichever is mined wins, and until that block is
    /// final neither is told as the end.
    Cancelling,
    /// One of its attempts (not a no-op) is in a canonical block that is not final.
    Mined,
    /// End: it succeeded in a final block.
    Finalized,
    /// End: it was mined and reverted in a final block.
    Reverted,
    /// End: it was cancelled, before it was given a nonce or by a no-op that is final.
    Cancelled,
    /// End: `not_after` passed before it was given a nonce, or a no-op filled its nonce after that.
    Expired,
    /// End: it will not happen, and `failure` says why.
    Failed,
    /// End: somebody who could have approved it said no.
    Rejected,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 12] = [
        Self::Delayed,
        Self::AwaitingApproval,
        Self::Queued,
        Self::Submitted,
        Self::Cancelling,
        Self::Mined,
        Self::Finalized,
        Self::Reverted,
        Self::Cancelled,
        Self::Expired,
        Self::Failed,
        Self::Rejected,
    ];

    /// The name in the API and the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Delayed => "delayed",
            Self::AwaitingApproval => "awaiting_approval",
            Self::Queued => "queued",
            Self::Submitted => "submitted",
            Self::Cancelling => "cancelling",
            Self::Mined => "mined",
            Self::Finalized => "finalized",
            Self::Reverted => "reverted",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
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
        matches!(
            self,
            Self::Finalized
                | Self::Reverted
                | Self::Cancelled
                | Self::Expired
                | Self::Failed
                | Self::Rejected
        )
    }

    /// Whether it waits for time or people: it holds nothing, and no nonce is given to it.
    #[must_use]
    pub const fn is_waiting(self) -> bool {
        matches!(self, Self::Delayed | Self::AwaitingApproval)
    }

    /// Whether it has no nonce yet.
    #[must_use]
    pub const fn is_before_nonce(self) -> bool {
        matches!(self, Self::Delayed | Self::AwaitingApproval | Self::Queued)
    }

    /// Whether `next` may follow. A nonce that was given is never taken back, so nothing leads from
    /// `submitted` to an end but the final chain. `mined` goes back to where it was after a reorg. What has
    /// no nonce goes back to waiting where another bundle asks for more; and from there straight to
    /// `submitted` where a restored database finds it on the chain.
    #[must_use]
    pub const fn may_become(self, next: Self) -> bool {
        match self {
            Self::Delayed | Self::AwaitingApproval => matches!(
                next,
                Self::Delayed
                    | Self::AwaitingApproval
                    | Self::Queued
                    | Self::Submitted
                    | Self::Rejected
                    | Self::Cancelled
                    | Self::Expired
                    | Self::Failed
            ),
            Self::Queued => matches!(
                next,
                Self::Delayed
                    | Self::AwaitingApproval
                    | Self::Submitted
                    | Self::Cancelled
                    | Self::Expired
                    | Self::Failed
            ),
            Self::Submitted => matches!(next, Self::Mined | Self::Cancelling),
            Self::Cancelling => matches!(
                next,
                Self::Cancelling | Self::Mined | Self::Cancelled | Self::Expired | Self::Failed
            ),
            Self::Mined => matches!(
                next,
                Self::Mined | Self::Submitted | Self::Cancelling | Self::Finalized | Self::Reverted
            ),
            Self::Finalized
            | Self::Reverted
            | Self::Cancelled
            | Self::Expired
            | Self::Failed
            | Self::Rejected => false,
        }
    }
}

/// Why a no-op is to take a transaction's nonce: the end that is told once the no-op is final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// An operator cancelled it.
    Cancelled,
    /// `not_after` passed.
    Expired,
    /// The nodes refuse it for good.
    Failed,
    /// Its fee cap is too low, and it kept others of its lane waiting.
    Outpriced,
}

impl Ending {
    /// Every reason.
    pub const ALL: [Self; 4] = [Self::Cancelled, Self::Expired, Self::Failed, Self::Outpriced];

    /// The end that is told.
    #[must_use]
    pub const fn status(self) -> Status {
        match self {
            Self::Cancelled => Status::Cancelled,
            Self::Expired => Status::Expired,
            Self::Failed | Self::Outpriced => Status::Failed,
        }
    }

    /// The name in the database and in events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Failed => "failed",
            Self::Outpriced => "outpriced",
        }
    }

    /// Reads [`Self::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|ending| ending.name() == name)
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
    fn a_cancellation_can_only_lose_to_a_block_and_never_be_taken_back() {
        assert!(!Status::Cancelling.may_become(Status::Submitted));
        assert!(!Status::Cancelling.may_become(Status::Finalized), "it must be seen mined before");
        for ending in Ending::ALL {
            assert_eq!(Ending::from_name(ending.name()), Some(ending));
            assert!(ending.status().is_end());
            assert!(Status::Cancelling.may_become(ending.status()));
            assert!(!Status::Mined.may_become(ending.status()), "a payload is mined");
        }
    }

    #[test]
    fn what_waits_has_no_nonce_and_nothing_with_a_nonce_waits_again() {
        for waits in Status::ALL.into_iter().filter(|status| status.is_waiting()) {
            assert!(waits.is_before_nonce());
            assert!(!waits.may_become(Status::Mined) && !waits.may_become(Status::Cancelling));
            for status in Status::ALL {
                let may = status.may_become(waits);
                assert!(!may || status.is_before_nonce(), "{status} must not become {waits}");
            }
        }
        let rejected = Status::ALL.into_iter().filter(|it| it.may_become(Status::Rejected));
        assert!(rejected.eq([Status::Delayed, Status::AwaitingApproval]), "only what waits");
    }

    #[test]
    fn a_given_nonce_ends_only_through_a_block() {
        for end in Status::ALL.into_iter().filter(|status| status.is_end()) {
            assert!(!Status::Submitted.may_become(end), "{end}");
        }
    }
}
