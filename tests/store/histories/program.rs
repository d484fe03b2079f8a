//! Random programs of operations, each run as a unit of its own that notes the order in which it came to pass.

use super::reference::Kind;
use crate::fixtures::{at, key_id, public_key};
use alloy::primitives::{Address, U256};
use claviger::core::amount::Amount;
use claviger::core::id::{ChainId, GrantId};
use claviger::core::key::NonceMode;
use claviger::core::policy::effect::{ApprovalForm, PermitTerms};
use claviger::core::policy::{Charge, ChargeKind, Exposure, LimitId};
use claviger::ports::store::{
    ExposureChange, ExposureRow, Hold, LaneKey, LimitExceeded, Settlement, StoreError, Unit,
};

/// Who holds a part of a limit: an owner, or what one of its approvals lets another take.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    pub owner: String,
    pub spender: Option<Address>,
}

/// What one holder asks of one limit.
#[derive(Debug, Clone)]
pub struct Ask {
    pub limit: usize,
    pub holder: Holder,
    pub value: u64,
    pub fee: u64,
    pub max: u64,
}

/// What a look has shown of an exposure.
#[derive(Debug, Clone)]
pub struct Sight {
    pub holder: Holder,
    pub used: u64,
    pub freed: u64,
    pub ends: bool,
    change: ExposureChange,
}

/// An operation.
#[derive(Debug, Clone)]
pub enum Do {
    /// As a decision does it. The lane is locked where there are exposures, as for every version of a nonce.
    Hold {
        asks: Vec<Ask>,
        hold: Hold,
        lane: Option<LaneKey>,
    },
    Settle {
        owner: String,
        outcome: Settlement,
    },
    Release {
        owner: String,
    },
    See(Vec<Sight>),
    LookAt(Vec<ExposureRow>),
}

/// What an operation answered.
#[derive(Debug, Clone)]
pub enum Answer {
    Done,
    Full(LimitExceeded),
    /// Another look was faster.
    Late,
}

impl Do {
    /// What it is, in a line.
    pub fn short(&self) -> String {
        match self {
            Self::Hold { asks, hold, .. } => {
                let ask = |it: &Ask| {
                    let spender =
                        it.holder.spender.map_or(String::new(), |it| format!(" by {}", it[0]));
                    format!("{}: {} + {} of {}{spender}", it.limit, it.value, it.fee, it.max)
                };
                let asks: Vec<String> = asks.iter().map(ask).collect();
                format!(
                    "{} holds ({}) {asks:?}",
                    hold.owner,
                    if hold.at_once { "at once" } else { "" }
                )
            }
            Self::Settle { owner, outcome } => format!("{owner} settles {outcome:?}"),
            Self::Release { owner } => format!("{owner} releases"),
            Self::See(seen) => {
                let see = |it: &Sight| {
                    let Holder { owner, spender } = &it.holder;
                    let spender = spender.map(|it| it[0]);
                    format!("{owner} {spender:?}: {} {} {}", it.used, it.freed, it.ends)
                };
                format!("sees {:?}", seen.iter().map(see).collect::<Vec<_>>())
            }
            Self::LookAt(rows) => format!("looks at {}", rows.len()),
        }
    }

    pub async fn perform(&self, unit: &mut dyn Unit, now: i64) -> Result<Answer, StoreError> {
        let now = at(now);
        match self {
            Self::Hold { hold, lane, .. } => {
                if let Some(lane) = lane {
                    unit.lock_lane(lane).await?;
                }
                let full = unit.hold(hold, now).await?;
                return Ok(full.map_or(Answer::Done, Answer::Full));
            }
            Self::Settle { owner, outcome } => unit.settle(owner, *outcome, now).await?,
            Self::Release { owner } => unit.release(owner).await?,
            Self::See(seen) => {
                let changes: Vec<_> = seen.iter().map(|seen| seen.change.clone()).collect();
                if !unit.see_exposures(&changes, now).await? {
                    return Ok(Answer::Late);
                }
            }
            Self::LookAt(rows) => unit.look_at_exposures(rows, now).await?,
        }
        Ok(Answer::Done)
    }
}

/// `SplitMix64`.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below the bound.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    pub fn up_to(&mut self, most: u64) -> u64 {
        self.below(most + 1)
    }
}

/// What the programs of one history share.
#[derive(Debug)]
pub struct Terms {
    pub seed: u64,
    pub chain: ChainId,
    pub kinds: Vec<Kind>,
}

impl Terms {
    pub fn label(&self, limit: usize) -> String {
        format!("history {} limit {limit}", self.seed)
    }

    pub fn charge(&self, limit: usize, (value, fee): (u64, u64), max: u64) -> Charge {
        let kind = self.kinds[limit];
        let mut id = [0xff; 32];
        id[..8].copy_from_slice(&self.seed.to_be_bytes());
        id[31] = u8::try_from(limit).unwrap();
        Charge {
            limit: LimitId(id),
            label: self.label(limit),
            grant: GrantId::new("histories"),
            kind: match kind.counts {
                true => ChargeKind::Count(value),
                false => ChargeKind::Amount { value: Amount::from(value), fee: Amount::from(fee) },
            },
            max: Amount::from(max),
            period: kind.period,
        }
    }

    /// An increase now and then, exposures in some, in any order of the limits; sometimes under a bundle that
    /// has lowered a maximum.
    pub fn hold(&self, rng: &mut Rng, owner: String, key: u8, at_once: bool) -> Do {
        let mut limits: Vec<usize> = (0..self.kinds.len()).filter(|_| rng.one_in(3)).collect();
        if limits.is_empty() {
            limits.push(usize::try_from(rng.below(3)).unwrap());
        }
        for n in (1..limits.len()).rev() {
            limits.swap(n, usize::try_from(rng.up_to(n as u64)).unwrap());
        }
        let (value, fee) = (rng.below(12), rng.below(4));
        let lowered = rng.one_in(8);
        let max = |limit: usize| self.kinds[limit].max * if lowered { 3 } else { 4 } / 4;
        let of = |limit: usize| if self.kinds[limit].counts { (1, 0) } else { (value, fee) };
        let mut asks = Vec::new();
        let mut ask = |limit: usize, spender: Option<Address>, (value, fee): (u64, u64)| {
            let holder = Holder { owner: owner.clone(), spender };
            asks.push(Ask { limit, holder, value, fee, max: max(limit) });
            self.charge(limit, (value, fee), max(limit))
        };
        let charges = limits.iter().map(|limit| ask(*limit, None, of(*limit))).collect();
        let amounts: Vec<usize> =
            limits.iter().copied().filter(|limit| !self.kinds[*limit].counts).collect();
        let mut exposures = Vec::new();
        if !amounts.is_empty() && rng.one_in(3) {
            for n in 0..1 + rng.below(2) {
                let spender =
                    Address::repeat_byte(u8::try_from(0x10 + 2 * n + rng.below(2)).unwrap());
                let amount = 1 + rng.below(8);
                let charges =
                    amounts.iter().map(|limit| ask(*limit, Some(spender), (amount, 0))).collect();
                exposures.push(exposure(spender, amount, at_once, charges));
            }
        }
        let lane = (!exposures.is_empty() && !at_once).then(|| LaneKey {
            chain: self.chain,
            address: public_key(key).address(),
            key: key_id(u128::from(key)),
            mode: NonceMode::Managed,
        });
        let chain = Some(self.chain);
        Do::Hold { asks, hold: Hold { owner, chain, charges, exposures, at_once }, lane }
    }
}

fn exposure(spender: Address, amount: u64, is_permit: bool, charges: Vec<Charge>) -> Exposure {
    let token = Address::repeat_byte(1);
    let permit = is_permit.then_some(PermitTerms {
        verifying_contract: token,
        nonce: U256::ZERO,
        deadline: None,
        expires: None,
    });
    Exposure {
        token,
        owner: Address::repeat_byte(2),
        spender,
        amount: Amount::from(amount),
        form: if is_permit { ApprovalForm::Permit } else { ApprovalForm::Approve },
        permit,
        charges,
    }
}

pub fn settlement(rng: &mut Rng) -> Settlement {
    Settlement {
        value_moved: !rng.one_in(3),
        fee_paid: (!rng.one_in(4)).then(|| Amount::from(rng.below(6))),
        fee_from_value: rng.one_in(4),
    }
}

/// What a final block shows of a group: of most of them nothing.
pub fn sights(rng: &mut Rng, rows: Vec<ExposureRow>, block: u64) -> Vec<Sight> {
    let see = |row: ExposureRow| {
        let left: u64 = row.remaining.units().to();
        let moves = rng.one_in(2);
        let used = if moves { rng.up_to(left) } else { 0 };
        let freed = if moves && rng.one_in(3) { rng.up_to(left - used) } else { 0 };
        let ends = used + freed == left || rng.one_in(8);
        let holder = Holder { owner: row.owner.clone(), spender: Some(row.spender) };
        let change = ExposureChange {
            block,
            used: Amount::from(used),
            freed: Amount::from(freed),
            submitted: row.submitted,
            ended: ends.then_some("test"),
            row,
        };
        Sight { holder, used, freed, ends, change }
    };
    rows.into_iter().map(see).collect()
}
