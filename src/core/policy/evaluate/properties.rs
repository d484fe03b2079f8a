//! What must hold of every bundle, request and effects.

use super::fixtures::now;
use super::judge;
use super::universe::*;
use crate::core::amount::Amount;
use crate::core::intent::{FeeAsk, Fees};
use crate::core::policy::effect::Effect;
use crate::core::policy::{Charge, ChargeKind, Outcome, Verdict};
use alloy::primitives::U256;
use proptest::prelude::*;
use proptest::sample::{Index, select};

const CASES: u32 = 400;
/// Whatever `after` lets be signed, `before` lets be signed on the same conditions: it is asked for the same
/// at the fees that `after` would allow.
fn not_looser(before: &World, after: &Verdict) -> Result<(), TestCaseError> {
    if after.outcome == Outcome::Deny {
        return Ok(());
    }
    let before = match after.fee_cap {
        Some(cap) => before.at_most(cap).judge(),
        None => before.judge(),
    };
    prop_assert!(before.outcome >= after.outcome, "{:?} after {:?}", after, before);
    prop_assert_eq!(before.fee_cap, after.fee_cap);
    for charge in &before.charges {
        prop_assert!(after.charges.contains(charge), "no longer charged: {}", charge.label);
    }
    for (old, new) in before.exposures.iter().zip(&after.exposures) {
        prop_assert_eq!(old.amount, new.amount);
        for charge in &old.charges {
            prop_assert!(new.charges.contains(charge), "no longer held: {}", charge.label);
        }
    }
    for need in before.approval.iter() {
        let now = after.approval.as_ref();
        for quorum in &need.quorums {
            prop_assert!(now.is_some_and(|now| now.quorums.contains(quorum)));
        }
    }
    let ms = |verdict: &Verdict| verdict.delay.as_ref().map_or(0, |delay| delay.ms);
    prop_assert!(ms(&before) <= ms(after));
    Ok(())
}

/// A way to bound a grant: its name, and what does it, unless the grant has it already.
type BoundKind = (&'static str, fn(&mut Spec) -> bool);

/// Every way to bound a grant.
fn bounds() -> Vec<BoundKind> {
    fn window(spec: &mut Spec, window: &'static str) -> bool {
        let had = spec.windows.contains(&window);
        if !had {
            spec.windows.push(window);
        }
        !had
    }
    vec![
        ("per_tx", |spec| std::mem::replace(&mut spec.per_tx, "0") != "0"),
        ("fee", |spec| std::mem::replace(&mut spec.fee, (30, 1)) != (30, 1)),
        ("fee window", |spec| !std::mem::replace(&mut spec.fee_windows, true)),
        ("hours", |spec| !std::mem::replace(&mut spec.hours, true)),
        ("expiry", |spec| !std::mem::replace(&mut spec.expired, true)),
        ("rolling window", |spec| window(spec, WINDOWS[0])),
        ("calendar window", |spec| window(spec, WINDOWS[2])),
        ("small window", |spec| window(spec, WINDOWS[4])),
        ("count window", |spec| window(spec, WINDOWS[5])),
        ("approval", |spec| spec.approval.is_none() && spec.approval.insert("") == &""),
        ("approval above", |spec| spec.approval.is_none() && spec.approval.insert("1") == &"1"),
        ("first use", |spec| spec.delay.is_none() && spec.delay.insert("first") == &"first"),
        ("delay", |spec| spec.delay.is_none() && spec.delay.insert("always") == &"always"),
    ]
}

#[test]
fn removing_any_fact_never_loosens() {
    forall(CASES, &world(), &[(10, &OUTCOMES), (20, &["tighter"])], |world, met| {
        let before = world.judge();
        met.outcome(&before);
        let mut removals: Vec<World> = Vec::new();
        for known in &world.request.facts.known_destinations {
            let mut less = world.clone();
            less.request.facts.known_destinations.remove(known);
            removals.push(less);
        }
        let mut less = world.clone();
        less.request.facts.waiting_since = None;
        removals.push(less);
        let mut less = world.clone();
        less.request.facts.codes.clear();
        removals.push(less);
        let mut less = world.clone();
        less.request.group = None;
        removals.push(less);
        for less in removals {
            let after = less.judge();
            prop_assert!(after.outcome <= before.outcome);
            if after.outcome < before.outcome {
                met.note("tighter");
            }
        }
        Ok(())
    });
}

#[test]
fn a_bound_more_never_loosens() {
    let all = bounds();
    let strategy = (world(), any::<Index>(), 0..all.len());
    let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
    forall(
        CASES,
        &strategy,
        &[(10, &OUTCOMES), (20, &["tighter"]), (5, &names)],
        |(world, at, bound), met| {
            let mut bounded = world.clone();
            let at = at.index(bounded.grants.len());
            let (name, add) = all[bound];
            if !add(&mut bounded.grants[at]) {
                return Ok(());
            }
            met.note(name);
            let after = bounded.judge();
            met.outcome(&after);
            if after.outcome < world.judge().outcome {
                met.note("tighter");
            }
            not_looser(&world, &after)
        },
    );
}

#[test]
fn a_guardrail_more_never_loosens() {
    let strategy = (world(), select(RAILS.to_vec()));
    forall(CASES, &strategy, &[(10, &OUTCOMES), (20, &["tighter"])], |(world, rail), met| {
        if world.rails.contains(rail) {
            return Ok(());
        }
        let mut railed = world.clone();
        railed.rails += rail;
        let after = railed.judge();
        met.outcome(&after);
        if after.outcome < world.judge().outcome {
            met.note("tighter");
        }
        not_looser(&world, &after)
    });
}

#[test]
fn a_grant_without_bounds_never_tightens_and_without_it_nothing_is_looser() {
    let strategy = (world(), any::<Index>());
    forall(CASES, &strategy, &[(10, &OUTCOMES), (10, &["looser"])], |(world, at), met| {
        let kind = at.get(&world.grants).kind;
        let before = world.judge();
        let mut more = world.clone();
        more.grants.push(Spec::free(kind));
        let after = more.judge();
        met.outcome(&after);
        prop_assert!(after.outcome >= before.outcome, "{before:?} {after:?}");
        if after.outcome > before.outcome {
            met.note("looser");
        }
        if before.outcome != Outcome::Deny {
            prop_assert_eq!(&before.approval, &after.approval);
            prop_assert_eq!(&before.delay, &after.delay);
            prop_assert!(
                before.fee_cap.map(|cap| cap.max_fee) <= after.fee_cap.map(|cap| cap.max_fee)
            );
        }
        not_looser(&more, &before)
    });
}

#[test]
fn grants_in_any_order_and_under_any_ids_decide_the_same() {
    forall(CASES, &world(), &[(10, &OUTCOMES)], |world, met| {
        let verdict = |grants: &[Spec], id: &dyn Fn(usize) -> String| {
            let bundle = bundle_of(grants, &world.rails, id);
            let mut verdict = judge(&bundle, &world.request, &world.effects, now());
            verdict.bundle = Default::default();
            verdict
        };
        let last = world.grants.len() - 1;
        let base = verdict(&world.grants, &|at| format!("g{at}"));
        met.outcome(&base);
        let backwards: Vec<Spec> = world.grants.iter().rev().cloned().collect();
        let moved = verdict(&backwards, &|at| format!("g{}", last - at));
        prop_assert_eq!(&base, &moved);
        // Other ids are other counters and other names; nothing else changes.
        let renamed = verdict(&world.grants, &|at| format!("g{}", last - at));
        prop_assert_eq!(base.outcome, renamed.outcome);
        prop_assert_eq!(base.fee_cap, renamed.fee_cap);
        prop_assert_eq!(&base.effects, &renamed.effects);
        let kinds = |verdict: &Verdict| {
            let mut kinds: Vec<String> =
                verdict.charges.iter().map(|it| format!("{:?} {}", it.kind, it.max)).collect();
            kinds.sort();
            kinds
        };
        prop_assert_eq!(kinds(&base), kinds(&renamed));
        Ok(())
    });
}

/// What a charge asks.
fn parts(charge: &Charge) -> (Amount, Amount) {
    match charge.kind {
        ChargeKind::Amount { value, fee } => (value, fee),
        ChargeKind::Count(_) => (Amount::ZERO, Amount::ZERO),
    }
}

fn total(amounts: impl Iterator<Item = Amount>) -> Amount {
    amounts.fold(Amount::ZERO, |sum, more| sum.checked_add(more).unwrap())
}

#[test]
fn what_is_charged_and_held_is_never_less_than_what_the_effects_sum_to() {
    const COUNTED: &str = "[[limit]]\nid = \"native\"\nreason = \"r\"\nchain = \"local\"\n\
        windows = [{ span = \"24h\", max = \"1000\", scope = \"chain\" }]\n\
        [[limit]]\nid = \"tusd\"\nreason = \"r\"\nchain = \"local\"\nasset = \"tusd\"\n\
        windows = [{ span = \"24h\", max = \"1000\", scope = \"chain\" }]\n";
    forall(CASES, &world(), &[(10, &["allow", "tokens", "approvals"])], |mut world, met| {
        world.rails = COUNTED.to_owned();
        let verdict = world.judge();
        if verdict.outcome == Outcome::Deny {
            return Ok(());
        }
        met.outcome(&verdict);
        let of = |grant: &str| verdict.charges.iter().find(|it| it.grant.as_str() == grant);
        let native = total(verdict.effects.iter().map(Effect::native));
        let fee = total(verdict.effects.iter().map(|effect| match effect {
            Effect::FeeMax { amount } => *amount,
            _ => Amount::ZERO,
        }));
        prop_assert_eq!(of("native").map(parts), Some((native, fee)));
        let gas = Amount::from(world.tx().gas);
        let price = verdict.fee_cap.map_or(0, |cap| cap.max_fee);
        prop_assert_eq!(gas.checked_mul(Amount::from(price)), Some(fee));
        let moved = total(verdict.effects.iter().map(|effect| match effect {
            Effect::TokenOut { amount, .. } => *amount,
            _ => Amount::ZERO,
        }));
        prop_assert_eq!(of("tusd").map_or(Amount::ZERO, |charge| parts(charge).0), moved);
        if !moved.is_zero() {
            met.note("tokens");
        }
        let approved = total(verdict.effects.iter().map(|effect| match effect {
            Effect::Approve { amount, .. } => *amount,
            _ => Amount::ZERO,
        }));
        let held = verdict.exposures.iter().flat_map(|exposure| &exposure.charges);
        let held = held.filter(|charge| charge.grant.as_str() == "tusd");
        prop_assert_eq!(total(held.map(|charge| parts(charge).0)), approved);
        if !approved.is_zero() {
            met.note("approvals");
        }
        prop_assert!(verdict.charges.is_sorted_by(|a, b| a.limit < b.limit));
        for charge in &verdict.charges {
            prop_assert!(charge.asked().is_some_and(|asked| asked <= charge.max));
        }
        Ok(())
    });
}

#[test]
fn sums_that_overflow_deny() {
    let strategy = (world(), any::<Index>());
    forall(CASES, &strategy, &[(20, &["overflow"])], |(mut world, at), met| {
        // Nothing but the sums is in the way.
        world.grants = (0..KINDS).map(Spec::free).collect();
        let most =
            "115792089237316195423570985008687907853269984665640564039457.584007913129639935";
        for spec in &mut world.grants {
            spec.per_tx = if matches!(spec.kind, 1..=4) { "1000000" } else { most };
        }
        world.rails = String::new();
        world.request.facts.waiting_since = None;
        let natives: Vec<usize> = (0..world.effects.len())
            .filter(|at| matches!(world.effects[*at], Effect::NativeOut { .. }))
            .collect();
        if natives.is_empty() {
            return Ok(());
        }
        let huge = Amount::new(U256::MAX);
        let first = *at.get(&natives);
        let Effect::NativeOut { from, to, .. } = world.effects[first].clone() else {
            return Ok(());
        };
        let under = huge.checked_sub(Amount::ONE).unwrap();
        world.effects = vec![Effect::NativeOut { from, to, amount: under }];
        prop_assert_eq!(world.judge().outcome, Outcome::Allow, "just below, alone");
        for more in [Amount::ONE, under] {
            let mut two = world.clone();
            two.effects.push(Effect::NativeOut { from, to, amount: more });
            met.note("overflow");
            prop_assert_eq!(two.judge().outcome, Outcome::Deny);
            // Under a window as high as a window can be, too.
            let mut windowed = world.clone();
            windowed.rails = format!(
                "[[limit]]\nid = \"all\"\nreason = \"r\"\nchain = \"local\"\nper_tx = \"{most}\"\n\
                 windows = [{{ span = \"1h\", max = \"{most}\", scope = \"chain\" }}]\n"
            );
            windowed.tx().fees = FeeAsk::Exact(Fees { max_fee: 1, max_priority_fee: 0 });
            prop_assert_eq!(windowed.judge().outcome, Outcome::Deny, "with the fee");
        }
        Ok(())
    });
}

#[test]
fn nothing_that_is_not_understood_is_allowed_beside_what_is() {
    forall(CASES, &world(), &[(10, &OUTCOMES)], |mut world, met| {
        met.outcome(&world.judge());
        world.effects.push(Effect::Opaque { why: "unknown".into(), call: None });
        let verdict = world.judge();
        prop_assert_eq!(verdict.outcome, Outcome::Deny);
        prop_assert!(verdict.reasons.iter().any(|reason| reason.field == "effects"));
        prop_assert!(verdict.charges.is_empty() && verdict.exposures.is_empty());
        Ok(())
    });
}

#[test]
fn a_refusal_says_why_and_gives_nothing() {
    forall(CASES, &world(), &[(10, &OUTCOMES)], |world, met| {
        let verdict = world.judge();
        met.outcome(&verdict);
        let denied = verdict.outcome == Outcome::Deny;
        prop_assert_eq!(denied, !verdict.reasons.is_empty(), "{:?}", verdict);
        prop_assert_eq!(denied, verdict.grants.is_empty());
        if denied {
            prop_assert!(verdict.charges.is_empty() && verdict.exposures.is_empty());
            prop_assert!(verdict.approval.is_none() && verdict.delay.is_none());
            prop_assert!(verdict.fee_cap.is_none());
        }
        prop_assert_eq!(verdict.outcome == Outcome::Delay, verdict.delay.is_some());
        let waits = matches!(verdict.outcome, Outcome::NeedApproval | Outcome::Delay);
        prop_assert!(verdict.approval.is_none() || waits);
        Ok(())
    });
}
