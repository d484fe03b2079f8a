//! Guardrails from what is written to what is checked: quorum groups, denies, limits, and how the bundle
//! itself may be changed.

use super::grant::Destinations;
use super::guardrail::{ChangeRule, DenyRule, LimitRule, LimitUnit};
use super::read_grant::read_signers;
use super::read_rule::scaled;
use super::read_window::{WindowRules, read_span, read_windows};
use super::registry::{Standard, chain_name, read_addresses};
use super::syntax::{BundleFile, RawChange, RawDeny, RawLimit, RawQuorum, RawTo};
use super::{At, Bundle, BundleError, check_name, line_of};
use crate::core::access::Role;
use crate::core::id::{ChainName, GrantId};
use std::collections::{BTreeMap, BTreeSet};

/// A quorum names no more groups than this: whether there are enough people is asked of every choice of
/// them.
const GROUPS_MAX: usize = 8;

/// The actions that a `[[deny]]` can name, as effects are named in reasons.
const ACTIONS: [&str; 12] = [
    "native.transfer",
    "erc20.transfer",
    "erc20.approve",
    "nft.transfer",
    "nft.approve",
    "call",
    "admin",
    "deploy",
    "delegate",
    "opaque",
    "typed_data",
    "message",
];

impl Bundle {
    /// Reads everything beside issuers and grants. The registry and the issuers must be there already.
    pub(super) fn read_guardrails(
        &mut self,
        head: &BundleFile,
        text: &str,
    ) -> Result<(), BundleError> {
        let at = |start: usize| At { file: "bundle.toml", line: line_of(text, start) };
        for raw in &head.quorum {
            let (name, members) = self
                .read_quorum(raw.get_ref())
                .map_err(|problem| at(raw.span().start).error(problem))?;
            self.guardrails.quorums.insert(name, members);
        }
        for raw in &head.deny {
            let id = &raw.get_ref().id;
            let deny = self
                .read_deny(raw.get_ref())
                .map_err(|problem| at(raw.span().start).error(format!("deny `{id}`: {problem}")))?;
            self.guardrails.denies.push(deny);
        }
        for raw in &head.limit {
            let id = &raw.get_ref().id;
            let limit = self.read_limit(raw.get_ref()).map_err(|problem| {
                at(raw.span().start).error(format!("limit `{id}`: {problem}"))
            })?;
            self.guardrails.limits.push(limit);
        }
        if let Some(raw) = &head.change {
            let change = self
                .read_change(raw.get_ref())
                .map_err(|problem| at(raw.span().start).error(format!("change: {problem}")))?;
            self.guardrails.change = Some(change);
        }
        self.guardrails.denies.sort_by(|a, b| a.id.cmp(&b.id));
        self.guardrails.limits.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(())
    }

    fn read_quorum(&self, raw: &RawQuorum) -> Result<(String, BTreeSet<String>), String> {
        let name = check_name("quorum", &raw.name)?;
        if self.guardrails.quorums.contains_key(&name) {
            return Err(format!("quorum `{name}` is there twice"));
        }
        let mut members = BTreeSet::new();
        for sub in &raw.members {
            let known = [Role::Approver, Role::PolicyAdmin];
            if sub.contains('*') || !known.into_iter().any(|role| self.vouched(role, sub)) {
                return Err(format!(
                    "quorum `{name}`: no issuer may vouch for `{sub}` as approver or policy_admin"
                ));
            }
            if !members.insert(sub.clone()) {
                return Err(format!("quorum `{name}`: `{sub}` is there twice"));
            }
        }
        if members.is_empty() {
            return Err(format!("quorum `{name}` has no members"));
        }
        Ok((name, members))
    }

    fn vouched(&self, role: Role, sub: &str) -> bool {
        self.issuers().iter().any(|iss| self.issuer_allows(iss, role, sub))
    }

    /// Whether a quorum can ever be met: its groups exist, all their members can have the role, and there
    /// are enough different people, whoever of the requesters asks.
    pub(super) fn check_quorum(
        &self,
        quorum: &BTreeMap<String, u32>,
        role: Role,
        requesters: &[String],
    ) -> Result<(), String> {
        if quorum.is_empty() {
            return Err("quorum is empty: it says how many of which group".to_owned());
        }
        if quorum.len() > GROUPS_MAX {
            return Err(format!("quorum has more than {GROUPS_MAX} groups"));
        }
        let mut groups = Vec::new();
        for (name, count) in quorum {
            let members = self.guardrails.quorums.get(name);
            let members = members.ok_or_else(|| format!("there is no quorum group `{name}`"))?;
            if *count == 0 {
                return Err(format!("quorum: 0 of `{name}` is nobody"));
            }
            if let Some(sub) = members.iter().find(|sub| !self.vouched(role, sub)) {
                return Err(format!("no issuer may vouch for `{sub}` of `{name}` as {role}"));
            }
            groups.push((members, usize::try_from(*count).unwrap_or(usize::MAX)));
        }
        if !enough(&groups, None) {
            return Err("the quorum asks for more people than its groups have".to_owned());
        }
        match requesters.iter().find(|sub| !enough(&groups, Some(sub))) {
            Some(sub) => Err(format!(
                "nobody approves what they asked for, and without `{sub}` the quorum has too few people"
            )),
            None => Ok(()),
        }
    }

    fn read_deny(&self, raw: &RawDeny) -> Result<DenyRule, String> {
        let id = self.read_id(&raw.id, &raw.reason)?;
        let chains = raw.chains.as_deref().map(|names| self.read_chains(names)).transpose()?;
        let rule = DenyRule {
            id,
            reason: raw.reason.clone(),
            principals: raw
                .principals
                .as_deref()
                .map(|subs| self.read_principals(subs))
                .transpose()?,
            signers: raw.signers.as_deref().map(read_signers).transpose()?,
            actions: raw.actions.as_deref().map(read_actions).transpose()?,
            to: raw.to.as_ref().map(|to| self.read_deny_to(to, chains.as_ref())).transpose()?,
            chains,
        };
        let empty = rule.principals.is_none()
            && rule.signers.is_none()
            && rule.chains.is_none()
            && rule.actions.is_none()
            && rule.to.is_none();
        if empty {
            return Err("say at least one of principals, signers, chains, actions, to".to_owned());
        }
        can_match(&rule)?;
        Ok(rule)
    }

    /// An id that nothing else in the bundle has, beside a reason.
    fn read_id(&self, id: &str, reason: &str) -> Result<GrantId, String> {
        let id = GrantId::new(check_name("id", id)?);
        if reason.trim().is_empty() {
            return Err("reason is empty".to_owned());
        }
        if self.guardrail_ids().any(|other| *other == id) {
            return Err("this id is there twice".to_owned());
        }
        Ok(id)
    }

    /// The ids of all guardrails so far.
    pub(super) fn guardrail_ids(&self) -> impl Iterator<Item = &GrantId> {
        let denies = self.guardrails.denies.iter().map(|deny| &deny.id);
        denies.chain(self.guardrails.limits.iter().map(|limit| &limit.id))
    }

    fn read_chains(&self, names: &[String]) -> Result<BTreeSet<ChainName>, String> {
        let mut chains = BTreeSet::new();
        for name in names {
            if !chains.insert(chain_name(name)?) {
                return Err(format!("chains: `{name}` is there twice"));
            }
        }
        if chains.is_empty() {
            return Err("chains is empty: leave it out for all of them".to_owned());
        }
        Ok(chains)
    }

    /// Destinations on each chain: those that are named, or all that the registry knows.
    fn read_deny_to(
        &self,
        raw: &RawTo,
        chains: Option<&BTreeSet<ChainName>>,
    ) -> Result<BTreeMap<ChainName, Destinations>, String> {
        let known: BTreeSet<&ChainName> = match chains {
            Some(chains) => chains.iter().collect(),
            None => self.registry.chains().collect(),
        };
        let on_each = |to: Destinations| known.iter().map(|c| ((*c).clone(), to.clone())).collect();
        let found: BTreeMap<ChainName, Destinations> = match (&raw.book, &raw.address, raw.any) {
            (Some(name), None, None) => {
                let mut found = BTreeMap::new();
                for chain in &known {
                    match self.registry.list(chain, name).cloned() {
                        Some(addresses) => {
                            let label = format!("book list {name}");
                            let to = Destinations::These { label, addresses };
                            found.insert((*chain).clone(), to);
                        }
                        None if chains.is_none() => {}
                        None => return Err(format!("the book has no list `{name}` on `{chain}`")),
                    }
                }
                found
            }
            (None, Some(texts), None) if !known.is_empty() => on_each(Destinations::These {
                label: texts.join(", "),
                addresses: read_addresses("to.address", texts)?,
            }),
            (None, None, Some(true)) if !known.is_empty() => on_each(Destinations::Any),
            (None, Some(_), None) | (None, None, Some(true)) => {
                return Err("to: say on which `chains`".to_owned());
            }
            _ => return Err("to: say exactly one of book, address, any = true".to_owned()),
        };
        if found.is_empty() {
            let name = raw.book.as_deref().unwrap_or_default();
            return Err(format!("the book has no list `{name}` on any chain"));
        }
        Ok(found)
    }

    fn read_limit(&self, raw: &RawLimit) -> Result<LimitRule, String> {
        let id = self.read_id(&raw.id, &raw.reason)?;
        let chain = chain_name(&raw.chain)?;
        let (unit, decimals) = match &raw.asset {
            None => (LimitUnit::Native, self.registry.native_decimals(&chain)),
            Some(name) => {
                let asset = self
                    .registry
                    .asset(&chain, name)
                    .ok_or_else(|| format!("assets.toml has no asset `{name}` on `{chain}`"))?;
                if asset.standard != Standard::Erc20 {
                    return Err(format!("`{name}` is not an erc20 asset: it has no amounts"));
                }
                let unit = LimitUnit::Asset { name: asset.name.clone(), address: asset.address };
                (unit, asset.decimals)
            }
        };
        let per_tx =
            raw.per_tx.as_deref().map(|text| scaled("per_tx", text, decimals)).transpose()?;
        let rules = WindowRules { decimals: Some(decimals), destinations: true, on_chain: true };
        let windows = read_windows(raw.windows.as_deref(), rules)?;
        if per_tx.is_none() && windows.is_empty() {
            return Err("say per_tx, windows, or both".to_owned());
        }
        Ok(LimitRule { id, reason: raw.reason.clone(), chain, unit, per_tx, windows })
    }

    fn read_change(&self, raw: &RawChange) -> Result<ChangeRule, String> {
        let members = raw.quorum.keys().filter_map(|group| self.guardrails.quorums.get(group));
        let members: BTreeSet<&String> = members.flatten().collect();
        // Each of them may be the author, whose own word does not count: nobody must be needed.
        let authors: Vec<String> = members.into_iter().cloned().collect();
        self.check_quorum(&raw.quorum, Role::PolicyAdmin, &authors)?;
        let delay_ms = match raw.delay.as_deref() {
            None => 0,
            Some(text) => read_span(text).map_err(|problem| format!("delay {problem}"))?,
        };
        Ok(ChangeRule { quorum: raw.quorum.clone(), delay_ms })
    }
}

/// Whether every group can have its number of people, each person counted for one group only (Hall's
/// theorem: any choice of groups has together at least as many people as it needs).
fn enough(groups: &[(&BTreeSet<String>, usize)], without: Option<&str>) -> bool {
    let choices = 1_usize.checked_shl(u32::try_from(groups.len()).unwrap_or(u32::MAX)).unwrap_or(0);
    (1..choices).all(|choice| {
        let chosen = groups.iter().enumerate().filter(|(bit, _)| {
            let bit = u32::try_from(*bit).unwrap_or(u32::MAX);
            choice.checked_shr(bit).is_some_and(|rest| rest & 1 == 1)
        });
        let (mut people, mut needed) = (BTreeSet::new(), 0_usize);
        for (_, (members, count)) in chosen {
            people.extend(members.iter().filter(|sub| Some(sub.as_str()) != without));
            needed = needed.saturating_add(*count);
        }
        people.len() >= needed
    })
}

/// A deny that names what an action never has would deny nothing of it, and look as if it did.
fn can_match(rule: &DenyRule) -> Result<(), String> {
    let named = |action: &str| rule.actions.as_ref().is_some_and(|names| names.contains(action));
    if rule.to.is_some() && named("deploy") {
        return Err("to: `deploy` has no destination".to_owned());
    }
    if (rule.to.is_some() || rule.chains.is_some()) && named("message") {
        return Err("actions: `message` belongs to no chain, and has no destination".to_owned());
    }
    Ok(())
}

fn read_actions(names: &[String]) -> Result<BTreeSet<String>, String> {
    let mut actions = BTreeSet::new();
    for name in names {
        if !ACTIONS.contains(&name.as_str()) {
            let known = ACTIONS.join(", ");
            return Err(format!("actions: `{name}` is none of {known}"));
        }
        if !actions.insert(name.clone()) {
            return Err(format!("actions: `{name}` is there twice"));
        }
    }
    if actions.is_empty() {
        return Err("actions is empty: leave it out for all of them".to_owned());
    }
    Ok(actions)
}
