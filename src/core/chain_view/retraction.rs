//! What a branch that a node shows does to what was followed: nothing, a way back to the common ancestor,
//! or the end of all certainty. And who is believed about it.

use super::{Link, Place, Relation, Window};
use crate::core::agreement::Agreement;

/// Why a chain cannot be followed by itself any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Halt {
    /// What was final is gone.
    #[error(
        "a reorg of {depth} blocks goes below finality: block {finalized} was final, and the branch \
         leaves our chain after block {ancestor}"
    )]
    BelowFinality {
        /// How many of our blocks it takes back.
        depth: u64,
        /// The newest common block.
        ancestor: u64,
        /// What was final.
        finalized: u64,
    },
    /// The common ancestor is older than the window.
    #[error(
        "the branch of block {newest} leaves our chain below the window, which begins at block {oldest}{}",
        if *.is_final { ": it goes below finality" } else { "" }
    )]
    BelowWindow {
        /// The branch's newest block that was shown.
        newest: u64,
        /// The oldest block that is kept.
        oldest: u64,
        /// Whether that block was final.
        is_final: bool,
    },
}

/// What a branch means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is ours: nothing is taken back.
    Ours,
    /// The parent of its oldest block decides.
    NeedsParent(Place),
    /// Back to the newest common block; what stands above it is retracted.
    Back {
        /// That block.
        ancestor: Place,
        /// How many of our blocks are taken back.
        depth: u64,
    },
    /// An operator must look.
    Halt(Halt),
}

/// Judges a branch, newest first, each block followed by its parent. `finalized` is our newest final block.
#[must_use]
pub fn judge(window: &Window, finalized: Option<Place>, branch: &[Link]) -> Verdict {
    match window.relate(branch) {
        Relation::Known | Relation::Extends => Verdict::Ours,
        Relation::NeedsParent(parent) => Verdict::NeedsParent(parent),
        Relation::Reorg { ancestor } => {
            let tip = window.tip().map_or(ancestor.number, |tip| tip.number);
            let depth = tip.saturating_sub(ancestor.number);
            match finalized.map(|finalized| finalized.number) {
                Some(finalized) if ancestor.number < finalized => {
                    let ancestor = ancestor.number;
                    Verdict::Halt(Halt::BelowFinality { depth, ancestor, finalized })
                }
                _ => Verdict::Back { ancestor, depth },
            }
        }
        Relation::Unrelated => {
            let newest = branch.first().map_or(0, |link| link.number);
            let oldest = window.oldest().map_or(0, |oldest| oldest.number);
            let is_final = finalized.is_some_and(|finalized| finalized.number >= oldest);
            Verdict::Halt(Halt::BelowWindow { newest, oldest, is_final })
        }
    }
}

/// Whether what was found at this height goes with a reorg to this ancestor.
#[must_use]
pub const fn is_retracted(number: u64, ancestor: u64) -> bool {
    number > ancestor
}

/// Whether a delivery of what was found at this height may go, when `finalized` is the newest final block.
#[must_use]
pub const fn is_released(number: u64, finalized: u64) -> bool {
    number <= finalized
}

/// From where a source reads again after a reorg: what it took above the ancestor, but nothing from before
/// its own first block.
#[must_use]
pub fn next_after(next_block: u64, first_block: u64, ancestor: u64) -> u64 {
    next_block.min(ancestor.saturating_add(1).max(first_block))
}

/// What is made of a node's word about a reorg, after the others were asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// Nobody says otherwise, or more than half of all nodes say the same.
    Believed,
    /// More than half of all nodes say otherwise: the node is passed over.
    PassedOver,
    /// Nodes contradict each other, and neither side is more than half: wait for one to give way, as long
    /// as another node goes on from where we are.
    Split,
}

/// Weighs the nodes' words.
#[must_use]
pub fn weigh(said: &Agreement) -> Word {
    if said.is_outvoted() {
        Word::PassedOver
    } else if said.is_carried() || said.contradict.is_empty() {
        Word::Believed
    } else {
        Word::Split
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, reason = "small numbers of a property test")]
mod tests {
    use super::super::finality::{compare_at, is_older_than_window, on_ours};
    use super::*;
    use alloy::primitives::{B256, keccak256};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// The truth: what a node has, from block 0 on.
    #[derive(Clone, Debug)]
    struct Chain(Vec<Link>);

    impl Chain {
        fn new() -> Self {
            Self(vec![Link { number: 0, hash: B256::repeat_byte(9), parent: B256::ZERO }])
        }

        /// Leaves the chain after this height, and goes on for so many blocks of this fork.
        fn fork(&mut self, after: u64, blocks: u64, fork: u64) {
            self.0.truncate(usize::try_from(after).unwrap() + 1);
            for _ in 0..blocks {
                let parent = *self.0.last().unwrap();
                let number = parent.number + 1;
                let own = [&fork.to_be_bytes()[..], &number.to_be_bytes()].concat();
                let hash = keccak256([&own[..], &parent.hash[..]].concat());
                self.0.push(Link { number, hash, parent: parent.hash });
            }
        }

        fn at(&self, number: u64) -> Option<Link> {
            self.0.get(usize::try_from(number).unwrap()).copied()
        }

        fn head(&self) -> Link {
            *self.0.last().unwrap()
        }

        fn has(&self, place: Place) -> bool {
            self.at(place.number).is_some_and(|link| link.place() == place)
        }
    }

    /// One who follows, in the poller's way: every block that it has is an event that stands.
    struct Follower {
        window: Window,
        keep: usize,
        finalized: Option<Place>,
        standing: BTreeSet<(u64, B256)>,
        held: BTreeSet<(u64, B256)>,
        released: BTreeSet<(u64, B256)>,
    }

    impl Follower {
        fn new(anchor: Link, keep: usize) -> Self {
            Self {
                window: Window::new(vec![anchor]).unwrap(),
                keep,
                finalized: None,
                standing: BTreeSet::new(),
                held: BTreeSet::new(),
                released: BTreeSet::new(),
            }
        }

        fn judge(&self, chain: &Chain) -> Verdict {
            let tip = self.window.tip().unwrap();
            let newest = chain.at(tip.number + 1).unwrap_or_else(|| chain.head());
            let mut branch = vec![newest];
            loop {
                match judge(&self.window, self.finalized, &branch) {
                    Verdict::NeedsParent(parent) => branch.push(chain.at(parent.number).unwrap()),
                    verdict => return verdict,
                }
            }
        }

        /// Follows to the head, or says what halts it.
        fn follow(&mut self, chain: &Chain) -> Result<(), Halt> {
            match self.judge(chain) {
                Verdict::Halt(halt) => return Err(halt),
                Verdict::Back { ancestor, .. } => {
                    let keep = |event: &(u64, B256)| !is_retracted(event.0, ancestor.number);
                    self.standing.retain(keep);
                    self.held.retain(keep);
                    self.window.roll_back(ancestor);
                }
                Verdict::Ours | Verdict::NeedsParent(_) => {}
            }
            let tip = self.window.tip().unwrap().number;
            let new: Vec<Link> = chain.0.iter().filter(|link| link.number > tip).copied().collect();
            self.window.extend(&new, self.keep).unwrap();
            for link in new {
                self.standing.insert((link.number, link.hash));
                self.held.insert((link.number, link.hash));
            }
            Ok(())
        }

        fn settle(&mut self, chain: &Chain, final_number: u64) {
            let found = chain.at(final_number).unwrap().place();
            let here = compare_at(&self.window, found);
            let here = here.and_then(|number| chain.at(number)).map(|link| link.place());
            let Some(place) = on_ours(&self.window, found, here) else { return };
            assert!(chain.has(place), "what is final is on the node's chain");
            let go: Vec<(u64, B256)> = { self.held.iter().copied() }
                .filter(|event| is_released(event.0, place.number))
                .collect();
            for event in go {
                self.held.remove(&event);
                self.released.insert(event);
            }
            if self.finalized.is_none_or(|finalized| finalized.number < place.number) {
                self.finalized = Some(place);
            }
        }
    }

    proptest! {
        /// Whatever forks, and however far finality stays behind (also behind the window): what stands is
        /// what the chain has, what goes was final on the chain, and it halts where it must and not else.
        #[test]
        fn random_forks_agree_with_the_truth(
            keep in 2_usize..12,
            turns in prop::collection::vec((0_u64..15, 1_u64..10, 0_u64..20, any::<bool>()), 1..40),
        ) {
            let mut chain = Chain::new();
            let mut follower = Follower::new(chain.head(), keep);
            let mut final_number = 0;
            for (fork, (back, blocks, lag, breaks_finality)) in (1_u64..).zip(turns) {
                let head = chain.head().number;
                // An honest chain never leaves below what is final.
                let lowest = if breaks_finality { 0 } else { final_number };
                let after = head.saturating_sub(back).max(lowest);
                chain.fork(after, blocks, fork);
                let ours_final = follower.finalized.map_or(0, |finalized| finalized.number);
                let tip = follower.window.tip().unwrap();
                let oldest = follower.window.oldest().unwrap();
                let all: Vec<Place> = (oldest.number..=tip.number)
                    .filter_map(|number| follower.window.at(number)).collect();
                let common = all.iter().rev().find(|place| chain.has(**place)).copied();
                // A node that is lower than our window shows nothing that could be compared.
                if chain.head().number < oldest.number {
                    break;
                }
                let must_halt = common.is_none_or(|common| common.number < ours_final);
                let followed = follower.follow(&chain);
                prop_assert_eq!(followed.is_err(), must_halt, "{:?} {:?}", followed, common);
                if followed.is_err() {
                    break;
                }
                let truth: BTreeSet<(u64, B256)> =
                    chain.0.iter().skip(1).map(|link| (link.number, link.hash)).collect();
                prop_assert_eq!(&follower.standing, &truth);
                final_number = final_number.max(chain.head().number.saturating_sub(lag));
                follower.settle(&chain, final_number.min(chain.head().number));
                let is_final = |event: &(u64, B256)| {
                    chain.has(Place { number: event.0, hash: event.1 }) && event.0 <= final_number
                };
                // Also what is final below the window has gone.
                let due = truth.iter().filter(|event| is_final(event)).count();
                prop_assert_eq!(follower.released.len(), due);
                prop_assert!(follower.released.iter().all(is_final));
            }
        }

        /// A node on another fork lets nothing go that is not on its chain too.
        #[test]
        fn a_node_of_another_fork_makes_nothing_final_that_it_has_not(
            length in 1_u64..40, keep in 1_usize..20, after in 0_u64..40, other in 1_u64..40,
            final_number in 0_u64..60,
        ) {
            let mut ours = Chain::new();
            ours.fork(0, length, 1);
            let mut follower = Follower::new(ours.0[0], keep);
            follower.follow(&ours).unwrap();
            let mut theirs = ours.clone();
            theirs.fork(after.min(length), other, 2);
            let Some(found) = theirs.at(final_number) else { return Ok(()) };
            let here = compare_at(&follower.window, found.place());
            let here = here.and_then(|number| theirs.at(number)).map(|link| link.place());
            let place = on_ours(&follower.window, found.place(), here);
            if let Some(place) = place {
                prop_assert!(ours.has(place) && theirs.has(place));
            }
            // Where it has the whole window, its word counts.
            let tip = follower.window.tip().unwrap();
            if theirs.has(tip) {
                prop_assert_eq!(place.map(|place| place.number), Some(final_number.min(length)));
            }
        }

        #[test]
        fn a_source_never_reads_from_before_its_start(
            first in 1_u64..50, read in 0_u64..50, ancestor in 0_u64..99,
        ) {
            let next = first + read;
            let after = next_after(next, first, ancestor);
            prop_assert!(after >= first && after <= next);
            // All that was read above the ancestor is read again.
            prop_assert!((after..next).all(|number| is_retracted(number, ancestor)));
            prop_assert!((first..after).all(|number| !is_retracted(number, ancestor)));
        }
    }

    #[test]
    fn finality_that_left_the_window_is_noticed() {
        let mut chain = Chain::new();
        chain.fork(0, 9, 1);
        let mut follower = Follower::new(chain.0[0], 4);
        follower.follow(&chain).unwrap();
        let at = |number| Some(chain.at(number).unwrap().place());
        assert!(is_older_than_window(&follower.window, at(5)));
        assert!(!is_older_than_window(&follower.window, at(6)));
        assert!(!is_older_than_window(&follower.window, None));
    }

    #[test]
    fn one_word_against_more_than_half_is_passed_over_and_against_half_it_waits() {
        let said = |agree: &[usize], silent: &[usize], contradict: &[usize]| Agreement {
            agree: agree.to_vec(),
            silent: silent.to_vec(),
            contradict: contradict.to_vec(),
        };
        assert_eq!(weigh(&said(&[1], &[], &[])), Word::Believed, "the only node");
        assert_eq!(weigh(&said(&[1], &[2, 3], &[])), Word::Believed, "nobody says otherwise");
        assert_eq!(weigh(&said(&[1, 2], &[], &[3])), Word::Believed);
        assert_eq!(weigh(&said(&[1], &[], &[2])), Word::Split);
        assert_eq!(weigh(&said(&[1], &[2], &[3])), Word::Split);
        assert_eq!(weigh(&said(&[1], &[], &[2, 3])), Word::PassedOver);
    }
}
