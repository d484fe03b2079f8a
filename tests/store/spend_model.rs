//! Random histories of reservations against a model that keeps every entry.

use crate::fixtures::at;
use crate::spend::{charge, release, reserve, settle};
use claviger::core::amount::Amount;
use claviger::core::policy::{Charge, ChargeKind, LimitId};
use claviger::ports::store::{Store, StoreError};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use tokio::runtime::Handle;

on_both!(a_random_history_is_what_the_model_says_and_never_above_a_limit);

const CASES: u32 = 30;
const STEPS: usize = 40;
/// Length and maximum of each limit: amounts, amounts over a longer span, requests.
const LIMITS: [(i64, u64); 3] = [(100, 40), (250, 70), (60, 3)];

#[derive(Debug, Clone)]
enum Step {
    Wait(i64),
    Reserve { owner: u8, value: u64, fee: u64, which: u8 },
    Settle { owner: u8, moved: bool, fee: Option<u64> },
    Release { owner: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    let owner = 0..6_u8;
    prop_oneof![
        2 => (0..120_i64).prop_map(Step::Wait),
        5 => (owner.clone(), 0..20_u64, 0..6_u64, 1..8_u8)
            .prop_map(|(owner, value, fee, which)| Step::Reserve { owner, value, fee, which }),
        3 => (owner.clone(), any::<bool>(), prop::option::of(0..8_u64))
            .prop_map(|(owner, moved, fee)| Step::Settle { owner, moved, fee }),
        1 => owner.prop_map(|owner| Step::Release { owner }),
    ]
}

#[derive(Debug, Clone)]
struct Entry {
    value: u64,
    fee: u64,
    settled_at: Option<i64>,
}

impl Entry {
    fn total(&self) -> u64 {
        self.value + self.fee
    }
}

/// The entries of each limit by owner.
#[derive(Debug, Clone, Default)]
struct Model {
    limits: BTreeMap<usize, BTreeMap<u8, Entry>>,
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Held,
    Full(usize),
    Settled,
}

impl Model {
    fn held(&self, limit: usize) -> u64 {
        let entries = self.limits.get(&limit).into_iter().flatten();
        entries.filter(|(_, e)| e.settled_at.is_none()).map(|(_, e)| e.total()).sum()
    }

    /// Spent within the span that ends now.
    fn spent(&self, limit: usize, now: i64) -> u64 {
        let counts =
            |e: &Entry| e.settled_at.is_some_and(|settled| settled + LIMITS[limit].0 > now);
        let entries = self.limits.get(&limit).into_iter().flatten();
        entries.filter(|(_, e)| counts(e)).map(|(_, e)| e.total()).sum()
    }

    fn reserve(&mut self, owner: u8, asked: &[(usize, u64, u64)], now: i64) -> Answer {
        let mut next = self.clone();
        for &(limit, value, fee) in asked {
            let entries = next.limits.entry(limit).or_default();
            entries.retain(|_, e| e.settled_at.is_none_or(|at| at + LIMITS[limit].0 > now));
            let entry =
                entries.entry(owner).or_insert(Entry { value: 0, fee: 0, settled_at: None });
            if entry.settled_at.is_some() {
                return Answer::Settled;
            }
            let before = entry.total();
            *entry =
                Entry { value: entry.value.max(value), fee: entry.fee.max(fee), settled_at: None };
            let grew = entry.total() > before;
            if grew && next.held(limit) + next.spent(limit, now) > LIMITS[limit].1 {
                return Answer::Full(limit);
            }
        }
        *self = next;
        Answer::Held
    }

    fn settle(&mut self, owner: u8, moved: bool, fee: Option<u64>, now: i64) {
        for (limit, entries) in &mut self.limits {
            if let Some(entry) = entries.get_mut(&owner).filter(|e| e.settled_at.is_none()) {
                let is_count = *limit == 2;
                entry.value = if moved || is_count { entry.value } else { 0 };
                entry.fee = fee.map_or(entry.fee, |paid| paid.min(entry.fee));
                entry.settled_at = Some(now);
            }
        }
    }

    fn release(&mut self, owner: u8) {
        for entries in self.limits.values_mut() {
            entries.retain(|other, e| *other != owner || e.settled_at.is_some());
        }
    }
}

/// One history, on limits of its own.
struct Play {
    store: Arc<dyn Store>,
    case: u8,
    model: Model,
    now: i64,
}

impl Play {
    fn charge(&self, limit: usize, value: u64, fee: u64) -> Charge {
        let (span, max) = LIMITS[limit];
        let kind = if limit == 2 {
            ChargeKind::Count
        } else {
            ChargeKind::Amount { value: Amount::from(value), fee: Amount::from(fee) }
        };
        let mut id = [self.case; 32];
        id[31] = u8::try_from(limit).unwrap();
        let label = self.label(limit);
        Charge { limit: LimitId(id), label, ..charge(0, kind, max, span) }
    }

    fn label(&self, limit: usize) -> String {
        format!("case {} limit {limit}", self.case)
    }

    fn owner(&self, owner: u8) -> String {
        format!("case {} owner {owner}", self.case)
    }

    async fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Wait(millis) => self.now += millis,
            Step::Reserve { owner, value, fee, which } => {
                let chosen: Vec<usize> = (0..3).filter(|limit| which & (1 << limit) != 0).collect();
                let asked = |limit| if limit == 2 { (limit, 1, 0) } else { (limit, value, fee) };
                let asked: Vec<_> = chosen.into_iter().map(asked).collect();
                // Handed over backwards: the store sorts them itself.
                let charges: Vec<Charge> =
                    asked.iter().rev().map(|&(limit, v, f)| self.charge(limit, v, f)).collect();
                let expected = self.model.reserve(owner, &asked, self.now);
                let answer = reserve(&self.store, &self.owner(owner), &charges, self.now).await;
                let answered = match answer {
                    Ok(None) => Answer::Held,
                    Ok(Some(full)) => {
                        Answer::Full((0..3).find(|limit| self.label(*limit) == full.label).unwrap())
                    }
                    Err(StoreError::Corrupt(_)) => Answer::Settled,
                    Err(other) => return Err(TestCaseError::fail(other.to_string())),
                };
                prop_assert_eq!(answered, expected);
            }
            Step::Settle { owner, moved, fee } => {
                self.model.settle(owner, moved, fee, self.now);
                settle(&self.store, &self.owner(owner), moved, fee, self.now).await;
            }
            Step::Release { owner } => {
                self.model.release(owner);
                release(&self.store, &self.owner(owner)).await;
            }
        }
        self.check().await
    }

    async fn check(&self) -> Result<(), TestCaseError> {
        let rows = read!(self.store, [], |unit| unit.limits_now(at(0)).await?);
        for (limit, (_, max)) in LIMITS.into_iter().enumerate() {
            let label = self.label(limit);
            let row = rows.iter().find(|row| row.label == label);
            let sums = row.map(|row| (row.held.units().to::<u64>(), row.spent.units().to::<u64>()));
            let (held, spent) = sums.unwrap_or_default();
            let in_span = self.model.spent(limit, self.now);
            prop_assert_eq!(held, self.model.held(limit), "held by {}", limit);
            prop_assert!(spent >= in_span, "limit {}: {} of {}", limit, spent, in_span);
            prop_assert!(held + in_span <= max, "limit {} is at {}", limit, held + in_span);
        }
        Ok(())
    }
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
            now: at(0).millis(),
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
