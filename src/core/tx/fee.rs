//! Fees: what to offer first, and what to offer next. All in wei per gas.
//!
//! Sources: EIP-1559; the replacement rule of the clients' pools (at least 10 % more in *both* fields,
//! some rounding up).

use crate::core::intent::{Fees, TxType};

/// What a caller who sets no priority fee offers at least: 1 wei would never be mined on a busy chain.
pub const MIN_TIP_WEI: u128 = 1_000_000;

/// What the market asks for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Market {
    /// Base fee of the next block.
    pub base_fee: u128,
    /// Priority fees paid lately; those of empty blocks have been dropped.
    pub tips: Vec<u128>,
}

/// What to do about the fees of a transaction that is not mined in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bump {
    /// Sign again with these.
    To(Fees),
    /// A valid replacement would be above the cap: send the same bytes again, and alert.
    AtCap,
}

/// The fees of a first attempt: room for the base fee to double, and the median tip; never above the
/// cap. The tip is never above the fee.
#[must_use]
pub fn first(market: &Market, cap: Fees, tx_type: TxType) -> Fees {
    let cap = cap_of(cap, tx_type);
    let tip =
        median(&market.tips).unwrap_or(MIN_TIP_WEI).max(MIN_TIP_WEI).min(cap.max_priority_fee);
    let room = match tx_type {
        TxType::Eip1559 => market.base_fee,
        // One price is paid whole, so the room for a rising base fee is an eighth: one full block.
        TxType::Legacy | TxType::Eip2930 => market.base_fee.div_ceil(8),
    };
    let fee = market.base_fee.saturating_add(room).saturating_add(tip).min(cap.max_fee);
    shaped(Fees { max_fee: fee, max_priority_fee: tip }, cap, tx_type)
}

/// The fees of the next attempt: both fields at least ceil(110 %) of the previous ones and at least one
/// wei more, or what the market asks for if that is more; never above the cap.
#[must_use]
pub fn next(previous: Fees, market: &Market, cap: Fees, tx_type: TxType) -> Bump {
    let cap = cap_of(cap, tx_type);
    let wanted = first(market, cap, tx_type);
    let (Some(fee), Some(tip)) = (
        raised(previous.max_fee, wanted.max_fee, cap.max_fee),
        raised(previous.max_priority_fee, wanted.max_priority_fee, cap.max_priority_fee),
    ) else {
        return Bump::AtCap;
    };
    let fees = shaped(Fees { max_fee: fee.max(tip), max_priority_fee: tip }, cap, tx_type);
    let enough = fees.max_fee >= minimum(previous.max_fee)
        && fees.max_priority_fee >= minimum(previous.max_priority_fee);
    if enough && fees.max_fee <= cap.max_fee { Bump::To(fees) } else { Bump::AtCap }
}

/// Whether no replacement of these fees is possible under the cap, whatever the market asks for.
#[must_use]
pub fn is_at_cap(previous: Fees, cap: Fees, tx_type: TxType) -> bool {
    let cap = cap_of(cap, tx_type);
    minimum(previous.max_fee) > cap.max_fee
        || minimum(previous.max_priority_fee) > cap.max_priority_fee
}

/// ceil(110 %), and at least one wei more.
#[must_use]
pub fn minimum(previous: u128) -> u128 {
    let tenth = previous.div_ceil(10).max(1);
    previous.saturating_add(tenth)
}

fn raised(previous: u128, wanted: u128, cap: u128) -> Option<u128> {
    let least = minimum(previous);
    (least <= cap).then(|| wanted.clamp(least, cap))
}

/// Types with one price have no tip of their own: only the fee's cap bounds it.
const fn cap_of(cap: Fees, tx_type: TxType) -> Fees {
    match tx_type {
        TxType::Eip1559 => cap,
        TxType::Legacy | TxType::Eip2930 => {
            Fees { max_fee: cap.max_fee, max_priority_fee: cap.max_fee }
        }
    }
}

fn shaped(fees: Fees, cap: Fees, tx_type: TxType) -> Fees {
    match tx_type {
        TxType::Eip1559 => Fees {
            max_fee: fees.max_fee,
            max_priority_fee: fees.max_priority_fee.min(fees.max_fee),
        },
        TxType::Legacy | TxType::Eip2930 => {
            let price = fees.max_fee.min(cap.max_fee);
            Fees { max_fee: price, max_priority_fee: price }
        }
    }
}

/// The middle of what was paid; `None` of nothing.
#[must_use]
pub fn median(values: &[u128]) -> Option<u128> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len().checked_div(2)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever the market: where there is no room, nothing is offered.
        #[test]
        fn at_the_cap_nothing_more_is_offered(
            fee in 1..2000u128, tip in 1..200u128, base_fee in 0..3000u128,
            cap_fee in 1..2000u128, cap_tip in 1..200u128, legacy in any::<bool>(),
        ) {
            let tx_type = if legacy { TxType::Legacy } else { TxType::Eip1559 };
            let previous = Fees { max_fee: fee.max(tip), max_priority_fee: tip };
            let cap = Fees { max_fee: cap_fee, max_priority_fee: cap_tip.min(cap_fee) };
            let market = Market { base_fee, tips: vec![1] };
            if is_at_cap(previous, cap, tx_type) {
                prop_assert_eq!(next(previous, &market, cap, tx_type), Bump::AtCap);
            }
        }
    }

    fn fees(max_fee: u128, max_priority_fee: u128) -> Fees {
        Fees { max_fee, max_priority_fee }
    }

    #[test]
    fn bumps_round_up_at_small_and_odd_prices() {
        for (previous, least) in
            [(0, 1), (1, 2), (2, 3), (9, 10), (11, 13), (1_000_000_001, 1_100_000_002)]
        {
            assert_eq!(minimum(previous), least, "{previous}");
        }
    }

    #[test]
    fn when_only_the_base_fee_rose_both_fields_rise() {
        let market = Market { base_fee: 100, tips: vec![2] };
        let cap = fees(u128::MAX, u128::MAX);
        let Bump::To(next) = next(fees(50, MIN_TIP_WEI), &market, cap, TxType::Eip1559) else {
            panic!("not at the cap");
        };
        assert!(next.max_priority_fee >= minimum(MIN_TIP_WEI));
        assert!(next.max_fee >= 200);
    }

    #[test]
    fn at_the_cap_nothing_above_it_is_offered() {
        let market = Market { base_fee: 1000, tips: vec![] };
        let at = next(fees(95, 10), &market, fees(100, 100), TxType::Eip1559);
        assert_eq!(at, Bump::AtCap);
        let tip_at = next(fees(50, 95), &market, fees(100, 100), TxType::Eip1559);
        assert_eq!(tip_at, Bump::AtCap);
    }

    fn any_type() -> impl Strategy<Value = TxType> {
        prop_oneof![Just(TxType::Legacy), Just(TxType::Eip2930), Just(TxType::Eip1559)]
    }

    proptest! {
        #[test]
        fn every_attempt_is_within_the_cap_and_a_valid_replacement_of_the_one_before(
            base in 0..u128::from(u64::MAX), tips in proptest::collection::vec(0..1u128 << 40, 0..5),
            cap_fee in 1..u128::from(u64::MAX), cap_tip in 0..1u128 << 40, tx_type in any_type(),
        ) {
            let cap = fees(cap_fee, cap_tip.min(cap_fee));
            let market = Market { base_fee: base, tips };
            let mut now = first(&market, cap, tx_type);
            for _ in 0..200 {
                prop_assert!(now.max_fee <= cap.max_fee);
                prop_assert!(now.max_priority_fee <= now.max_fee);
                if tx_type == TxType::Eip1559 {
                    prop_assert!(now.max_priority_fee <= cap.max_priority_fee);
                } else {
                    prop_assert_eq!(now.max_fee, now.max_priority_fee);
                }
                match next(now, &market, cap, tx_type) {
                    Bump::AtCap => break,
                    Bump::To(after) => {
                        prop_assert!(after.max_fee >= minimum(now.max_fee));
                        prop_assert!(after.max_priority_fee >= minimum(now.max_priority_fee));
                        now = after;
                    }
                }
            }
        }
    }
}
