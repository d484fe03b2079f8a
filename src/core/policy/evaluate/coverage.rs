//! Which of the grants whose selectors match really cover what, and how far the others get.

use super::bounds::{covers, stands};
use super::matching::{Ask, Match, matches, stage};
use crate::core::intent::Fees;
use crate::core::policy::Effect;
use crate::core::policy::bundle::grant::{Grant, Mode};
use crate::core::policy::bundle::index::GrantNumber;
use crate::core::policy::verdict::EventUse;

/// The stages at which a grant fails that matches, the nearest to covering first.
pub(super) const OF_MATCHES: [u8; 4] = [stage::FEE, stage::BOUNDS, stage::HOURS, stage::EXPIRES];

/// So many candidates are compared with a new one. More would find more that need not be kept.
const COMPARED: usize = 4;

/// A grant that covers an effect.
pub(super) struct Candidate<'a> {
    pub grant: &'a Grant,
    pub cap: Option<Fees>,
    pub event: Option<Box<EventUse>>,
}

/// What covers an effect. Of grants that are never preferred to an earlier one, only the price is kept.
#[derive(Default)]
pub(super) struct Cover<'a> {
    /// In the order of ids.
    pub candidates: Vec<Candidate<'a>>,
    /// The prices that they let be signed at most, in no order; empty where nothing is sent.
    pub max_fees: Vec<u128>,
}

/// A grant that matches an effect and does not cover it.
struct Missed {
    stage: u8,
    place: usize,
    number: GrantNumber,
}

/// What the grants that match came to.
#[derive(Default)]
pub(super) struct Coverage<'a> {
    /// Each effect beside the fee, by its place.
    beside_fee: Vec<(usize, Cover<'a>)>,
    missed: Vec<Missed>,
    /// Those that decide and have windows, approvals or delays, in the order of ids.
    pub following: Vec<Match<'a>>,
    /// Those in shadow mode.
    pub shadows: Vec<Match<'a>>,
}

impl Candidate<'_> {
    /// What is preferred among those that let a price be signed: the highest tip, then one that uses up the named
    /// event.
    pub fn rank(&self) -> (Option<u128>, bool) {
        (self.cap.map(|cap| cap.max_priority_fee), self.event.is_some())
    }

    /// The price that it lets be signed at most; `None` where nothing is sent.
    pub fn max_fee(&self) -> Option<u128> {
        self.cap.map(|cap| cap.max_fee)
    }
}

impl<'a> Cover<'a> {
    fn add(&mut self, one: Candidate<'a>) {
        if let Some(max_fee) = one.max_fee()
            && self.max_fees.last() != Some(&max_fee)
        {
            self.max_fees.push(max_fee);
        }
        let is_better =
            |other: &Candidate<'_>| other.max_fee() >= one.max_fee() && other.rank() >= one.rank();
        if !self.candidates.iter().rev().take(COMPARED).any(is_better) {
            self.candidates.push(one);
        }
    }
}

impl<'a> Coverage<'a> {
    /// Tries all that match.
    pub fn of(ask: &Ask<'a>) -> Self {
        let mut coverage = Self::default();
        let effects = ask.effects.iter().enumerate();
        let beside_fee = effects.filter(|(_, effect)| !matches!(effect, Effect::FeeMax { .. }));
        coverage.beside_fee = beside_fee.map(|(place, _)| (place, Cover::default())).collect();
        matches(ask, |one| match one.mode() {
            Mode::Enforce => {
                coverage.add(&one, ask);
                if one.follows() {
                    coverage.following.push(one);
                }
            }
            Mode::Shadow if one.effects.is_empty() => {}
            Mode::Shadow => coverage.shadows.push(one),
        });
        coverage
    }

    fn add(&mut self, one: &Match<'a>, ask: &Ask<'_>) {
        if one.effects.is_empty() {
            return;
        }
        let number = one.number;
        let cap = match stands(one, ask) {
            Ok(cap) => cap,
            Err(failed) => {
                let (stage, places) = (failed.stage, one.effects.iter().copied());
                self.missed.extend(places.map(|place| Missed { stage, place, number }));
                return;
            }
        };
        for place in one.effects.iter().copied() {
            let at = self.beside_fee.binary_search_by_key(&place, |(place, _)| *place);
            let cover = at.ok().and_then(|at| self.beside_fee.get_mut(at));
            let (Some(effect), Some((_, cover))) = (ask.effect(place), cover) else {
                continue;
            };
            match covers(one, effect, ask) {
                Ok(event) => cover.add(Candidate { grant: one.grant, cap, event }),
                Err(failed) => self.missed.push(Missed { stage: failed.stage, place, number }),
            }
        }
    }

    /// What covers each effect beside the fee.
    pub fn beside_fee(&self) -> impl Iterator<Item = &Cover<'a>> {
        self.beside_fee.iter().map(|(_, cover)| cover)
    }

    /// The effects beside the fee, by their places.
    pub fn places(&self) -> Vec<usize> {
        self.beside_fee.iter().map(|(place, _)| *place).collect()
    }

    /// Those of them that no grant covers.
    pub fn uncovered(&self) -> Vec<usize> {
        let uncovered = self.beside_fee.iter().filter(|(_, cover)| cover.candidates.is_empty());
        uncovered.map(|(place, _)| *place).collect()
    }

    /// The grants that match one of these effects and failed at this stage, by effect and then by id.
    pub fn missed_at(&self, stage: u8, places: &[usize]) -> Vec<(GrantNumber, usize)> {
        let here = |one: &&Missed| one.stage == stage && places.contains(&one.place);
        let missed = self.missed.iter().filter(here);
        let mut missed: Vec<(GrantNumber, usize)> =
            missed.map(|one| (one.number, one.place)).collect();
        missed.sort_by_key(|(_, place)| *place);
        missed
    }
}
