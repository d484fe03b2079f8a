//! Which of the grants whose selectors match really cover what, and how far the others get.

use super::bounds::{covers, stands};
use super::matching::{Ask, Match, stage};
use crate::core::intent::Fees;
use crate::core::policy::Effect;
use crate::core::policy::bundle::grant::Grant;
use crate::core::policy::bundle::index::GrantNumber;
use crate::core::policy::verdict::EventUse;

/// The stages at which a grant fails that matches, the nearest to covering first.
pub(super) const OF_MATCHES: [u8; 4] = [stage::FEE, stage::BOUNDS, stage::HOURS, stage::EXPIRES];

/// A grant that covers an effect.
pub(super) struct Candidate<'a> {
    pub grant: &'a Grant,
    pub cap: Option<Fees>,
    pub event: Option<Box<EventUse>>,
}

impl Candidate<'_> {
    /// The price that it lets be signed at most; `None` where nothing is sent.
    pub fn max_fee(&self) -> Option<u128> {
        self.cap.map(|cap| cap.max_fee)
    }
}

/// A grant that matches an effect and does not cover it.
struct Missed {
    stage: u8,
    place: usize,
    number: GrantNumber,
}

/// What each grant that matches came to.
pub(super) struct Coverage<'f, 'a> {
    found: &'f [Match<'a>],
    /// Each effect beside the fee, by its place, with the grants that cover it in the order of ids.
    beside_fee: Vec<(usize, Vec<Candidate<'a>>)>,
    missed: Vec<Missed>,
}

impl<'f, 'a> Coverage<'f, 'a> {
    /// Tries all that match, which are in the order of ids.
    pub fn of(found: &'f [Match<'a>], ask: &Ask<'_>) -> Self {
        let mut by_effect: Vec<Vec<Candidate<'a>>> = Vec::new();
        by_effect.resize_with(ask.effects.len(), Vec::new);
        let mut missed = Vec::new();
        for one in found.iter().filter(|one| !one.effects.is_empty()) {
            let number = one.number;
            let cap = match stands(one, ask) {
                Ok(cap) => cap,
                Err(failed) => {
                    let stage = failed.stage;
                    let places = one.effects.iter();
                    missed.extend(places.map(|place| Missed { stage, place: *place, number }));
                    continue;
                }
            };
            for place in one.effects.iter().copied() {
                let (Some(effect), Some(list)) = (ask.effect(place), by_effect.get_mut(place))
                else {
                    continue;
                };
                match covers(one, effect, ask) {
                    Ok(event) => list.push(Candidate { grant: one.grant, cap, event }),
                    Err(failed) => missed.push(Missed { stage: failed.stage, place, number }),
                }
            }
        }
        let all = by_effect.into_iter().enumerate().zip(ask.effects);
        let beside_fee = all.filter(|(_, effect)| !matches!(effect, Effect::FeeMax { .. }));
        Self { found, beside_fee: beside_fee.map(|(one, _)| one).collect(), missed }
    }

    /// What covers each effect beside the fee.
    pub fn beside_fee(&self) -> impl Iterator<Item = &[Candidate<'a>]> {
        self.beside_fee.iter().map(|(_, list)| list.as_slice())
    }

    /// The effects beside the fee, by their places.
    pub fn places(&self) -> Vec<usize> {
        self.beside_fee.iter().map(|(place, _)| *place).collect()
    }

    /// Those of them that no grant covers.
    pub fn uncovered(&self) -> Vec<usize> {
        let uncovered = self.beside_fee.iter().filter(|(_, list)| list.is_empty());
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

    /// A grant, if it matches anything.
    pub fn found(&self, number: GrantNumber) -> Option<&Match<'a>> {
        let at = self.found.binary_search_by_key(&number, |one| one.number).ok()?;
        self.found.get(at)
    }

    /// Whether a grant matches an effect, whether it covers it or not.
    pub fn matches(&self, number: GrantNumber, place: usize) -> bool {
        self.found(number).is_some_and(|one| one.effects.contains(&place))
    }
}
