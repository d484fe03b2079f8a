//! Evaluation: deny by default, total, and every refusal says why.
//!
//! 1. The intent becomes effects; what was not understood ends here, and so does what a guardrail denies.
//! 2. Grants are found whose selectors match an effect. Each effect must be covered by one of them; the
//!    order in which grants stand changes nothing: the highest fee cap at which all effects are covered
//!    and nothing alone is above a window is taken.
//!    What does not cover is kept as numbers; only reasons that are told are put into words.
//! 3. All windows whose selectors match are charged, and all approvals and delays whose selectors match
//!    are asked for, whichever grant covered the request.

mod bounds;
mod choose;
mod counter;
mod coverage;
#[cfg(test)]
mod effects_tests;
mod event;
mod fees;
#[cfg(test)]
pub(crate) mod fixtures;
mod guardrails;
pub mod in_force;
mod matching;
mod needs;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod properties_decoded;
#[cfg(test)]
mod properties_explained;
mod reasons;
mod shadow;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod universe;
mod windows;

use super::{Bundle, Effect, Explanation, Outcome, PolicyRequest, Reason, Verdict};
use crate::core::access::Role;
use crate::core::evm::decode::{effects, typed_data};
use crate::core::intent::Intent;
use crate::core::time::Timestamp;
use choose::choose;
use coverage::Coverage;
use fees::with_cap;
use matching::Ask;
use needs::Needs;
use windows::Drafts;

/// Judges a request.
#[must_use]
pub fn evaluate(bundle: &Bundle, request: &PolicyRequest, now: Timestamp) -> Verdict {
    judge(bundle, request, &effects(bundle, request), now)
}

/// Judges a request, and says of every grant that decides what it does not cover, and why: also where others
/// allow the request, or where it is refused before any grant is asked. The verdict is [`evaluate`]'s.
#[must_use]
pub fn explain(bundle: &Bundle, request: &PolicyRequest, now: Timestamp) -> Explanation {
    explain_effects(bundle, request, &effects(bundle, request), now)
}

fn explain_effects(
    bundle: &Bundle,
    request: &PolicyRequest,
    effects: &[Effect],
    now: Timestamp,
) -> Explanation {
    asking(bundle, request, effects, now, |ask| {
        let coverage = Coverage::of(ask);
        let misses = reasons::misses(&coverage, coverage.places(), ask).collect();
        Explanation { verdict: verdict(ask), misses }
    })
}

/// Judges a request by what it would do.
fn judge(bundle: &Bundle, request: &PolicyRequest, effects: &[Effect], now: Timestamp) -> Verdict {
    asking(bundle, request, effects, now, verdict)
}

/// Reads what else the request says, and asks.
fn asking<T>(
    bundle: &Bundle,
    request: &PolicyRequest,
    effects: &[Effect],
    now: Timestamp,
    question: impl FnOnce(&Ask<'_>) -> T,
) -> T {
    let typed = match &request.intent {
        Intent::TypedData { chain, data }
            if effects.iter().any(|effect| matches!(effect, Effect::TypedMessage { .. })) =>
        {
            typed_data::read(chain, data).ok()
        }
        _ => None,
    };
    question(&Ask { bundle, request, effects, now, typed: typed.as_ref(), tell: false })
}

fn verdict(ask: &Ask<'_>) -> Verdict {
    let mut verdict = Verdict {
        outcome: Outcome::Deny,
        bundle: ask.bundle.hash(),
        grants: vec![],
        effects: ask.effects.to_vec(),
        reasons: whole_request(ask.bundle, ask.request),
        charges: vec![],
        exposures: vec![],
        approval: None,
        delay: None,
        shadows: vec![],
        fee_cap: None,
        event_use: None,
    };
    verdict.reasons.extend(ask.effects.iter().filter_map(reasons::not_understood));
    verdict.reasons.extend(guardrails::denied(ask));
    if verdict.reasons.is_empty() {
        decide(&mut verdict, ask);
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

fn decide(verdict: &mut Verdict, ask: &Ask<'_>) {
    let coverage = Coverage::of(ask);
    verdict.shadows = shadow::shadows(&coverage.shadows, ask);
    let uncovered = coverage.uncovered();
    if !uncovered.is_empty() || coverage.places().is_empty() {
        verdict.reasons = reasons::uncovered(&coverage, &uncovered, ask);
        return;
    }
    let drafts = Drafts::of(&coverage.following, ask);
    match choose(&coverage, &drafts, ask) {
        Ok(choice) => {
            let needs = Needs::of(&coverage.following, ask);
            verdict.outcome = needs.outcome();
            verdict.grants = choice.grants.into_iter().collect();
            verdict.effects = with_cap(ask.effects, ask.request, choice.fee_cap);
            (verdict.charges, verdict.exposures) = drafts.into_parts(choice.fee);
            verdict.approval = needs.approval;
            verdict.delay = needs.delay;
            verdict.fee_cap = choice.fee_cap;
            verdict.event_use = choice.event_use;
        }
        Err(exceeded) => verdict.reasons = exceeded,
    }
}
