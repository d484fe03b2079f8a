//! Windows: what a request would take from each of them.
//!
//! A window applies to everything that its grant's selectors match, whichever grant allowed the
//! request and whether or not its own grant still does: to leave a limit, it must be removed, not
//! walked around. A guardrail's windows apply to everything of their unit.

use super::bounds::{amount_of, saturating_add};
use super::counter::{Slot, Whose, native_unit, unit_of, unit_of_limit};
use super::matching::{Ask, Match, Rule, acts_for};
use crate::core::amount::Amount;
use crate::core::id::{ChainName, GrantId};
use crate::core::intent::Intent;
use crate::core::policy::bundle::grant::{Action, ChainRule, Destinations, Holds, Scope, Window};
use crate::core::policy::bundle::guardrail::{LimitRule, LimitUnit};
use crate::core::policy::{Charge, ChargeKind, Effect, Exposure, LimitId, Reason};
use alloy::primitives::{Address, U256};
use std::collections::BTreeMap;

/// A charge before the fee is known.
pub(super) struct Draft {
    charge: Charge,
    /// Whether the fee counts as well.
    fee: bool,
}

/// What a request would take from all windows, before the fee is known.
pub(super) struct Drafts {
    charges: BTreeMap<LimitId, Draft>,
    exposures: Vec<Held>,
    /// How much one request may take at most beside the windows: the guardrails' own bounds.
    bounds: Vec<Bound>,
}

/// Something counted: to whom it goes, if to somebody, and how much.
type Counted = (Option<Address>, Amount);

/// An allowance, and the effects that give it, by their places.
struct Held {
    places: Vec<usize>,
    exposure: Exposure,
}

struct Bound {
    limit: GrantId,
    max: Amount,
    value: Amount,
    fee: bool,
}

impl Drafts {
    /// What these grants' windows ask alone.
    pub fn of_grants(found: &[Match<'_>], ask: &Ask<'_>) -> Self {
        let mut drafts =
            Self { charges: BTreeMap::new(), exposures: exposures(ask), bounds: Vec::new() };
        for one in found {
            drafts.add_match(one, ask);
        }
        drafts
    }

    /// What these grants' windows and the guardrails ask.
    pub fn of(found: &[Match<'_>], ask: &Ask<'_>) -> Self {
        let mut drafts = Self::of_grants(found, ask);
        for limit in &ask.bundle.guardrails().limits {
            if ask.chain() == Some(&limit.chain) {
                drafts.add_limit(limit, ask);
            }
        }
        for held in &mut drafts.exposures {
            held.exposure.charges.sort_by_key(|charge| charge.limit);
        }
        drafts
    }

    /// What to reserve at this fee, in the order of limit ids, each limit once; and what others may take later.
    pub fn into_parts(self, fee: Amount) -> (Vec<Charge>, Vec<Exposure>) {
        let charges = self.charges.into_values().map(|draft| draft.into_charge(fee)).collect();
        (charges, self.exposures.into_iter().map(|held| held.exposure).collect())
    }

    /// Where one request at this fee is more than a window or a guardrail holds.
    pub fn exceeded(&self, fee: Amount) -> Vec<Reason> {
        let mut asked: BTreeMap<LimitId, (&Charge, Option<Amount>)> = BTreeMap::new();
        for charge in self.exposures.iter().flat_map(|held| &held.exposure.charges) {
            let before = || match self.charges.get(&charge.limit) {
                Some(draft) => (&draft.charge, draft.asked(fee)),
                None => (charge, Some(Amount::ZERO)),
            };
            let sum = asked.entry(charge.limit).or_insert_with(before);
            sum.1 = sum.1.zip(charge.asked()).and_then(|(sum, more)| sum.checked_add(more));
        }
        let alone = self.charges.iter().filter(|(limit, _)| !asked.contains_key(limit));
        let alone: Vec<_> = alone
            .map(|(limit, draft)| (*limit, (&draft.charge, draft.asked(fee))))
            .filter(|(_, (charge, asked))| !fits(*asked, charge.max))
            .collect();
        // In the order of limit ids.
        asked.retain(|_, (charge, asked)| !fits(*asked, charge.max));
        asked.extend(alone);
        let windows = asked.into_values().map(|(charge, asked)| Reason {
            grant: Some(charge.grant.clone()),
            field: "windows".to_owned(),
            expected: format!("at most {} of {}", charge.max, charge.label),
            actual: in_words(asked),
        });
        let bounds = self.bounds.iter().filter_map(|bound| {
            let fee = if bound.fee { fee } else { Amount::ZERO };
            let asked = bound.value.checked_add(fee);
            (!fits(asked, bound.max)).then(|| Reason {
                grant: Some(bound.limit.clone()),
                field: "per_tx".to_owned(),
                expected: bound.max.to_string(),
                actual: in_words(asked),
            })
        });
        windows.chain(bounds).collect()
    }

    fn add(&mut self, charge: Charge, fee: bool) {
        let Some(before) = self.charges.get_mut(&charge.limit) else {
            self.charges.insert(charge.limit, Draft { charge, fee });
            return;
        };
        before.charge.tighten(&charge);
        before.fee |= fee;
    }

    fn add_match(&mut self, found: &Match<'_>, ask: &Ask<'_>) {
        let slot = || Slot { grant: &found.grant.id, whose: whose(ask) };
        let (chain, rule) = match found.rule {
            Rule::Message { windows, .. } => {
                for window in windows {
                    self.add(slot().count(window, 1), false);
                }
                return;
            }
            Rule::Chain { terms, .. } if !terms.has_windows => return,
            Rule::Chain { name, rule, .. } => (name, rule),
        };
        let slot = slot();
        let matched = || found.effects.iter().filter_map(|place| ask.effect(*place));
        for window in &rule.windows {
            match (window.holds, &rule.action) {
                (Holds::Count(_), _) => self.add_counts(slot, window, matched()),
                (Holds::Amount(_), Action::TokenApprove { .. }) => {
                    let unit = unit_of(&rule.action, chain);
                    self.expose(slot, window, &unit, |place| found.effects.contains(&place));
                }
                (Holds::Amount(_), action) => {
                    let counted = counted(found, rule, ask);
                    self.add_amounts(slot, window, chain, action, &counted, ask);
                }
            }
        }
        let sends = matches!(ask.request.intent, Intent::Transaction(_));
        for window in rule.fee.iter().flat_map(|fee| &fee.windows) {
            if sends && !found.effects.is_empty() {
                self.add(slot.amount(window, "fee", &native_unit(chain), Amount::ZERO), true);
            }
        }
    }

    /// One for each effect: a batch is as many as it has calls.
    fn add_counts<'e>(
        &mut self,
        slot: Slot<'_>,
        window: &Window,
        matched: impl Iterator<Item = &'e Effect>,
    ) {
        let mut counts: BTreeMap<Option<Address>, u64> = BTreeMap::new();
        for effect in matched {
            let to = match (window.scope, effect.destination()) {
                (Scope::Destination, None) => continue,
                (Scope::Destination, to) => to,
                _ => None,
            };
            let count = counts.entry(to).or_default();
            *count = count.saturating_add(1);
        }
        for (to, count) in counts {
            let slot = if to.is_some() { slot.to(to) } else { slot };
            self.add(slot.count(window, count), false);
        }
    }

    fn add_amounts(
        &mut self,
        slot: Slot<'_>,
        window: &Window,
        chain: &ChainName,
        action: &Action,
        counted: &[Counted],
        ask: &Ask<'_>,
    ) {
        let native = !matches!(action, Action::TokenTransfer { .. } | Action::NftTransfer { .. });
        let sends = matches!(ask.request.intent, Intent::Transaction(_));
        // Fees have no destination: a window over native spend counts them all.
        let fee_alone = matches!(action, Action::NativeTransfer { .. }) && sends;
        if counted.is_empty() && !fee_alone {
            return;
        }
        self.add_sums(slot, window, &unit_of(action, chain), counted, native && sends);
    }

    fn add_sums(
        &mut self,
        slot: Slot<'_>,
        window: &Window,
        unit: &str,
        counted: &[Counted],
        fee: bool,
    ) {
        if window.scope != Scope::Destination {
            let value =
                counted.iter().fold(Amount::ZERO, |sum, (_, more)| saturating_add(sum, *more));
            return self.add(slot.amount(window, "value", unit, value), fee);
        }
        let mut by: BTreeMap<Address, Amount> = BTreeMap::new();
        for (to, amount) in counted {
            if let Some(to) = to {
                let sum = by.entry(*to).or_default();
                *sum = saturating_add(*sum, *amount);
            }
        }
        for (to, value) in by {
            self.add(slot.to(Some(to)).amount(window, "value", unit, value), fee);
        }
    }

    /// What each allowance holds of a window.
    fn expose(
        &mut self,
        slot: Slot<'_>,
        window: &Window,
        unit: &str,
        concerns: impl Fn(usize) -> bool,
    ) {
        for held in &mut self.exposures {
            if held.places.iter().any(|place| concerns(*place)) {
                let slot = slot.to(Some(held.exposure.spender));
                let charge = slot.amount(window, "value", unit, held.exposure.amount);
                let charges = &mut held.exposure.charges;
                match charges.iter_mut().find(|before| before.limit == charge.limit) {
                    Some(before) => before.tighten(&charge),
                    None => charges.push(charge),
                }
            }
        }
    }

    fn add_limit(&mut self, rule: &LimitRule, ask: &Ask<'_>) {
        let slot = Slot { grant: &rule.id, whose: whose(ask) };
        let native = rule.unit == LimitUnit::Native;
        let sends = native && matches!(ask.request.intent, Intent::Transaction(_));
        let concerned: Vec<(usize, &Effect)> = ask
            .effects
            .iter()
            .enumerate()
            .filter(|(_, effect)| is_of(&rule.unit, effect))
            .collect();
        let counted: Vec<Counted> = concerned
            .iter()
            .filter(|(_, effect)| !matches!(effect, Effect::Approve { .. }))
            .map(|(_, effect)| (effect.destination(), units_of(effect)))
            .collect();
        if concerned.is_empty() && !sends {
            return;
        }
        let unit = unit_of_limit(rule);
        for window in &rule.windows {
            match window.holds {
                Holds::Count(_) if window.scope != Scope::Destination => {
                    let count = u64::try_from(concerned.len()).unwrap_or(u64::MAX).max(1);
                    self.add(slot.count(window, count), false);
                }
                Holds::Count(_) => {
                    self.add_counts(slot, window, concerned.iter().map(|(_, effect)| *effect));
                }
                Holds::Amount(_) => {
                    if sends || !counted.is_empty() {
                        self.add_sums(slot, window, &unit, &counted, sends);
                    }
                    self.expose(slot, window, &unit, |place| {
                        concerned.iter().any(|(concerned, _)| *concerned == place)
                    });
                }
            }
        }
        if let Some(max) = rule.per_tx {
            let units = concerned.iter().map(|(_, effect)| units_of(effect));
            let value = units.fold(Amount::ZERO, saturating_add);
            self.bounds.push(Bound { limit: rule.id.clone(), max, value, fee: sends });
        }
    }
}

impl Draft {
    fn asked(&self, fee: Amount) -> Option<Amount> {
        match self.charge.kind {
            ChargeKind::Amount { value, .. } if self.fee => value.checked_add(fee),
            _ => self.charge.asked(),
        }
    }

    fn into_charge(self, fee: Amount) -> Charge {
        let mut charge = self.charge;
        if let (true, ChargeKind::Amount { fee: part, .. }) = (self.fee, &mut charge.kind) {
            *part = fee;
        }
        charge
    }
}

/// Sums stay at the top of 256 bits where they overflow, and nothing that reaches it fits anywhere.
fn fits(asked: Option<Amount>, max: Amount) -> bool {
    asked.is_some_and(|asked| asked <= max && asked != Amount::new(U256::MAX))
}

fn in_words(asked: Option<Amount>) -> String {
    asked.map_or_else(|| "more than 2^256".to_owned(), |asked| asked.to_string())
}

fn whose<'a>(ask: &Ask<'a>) -> Whose<'a> {
    let request = ask.request;
    Whose {
        group: request.group.as_ref(),
        key: request.key,
        principal: &request.principal,
        chain: ask.chain(),
        destination: None,
    }
}

/// Which effects an amount window of a grant counts. Native value that goes to a grant's destinations counts
/// in its windows also where it goes along with a call.
fn counted(found: &Match<'_>, rule: &ChainRule, ask: &Ask<'_>) -> Vec<Counted> {
    let with_amount = |effect: &Effect| (effect.destination(), amount_of(&rule.action, effect));
    if let Action::NativeTransfer { to, .. } = &rule.action {
        let goes_there = |effect: &&Effect| {
            is_of(&LimitUnit::Native, effect)
                && acts_for(rule, effect, ask)
                && match effect.destination() {
                    Some(destination) => to.contains(destination),
                    None => matches!(to, Destinations::Any),
                }
        };
        return ask.effects.iter().filter(goes_there).map(with_amount).collect();
    }
    found.effects.iter().filter_map(|place| ask.effect(*place)).map(with_amount).collect()
}

/// Whether an effect moves something of this unit.
fn is_of(unit: &LimitUnit, effect: &Effect) -> bool {
    match (unit, effect) {
        (LimitUnit::Native, Effect::NativeOut { .. }) => true,
        (LimitUnit::Native, effect) => !effect.native().is_zero(),
        (
            LimitUnit::Asset { name, .. },
            Effect::TokenOut { asset, .. } | Effect::Approve { asset, .. },
        ) => name == asset,
        (LimitUnit::Asset { .. }, _) => false,
    }
}

/// How much of its unit an effect moves.
const fn units_of(effect: &Effect) -> Amount {
    match effect {
        Effect::TokenOut { amount, .. } | Effect::Approve { amount, .. } => *amount,
        other => other.native(),
    }
}

/// One exposure for each token, owner, spender, form and permit: what is approved twice in one request is added.
/// What is given in another form is kept elsewhere, and the one says nothing about the other.
fn exposures(ask: &Ask<'_>) -> Vec<Held> {
    let mut all: Vec<Held> = Vec::new();
    for (place, effect) in ask.effects.iter().enumerate() {
        let Effect::Approve { asset, owner, spender, amount, form, permit } = effect else {
            continue;
        };
        let registered = |chain| ask.bundle.registry().asset(chain, asset);
        let Some(token) = ask.chain().and_then(registered).map(|asset| asset.address) else {
            continue;
        };
        let same = |held: &&mut Held| {
            let one = &held.exposure;
            one.token == token
                && one.owner == *owner
                && one.spender == *spender
                && one.form == *form
                && one.permit == *permit
        };
        if let Some(held) = all.iter_mut().find(same) {
            held.places.push(place);
            held.exposure.amount = saturating_add(held.exposure.amount, *amount);
            continue;
        }
        let exposure = Exposure {
            token,
            owner: *owner,
            spender: *spender,
            amount: *amount,
            form: *form,
            permit: permit.clone(),
            charges: Vec::new(),
        };
        all.push(Held { places: vec![place], exposure });
    }
    all
}
