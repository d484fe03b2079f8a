//! The outcome of an evaluation.

use crate::core::amount::Amount;
use crate::core::id::{ChainName, GrantId};
use crate::core::intent::Fees;
use crate::core::policy::effect::{ApprovalForm, Effect, PermitTerms};
use crate::core::time::Timestamp;
use alloy::primitives::{Address, B256};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// What comes of it. The strictest wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Refused.
    Deny,
    /// Grants cover every effect, once some time has passed.
    Delay,
    /// Grants cover every effect, once enough people have approved it.
    NeedApproval,
    /// Grants cover every effect.
    Allow,
}

impl Outcome {
    /// The name in the API and in leaves.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Delay => "delay",
            Self::NeedApproval => "need_approval",
            Self::Allow => "allow",
        }
    }
}

/// Why something was refused: for each grant, the first field that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// The grant that failed here; none if the refusal is about the whole request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grant: Option<GrantId>,
    /// The field, such as `per_tx` or `args.amount.max`.
    pub field: String,
    /// What the grant says.
    pub expected: String,
    /// What the request says.
    pub actual: String,
}

/// A grant that does not cover an effect, or nothing of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Miss {
    /// The effect, by its place; `None` where the grant is not for this caller, key or chain at all.
    pub effect: Option<usize>,
    /// The first field that failed.
    #[serde(flatten)]
    pub reason: Reason,
}

/// A verdict with all that grants say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What is decided. Its reasons are the nearest misses, and not many.
    pub verdict: Verdict,
    /// Every grant that decides, with each effect beside the fee that it does not cover: the nearest first, then
    /// by effect and id.
    pub misses: Vec<Miss>,
}

/// Which counter: stable across bundles as long as the grant keeps its id, span, unit and scope.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LimitId(pub [u8; 32]);

impl fmt::Debug for LimitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", hex::encode(self.0))
    }
}

/// What a window counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChargeKind {
    /// Amounts of an asset: `value` is kept on success and dropped on a revert; `fee` becomes what was
    /// really paid.
    Amount {
        /// The part that moves only on success.
        value: Amount,
        /// The part that is paid in any case, at its cap (native windows only).
        fee: Amount,
    },
    /// How many of the request's effects the window's selectors match; of a message or typed data, one. Kept
    /// whatever becomes of it.
    Count(u64),
}

/// What must be reserved before this may be signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    /// The counter.
    pub limit: LimitId,
    /// The counter in words, for people: grant, span, scope.
    pub label: String,
    /// The grant whose window it is.
    pub grant: GrantId,
    /// What it counts.
    pub kind: ChargeKind,
    /// How much the window holds.
    pub max: Amount,
    /// Its span of time.
    pub period: Period,
}

/// The span of time that a window counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Period {
    /// The milliseconds that end now.
    Rolling(i64),
    /// The current day, UTC.
    Day,
    /// The current week, UTC, from Monday.
    Week,
    /// The current month, UTC.
    Month,
}

impl Period {
    /// As one number, as the database keeps it: milliseconds, or a negative number for a calendar's period.
    #[must_use]
    pub const fn code(self) -> i64 {
        match self {
            Self::Rolling(span_ms) => span_ms,
            Self::Day => -1,
            Self::Week => -2,
            Self::Month => -3,
        }
    }

    /// Reads [`Self::code`].
    #[must_use]
    pub const fn from_code(code: i64) -> Option<Self> {
        match code {
            -1 => Some(Self::Day),
            -2 => Some(Self::Week),
            -3 => Some(Self::Month),
            span_ms if span_ms > 0 => Some(Self::Rolling(span_ms)),
            _ => None,
        }
    }

    /// In words: `24h`, `day`.
    #[must_use]
    pub fn text(self) -> String {
        match self {
            Self::Rolling(span_ms) => crate::core::time::duration_text(span_ms),
            Self::Day => "day".to_owned(),
            Self::Week => "week".to_owned(),
            Self::Month => "month".to_owned(),
        }
    }

    /// What was settled at this moment or before it does not count any more at `now`.
    #[must_use]
    pub fn gone_before(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Rolling(span_ms) => now.plus_millis(span_ms.saturating_neg()),
            Self::Day | Self::Week | Self::Month => {
                Timestamp::from_millis(self.start(now).millis().saturating_sub(1))
            }
        }
    }

    /// The first moment of the period that `now` is in; of a rolling one, what [`Self::gone_before`] says.
    #[must_use]
    pub fn start(self, now: Timestamp) -> Timestamp {
        const DAY_MS: i64 = 86_400_000;
        let day = now.millis().div_euclid(DAY_MS);
        let first = match self {
            Self::Rolling(_) => return self.gone_before(now),
            Self::Day => day,
            // Day 0 was a Thursday.
            Self::Week => day.saturating_sub(day.saturating_add(3).rem_euclid(7)),
            Self::Month => day.saturating_sub(day_of_month(day)),
        };
        Timestamp::from_millis(first.saturating_mul(DAY_MS))
    }
}

/// How many days of its month are before this day; days count from 1970-01-01 (Howard Hinnant's
/// `civil_from_days`).
const fn day_of_month(day: i64) -> i64 {
    let shifted = day.saturating_add(719_468);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era
        .saturating_sub(of_era.div_euclid(1_460))
        .saturating_add(of_era.div_euclid(36_524))
        .saturating_sub(of_era.div_euclid(146_096)))
    .div_euclid(365);
    let of_year = of_era.saturating_sub(
        year_of_era
            .saturating_mul(365)
            .saturating_add(year_of_era.div_euclid(4))
            .saturating_sub(year_of_era.div_euclid(100)),
    );
    let month = of_year.saturating_mul(5).saturating_add(2).div_euclid(153);
    of_year.saturating_sub(month.saturating_mul(153).saturating_add(2).div_euclid(5))
}

impl Charge {
    /// All that is asked of the window. `None` on overflow, which denies.
    #[must_use]
    pub fn asked(&self) -> Option<Amount> {
        match self.kind {
            ChargeKind::Amount { value, fee } => value.checked_add(fee),
            ChargeKind::Count(count) => Some(Amount::from(count)),
        }
    }
}

/// A decision, with everything that led to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Allow or deny.
    pub outcome: Outcome,
    /// The bundle that decided.
    pub bundle: B256,
    /// The grants that covered the effects (empty on deny).
    pub grants: Vec<GrantId>,
    /// What the request would do.
    pub effects: Vec<Effect>,
    /// Why not (empty unless denied). Of grants that miss, the sixteen that come nearest: [`Explanation`]
    /// has all.
    pub reasons: Vec<Reason>,
    /// What to reserve until the nonce is final (empty on deny), in the order of limit ids, each limit once.
    pub charges: Vec<Charge>,
    /// What others may take later, each with what it holds of the windows until it is used, revoked or
    /// unusable (empty on deny).
    pub exposures: Vec<Exposure>,
    /// Who must approve it: set where the outcome is [`Outcome::NeedApproval`], or will be after the delay.
    pub approval: Option<ApprovalNeed>,
    /// How long it must wait, counted from when it was accepted: set where the outcome is
    /// [`Outcome::Delay`].
    pub delay: Option<DelayNeed>,
    /// What the grants in shadow mode would have said. They never decide.
    pub shadows: Vec<Shadow>,
    /// The fees that may be signed at most: the lowest of chain, caller and grant. `None` for
    /// messages and typed data.
    pub fee_cap: Option<Fees>,
    /// Set where the grant binds an event: which function on which chain this event is used up for.
    pub event_use: Option<EventUse>,
}

/// An event answers one request per function called: the pair is claimed when the request is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventUse {
    /// Where the event was seen, as CAIP-2 id (`eip155:1`).
    pub chain: ChainName,
    /// Its block.
    pub block_hash: B256,
    /// Its transaction.
    pub transaction_hash: B256,
    /// Its index in the block.
    pub log_index: u64,
    /// Contract address and function selector, in hex.
    pub used_for: String,
}

/// Tokens that somebody else may take from now on, or until a permit ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposure {
    /// The token's contract.
    pub token: Address,
    /// Whose tokens.
    pub owner: Address,
    /// Who may take them.
    pub spender: Address,
    /// How much, in smallest units.
    pub amount: Amount,
    /// How it is given: where what is left of it is kept.
    pub form: ApprovalForm,
    /// Bounds of a signed permit; `None` for an allowance set by the transaction.
    pub permit: Option<PermitTerms>,
    /// What it holds of each window, in the order of limit ids, each limit once.
    pub charges: Vec<Charge>,
}

/// Who must approve a request. All quorums must be met, each by distinct people of its groups, none of whom
/// is the requester.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApprovalNeed {
    /// The grants that ask for it, by id.
    pub grants: Vec<GrantId>,
    /// How many of which quorum group, for each of them.
    pub quorums: Vec<BTreeMap<String, u32>>,
    /// How long the approvals may be gathered, in milliseconds: the shortest.
    pub ttl_ms: i64,
}

/// How long a request must wait after it was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DelayNeed {
    /// The grants that ask for it, by id.
    pub grants: Vec<GrantId>,
    /// Milliseconds: the longest.
    pub ms: i64,
    /// Why, for people.
    pub why: String,
}

/// What a grant in shadow mode would have said about the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shadow {
    /// The grant.
    pub grant: GrantId,
    /// What it would have come to for the effects that its action matches.
    pub outcome: Outcome,
    /// The first field that failed, where it would not have covered them.
    pub reason: Option<Reason>,
}
