//! Which grants may concern a request, found without trying each: by principal, chain, action, what it acts
//! on, and destination; and which do not, and why, as sets. It is made when the bundle is loaded.

use super::grant::{Action, ChainRule, Destinations, Grant, Holds, Mode, Rules, SignerRef};
use super::grant_set::GrantSet;
use crate::core::amount::Amount;
use crate::core::id::ChainName;
use crate::core::intent::Fees;
use crate::core::policy::PolicyRequest;
use crate::core::policy::effect::Effect;
use crate::core::time::Timestamp;
use alloy::primitives::Address;
use std::collections::HashMap;
use std::sync::Arc;

/// A grant by its place in the order of ids.
pub type GrantNumber = usize;

/// All grants by whom and what they are for.
#[derive(Clone, Debug, Default)]
pub struct GrantIndex {
    /// The grants that decide.
    enforced: GrantSet,
    /// The grants for messages, which belong to no chain.
    messages: GrantSet,
    by_sub: HashMap<String, OfPrincipal>,
    by_signer: HashMap<SignerRef, GrantSet>,
    by_chain: HashMap<ChainName, OfChain>,
}

/// The grants of one principal.
#[derive(Clone, Debug, Default)]
struct OfPrincipal {
    grants: GrantSet,
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

/// The grants of one chain, whoever they are for.
#[derive(Clone, Debug, Default)]
pub struct OfChain {
    grants: GrantSet,
    by_kind: HashMap<Kind, GrantSet>,
    /// What each grant says there, by its number.
    rows: Vec<Option<Row>>,
    asks_first_use: bool,
}

/// What a grant says on one chain.
#[derive(Clone, Debug)]
pub struct Row {
    /// The rule.
    pub rule: Arc<ChainRule>,
    /// What is asked of it first.
    pub terms: Terms,
}

/// What is asked of every grant that matches, taken out of the grant and its rule. There may be thousands, and to
/// fetch each from where it was read costs more than to decide about it: these lie side by side.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The first moment at which the grant allows nothing any more.
    pub expires_at: Timestamp,
    /// Whether it has hours.
    pub has_hours: bool,
    /// Whether it decides.
    pub mode: Mode,
    /// How much all effects that match may move together; `None` where more is said about it than one number, or
    /// nothing.
    pub most: Option<Amount>,
    /// The highest fees and the gas limit; `None` where nothing is sent.
    pub fee: Option<(Fees, u64)>,
    /// Whether it covers every effect that matches, within those bounds.
    pub is_plain: bool,
    /// Whether it is for transactions, and says nothing beside when, how much and at which fee.
    pub is_simple: bool,
    /// Whether it has windows, of the action or of the fee.
    pub has_windows: bool,
    /// Whether it has an approval or a delay.
    pub has_needs: bool,
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
            if grant.mode == Mode::Enforce {
                index.enforced.insert(number);
            }
            for sub in &grant.principals {
                index.by_sub.entry(sub.clone()).or_default().add(number, grant);
            }
            for signer in &grant.signers {
                index.by_signer.entry(signer.clone()).or_default().insert(number);
            }
            match &grant.rules {
                Rules::Message { .. } => index.messages.insert(number),
                Rules::OnChain(rules) => {
                    for (chain, rule) in rules {
                        let on_chain = index.by_chain.entry(chain.clone()).or_default();
                        on_chain.add(number, grant, rule);
                    }
                }
            }
        }
        index
    }

    /// The grants that decide.
    #[must_use]
    pub const fn enforced(&self) -> &GrantSet {
        &self.enforced
    }

    /// The grants that name a principal.
    #[must_use]
    pub fn of_principal(&self, sub: &str) -> GrantSet {
        self.by_sub.get(sub).map(|own| own.grants.clone()).unwrap_or_default()
    }

    /// The grants under which the request's key may be used: by its group, its address or its id.
    #[must_use]
    pub fn signed_by(&self, request: &PolicyRequest) -> GrantSet {
        let group = request.group.clone().map(SignerRef::Group);
        let own = [SignerRef::Address(request.address), SignerRef::Key(request.key)];
        let mut found = GrantSet::default();
        for signer in group.iter().chain(&own) {
            if let Some(grants) = self.by_signer.get(signer) {
                found.add(grants);
            }
        }
        found
    }

    /// The grants that concern what belongs to this chain, or to none.
    #[must_use]
    pub fn concerning(&self, chain: Option<&ChainName>) -> GrantSet {
        let mut found = self.messages.clone();
        if let Some(on_chain) = chain.and_then(|chain| self.chain(chain)) {
            found.add(&on_chain.grants);
        }
        found
    }

    /// The grants whose action is of the kind of this effect, whatever it acts on.
    #[must_use]
    pub fn of_kind(&self, chain: Option<&ChainName>, effect: &Effect) -> GrantSet {
        if let Effect::TextMessage { .. } = effect {
            return self.messages.clone();
        }
        let on_chain = chain.and_then(|chain| self.chain(chain));
        let found = on_chain.zip(kind_of(effect)).and_then(|(on, kind)| on.by_kind.get(&kind));
        found.cloned().unwrap_or_default()
    }

    /// The grants of a principal whose action may match this effect: those that name its destination, and those
    /// of any, each in their order.
    #[must_use]
    pub fn matching(
        &self,
        sub: &str,
        chain: Option<&ChainName>,
        effect: &Effect,
    ) -> [&[GrantNumber]; 2] {
        let Some(own) = self.by_sub.get(sub) else {
            return [&[]; 2];
        };
        if let Effect::TextMessage { .. } = effect {
            return [&own.messages, &[]];
        }
        let Some(on_chain) = chain.and_then(|chain| own.chains.get(chain)) else {
            return [&[]; 2];
        };
        let Some(mut key) = key_of(effect) else {
            return [&[]; 2];
        };
        let at = |key: &Key| on_chain.by_action.get(key).map_or(&[][..], Vec::as_slice);
        let named = at(&key);
        [named, if key.to.take().is_some() { at(&key) } else { &[] }]
    }

    /// The grants of a principal whose windows count native spend on a chain, in their order.
    #[must_use]
    pub fn native_windows(&self, sub: &str, chain: &ChainName) -> &[GrantNumber] {
        let own = self.by_sub.get(sub).and_then(|own| own.chains.get(chain));
        own.map_or(&[], |on_chain| &on_chain.native_windows)
    }

    /// What grants say on a chain.
    #[must_use]
    pub fn chain(&self, chain: &ChainName) -> Option<&OfChain> {
        self.by_chain.get(chain)
    }
}

impl OfChain {
    /// What a grant says there, if it names the chain.
    #[must_use]
    pub fn row(&self, number: GrantNumber) -> Option<&Row> {
        self.rows.get(number)?.as_ref()
    }

    /// Whether a grant there lets the first use of a destination wait.
    #[must_use]
    pub const fn asks_first_use(&self) -> bool {
        self.asks_first_use
    }

    fn add(&mut self, number: GrantNumber, grant: &Grant, rule: &Arc<ChainRule>) {
        self.grants.insert(number);
        self.by_kind.entry(kind_of_action(&rule.action)).or_default().insert(number);
        self.asks_first_use |= rule.delay.as_ref().is_some_and(|it| it.first_use_ms.is_some());
        if self.rows.len() <= number {
            self.rows.resize(number.saturating_add(1), None);
        }
        if let Some(row) = self.rows.get_mut(number) {
            *row = Some(Row { rule: Arc::clone(rule), terms: Terms::of(grant, rule) });
        }
    }
}

impl Terms {
    fn of(grant: &Grant, rule: &ChainRule) -> Self {
        let fee_windows = rule.fee.as_ref().is_some_and(|fee| !fee.windows.is_empty());
        // All that the index finds, of the signing account's own, is what the selectors match.
        let is_found_exactly = rule.through.is_empty()
            && !matches!(rule.action, Action::Opaque { .. } | Action::TypedData(_));
        let has_windows = fee_windows || !rule.windows.is_empty();
        let has_needs = rule.approval.is_some() || rule.delay.is_some();
        let is_plain = is_plain(&rule.action);
        let follows_or_waits = has_windows || has_needs || grant.hours.is_some();
        Self {
            expires_at: grant.expires_at,
            has_hours: grant.hours.is_some(),
            mode: grant.mode,
            most: most(&rule.action),
            fee: rule.fee.as_ref().map(|fee| (fee.max, fee.max_gas)),
            is_plain,
            is_simple: grant.mode == Mode::Enforce
                && is_found_exactly
                && is_plain
                && !follows_or_waits
                && !matches!(rule.action, Action::Delegate { .. }),
            has_windows,
            has_needs,
        }
    }
}

const fn most(action: &Action) -> Option<Amount> {
    match action {
        Action::NativeTransfer { per_tx, .. }
        | Action::TokenTransfer { per_tx, .. }
        | Action::NftTransfer { per_tx, .. } => Some(*per_tx),
        Action::Call(rule) | Action::Admin(rule) => Some(rule.value_max),
        Action::Deploy { value_max, .. } | Action::Opaque { value_max, .. } => Some(*value_max),
        Action::TokenApprove { .. }
        | Action::NftApprove { .. }
        | Action::Delegate { .. }
        | Action::TypedData(_) => None,
    }
}

fn is_plain(action: &Action) -> bool {
    match action {
        Action::NativeTransfer { .. } | Action::TokenTransfer { .. } | Action::Delegate { .. } => {
            true
        }
        Action::NftTransfer { ids, .. } | Action::NftApprove { ids, .. } => ids.is_none(),
        Action::Call(rule) | Action::Admin(rule) => rule.args.is_empty() && rule.event.is_none(),
        Action::Opaque { code_hash, .. } => code_hash.is_none(),
        Action::TokenApprove { .. } | Action::Deploy { .. } | Action::TypedData(_) => false,
    }
}

impl OfPrincipal {
    fn add(&mut self, number: GrantNumber, grant: &Grant) {
        self.grants.insert(number);
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

/// The kind of an action.
const fn kind_of_action(action: &Action) -> Kind {
    match action {
        Action::NativeTransfer { .. } => Kind::Native,
        Action::TokenTransfer { .. } => Kind::Token,
        Action::TokenApprove { .. } => Kind::TokenApproval,
        Action::NftTransfer { .. } => Kind::Nft,
        Action::NftApprove { .. } => Kind::NftApproval,
        Action::Call(_) => Kind::Call,
        Action::Admin(_) => Kind::Admin,
        Action::Deploy { .. } => Kind::Deploy,
        Action::Delegate { .. } => Kind::Delegate,
        Action::Opaque { .. } => Kind::Opaque,
        Action::TypedData(_) => Kind::Typed,
    }
}

/// The kind of actions that an effect is of; `None` for what no grant on a chain can match.
const fn kind_of(effect: &Effect) -> Option<Kind> {
    Some(match effect {
        Effect::NativeOut { .. } => Kind::Native,
        Effect::TokenOut { .. } => Kind::Token,
        Effect::Approve { .. } => Kind::TokenApproval,
        Effect::NftOut { .. } => Kind::Nft,
        Effect::OperatorApproval { .. } => Kind::NftApproval,
        Effect::Call(_) => Kind::Call,
        Effect::AdminOp(_) => Kind::Admin,
        Effect::Create { .. } => Kind::Deploy,
        Effect::Delegate { .. } => Kind::Delegate,
        Effect::Opaque { call: Some(_), .. } => Kind::Opaque,
        Effect::TypedMessage { .. } => Kind::Typed,
        Effect::FeeMax { .. } | Effect::TextMessage { .. } | Effect::Opaque { call: None, .. } => {
            return None;
        }
    })
}

fn function_key(contract: &str, function: &str) -> String {
    // No name of a contract has a space.
    format!("{contract} {function}")
}

/// Where a grant of this action is found.
fn keys_of(action: &Action) -> Vec<Key> {
    let kind = kind_of_action(action);
    let one = |subject: &str, to| vec![Key { kind, subject: subject.to_owned(), to }];
    let each = |subject: &str, to: &Destinations| match to {
        Destinations::Any => one(subject, None),
        Destinations::These { addresses, .. } => addresses
            .iter()
            .map(|to| Key { kind, subject: subject.to_owned(), to: Some(*to) })
            .collect(),
    };
    match action {
        Action::NativeTransfer { to, .. } | Action::Delegate { to } => each("", to),
        Action::TokenTransfer { asset, to, .. }
        | Action::TokenApprove { asset, to, .. }
        | Action::NftTransfer { asset, to, .. }
        | Action::NftApprove { asset, to, .. } => each(asset, to),
        Action::Call(rule) | Action::Admin(rule) => {
            one(&function_key(&rule.contract, &rule.function.signature), None)
        }
        Action::Deploy { .. } => one("", None),
        Action::Opaque { address, .. } => one("", Some(*address)),
        Action::TypedData(rule) => one("", Some(rule.verifying_contract)),
    }
}

/// Where the grants for an effect are found, and without `to`, those of any destination; `None` for what no
/// grant can match.
fn key_of(effect: &Effect) -> Option<Key> {
    let kind = kind_of(effect)?;
    let (subject, to) = match effect {
        Effect::NativeOut { to, .. } | Effect::Delegate { to, .. } => (String::new(), Some(*to)),
        Effect::TokenOut { asset, to, .. } | Effect::NftOut { asset, to, .. } => {
            (asset.clone(), Some(*to))
        }
        Effect::Approve { asset, spender: to, .. }
        | Effect::OperatorApproval { asset, operator: to, .. } => (asset.clone(), Some(*to)),
        Effect::Call(call) | Effect::AdminOp(call) => {
            (function_key(&call.contract, &call.function), None)
        }
        Effect::Opaque { call, .. } => (String::new(), call.as_ref().map(|call| call.to)),
        Effect::TypedMessage { verifying_contract, .. } => {
            (String::new(), Some(*verifying_contract))
        }
        Effect::Create { .. } | Effect::FeeMax { .. } | Effect::TextMessage { .. } => {
            (String::new(), None)
        }
    };
    Some(Key { kind, subject, to })
}
