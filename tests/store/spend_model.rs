//! Random histories of reservations, exposures and settlements, over rolling and calendar windows and a clock
//! that steps, against a model that keeps every settlement.
//!
//! The store may count a settlement longer than its span, by one piece of it at most, and never shorter.

use crate::fixtures::{CHAIN, at};
use crate::spend::{charge, release, settle};
use alloy::primitives::Address;
use claviger::core::amount::Amount;
use claviger::core::policy::effect::ApprovalForm;
use claviger::core::policy::{Charge, ChargeKind, Exposure, LimitId, Period};
use claviger::ports::store::{
    End, ExposureChange, ExposureState, Hold, LimitExceeded, Store, unit,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use tokio::runtime::Handle;

on_both!(a_random_history_is_what_the_model_says_and_never_above_a_limit);

const CASES: u32 = 30;
const STEPS: usize = 40;
const DAY_MS: i64 = 86_400_000;
const COUNT: usize = 2;
/// Period and maximum of each limit: amounts, amounts over a longer span, requests, amounts over a span whose
/// pieces are coarse, amounts of a calendar day.
const LIMITS: [(Period, u64); 5] = [
    (Period::Rolling(100), 40),
    (Period::Rolling(250), 70),
    (Period::Rolling(60), 3),
    (Period::Rolling(10_000), 90),
    (Period::Day, 60),
];

#[derive(Debug, Clone)]
enum Step {
    Wait(i64),
    Hold { owner: u8, value: u64, fee: u64, which: u8, exposed: Option<u64> },
    Settle { owner: u8, moved: bool, fee: Option<u64> },
    Release { owner: u8 },
    See { which: usize, used: u64, freed: u64, ends: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let owner = 0..6_u8;
    let exposed = prop::option::of(1..25_u64);
    prop_oneof![
        // Back and forth, now and then far.
        3 => (-60..120_i64).prop_map(Step::Wait),
        1 => (-9_000..12_000_i64).prop_map(Step::Wait),
        1 => (-DAY_MS..2 * DAY_MS).prop_map(Step::Wait),
        8 => (owner.clone(), 0..20_u64, 0..6_u64, 1..32_u8, exposed).prop_map(
            |(owner, value, fee, which, exposed)| Step::Hold { owner, value, fee, which, exposed }
        ),
        5 => (owner.clone(), any::<bool>(), prop::option::of(0..8_u64))
            .prop_map(|(owner, moved, fee)| Step::Settle { owner, moved, fee }),
        1 => owner.prop_map(|owner| Step::Release { owner }),
        3 => (0..6_usize, 0..30_u64, 0..30_u64, any::<bool>())
            .prop_map(|(which, used, freed, ends)| Step::See { which, used, freed, ends }),
    ]
}

#[derive(Debug, Clone, Default)]
struct Limit {
    /// Value and fee, by who holds it.
    held: BTreeMap<String, (u64, u64)>,
    /// When it counts from, and how much.
    spent: Vec<(i64, u64)>,
    /// The newest time of a decision.
    seen: i64,
}

impl Limit {
    fn held(&self) -> u64 {
        self.held.values().map(|(value, fee)| value + fee).sum()
    }

    /// What counts now, if each settlement counted so much longer than its period.
    fn spent(&self, period: Period, now: i64, longer: i64) -> u64 {
        let counts = |settled: i64| match period {
            Period::Rolling(span) => settled + span + longer > now,
            _ => settled.div_euclid(DAY_MS) >= now.div_euclid(DAY_MS),
        };
        self.spent.iter().filter(|(settled, _)| counts(*settled)).map(|(_, spent)| spent).sum()
    }

    fn settle(&mut self, spent: u64, now: i64) {
        self.spent.push((now.max(self.seen), spent));
    }
}

/// What one owner asks of one limit.
type Asked = (usize, String, u64, u64);

fn piece(period: Period) -> i64 {
    match period {
        Period::Rolling(span) => span / 256 + 1,
        _ => 0,
    }
}

#[derive(Debug, Clone, Default)]
struct Model {
    limits: [Limit; 5],
    /// Open exposures by holder: what is left of them.
    open: BTreeMap<String, u64>,
}

impl Model {
    /// Holds it, and says of each limit whether it is over for certain, and over at most.
    fn hold(&mut self, asked: &[Asked], now: i64) -> BTreeMap<usize, (bool, bool)> {
        let mut over = BTreeMap::new();
        for (limit, holder, value, fee) in asked {
            let (period, max) = LIMITS[*limit];
            let this = &mut self.limits[*limit];
            let held = this.held.entry(holder.clone()).or_default();
            let before = held.0 + held.1;
            *held = (held.0.max(*value), held.1.max(*fee));
            let grew = held.0 + held.1 > before;
            let is_over = |longer| grew && this.held() + this.spent(period, now, longer) > max;
            let (certain, at_most) = (is_over(0), is_over(piece(period)));
            let known: &mut (bool, bool) = over.entry(*limit).or_default();
            *known = (known.0 || certain, known.1 || at_most);
            this.seen = this.seen.max(now);
        }
        over
    }

    fn drop_all(&mut self, holder: &str) {
        self.limits.iter_mut().for_each(|limit| _ = limit.held.remove(holder));
    }

    fn settle(&mut self, holder: &str, moved: bool, fee: Option<u64>, now: i64) {
        for (n, limit) in self.limits.iter_mut().enumerate() {
            if let Some((value, held_fee)) = limit.held.remove(holder) {
                let value = if moved || n == COUNT { value } else { 0 };
                limit.settle(value + fee.map_or(held_fee, |paid| paid.min(held_fee)), now);
            }
        }
    }

    fn see(&mut self, holder: &str, used: u64, freed: u64, ends: bool, now: i64) {
        for limit in &mut self.limits {
            let Some((value, _)) = limit.held.get(holder).copied() else { continue };
            if used > 0 {
                limit.settle(used, now);
            }
            let left = if ends { 0 } else { value - used - freed };
            limit.held.insert(holder.to_owned(), (left, 0));
            if left == 0 {
                limit.held.remove(holder);
            }
        }
    }
}

/// One history, on limits of its own.
struct Play {
    store: Arc<dyn Store>,
    case: u8,
    model: Model,
    now: i64,
    /// How often each owner has come to an end: then it is another.
    lives: [u32; 6],
    /// What an owner has exposed.
    exposed: BTreeMap<String, u64>,
}

impl Play {
    fn charge(&self, limit: usize, value: u64, fee: u64) -> Charge {
        let (period, max) = LIMITS[limit];
        let kind = if limit == COUNT {
            ChargeKind::Count(1)
        } else {
            ChargeKind::Amount { value: Amount::from(value), fee: Amount::from(fee) }
        };
        let mut id = [self.case; 32];
        id[31] = u8::try_from(limit).unwrap();
        let label = self.label(limit);
        Charge { limit: LimitId(id), label, period, ..charge(0, kind, max, 1) }
    }

    fn label(&self, limit: usize) -> String {
        format!("case {} limit {limit}", self.case)
    }

    fn owner(&self, owner: u8) -> String {
        format!("case {} owner {owner} life {}", self.case, self.lives[usize::from(owner)])
    }

    async fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Wait(millis) => self.now += millis,
            Step::Hold { owner, value, fee, which, exposed } => {
                self.hold(owner, (value, fee), which, exposed).await?;
            }
            Step::Settle { owner, moved, fee } => {
                let name = self.owner(owner);
                self.model.settle(&name, moved, fee, self.now);
                settle(&self.store, &name, moved, fee, self.now).await;
                if let Some(left) = self.exposed.remove(&name) {
                    let holder = format!("{name}/exposure/0");
                    if moved {
                        self.model.open.insert(holder, left);
                    } else {
                        self.model.drop_all(&holder);
                    }
                }
                self.lives[usize::from(owner)] += 1;
            }
            Step::Release { owner } => {
                let name = self.owner(owner);
                self.model.drop_all(&name);
                self.model.drop_all(&format!("{name}/exposure/0"));
                self.exposed.remove(&name);
                release(&self.store, &name).await;
                self.lives[usize::from(owner)] += 1;
            }
            Step::See { which, used, freed, ends } => self.see(which, used, freed, ends).await,
        }
        self.check().await
    }

    async fn hold(
        &mut self,
        owner: u8,
        (value, fee): (u64, u64),
        which: u8,
        exposed: Option<u64>,
    ) -> Result<(), TestCaseError> {
        let name = self.owner(owner);
        let chosen: Vec<usize> = (0..5).filter(|limit| which & (1 << limit) != 0).collect();
        let of = |limit: usize| if limit == COUNT { (1, 0) } else { (value, fee) };
        let mut asked: Vec<Asked> =
            chosen.iter().map(|limit| (*limit, name.clone(), of(*limit).0, of(*limit).1)).collect();
        // Handed over backwards: the store sorts them itself.
        let charges = chosen.iter().rev().map(|limit| self.charge(*limit, value, fee)).collect();
        let mut hold = Hold {
            owner: name.clone(),
            chain: Some(CHAIN),
            charges,
            exposures: Vec::new(),
            at_once: false,
        };
        let amounts: Vec<usize> = chosen.into_iter().filter(|limit| *limit != COUNT).collect();
        if let Some(amount) = exposed.filter(|_| !amounts.is_empty()) {
            let holder = format!("{name}/exposure/0");
            let of_each = amounts.iter().map(|limit| (*limit, holder.clone(), amount, 0));
            asked.extend(of_each);
            asked.sort();
            let exposure = Exposure {
                token: Address::repeat_byte(1),
                owner: Address::repeat_byte(2),
                spender: Address::repeat_byte(owner),
                amount: Amount::from(amount),
                form: ApprovalForm::Approve,
                permit: None,
                charges: amounts.iter().map(|limit| self.charge(*limit, amount, 0)).collect(),
            };
            hold.exposures.push(exposure);
        }
        let mut next = self.model.clone();
        let over = next.hold(&asked, self.now);
        let full = hold_in(&self.store, &hold, self.now).await;
        let full = full.map(|full| (0..5).find(|n| self.label(*n) == full.label).unwrap());
        for (limit, (certain, at_most)) in over {
            prop_assert!(!certain || full.is_some_and(|full| full <= limit), "{} is over", limit);
            prop_assert!(at_most || full != Some(limit), "there is room in {}", limit);
        }
        if full.is_none() {
            self.model = next;
            if let Some(exposure) = hold.exposures.first() {
                let given = self.exposed.entry(name).or_default();
                *given = (*given).max(exposure.amount.units().to());
            }
        }
        Ok(())
    }

    /// A final block shows something of an open exposure.
    async fn see(&mut self, which: usize, used: u64, freed: u64, ends: bool) {
        let Some((holder, left)) = self.model.open.iter().nth(which) else { return };
        let (holder, left) = (holder.clone(), *left);
        let used = used.min(left);
        let freed = freed.min(left - used);
        let owner = holder.strip_suffix("/exposure/0").unwrap().to_owned();
        let (ends, now) = (ends || used + freed == left, self.now);
        let seen = commit!(self.store, [owner], |unit| {
            let row = unit.exposures_of(&owner).await?.remove(0);
            assert_eq!(row.state, ExposureState::Open);
            assert_eq!(row.remaining, Amount::from(left));
            let change = ExposureChange {
                block: row.seen_block + 1,
                submitted: true,
                used: Amount::from(used),
                freed: Amount::from(freed),
                ended: ends.then_some("test"),
                row,
            };
            unit.see_exposures(&[change], at(now)).await?
        });
        assert!(seen.unwrap());
        self.model.see(&holder, used, freed, ends, now);
        if ends {
            self.model.open.remove(&holder);
        } else {
            self.model.open.insert(holder, left - used - freed);
        }
    }

    async fn check(&self) -> Result<(), TestCaseError> {
        let rows = read!(self.store, [], |unit| unit.limits_now(at(i64::MIN)).await?);
        for (limit, (period, _)) in LIMITS.into_iter().enumerate() {
            let label = self.label(limit);
            let row = rows.iter().find(|row| row.label == label);
            let sums = row.map(|row| (row.held.units().to::<u64>(), row.spent.units().to::<u64>()));
            let (held, spent) = sums.unwrap_or_default();
            let model = &self.model.limits[limit];
            prop_assert_eq!(held, model.held(), "held by {}", limit);
            // What the store has taken out was out at some time that a decision has seen, which may be after
            // now: then it is not asked.
            if self.now >= model.seen {
                let in_span = model.spent(period, self.now, 0);
                prop_assert!(spent >= in_span, "limit {}: {} of {}", limit, spent, in_span);
            }
        }
        Ok(())
    }
}

async fn hold_in(store: &Arc<dyn Store>, hold: &Hold, now: i64) -> Option<LimitExceeded> {
    let hold = hold.clone();
    unit(&**store, "hold", move |unit| {
        let hold = hold.clone();
        Box::pin(async move {
            Ok(match unit.hold(&hold, at(now)).await? {
                None => End::Commit(None),
                full => End::Rollback(full),
            })
        })
    })
    .await
    .unwrap()
}

async fn a_random_history_is_what_the_model_says_and_never_above_a_limit(store: Arc<dyn Store>) {
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let seeded = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, seeded);
    let case = AtomicU8::new(0);
    let histories = prop::collection::vec(step(), STEPS);
    let result = runner.run(&histories, |steps| {
        let mut play = Play {
            store: store.clone(),
            case: case.fetch_add(1, Ordering::SeqCst),
            model: Model::default(),
            // In the midst of a day.
            now: 20_000 * DAY_MS + DAY_MS / 2,
            lives: [0; 6],
            exposed: BTreeMap::new(),
        };
        tokio::task::block_in_place(|| {
            Handle::current().block_on(async {
                for step in &steps {
                    play.step(step).await?;
                }
                Ok(())
            })
        })
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
}
