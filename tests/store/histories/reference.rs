//! What the windows should hold, counted again from the recorded history: every reservation by its holder and
//! every settlement with its moment are kept, and each sum is made anew.
//!
//! The store may count a settlement longer than its span, by one piece of it at most, and never shorter. Where
//! the clocks of servers differ, what has left the span by the fastest clock that decided has left it.

use super::program::{Ask, Do, Holder, Sight};
use claviger::core::policy::Period;
use claviger::ports::store::{LimitExceeded, Settlement};
use std::collections::BTreeMap;

const DAY_MS: i64 = 86_400_000;

/// What one of the limits is.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    pub period: Period,
    pub max: u64,
    pub counts: bool,
}

#[derive(Debug)]
struct Limit {
    kind: Kind,
    /// Value and fee, until they are settled.
    held: BTreeMap<Holder, (u64, u64)>,
    /// From when it counts, and how much.
    spent: Vec<(i64, u64)>,
    /// The newest time of a decision.
    seen: i64,
}

/// Day, week or month of a moment, so that equal ones are the same and later ones greater.
fn calendar(period: Period, at: i64) -> i64 {
    let day = at.div_euclid(DAY_MS);
    match period {
        // The first Monday was day 4.
        Period::Week => (day - 4).div_euclid(7),
        Period::Month => {
            let (mut month, mut left) = (0, day);
            loop {
                let (year, of_year) = (1970 + month / 12, month % 12);
                let long = match of_year {
                    1 if year % 4 == 0 => 29,
                    1 => 28,
                    3 | 5 | 8 | 10 => 30,
                    _ => 31,
                };
                if left < long {
                    return month;
                }
                (left, month) = (left - long, month + 1);
            }
        }
        _ => day,
    }
}

impl Limit {
    fn held(&self) -> u64 {
        self.held.values().map(|(value, fee)| value + fee).sum()
    }

    /// What counts at a moment, at least and at most.
    fn spent(&self, now: i64) -> (u64, u64) {
        let period = self.kind.period;
        let sum = |longer: i64| {
            let counts = |at: i64| match period {
                Period::Rolling(span) => at + span + longer > now,
                _ => calendar(period, at) >= calendar(period, now),
            };
            self.spent.iter().filter(|(at, _)| counts(*at)).map(|(_, spent)| spent).sum()
        };
        match period {
            Period::Rolling(span) => (sum(0), sum(span / 256)),
            _ => (sum(0), sum(0)),
        }
    }

    /// What is held and spent at a moment, at least and at most. No decision is before the newest one.
    fn used(&self, now: i64) -> (u64, u64) {
        let (least, most) = self.spent(now.max(self.seen));
        (self.held() + least, self.held() + most)
    }

    fn settle(&mut self, spent: u64, now: i64) {
        if spent > 0 {
            self.spent.push((now.max(self.seen), spent));
        }
    }

    /// Holds the largest of each part, and answers by how much that is more.
    fn hold(&mut self, ask: &Ask) -> u64 {
        let (value, fee) = self.held.get(&ask.holder).copied().unwrap_or_default();
        let (more_value, more_fee) = (value.max(ask.value), fee.max(ask.fee));
        self.held.insert(ask.holder.clone(), (more_value, more_fee));
        more_value + more_fee - value - fee
    }
}

/// What a decision finds in one limit.
struct Found {
    /// Held and spent before it, at least and at most.
    used: (u64, u64),
    increase: u64,
    max: u64,
}

#[derive(Debug)]
pub struct Reference {
    limits: Vec<Limit>,
}

impl Reference {
    pub fn new(kinds: &[Kind]) -> Self {
        let limit =
            |kind: &Kind| Limit { kind: *kind, held: BTreeMap::new(), spent: Vec::new(), seen: 0 };
        Self { limits: kinds.iter().map(limit).collect() }
    }

    pub fn held(&self, limit: usize) -> u64 {
        self.limits[limit].held()
    }

    pub fn used(&self, limit: usize, now: i64) -> (u64, u64) {
        self.limits[limit].used(now)
    }

    /// The moments, of those that are not before now, at which the newest settlement of a limit leaves its span.
    pub fn edges(&self, now: i64) -> Vec<i64> {
        let edge = |limit: &Limit| match limit.kind.period {
            Period::Rolling(span) => limit.spent.iter().map(|(at, _)| at + span).max(),
            _ => None,
        };
        self.limits.iter().filter_map(edge).filter(|edge| *edge > now).collect()
    }

    /// Something that was accepted: it must have fitted. It is kept if it was committed.
    pub fn accepted(&mut self, what: &Do, now: i64, is_kept: bool) -> Result<(), String> {
        match what {
            Do::Hold { asks, hold, .. } => {
                for (n, found) in self.weigh(asks, now) {
                    let all = found.used.0 + found.increase;
                    if found.increase > 0 && all > found.max {
                        return Err(format!("limit {n} is exceeded: {all} of {}", found.max));
                    }
                }
                if is_kept {
                    self.keep(asks, hold.at_once, now);
                }
            }
            _ if !is_kept => {}
            Do::Settle { owner, outcome } => self.settle(owner, *outcome, now),
            Do::Release { owner } => self.drop_all(|holder| holder.owner == *owner),
            Do::See(seen) => seen.iter().for_each(|seen| self.see(seen, now)),
            Do::LookAt(_) => {}
        }
        Ok(())
    }

    /// Something that a limit had no room for: it must have had none, and no limit before it either.
    pub fn refused(
        &self,
        asks: &[Ask],
        now: i64,
        (full, told): (usize, &LimitExceeded),
    ) -> Result<(), String> {
        for (n, found) in self.weigh(asks, now) {
            let over = |used: u64| found.increase > 0 && used + found.increase > found.max;
            let used = told.used.units().to::<u64>();
            if n < full && over(found.used.0) {
                return Err(format!("limit {n} was over, and {full} was told"));
            }
            if n != full {
                continue;
            }
            if !over(found.used.1) {
                return Err(format!(
                    "limit {n} had room: {} of {} used, {} more asked",
                    found.used.1, found.max, found.increase
                ));
            }
            // Of this request itself another part may have been counted before the one that was too much.
            if used < found.used.0 || used > found.used.1 + found.increase {
                return Err(format!("limit {n} told {used} as used, which is {:?}", found.used));
            }
        }
        Ok(())
    }

    /// By limit: nothing is kept of it.
    fn weigh(&self, asks: &[Ask], now: i64) -> BTreeMap<usize, Found> {
        let mut found: BTreeMap<usize, Found> = BTreeMap::new();
        for ask in asks {
            let limit = &self.limits[ask.limit];
            let (value, fee) = limit.held.get(&ask.holder).copied().unwrap_or_default();
            let increase = value.max(ask.value) - value + fee.max(ask.fee) - fee;
            let this = found.entry(ask.limit).or_insert_with(|| Found {
                used: limit.used(now),
                increase: 0,
                max: ask.max,
            });
            this.increase += increase;
        }
        found
    }

    fn keep(&mut self, asks: &[Ask], at_once: bool, now: i64) {
        for ask in asks {
            let limit = &mut self.limits[ask.limit];
            limit.seen = limit.seen.max(now);
            if at_once && ask.holder.spender.is_none() {
                limit.settle(ask.value + ask.fee, now);
            } else {
                limit.hold(ask);
            }
        }
    }

    fn settle(&mut self, owner: &str, outcome: Settlement, now: i64) {
        let holder = Holder { owner: owner.to_owned(), spender: None };
        for limit in &mut self.limits {
            let Some((value, fee)) = limit.held.remove(&holder) else { continue };
            let kept = if limit.kind.counts || outcome.value_moved { value } else { 0 };
            let most = if outcome.fee_from_value && fee > 0 { value + fee } else { fee };
            let paid = outcome.fee_paid.map_or(fee, |paid| paid.units().to::<u64>().min(most));
            limit.settle(kept + paid, now);
        }
        if !outcome.value_moved {
            self.drop_all(|holder| holder.owner == owner);
        }
    }

    fn see(&mut self, seen: &Sight, now: i64) {
        for limit in &mut self.limits {
            let Some((value, fee)) = limit.held.remove(&seen.holder) else { continue };
            let used = seen.used.min(value);
            limit.settle(used, now);
            let left = if seen.ends { 0 } else { (value - used).saturating_sub(seen.freed) };
            if left > 0 {
                limit.held.insert(seen.holder.clone(), (left, fee));
            }
        }
    }

    fn drop_all(&mut self, is_one: impl Fn(&Holder) -> bool) {
        for limit in &mut self.limits {
            limit.held.retain(|holder, _| !is_one(holder));
        }
    }
}
