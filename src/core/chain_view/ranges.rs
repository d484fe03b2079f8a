//! How many blocks to ask a node for at once.
//!
//! Nodes refuse ranges that have too many blocks, too many logs, or take too long, by rules that they do
//! not tell and change. So the width is found: halved where it is refused, brought near to the boundary
//! between what was answered and what was not, and tried wider again after enough answers, since what was
//! refused among many logs may do where there are few. What a node says would work is tried once and never
//! trusted. At one block there is nothing left to make smaller: that block is read from its receipts.

/// So many answers in a row at a width, and a wider one is tried.
const PATIENCE_MIN: u32 = 16;
/// The same after wider ones were refused again and again.
const PATIENCE_MAX: u32 = 512;
/// So many failures in a row without words count as a refusal: the node may not be able to do so much.
const SILENCES_MAX: u32 = 2;

/// What to do after a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Ask again: the next range is narrower.
    Narrower,
    /// It was one block: read its receipts.
    OneBlock,
}

/// The widths of one node, in blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Widths {
    most: u64,
    next: u64,
    /// The widest that was answered, where it was not refused since. 0: none.
    good: u64,
    /// The narrowest that was refused, where it was not answered since.
    bad: Option<u64>,
    answers: u32,
    patience: u32,
    /// The next one is wider than what was refused before, to see whether that still holds.
    probes: bool,
    /// The last refusal's hint was taken: the next one is not.
    hinted: bool,
    silences: u32,
}

impl Widths {
    /// At most so many blocks, from 1; the first range is as wide.
    #[must_use]
    pub fn new(most: u64) -> Self {
        let most = most.max(1);
        Self {
            most,
            next: most,
            good: 0,
            bad: None,
            answers: 0,
            patience: PATIENCE_MIN,
            probes: false,
            hinted: false,
            silences: 0,
        }
    }

    /// How many blocks the next range has.
    #[must_use]
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// The last block of the next range from `from`, not above `end`.
    #[must_use]
    pub fn upto(&self, from: u64, end: u64) -> u64 {
        from.saturating_add(self.next.saturating_sub(1)).min(end)
    }

    /// A range of so many blocks was answered.
    pub fn answered(&mut self, blocks: u64) {
        (self.hinted, self.silences) = (false, 0);
        self.good = self.good.max(blocks);
        self.bad = self.bad.filter(|bad| *bad > blocks);
        if blocks < self.next {
            // The end of what is read: it says nothing about what could be asked.
            return;
        }
        if self.probes {
            (self.probes, self.patience) = (false, PATIENCE_MIN);
        }
        self.answers = self.answers.saturating_add(1);
        let doubled = blocks.saturating_mul(2).min(self.most);
        let Some(bad) = self.bad else {
            self.next = doubled;
            return;
        };
        let gap = bad.saturating_sub(blocks);
        if gap > (blocks / 8).max(1) {
            self.next = blocks.saturating_add(gap / 2).min(self.most);
        } else if self.answers >= self.patience {
            (self.bad, self.answers, self.probes) = (None, 0, true);
            self.next = doubled;
        }
    }

    /// A range of so many blocks was refused; the node says that `hint` blocks would do.
    pub fn refused(&mut self, blocks: u64, hint: Option<u64>) -> Refused {
        (self.answers, self.silences) = (0, 0);
        if self.probes {
            self.probes = false;
            self.patience = self.patience.saturating_mul(2).min(PATIENCE_MAX);
        }
        self.bad = Some(self.bad.map_or(blocks, |bad| bad.min(blocks)));
        if self.good >= blocks {
            // It was good elsewhere, and is not here.
            self.good = 0;
        }
        if blocks <= 1 {
            self.next = 1;
            return Refused::OneBlock;
        }
        let hint = hint.filter(|hint| (1..blocks).contains(hint) && !self.hinted);
        self.hinted = hint.is_some();
        let between = self.good.saturating_add(blocks.saturating_sub(self.good) / 2);
        self.next = hint.unwrap_or(between).clamp(1, blocks.saturating_sub(1));
        Refused::Narrower
    }

    /// A range of so many blocks got no answer, without a word about why.
    pub fn silent(&mut self, blocks: u64) {
        self.silences = self.silences.saturating_add(1);
        if self.silences >= SILENCES_MAX && blocks > 1 {
            self.refused(blocks, None);
        }
    }

    /// The next range has no more than so many blocks: there is much in them.
    pub fn crowded(&mut self, blocks: u64) {
        self.next = self.next.min(blocks.max(1));
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, reason = "small numbers of a property test")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A node: no more than so many blocks, and no more than so many logs, at once; and what it says.
    #[derive(Debug, Clone)]
    struct Rules {
        blocks: u64,
        logs: u64,
        hint: Option<u64>,
    }

    impl Rules {
        fn refuses(&self, from: u64, to: u64, dense: &std::ops::Range<u64>) -> bool {
            let logs: u64 = (from..=to).map(|n| if dense.contains(&n) { 40 } else { 1 }).sum();
            to - from + 1 > self.blocks || logs > self.logs
        }
    }

    /// Reads `from` to `end`: the blocks in the order in which they were read, and how often the node was
    /// asked.
    fn run(
        widths: &mut Widths,
        rules: &Rules,
        (from, end): (u64, u64),
        dense: &std::ops::Range<u64>,
    ) -> (Vec<u64>, u64) {
        let (mut read, mut calls, mut at) = (Vec::new(), 0, from);
        while at <= end {
            let to = widths.upto(at, end);
            assert!(to >= at && to <= end && to - at < widths.most, "{at} to {to}");
            calls += 1;
            if rules.refuses(at, to, dense) {
                if widths.refused(to - at + 1, rules.hint) == Refused::Narrower {
                    assert!(widths.next() < to - at + 1);
                    continue;
                }
                assert_eq!(at, to);
            } else {
                widths.answered(to - at + 1);
            }
            read.extend(at..=to);
            at = to + 1;
        }
        (read, calls)
    }

    proptest! {
        #[test]
        fn every_block_is_read_once_whatever_the_node_refuses_and_says(
            most in 1_u64..3000,
            blocks in 0_u64..3000,
            logs in 0_u64..3000,
            hint in proptest::option::of(0_u64..u64::MAX),
            length in 1_u64..3000,
            dense_from in 0_u64..3000,
            dense_length in 0_u64..300,
        ) {
            let rules = Rules { blocks, logs, hint };
            let dense = dense_from..dense_from + dense_length;
            let (read, calls) = run(&mut Widths::new(most), &rules, (5, 4 + length), &dense);
            prop_assert_eq!(read, (5..=4 + length).collect::<Vec<_>>());
            // One refusal for each answer at most, but for the way down.
            prop_assert!(calls <= 3 * length + 40, "{} calls for {} blocks", calls, length);
        }

        #[test]
        fn a_steady_limit_costs_few_calls_more_than_it_must(
            blocks in 4_u64..2000, hint in proptest::option::of(1_u64..3000),
        ) {
            let rules = Rules { blocks, logs: u64::MAX, hint };
            let end = blocks * 100;
            let (_, calls) = run(&mut Widths::new(2000), &rules, (1, end), &(0..0));
            prop_assert!(calls <= 100 * 5 / 4 + 40, "{} calls in place of 100", calls);
        }

        #[test]
        fn it_grows_back_when_the_limit_is_lifted(most in 2_u64..2000, blocks in 0_u64..50) {
            let mut widths = Widths::new(most);
            run(&mut widths, &Rules { blocks, logs: u64::MAX, hint: None }, (1, 2000), &(0..0));
            let free = Rules { blocks: u64::MAX, logs: u64::MAX, hint: None };
            let mut calls = 0;
            while widths.next() < most {
                widths.answered(widths.next());
                calls += 1;
                prop_assert!(calls <= u64::from(PATIENCE_MAX) + 40, "{:?}", widths);
            }
            let (_, calls) = run(&mut widths, &free, (1, 10 * most), &(0..0));
            prop_assert_eq!(calls, 10);
        }
    }

    #[test]
    fn a_hint_is_taken_once_and_the_truth_is_found_below_it() {
        let mut widths = Widths::new(10_000);
        assert_eq!(widths.refused(10_000, Some(9000)), Refused::Narrower);
        assert_eq!(widths.next(), 9000);
        widths.refused(9000, Some(8999));
        assert_eq!(widths.next(), 4500, "it said so before, and it was not so");
        for useless in [0, 4500, u64::MAX] {
            widths.refused(4500, Some(useless));
            assert_eq!(widths.next(), 2250);
        }
    }

    #[test]
    fn one_block_is_left_to_receipts_and_does_not_keep_the_next_ones_narrow() {
        let mut widths = Widths::new(8);
        for (blocks, next) in [(8, 4), (4, 2), (2, 1)] {
            assert_eq!(widths.refused(blocks, None), Refused::Narrower);
            assert_eq!(widths.next(), next);
        }
        assert_eq!(widths.refused(1, None), Refused::OneBlock);
        for next in [2, 4, 8, 8] {
            widths.answered(widths.next());
            assert_eq!(widths.next(), next);
        }
    }

    #[test]
    fn silence_counts_as_a_refusal_when_it_comes_again() {
        let mut widths = Widths::new(100);
        widths.silent(100);
        assert_eq!(widths.next(), 100);
        widths.silent(100);
        assert_eq!(widths.next(), 50);
    }
}
