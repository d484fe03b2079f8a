//! Which grants concern which effects of a request: the selectors. They are who asks, who signs, the chain,
//! the action with what it acts on, the destination, and whose assets move. The grant's windows, approvals
//! and delays apply to all that they match.

use crate::core::evm::decode::typed_data::ReadTypedData;
use crate::core::id::ChainName;
use crate::core::policy::bundle::grant::{
    Action, CallRule, ChainRule, Destinations, Grant, Mode, Rules, SignerRef, TextRule, Window,
};
use crate::core::policy::bundle::index::{GrantNumber, OfChain, Terms};
use crate::core::policy::effect::{CallEffect, Effect};
use crate::core::policy::{Bundle, PolicyRequest, Reason};
use crate::core::time::Timestamp;
use alloy::primitives::Address;
use std::collections::BTreeSet;
use std::ops::Deref;

/// A request with what was read from it.
#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    pub bundle: &'a Bundle,
    pub request: &'a PolicyRequest,
    pub effects: &'a [Effect],
    pub now: Timestamp,
    /// The typed data's own fields.
    pub typed: Option<&'a ReadTypedData>,
    /// Whether failures are put into words. Most are not shown, and words cost more than the rest.
    pub tell: bool,
}

/// What a grant says about this request: of messages, or of its chain.
#[derive(Clone, Copy)]
pub(super) enum Rule<'a> {
    Message { text: &'a TextRule, windows: &'a [Window] },
    Chain { name: &'a ChainName, rule: &'a ChainRule, terms: &'a Terms },
}

/// A grant whose selectors match effects of the request, or whose windows count its fee.
pub(super) struct Match<'a> {
    pub grant: &'a Grant,
    pub number: GrantNumber,
    pub rule: Rule<'a>,
    /// Which effects; empty where only the fee concerns it.
    pub effects: Places,
}

/// Effects by their places, in order. Nearly every grant matches one at most, which is not worth an allocation.
pub(super) enum Places {
    None,
    One(usize),
    Many(Vec<usize>),
}

impl Deref for Places {
    type Target = [usize];

    fn deref(&self) -> &[usize] {
        match self {
            Self::None => &[],
            Self::One(place) => std::slice::from_ref(place),
            Self::Many(places) => places,
        }
    }
}

impl FromIterator<usize> for Places {
    fn from_iter<I: IntoIterator<Item = usize>>(places: I) -> Self {
        let mut places = places.into_iter();
        match (places.next(), places.next()) {
            (None, _) => Self::None,
            (Some(one), None) => Self::One(one),
            (Some(one), Some(two)) => Self::Many([one, two].into_iter().chain(places).collect()),
        }
    }
}

/// Why something failed: field, expected, actual.
pub(super) type Told = (String, String, String);

/// The first thing that failed, and how far the grant got: the further, the nearer it was.
pub(super) struct Failed {
    pub stage: u8,
    pub told: Option<Box<Told>>,
}

pub(super) fn told(
    field: impl Into<String>,
    expected: impl Into<String>,
    actual: impl Into<String>,
) -> Told {
    (field.into(), expected.into(), actual.into())
}

impl Failed {
    /// The reason, where it was put into words.
    pub fn reason(self, grant: &Grant) -> Option<Reason> {
        let (field, expected, actual) = *self.told?;
        Some(Reason { grant: Some(grant.id.clone()), field, expected, actual })
    }
}

/// Stages of [`Failed`].
pub(super) mod stage {
    pub const PRINCIPALS: u8 = 0;
    pub const SIGNERS: u8 = 1;
    pub const CHAINS: u8 = 2;
    pub const ACTION: u8 = 3;
    pub const SUBJECT: u8 = 4;
    pub const EXPIRES: u8 = 5;
    pub const HOURS: u8 = 6;
    pub const BOUNDS: u8 = 7;
    pub const FEE: u8 = 8;
}

impl<'a> Ask<'a> {
    /// A failure, in words if they are wanted.
    pub fn failed(&self, stage: u8, words: impl FnOnce() -> Told) -> Failed {
        Failed { stage, told: self.tell.then(|| Box::new(words())) }
    }

    pub fn effect(&self, place: usize) -> Option<&'a Effect> {
        self.effects.get(place)
    }

    /// What the grants say on the request's chain.
    pub fn on_chain(&self) -> Option<&'a OfChain> {
        self.bundle.index().chain(self.chain()?)
    }

    /// The chain, where the intent has one.
    pub fn chain(&self) -> Option<&'a ChainName> {
        self.request.intent.chain().map(|chain| &chain.name)
    }
}

/// Whether a key may be used under these signers.
pub(super) fn signs(signers: &BTreeSet<SignerRef>, request: &PolicyRequest) -> bool {
    signers.iter().any(|signer| match signer {
        SignerRef::Group(group) => request.group.as_ref() == Some(group),
        SignerRef::Address(address) => *address == request.address,
        SignerRef::Key(key) => *key == request.key,
    })
}

/// Who may use the grant, who signs, and where.
pub(super) fn rule_of<'a>(
    number: GrantNumber,
    grant: &'a Grant,
    ask: &Ask<'a>,
) -> Result<Rule<'a>, Failed> {
    let request = ask.request;
    if !grant.principals.contains(&request.principal.sub) {
        return Err(ask.failed(stage::PRINCIPALS, || {
            let expected: Vec<&str> = grant.principals.iter().map(String::as_str).collect();
            told("principals", expected.join(", "), &request.principal.sub)
        }));
    }
    if !signs(&grant.signers, request) {
        return Err(ask.failed(stage::SIGNERS, || {
            let expected: Vec<String> = grant.signers.iter().map(ToString::to_string).collect();
            let actual = request.group.as_ref().map_or_else(
                || format!("{} ({})", request.key, request.address),
                |group| format!("{group}, {} ({})", request.key, request.address),
            );
            told("signers", expected.join(", "), actual)
        }));
    }
    match &grant.rules {
        Rules::Message { text, windows } => Ok(Rule::Message { text, windows }),
        Rules::OnChain(rules) => {
            let chain = ask.chain();
            let row = chain.and_then(|chain| Some((chain, ask.on_chain()?.row(number)?)));
            row.map_or_else(
                || {
                    Err(ask.failed(stage::CHAINS, || {
                        let expected: Vec<&str> = rules.keys().map(ChainName::as_str).collect();
                        told("chains", expected.join(", "), chain.map_or("none", ChainName::as_str))
                    }))
                },
                |(name, row)| Ok(Rule::Chain { name, rule: &row.rule, terms: &row.terms }),
            )
        }
    }
}

/// Whether the selectors of a rule match an effect.
pub(super) fn selects(rule: Rule<'_>, effect: &Effect, ask: &Ask<'_>) -> Result<(), Failed> {
    match rule {
        Rule::Message { .. } => match effect {
            Effect::TextMessage { .. } => Ok(()),
            other => {
                Err(ask.failed(stage::ACTION, || told("action", "message", effect_name(other))))
            }
        },
        Rule::Chain { rule, .. } => {
            action_selects(&rule.action, effect, ask)?;
            if acts_for(rule, effect, ask) {
                return Ok(());
            }
            Err(ask.failed(stage::SUBJECT, || {
                let expected: Vec<String> = std::iter::once(ask.request.address)
                    .chain(rule.through.iter().copied())
                    .map(|account| account.to_string())
                    .collect();
                let actual = effect.actor().map_or_else(String::new, |actor| actor.to_string());
                told("through", expected.join(", "), actual)
            }))
        }
    }
}

/// Whose assets move: the signing account's own, or those of a contract that the grant names.
pub(super) fn acts_for(rule: &ChainRule, effect: &Effect, ask: &Ask<'_>) -> bool {
    let own = |actor: Address| actor == ask.request.address || rule.through.contains(&actor);
    effect.actor().is_none_or(own)
}

fn action_selects(action: &Action, effect: &Effect, ask: &Ask<'_>) -> Result<(), Failed> {
    let same = |field: &str, expected: &str, actual: &str| {
        if expected == actual {
            return Ok(());
        }
        Err(ask.failed(stage::SUBJECT, || told(field, expected, actual)))
    };
    let inside = |to: &Destinations, actual: Address| {
        if to.contains(actual) {
            return Ok(());
        }
        Err(ask.failed(stage::SUBJECT, || told("to", to.label(), actual.to_string())))
    };
    match (action, effect) {
        (Action::NativeTransfer { to, .. }, Effect::NativeOut { to: actual, .. })
        | (Action::Delegate { to }, Effect::Delegate { to: actual, .. }) => inside(to, *actual),
        (
            Action::TokenTransfer { asset, to, .. },
            Effect::TokenOut { asset: moved, to: actual, .. },
        )
        | (
            Action::NftTransfer { asset, to, .. },
            Effect::NftOut { asset: moved, to: actual, .. },
        )
        | (
            Action::TokenApprove { asset, to, .. },
            Effect::Approve { asset: moved, spender: actual, .. },
        )
        | (
            Action::NftApprove { asset, to, .. },
            Effect::OperatorApproval { asset: moved, operator: actual, .. },
        ) => {
            same("asset", asset, moved)?;
            inside(to, *actual)
        }
        (Action::Call(rule), Effect::Call(call)) | (Action::Admin(rule), Effect::AdminOp(call)) => {
            same_call(rule, call, &same)
        }
        (Action::Deploy { .. }, Effect::Create { .. }) => Ok(()),
        (
            Action::Opaque { contract, address, selector, .. },
            Effect::Opaque { call: Some(call), .. },
        ) => {
            if *address != call.to {
                let actual = call.to.to_string();
                return Err(ask.failed(stage::SUBJECT, || told("contract", contract, actual)));
            }
            if *selector == call.selector {
                return Ok(());
            }
            let (expected, actual) = (four_bytes(*selector), four_bytes(call.selector));
            Err(ask.failed(stage::SUBJECT, || told("selector", expected, actual)))
        }
        (
            Action::TypedData(rule),
            Effect::TypedMessage { type_hash, primary_type, verifying_contract },
        ) => {
            if rule.verifying_contract != *verifying_contract {
                return Err(ask.failed(stage::SUBJECT, || {
                    let expected = rule.verifying_contract.to_string();
                    told("verifying_contract", expected, verifying_contract.to_string())
                }));
            }
            same("primary_type", &rule.primary_type, primary_type)?;
            if rule.type_hash == *type_hash {
                return Ok(());
            }
            Err(ask.failed(stage::SUBJECT, || {
                told("type_hash", rule.type_hash.to_string(), type_hash.to_string())
            }))
        }
        (action, effect) => {
            Err(ask.failed(stage::ACTION, || told("action", action.name(), effect_name(effect))))
        }
    }
}

fn same_call(
    rule: &CallRule,
    call: &CallEffect,
    same: &dyn Fn(&str, &str, &str) -> Result<(), Failed>,
) -> Result<(), Failed> {
    same("contract", &rule.contract, &call.contract)?;
    same("function", &rule.function.signature, &call.function)
}

fn four_bytes(selector: Option<[u8; 4]>) -> String {
    selector.map_or_else(|| "none".to_owned(), |four| format!("0x{}", hex::encode(four)))
}

/// The name of an effect in reasons and in `[[deny]]`.
pub(super) const fn effect_name(effect: &Effect) -> &'static str {
    match effect {
        Effect::NativeOut { .. } => "native.transfer",
        Effect::FeeMax { .. } => "fee",
        Effect::TokenOut { .. } => "erc20.transfer",
        Effect::Call(_) => "call",
        Effect::TypedMessage { .. } => "typed_data",
        Effect::TextMessage { .. } => "message",
        Effect::NftOut { .. } => "nft.transfer",
        Effect::Approve { .. } => "erc20.approve",
        Effect::OperatorApproval { .. } => "nft.approve",
        Effect::Delegate { .. } => "delegate",
        Effect::AdminOp(_) => "admin",
        Effect::Create { .. } => "deploy",
        Effect::Opaque { .. } => "opaque",
    }
}

impl<'a> Match<'a> {
    /// A grant with the effects among these that are selected.
    pub fn of(
        number: GrantNumber,
        rule: Rule<'a>,
        (places, selected): (impl IntoIterator<Item = usize>, impl Fn(&Effect) -> bool),
        ask: &Ask<'a>,
    ) -> Option<Self> {
        let grant = ask.bundle.rules().get(number)?;
        let here = |place: &usize| ask.effect(*place).is_some_and(&selected);
        let effects = places.into_iter().filter(here).collect();
        Some(Self { grant, number, rule, effects })
    }

    /// What the index found, with the effects that are really selected.
    pub fn near(
        number: GrantNumber,
        rule: Rule<'a>,
        near: &[(GrantNumber, usize)],
        ask: &Ask<'a>,
    ) -> Option<Self> {
        let selected = |effect: &Effect| selects(rule, effect, ask).is_ok();
        Self::of(number, rule, (near.iter().map(|(_, place)| *place), selected), ask)
    }

    /// Whether it decides.
    pub const fn mode(&self) -> Mode {
        match self.rule {
            Rule::Message { .. } => self.grant.mode,
            Rule::Chain { terms, .. } => terms.mode,
        }
    }

    /// The first moment at which the grant allows nothing any more, and whether it has hours.
    pub const fn life(&self) -> (Timestamp, bool) {
        match self.rule {
            Rule::Message { .. } => (self.grant.expires_at, self.grant.hours.is_some()),
            Rule::Chain { terms, .. } => (terms.expires_at, terms.has_hours),
        }
    }

    /// Whether it counts anything, or lets anything wait, beside what it covers.
    pub const fn follows(&self) -> bool {
        match self.rule {
            Rule::Message { windows, .. } => !windows.is_empty(),
            Rule::Chain { terms, .. } => terms.has_windows || terms.has_needs,
        }
    }
}

/// What the index found: one grant with one effect of the signing account's own, or what is to be looked at.
pub(super) enum Found<'f, 'a> {
    Simple { number: GrantNumber, terms: &'a Terms, place: usize },
    Other { number: GrantNumber, rule: Rule<'a>, near: &'f [(GrantNumber, usize)] },
}

/// Hands over all grants that may match something of the request, in the order of their ids. The index knows who
/// may use which grant, and where; what it finds may still have to select the effect. There may be thousands, so
/// nothing is made of them here.
pub(super) fn near<'a>(ask: &Ask<'a>, mut found: impl FnMut(Found<'_, 'a>)) {
    let (index, sub) = (ask.bundle.index(), &ask.request.principal.sub);
    let (chain, on_chain) = (ask.chain(), ask.on_chain());
    // Each grant with the place of an effect, or with none where it may count the fee alone.
    let mut near: Vec<(GrantNumber, usize)> = Vec::new();
    for (place, effect) in ask.effects.iter().enumerate() {
        for numbers in index.matching(sub, chain, effect) {
            near.extend(numbers.iter().map(|number| (*number, place)));
        }
    }
    let natives = chain.map_or(&[][..], |chain| index.native_windows(sub, chain));
    near.extend(natives.iter().map(|number| (*number, ask.effects.len())));
    if !near.is_sorted() {
        // A few runs, each in order: they are merged.
        near.sort();
    }
    let signed = index.signed_by(ask.request);
    for near in near.chunk_by(|a, b| a.0 == b.0) {
        let Some((number, place)) = near.first().copied().filter(|it| signed.contains(it.0)) else {
            continue;
        };
        let row = chain.and_then(|chain| Some((chain, on_chain?.row(number)?)));
        let rule = match row {
            Some((_, row)) if row.terms.is_simple && near.len() == 1 => {
                found(Found::Simple { number, terms: &row.terms, place });
                continue;
            }
            Some((name, row)) => Rule::Chain { name, rule: &row.rule, terms: &row.terms },
            None => match ask.bundle.rules().get(number).map(|grant| &grant.rules) {
                Some(Rules::Message { text, windows }) => Rule::Message { text, windows },
                _ => continue,
            },
        };
        found(Found::Other { number, rule, near });
    }
}
