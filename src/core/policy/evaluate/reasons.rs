//! Why not: for each grant the first field that failed, the nearest misses first.

use super::bounds::{covers, stands};
use super::matching::{Ask, Failed, Match, effect_name, rule_of, selects, stage};
use crate::core::policy::bundle::grant::{Grant, Mode};
use crate::core::policy::{Effect, Reason};

/// More reasons help nobody; the nearest misses are kept.
const REASONS_MAX: usize = 16;

/// Why these effects, by their places, are not covered.
pub(super) fn uncovered(found: &[Match<'_>], places: &[usize], ask: &Ask<'_>) -> Vec<Reason> {
    let mut general = Vec::new();
    let mut near: Vec<(u8, &Grant, &Effect)> = Vec::new();
    for effect in places.iter().filter_map(|place| ask.effect(*place)) {
        let mut nearest = 0;
        for grant in ask.bundle.rules().iter().filter(|grant| grant.mode == Mode::Enforce) {
            if let Err(failed) = try_one(grant, found, effect, ask) {
                nearest = nearest.max(failed.stage);
                near.push((failed.stage, grant, effect));
            }
        }
        if nearest <= stage::ACTION {
            general.push(not_allowed(effect));
        }
    }
    if places.is_empty() {
        general.push(about_effects("a transaction that does something", "nothing"));
    }
    // Stable: equals stay in the order of effects and ids.
    near.sort_by_key(|(stage, ..)| std::cmp::Reverse(*stage));
    let ask = Ask { tell: true, ..*ask };
    let mut reasons = general;
    reasons.dedup();
    for (_, grant, effect) in near {
        if reasons.len() >= REASONS_MAX {
            break;
        }
        let failed = try_one(grant, found, effect, &ask).err();
        if let Some(reason) = failed.and_then(|failed| failed.reason(grant))
            && !reasons.contains(&reason)
        {
            reasons.push(reason);
        }
    }
    reasons.truncate(REASONS_MAX);
    reasons
}

fn try_one(
    grant: &Grant,
    found: &[Match<'_>],
    effect: &Effect,
    ask: &Ask<'_>,
) -> Result<(), Failed> {
    let rule = rule_of(grant, ask)?;
    selects(rule, effect, ask)?;
    let by_id = found.binary_search_by(|one| one.grant.id.cmp(&grant.id)).ok();
    match by_id.and_then(|at| found.get(at)) {
        Some(found) => {
            stands(found, ask)?;
            covers(found, effect, ask).map(drop)
        }
        None => Ok(()),
    }
}

/// No grant of this caller, key and chain has this action at all.
fn not_allowed(effect: &Effect) -> Reason {
    match effect {
        Effect::Opaque { why, .. } => about_effects("an effect that is understood", why),
        other => about_effects(&format!("a grant with action {}", effect_name(other)), "none"),
    }
}

/// What is not understood to the last byte, and no grant can name.
pub(super) fn not_understood(effect: &Effect) -> Option<Reason> {
    match effect {
        Effect::Opaque { why, call: None } => {
            Some(about_effects("an effect that is understood", why))
        }
        _ => None,
    }
}

fn about_effects(expected: &str, actual: &str) -> Reason {
    let (expected, actual) = (expected.to_owned(), actual.to_owned());
    Reason { grant: None, field: "effects".to_owned(), expected, actual }
}
