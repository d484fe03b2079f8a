//! The fees that a grant lets be signed at most.

use super::matching::{Told, told};
use crate::core::amount::Amount;
use crate::core::intent::{FeeAsk, Fees, Intent, TransactionIntent, TxType};
use crate::core::policy::{Effect, PolicyRequest};
use alloy::primitives::U256;

/// What of a fee is beyond what a grant says.
#[derive(Clone, Copy)]
pub(super) enum FeeMiss {
    Gas,
    Fee,
    Tip,
    /// The tip is above the fee.
    Order,
}

/// The fees that may be signed at most. A type with one price (legacy, EIP-2930) pays all of it, so
/// the price is bounded by the tip's bound too: else it were a way around that.
#[inline]
pub(super) fn fee_cap(
    (max, max_gas): (Fees, u64),
    tx: &TransactionIntent,
) -> Result<Fees, FeeMiss> {
    if tx.gas > max_gas {
        return Err(FeeMiss::Gas);
    }
    match tx.fees {
        FeeAsk::Exact(asked) => {
            if asked.max_fee > max.max_fee {
                return Err(FeeMiss::Fee);
            }
            if asked.max_priority_fee > max.max_priority_fee {
                return Err(FeeMiss::Tip);
            }
            if asked.max_priority_fee > asked.max_fee {
                return Err(FeeMiss::Order);
            }
            Ok(asked)
        }
        FeeAsk::UpTo(asked) => {
            let max_fee = asked.max_fee.min(max.max_fee);
            let tip = asked.max_priority_fee.min(max.max_priority_fee).min(max_fee);
            let max_fee = if has_one_price(tx.tx_type) { tip } else { max_fee };
            Ok(Fees { max_fee, max_priority_fee: tip })
        }
    }
}

impl FeeMiss {
    /// In words.
    pub fn told(self, (max, max_gas): (Fees, u64), tx: &TransactionIntent) -> Told {
        let wei = |value: u128| format!("{value} wei");
        let asked = tx.fees.highest();
        match self {
            Self::Gas => told("fee.max_gas", max_gas.to_string(), tx.gas.to_string()),
            Self::Fee => told("fee.max_fee_gwei", wei(max.max_fee), wei(asked.max_fee)),
            Self::Tip => {
                let (max, asked) = (max.max_priority_fee, asked.max_priority_fee);
                told("fee.max_tip_gwei", wei(max), wei(asked))
            }
            Self::Order => told("fee", "a tip not above the fee", wei(asked.max_priority_fee)),
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
