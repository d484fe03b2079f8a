//! What no grant can allow.

use super::matching::{Ask, effect_name, signs};
use crate::core::policy::bundle::guardrail::DenyRule;
use crate::core::policy::{Effect, Reason};

/// The denies that an effect of the request runs into, by id.
pub(super) fn denied(ask: &Ask<'_>) -> Vec<Reason> {
    let denies = ask.bundle.guardrails().denies.iter();
    let denied = denies.filter_map(|rule| {
        if !concerns(rule, ask) {
            return None;
        }
        let effect = ask.effects.iter().find(|effect| matches(rule, effect, ask))?;
        let actual = match effect.destination() {
            Some(to) => format!("{} to {to}", effect_name(effect)),
            None => effect_name(effect).to_owned(),
        };
        Some(Reason {
            grant: Some(rule.id.clone()),
            field: format!("deny.{}", rule.id),
            expected: rule.reason.clone(),
            actual,
        })
    });
    denied.collect()
}

/// What it says about the request as a whole.
fn concerns(rule: &DenyRule, ask: &Ask<'_>) -> bool {
    let request = ask.request;
    rule.principals.as_ref().is_none_or(|subs| subs.contains(&request.principal.sub))
        && rule.signers.as_ref().is_none_or(|signers| signs(signers, request))
        && rule
            .chains
            .as_ref()
            .is_none_or(|chains| ask.chain().is_some_and(|chain| chains.contains(chain)))
}

/// What it says about one effect.
fn matches(rule: &DenyRule, effect: &Effect, ask: &Ask<'_>) -> bool {
    let named = rule.actions.as_ref().is_none_or(|actions| actions.contains(effect_name(effect)));
    let goes_there = rule.to.as_ref().is_none_or(|by_chain| {
        let to = ask.chain().and_then(|chain| by_chain.get(chain));
        to.zip(effect.destination()).is_some_and(|(to, destination)| to.contains(destination))
    });
    named && goes_there
}
