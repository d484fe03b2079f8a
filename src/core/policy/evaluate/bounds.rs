//! The bounds of a grant whose selectors match: whether it covers what they match.

use super::event;
use super::fees::{FeeMiss, fee_cap};
use super::matching::{Ask, Failed, Match, Rule, stage, told};
use crate::core::amount::Amount;
use crate::core::intent::{Fees, Intent};
use crate::core::policy::bundle::condition::ArgRule;
use crate::core::policy::bundle::grant::{Action, CallRule, Hours, TextRule};
use crate::core::policy::bundle::index::Terms;
use crate::core::policy::effect::{CallArgument, CallEffect, Effect, PermitTerms};
use crate::core::policy::verdict::EventUse;
use crate::core::time::Timestamp;
use alloy::primitives::U256;
use std::collections::BTreeSet;

const MINUTE_MS: i64 = 60_000;
const DAY_MS: i64 = 86_400_000;

/// What is at least 2^255 is an allowance without end.
pub(super) fn is_unlimited(amount: Amount) -> bool {
    amount.units().bit(255)
}

/// Amounts never wrap: a sum beyond 256 bits stays at the top, where no limit reaches.
pub(super) fn saturating_add(a: Amount, b: Amount) -> Amount {
    a.checked_add(b).unwrap_or(Amount::new(U256::MAX))
}

/// How much of an action's unit an effect moves.
pub(super) const fn amount_of(action: &Action, effect: &Effect) -> Amount {
    match (action, effect) {
        (Action::TokenTransfer { .. }, Effect::TokenOut { amount, .. })
        | (Action::NftTransfer { .. }, Effect::NftOut { amount, .. })
        | (Action::TokenApprove { .. }, Effect::Approve { amount, .. }) => *amount,
        (
            Action::NativeTransfer { .. }
            | Action::Call(_)
            | Action::Admin(_)
            | Action::Deploy { .. }
            | Action::Opaque { .. },
            effect,
        ) => effect.native(),
        _ => Amount::ZERO,
    }
}

/// How much an effect moves, of the unit of the actions that match it.
pub(super) const fn moved(effect: &Effect) -> Amount {
    match effect {
        Effect::TokenOut { amount, .. }
        | Effect::NftOut { amount, .. }
        | Effect::Approve { amount, .. } => *amount,
        other => other.native(),
    }
}

/// What all effects that the selectors match move together.
fn sum(found: &Match<'_>, ask: &Ask<'_>) -> Amount {
    let effects = found.effects.iter().filter_map(|place| ask.effect(*place));
    effects.fold(Amount::ZERO, |sum, effect| saturating_add(sum, moved(effect)))
}

/// What the grant says about the request as a whole: its time, its sums, its fee. Returns the fees that it
/// lets be signed at most; `None` where there is no fee.
pub(super) fn stands(found: &Match<'_>, ask: &Ask<'_>) -> Result<Option<Fees>, Failed> {
    within_time(found, ask)?;
    let Rule::Chain { rule, terms, .. } = found.rule else {
        return Ok(None);
    };
    within_sums(found, terms, &rule.action, ask)?;
    if let Intent::Transaction(tx) = &ask.request.intent {
        let fee = terms.fee.ok_or_else(|| {
            ask.failed(stage::FEE, || told("fee", "a signature alone", "a transaction"))
        })?;
        let miss = |miss: FeeMiss| ask.failed(stage::FEE, || miss.told(fee, tx));
        return fee_cap(fee, tx).map(Some).map_err(miss);
    }
    match &rule.action {
        Action::TypedData(_) | Action::Delegate { .. } | Action::TokenApprove { .. } => Ok(None),
        _ => Err(ask.failed(stage::FEE, || told("fee", "a transaction", "a signature alone"))),
    }
}

fn within_time(found: &Match<'_>, ask: &Ask<'_>) -> Result<(), Failed> {
    let (expires_at, has_hours) = found.life();
    if ask.now >= expires_at {
        return Err(ask.failed(stage::EXPIRES, || {
            told("expires", &found.grant.expires, ask.now.to_string())
        }));
    }
    if !has_hours {
        return Ok(());
    }
    match &found.grant.hours {
        Some(hours) if !is_open(hours, ask.now) => {
            Err(ask.failed(stage::HOURS, || told("hours", &hours.text, ask.now.to_string())))
        }
        _ => Ok(()),
    }
}

/// Whether a moment is within the hours. Day 0 of our time was a Thursday.
fn is_open(hours: &Hours, now: Timestamp) -> bool {
    let day = now.millis().div_euclid(DAY_MS);
    let weekday = usize::try_from(day.saturating_add(3).rem_euclid(7)).unwrap_or(usize::MAX);
    let minute = now.millis().rem_euclid(DAY_MS).div_euclid(MINUTE_MS);
    hours.days.get(weekday).copied().unwrap_or(false)
        && minute >= i64::from(hours.from_minute)
        && minute < i64::from(hours.to_minute)
}

fn within_sums(
    found: &Match<'_>,
    terms: &Terms,
    action: &Action,
    ask: &Ask<'_>,
) -> Result<(), Failed> {
    let at_most = |field: &dyn Fn() -> &'static str, max: Amount, actual: Amount| {
        // A sum that overflowed stays at the top, which is within no bound.
        if actual <= max && actual != Amount::new(U256::MAX) {
            return Ok(());
        }
        Err(ask.failed(stage::BOUNDS, || told(field(), max.to_string(), actual.to_string())))
    };
    if let Some(most) = terms.most {
        let field = || match action {
            Action::NativeTransfer { .. }
            | Action::TokenTransfer { .. }
            | Action::NftTransfer { .. } => "per_tx",
            _ => "value.max",
        };
        return at_most(&field, most, sum(found, ask));
    }
    let Action::TokenApprove { per_tx, unlimited, .. } = action else {
        return Ok(());
    };
    let mut finite = Amount::ZERO;
    for amount in found.effects.iter().filter_map(|place| ask.effect(*place)).map(moved) {
        if !is_unlimited(amount) {
            finite = saturating_add(finite, amount);
        } else if !unlimited {
            return Err(ask.failed(stage::BOUNDS, || {
                told("unlimited", "an allowance that ends", "unlimited")
            }));
        }
    }
    at_most(&|| "per_tx", *per_tx, finite)
}

/// What the grant says about one effect. Returns the event that covering it uses up.
pub(super) fn covers(
    found: &Match<'_>,
    effect: &Effect,
    ask: &Ask<'_>,
) -> Result<Option<Box<EventUse>>, Failed> {
    let rule = match found.rule {
        Rule::Message { text, .. } => {
            return match effect {
                Effect::TextMessage { text: actual } => covers_text(text, actual, ask),
                _ => Ok(()),
            }
            .map(|()| None);
        }
        Rule::Chain { terms, .. } if terms.is_plain => return Ok(None),
        Rule::Chain { rule, .. } => rule,
    };
    match (&rule.action, effect) {
        (Action::Call(rule) | Action::Admin(rule), Effect::Call(call) | Effect::AdminOp(call)) => {
            return covers_call(rule, call, ask);
        }
        (Action::NftTransfer { ids: Some(ids), .. }, Effect::NftOut { id, .. }) => {
            one_of(ids, Some(*id), ask)?;
        }
        (Action::NftApprove { ids, .. }, Effect::OperatorApproval { id, approved, .. }) => {
            covers_operator(ids.as_ref(), *id, *approved, ask)?
        }
        (Action::TokenApprove { permit_ms, .. }, Effect::Approve { permit: Some(terms), .. }) => {
            covers_permit(*permit_ms, terms, ask)?
        }
        // A signature that gives an allowance, and says nowhere until when.
        (Action::TokenApprove { .. }, Effect::Approve { permit: None, .. })
            if !matches!(ask.request.intent, Intent::Transaction(_)) =>
        {
            return Err(ask.failed(stage::BOUNDS, || {
                told("permit_for", "a transaction", "a signature without an end")
            }));
        }
        (Action::Deploy { init_code_hashes, .. }, Effect::Create { init_code_hash, .. })
            if !init_code_hashes.contains(init_code_hash) =>
        {
            return Err(ask.failed(stage::BOUNDS, || {
                let expected: Vec<String> =
                    init_code_hashes.iter().map(ToString::to_string).collect();
                told("init_code_hashes", expected.join(", "), init_code_hash.to_string())
            }));
        }
        (Action::Opaque { code_hash: Some(hash), .. }, Effect::Opaque { call: Some(call), .. })
            if call.code_hash != Some(*hash) =>
        {
            return Err(ask.failed(stage::BOUNDS, || {
                let actual = call
                    .code_hash
                    .map_or_else(|| "not known".to_owned(), |actual| actual.to_string());
                told("code_hash", hash.to_string(), actual)
            }));
        }
        (Action::TypedData(rule), Effect::TypedMessage { .. }) => {
            let read = ask.typed.ok_or_else(|| {
                ask.failed(stage::BOUNDS, || told("typed_data", "readable", "not readable"))
            })?;
            covers_args(&rule.args, &read.fields, ask)?;
        }
        _ => {}
    }
    Ok(None)
}

fn covers_text(rule: &TextRule, actual: &str, ask: &Ask<'_>) -> Result<(), Failed> {
    let words = match rule {
        TextRule::Any => return Ok(()),
        TextRule::Exact(texts) if texts.contains(actual) => return Ok(()),
        TextRule::Prefix(prefix) if actual.starts_with(prefix) => return Ok(()),
        TextRule::Exact(texts) => {
            let expected: Vec<String> = texts.iter().map(|text| format!("{text:?}")).collect();
            ("text.exact", expected.join(", "))
        }
        TextRule::Prefix(prefix) => ("text.prefix", format!("{prefix:?}")),
    };
    Err(ask.failed(stage::BOUNDS, || told(words.0, words.1, format!("{actual:?}"))))
}

fn covers_call(
    rule: &CallRule,
    call: &CallEffect,
    ask: &Ask<'_>,
) -> Result<Option<Box<EventUse>>, Failed> {
    covers_args(&rule.args, &call.args, ask)?;
    match (&rule.event, &ask.request.intent) {
        (None, _) => Ok(None),
        (Some(event), Intent::Transaction(tx)) => {
            event::check(event, rule, call, tx, ask.request.facts.event.as_ref())
                .map(|used| Some(Box::new(used)))
                .map_err(|told| ask.failed(stage::BOUNDS, || told))
        }
        (Some(_), _) => {
            Err(ask.failed(stage::BOUNDS, || told("event", "a transaction", "something else")))
        }
    }
}

fn covers_args(rules: &[ArgRule], args: &[CallArgument], ask: &Ask<'_>) -> Result<(), Failed> {
    for rule in rules {
        let mut named = args.iter().filter(|arg| arg.name == rule.name);
        let (Some(arg), None) = (named.next(), named.next()) else {
            return Err(ask.failed(stage::BOUNDS, || {
                told(format!("args.{}", rule.name), "exactly one", "another number")
            }));
        };
        if let Some(part) = rule.failing(arg) {
            return Err(ask.failed(stage::BOUNDS, || {
                told(format!("args.{}.{part}", rule.name), rule.expected(part), &arg.value)
            }));
        }
    }
    Ok(())
}

fn one_of(ids: &BTreeSet<U256>, id: Option<U256>, ask: &Ask<'_>) -> Result<(), Failed> {
    if id.is_some_and(|id| ids.contains(&id)) {
        return Ok(());
    }
    Err(ask.failed(stage::BOUNDS, || {
        let expected: Vec<String> = ids.iter().map(ToString::to_string).collect();
        told("ids", expected.join(", "), id.map_or_else(|| "all".to_owned(), |id| id.to_string()))
    }))
}

/// An approval is given by a transaction: a signed order over a token sells it, for whatever the order says.
/// To take one back is fine whichever token it is of.
fn covers_operator(
    ids: Option<&BTreeSet<U256>>,
    id: Option<U256>,
    approved: bool,
    ask: &Ask<'_>,
) -> Result<(), Failed> {
    match ids {
        Some(ids) if approved => one_of(ids, id, ask),
        _ => Ok(()),
    }
}

/// A permit lives no longer than the grant says: neither until it is submitted, nor after that, where it
/// says itself when the allowance ends. So does one over nothing, which takes an allowance back.
fn covers_permit(permit_ms: Option<i64>, terms: &PermitTerms, ask: &Ask<'_>) -> Result<(), Failed> {
    let Some(permit_ms) = permit_ms else {
        return Err(
            ask.failed(stage::BOUNDS, || told("permit_for", "a transaction", "a signed permit"))
        );
    };
    let last = ask.now.plus_millis(permit_ms);
    let too_late = |seconds: Option<u64>| match seconds {
        None => true,
        Some(seconds) => {
            let millis = seconds.checked_mul(1_000).and_then(|millis| i64::try_from(millis).ok());
            millis.is_none_or(|millis| Timestamp::from_millis(millis) > last)
        }
    };
    let words = |seconds: Option<u64>| {
        seconds.map_or_else(|| "without end".to_owned(), |seconds| format!("{seconds} s"))
    };
    if too_late(terms.deadline) {
        return Err(ask.failed(stage::BOUNDS, || {
            told("permit_for", format!("a deadline until {last}"), words(terms.deadline))
        }));
    }
    if terms.expires.is_some() && too_late(terms.expires) {
        return Err(ask.failed(stage::BOUNDS, || {
            told("permit_for", format!("an end until {last}"), words(terms.expires))
        }));
    }
    Ok(())
}
