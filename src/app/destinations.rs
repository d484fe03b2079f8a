//! Which destinations are known: whoever is paid for the first time may have to wait.
//!
//! A destination is known to a group, or to a key without one, from the moment at which a nonce is given to a
//! transaction that uses it. What waits for a delay has no nonce, so it does not make its own destination
//! known.
//!
//! It is known for one use only, such as transfers of one asset: a wei sent without a delay must not take the
//! delay away from a transfer of tokens.

use crate::app::{App, AppError};
use crate::core::evm::decode::effects;
use crate::core::id::{GroupName, KeyId};
use crate::core::policy::{Bundle, Effect, PolicyRequest};
use crate::core::time::Timestamp;
use crate::ports::store::{TransactionRow, UsedDestinations, look};
use alloy::primitives::Address;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Destinations by what they are used for.
type Uses = BTreeMap<String, BTreeSet<Address>>;

/// Under which name destinations are known for a use.
fn scope(group: Option<&GroupName>, key: KeyId, used_for: &str) -> String {
    let whose = group.map_or_else(|| format!("key:{key}"), |group| format!("group:{group}"));
    format!("{whose} {used_for}")
}

/// What an effect uses its destination for: the action, with the asset or function that grants select by.
fn used_for(effect: &Effect) -> String {
    match effect {
        Effect::NativeOut { .. } => "native.transfer".to_owned(),
        Effect::TokenOut { asset, .. } => format!("erc20.transfer {asset}"),
        Effect::NftOut { asset, .. } => format!("nft.transfer {asset}"),
        Effect::Approve { asset, .. } => format!("erc20.approve {asset}"),
        Effect::OperatorApproval { asset, .. } => format!("nft.approve {asset}"),
        Effect::Call(call) => format!("call {}", call.function),
        Effect::AdminOp(call) => format!("admin {}", call.function),
        Effect::Opaque { .. } => "opaque".to_owned(),
        Effect::Delegate { .. } => "delegate".to_owned(),
        // These have no destination.
        Effect::FeeMax { .. }
        | Effect::Create { .. }
        | Effect::TypedMessage { .. }
        | Effect::TextMessage { .. } => "none".to_owned(),
    }
}

/// The destinations of these effects.
pub(crate) fn of(effects: &[Effect]) -> Uses {
    let mut uses = Uses::new();
    for effect in effects {
        if let Some(to) = effect.destination() {
            uses.entry(used_for(effect)).or_default().insert(to);
        }
    }
    uses
}

/// Which of its destinations the request may take for known; none where no grant of the bundle asks for it.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn known(
    app: &App,
    bundle: &Bundle,
    request: &PolicyRequest,
) -> Result<BTreeSet<Address>, AppError> {
    let Some(chain) = request.intent.chain() else {
        return Ok(BTreeSet::new());
    };
    if !bundle.asks_first_use(&chain.name) {
        return Ok(BTreeSet::new());
    }
    let chain = chain.id;
    let uses = of(&effects(bundle, request));
    if uses.is_empty() {
        return Ok(BTreeSet::new());
    }
    let named = |(used_for, to): (&String, &BTreeSet<Address>)| {
        (scope(request.group.as_ref(), request.key, used_for), to.clone())
    };
    let asked: Arc<Uses> = Arc::new(uses.iter().map(named).collect());
    let found = Arc::clone(&asked);
    let known = look(&*app.store, "known_destinations", move |unit| {
        let asked = Arc::clone(&asked);
        Box::pin(async move {
            let mut known = Uses::new();
            for (scope, to) in &*asked {
                known.insert(scope.clone(), unit.used_among(chain, scope, to).await?);
            }
            Ok(known)
        })
    })
    .await?;
    Ok(known_for_all(&found, &known))
}

/// The destinations that are known for everything that they are asked for: facts name addresses alone.
fn known_for_all(asked: &Uses, known: &Uses) -> BTreeSet<Address> {
    let is_known =
        |scope: &String, to: &Address| known.get(scope).is_some_and(|it| it.contains(to));
    let new = |to: &Address| {
        asked.iter().any(|(scope, asked)| asked.contains(to) && !is_known(scope, to))
    };
    asked.values().flatten().copied().filter(|to| !new(to)).collect()
}

/// The part of a decision's text that says where it goes.
#[derive(Deserialize)]
struct Decided {
    group: String,
    key: KeyId,
    #[serde(default)]
    destinations: Vec<Use>,
}

#[derive(Deserialize)]
struct Use {
    used_for: String,
    to: BTreeSet<Address>,
}

/// What a nonce for this decision makes known. Nothing for a decision of an older version, which did not say
/// it, or not for which use: those destinations stay new.
pub(crate) fn used(
    row: &TransactionRow,
    decision_json: &str,
    at: Timestamp,
) -> Vec<UsedDestinations> {
    let Ok(decided) = serde_json::from_str::<Decided>(decision_json) else {
        return Vec::new();
    };
    let group = Some(GroupName::new(decided.group)).filter(|group| !group.as_str().is_empty());
    let named = |uses: Use| UsedDestinations {
        chain: row.new.intent.chain.id,
        scope: scope(group.as_ref(), decided.key, &uses.used_for),
        destinations: uses.to,
        request: row.new.id,
        at,
    };
    decided.destinations.into_iter().map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_known_only_if_it_is_for_all_that_it_is_asked_for() {
        let (ann, bob) = (Address::repeat_byte(1), Address::repeat_byte(2));
        let uses = |all: &[(&str, &[Address])]| -> Uses {
            all.iter()
                .map(|(name, to)| ((*name).to_owned(), to.iter().copied().collect()))
                .collect()
        };
        let asked = uses(&[("native.transfer", &[ann, bob]), ("erc20.transfer usdc", &[ann])]);
        let dust = uses(&[("native.transfer", &[ann, bob])]);
        assert_eq!(known_for_all(&asked, &dust), [bob].into());
        assert_eq!(known_for_all(&asked, &asked), [ann, bob].into());
        assert!(known_for_all(&asked, &Uses::new()).is_empty());
    }
}
