//! What is held beside a request's own charges: exposures, until the chain shows that they are over.

use super::{LimitExceeded, StoreError};
use crate::core::amount::Amount;
use crate::core::id::ChainId;
use crate::core::policy::effect::{ApprovalForm, PermitTerms};
use crate::core::policy::{Charge, ChargeKind, Exposure, LimitId, Verdict};
use crate::core::time::Timestamp;
use alloy::primitives::Address;
use async_trait::async_trait;
use std::collections::BTreeMap;

/// What a decision takes from the windows, all of it or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Under which it is held: all versions of one nonce share it.
    pub owner: String,
    /// The chain of the exposures.
    pub chain: Option<ChainId>,
    /// What the request itself asks of each limit.
    pub charges: Vec<Charge>,
    /// What others may take later.
    pub exposures: Vec<Exposure>,
    /// Nothing to wait for: the charges are spent at once, and the exposures are open.
    pub at_once: bool,
}

impl Hold {
    /// What a verdict asks for. Exposures that charge no window, or over nothing, hold nothing, and are left out.
    #[must_use]
    pub fn of(owner: String, chain: Option<ChainId>, verdict: &Verdict, at_once: bool) -> Self {
        let holds = |it: &&Exposure| !it.charges.is_empty() && !it.amount.is_zero();
        let exposures = verdict.exposures.iter().filter(holds).cloned().collect();
        Self { owner, chain, charges: verdict.charges.clone(), exposures, at_once }
    }

    /// Whether any window is asked at all.
    #[must_use]
    pub const fn uses_windows(&self) -> bool {
        !self.charges.is_empty() || !self.exposures.is_empty()
    }

    /// What is asked of each limit in all, those of the exposures included, in the order of their ids. A sum
    /// above 256 bits is told as the largest there is, which no limit has room for beside anything else.
    #[must_use]
    pub fn all_charges(&self) -> Vec<Charge> {
        let mut all: BTreeMap<LimitId, Charge> = BTreeMap::new();
        let of_exposures = self.exposures.iter().flat_map(|exposure| &exposure.charges);
        for charge in self.charges.iter().chain(of_exposures) {
            let Some(before) = all.get_mut(&charge.limit) else {
                all.insert(charge.limit, charge.clone());
                continue;
            };
            if let (
                ChargeKind::Amount { value, .. },
                ChargeKind::Amount { value: more, fee: paid },
            ) = (&mut before.kind, &charge.kind)
            {
                let sum = value.checked_add(*more).and_then(|sum| sum.checked_add(*paid));
                *value = sum.unwrap_or(Amount::MAX);
            }
        }
        all.into_values().collect()
    }
}

/// Where an exposure stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExposureState {
    /// The nonce of its transaction is not final.
    Held,
    /// It may be taken.
    Open,
    /// It is over.
    Ended,
}

/// A stored exposure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExposureRow {
    /// Whose: the owner of the reservation.
    pub owner: String,
    /// Which of its exposures, from 0.
    pub n: i64,
    /// The chain's id.
    pub chain: u64,
    /// The token's contract.
    pub token: Address,
    /// Whose tokens.
    pub account: Address,
    /// Who may take them.
    pub spender: Address,
    /// How it was given.
    pub form: ApprovalForm,
    /// How much was given: the most of all versions, in smallest units.
    pub amount: Amount,
    /// How much of it is not known to be spent.
    pub remaining: Amount,
    /// The permit, where it is one.
    pub permit: Option<PermitTerms>,
    /// Whether the permit is known to be submitted, or there is none: then the allowance alone counts.
    pub submitted: bool,
    /// Where it stands.
    pub state: ExposureState,
    /// Before this block the chain's state says nothing about it.
    pub from_block: u64,
    /// The final block at which it was looked at last; 0 if never.
    pub seen_block: u64,
    /// Compare-and-swap counter.
    pub uses: i64,
}

/// What a look at a final block has shown of an exposure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExposureChange {
    /// What was looked at, as it was read.
    pub row: ExposureRow,
    /// The final block.
    pub block: u64,
    /// How much is gone, and counts as spent from now.
    pub used: Amount,
    /// How much nobody can take any more.
    pub freed: Amount,
    /// Whether its permit is known to be submitted, or it has none.
    pub submitted: bool,
    /// Why it is over, if it is: then nothing of it is held any more.
    pub ended: Option<&'static str>,
}

/// Exposures, as operations of a unit. Settling an owner opens its exposures where the value moved and
/// gives them back otherwise; releasing it gives them back.
#[async_trait]
pub trait Windows {
    /// Takes what is asked of each limit, or says which has no room; then the unit must be rolled back. An
    /// owner that holds already is charged the increase only, of each exposure too.
    async fn hold(
        &mut self,
        hold: &Hold,
        now: Timestamp,
    ) -> Result<Option<LimitExceeded>, StoreError>;

    /// The exposures of an owner, in order.
    async fn exposures_of(&mut self, owner: &str) -> Result<Vec<ExposureRow>, StoreError>;

    /// Open exposures of a chain that were not looked at since this block and about which its state says
    /// something, those first that no look was begun at the longest; each with all others that are open of the
    /// same token, account and spender.
    async fn open_exposures(
        &mut self,
        chain: ChainId,
        block: u64,
        most: i64,
    ) -> Result<Vec<Vec<ExposureRow>>, StoreError>;

    /// Notes that these are looked at, whatever comes of it: others that are open have their turn first then.
    async fn look_at_exposures(
        &mut self,
        rows: &[ExposureRow],
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// The chain's state says nothing about an owner's exposures before this block.
    async fn expose_from(&mut self, owner: &str, block: u64) -> Result<(), StoreError>;

    /// Records what a look has shown. `false` if one of them has changed meanwhile; then the unit must be
    /// rolled back.
    async fn see_exposures(
        &mut self,
        changes: &[ExposureChange],
        now: Timestamp,
    ) -> Result<bool, StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::policy::{Outcome, Period};

    #[test]
    fn a_permit_over_nothing_holds_nothing() {
        let exposure = |amount: u64| {
            let kind = ChargeKind::Amount { value: Amount::from(amount), fee: Amount::ZERO };
            let charge = Charge {
                limit: LimitId([1; 32]),
                label: "all".into(),
                grant: crate::core::id::GrantId::new("all"),
                kind,
                max: Amount::from(9_u64),
                period: Period::Rolling(60_000),
            };
            Exposure {
                token: Address::ZERO,
                owner: Address::ZERO,
                spender: Address::ZERO,
                amount: Amount::from(amount),
                form: crate::core::policy::effect::ApprovalForm::Approve,
                permit: None,
                charges: vec![charge],
            }
        };
        let verdict = Verdict {
            outcome: Outcome::Allow,
            bundle: alloy::primitives::B256::ZERO,
            grants: vec![],
            effects: vec![],
            reasons: vec![],
            charges: vec![],
            exposures: vec![exposure(0), exposure(3)],
            approval: None,
            delay: None,
            shadows: vec![],
            fee_cap: None,
            event_use: None,
        };
        let hold = Hold::of("a".into(), None, &verdict, true);
        let amounts: Vec<Amount> = hold.exposures.iter().map(|it| it.amount).collect();
        assert_eq!(amounts, [Amount::from(3_u64)]);
    }
}
