//! The fees that a grant lets be signed at most.

use super::matching::{Ask, Failed, Told, stage, told};
use crate::core::amount::Amount;
use crate::core::intent::{FeeAsk, Fees, Intent, TransactionIntent, TxType};
use crate::core::policy::{Effect, PolicyRequest};
use alloy::primitives::U256;

/// The fees that may be signed at most. A type with one price (legacy, EIP-2930) pays all of it, so
/// the price is bounded by the tip's bound too: else it were a way around that.
pub(super) fn fee_cap(
    (max, max_gas): (Fees, u64),
    tx: &TransactionIntent,
    ask: &Ask<'_>,
) -> Result<Fees, Failed> {
    let failed = |words: &dyn Fn() -> Told| Err(ask.failed(stage::FEE, words));
    if tx.gas > max_gas {
        return failed(&|| told("fee.max_gas", max_gas.to_string(), tx.gas.to_string()));
    }
    let asked = tx.fees.highest();
    match tx.fees {
        FeeAsk::Exact(_) => {
            let wei = |value: u128| format!("{value} wei");
            if asked.max_fee > max.max_fee {
                return failed(&|| told("fee.max_fee_gwei", wei(max.max_fee), wei(asked.max_fee)));
            }
            if asked.max_priority_fee > max.max_priority_fee {
                let (max, asked) = (max.max_priority_fee, asked.max_priority_fee);
                return failed(&|| told("fee.max_tip_gwei", wei(max), wei(asked)));
            }
            if asked.max_priority_fee > asked.max_fee {
                let tip = asked.max_priority_fee;
                return failed(&|| told("fee", "a tip not above the fee", wei(tip)));
            }
            Ok(asked)
        }
        FeeAsk::UpTo(_) => {
            let max_fee = asked.max_fee.min(max.max_fee);
            let tip = asked.max_priority_fee.min(max.max_priority_fee).min(max_fee);
            let max_fee = if has_one_price(tx.tx_type) { tip } else { max_fee };
            Ok(Fees { max_fee, max_priority_fee: tip })
        }
    }
}

/// Whether all of the price is paid, whatever the block asks.
pub(super) fn has_one_price(kind: TxType) -> bool {
    kind != TxType::Eip1559
}

/// What gas may cost at most at this price, in wei; nothing where nothing is sent.
pub(super) fn fee_at(request: &PolicyRequest, max_fee: u128) -> Amount {
    match &request.intent {
        Intent::Transaction(tx) => Amount::from(tx.gas)
            .checked_mul(Amount::from(max_fee))
            .unwrap_or(Amount::new(U256::MAX)),
        _ => Amount::ZERO,
    }
}

/// The effects with the fee at the cap that may really be signed.
pub(super) fn with_cap(
    effects: &[Effect],
    request: &PolicyRequest,
    cap: Option<Fees>,
) -> Vec<Effect> {
    let Some(cap) = cap else {
        return effects.to_vec();
    };
    let capped = |effect: &Effect| match effect {
        Effect::FeeMax { .. } => Effect::FeeMax { amount: fee_at(request, cap.max_fee) },
        other => other.clone(),
    };
    effects.iter().map(capped).collect()
}
