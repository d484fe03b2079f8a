//! Windows: what a request would take from each of them.
//!
//! A window applies to everything that its grant's selectors match, whichever grant allowed the
//! request and whether or not its own grant still does: to leave a limit, it must be removed, not
//! walked around.

use super::matching::{judge_selectors, selects};
use crate::core::amount::Amount;
use crate::core::id::{ChainName, GrantId, GroupName, KeyId};
use crate::core::intent::Intent;
use crate::core::policy::bundle::grant::{Action, ChainRule, Grant, Holds, Rules, Scope, Window};
use crate::core::policy::{Bundle, Charge, ChargeKind, Effect, LimitId, PolicyRequest};
use crate::core::principal::Principal;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// What a request takes from all windows, in the order of limit ids.
pub(super) fn charges(bundle: &Bundle, request: &PolicyRequest, effects: &[Effect]) -> Vec<Charge> {
    let mut charges = BTreeMap::new();
    for grant in bundle.rules().iter().filter(|grant| selects(grant, request).is_ok()) {
        for charge in charges_of(grant, request, effects) {
            charges.insert(charge.limit, charge);
        }
    }
    charges.into_values().collect()
}

fn charges_of(grant: &Grant, request: &PolicyRequest, effects: &[Effect]) -> Vec<Charge> {
    let whose =
        Whose { group: request.group.as_ref(), key: request.key, principal: &request.principal };
    let slot = Slot { grant: &grant.id, whose };
    match (&grant.rules, &request.intent) {
        (Rules::Message { windows, .. }, Intent::Message { .. }) => {
            windows.iter().map(|window| slot.count(window)).collect()
        }
        (Rules::OnChain(rules), intent) => {
            let named = intent.chain().and_then(|chain| rules.get_key_value(&chain.name));
            named.map_or_else(Vec::new, |(chain, rule)| on_chain(&slot, chain, rule, effects))
        }
        (Rules::Message { .. }, _) => Vec::new(),
    }
}

fn on_chain(
    slot: &Slot<'_>,
    chain: &ChainName,
    rule: &ChainRule,
    effects: &[Effect],
) -> Vec<Charge> {
    let matches = effects.iter().any(|effect| judge_selectors(&rule.action, effect).is_ok());
    let fee = fee_of(effects);
    let mut charges = Vec::new();
    for window in &rule.windows {
        match window.holds {
            Holds::Count(_) if matches => charges.push(slot.count(window)),
            Holds::Count(_) => {}
            Holds::Amount(max) => {
                let kind = amount_of(&rule.action, effects, matches, fee);
                let unit = unit_of(&rule.action, chain);
                charges.extend(kind.map(|kind| slot.charge(window, "value", &unit, max, kind)));
            }
        }
    }
    let fee_windows = rule.fee.iter().flat_map(|fee| &fee.windows).filter(|_| matches);
    for window in fee_windows {
        if let Holds::Amount(max) = window.holds {
            let kind = ChargeKind::Amount { value: Amount::ZERO, fee };
            let unit = format!("native:{chain}");
            charges.push(slot.charge(window, "fee", &unit, max, kind));
        }
    }
    charges
}

/// What a window of this action counts; `None` if nothing of the request concerns it. Sums
/// saturate: then they are above every limit but the highest, and a sum of two amounts at that
/// height is none.
fn amount_of(
    action: &Action,
    effects: &[Effect],
    matches: bool,
    fee: Amount,
) -> Option<ChargeKind> {
    let native = |only: &dyn Fn(&Effect) -> bool| {
        let counted = effects.iter().filter(|effect| only(effect));
        counted.fold(Amount::ZERO, |sum, effect| saturating_add(sum, effect.native()))
    };
    match action {
        // Fees have no destination: a window over native spend counts them all.
        Action::NativeTransfer { to, .. } => {
            let value = native(&|effect| effect.destination().is_some_and(|it| to.contains(it)));
            Some(ChargeKind::Amount { value, fee })
        }
        Action::Call(_) => {
            let value = native(&|_| true);
            matches.then_some(ChargeKind::Amount { value, fee })
        }
        Action::TokenTransfer { .. } => {
            let moved = effects.iter().filter(|effect| judge_selectors(action, effect).is_ok());
            let value = moved.fold(Amount::ZERO, |sum, effect| match effect {
                Effect::TokenOut { amount, .. } => saturating_add(sum, *amount),
                _ => sum,
            });
            matches.then_some(ChargeKind::Amount { value, fee: Amount::ZERO })
        }
        _ => None,
    }
}

fn saturating_add(a: Amount, b: Amount) -> Amount {
    a.checked_add(b).unwrap_or(Amount::new(alloy::primitives::U256::MAX))
}

fn fee_of(effects: &[Effect]) -> Amount {
    let fees = effects.iter().map(|effect| match effect {
        Effect::FeeMax { amount } => *amount,
        _ => Amount::ZERO,
    });
    fees.fold(Amount::ZERO, saturating_add)
}

pub(super) fn unit_of(action: &Action, chain: &ChainName) -> String {
    match action {
        Action::TokenTransfer { address, .. } => {
            format!("asset:{chain}:0x{}", hex::encode(address))
        }
        _ => format!("native:{chain}"),
    }
}

/// Whose spending may be counted: of a request, the group and key that would sign, and who asks.
#[derive(Clone, Copy)]
pub(super) struct Whose<'a> {
    pub group: Option<&'a GroupName>,
    pub key: KeyId,
    pub principal: &'a Principal,
}

/// A grant's windows for one holder.
pub(super) struct Slot<'a> {
    pub grant: &'a GrantId,
    pub whose: Whose<'a>,
}

/// One counter: its id, its label, and whose spending it counts.
pub(super) struct Counter {
    pub limit: LimitId,
    pub label: String,
    pub scope: &'static str,
    pub instance: String,
}

impl Slot<'_> {
    fn count(&self, window: &Window) -> Charge {
        self.charge(window, "count", "count", holds(window), ChargeKind::Count)
    }

    fn charge(
        &self,
        window: &Window,
        what: &str,
        unit: &str,
        max: Amount,
        kind: ChargeKind,
    ) -> Charge {
        let Counter { limit, label, .. } = self.counter(window, what, unit);
        Charge { limit, label, grant: self.grant.clone(), kind, max, period: window.period }
    }

    /// The counter of a window for this holder.
    pub fn counter(&self, window: &Window, what: &str, unit: &str) -> Counter {
        let (scope, instance) = self.scope(window.scope);
        let span_ms = window.period.code().to_string();
        let limit = limit_id(&[self.grant.as_str(), what, unit, &span_ms, scope, &instance]);
        let span = &window.span;
        let label = format!("{}: {what} ({unit}) in {span} per {scope} {instance}", self.grant);
        Counter { limit, label, scope, instance }
    }

    /// Whose spending: kind and value. A key without a group is a group of its own.
    fn scope(&self, scope: Scope) -> (&'static str, String) {
        match (scope, self.whose.group) {
            (Scope::Group, Some(group)) => ("group", group.to_string()),
            (Scope::Group, None) | (Scope::Key, _) => ("key", self.whose.key.to_string()),
            (Scope::Principal, _) => ("principal", self.whose.principal.scope()),
            (Scope::Destination | Scope::Chain, _) => ("chain", String::new()),
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
