//! The windows of a bundle, each for everybody whose spending it counts: what a listing of limits shows,
//! touched or not.

use super::windows::{Slot, Whose, holds, unit_of};
use crate::core::access::Role;
use crate::core::amount::Amount;
use crate::core::id::{GrantId, GroupName, KeyId};
use crate::core::key::OperatorKey;
use crate::core::policy::bundle::grant::{
    Action, ChainRule, Grant, Holds, Rules, Scope, SignerRef, Window,
};
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
    /// The grant whose window it is.
    pub grant: GrantId,
    /// What is counted: `value`, `fee` or `count`.
    pub counts: &'static str,
    /// In which unit: `native:CHAIN`, `asset:CHAIN:ADDRESS` or `count`.
    pub unit: String,
    /// Whose spending is counted together: `group`, `key` or `principal`.
    pub scope: &'static str,
    /// Which group, key (its id) or principal.
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
    for grant in bundle.rules() {
        let by_key = lines(grant).iter().any(|line| line.window.scope == Scope::Key);
        for signer in &grant.signers {
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

/// All windows by counter, for these keys. With `only`, those of the grants that name this principal,
/// and of windows that count each principal alone, its own.
#[must_use]
pub fn windows_in_force(
    bundle: &Bundle,
    only: Option<&Principal>,
    keys: &[OperatorKey],
) -> BTreeMap<LimitId, WindowInForce> {
    let mut found = BTreeMap::new();
    for grant in bundle.rules() {
        let principals = principals(bundle, grant, only);
        for line in lines(grant) {
            // Whoever is not named by the scope does not change the counter.
            for whose in holders(grant, line.window.scope, &principals, keys) {
                let slot = Slot { grant: &grant.id, whose };
                let counter = slot.counter(line.window, line.counts, &line.unit);
                found.insert(
                    counter.limit,
                    WindowInForce {
                        limit: counter.limit,
                        label: counter.label,
                        grant: grant.id.clone(),
                        counts: line.counts,
                        unit: line.unit.clone(),
                        scope: counter.scope,
                        instance: counter.instance,
                        max: holds(line.window),
                        period: line.window.period,
                    },
                );
            }
        }
    }
    found
}

/// Who may use the grant, as far as its bundle says.
fn principals(bundle: &Bundle, grant: &Grant, only: Option<&Principal>) -> Vec<Principal> {
    let issuers = bundle.issuers();
    let mut named = Vec::new();
    for sub in &grant.principals {
        for iss in &issuers {
            let principal = Principal { iss: (*iss).to_owned(), sub: sub.clone() };
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
    grant: &'a Grant,
    scope: Scope,
    principals: &'a [Principal],
    keys: &'a [OperatorKey],
) -> Vec<Whose<'a>> {
    let Some(anybody) = principals.first() else {
        return Vec::new();
    };
    let no_key = KeyId::new(Uuid::nil());
    let of = |group: Option<&'a GroupName>, key| Whose { group, key, principal: anybody };
    match scope {
        Scope::Principal => principals
            .iter()
            .map(|principal| Whose { group: None, key: no_key, principal })
            .collect(),
        Scope::Group => {
            let groups = grant.signers.iter().filter_map(|signer| match signer {
                SignerRef::Group(group) => Some(of(Some(group), no_key)),
                SignerRef::Address(_) | SignerRef::Key(_) => None,
            });
            let named = keys.iter().filter(|key| names(grant, key));
            groups.chain(named.map(|key| of(key.group.as_ref(), key.id))).collect()
        }
        // Whose destinations, and what a chain has in all, is known only with a request.
        Scope::Destination | Scope::Chain => Vec::new(),
        Scope::Key => {
            let signing = keys.iter().filter(|key| {
                let group = key.group.clone().map(SignerRef::Group);
                group.is_some_and(|group| grant.signers.contains(&group)) || names(grant, key)
            });
            signing.map(|key| of(key.group.as_ref(), key.id)).collect()
        }
    }
}

/// Whether the grant names this very key.
fn names(grant: &Grant, key: &OperatorKey) -> bool {
    grant.signers.contains(&SignerRef::Key(key.id))
        || grant.signers.contains(&SignerRef::Address(key.address))
}

/// One window of a grant with what it counts.
struct Line<'a> {
    window: &'a Window,
    counts: &'static str,
    unit: String,
}

fn lines(grant: &Grant) -> Vec<Line<'_>> {
    let count = |window| Line { window, counts: "count", unit: "count".to_owned() };
    match &grant.rules {
        Rules::Message { windows, .. } => windows.iter().map(count).collect(),
        Rules::OnChain(rules) => {
            let mut found = Vec::new();
            for (chain, rule) in rules {
                for window in &rule.windows {
                    match window.holds {
                        Holds::Count(_) => found.push(count(window)),
                        Holds::Amount(_) if matches!(rule.action, Action::TypedData(_)) => {}
                        Holds::Amount(_) => {
                            let unit = unit_of(&rule.action, chain);
                            found.push(Line { window, counts: "value", unit });
                        }
                    }
                }
                let fees = fee_windows(rule).map(|window| {
                    let unit = format!("native:{chain}");
                    Line { window, counts: "fee", unit }
                });
                found.extend(fees);
            }
            found
        }
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
