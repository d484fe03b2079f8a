//! What one grant says on one chain, before and after.

use super::overlap::{has_limits, other_way, target, to};
use super::words::{self, Unit, beyond, names};
use super::{Notes, bounds};
use crate::core::amount::Amount;
use crate::core::id::ChainName;
use crate::core::policy::Bundle;
use crate::core::policy::bundle::grant::{
    Action, CallRule, ChainRule, Destinations, EventRule, Grant,
};
use crate::core::policy::bundle::registry::Registry;
use crate::core::time::duration_text;
use alloy::primitives::{B256, U256};
use std::collections::BTreeSet;

/// Where a rule stands.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    pub(super) registry: &'a Registry,
    pub(super) grant: &'a Grant,
    pub(super) chain: &'a ChainName,
}

impl Side<'_> {
    fn permission(self, rule: &ChainRule) -> String {
        words::permission(self.grant, Some((self.registry, self.chain, rule)))
    }
}

pub(super) fn come((side, rule): (Side<'_>, &ChainRule), notes: &mut Notes) {
    notes.loosens(format!("it is new on {}: {}", side.chain, side.permission(rule)));
}

pub(super) fn gone((side, rule): (Side<'_>, &ChainRule), new: &Bundle, notes: &mut Notes) {
    notes.tightens(format!("not any more on {}: {}", side.chain, side.permission(rule)));
    unlimited((side, rule), new, notes);
}

fn unlimited((side, rule): (Side<'_>, &ChainRule), new: &Bundle, notes: &mut Notes) {
    if !has_limits(rule) {
        return;
    }
    if let Some(other) = other_way(new, side.grant, (side.chain, rule)) {
        notes.loosens(format!(
            "on {}, what it no longer matches is not counted in its windows and needs not its approval or \
             delay, and grant `{}` may still allow it",
            side.chain, other.id
        ));
    }
}

pub(super) fn compare(
    old: (Side<'_>, &ChainRule),
    new: (Side<'_>, &ChainRule),
    bundle: &Bundle,
    notes: &mut Notes,
) {
    let (before, after) = (old.1, new.1);
    let is_other = before.action.name() != after.action.name()
        || target(&before.action) != target(&after.action)
        || contract_moved(old, new);
    if is_other {
        gone(old, bundle, notes);
        return come(new, notes);
    }
    let mut is_narrower = through(before, after, notes);
    if let Some((from, into)) = to(&before.action).zip(to(&after.action)) {
        is_narrower |= destinations(from, into, new, notes);
    }
    if is_narrower {
        unlimited(old, bundle, notes);
    }
    let (was, is) = (
        Unit::of(old.0.registry, old.0.chain, &before.action),
        Unit::of(new.0.registry, new.0.chain, &after.action),
    );
    let native_was = Unit::native(old.0.registry, old.0.chain);
    let native_is = Unit::native(new.0.registry, new.0.chain);
    actions(old, new, notes);
    let name = new.0.grant.id.as_str();
    let chain = new.0.chain;
    bounds::windows(
        &format!("{name} on {chain}"),
        (&before.windows, was),
        (&after.windows, is),
        notes,
    );
    bounds::fee((before.fee.as_ref(), native_was), (after.fee.as_ref(), native_is), notes);
    bounds::approval((before.approval.as_ref(), was), (after.approval.as_ref(), is), notes);
    bounds::delay(before.delay.as_ref(), after.delay.as_ref(), notes);
}

/// Whether a contract's name means another address now.
fn contract_moved(old: (Side<'_>, &ChainRule), new: (Side<'_>, &ChainRule)) -> bool {
    let address = |(side, rule): (Side<'_>, &ChainRule)| match &rule.action {
        Action::Call(call) | Action::Admin(call) => {
            side.registry.contract(side.chain, &call.contract).map(|contract| contract.address)
        }
        _ => None,
    };
    address(old) != address(new)
}

/// Contracts through which the account acts. Whether there are fewer.
fn through(before: &ChainRule, after: &ChainRule, notes: &mut Notes) -> bool {
    let more = beyond(&before.through, &after.through);
    let less = beyond(&after.through, &before.through);
    if !more.is_empty() {
        notes.loosens(format!("it may move what belongs to {} too", names(&more)));
    }
    if !less.is_empty() {
        notes.tightens(format!("it may not move what belongs to {} any more", names(&less)));
    }
    !less.is_empty()
}

/// To whom. Whether there are fewer.
fn destinations(
    before: &Destinations,
    after: &Destinations,
    (side, rule): (Side<'_>, &ChainRule),
    notes: &mut Notes,
) -> bool {
    let permission = side.permission(rule);
    match (before, after) {
        (Destinations::Any, Destinations::Any) => false,
        (Destinations::These { .. }, Destinations::Any) => {
            notes.loosens(format!("{permission} (was to {} only)", words::destinations(before)));
            false
        }
        (Destinations::Any, Destinations::These { .. }) => {
            notes.tightens(format!("{permission} (was to any address)"));
            true
        }
        (
            Destinations::These { addresses, .. },
            Destinations::These { addresses: others, label },
        ) => {
            let (more, less) = (beyond(addresses, others), beyond(others, addresses));
            if !more.is_empty() {
                notes.loosens(format!("{permission}; new in {label}: {}", names(&more)));
            }
            if !less.is_empty() {
                notes.tightens(format!("{permission}; gone from {label}: {}", names(&less)));
            }
            !less.is_empty()
        }
    }
}

/// The bounds that an action itself has.
fn actions(old: (Side<'_>, &ChainRule), new: (Side<'_>, &ChainRule), notes: &mut Notes) {
    amounts(old, new, notes);
    match (&old.1.action, &new.1.action) {
        (
            Action::TokenApprove { unlimited, permit_ms, .. },
            Action::TokenApprove { unlimited: all, permit_ms: permit, .. },
        ) => {
            flag("allowances without end", *unlimited, *all, notes);
            // None at all is the shortest life of a permit.
            bounds::most(Some(*permit_ms), Some(*permit), notes, |_, _| {
                let text = |ms: Option<i64>| ms.map_or_else(|| "none".to_owned(), duration_text);
                format!("signed permits may live for {} (was {})", text(*permit), text(*permit_ms))
            });
        }
        (
            Action::NftTransfer { ids, .. } | Action::NftApprove { ids, .. },
            Action::NftTransfer { ids: new_ids, .. } | Action::NftApprove { ids: new_ids, .. },
        ) => token_ids(ids.as_ref(), new_ids.as_ref(), notes),
        (Action::Call(before), Action::Call(after))
        | (Action::Admin(before), Action::Admin(after)) => calls(before, after, notes),
        (
            Action::Deploy { init_code_hashes, .. },
            Action::Deploy { init_code_hashes: hashes, .. },
        ) => {
            let (more, less) = (beyond(init_code_hashes, hashes), beyond(hashes, init_code_hashes));
            if !more.is_empty() {
                notes.loosens(format!("it may create contracts from {} too", names(&more)));
            }
            if !less.is_empty() {
                notes.tightens(format!(
                    "it may not create contracts from {} any more",
                    names(&less)
                ));
            }
        }
        (Action::Opaque { code_hash, .. }, Action::Opaque { code_hash: hash, .. }) => {
            code(*code_hash, *hash, notes);
        }
        (Action::TypedData(before), Action::TypedData(after)) => {
            bounds::args(&before.args, &after.args, notes);
        }
        _ => {}
    }
}

/// How much at once: tokens, native value.
fn amounts(old: (Side<'_>, &ChainRule), new: (Side<'_>, &ChainRule), notes: &mut Notes) {
    let most = |action: &Action| -> Option<Amount> {
        match action {
            Action::NativeTransfer { per_tx, .. }
            | Action::TokenTransfer { per_tx, .. }
            | Action::TokenApprove { per_tx, .. }
            | Action::NftTransfer { per_tx, .. } => Some(*per_tx),
            Action::Call(rule) | Action::Admin(rule) => Some(rule.value_max),
            Action::Deploy { value_max, .. } | Action::Opaque { value_max, .. } => Some(*value_max),
            Action::NftApprove { .. } | Action::Delegate { .. } | Action::TypedData(_) => None,
        }
    };
    let Some((before, after)) = most(&old.1.action).zip(most(&new.1.action)) else {
        return;
    };
    let was = (before, Unit::of(old.0.registry, old.0.chain, &old.1.action));
    let is = (after, Unit::of(new.0.registry, new.0.chain, &new.1.action));
    bounds::most(Some(before), Some(after), notes, |_, _| {
        let (permission, change) = (new.0.permission(new.1), bounds::was(was, is));
        let said = is.1.say(after);
        if permission.contains(&said) {
            return permission.replacen(&said, &change, 1);
        }
        format!("{permission}: up to {change}")
    });
}

fn flag(what: &str, before: bool, after: bool, notes: &mut Notes) {
    match (before, after) {
        (false, true) => notes.loosens(format!("it may give {what} now")),
        (true, false) => notes.tightens(format!("it may not give {what} any more")),
        _ => {}
    }
}

fn token_ids(before: Option<&BTreeSet<U256>>, after: Option<&BTreeSet<U256>>, notes: &mut Notes) {
    match (before, after) {
        (None, None) => {}
        (Some(_), None) => notes.loosens("it is for every token now"),
        (None, Some(ids)) => notes.tightens(format!("it is for tokens {} only now", names(ids))),
        (Some(before), Some(after)) => {
            let (more, less) = (beyond(before, after), beyond(after, before));
            if !more.is_empty() {
                notes.loosens(format!("it is for tokens {} too", names(&more)));
            }
            if !less.is_empty() {
                notes.tightens(format!("it is not for tokens {} any more", names(&less)));
            }
        }
    }
}

fn code(before: Option<B256>, after: Option<B256>, notes: &mut Notes) {
    match (before, after) {
        (Some(_), None) => notes.loosens("whatever code is there may be called now"),
        (None, Some(hash)) => notes.tightens(format!("only code {hash:#x} may be called now")),
        (Some(before), Some(after)) if before != after => {
            notes.loosens(format!("code {after:#x} may be called (was {before:#x})"));
        }
        _ => {}
    }
}

fn calls(before: &CallRule, after: &CallRule, notes: &mut Notes) {
    let inputs = |rule: &CallRule| -> Vec<(String, String)> {
        let all = rule.function.inputs.iter();
        all.map(|input| (input.name.clone(), input.kind.clone())).collect()
    };
    if inputs(before) != inputs(after) {
        notes.loosens(format!(
            "the arguments of `{}` have other names: its conditions are about others",
            after.function.signature
        ));
    }
    bounds::args(&before.args, &after.args, notes);
    let text = |event: &EventRule| format!("`{}` of {}", event.signature, event.contract);
    match (&before.event, &after.event) {
        (None, None) => {}
        (None, Some(event)) => notes.tightens(format!("it must answer {} now", text(event))),
        (Some(event), None) => {
            notes.loosens(format!("it need not answer {} any more", text(event)))
        }
        (Some(before), Some(after)) => {
            let key = |event: &EventRule| {
                (event.address, event.topic0, event.mapping.clone(), format!("{:?}", event.inputs))
            };
            if key(before) != key(after) {
                notes.loosens(format!("it must answer {} (was {})", text(after), text(before)));
            }
        }
    }
}
