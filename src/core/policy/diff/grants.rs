//! Grants against grants of the same id. One in shadow mode decides nothing, so it is as if it were not there.

use super::overlap::{has_limits, other_message, other_way};
use super::rules::{self, Side};
use super::words::{self, beyond, names};
use super::{Notes, bounds};
use crate::core::policy::Bundle;
use crate::core::policy::bundle::grant::{Grant, Mode, Rules, TextRule, Window};
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn compare(old: &Bundle, new: &Bundle, notes: &mut Notes) {
    let by_id = |bundle| -> BTreeMap<&str, &Grant> {
        let rules: &[Grant] = Bundle::rules(bundle);
        rules.iter().map(|grant| (grant.id.as_str(), grant)).collect()
    };
    let (before, after) = (by_id(old), by_id(new));
    let ids: BTreeSet<&str> = before.keys().chain(after.keys()).copied().collect();
    for id in ids {
        notes.about(format!("grant `{id}`"));
        match (before.get(id), after.get(id)) {
            (Some(before), Some(after)) => both((old, before), (new, after), notes),
            (Some(before), None) => gone((old, before), new, "was removed", notes),
            (None, Some(after)) => come((new, after), "is new", notes),
            (None, None) => {}
        }
    }
}

/// What a grant says on each chain, or of messages.
fn permissions(bundle: &Bundle, grant: &Grant) -> Vec<String> {
    match &grant.rules {
        Rules::Message { .. } => vec![words::permission(grant, None)],
        Rules::OnChain(rules) => rules
            .iter()
            .map(|(chain, rule)| words::permission(grant, Some((bundle.registry(), chain, rule))))
            .collect(),
    }
}

fn come((bundle, grant): (&Bundle, &Grant), how: &str, notes: &mut Notes) {
    if grant.mode == Mode::Shadow {
        notes.neutral(format!("it {how}, in shadow mode: it is recorded and decides nothing"));
        return;
    }
    for permission in permissions(bundle, grant) {
        notes.loosens(format!("it {how}: {permission}, until {}", grant.expires));
    }
}

fn gone((bundle, grant): (&Bundle, &Grant), new: &Bundle, how: &str, notes: &mut Notes) {
    if grant.mode == Mode::Shadow {
        notes.neutral(format!("it {how}; it was in shadow mode and decided nothing"));
        return;
    }
    for permission in permissions(bundle, grant) {
        notes.tightens(format!("it {how}: {permission} no more by it"));
    }
    unlimited(grant, new, notes);
}

/// Limits of a grant that matches less than it did, where another grant may allow the rest.
fn unlimited(grant: &Grant, new: &Bundle, notes: &mut Notes) {
    let mut tell = |what: String, other: &Grant| {
        notes.loosens(format!(
            "what it matched{what} is not counted in its windows and needs not its approval or delay any \
             more, and grant `{}` may still allow it",
            other.id
        ));
    };
    match &grant.rules {
        Rules::Message { windows, .. } => {
            if let Some(other) = other_message(new, grant, windows) {
                tell(String::new(), other);
            }
        }
        Rules::OnChain(rules) => {
            for (chain, rule) in rules.iter().filter(|(_, rule)| has_limits(rule)) {
                if let Some(other) = other_way(new, grant, (chain, rule)) {
                    tell(format!(" on {chain}"), other);
                }
            }
        }
    }
}

fn both(old: (&Bundle, &Grant), new: (&Bundle, &Grant), notes: &mut Notes) {
    let (before, after) = (old.1, new.1);
    if before.owner != after.owner {
        notes.neutral(format!("its owner is {} (was {})", after.owner, before.owner));
    }
    if before.reason != after.reason {
        notes.neutral(format!("its reason is {:?} (was {:?})", after.reason, before.reason));
    }
    match (before.mode, after.mode) {
        (Mode::Enforce, Mode::Shadow) => {
            return gone(old, new.0, "is only recorded now (shadow mode)", notes);
        }
        (Mode::Shadow, Mode::Enforce) => {
            return come(new, "decides now (was in shadow mode)", notes);
        }
        (Mode::Shadow, Mode::Shadow) => {
            if permissions(old.0, before) != permissions(new.0, after) {
                notes.neutral("it says something else; it is in shadow mode and decides nothing");
            }
            return;
        }
        (Mode::Enforce, Mode::Enforce) => {}
    }
    match (&before.rules, &after.rules) {
        (
            Rules::Message { text, windows },
            Rules::Message { text: new_text, windows: new_windows },
        ) => messages((text, windows), (new_text, new_windows), notes),
        (Rules::OnChain(rules), Rules::OnChain(new_rules)) => {
            let chains: BTreeSet<_> = rules.keys().chain(new_rules.keys()).collect();
            for chain in chains {
                let side = |(bundle, grant): (_, _)| Side {
                    registry: Bundle::registry(bundle),
                    grant,
                    chain,
                };
                match (rules.get(chain), new_rules.get(chain)) {
                    (Some(rule), Some(new_rule)) => {
                        rules::compare((side(old), rule), (side(new), new_rule), new.0, notes);
                    }
                    (Some(rule), None) => rules::gone((side(old), rule), new.0, notes),
                    (None, Some(rule)) => rules::come((side(new), rule), notes),
                    (None, None) => {}
                }
            }
        }
        _ => {
            gone(old, new.0, "is another one", notes);
            come(new, "is another one", notes);
            return;
        }
    }
    selectors(before, after, new.0, notes);
    bounds::hours(before.hours.as_ref(), after.hours.as_ref(), notes);
    bounds::most(Some(before.expires_at), Some(after.expires_at), notes, |_, _| {
        format!("it allows until {} (was {})", after.expires, before.expires)
    });
}

/// Who may ask and who signs.
fn selectors(before: &Grant, after: &Grant, new: &Bundle, notes: &mut Notes) {
    let (joined, left) = (
        beyond(&before.principals, &after.principals),
        beyond(&after.principals, &before.principals),
    );
    if !joined.is_empty() {
        notes.loosens(format!("{} may use it now", names(&joined)));
    }
    if !left.is_empty() {
        notes.tightens(format!("{} may use it no more", names(&left)));
    }
    let (signs, signed) =
        (beyond(&before.signers, &after.signers), beyond(&after.signers, &before.signers));
    if !signs.is_empty() {
        notes.loosens(format!("{} may be asked to sign now", names(&signs)));
    }
    if !signed.is_empty() {
        notes.tightens(format!("{} may be asked to sign no more", names(&signed)));
    }
    if !left.is_empty() || !signed.is_empty() {
        unlimited(before, new, notes);
    }
}

fn messages(old: (&TextRule, &[Window]), new: (&TextRule, &[Window]), notes: &mut Notes) {
    let said = format!("it allows {} (was {})", words::text_rule(new.0), words::text_rule(old.0));
    match (text_within(old.0, new.0), text_within(new.0, old.0)) {
        (true, true) => {}
        (true, false) => notes.tightens(said),
        (false, _) => notes.loosens(said),
    }
    bounds::counts("messages", old.1, new.1, notes);
}

/// Whether every text that the second allows is allowed by the first.
fn text_within(outer: &TextRule, inner: &TextRule) -> bool {
    match (outer, inner) {
        (TextRule::Any, _) => true,
        (TextRule::Exact(outer), TextRule::Exact(inner)) => inner.is_subset(outer),
        (TextRule::Prefix(prefix), TextRule::Exact(inner)) => {
            inner.iter().all(|text| text.starts_with(prefix.as_str()))
        }
        (TextRule::Prefix(prefix), TextRule::Prefix(inner)) => inner.starts_with(prefix.as_str()),
        (TextRule::Exact(_) | TextRule::Prefix(_), TextRule::Any)
        | (TextRule::Exact(_), TextRule::Prefix(_)) => false,
    }
}
