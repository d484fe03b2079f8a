//! The windows of a bundle, each for everybody whose spending it counts: what a listing of limits shows,
//! touched or not.

use super::counter::{Slot, Whose, holds, native_unit, unit_of, unit_of_limit};
use crate::core::access::Role;
use crate::core::amount::Amount;
use crate::core::id::{ChainName, GrantId, GroupName, KeyId};
use crate::core::key::OperatorKey;
use crate::core::policy::bundle::grant::{
    Action, ChainRule, Destinations, Grant, Holds, Mode, Rules, Scope, SignerRef, Window,
};
use crate::core::policy::bundle::guardrail::LimitRule;
use crate::core::policy::{Bundle, LimitId, Period};
use crate::core::principal::Principal;
use alloy::primitives::Address;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// A window of the bundle in force, for one holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowInForce {
    /// Its counter.
    pub limit: LimitId,
    /// The counter in words, as charges have it.
    pub label: String,
    /// The grant or the guardrail whose window it is.
    pub grant: GrantId,
    /// What is counted: `value`, `fee` or `count`.
    pub counts: &'static str,
    /// In which unit: `native:CHAIN`, `asset:CHAIN:ADDRESS` or `count`.
    pub unit: String,
    /// Whose spending is counted together: `group`, `key`, `principal`, `destination` or `chain`.
    pub scope: &'static str,
    /// Which group, key (its id), principal, destination (`CHAIN:ADDRESS`) or chain.
    pub instance: String,
    /// How much it holds, in the smallest unit.
    pub max: Amount,
    /// Its span of time.
    pub period: Period,
}

/// The keys that [`windows_in_force`] must know: groups of whose keys each has a counter of its own, and keys
/// that grants name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CountedKeys {
    /// Groups with windows that count each key alone.
    pub groups: BTreeSet<GroupName>,
    /// Keys by their ids.
    pub ids: BTreeSet<KeyId>,
    /// Keys by their addresses.
    pub addresses: BTreeSet<Address>,
}

/// Whom [`windows_in_force`] must know: of a group whose windows count it as a whole, no key.
#[must_use]
pub fn counted_keys(bundle: &Bundle) -> CountedKeys {
    let mut found = CountedKeys::default();
    for source in sources(bundle) {
        let by_key = source.lines.iter().any(|line| line.window.scope == Scope::Key);
        for signer in source.signers {
            match signer {
                SignerRef::Group(group) if by_key => drop(found.groups.insert(group.clone())),
                SignerRef::Group(_) => {}
                SignerRef::Key(id) => drop(found.ids.insert(*id)),
                SignerRef::Address(address) => drop(found.addresses.insert(*address)),
            }
        }
    }
    found
}

/// All windows by counter, for these keys. With `only`, those of the grants that name this principal, those
/// of the guardrails that count it as well, and of windows that count each principal alone, its own. Of
/// windows by destination, those of the addresses that the bundle names.
#[must_use]
pub fn windows_in_force(
    bundle: &Bundle,
    only: Option<&Principal>,
    keys: &[OperatorKey],
) -> BTreeMap<LimitId, WindowInForce> {
    windows_in_force_to(bundle, only, keys, &BTreeSet::new())
}

/// As [`windows_in_force`], and for these destinations where a window counts each of any.
#[must_use]
pub fn windows_in_force_to(
    bundle: &Bundle,
    only: Option<&Principal>,
    keys: &[OperatorKey],
    seen: &BTreeSet<Address>,
) -> BTreeMap<LimitId, WindowInForce> {
    let mut found = BTreeMap::new();
    for source in sources(bundle) {
        let principals = principals(bundle, &source, only);
        for line in &source.lines {
            // Whoever is not named by the scope does not change the counter.
            for whose in holders(&source, line, &principals, keys, seen) {
                let slot = Slot { grant: source.id, whose };
                let counter = slot.counter(line.window, line.counts, &line.unit);
                let max = holds(line.window);
                let window = found.entry(counter.limit).or_insert_with(|| WindowInForce {
                    limit: counter.limit,
                    label: counter.label,
                    grant: source.id.clone(),
                    counts: line.counts,
                    unit: line.unit.clone(),
                    scope: counter.scope,
                    instance: counter.instance,
                    max,
                    period: line.window.period,
                });
                // Of two windows of one counter the tighter one holds.
                window.max = window.max.min(max);
            }
        }
    }
    found
}

/// Whose destination a counter's label names, if it counts one.
#[must_use]
pub fn destination_in(label: &str) -> Option<Address> {
    let (_, instance) = label.rsplit_once(" per destination ")?;
    instance.rsplit_once(':')?.1.parse().ok()
}

/// A grant or a guardrail with its windows, and who may use it.
struct Source<'a> {
    id: &'a GrantId,
    principals: BTreeSet<&'a str>,
    signers: BTreeSet<&'a SignerRef>,
    lines: Vec<Line<'a>>,
}

/// One window with what it counts.
struct Line<'a> {
    window: &'a Window,
    counts: &'static str,
    unit: String,
    chain: Option<&'a ChainName>,
    to: To<'a>,
}

/// To whom what a window counts may go.
#[derive(Clone, Copy)]
enum To<'a> {
    Nobody,
    Anybody,
    One(Address),
    These(&'a BTreeSet<Address>),
}

fn sources(bundle: &Bundle) -> Vec<Source<'_>> {
    let grants = bundle.rules().iter().map(|grant| Source {
        id: &grant.id,
        principals: grant.principals.iter().map(String::as_str).collect(),
        signers: grant.signers.iter().collect(),
        lines: lines(bundle, grant),
    });
    let limits = bundle.guardrails().limits.iter().map(|limit| {
        let there = |grant: &&Grant| grant.chains().any(|chain| *chain == limit.chain);
        let grants = || bundle.rules().iter().filter(there);
        Source {
            id: &limit.id,
            principals: grants().flat_map(|grant| &grant.principals).map(String::as_str).collect(),
            signers: grants().flat_map(|grant| &grant.signers).collect(),
            lines: lines_of_limit(limit),
        }
    });
    grants.chain(limits).collect()
}

/// Who may use it, as far as the bundle says.
fn principals(bundle: &Bundle, source: &Source<'_>, only: Option<&Principal>) -> Vec<Principal> {
    let issuers = bundle.issuers();
    let mut named = Vec::new();
    for sub in &source.principals {
        for iss in &issuers {
            let principal = Principal { iss: (*iss).to_owned(), sub: (*sub).to_owned() };
            let asked_for = only.is_none_or(|only| *only == principal);
            if asked_for && bundle.issuer_allows(iss, Role::Client, sub) {
                named.push(principal);
            }
        }
    }
    named
}

/// One holder for each counter that the scope makes.
fn holders<'a>(
    source: &'a Source<'a>,
    line: &'a Line<'a>,
    principals: &'a [Principal],
    keys: &'a [OperatorKey],
    seen: &'a BTreeSet<Address>,
) -> Vec<Whose<'a>> {
    let Some(anybody) = principals.first() else {
        return Vec::new();
    };
    let nobody = Whose {
        group: None,
        key: KeyId::new(Uuid::nil()),
        principal: anybody,
        chain: line.chain,
        destination: None,
    };
    let of_key = |key: &'a OperatorKey| Whose { group: key.group.as_ref(), key: key.id, ..nobody };
    match line.window.scope {
        Scope::Principal => {
            principals.iter().map(|principal| Whose { principal, ..nobody }).collect()
        }
        Scope::Group => {
            let groups = source.signers.iter().filter_map(|signer| match signer {
                SignerRef::Group(group) => Some(Whose { group: Some(group), ..nobody }),
                SignerRef::Address(_) | SignerRef::Key(_) => None,
            });
            let named = keys.iter().filter(|key| names(source, key));
            groups.chain(named.map(of_key)).collect()
        }
        Scope::Chain => vec![nobody],
        Scope::Destination => {
            let to = |address: &Address| Whose { destination: Some(*address), ..nobody };
            match line.to {
                To::Nobody => Vec::new(),
                To::Anybody => seen.iter().map(to).collect(),
                To::One(address) => vec![to(&address)],
                To::These(addresses) => addresses.iter().map(to).collect(),
            }
        }
        Scope::Key => {
            let signing = keys.iter().filter(|key| {
                let group = key.group.clone().map(SignerRef::Group);
                group.is_some_and(|group| source.signers.contains(&group)) || names(source, key)
            });
            signing.map(of_key).collect()
        }
    }
}

/// Whether it names this very key.
fn names(source: &Source<'_>, key: &OperatorKey) -> bool {
    source.signers.contains(&SignerRef::Key(key.id))
        || source.signers.contains(&SignerRef::Address(key.address))
}

/// The windows of a grant that count anything: not of one in shadow mode.
fn lines<'a>(bundle: &Bundle, grant: &'a Grant) -> Vec<Line<'a>> {
    if grant.mode == Mode::Shadow {
        return Vec::new();
    }
    let rules = match &grant.rules {
        Rules::Message { windows, .. } => {
            return windows.iter().map(|window| count(window, None, To::Nobody)).collect();
        }
        Rules::OnChain(rules) => rules,
    };
    let mut found = Vec::new();
    for (chain, rule) in rules {
        let to = to_whom(bundle, chain, &rule.action);
        found.extend(rule.windows.iter().map(|window| match window.holds {
            Holds::Count(_) => count(window, Some(chain), to),
            Holds::Amount(_) => value(window, unit_of(&rule.action, chain), chain, to),
        }));
        found.extend(fee_windows(rule).map(|window| Line {
            window,
            counts: "fee",
            unit: native_unit(chain),
            chain: Some(chain),
            to: To::Nobody,
        }));
    }
    found
}

fn lines_of_limit(limit: &LimitRule) -> Vec<Line<'_>> {
    let chain = &limit.chain;
    let windows = limit.windows.iter();
    windows
        .map(|window| match window.holds {
            Holds::Count(_) => count(window, Some(chain), To::Anybody),
            Holds::Amount(_) => value(window, unit_of_limit(limit), chain, To::Anybody),
        })
        .collect()
}

fn count<'a>(window: &'a Window, chain: Option<&'a ChainName>, to: To<'a>) -> Line<'a> {
    Line { window, counts: "count", unit: "count".to_owned(), chain, to }
}

fn value<'a>(window: &'a Window, unit: String, chain: &'a ChainName, to: To<'a>) -> Line<'a> {
    Line { window, counts: "value", unit, chain: Some(chain), to }
}

fn to_whom<'a>(bundle: &Bundle, chain: &ChainName, action: &'a Action) -> To<'a> {
    match action {
        Action::NativeTransfer { to, .. }
        | Action::TokenTransfer { to, .. }
        | Action::TokenApprove { to, .. }
        | Action::NftTransfer { to, .. }
        | Action::NftApprove { to, .. }
        | Action::Delegate { to } => match to {
            Destinations::Any => To::Anybody,
            Destinations::These { addresses, .. } => To::These(addresses),
        },
        Action::Call(rule) | Action::Admin(rule) => {
            let contract = bundle.registry().contract(chain, &rule.contract);
            contract.map_or(To::Nobody, |contract| To::One(contract.address))
        }
        Action::Opaque { address, .. } => To::One(*address),
        Action::Deploy { .. } | Action::TypedData(_) => To::Nobody,
    }
}

fn fee_windows(rule: &ChainRule) -> impl Iterator<Item = &Window> {
    let windows = rule.fee.iter().flat_map(|fee| &fee.windows);
    windows.filter(|window| matches!(window.holds, Holds::Amount(_)))
}

#[cfg(test)]
mod tests {
    use super::super::evaluate;
    use super::super::fixtures::*;
    use super::*;
    use crate::core::id::HsmName;
    use crate::core::key::{CkaId, Custody, KeyState, NonceMode, PublicKey};

    fn key(id: u128, group: Option<&str>, address: Address) -> OperatorKey {
        OperatorKey {
            id: KeyId::new(Uuid::from_u128(id)),
            hsm: HsmName::default(),
            cka_id: CkaId::new(vec![]),
            custody: Custody::Token,
            label: String::new(),
            group: group.map(GroupName::new),
            mode: NonceMode::Managed,
            public_key: PublicKey::from_sec1(&[&[4_u8][..], &[7; 64]].concat()).unwrap(),
            address,
            state: KeyState::Active,
            created_at: now(),
        }
    }

    const ALL_SCOPES: &str = r#"[{ span = "24h", max = "9", scope = "group" },
        { span = "1h", max = "9", scope = "key" }, { span = "1h", count = 9, scope = "principal" }]"#;

    #[test]
    fn whatever_is_charged_is_listed_with_the_same_words_and_limit() {
        let fees =
            FEE.replace(" }", r#", windows = [{ span = "24h", max = "9", scope = "group" }] }"#);
        let native = native_grant("native", "1", ALL_SCOPES).replace(FEE, &fees);
        let named = native_grant("named", "1", ALL_SCOPES)
            .replace("\"payments\"", &format!("\"{STRANGER}\""));
        let bundle = bundle(&[native, named, token_grant("token", "1"), charge_grant()]);
        let keys = [key(7, Some("payments"), STRANGER), key(8, Some("other"), PAYEE)];
        let all = windows_in_force(&bundle, None, &keys);
        let mut charged = 0;
        for request in [asks(PAYEE, 1, vec![]), asks(TUSD, 0, transfer(PAYEE, 1)), charge()] {
            let verdict = evaluate(&bundle, &request, now());
            let own = windows_in_force(&bundle, Some(&request.principal), &keys);
            for charge in &verdict.charges {
                let listed = all.get(&charge.limit).unwrap_or_else(|| panic!("{}", charge.label));
                assert_eq!((&listed.label, listed.max), (&charge.label, charge.max));
                assert_eq!(own.get(&charge.limit), Some(listed), "one's own are among one's own");
                charged += 1;
            }
        }
        assert!(charged >= 10, "{charged}");
        // Nothing is listed for a key that no grant lets sign.
        let other = keys[1].id.to_string();
        assert!(all.values().all(|window| window.instance != other && window.instance != "other"));
    }

    #[test]
    fn of_two_windows_of_one_counter_the_tighter_one_is_listed() {
        let wide = r#"{ span = "24h", max = "9", scope = "group" }"#;
        let tight = r#"{ span = "24h", max = "2", scope = "key" }"#;
        let keys = [key(7, None, STRANGER)];
        for windows in [[wide, tight], [tight, wide]] {
            let windows = format!("[{}]", windows.join(", "));
            let named = native_grant("named", "1", &windows)
                .replace("\"payments\"", &format!("\"{STRANGER}\""));
            let all = windows_in_force(&bundle(&[named]), None, &keys);
            let max: Vec<Amount> = all.values().map(|window| window.max).collect();
            assert_eq!(max, [Amount::from(2_000_000_000_000_000_000_u128)]);
        }
    }

    #[test]
    fn another_principal_sees_none_of_it() {
        let bundle = bundle(&[native_grant("native", "1", ALL_SCOPES)]);
        let keys = [key(7, Some("payments"), STRANGER)];
        assert_eq!(windows_in_force(&bundle, None, &keys).len(), 3);
        for (iss, sub) in [("dev", "svc:other"), ("other", "svc:payouts")] {
            let only = Principal { iss: iss.to_owned(), sub: sub.to_owned() };
            assert!(windows_in_force(&bundle, Some(&only), &keys).is_empty());
        }
    }
}
