//! Which destinations are known: whoever is paid for the first time may have to wait.
//!
//! A destination is known to a group, or to a key without one, from the moment at which a nonce is given to a
//! transaction that uses it. What waits for a delay has no nonce, so it does not make its own destination
//! known.

use crate::app::{App, AppError};
use crate::core::evm::decode::effects;
use crate::core::id::{GroupName, KeyId};
use crate::core::policy::bundle::grant::Rules;
use crate::core::policy::{Bundle, Effect, PolicyRequest};
use crate::core::time::Timestamp;
use crate::ports::store::{TransactionRow, UsedDestinations, look};
use alloy::primitives::Address;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Under which name destinations are known.
fn scope(group: Option<&GroupName>, key: KeyId) -> String {
    group.map_or_else(|| format!("key:{key}"), |group| format!("group:{group}"))
}

/// The destinations of these effects.
pub(crate) fn of(effects: &[Effect]) -> BTreeSet<Address> {
    effects.iter().filter_map(Effect::destination).collect()
}

/// Tells the request which of its destinations are known, if a grant of the bundle asks for it.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn learn(
    app: &App,
    bundle: &Bundle,
    request: &mut PolicyRequest,
) -> Result<(), AppError> {
    let Some(chain) = request.intent.chain() else {
        return Ok(());
    };
    let is_asked = bundle.rules().iter().any(|grant| match &grant.rules {
        Rules::Message { .. } => false,
        Rules::OnChain(rules) => rules
            .get(&chain.name)
            .and_then(|rule| rule.delay.as_ref())
            .is_some_and(|delay| delay.first_use_ms.is_some()),
    });
    if !is_asked {
        return Ok(());
    }
    let chain = chain.id;
    let destinations = of(&effects(bundle, request));
    if destinations.is_empty() {
        return Ok(());
    }
    let asked = Arc::new((scope(request.group.as_ref(), request.key), destinations));
    request.facts.known_destinations = look(&*app.store, "known_destinations", move |unit| {
        let asked = Arc::clone(&asked);
        Box::pin(async move { unit.used_among(chain, &asked.0, &asked.1).await })
    })
    .await?;
    Ok(())
}

/// The part of a decision's text that says where it goes.
#[derive(Deserialize)]
struct Decided {
    group: String,
    key: KeyId,
    #[serde(default)]
    destinations: BTreeSet<Address>,
}

/// What a nonce for this decision makes known. Nothing for a decision of an older version, which did not say
/// it: those destinations stay new.
pub(crate) fn used(
    row: &TransactionRow,
    decision_json: &str,
    at: Timestamp,
) -> Option<UsedDestinations> {
    let decided: Decided = serde_json::from_str(decision_json).ok()?;
    let group = Some(GroupName::new(decided.group)).filter(|group| !group.as_str().is_empty());
    Some(UsedDestinations {
        chain: row.new.intent.chain.id,
        scope: scope(group.as_ref(), decided.key),
        destinations: decided.destinations,
        request: row.new.id,
        at,
    })
}
