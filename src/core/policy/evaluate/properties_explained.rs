//! Explanations and choices against the plainest way to make them: each grant is tried with each effect, without
//! an index, and each fee from the highest down.

use super::bounds::{covers, stands};
use super::fees::fee_at;
use super::fixtures::now;
use super::matching::{Ask, Match, Places, rule_of, selects};
use super::reasons::REASONS_MAX;
use super::universe::*;
use super::windows::Drafts;
use super::{asking, explain_effects, judge};
use crate::core::id::GrantId;
use crate::core::intent::Fees;
use crate::core::policy::bundle::grant::Mode;
use crate::core::policy::{Bundle, Effect, Miss, Outcome};
use proptest::prelude::*;
use proptest::sample::select;
use std::cmp::Reverse;
use std::collections::BTreeSet;

/// Whom a grant is for: as in the universe, or for another caller, another key, another chain.
const FOR: [(&str, &str); 5] = [
    ("", ""),
    ("\"svc:payouts\"", "\"svc:other\", \"svc:payouts\""),
    ("[\"svc:payouts\"]", "[\"svc:other\"]"),
    ("[\"payments\"]", "[\"0x90F79bf6EB2c4f870365E785982E1f101E93b906\"]"),
    ("[\"payments\"]", "[\"elsewhere\"]"),
];

/// The grants of a world, each changed in one way or not at all.
fn bundle(world: &World, changes: &[usize]) -> Bundle {
    let grants = world.grants.iter().zip(changes.iter().cycle()).enumerate();
    let text: String = grants
        .map(|(at, (spec, change))| {
            let (from, to) = FOR[*change];
            let text = spec.text(&format!("g{at}"));
            // A message of nobody's chain beside them.
            if from.is_empty() { text } else { text.replace(from, to) }
        })
        .collect();
    let message = "[[grant]]\nid = \"m\"\nowner = \"o\"\nreason = \"r\"\nexpires = \"2027-03-31\"\n\
        principals = [\"svc:payouts\"]\nsigners = [\"payments\"]\naction = \"message\"\n\
        text = { any = true }\n";
    load(&format!("{text}{message}"), &world.rails)
        .unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// Leaves no more than when, how much and at which fee.
fn make_bare(spec: &mut Spec, expired: bool) {
    spec.windows.clear();
    (spec.approval, spec.delay) = (None, None);
    (spec.through, spec.hours, spec.fee_windows) = (false, false, false);
    spec.expired = expired;
}

/// Every miss with its stage, by trying.
fn tried(ask: &Ask<'_>) -> Vec<(u8, Miss)> {
    let ask = &Ask { tell: true, ..*ask };
    let places = || {
        let all = ask.effects.iter().enumerate();
        all.filter(|(_, effect)| !matches!(effect, Effect::FeeMax { .. }))
    };
    let mut misses: Vec<(u8, usize, Miss)> = Vec::new();
    for (number, grant) in ask.bundle.rules().iter().enumerate() {
        if grant.mode != Mode::Enforce {
            continue;
        }
        let rule = match rule_of(number, grant, ask) {
            Ok(rule) => rule,
            Err(failed) => {
                let (stage, reason) = (failed.stage, failed.reason(grant).unwrap());
                if places().next().is_some() {
                    misses.push((stage, 0, Miss { effect: None, reason }));
                }
                continue;
            }
        };
        let selected = places().filter(|(_, effect)| selects(rule, effect, ask).is_ok());
        let effects: Places = selected.map(|(place, _)| place).collect();
        let found = Match { grant, number, rule, effects };
        for (place, effect) in places() {
            let tried = selects(rule, effect, ask)
                .and_then(|()| stands(&found, ask))
                .and_then(|_| covers(&found, effect, ask));
            if let Err(failed) = tried {
                let (stage, reason) = (failed.stage, failed.reason(grant).unwrap());
                misses.push((stage, place, Miss { effect: Some(place), reason }));
            }
        }
    }
    misses.sort_by_key(|(stage, place, _)| (Reverse(*stage), *place));
    misses.into_iter().map(|(stage, _, miss)| (stage, miss)).collect()
}

/// The highest fee at which all is covered and nothing is above a window, by trying, the tip at it, and which
/// grants are taken: of each effect the one with the highest tip, then the first. `None` if there is none.
fn tried_choice(ask: &Ask<'_>) -> Option<(Fees, BTreeSet<GrantId>)> {
    let enforced = ask.bundle.rules().iter().enumerate();
    let enforced = enforced.filter(|(_, grant)| grant.mode == Mode::Enforce);
    let found: Vec<Match<'_>> = enforced
        .filter_map(|(number, grant)| {
            let rule = rule_of(number, grant, ask).ok()?;
            let selected = |effect: &Effect| selects(rule, effect, ask).is_ok();
            Match::of(number, rule, (0..ask.effects.len(), selected), ask)
        })
        .collect();
    let drafts = Drafts::of(&found, ask);
    let beside_fee = ask.effects.iter().enumerate();
    let beside_fee = beside_fee.filter(|(_, effect)| !matches!(effect, Effect::FeeMax { .. }));
    let covered: Vec<Vec<(Fees, &GrantId)>> = beside_fee
        .map(|(place, effect)| {
            let concerned = found.iter().filter(|one| one.effects.contains(&place));
            let able = concerned.filter(|one| covers(one, effect, ask).is_ok());
            able.filter_map(|one| Some((stands(one, ask).ok()??, &one.grant.id))).collect()
        })
        .collect();
    let mut fees: Vec<u128> = covered.iter().flatten().map(|(cap, _)| cap.max_fee).collect();
    fees.sort_unstable();
    fees.into_iter().rev().find_map(|max_fee| {
        let fits = drafts.exceeded(fee_at(ask.request, max_fee)).is_empty();
        let chosen: Option<Vec<&(Fees, &GrantId)>> = covered
            .iter()
            .map(|all| {
                let able = all.iter().filter(|(cap, _)| cap.max_fee >= max_fee);
                able.min_by_key(|(cap, id)| (Reverse(cap.max_priority_fee), *id))
            })
            .collect();
        let chosen = chosen.filter(|_| fits)?;
        let tip = chosen.iter().map(|(cap, _)| cap.max_priority_fee).min()?;
        let fees = Fees { max_fee, max_priority_fee: tip.min(max_fee) };
        Some((fees, chosen.iter().map(|(_, id)| (*id).clone()).collect()))
    })
}

#[test]
fn what_is_explained_is_what_trying_each_grant_finds() {
    let changes = prop::collection::vec(select(vec![0, 0, 0, 1, 2, 3, 4_usize]), 1..6);
    let bare = prop::collection::vec(
        select(vec![None, None, None, None, Some(false), Some(false), Some(true)]),
        1..6,
    );
    let strategy = (world(), changes, bare);
    // All but other chains, which the next test has.
    let stages = ["stage 0", "stage 1", "stage 3", "stage 4", "stage 5", "stage 6", "stage 7"];
    let least: [(usize, &[&str]); 2] = [(10, &OUTCOMES), (10, &stages)];
    forall(800, &strategy, &least, |(mut world, changes, bare), met| {
        for (spec, bare) in world.grants.iter_mut().zip(bare.iter().cycle()) {
            if let Some(expired) = bare {
                make_bare(spec, *expired);
            }
        }
        let bundle = bundle(&world, &changes);
        let verdict = judge(&bundle, &world.request, &world.effects, now());
        met.outcome(&verdict);
        let explained = explain_effects(&bundle, &world.request, &world.effects, now());
        prop_assert_eq!(&explained.verdict, &verdict);
        let (tried, choice) = asking(&bundle, &world.request, &world.effects, now(), |ask| {
            (tried(ask), tried_choice(ask))
        });
        for (stage, _) in &tried {
            met.note(format!("stage {stage}"));
        }
        let tried: Vec<Miss> = tried.into_iter().map(|(_, miss)| miss).collect();
        prop_assert_eq!(&explained.misses, &tried);
        if verdict.outcome != Outcome::Deny {
            let grants: BTreeSet<GrantId> = verdict.grants.iter().cloned().collect();
            prop_assert_eq!(verdict.fee_cap.map(|cap| (cap, grants)), choice);
            return Ok(());
        }
        // What a verdict says of grants is the first of it.
        let by_grants: Vec<_> = verdict
            .reasons
            .iter()
            .filter(|it| it.grant.as_ref().is_some_and(|id| id.as_str().starts_with('g')))
            .filter(|it| it.field != "windows")
            .collect();
        prop_assert!(verdict.reasons.len() <= REASONS_MAX || by_grants.is_empty());
        let mut all = tried.iter().map(|miss| &miss.reason);
        for reason in by_grants {
            prop_assert!(all.any(|miss| miss == reason), "not in this order: {:?}", reason);
        }
        Ok(())
    });
}

#[test]
fn a_request_on_another_chain_is_explained_by_the_chain() {
    forall(50, &world(), &[], |mut world, _| {
        world.tx().chain.name = crate::core::id::ChainName::new("mainnet");
        let bundle = bundle(&world, &[0, 2]);
        let explained = explain_effects(&bundle, &world.request, &world.effects, now());
        prop_assert_eq!(explained.verdict.outcome, Outcome::Deny);
        let tried = asking(&bundle, &world.request, &world.effects, now(), tried);
        let fields: Vec<&str> =
            explained.misses.iter().map(|miss| miss.reason.field.as_str()).collect();
        let enforced = world.grants.iter().step_by(2).any(|spec| !spec.shadow);
        prop_assert_eq!(fields.contains(&"chains"), enforced);
        let tried: Vec<Miss> = tried.into_iter().map(|(_, miss)| miss).collect();
        prop_assert_eq!(explained.misses, tried);
        Ok(())
    });
}
