//! Which grants may concern a request, found without trying each: by principal, chain, action, what it acts
//! on, and destination. It is made when the bundle is loaded; a grant that is found still has to match.

use super::grant::{Action, Destinations, Grant, Holds, Rules};
use crate::core::id::ChainName;
use crate::core::policy::effect::Effect;
use alloy::primitives::Address;
use std::collections::HashMap;

/// A grant by its place in the order of ids.
pub type GrantNumber = usize;

/// All grants by whom and what they are for.
#[derive(Clone, Debug, Default)]
pub struct GrantIndex {
    by_sub: HashMap<String, OfPrincipal>,
}

/// The grants of one principal.
#[derive(Clone, Debug, Default)]
struct OfPrincipal {
    messages: Vec<GrantNumber>,
    chains: HashMap<ChainName, OnChain>,
}

/// The grants of one principal on one chain.
#[derive(Clone, Debug, Default)]
struct OnChain {
    by_action: HashMap<Key, Vec<GrantNumber>>,
    /// Whose windows count native spend, and so the fee of whatever is sent.
    native_windows: Vec<GrantNumber>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    kind: Kind,
    /// Asset, contract, or contract and function; empty where the action acts on nothing that has a name.
    subject: String,
    /// `None` for grants of any destination, and where there is none.
    to: Option<Address>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Native,
    Token,
    TokenApproval,
    Nft,
    NftApproval,
    Call,
    Admin,
    Deploy,
    Delegate,
    Opaque,
    Typed,
}

impl GrantIndex {
    /// Indexes grants, which stay in this order.
    #[must_use]
    pub fn of(grants: &[Grant]) -> Self {
        let mut index = Self::default();
        for (number, grant) in grants.iter().enumerate() {
            for sub in &grant.principals {
                index.by_sub.entry(sub.clone()).or_default().add(number, grant);
            }
        }
        index
    }

    /// The grants of a principal whose action may match this effect, in their order.
    #[must_use]
    pub fn matching(
        &self,
        sub: &str,
        chain: Option<&ChainName>,
        effect: &Effect,
    ) -> Vec<GrantNumber> {
        let Some(own) = self.by_sub.get(sub) else {
            return Vec::new();
        };
        if let Effect::TextMessage { .. } = effect {
            return own.messages.clone();
        }
        let Some(on_chain) = chain.and_then(|chain| own.chains.get(chain)) else {
            return Vec::new();
        };
        let Some(mut key) = key_of(effect) else {
            return Vec::new();
        };
        let mut found = on_chain.by_action.get(&key).cloned().unwrap_or_default();
        if key.to.take().is_some() {
            found.extend(on_chain.by_action.get(&key).into_iter().flatten());
            found.sort_unstable();
        }
        found
    }

    /// The grants of a principal whose windows count native spend on a chain, in their order.
    #[must_use]
    pub fn native_windows(&self, sub: &str, chain: &ChainName) -> &[GrantNumber] {
        let own = self.by_sub.get(sub).and_then(|own| own.chains.get(chain));
        own.map_or(&[], |on_chain| &on_chain.native_windows)
    }
}

impl OfPrincipal {
    fn add(&mut self, number: GrantNumber, grant: &Grant) {
        let rules = match &grant.rules {
            Rules::Message { .. } => return self.messages.push(number),
            Rules::OnChain(rules) => rules,
        };
        for (chain, rule) in rules {
            let on_chain = self.chains.entry(chain.clone()).or_default();
            for key in keys_of(&rule.action) {
                on_chain.by_action.entry(key).or_default().push(number);
            }
            let mut windows = rule.windows.iter();
            if matches!(rule.action, Action::NativeTransfer { .. })
                && windows.any(|window| matches!(window.holds, Holds::Amount(_)))
            {
                on_chain.native_windows.push(number);
            }
        }
    }
}

fn function_key(contract: &str, function: &str) -> String {
    // No name of a contract has a space.
    format!("{contract} {function}")
}

/// Where a grant of this action is found.
fn keys_of(action: &Action) -> Vec<Key> {
    let one = |kind, subject: &str, to| vec![Key { kind, subject: subject.to_owned(), to }];
    let each = |kind, subject: &str, to: &Destinations| match to {
        Destinations::Any => one(kind, subject, None),
        Destinations::These { addresses, .. } => addresses
            .iter()
            .map(|to| Key { kind, subject: subject.to_owned(), to: Some(*to) })
            .collect(),
    };
    match action {
        Action::NativeTransfer { to, .. } => each(Kind::Native, "", to),
        Action::TokenTransfer { asset, to, .. } => each(Kind::Token, asset, to),
        Action::TokenApprove { asset, to, .. } => each(Kind::TokenApproval, asset, to),
        Action::NftTransfer { asset, to, .. } => each(Kind::Nft, asset, to),
        Action::NftApprove { asset, to, .. } => each(Kind::NftApproval, asset, to),
        Action::Call(rule) => {
            one(Kind::Call, &function_key(&rule.contract, &rule.function.signature), None)
        }
        Action::Admin(rule) => {
            one(Kind::Admin, &function_key(&rule.contract, &rule.function.signature), None)
        }
        Action::Deploy { .. } => one(Kind::Deploy, "", None),
        Action::Delegate { to } => each(Kind::Delegate, "", to),
        Action::Opaque { address, .. } => one(Kind::Opaque, "", Some(*address)),
        Action::TypedData(rule) => one(Kind::Typed, "", Some(rule.verifying_contract)),
    }
}

/// Where the grants for an effect are found, and without `to`, those of any destination; `None` for what no
/// grant can match.
fn key_of(effect: &Effect) -> Option<Key> {
    let (kind, subject, to) = match effect {
        Effect::NativeOut { to, .. } => (Kind::Native, String::new(), Some(*to)),
        Effect::TokenOut { asset, to, .. } => (Kind::Token, asset.clone(), Some(*to)),
        Effect::Approve { asset, spender, .. } => {
            (Kind::TokenApproval, asset.clone(), Some(*spender))
        }
        Effect::NftOut { asset, to, .. } => (Kind::Nft, asset.clone(), Some(*to)),
        Effect::OperatorApproval { asset, operator, .. } => {
            (Kind::NftApproval, asset.clone(), Some(*operator))
        }
        Effect::Call(call) => (Kind::Call, function_key(&call.contract, &call.function), None),
        Effect::AdminOp(call) => (Kind::Admin, function_key(&call.contract, &call.function), None),
        Effect::Create { .. } => (Kind::Deploy, String::new(), None),
        Effect::Delegate { to, .. } => (Kind::Delegate, String::new(), Some(*to)),
        Effect::Opaque { call: Some(call), .. } => (Kind::Opaque, String::new(), Some(call.to)),
        Effect::TypedMessage { verifying_contract, .. } => {
            (Kind::Typed, String::new(), Some(*verifying_contract))
        }
        Effect::FeeMax { .. } | Effect::TextMessage { .. } | Effect::Opaque { call: None, .. } => {
            return None;
        }
    };
    Some(Key { kind, subject, to })
}
