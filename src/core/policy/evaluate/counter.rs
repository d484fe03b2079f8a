//! Counters: which number a window is kept under, and for whom.

use crate::core::amount::Amount;
use crate::core::id::{ChainName, GrantId, GroupName, KeyId};
use crate::core::policy::bundle::grant::{Action, Holds, Scope, Window};
use crate::core::policy::bundle::guardrail::{LimitRule, LimitUnit};
use crate::core::policy::{Charge, ChargeKind, LimitId};
use crate::core::principal::Principal;
use alloy::primitives::Address;
use sha2::{Digest as _, Sha256};

/// Whose spending may be counted: of a request, the group and key that would sign, who asks, where, and to
/// whom value goes.
#[derive(Clone, Copy)]
pub(super) struct Whose<'a> {
    /// The group, if the key has one.
    pub(super) group: Option<&'a GroupName>,
    /// The key.
    pub(super) key: KeyId,
    /// Who asks.
    pub(super) principal: &'a Principal,
    /// Where; `None` for messages.
    pub(super) chain: Option<&'a ChainName>,
    /// To whom; `None` where nothing is counted by destination.
    pub(super) destination: Option<Address>,
}

/// The windows of a grant or of a guardrail, for one holder.
#[derive(Clone, Copy)]
pub(super) struct Slot<'a> {
    /// The grant or the guardrail.
    pub(super) grant: &'a GrantId,
    /// The holder.
    pub(super) whose: Whose<'a>,
}

/// One counter: its id, its label, and whose spending it counts.
pub(super) struct Counter {
    /// Its id.
    pub(super) limit: LimitId,
    /// In words.
    pub(super) label: String,
    /// The scope as it came out: a key without a group is a group of its own.
    pub(super) scope: &'static str,
    /// Which group, key, principal, destination or chain.
    pub(super) instance: String,
}

impl<'a> Slot<'a> {
    /// The same, for one destination.
    pub(super) fn to(self, destination: Option<Address>) -> Self {
        Self { whose: Whose { destination, ..self.whose }, ..self }
    }

    /// A charge of so many effects.
    pub(super) fn count(&self, window: &Window, count: u64) -> Charge {
        self.charge(window, "count", "count", ChargeKind::Count(count))
    }

    /// A charge of an amount; `what` is `value` or `fee`.
    pub(super) fn amount(&self, window: &Window, what: &str, unit: &str, value: Amount) -> Charge {
        self.charge(window, what, unit, ChargeKind::Amount { value, fee: Amount::ZERO })
    }

    fn charge(&self, window: &Window, what: &str, unit: &str, kind: ChargeKind) -> Charge {
        let Counter { limit, label, .. } = self.counter(window, what, unit);
        let (grant, max) = (self.grant.clone(), holds(window));
        Charge { limit, label, grant, kind, max, period: window.period }
    }

    /// The counter of a window for this holder.
    pub(super) fn counter(&self, window: &Window, what: &str, unit: &str) -> Counter {
        let (scope, instance) = self.scope(window.scope);
        let period = window.period.code().to_string();
        let limit = limit_id(&[self.grant.as_str(), what, unit, &period, scope, &instance]);
        let span = &window.span;
        let label = format!("{}: {what} ({unit}) in {span} per {scope} {instance}", self.grant);
        Counter { limit, label, scope, instance }
    }

    /// Whose spending: kind and value. A key without a group is a group of its own; an address on another
    /// chain is another destination.
    fn scope(&self, scope: Scope) -> (&'static str, String) {
        let whose = self.whose;
        let chain = whose.chain.map_or_else(String::new, ToString::to_string);
        match (scope, whose.group) {
            (Scope::Group, Some(group)) => ("group", group.to_string()),
            (Scope::Group, None) | (Scope::Key, _) => ("key", whose.key.to_string()),
            (Scope::Principal, _) => ("principal", whose.principal.scope()),
            (Scope::Destination, _) => {
                let to = whose.destination.unwrap_or_default();
                ("destination", format!("{chain}:0x{}", hex::encode(to)))
            }
            (Scope::Chain, _) => ("chain", chain),
        }
    }
}

impl Charge {
    /// Two windows of one counter: of a key without a group, `group` and `key` count the same. The tighter one
    /// holds, and what is the most of both is counted.
    pub(super) fn tighten(&mut self, other: &Self) {
        self.max = self.max.min(other.max);
        match (&mut self.kind, &other.kind) {
            (ChargeKind::Count(count), ChargeKind::Count(more)) => *count = (*count).max(*more),
            (
                ChargeKind::Amount { value, fee },
                ChargeKind::Amount { value: more, fee: more_fee },
            ) => {
                *value = (*value).max(*more);
                *fee = (*fee).max(*more_fee);
            }
            // The unit is in the counter's id: these are never of one counter.
            _ => {}
        }
    }
}

/// How much a window holds.
pub(super) fn holds(window: &Window) -> Amount {
    match window.holds {
        Holds::Count(count) => Amount::from(count),
        Holds::Amount(max) => max,
    }
}

/// The unit of a chain's own currency.
pub(super) fn native_unit(chain: &ChainName) -> String {
    format!("native:{chain}")
}

fn asset_unit(chain: &ChainName, address: &Address) -> String {
    format!("asset:{chain}:0x{}", hex::encode(address))
}

/// The unit that windows of an action count in.
pub(super) fn unit_of(action: &Action, chain: &ChainName) -> String {
    match action {
        Action::TokenTransfer { address, .. }
        | Action::TokenApprove { address, .. }
        | Action::NftTransfer { address, .. } => asset_unit(chain, address),
        _ => native_unit(chain),
    }
}

/// The unit that windows of a guardrail count in.
pub(super) fn unit_of_limit(limit: &LimitRule) -> String {
    match &limit.unit {
        LimitUnit::Native => native_unit(&limit.chain),
        LimitUnit::Asset { address, .. } => asset_unit(&limit.chain, address),
    }
}

/// SHA-256 over the parts, each with its length before it. The maximum is not among them, so
/// counters survive a change of the limit.
fn limit_id(parts: &[&str]) -> LimitId {
    let mut hasher = Sha256::new();
    for part in ["claviger/limit/v1"].iter().chain(parts) {
        hasher.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    LimitId(hasher.finalize().into())
}
