//! One grant against one request: it covers the main effect, or the first field that does not.

use super::event;
use crate::core::amount::Amount;
use crate::core::evm::decode::typed_data::ReadTypedData;
use crate::core::id::ChainName;
use crate::core::intent::{FeeAsk, Fees, Intent, TransactionIntent, TxType};
use crate::core::policy::bundle::condition::ArgRule;
use crate::core::policy::bundle::grant::{
    Action, CallRule, ChainRule, FeeRule, Grant, Rules, SignerRef, TextRule, TypedRule,
};
use crate::core::policy::effect::{CallArgument, Effect};
use crate::core::policy::verdict::EventUse;
use crate::core::policy::{PolicyRequest, Reason};
use crate::core::time::Timestamp;

/// A request with what was read from it.
pub(super) struct Ask<'a> {
    pub request: &'a PolicyRequest,
    pub now: Timestamp,
    /// The main effect.
    pub main: &'a Effect,
    /// Native value that goes with the main effect.
    pub value: Amount,
    /// The typed data's own fields.
    pub typed: Option<&'a ReadTypedData>,
}

/// A grant that covers the main effect and the fee.
pub(super) struct Cover<'a> {
    pub grant: &'a Grant,
    pub fee_cap: Option<Fees>,
    pub event_use: Option<EventUse>,
}

/// The first field that failed, and how far the grant got: the further, the nearer it was.
pub(super) struct Miss {
    pub stage: u8,
    pub reason: Reason,
}

/// Why a field failed: field, expected, actual.
pub(super) type Failed = (String, String, String);

pub(super) fn failed(
    field: impl Into<String>,
    expected: impl Into<String>,
    actual: impl Into<String>,
) -> Failed {
    (field.into(), expected.into(), actual.into())
}

/// Who may use the grant and who signs.
pub(super) fn selects(grant: &Grant, request: &PolicyRequest) -> Result<(), (u8, Failed)> {
    let sub = &request.principal.sub;
    if !grant.principals.contains(sub) {
        let expected: Vec<&str> = grant.principals.iter().map(String::as_str).collect();
        return Err((0, failed("principals", expected.join(", "), sub)));
    }
    let signs = |signer: &SignerRef| match signer {
        SignerRef::Group(group) => request.group.as_ref() == Some(group),
        SignerRef::Address(address) => *address == request.address,
        SignerRef::Key(key) => *key == request.key,
    };
    if !grant.signers.iter().any(signs) {
        let expected: Vec<String> = grant.signers.iter().map(ToString::to_string).collect();
        let actual = request.group.as_ref().map_or_else(
            || format!("{} ({})", request.key, request.address),
            |group| format!("{group}, {} ({})", request.key, request.address),
        );
        return Err((1, failed("signers", expected.join(", "), actual)));
    }
    Ok(())
}

/// Whether the grant covers the main effect of the request, and its fee.
pub(super) fn cover<'a>(grant: &'a Grant, ask: &Ask<'_>) -> Result<Cover<'a>, Miss> {
    judge(grant, ask).map_err(|(stage, (field, expected, actual))| Miss {
        stage,
        reason: Reason { grant: Some(grant.id.clone()), field, expected, actual },
    })
}

fn judge<'a>(grant: &'a Grant, ask: &Ask<'_>) -> Result<Cover<'a>, (u8, Failed)> {
    selects(grant, ask.request)?;
    match &grant.rules {
        Rules::Message { text, .. } => {
            let Effect::TextMessage { text: actual } = ask.main else {
                return Err((3, failed("action", "message", effect_name(ask.main))));
            };
            unexpired(grant, ask.now).map_err(|failed| (5, failed))?;
            judge_text(text, actual).map_err(|failed| (6, failed))?;
            Ok(Cover { grant, fee_cap: None, event_use: None })
        }
        Rules::OnChain(rules) => {
            let chain = ask.request.intent.chain().map(|chain| &chain.name);
            let Some(rule) = chain.and_then(|chain| rules.get(chain)) else {
                let expected: Vec<&str> = rules.keys().map(ChainName::as_str).collect();
                let actual = chain.map_or("none", ChainName::as_str);
                return Err((2, failed("chains", expected.join(", "), actual)));
            };
            judge_selectors(&rule.action, ask.main)?;
            unexpired(grant, ask.now).map_err(|failed| (5, failed))?;
            let event_use = judge_bounds(&rule.action, ask).map_err(|failed| (6, failed))?;
            let fee_cap = judge_fee(rule, &ask.request.intent).map_err(|failed| (7, failed))?;
            Ok(Cover { grant, fee_cap, event_use })
        }
    }
}

fn unexpired(grant: &Grant, now: Timestamp) -> Result<(), Failed> {
    if now < grant.expires_at {
        return Ok(());
    }
    Err(failed("expires", &grant.expires, now.to_string()))
}

fn judge_text(rule: &TextRule, actual: &str) -> Result<(), Failed> {
    match rule {
        TextRule::Any => Ok(()),
        TextRule::Exact(texts) if texts.contains(actual) => Ok(()),
        TextRule::Exact(texts) => {
            let expected: Vec<String> = texts.iter().map(|text| format!("{text:?}")).collect();
            Err(failed("text.exact", expected.join(", "), format!("{actual:?}")))
        }
        TextRule::Prefix(prefix) if actual.starts_with(prefix) => Ok(()),
        TextRule::Prefix(prefix) => {
            Err(failed("text.prefix", format!("{prefix:?}"), format!("{actual:?}")))
        }
    }
}

/// The action, and what it acts on: the very selectors that the grant's windows have.
pub(super) fn judge_selectors(action: &Action, main: &Effect) -> Result<(), (u8, Failed)> {
    let same = |field: &str, expected: &str, actual: &str| {
        if expected == actual {
            return Ok(());
        }
        Err((4, failed(field, expected, actual)))
    };
    match (action, main) {
        (Action::NativeTransfer { to, .. }, Effect::NativeOut { to: actual, .. }) => {
            let inside = to.contains(*actual);
            if inside { Ok(()) } else { Err((4, failed("to", to.label(), actual.to_string()))) }
        }
        (
            Action::TokenTransfer { asset, to, .. },
            Effect::TokenOut { asset: moved, to: actual, .. },
        ) => {
            same("asset", asset, moved)?;
            let inside = to.contains(*actual);
            if inside { Ok(()) } else { Err((4, failed("to", to.label(), actual.to_string()))) }
        }
        (Action::Call(rule), Effect::Call(call)) => {
            same("contract", &rule.contract, &call.contract)?;
            same("function", &rule.function.signature, &call.function)
        }
        (
            Action::TypedData(rule),
            Effect::TypedMessage { type_hash, primary_type, verifying_contract },
        ) => {
            same(
                "verifying_contract",
                &rule.verifying_contract.to_string(),
                &verifying_contract.to_string(),
            )?;
            same("primary_type", &rule.primary_type, primary_type)?;
            same("type_hash", &rule.type_hash.to_string(), &type_hash.to_string())
        }
        (action, main) => Err((3, failed("action", action.name(), effect_name(main)))),
    }
}

/// The name of an effect in reasons.
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

fn judge_bounds(action: &Action, ask: &Ask<'_>) -> Result<Option<EventUse>, Failed> {
    match (action, ask.main) {
        (Action::NativeTransfer { per_tx, .. }, Effect::NativeOut { amount, .. })
        | (Action::TokenTransfer { per_tx, .. }, Effect::TokenOut { amount, .. }) => {
            at_most("per_tx", *per_tx, *amount)?;
            Ok(None)
        }
        (Action::Call(rule), Effect::Call(call)) => judge_call(rule, &call.args, ask),
        (Action::TypedData(rule), Effect::TypedMessage { .. }) => {
            judge_typed(rule, ask)?;
            Ok(None)
        }
        (action, main) => Err(failed("action", action.name(), effect_name(main))),
    }
}

fn judge_call(
    rule: &CallRule,
    args: &[CallArgument],
    ask: &Ask<'_>,
) -> Result<Option<EventUse>, Failed> {
    judge_args(&rule.args, args)?;
    at_most("value.max", rule.value_max, ask.value)?;
    match (&rule.event, &ask.request.intent) {
        (None, _) => Ok(None),
        (Some(event), Intent::Transaction(tx)) => {
            event::check(event, rule, tx, ask.request.facts.event.as_ref()).map(Some)
        }
        (Some(_), _) => Err(failed("event", "a transaction", "something else")),
    }
}

fn judge_typed(rule: &TypedRule, ask: &Ask<'_>) -> Result<(), Failed> {
    let read = ask.typed.ok_or_else(|| failed("typed_data", "readable", "not readable"))?;
    judge_args(&rule.args, &read.fields)
}

fn judge_args(rules: &[ArgRule], args: &[CallArgument]) -> Result<(), Failed> {
    for rule in rules {
        let mut named = args.iter().filter(|arg| arg.name == rule.name);
        let (Some(arg), None) = (named.next(), named.next()) else {
            return Err(failed(format!("args.{}", rule.name), "exactly one", "another number"));
        };
        rule.check(arg).map_err(|(part, expected)| {
            failed(format!("args.{}.{part}", rule.name), expected, &arg.value)
        })?;
    }
    Ok(())
}

fn at_most(field: &str, max: Amount, actual: Amount) -> Result<(), Failed> {
    if actual <= max {
        return Ok(());
    }
    Err(failed(field, max.to_string(), actual.to_string()))
}

fn judge_fee(rule: &ChainRule, intent: &Intent) -> Result<Option<Fees>, Failed> {
    match (&rule.fee, intent) {
        (None, Intent::TypedData { .. }) => Ok(None),
        (Some(fee), Intent::Transaction(tx)) => fee_cap(fee, tx).map(Some),
        _ => Err(failed("fee", "a transaction", "something else")),
    }
}

/// The fees that may be signed at most. A type with one price (legacy, EIP-2930) pays all of it, so
/// the price is bounded by the tip's bound too: else it were a way around that.
fn fee_cap(rule: &FeeRule, tx: &TransactionIntent) -> Result<Fees, Failed> {
    if tx.gas > rule.max_gas {
        return Err(failed("fee.max_gas", rule.max_gas.to_string(), tx.gas.to_string()));
    }
    let (asked, max) = (tx.fees.highest(), rule.max);
    match tx.fees {
        FeeAsk::Exact(_) => {
            let wei = |value: u128| format!("{value} wei");
            if asked.max_fee > max.max_fee {
                return Err(failed("fee.max_fee_gwei", wei(max.max_fee), wei(asked.max_fee)));
            }
            if asked.max_priority_fee > max.max_priority_fee {
                let (max, asked) = (wei(max.max_priority_fee), wei(asked.max_priority_fee));
                return Err(failed("fee.max_tip_gwei", max, asked));
            }
            if asked.max_priority_fee > asked.max_fee {
                return Err(failed("fee", "a tip not above the fee", wei(asked.max_priority_fee)));
            }
            Ok(asked)
        }
        FeeAsk::UpTo(_) => {
            let max_fee = asked.max_fee.min(max.max_fee);
            let tip = asked.max_priority_fee.min(max.max_priority_fee).min(max_fee);
            let one_price = tx.tx_type != TxType::Eip1559;
            let max_fee = if one_price { tip } else { max_fee };
            Ok(Fees { max_fee, max_priority_fee: tip })
        }
    }
}
