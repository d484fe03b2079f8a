//! Why not: for each grant the first field that failed, the nearest misses first.
//!
//! How far the grants get is a matter of sets, which the index has. Only what is told is put into words: a verdict
//! has a few, [`super::explain`] all of them.

use super::bounds::{covers, stands};
use super::coverage::{Coverage, OF_MATCHES};
use super::matching::{Ask, Failed, Match, effect_name, rule_of, selects, stage};
use crate::core::policy::bundle::grant_set::GrantSet;
use crate::core::policy::bundle::index::GrantNumber;
use crate::core::policy::{Effect, Miss, Reason};

/// More reasons in a verdict help nobody; the nearest misses are kept.
pub(super) const REASONS_MAX: usize = 16;

/// Why these effects, by their places, are not covered.
pub(super) fn uncovered(coverage: &Coverage<'_>, places: &[usize], ask: &Ask<'_>) -> Vec<Reason> {
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
    coverage: &'m Coverage<'_>,
    places: &'m [usize],
    ask: &'m Ask<'m>,
) -> impl Iterator<Item = Miss> + 'm {
    let matched = coverage.missed(places);
    let matched = matched.filter_map(move |(number, place)| miss(number, place, ask));
    let others = std::iter::once_with(move || not_selected(places, ask)).flatten();
    // What matches is among those of its kind, and was told before.
    let others = others.filter_map(move |(number, place)| miss(number, place, ask));
    matched
        .map(|(_, miss)| miss)
        .chain(others.filter(|(stage, _)| !OF_MATCHES.contains(stage)).map(|(_, miss)| miss))
}

/// Those whose selectors do not match, each with an effect: of the right kind, of another kind, of other chains,
/// of other keys, of other callers.
fn not_selected<'m>(
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
    let subject = each_kind
        .into_iter()
        .flat_map(move |(place, kind)| able.and(&kind).into_numbers().map(move |it| (it, place)));
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

/// In words, with its stage; `None` where the grant covers the effect.
fn miss(number: GrantNumber, place: usize, ask: &Ask<'_>) -> Option<(u8, Miss)> {
    let ask = Ask { tell: true, ..*ask };
    let grant = ask.bundle.rules().get(number)?;
    let failed = try_one(number, ask.effect(place)?, &ask).err()?;
    let stage = failed.stage;
    let effect = (stage > stage::CHAINS).then_some(place);
    Some((stage, Miss { effect, reason: failed.reason(grant)? }))
}

/// Tries a grant from the start.
fn try_one(number: GrantNumber, effect: &Effect, ask: &Ask<'_>) -> Result<(), Failed> {
    let Some(grant) = ask.bundle.rules().get(number) else {
        return Ok(());
    };
    let rule = rule_of(number, grant, ask)?;
    selects(rule, effect, ask)?;
    let quiet = Ask { tell: false, ..*ask };
    let selected = |effect: &Effect| selects(rule, effect, &quiet).is_ok();
    let Some(found) = Match::of(number, rule, (0..ask.effects.len(), selected), ask) else {
        return Ok(());
    };
    stands(&found, ask)?;
    covers(&found, effect, ask).map(drop)
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
