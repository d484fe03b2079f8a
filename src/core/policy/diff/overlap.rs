//! Whether two grants can match the same effect. A window counts what its grant matches, whichever grant
//! allowed it: what a narrower grant no longer matches may still be allowed by another, and counts nowhere.

use crate::core::id::ChainName;
use crate::core::policy::Bundle;
use crate::core::policy::bundle::grant::{
    Action, ChainRule, Destinations, Grant, Mode, Rules, SignerRef, Window,
};
use alloy::primitives::Address;

/// Whether the rule counts or holds up anything that another grant allows.
pub(super) fn has_limits(rule: &ChainRule) -> bool {
    let fee = rule.fee.iter().any(|fee| !fee.windows.is_empty());
    fee || !rule.windows.is_empty() || rule.approval.is_some() || rule.delay.is_some()
}

/// A grant of `bundle`, other than this one, that may allow what the rule matches.
pub(super) fn other_way<'b>(
    bundle: &'b Bundle,
    grant: &Grant,
    place: (&ChainName, &ChainRule),
) -> Option<&'b Grant> {
    bundle.rules().iter().find(|other| {
        let Rules::OnChain(rules) = &other.rules else {
            return false;
        };
        other.id != grant.id
            && may_meet(grant, other)
            && rules.get(place.0).is_some_and(|rule| actions_meet(&place.1.action, rule))
    })
}

/// The same for messages.
pub(super) fn other_message<'b>(
    bundle: &'b Bundle,
    grant: &Grant,
    windows: &[Window],
) -> Option<&'b Grant> {
    let is_message = |other: &Grant| matches!(other.rules, Rules::Message { .. });
    let mut all = bundle.rules().iter();
    let found =
        all.find(|other| other.id != grant.id && is_message(other) && may_meet(grant, other));
    found.filter(|_| !windows.is_empty())
}

fn may_meet(grant: &Grant, other: &Grant) -> bool {
    other.mode == Mode::Enforce
        && !grant.principals.is_disjoint(&other.principals)
        && grant
            .signers
            .iter()
            .any(|signer| other.signers.iter().any(|other| signers_meet(signer, other)))
}

/// A key has one id and one address and belongs to at most one group; which ones is not known here.
fn signers_meet(one: &SignerRef, other: &SignerRef) -> bool {
    match (one, other) {
        (SignerRef::Group(one), SignerRef::Group(other)) => one == other,
        (SignerRef::Address(one), SignerRef::Address(other)) => one == other,
        (SignerRef::Key(one), SignerRef::Key(other)) => one == other,
        _ => true,
    }
}

fn actions_meet(action: &Action, other: &ChainRule) -> bool {
    if matches!(action, Action::NativeTransfer { .. }) && other.fee.is_some() {
        // Fees, and value that goes with calls, are native spend.
        return true;
    }
    let same_kind = action.name() == other.action.name();
    if !same_kind || target(action) != target(&other.action) {
        return false;
    }
    match (to(action), to(&other.action)) {
        (
            Some(Destinations::These { addresses, .. }),
            Some(Destinations::These { addresses: others, .. }),
        ) => !addresses.is_disjoint(others),
        _ => true,
    }
}

/// What an action acts on; actions of one kind with different targets never match the same effect.
pub(super) fn target(action: &Action) -> (Option<Address>, String) {
    match action {
        Action::NativeTransfer { .. } | Action::Deploy { .. } | Action::Delegate { .. } => {
            (None, String::new())
        }
        Action::TokenTransfer { address, .. }
        | Action::TokenApprove { address, .. }
        | Action::NftTransfer { address, .. }
        | Action::NftApprove { address, .. } => (Some(*address), String::new()),
        // The same contract under another name is in another bundle: signatures of calls are of addresses.
        Action::Call(rule) | Action::Admin(rule) => {
            (None, format!("{} {}", rule.contract, rule.function.signature))
        }
        Action::Opaque { address, selector, .. } => {
            (Some(*address), selector.map(hex::encode).unwrap_or_default())
        }
        Action::TypedData(rule) => {
            (Some(rule.verifying_contract), format!("{} {:#x}", rule.primary_type, rule.type_hash))
        }
    }
}

/// The destinations that an action names.
pub(super) const fn to(action: &Action) -> Option<&Destinations> {
    match action {
        Action::NativeTransfer { to, .. }
        | Action::TokenTransfer { to, .. }
        | Action::TokenApprove { to, .. }
        | Action::NftTransfer { to, .. }
        | Action::NftApprove { to, .. }
        | Action::Delegate { to } => Some(to),
        Action::Call(_)
        | Action::Admin(_)
        | Action::Deploy { .. }
        | Action::Opaque { .. }
        | Action::TypedData(_) => None,
    }
}

/// The contract of a grant whose calls or data are decoded with the book alone.
pub(super) fn bound_contract(rule: &ChainRule) -> Option<&str> {
    match &rule.action {
        Action::Call(call) | Action::Admin(call) => Some(&call.contract),
        Action::Opaque { contract, .. } => Some(contract),
        Action::TypedData(typed) => Some(&typed.contract),
        _ => None,
    }
}
