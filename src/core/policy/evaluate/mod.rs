//! Evaluation: deny by default, total, and every refusal says why.
//!
//! 1. The intent becomes effects; what was not understood ends here.
//! 2. Each grant is tried against the main effect. Grants add up, so the order in which they stand
//!    changes nothing: of those that cover it, the one with the highest fee cap that still fits
//!    into every window decides.
//! 3. All windows whose selectors match are charged.

mod event;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod in_force;
mod matching;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
mod windows;

use super::{Bundle, Charge, Effect, Outcome, PolicyRequest, Reason, Verdict};
use crate::core::access::Role;
use crate::core::amount::Amount;
use crate::core::evm::decode::{effects, fee_max, typed_data};
use crate::core::id::GrantId;
use crate::core::intent::Intent;
use crate::core::time::Timestamp;
use matching::{Ask, Cover, Miss, cover};

/// More reasons help nobody; the nearest misses are kept.
const REASONS_MAX: usize = 16;

/// Judges a request.
#[must_use]
pub fn evaluate(bundle: &Bundle, request: &PolicyRequest, now: Timestamp) -> Verdict {
    let effects = effects(bundle, request);
    let mut verdict = Verdict {
        outcome: Outcome::Deny,
        bundle: bundle.hash(),
        grants: vec![],
        effects,
        reasons: whole_request(bundle, request),
        charges: vec![],
        exposures: vec![],
        approval: None,
        delay: None,
        shadows: vec![],
        fee_cap: None,
        event_use: None,
    };
    verdict.reasons.extend(verdict.effects.iter().filter_map(not_understood));
    if !verdict.reasons.is_empty() {
        return verdict;
    }
    match decide(bundle, request, now, &verdict.effects) {
        Ok(decision) => {
            verdict.outcome = Outcome::Allow;
            verdict.grants = decision.grants;
            verdict.effects = decision.effects;
            verdict.charges = decision.charges;
            verdict.fee_cap = decision.cover.fee_cap;
            verdict.event_use = decision.cover.event_use;
        }
        Err(reasons) => verdict.reasons = reasons,
    }
    verdict
}

/// The issuer must be one that the bundle lets vouch for this caller.
fn whole_request(bundle: &Bundle, request: &PolicyRequest) -> Vec<Reason> {
    let principal = &request.principal;
    if bundle.issuer_allows(&principal.iss, Role::Client, &principal.sub) {
        return Vec::new();
    }
    vec![Reason {
        grant: None,
        field: "issuer".to_owned(),
        expected: format!("an issuer that may vouch for `{}` as client", principal.sub),
        actual: principal.iss.clone(),
    }]
}

fn not_understood(effect: &Effect) -> Option<Reason> {
    let actual = match effect {
        Effect::Opaque { why, .. } => why.clone(),
        Effect::Create { .. } => "it would create a contract".to_owned(),
        Effect::NftOut { .. }
        | Effect::Approve { .. }
        | Effect::OperatorApproval { .. }
        | Effect::Delegate { .. }
        | Effect::AdminOp(_) => "no grant of this version can allow it".to_owned(),
        Effect::NativeOut { .. }
        | Effect::FeeMax { .. }
        | Effect::TokenOut { .. }
        | Effect::Call(_)
        | Effect::TypedMessage { .. }
        | Effect::TextMessage { .. } => return None,
    };
    let expected = "an effect that is understood".to_owned();
    Some(Reason { grant: None, field: "effects".to_owned(), expected, actual })
}

struct Decision<'a> {
    cover: Cover<'a>,
    grants: Vec<GrantId>,
    effects: Vec<Effect>,
    charges: Vec<Charge>,
}

fn decide<'a>(
    bundle: &'a Bundle,
    request: &PolicyRequest,
    now: Timestamp,
    effects: &[Effect],
) -> Result<Decision<'a>, Vec<Reason>> {
    let Some(main) = effects.first() else {
        return Err(Vec::new());
    };
    let typed = match &request.intent {
        Intent::TypedData { chain, data } => typed_data::read(chain, data).ok(),
        Intent::Transaction(_) | Intent::Message { .. } | Intent::Authorization { .. } => None,
    };
    let value = match &request.intent {
        Intent::Transaction(tx) => tx.value,
        Intent::Message { .. } | Intent::TypedData { .. } | Intent::Authorization { .. } => {
            Amount::ZERO
        }
    };
    let ask = Ask { request, now, main, value, typed: typed.as_ref() };
    let (mut covers, mut misses) = (Vec::new(), Vec::new());
    for grant in bundle.rules() {
        match cover(grant, &ask) {
            Ok(cover) => covers.push(cover),
            Err(miss) => misses.push(miss),
        }
    }
    let beside = cover_beside(bundle, &ask, effects)?;
    // Stable: equals stay in the order of ids.
    covers.sort_by_key(|cover| std::cmp::Reverse(rank(cover)));
    let mut full = Vec::new();
    for cover in covers {
        let effects = with_cap(effects, request, &cover);
        let charges = windows::charges(bundle, request, &effects);
        let too_much: Vec<Reason> = charges.iter().filter_map(exceeds).collect();
        if too_much.is_empty() {
            let grants = [Some(cover.grant.id.clone()), beside].into_iter().flatten().collect();
            return Ok(Decision { cover, grants, effects, charges });
        }
        full.extend(too_much);
    }
    Err(nearest(full, misses))
}

/// Higher fee caps first; at the same cap, a grant that uses up the named event.
fn rank(cover: &Cover<'_>) -> (u128, u128, bool) {
    let fees = cover.fee_cap.map_or((0, 0), |fees| (fees.max_fee, fees.max_priority_fee));
    (fees.0, fees.1, cover.event_use.is_some())
}

/// Native value beside a token transfer has nothing to do with it, so it needs a grant of its own.
/// (Beside a call, the call's own grant covers it or nothing does.)
fn cover_beside(
    bundle: &Bundle,
    ask: &Ask<'_>,
    effects: &[Effect],
) -> Result<Option<GrantId>, Vec<Reason>> {
    let rest = effects.get(1..).unwrap_or_default();
    let native = rest.iter().find(|effect| matches!(effect, Effect::NativeOut { .. }));
    let (Effect::TokenOut { .. }, Some(native)) = (ask.main, native) else {
        return Ok(None);
    };
    let beside = Ask { main: native, ..*ask };
    let mut misses = Vec::new();
    for grant in bundle.rules() {
        match cover(grant, &beside) {
            Ok(cover) => return Ok(Some(cover.grant.id.clone())),
            Err(miss) => misses.push(miss),
        }
    }
    Err(nearest(Vec::new(), misses))
}

/// The effects with the fee at the cap that may really be signed.
fn with_cap(effects: &[Effect], request: &PolicyRequest, cover: &Cover<'_>) -> Vec<Effect> {
    let (Some(cap), Intent::Transaction(tx)) = (cover.fee_cap, &request.intent) else {
        return effects.to_vec();
    };
    let capped = |effect: &Effect| match effect {
        Effect::FeeMax { .. } => fee_max(tx.gas, cap.max_fee),
        other => other.clone(),
    };
    effects.iter().map(capped).collect()
}

/// One request alone is more than the window holds.
fn exceeds(charge: &Charge) -> Option<Reason> {
    let asked = charge.asked();
    if asked.is_some_and(|asked| asked <= charge.max) {
        return None;
    }
    Some(Reason {
        grant: Some(charge.grant.clone()),
        field: "windows".to_owned(),
        expected: format!("at most {} of {}", charge.max, charge.label),
        actual: asked.map_or_else(|| "more than 2^256".to_owned(), |asked| asked.to_string()),
    })
}

fn nearest(mut full: Vec<Reason>, mut misses: Vec<Miss>) -> Vec<Reason> {
    misses.sort_by_key(|miss| std::cmp::Reverse(miss.stage));
    full.dedup();
    let reasons = full.into_iter().chain(misses.into_iter().map(|miss| miss.reason));
    let mut reasons: Vec<Reason> = reasons.take(REASONS_MAX).collect();
    if reasons.is_empty() {
        reasons.push(Reason {
            grant: None,
            field: "grants".to_owned(),
            expected: "a grant".to_owned(),
            actual: "none".to_owned(),
        });
    }
    reasons
}
