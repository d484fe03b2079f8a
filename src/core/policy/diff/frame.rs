//! What stands around the grants: issuers, guardrails, quorum groups, names, who may change the bundle.

use super::overlap::{bound_contract, target};
use super::words::{self, Unit, beyond, names};
use super::{Notes, bounds};
use crate::core::access::Role;
use crate::core::id::ChainName;
use crate::core::policy::Bundle;
use crate::core::policy::bundle::grant::{Action, Destinations, Mode, Rules};
use crate::core::policy::bundle::guardrail::{ChangeRule, DenyRule, LimitRule, LimitUnit};
use crate::core::policy::bundle::registry::{Asset, Contract, Registry, Wrapper};
use crate::core::time::duration_text;
use alloy::primitives::Address;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

pub(super) fn compare(old: &Bundle, new: &Bundle, notes: &mut Notes) {
    issuers(old, new, notes);
    change(old.guardrails().change.as_ref(), new.guardrails().change.as_ref(), notes);
    quorums(&old.guardrails().quorums, &new.guardrails().quorums, notes);
    denies(old, new, notes);
    limits(old, new, notes);
    contracts(old, new, notes);
    assets(old, new, notes);
    lists(old.registry(), new.registry(), notes);
    natives(old, new, notes);
}

fn issuers(old: &Bundle, new: &Bundle, notes: &mut Notes) {
    type Voucher<'a> = (&'a str, Role, &'a str);
    // Exact, or a prefix that ends in `*`.
    let covers = |(iss, role, pattern): &Voucher<'_>, other: &Voucher<'_>| {
        let within = match pattern.strip_suffix('*') {
            Some(prefix) => other.2.strip_suffix('*').unwrap_or(other.2).starts_with(prefix),
            None => pattern == &other.2,
        };
        *iss == other.0 && *role == other.1 && within
    };
    let (before, after): (Vec<Voucher<'_>>, Vec<Voucher<'_>>) =
        (old.vouchers().collect(), new.vouchers().collect());
    for it in after.iter().filter(|it| !before.iter().any(|old| covers(old, it))) {
        notes.about(format!("issuer `{}`", it.0));
        notes.loosens(format!("it may vouch for `{}` as {} now", it.2, it.1));
    }
    for it in before.iter().filter(|it| !after.iter().any(|new| covers(new, it))) {
        notes.about(format!("issuer `{}`", it.0));
        notes.tightens(format!("it may not vouch for all of `{}` as {} any more", it.2, it.1));
    }
}

pub(super) fn change(old: Option<&ChangeRule>, new: Option<&ChangeRule>, notes: &mut Notes) {
    notes.about("change rule");
    match (old, new) {
        (None, None) => {}
        (None, Some(rule)) => notes.tightens(format!(
            "bundles are activated by {} now, {} later where they loosen",
            words::quorum(&rule.quorum),
            duration_text(rule.delay_ms)
        )),
        (Some(_), None) => notes.loosens("any one policy_admin may activate bundles now"),
        (Some(before), Some(after)) => {
            bounds::quorum("activating a bundle", &before.quorum, &after.quorum, notes);
            let (was, is) = (before.delay_ms, after.delay_ms);
            let said = format!(
                "a bundle that loosens waits {} (was {})",
                duration_text(is),
                duration_text(was)
            );
            match is.cmp(&was) {
                std::cmp::Ordering::Less => notes.loosens(said),
                std::cmp::Ordering::Greater => notes.tightens(said),
                std::cmp::Ordering::Equal => {}
            }
        }
    }
}

fn quorums(
    old: &BTreeMap<String, BTreeSet<String>>,
    new: &BTreeMap<String, BTreeSet<String>>,
    notes: &mut Notes,
) {
    for (name, members) in new {
        notes.about(format!("quorum group `{name}`"));
        match old.get(name) {
            None => notes.neutral(format!("it is new, with {}", names(members))),
            Some(before) => {
                let joined = beyond(before, members);
                if !joined.is_empty() {
                    notes.loosens(format!("{} may approve for it now", names(&joined)));
                }
            }
        }
    }
    for (name, members) in old {
        notes.about(format!("quorum group `{name}`"));
        match new.get(name) {
            None => notes.neutral("it is gone"),
            Some(after) => {
                let left = beyond(after, members);
                if !left.is_empty() {
                    notes.tightens(format!("{} may not approve for it any more", names(&left)));
                }
            }
        }
    }
}

fn by_id<T>(all: &[T], id: fn(&T) -> &str) -> BTreeMap<&str, &T> {
    all.iter().map(|it| (id(it), it)).collect()
}

fn denies(old: &Bundle, new: &Bundle, notes: &mut Notes) {
    let id: fn(&DenyRule) -> &str = |rule| rule.id.as_str();
    let (before, after) =
        (by_id(&old.guardrails().denies, id), by_id(&new.guardrails().denies, id));
    for id in before.keys().chain(after.keys()).copied().collect::<BTreeSet<_>>() {
        notes.about(format!("deny `{id}`"));
        match (before.get(id), after.get(id)) {
            (Some(rule), None) => notes.loosens(format!("it was removed ({})", rule.reason)),
            (None, Some(rule)) => notes.tightens(format!("it is new ({})", rule.reason)),
            (Some(before), Some(after)) => deny(before, after, notes),
            (None, None) => {}
        }
    }
}

/// A condition fewer, or a longer list, denies more.
pub(super) fn deny(old: &DenyRule, new: &DenyRule, notes: &mut Notes) {
    one_deny("principals", old.principals.as_ref(), new.principals.as_ref(), notes);
    one_deny("signers", old.signers.as_ref(), new.signers.as_ref(), notes);
    one_deny("chains", old.chains.as_ref(), new.chains.as_ref(), notes);
    one_deny("actions", old.actions.as_ref(), new.actions.as_ref(), notes);
    let (before, after) = match (&old.to, &new.to) {
        (None, None) => return,
        (None, Some(_)) => return notes.loosens("it is for some destinations only now"),
        (Some(_), None) => return notes.tightens("it is for all destinations now"),
        (Some(before), Some(after)) => (before, after),
    };
    for chain in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
        match (before.get(chain), after.get(chain)) {
            (None, Some(to)) => {
                notes.tightens(format!("it denies {} on {chain} too", words::destinations(to)));
            }
            (Some(to), None) => {
                notes.loosens(format!(
                    "it does not deny {} on {chain} any more",
                    words::destinations(to)
                ));
            }
            (Some(before), Some(after)) => denied(before, after, chain, notes),
            (None, None) => {}
        }
    }
}

fn denied(old: &Destinations, new: &Destinations, chain: &ChainName, notes: &mut Notes) {
    match (old, new) {
        (Destinations::Any, Destinations::Any) => {}
        (Destinations::Any, Destinations::These { .. }) => {
            notes.loosens(format!("on {chain} it denies {} only", words::destinations(new)));
        }
        (Destinations::These { .. }, Destinations::Any) => {
            notes.tightens(format!("on {chain} it denies every destination now"));
        }
        (Destinations::These { addresses, .. }, Destinations::These { addresses: after, .. }) => {
            let (more, less) = (beyond(addresses, after), beyond(after, addresses));
            if !less.is_empty() {
                notes.loosens(format!("on {chain} it does not deny {} any more", names(&less)));
            }
            if !more.is_empty() {
                notes.tightens(format!("on {chain} it denies {} too", names(&more)));
            }
        }
    }
}

fn one_deny<T: Ord + Clone + Display>(
    what: &str,
    old: Option<&BTreeSet<T>>,
    new: Option<&BTreeSet<T>>,
    notes: &mut Notes,
) {
    match (old, new) {
        (None, None) => {}
        (None, Some(some)) => notes.loosens(format!("it is for {what} {} only now", names(some))),
        (Some(_), None) => notes.tightens(format!("it is for all {what} now")),
        (Some(before), Some(after)) => {
            let (more, less) = (beyond(before, after), beyond(after, before));
            if !less.is_empty() {
                notes.loosens(format!("it is not for {what} {} any more", names(&less)));
            }
            if !more.is_empty() {
                notes.tightens(format!("it is for {what} {} too", names(&more)));
            }
        }
    }
}

fn unit<'a>(registry: &Registry, rule: &'a LimitRule) -> Unit<'a> {
    match &rule.unit {
        LimitUnit::Native => Unit::native(registry, &rule.chain),
        LimitUnit::Asset { name, .. } => Unit::asset(registry, &rule.chain, name),
    }
}

fn limits(old: &Bundle, new: &Bundle, notes: &mut Notes) {
    let id: fn(&LimitRule) -> &str = |rule| rule.id.as_str();
    let (before, after) =
        (by_id(&old.guardrails().limits, id), by_id(&new.guardrails().limits, id));
    for id in before.keys().chain(after.keys()).copied().collect::<BTreeSet<_>>() {
        notes.about(format!("limit `{id}`"));
        match (before.get(id), after.get(id)) {
            (Some(rule), None) => notes.loosens(format!("it was removed ({})", rule.reason)),
            (None, Some(rule)) => notes.tightens(format!("it is new ({})", rule.reason)),
            (Some(before), Some(after)) => {
                limit((old.registry(), before), (new.registry(), after), notes);
            }
            (None, None) => {}
        }
    }
}

pub(super) fn limit(old: (&Registry, &LimitRule), new: (&Registry, &LimitRule), notes: &mut Notes) {
    let (was, is) = (unit(old.0, old.1), unit(new.0, new.1));
    let counts = |rule: &LimitRule| match &rule.unit {
        LimitUnit::Native => None,
        LimitUnit::Asset { address, .. } => Some(*address),
    };
    let (before, after) = (old.1, new.1);
    if before.chain != after.chain || counts(before) != counts(after) {
        return notes.loosens(format!("it limits something else now, on {}", after.chain));
    }
    bounds::most(before.per_tx, after.per_tx, notes, |before, after| {
        let text = |most: &Option<_>, unit: Unit<'_>| {
            most.map_or_else(|| "any amount".to_owned(), |most| unit.say(most))
        };
        format!("a request may take {} (was {})", text(after, is), text(before, was))
    });
    let what = format!("{} on {}", after.id, after.chain);
    bounds::windows(&what, (&before.windows, was), (&after.windows, is), notes);
}

/// Whether a grant of the new bundle is decided by what the book says of this address: without the book's
/// word, what was a transfer or a wrapped call would be such a call.
fn is_called(new: &Bundle, chain: &ChainName, address: Address) -> bool {
    let names_it = |contract: &str| {
        new.registry().contract(chain, contract).is_some_and(|found| found.address == address)
    };
    new.rules().iter().filter(|grant| grant.mode == Mode::Enforce).any(|grant| {
        let Rules::OnChain(rules) = &grant.rules else {
            return false;
        };
        rules.get(chain).is_some_and(|rule| {
            let is_typed = match &rule.action {
                Action::TypedData(typed) => typed.verifying_contract == address,
                _ => false,
            };
            is_typed || bound_contract(rule).is_some_and(names_it)
        })
    })
}

fn contracts(old: &Bundle, new: &Bundle, notes: &mut Notes) {
    let key = |(chain, contract): (&ChainName, &Contract)| (chain.clone(), contract.address);
    let keys: BTreeSet<_> =
        old.registry().contracts().chain(new.registry().contracts()).map(key).collect();
    for (chain, address) in keys {
        let before = old.registry().contract_at(&chain, address);
        let after = new.registry().contract_at(&chain, address);
        let name = after.or(before).map_or("", |contract| contract.name.as_str());
        notes.about(format!("contract `{name}` on {chain}"));
        match (before, after) {
            (None, Some(contract)) => {
                let said = format!("{address} is in the book now");
                match contract.wraps {
                    None => notes.neutral(said),
                    Some(kind) => notes.loosens(format!(
                        "{said} as {}: calls inside its calls are understood",
                        kind.name()
                    )),
                }
            }
            (Some(_), None) => notes.tightens(format!("{address} is not in the book any more")),
            (Some(before), Some(after)) => {
                contract((before, after), is_called(new, &chain, address), notes);
            }
            (None, None) => {}
        }
    }
}

fn contract((old, new): (&Contract, &Contract), is_called: bool, notes: &mut Notes) {
    if old.name != new.name {
        notes.neutral(format!("its name is `{}` (was `{}`)", new.name, old.name));
    }
    if old.wraps != new.wraps {
        let text = |kind: Option<Wrapper>| kind.map_or("nothing", Wrapper::name);
        let said = format!("it wraps {} (was {})", text(new.wraps), text(old.wraps));
        if new.wraps.is_some() || is_called { notes.loosens(said) } else { notes.tightens(said) }
    }
    let functions = |contract: &Contract| -> BTreeMap<String, String> {
        let abi = contract.abi.iter().flat_map(|abi| abi.functions.values());
        abi.map(|function| (function.signature.clone(), format!("{:?}", function.inputs))).collect()
    };
    let (before, after) = (functions(old), functions(new));
    let more: Vec<&String> = after.keys().filter(|name| !before.contains_key(*name)).collect();
    let less: Vec<&String> = before.keys().filter(|name| !after.contains_key(*name)).collect();
    let other: Vec<&String> = after
        .iter()
        .filter(|(name, inputs)| before.get(*name).is_some_and(|old| old != *inputs))
        .map(|(name, _)| name)
        .collect();
    if !more.is_empty() {
        notes.neutral(format!("its ABI has {} too", names(more)));
    }
    if !less.is_empty() {
        let said = format!("its ABI has no {} any more", names(less));
        if is_called { notes.loosens(said) } else { notes.tightens(said) }
    }
    if !other.is_empty() {
        let said = format!("its ABI has other arguments for {}", names(other));
        if is_called { notes.loosens(said) } else { notes.neutral(said) }
    }
}

fn assets(old: &Bundle, new: &Bundle, notes: &mut Notes) {
    let key = |(chain, asset): (&ChainName, &Asset)| (chain.clone(), asset.address);
    let keys: BTreeSet<_> =
        old.registry().assets().chain(new.registry().assets()).map(key).collect();
    for (chain, address) in keys {
        let before = old.registry().asset_at(&chain, address);
        let after = new.registry().asset_at(&chain, address);
        let name = after.or(before).map_or("", |asset| asset.name.as_str());
        notes.about(format!("asset `{name}` on {chain}"));
        match (before, after) {
            (None, Some(asset)) => notes.neutral(format!(
                "{address} is registered, as {} with {} decimals",
                asset.standard.name(),
                asset.decimals
            )),
            (Some(_), None) => {
                let said = format!("{address} is not registered any more");
                if is_called(new, &chain, address) {
                    notes.loosens(format!("{said}: what it does is judged as other calls now"));
                } else {
                    notes.tightens(said);
                }
            }
            (Some(before), Some(after)) => {
                asset((before, after), waits_at_first(new, &chain, address), notes);
            }
            (None, None) => {}
        }
    }
}

/// Whether what goes to a destination of this asset for the first time waits: which ones are known is kept by
/// the asset's name.
fn waits_at_first(bundle: &Bundle, chain: &ChainName, asset: Address) -> bool {
    bundle.rules().iter().filter(|grant| grant.mode == Mode::Enforce).any(|grant| {
        let Rules::OnChain(rules) = &grant.rules else {
            return false;
        };
        rules.get(chain).is_some_and(|rule| {
            let waits = rule.delay.as_ref().is_some_and(|delay| delay.first_use_ms.is_some());
            waits && target(&rule.action).0 == Some(asset)
        })
    })
}

fn asset((old, new): (&Asset, &Asset), waits_at_first: bool, notes: &mut Notes) {
    if old.name != new.name {
        let said = format!("its name is `{}` (was `{}`)", new.name, old.name);
        if waits_at_first {
            notes.loosens(format!("{said}: whom that name was paid to before is not new to it"));
        } else {
            notes.neutral(said);
        }
    }
    if old.decimals != new.decimals {
        // What that does to amounts is told with each grant and limit.
        notes.neutral(format!("it has {} decimals (was {})", new.decimals, old.decimals));
    }
    if old.standard != new.standard {
        notes.loosens(format!("it is {} (was {})", new.standard.name(), old.standard.name()));
    }
}

/// What a list does is told with each grant that names it.
fn lists(old: &Registry, new: &Registry, notes: &mut Notes) {
    let key =
        |(chain, name, _): (&ChainName, &str, &BTreeSet<Address>)| (chain.clone(), name.to_owned());
    let keys: BTreeSet<_> = old.lists().chain(new.lists()).map(key).collect();
    for (chain, name) in keys {
        notes.about(format!("list `{name}` on {chain}"));
        match (old.list(&chain, &name), new.list(&chain, &name)) {
            (None, Some(list)) => notes.neutral(format!("it is new, with {}", names(list))),
            (Some(_), None) => notes.neutral("it is gone"),
            (Some(before), Some(after)) if before != after => {
                let (more, less) = (beyond(before, after), beyond(after, before));
                let text = |what: &str, all: &[Address]| {
                    if all.is_empty() { String::new() } else { format!(" {what} {}", names(all)) }
                };
                notes.neutral(format!("it changed:{}{}", text("new", &more), text("gone", &less)));
            }
            _ => {}
        }
    }
}

fn natives(old: &Bundle, new: &Bundle, notes: &mut Notes) {
    for chain in old.chains().union(&new.chains()) {
        let (before, after) =
            (old.registry().native_decimals(chain), new.registry().native_decimals(chain));
        if before != after {
            notes.about(format!("native currency of {chain}"));
            notes.neutral(format!("it has {after} decimals (was {before})"));
        }
    }
}
