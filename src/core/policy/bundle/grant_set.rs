//! Sets of grants, as bits: what is said of thousands of grants at once is a few words of memory.

use super::index::GrantNumber;

/// Some of a bundle's grants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrantSet {
    /// 64 grants each, from the first; what is beyond the last word is not in the set.
    words: Vec<u64>,
}

/// Grants in one word.
const EACH: usize = 64;

fn bit(number: GrantNumber) -> u64 {
    1_u64.rotate_left(u32::try_from(number % EACH).unwrap_or(0))
}

impl GrantSet {
    /// Adds a grant.
    pub fn insert(&mut self, number: GrantNumber) {
        let place = number / EACH;
        if self.words.len() <= place {
            self.words.resize(place.saturating_add(1), 0);
        }
        if let Some(word) = self.words.get_mut(place) {
            *word |= bit(number);
        }
    }

    /// Whether it is in the set.
    #[must_use]
    pub fn contains(&self, number: GrantNumber) -> bool {
        self.words.get(number / EACH).is_some_and(|word| word & bit(number) != 0)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Adds all of another set.
    pub fn add(&mut self, other: &Self) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }

    /// Those that are in both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let both = self.words.iter().zip(&other.words);
        Self { words: both.map(|(one, other)| one & other).collect() }
    }

    /// Those that are not in the other.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let others = other.words.iter().chain(std::iter::repeat(&0));
        Self { words: self.words.iter().zip(others).map(|(one, other)| one & !other).collect() }
    }

    /// Each, from the first.
    pub fn into_numbers(self) -> impl Iterator<Item = GrantNumber> {
        self.words.into_iter().enumerate().flat_map(|(place, word)| {
            let first = place.saturating_mul(EACH);
            Bits(word).map(move |bit| first.saturating_add(bit))
        })
    }
}

impl FromIterator<GrantNumber> for GrantSet {
    fn from_iter<I: IntoIterator<Item = GrantNumber>>(numbers: I) -> Self {
        let mut set = Self::default();
        for number in numbers {
            set.insert(number);
        }
        set
    }
}

/// The places of a word's bits that are set, from the lowest.
struct Bits(u64);

impl Iterator for Bits {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let lowest = self.0.trailing_zeros();
        self.0 &= self.0.wrapping_sub(1);
        usize::try_from(lowest).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn they_are_sets(
            a in prop::collection::btree_set(0..300_usize, 0..40),
            b in prop::collection::btree_set(0..300_usize, 0..40),
        ) {
            let set = |of: &BTreeSet<usize>| of.iter().copied().collect::<GrantSet>();
            let numbers = |of: GrantSet| of.into_numbers().collect::<Vec<usize>>();
            let (one, other) = (set(&a), set(&b));
            prop_assert_eq!(numbers(one.and(&other)), a.intersection(&b).copied().collect::<Vec<_>>());
            prop_assert_eq!(numbers(one.without(&other)), a.difference(&b).copied().collect::<Vec<_>>());
            let mut all = one.clone();
            all.add(&other);
            prop_assert_eq!(numbers(all), a.union(&b).copied().collect::<Vec<_>>());
            prop_assert_eq!(one.is_empty(), a.is_empty());
            for number in 0..400 {
                prop_assert_eq!(one.contains(number), a.contains(&number));
            }
        }
    }
}
