//! Rules in words, as somebody reads them who has to answer for them.

use crate::core::amount::Amount;
use crate::core::id::ChainName;
use crate::core::policy::bundle::grant::{
    Action, ChainRule, Destinations, Grant, Holds, Rules, TextRule, Window,
};
use crate::core::policy::bundle::registry::Registry;
use alloy::primitives::U256;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

/// More names than this are counted, not listed.
const NAMES_MAX: usize = 8;

/// Names in their order, with commas.
pub(super) fn names<T: Display>(all: impl IntoIterator<Item = T>) -> String {
    let all: Vec<String> = all.into_iter().map(|name| name.to_string()).collect();
    match all.get(..NAMES_MAX).zip(all.len().checked_sub(NAMES_MAX)) {
        Some((first, rest)) if rest > 0 => format!("{} and {rest} more", first.join(", ")),
        _ => all.join(", "),
    }
}

/// What is in the second set and not in the first.
pub(super) fn beyond<T: Ord + Clone>(base: &BTreeSet<T>, other: &BTreeSet<T>) -> Vec<T> {
    other.difference(base).cloned().collect()
}

/// An amount in whole units: `1500000` of 6 decimals is `1.5`.
pub(super) fn scaled(amount: Amount, decimals: u8) -> String {
    let digits = amount.to_string();
    let width = usize::from(decimals);
    let padded = format!("{digits:0>least$}", least = width.saturating_add(1));
    let (whole, fraction) = padded.split_at(padded.len().saturating_sub(width));
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() { whole.to_owned() } else { format!("{whole}.{fraction}") }
}

/// In what the amounts of a rule are said.
#[derive(Clone, Copy)]
pub(super) struct Unit<'a> {
    decimals: u8,
    name: &'a str,
}

impl<'a> Unit<'a> {
    /// For windows that have no amounts.
    pub(super) const fn of_counts() -> Self {
        Unit { decimals: 0, name: "effects" }
    }

    pub(super) fn native(registry: &Registry, chain: &ChainName) -> Self {
        Unit { decimals: registry.native_decimals(chain), name: "native" }
    }

    pub(super) fn asset(registry: &Registry, chain: &ChainName, name: &'a str) -> Self {
        Unit { decimals: registry.asset(chain, name).map_or(0, |asset| asset.decimals), name }
    }

    pub(super) fn of(registry: &Registry, chain: &ChainName, action: &'a Action) -> Self {
        match action {
            Action::TokenTransfer { asset, .. }
            | Action::TokenApprove { asset, .. }
            | Action::NftTransfer { asset, .. }
            | Action::NftApprove { asset, .. } => Self::asset(registry, chain, asset),
            _ => Self::native(registry, chain),
        }
    }

    pub(super) fn number(self, amount: Amount) -> String {
        if amount.units() == U256::MAX {
            return "unlimited".to_owned();
        }
        scaled(amount, self.decimals)
    }

    pub(super) fn say(self, amount: Amount) -> String {
        format!("{} {}", self.number(amount), self.name)
    }
}

/// A window in words: `24h window of 2000000 usdc per group`.
pub(super) fn window(window: &Window, unit: Unit<'_>) -> String {
    let holds = match window.holds {
        Holds::Amount(max) => unit.say(max),
        Holds::Count(count) => format!("{count} effects"),
    };
    format!("{} window of {holds} per {}", window.period.text(), window.scope.name())
}

/// `treasury = 2, security = 1`
pub(super) fn quorum(quorum: &BTreeMap<String, u32>) -> String {
    names(quorum.iter().map(|(group, count)| format!("{count} of {group}")))
}

pub(super) fn text_rule(rule: &TextRule) -> String {
    match rule {
        TextRule::Any => "any text".to_owned(),
        TextRule::Exact(texts) => {
            format!("one of: {}", names(texts.iter().map(|text| format!("{text:?}"))))
        }
        TextRule::Prefix(prefix) => format!("any text that begins with {prefix:?}"),
    }
}

pub(super) fn destinations(to: &Destinations) -> String {
    match to {
        Destinations::Any => "any address".to_owned(),
        Destinations::These { addresses, .. } => {
            format!("{} ({})", to.label(), names(addresses))
        }
    }
}

/// What a grant lets its principals do on one chain.
pub(super) fn permission(
    grant: &Grant,
    place: Option<(&Registry, &ChainName, &ChainRule)>,
) -> String {
    let (who, signers) = (names(&grant.principals), names(&grant.signers));
    let Some((registry, chain, rule)) = place else {
        let text = match &grant.rules {
            Rules::Message { text, .. } => text_rule(text),
            Rules::OnChain(_) => String::new(),
        };
        return format!("{who} may sign messages with {signers}: {text}");
    };
    let does = deed(registry, chain, &rule.action);
    format!("{who} may {does} from {signers} on {chain}")
}

fn deed(registry: &Registry, chain: &ChainName, action: &Action) -> String {
    let unit = Unit::of(registry, chain, action);
    let native = Unit::native(registry, chain);
    match action {
        Action::NativeTransfer { to, per_tx } | Action::TokenTransfer { to, per_tx, .. } => {
            format!("send up to {} to {}", unit.say(*per_tx), destinations(to))
        }
        Action::TokenApprove { to, per_tx, unlimited, .. } => {
            let most = if *unlimited {
                "any amount".to_owned()
            } else {
                format!("up to {}", unit.say(*per_tx))
            };
            format!("let {} take {most} of {}", destinations(to), unit.name)
        }
        Action::NftTransfer { to, per_tx, .. } => {
            format!("send up to {} to {}", unit.say(*per_tx), destinations(to))
        }
        Action::NftApprove { asset, to, .. } => {
            format!("let {} take tokens of {asset}", destinations(to))
        }
        Action::Call(call) => format!(
            "call `{}` of {} with up to {}",
            call.function.signature,
            call.contract,
            native.say(call.value_max)
        ),
        Action::Admin(call) => format!(
            "call `{}` of {}, which changes who rules it or its code,",
            call.function.signature, call.contract
        ),
        Action::Deploy { init_code_hashes, .. } => {
            format!("create contracts from init code {}", names(init_code_hashes))
        }
        Action::Delegate { to } => {
            format!("let the account run the code of {} (EIP-7702)", destinations(to))
        }
        Action::Opaque { contract, selector, .. } => {
            let what = selector.map_or_else(
                || "without data".to_owned(),
                |selector| format!("with selector 0x{}", hex::encode(selector)),
            );
            format!("call {contract} {what}, which is not understood,")
        }
        Action::TypedData(rule) => {
            format!("sign typed data `{}` for {}", rule.primary_type, rule.contract)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_said_in_whole_units() {
        for (units, decimals, said) in [
            (1_500_000_u64, 6, "1.5"),
            (0, 6, "0"),
            (1, 6, "0.000001"),
            (2_000_000, 6, "2"),
            (7, 0, "7"),
            (10, 0, "10"),
            (10, 1, "1"),
        ] {
            assert_eq!(scaled(Amount::from(units), decimals), said);
        }
    }

    #[test]
    fn many_names_are_counted() {
        assert_eq!(names(0..3), "0, 1, 2");
        assert_eq!(names(0..8), "0, 1, 2, 3, 4, 5, 6, 7");
        assert_eq!(names(0..10), "0, 1, 2, 3, 4, 5, 6, 7 and 2 more");
    }
}
