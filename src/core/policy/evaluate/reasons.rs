//! Why not: for each grant the first field that failed, the nearest misses first.
//!
//! How far the grants get is a matter of sets, which the index has. Only what is told is put into words: a verdict
//! has a few, [`super::explain`] all of them.

use super::bounds::{covers, stands};
use super::coverage::{Coverage, OF_MATCHES};
use super::matching::{Ask, Failed, effect_name, rule_of, selects, stage};
use crate::core::policy::bundle::grant_set::GrantSet;
use crate::core::policy::bundle::index::GrantNumber;
use crate::core::policy::{Effect, Miss, Reason};

/// More reasons in a verdict help nobody; the nearest misses are kept.
pub(super) const REASONS_MAX: usize = 16;

/// Why these effects, by their places, are not covered.
pub(super) fn uncovered(
    coverage: &Coverage<'_, '_>,
    places: &[usize],
    ask: &Ask<'_>,
) -> Vec<Reason> {
    let able = able(ask);
    let unknown = |effect: &&Effect| of_kind(effect, ask).and(&able).is_empty();
    let effects = places.iter().filter_map(|place| ask.effect(*place));
    let mut reasons: Vec<Reason> = effects.filter(unknown).map(not_allowed).collect();
    if places.is_empty() {
        reasons.push(about_effects("a transaction that does something", "nothing"));
    }
    reasons.dedup();
    for miss in misses(coverage, places, ask) {
        if reasons.len() >= REASONS_MAX {
            break;
        }
        if !reasons.contains(&miss.reason) {
            reasons.push(miss.reason);
        }
    }
    reasons.truncate(REASONS_MAX);
    reasons
}

/// Every grant that decides and does not cover one of these effects: the nearest first, then by effect and id.
/// What fails whatever the effect is told once. Nothing is put into words before it is asked for.
pub(super) fn misses<'m>(
    coverage: &'m Coverage<'_, '_>,
    places: &'m [usize],
    ask: &'m Ask<'m>,
) -> impl Iterator<Item = Miss> + 'm {
    let matched = OF_MATCHES.into_iter().flat_map(move |stage| coverage.missed_at(stage, places));
    let others = std::iter::once_with(move || not_selected(coverage, places, ask)).flatten();
    matched.chain(others).filter_map(move |(number, place)| miss(coverage, number, place, ask))
}

/// Those whose selectors do not match, each with an effect: of the right kind, of another kind, of other chains,
/// of other keys, of other callers.
fn not_selected<'m>(
    coverage: &'m Coverage<'_, '_>,
    places: &'m [usize],
    ask: &'m Ask<'m>,
) -> impl Iterator<Item = (GrantNumber, usize)> + 'm {
    let (index, request) = (ask.bundle.index(), ask.request);
    let enforced = index.enforced();
    let own = enforced.and(&index.of_principal(&request.principal.sub));
    let signed = own.and(&index.signed_by(request));
    let able = able(ask);
    let whole = [signed.without(&able), own.without(&signed), enforced.without(&own)];
    let each_kind: Vec<(usize, GrantSet)> = places
        .iter()
        .filter_map(|place| Some((*place, of_kind(ask.effect(*place)?, ask))))
        .collect();
    let of_others: Vec<(usize, GrantSet)> =
        each_kind.iter().map(|(place, kind)| (*place, able.without(kind))).collect();
    let subject = each_kind.into_iter().flat_map(move |(place, kind)| {
        let of_kind = able.and(&kind).into_numbers();
        of_kind.filter(move |it| !coverage.matches(*it, place)).map(move |it| (it, place))
    });
    let action = of_others
        .into_iter()
        .flat_map(|(place, others)| others.into_numbers().map(move |it| (it, place)));
    let first = places.first().copied();
    let whole = first.into_iter().flat_map(move |place| {
        let all = whole.clone().into_iter().flat_map(GrantSet::into_numbers);
        all.map(move |it| (it, place))
    });
    subject.chain(action).chain(whole)
}

/// The grants that decide, of this caller, key and chain.
fn able(ask: &Ask<'_>) -> GrantSet {
    let (index, request) = (ask.bundle.index(), ask.request);
    let own = index.enforced().and(&index.of_principal(&request.principal.sub));
    own.and(&index.signed_by(request)).and(&index.concerning(ask.chain()))
}

/// The grants whose action is of this effect's kind.
fn of_kind(effect: &Effect, ask: &Ask<'_>) -> GrantSet {
    ask.bundle.index().of_kind(ask.chain(), effect)
}

/// In words.
fn miss(
    coverage: &Coverage<'_, '_>,
    number: GrantNumber,
    place: usize,
    ask: &Ask<'_>,
) -> Option<Miss> {
    let ask = Ask { tell: true, ..*ask };
    let grant = ask.bundle.rules().get(number)?;
    let failed = try_one(coverage, number, ask.effect(place)?, &ask).err()?;
    let effect = (failed.stage > stage::CHAINS).then_some(place);
    Some(Miss { effect, reason: failed.reason(grant)? })
}

/// Tries a grant from the start.
pub(super) fn try_one(
    coverage: &Coverage<'_, '_>,
    number: GrantNumber,
    effect: &Effect,
    ask: &Ask<'_>,
) -> Result<(), Failed> {
    let Some(grant) = ask.bundle.rules().get(number) else {
        return Ok(());
    };
    let rule = rule_of(number, grant, ask)?;
    selects(rule, effect, ask)?;
    match coverage.found(number) {
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
