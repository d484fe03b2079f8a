//! Which of the grants whose selectors match really cover what, and how far the others get.

use super::bounds::{covers, moved, stands};
use super::fees::fee_cap;
use super::matching::{Ask, Found, Match, near, stage};
use crate::core::amount::Amount;
use crate::core::intent::{Fees, Intent};
use crate::core::policy::Effect;
use crate::core::policy::bundle::grant::Mode;
use crate::core::policy::bundle::index::{GrantNumber, Terms};
use crate::core::policy::verdict::EventUse;
use alloy::primitives::U256;

/// The stages at which a grant fails that matches, the nearest to covering first.
pub(super) const OF_MATCHES: [u8; 4] = [stage::FEE, stage::BOUNDS, stage::HOURS, stage::EXPIRES];

/// So many candidates are compared with a new one. More would find more that need not be kept.
const COMPARED: usize = 4;

/// A grant that covers an effect.
pub(super) struct Candidate {
    pub number: GrantNumber,
    pub cap: Option<Fees>,
    pub event: Option<Box<EventUse>>,
}

/// What covers an effect. Of grants that are never preferred to an earlier one, only the price is kept.
#[derive(Default)]
pub(super) struct Cover {
    /// In the order of ids.
    pub candidates: Vec<Candidate>,
    /// The prices that they let be signed at most, in no order; empty where nothing is sent.
    pub max_fees: Vec<u128>,
    /// The highest fees so far: what uses up no event and has none above them is not preferred.
    best: Option<Fees>,
}

/// What the grants that match came to.
#[derive(Default)]
pub(super) struct Coverage<'a> {
    /// Of each effect, by its place.
    covers: Vec<Cover>,
    /// The effects beside the fee, by their places.
    places: Vec<usize>,
    /// Each grant with an effect that it matches and does not cover: by stage, as in [`OF_MATCHES`].
    missed: [Vec<(GrantNumber, usize)>; OF_MATCHES.len()],
    /// Those that decide and have windows, approvals or delays, in the order of ids.
    pub following: Vec<Match<'a>>,
    /// Those in shadow mode.
    pub shadows: Vec<Match<'a>>,
}

impl Candidate {
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

impl Cover {
    /// As [`Self::add`], for what uses up no event.
    #[inline]
    fn add_fees(&mut self, number: GrantNumber, fees: Fees) {
        let within = |one: Fees, other: Fees| {
            one.max_fee <= other.max_fee && one.max_priority_fee <= other.max_priority_fee
        };
        match self.best {
            Some(best) if within(fees, best) => return self.add_max_fee(fees.max_fee),
            Some(best) if !within(best, fees) => {}
            _ => self.best = Some(fees),
        }
        self.add(Candidate { number, cap: Some(fees), event: None });
    }

    #[inline]
    fn add_max_fee(&mut self, max_fee: u128) {
        if self.max_fees.last() != Some(&max_fee) {
            self.max_fees.push(max_fee);
        }
    }

    fn add(&mut self, one: Candidate) {
        if let Some(max_fee) = one.max_fee() {
            self.add_max_fee(max_fee);
        }
        let is_better =
            |other: &Candidate| other.max_fee() >= one.max_fee() && other.rank() >= one.rank();
        if !self.candidates.iter().rev().take(COMPARED).any(is_better) {
            self.candidates.push(one);
        }
    }
}

/// What an effect of the signing account's own moves.
struct Own {
    amount: Amount,
    /// What reached the top of 256 bits is within no bound.
    is_beyond: bool,
}

impl Own {
    /// `None` where the account acts through another.
    fn of(effect: &Effect, ask: &Ask<'_>) -> Option<Self> {
        let is_own = effect.actor().is_none_or(|actor| actor == ask.request.address);
        let amount = moved(effect);
        is_own.then(|| Self { amount, is_beyond: amount == Amount::new(U256::MAX) })
    }
}

impl<'a> Coverage<'a> {
    /// Tries all that match.
    pub fn of(ask: &Ask<'a>) -> Self {
        let mut coverage = Self::default();
        let effects = ask.effects.iter().enumerate();
        let beside_fee = effects.filter(|(_, effect)| !matches!(effect, Effect::FeeMax { .. }));
        coverage.places = beside_fee.map(|(place, _)| place).collect();
        coverage.covers.resize_with(ask.effects.len(), Cover::default);
        let own: Vec<Option<Own>> = ask.effects.iter().map(|effect| Own::of(effect, ask)).collect();
        near(ask, |found| match found {
            Found::Simple { number, terms, place } => {
                if let Some(Some(own)) = own.get(place) {
                    coverage.add_simple(number, terms, (place, own), ask);
                }
            }
            Found::Other { number, rule, near } => {
                if let Some(one) = Match::near(number, rule, near, ask) {
                    coverage.add_match(one, ask);
                }
            }
        });
        coverage
    }

    fn add_match(&mut self, one: Match<'a>, ask: &Ask<'_>) {
        match one.mode() {
            Mode::Enforce => {
                self.add(&one, ask);
                if one.follows() {
                    self.following.push(one);
                }
            }
            Mode::Shadow if one.effects.is_empty() => {}
            Mode::Shadow => self.shadows.push(one),
        }
    }

    /// As [`Self::add`], for what says nothing beside when, how much and at which fee.
    fn add_simple(
        &mut self,
        number: GrantNumber,
        terms: &Terms,
        (place, own): (usize, &Own),
        ask: &Ask<'_>,
    ) {
        let cap = match (&ask.request.intent, terms.fee) {
            // In the order of `stands`.
            _ if ask.now >= terms.expires_at => Err(stage::EXPIRES),
            _ if terms.most.is_some_and(|most| own.is_beyond || own.amount > most) => {
                Err(stage::BOUNDS)
            }
            (Intent::Transaction(tx), Some(fee)) => fee_cap(fee, tx).map_err(|_| stage::FEE),
            _ => Err(stage::FEE),
        };
        match cap {
            Ok(cap) => {
                if let Some(cover) = self.covers.get_mut(place) {
                    cover.add_fees(number, cap);
                }
            }
            Err(stage) => self.miss(stage, number, place),
        }
    }

    fn add(&mut self, one: &Match<'a>, ask: &Ask<'_>) {
        if one.effects.is_empty() {
            return;
        }
        let number = one.number;
        let cap = match stands(one, ask) {
            Ok(cap) => cap,
            Err(failed) => {
                for place in one.effects.iter() {
                    self.miss(failed.stage, number, *place);
                }
                return;
            }
        };
        for place in one.effects.iter().copied() {
            let (Some(effect), Some(cover)) = (ask.effect(place), self.covers.get_mut(place))
            else {
                continue;
            };
            match covers(one, effect, ask) {
                Ok(event) => cover.add(Candidate { number, cap, event }),
                Err(failed) => self.miss(failed.stage, number, place),
            }
        }
    }

    /// What covers each effect beside the fee.
    pub fn beside_fee(&self) -> impl Iterator<Item = &Cover> {
        self.places.iter().filter_map(|place| self.covers.get(*place))
    }

    /// The effects beside the fee, by their places.
    pub fn places(&self) -> &[usize] {
        &self.places
    }

    /// Those of them that no grant covers.
    pub fn uncovered(&self) -> Vec<usize> {
        let covers = self.places.iter().zip(self.beside_fee());
        let uncovered = covers.filter(|(_, cover)| cover.candidates.is_empty());
        uncovered.map(|(place, _)| *place).collect()
    }

    fn miss(&mut self, stage: u8, number: GrantNumber, place: usize) {
        let mut stages = OF_MATCHES.iter().zip(&mut self.missed);
        if let Some((_, missed)) = stages.find(|(one, _)| **one == stage) {
            missed.push((number, place));
        }
    }

    /// The grants that match one of these effects and do not cover it, the nearest to that first, then by effect
    /// and by id.
    pub fn missed<'m>(
        &'m self,
        places: &'m [usize],
    ) -> impl Iterator<Item = (GrantNumber, usize)> + 'm {
        let all = self.missed.iter().flat_map(move |missed| {
            places.iter().flat_map(move |place| missed.iter().filter(move |it| it.1 == *place))
        });
        all.copied()
    }
}
