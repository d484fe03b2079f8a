//! What no grant can allow.

use super::matching::{Ask, effect_name, signs};
use crate::core::intent::Intent;
use crate::core::policy::bundle::guardrail::DenyRule;
use crate::core::policy::{Effect, Reason};
use alloy::primitives::Address;

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
        to.is_some_and(|to| touched(effect, ask).any(|address| to.contains(address)))
    });
    named && goes_there
}

/// Whom an effect concerns: to whom it goes, whose typed message it is, and each contract that it goes through.
/// The signing account itself is none of them: it is named by `signers`.
fn touched<'a>(effect: &'a Effect, ask: &'a Ask<'_>) -> impl Iterator<Item = Address> + 'a {
    let domain = match effect {
        Effect::TypedMessage { verifying_contract, .. } => Some(*verifying_contract),
        Effect::Approve { permit: Some(terms), .. } => wrapper(terms.verifying_contract, ask),
        _ => None,
    };
    let actor = effect.actor().filter(|actor| *actor != ask.request.address);
    let called = match &ask.request.intent {
        Intent::Transaction(tx) => tx.to.and_then(|to| wrapper(to, ask)),
        _ => None,
    };
    [effect.destination(), domain, actor, called].into_iter().flatten()
}

/// This address, if what is called there carries calls of others, as the book says.
fn wrapper(address: Address, ask: &Ask<'_>) -> Option<Address> {
    let contract = ask.bundle.registry().contract_at(ask.chain()?, address)?;
    contract.wraps.map(|_| address)
}
