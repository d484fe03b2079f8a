//! Bounds against bounds: amounts, windows, fees, quorums, delays, hours, conditions.

use super::Notes;
use super::words::{self, Unit, names};
use crate::core::amount::Amount;
use crate::core::policy::bundle::condition::{ArgRule, ArgTest};
use crate::core::policy::bundle::grant::{ApprovalRule, DelayRule, FeeRule, Holds, Hours, Window};
use crate::core::time::duration_text;
use alloy::primitives::{I256, U256};
use std::collections::{BTreeMap, BTreeSet};

/// A maximum that went up loosens, one that went down tightens; none is above every one.
pub(super) fn most<T: PartialOrd>(
    old: Option<T>,
    new: Option<T>,
    notes: &mut Notes,
    say: impl FnOnce(&Option<T>, &Option<T>) -> String,
) {
    let is_up = match (&old, &new) {
        (Some(old), Some(new)) if new == old => return,
        (None, None) => return,
        (Some(old), Some(new)) => new > old,
        (Some(_), None) => true,
        (None, Some(_)) => false,
    };
    let what = say(&old, &new);
    if is_up { notes.loosens(what) } else { notes.tightens(what) }
}

/// `500 (was 250) usdc`
pub(super) fn was(old: (Amount, Unit<'_>), new: (Amount, Unit<'_>)) -> String {
    format!("{} (was {})", new.1.say(new.0), old.1.number(old.0))
}

fn by_key<'w>(all: &[&'w Window]) -> BTreeMap<(i64, bool, &'static str), (Amount, &'w Window)> {
    let mut found: BTreeMap<_, (Amount, &Window)> = BTreeMap::new();
    for window in all {
        let (max, is_count) = match window.holds {
            Holds::Amount(max) => (max, false),
            Holds::Count(count) => (Amount::from(count), true),
        };
        let key = (window.period.code(), is_count, window.scope.name());
        let lowest = found.get(&key).is_none_or(|(before, _)| max < *before);
        if lowest {
            found.insert(key, (max, *window));
        }
    }
    found
}

/// A window that is gone or holds more loosens; a new one, or one that holds less, tightens.
pub(super) fn windows(
    what: &str,
    old: (&[Window], Unit<'_>),
    new: (&[Window], Unit<'_>),
    notes: &mut Notes,
) {
    let before = by_key(&old.0.iter().collect::<Vec<_>>());
    let after = by_key(&new.0.iter().collect::<Vec<_>>());
    for (key, (max, window)) in &before {
        match after.get(key) {
            None => notes.loosens(format!("{what}: the {} is gone", words::window(window, old.1))),
            Some((now, _)) if now == max => {}
            Some((now, _)) => {
                let (span, scope) = (window.period.text(), window.scope.name());
                let change = if key.1 {
                    format!("from {max} to {now} effects")
                } else {
                    format!("from {} to {}", old.1.number(*max), new.1.say(*now))
                };
                if now > max {
                    notes.loosens(format!("{what}: {span} window per {scope} grew {change}"));
                } else {
                    notes.tightens(format!("{what}: {span} window per {scope} shrank {change}"));
                }
            }
        }
    }
    for (_, (_, window)) in after.iter().filter(|(key, _)| !before.contains_key(*key)) {
        notes.tightens(format!("{what}: a {} is new", words::window(window, new.1)));
    }
}

/// Windows that count what the action matches.
pub(super) fn counts(what: &str, old: &[Window], new: &[Window], notes: &mut Notes) {
    let none = Unit::of_counts();
    windows(what, (old, none), (new, none), notes);
}

/// Wei per gas, gas, and windows over the product.
pub(super) fn fee(
    old: (Option<&FeeRule>, Unit<'_>),
    new: (Option<&FeeRule>, Unit<'_>),
    notes: &mut Notes,
) {
    let (before, after) = match (old.0, new.0) {
        (None, None) => return,
        (None, Some(_)) => return notes.loosens("it may pay fees now"),
        (Some(before), None) => {
            notes.tightens("it may pay no fees any more");
            // They counted all fees of what it matches, also of what another grant allows.
            return windows("fees", (&before.windows, old.1), (&[], old.1), notes);
        }
        (Some(before), Some(after)) => (before, after),
    };
    let pairs = [
        ("fee per gas in wei", before.max.max_fee, after.max.max_fee),
        ("tip per gas in wei", before.max.max_priority_fee, after.max.max_priority_fee),
        ("gas", u128::from(before.max_gas), u128::from(after.max_gas)),
    ];
    for (what, before, after) in pairs {
        most(Some(before), Some(after), notes, |_, _| {
            format!("the highest {what} is {after} (was {before})")
        });
    }
    windows("fees", (&before.windows, old.1), (&after.windows, new.1), notes);
}

/// Fewer people, or people of a group fewer, loosen.
pub(super) fn quorum(
    what: &str,
    old: &BTreeMap<String, u32>,
    new: &BTreeMap<String, u32>,
    notes: &mut Notes,
) {
    let groups: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for group in groups {
        let (before, after) = (
            old.get(group).copied().unwrap_or_default(),
            new.get(group).copied().unwrap_or_default(),
        );
        let text = format!("{what} needs {after} (was {before}) of quorum group `{group}`");
        match after.cmp(&before) {
            std::cmp::Ordering::Less => notes.loosens(text),
            std::cmp::Ordering::Greater => notes.tightens(text),
            std::cmp::Ordering::Equal => {}
        }
    }
}

/// What must be approved.
pub(super) fn approval(
    old: (Option<&ApprovalRule>, Unit<'_>),
    new: (Option<&ApprovalRule>, Unit<'_>),
    notes: &mut Notes,
) {
    let about = |rule: &ApprovalRule, unit: Unit<'_>| {
        rule.above.map_or_else(
            || "everything".to_owned(),
            |above| format!("more than {}", unit.say(above)),
        )
    };
    match (old.0, new.0) {
        (None, None) => {}
        (None, Some(rule)) => notes.tightens(format!(
            "{} needs approval by {} now",
            about(rule, new.1),
            words::quorum(&rule.quorum)
        )),
        (Some(rule), None) => notes.loosens(format!(
            "{} needs no approval by {} any more",
            about(rule, old.1),
            words::quorum(&rule.quorum)
        )),
        (Some(before), Some(after)) => {
            let floor = |rule: &ApprovalRule| rule.above.map(Amount::units);
            if floor(before) != floor(after) {
                let text = format!(
                    "{} needs approval now (was: {})",
                    about(after, new.1),
                    about(before, old.1)
                );
                // Without `above` everything needs it: below the lowest amount.
                if floor(after) > floor(before) {
                    notes.loosens(text)
                } else {
                    notes.tightens(text)
                }
            }
            quorum("its approval", &before.quorum, &after.quorum, notes);
            most(Some(before.ttl_ms), Some(after.ttl_ms), notes, |_, _| {
                let (before, after) = (duration_text(before.ttl_ms), duration_text(after.ttl_ms));
                format!("approvals may be gathered for {after} (was {before})")
            });
        }
    }
}

/// What must wait.
pub(super) fn delay(old: Option<&DelayRule>, new: Option<&DelayRule>, notes: &mut Notes) {
    let first_use = |rule: Option<&DelayRule>| rule.and_then(|rule| rule.first_use_ms);
    let always = |rule: Option<&DelayRule>| rule.and_then(|rule| rule.always_ms);
    for (what, before, after) in [
        ("what goes to a destination for the first time", first_use(old), first_use(new)),
        ("everything", always(old), always(new)),
    ] {
        let (before, after) = (before.unwrap_or_default(), after.unwrap_or_default());
        let text = |ms: i64| if ms == 0 { "not at all".to_owned() } else { duration_text(ms) };
        let said = format!("{what} waits {} (was {})", text(after), text(before));
        match after.cmp(&before) {
            std::cmp::Ordering::Less => notes.loosens(said),
            std::cmp::Ordering::Greater => notes.tightens(said),
            std::cmp::Ordering::Equal => {}
        }
    }
}

/// Whether the second hours are within the first.
fn hours_within(outer: Option<&Hours>, inner: Option<&Hours>) -> bool {
    match (outer, inner) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(outer), Some(inner)) => {
            let days = outer.days.iter().zip(&inner.days).all(|(outer, inner)| *outer || !*inner);
            days && outer.from_minute <= inner.from_minute && inner.to_minute <= outer.to_minute
        }
    }
}

/// When a grant allows anything.
pub(super) fn hours(old: Option<&Hours>, new: Option<&Hours>, notes: &mut Notes) {
    let text = |hours: Option<&Hours>| {
        hours.map_or_else(|| "at all hours".to_owned(), |hours| hours.text.clone())
    };
    let said = format!("it allows {} (was {})", text(new), text(old));
    match (hours_within(old, new), hours_within(new, old)) {
        (true, true) => {}
        (true, false) => notes.tightens(said),
        (false, _) => notes.loosens(said),
    }
}

/// Conditions on arguments, by name.
pub(super) fn args(old: &[ArgRule], new: &[ArgRule], notes: &mut Notes) {
    let of = |rules: &[ArgRule], name: &str| -> Vec<ArgTest> {
        rules.iter().filter(|rule| rule.name == name).map(|rule| rule.test.clone()).collect()
    };
    let all: BTreeSet<&str> = old.iter().chain(new).map(|rule| rule.name.as_str()).collect();
    for name in all {
        let (before, after) = (of(old, name), of(new, name));
        if format!("{before:?}") == format!("{after:?}") {
            continue;
        }
        let text = |tests: &[ArgTest]| match tests {
            [] => "no condition".to_owned(),
            tests => names(tests.iter().map(condition)),
        };
        let said = format!("argument `{name}`: {} (was {})", text(&after), text(&before));
        let within = |outer: &[ArgTest], inner: &[ArgTest]| {
            outer.iter().all(|outer| inner.iter().any(|inner| is_within(outer, inner)))
        };
        match (within(&before, &after), within(&after, &before)) {
            (true, true) => notes.neutral(said),
            (true, false) => notes.tightens(said),
            (false, _) => notes.loosens(said),
        }
    }
}

/// Whether all that passes the second test passes the first: `false` where that cannot be shown.
fn is_within(outer: &ArgTest, inner: &ArgTest) -> bool {
    match (outer, inner) {
        (ArgTest::Any, _) => true,
        (ArgTest::OneOf(outer), ArgTest::OneOf(inner)) => {
            inner.iter().all(|(_, value)| outer.iter().any(|(_, other)| other == value))
        }
        (ArgTest::Unsigned { min, max }, ArgTest::OneOf(inner)) => {
            inner.iter().all(|(_, value)| {
                let value: Option<[u8; 32]> = value.as_ref().try_into().ok();
                let value = value.map(U256::from_be_bytes);
                value.is_some_and(|it| {
                    min.is_none_or(|min| it >= min) && max.is_none_or(|max| it <= max)
                })
            })
        }
        (ArgTest::Unsigned { min, max }, ArgTest::Unsigned { min: inner_min, max: inner_max }) => {
            is_inside((min.as_ref(), max.as_ref()), (inner_min.as_ref(), inner_max.as_ref()))
        }
        (ArgTest::Signed { min, max }, ArgTest::Signed { min: inner_min, max: inner_max }) => {
            is_inside::<I256>(
                (min.as_ref(), max.as_ref()),
                (inner_min.as_ref(), inner_max.as_ref()),
            )
        }
        (ArgTest::All { each: outer, .. }, ArgTest::All { each: inner, .. }) => {
            is_within(outer, inner)
        }
        _ => false,
    }
}

fn is_inside<T: PartialOrd>(
    outer: (Option<&T>, Option<&T>),
    inner: (Option<&T>, Option<&T>),
) -> bool {
    let low = outer.0.is_none_or(|least| inner.0.is_some_and(|min| min >= least));
    let high = outer.1.is_none_or(|most| inner.1.is_some_and(|max| max <= most));
    low && high
}

fn condition(test: &ArgTest) -> String {
    fn bounds(min: Option<String>, max: Option<String>) -> String {
        match (min, max) {
            (Some(min), Some(max)) => format!("{min} to {max}"),
            (Some(min), None) => format!("at least {min}"),
            (None, Some(max)) => format!("at most {max}"),
            (None, None) => "anything".to_owned(),
        }
    }
    match test {
        ArgTest::Any => "anything".to_owned(),
        ArgTest::All { each, .. } => format!("every element {}", condition(each)),
        ArgTest::OneOf(values) => {
            format!("one of {}", names(values.iter().map(|(text, _)| text)))
        }
        ArgTest::Unsigned { min, max } => {
            bounds(min.map(|min| min.to_string()), max.map(|max| max.to_string()))
        }
        ArgTest::Signed { min, max } => {
            bounds(min.map(|min| min.to_string()), max.map(|max| max.to_string()))
        }
    }
}
