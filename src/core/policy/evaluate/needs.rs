//! People and time: what a request must wait for. Both follow the selectors, like windows: whichever grant
//! allows a request, those that match it say what it waits for, also when they have expired.

use super::bounds::{amount_of, is_unlimited, saturating_add};
use super::matching::{Ask, Match, Rule};
use crate::core::amount::Amount;
use crate::core::policy::bundle::grant::{Action, ApprovalRule, DelayRule};
use crate::core::policy::{ApprovalNeed, DelayNeed, Effect, Outcome};

/// What a request waits for.
#[derive(Default)]
pub(super) struct Needs {
    pub approval: Option<ApprovalNeed>,
    /// Set while it is not over.
    pub delay: Option<DelayNeed>,
}

impl Needs {
    /// Of all these grants, which are in the order of ids.
    pub fn of(found: &[Match<'_>], ask: &Ask<'_>) -> Self {
        let mut needs = Self::default();
        let mut delay: Option<DelayNeed> = None;
        for one in found {
            let Rule::Chain { rule, terms, .. } = one.rule else {
                continue;
            };
            if !terms.has_needs {
                continue;
            }
            let effects: Vec<&Effect> =
                one.effects.iter().filter_map(|place| ask.effect(*place)).collect();
            if effects.is_empty() {
                continue;
            }
            if let Some(approval) = &rule.approval
                && needs_people(approval, &rule.action, &effects)
            {
                let need = needs.approval.get_or_insert_with(|| ApprovalNeed {
                    grants: Vec::new(),
                    quorums: Vec::new(),
                    ttl_ms: approval.ttl_ms,
                });
                need.grants.push(one.grant.id.clone());
                need.quorums.push(approval.quorum.clone());
                need.ttl_ms = need.ttl_ms.min(approval.ttl_ms);
            }
            if let Some((ms, why)) = rule.delay.as_ref().and_then(|it| wait(it, &effects, ask)) {
                let need = delay.get_or_insert_with(|| DelayNeed {
                    grants: Vec::new(),
                    ms,
                    why: why.clone(),
                });
                need.grants.push(one.grant.id.clone());
                if ms > need.ms {
                    (need.ms, need.why) = (ms, why);
                }
            }
        }
        needs.delay = delay.filter(|need| !has_waited(need.ms, ask));
        needs
    }

    /// The outcome of a request that grants cover.
    pub const fn outcome(&self) -> Outcome {
        match (&self.delay, &self.approval) {
            (Some(_), _) => Outcome::Delay,
            (None, Some(_)) => Outcome::NeedApproval,
            (None, None) => Outcome::Allow,
        }
    }
}

/// Whether it is above what goes without people.
fn needs_people(rule: &ApprovalRule, action: &Action, effects: &[&Effect]) -> bool {
    let Some(above) = rule.above else {
        return true;
    };
    let amounts = || effects.iter().map(|effect| amount_of(action, effect));
    let unlimited = matches!(action, Action::TokenApprove { .. }) && amounts().any(is_unlimited);
    unlimited || amounts().fold(Amount::ZERO, saturating_add) > above
}

/// How long it waits, and why; `None` if it need not.
fn wait(rule: &DelayRule, effects: &[&Effect], ask: &Ask<'_>) -> Option<(i64, String)> {
    let known = &ask.request.facts.known_destinations;
    let first = effects
        .iter()
        .filter_map(|effect| effect.destination())
        .find(|destination| !known.contains(destination));
    let first = rule.first_use_ms.zip(first);
    let first = first.map(|(ms, to)| (ms, format!("{to} was not paid before")));
    let always = rule.always_ms.map(|ms| (ms, "everything of this kind waits".to_owned()));
    match (first, always) {
        (Some(first), Some(always)) => Some(if always.0 > first.0 { always } else { first }),
        (first, always) => first.or(always),
    }
}

fn has_waited(ms: i64, ask: &Ask<'_>) -> bool {
    ask.request.facts.waiting_since.is_some_and(|since| ask.now.since(since) >= ms)
}
