//! Hash-linked windows of blocks: what we have followed of a chain, and how a block that a node shows
//! relates to it. Numbers alone prove nothing; every step is a parent hash.

pub mod completeness;
pub mod finality;
pub mod ranges;
pub mod retraction;

use alloy::primitives::B256;

/// A block's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Height.
    pub number: u64,
    /// Its hash.
    pub hash: B256,
}

/// A block's place and its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Height.
    pub number: u64,
    /// Its hash.
    pub hash: B256,
    /// Its parent's hash.
    pub parent: B256,
}

impl Link {
    /// Where it is.
    #[must_use]
    pub const fn place(&self) -> Place {
        Place { number: self.number, hash: self.hash }
    }

    /// Whether this block is the child of that one.
    #[must_use]
    pub fn follows(&self, parent: Place) -> bool {
        parent.number.checked_add(1) == Some(self.number) && self.parent == parent.hash
    }
}

/// Why blocks do not make a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("block {number} is not the child of the block before it")]
pub struct BrokenLink {
    /// The height of the block that does not fit.
    pub number: u64,
}

/// How a branch (a block and ancestors of it that a node showed) relates to a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// Its newest block is one of ours: nothing new.
    Known,
    /// Its oldest block is the child of our tip.
    Extends,
    /// It leaves our chain after this block, which both have; ours above it is no longer canonical.
    Reorg {
        /// The newest common block.
        ancestor: Place,
    },
    /// Not known yet: the parent of its oldest block decides.
    NeedsParent(Place),
    /// It leaves our chain below the window, or above our tip without reaching it.
    Unrelated,
}

/// The last blocks that were followed, oldest first, each the child of the one before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Window {
    links: Vec<Link>,
}

impl Window {
    /// Takes blocks that were stored, oldest first.
    ///
    /// # Errors
    /// At the first block that is not the child of the one before it.
    pub fn new(links: Vec<Link>) -> Result<Self, BrokenLink> {
        check_linked(None, &links)?;
        Ok(Self { links })
    }

    /// The newest block.
    #[must_use]
    pub fn tip(&self) -> Option<Place> {
        self.links.last().map(Link::place)
    }

    /// The oldest block.
    #[must_use]
    pub fn oldest(&self) -> Option<Place> {
        self.links.first().map(Link::place)
    }

    /// Our block at this height, if the window has it.
    #[must_use]
    pub fn at(&self, number: u64) -> Option<Place> {
        let first = self.links.first()?.number;
        let index = usize::try_from(number.checked_sub(first)?).ok()?;
        self.links.get(index).map(Link::place)
    }

    /// Whether this very block is in the window.
    #[must_use]
    pub fn has(&self, place: Place) -> bool {
        self.at(place.number) == Some(place)
    }

    /// Takes new blocks on top and lets the oldest go, down to `keep` blocks.
    ///
    /// # Errors
    /// If they are not linked to the tip and to each other; the window is then unchanged.
    pub fn extend(&mut self, new: &[Link], keep: usize) -> Result<(), BrokenLink> {
        check_linked(self.tip(), new)?;
        self.links.extend_from_slice(new);
        let surplus = self.links.len().saturating_sub(keep.max(1));
        self.links.drain(..surplus);
        Ok(())
    }

    /// Forgets everything above this height.
    pub fn roll_back(&mut self, ancestor: Place) {
        self.links.retain(|link| link.number <= ancestor.number);
    }

    /// Relates a branch to the window. The branch is newest first, each block followed by its parent.
    /// A node that answers with anything else gives `Unrelated`.
    #[must_use]
    pub fn relate(&self, branch: &[Link]) -> Relation {
        let (Some(newest), Some(oldest), Some(tip), Some(first)) =
            (branch.first(), branch.last(), self.tip(), self.links.first())
        else {
            return Relation::Unrelated;
        };
        let linked = branch.iter().zip(branch.iter().skip(1));
        if !linked.into_iter().all(|(child, parent)| child.follows(parent.place())) {
            return Relation::Unrelated;
        }
        if self.has(newest.place()) {
            return Relation::Known;
        }
        let Some(below) = oldest.number.checked_sub(1) else { return Relation::Unrelated };
        let parent = Place { number: below, hash: oldest.parent };
        if parent == tip {
            Relation::Extends
        } else if self.has(parent) {
            Relation::Reorg { ancestor: parent }
        } else if below <= first.number || below > tip.number {
            Relation::Unrelated
        } else {
            Relation::NeedsParent(parent)
        }
    }
}

/// Checks that blocks, oldest first, are linked to each other and to the block before them.
///
/// # Errors
/// At the first that is not.
pub fn check_linked(before: Option<Place>, links: &[Link]) -> Result<(), BrokenLink> {
    let mut before = before;
    for link in links {
        if before.is_some_and(|parent| !link.follows(parent)) {
            return Err(BrokenLink { number: link.number });
        }
        before = Some(link.place());
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, reason = "small numbers of a property test")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The hash of a block of a fork. Fork 0 is the one that the window follows.
    fn hash(fork: u8, number: u64) -> B256 {
        let mut bytes = [fork; 32];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        B256::from(bytes)
    }

    fn link(number: u64, fork: u8, leaves_after: u64) -> Link {
        let on = |at: u64| if at > leaves_after { fork } else { 0 };
        Link {
            number,
            hash: hash(on(number), number),
            parent: hash(on(number.saturating_sub(1)), number.saturating_sub(1)),
        }
    }

    fn window(from: u64, to: u64) -> Window {
        Window::new((from..=to).map(|n| link(n, 0, u64::MAX)).collect()).unwrap()
    }

    /// Walks back as the poller does.
    fn walk(window: &Window, fork: u8, leaves_after: u64, head: u64) -> Relation {
        let mut branch = vec![link(head, fork, leaves_after)];
        loop {
            match window.relate(&branch) {
                Relation::NeedsParent(parent) => {
                    let next = link(parent.number, fork, leaves_after);
                    assert_eq!(next.place(), parent);
                    branch.push(next);
                }
                decided => return decided,
            }
        }
    }

    #[test]
    fn the_child_of_the_tip_extends() {
        assert_eq!(walk(&window(5, 9), 0, u64::MAX, 10), Relation::Extends);
    }

    #[test]
    fn a_gap_above_the_tip_is_not_bridged() {
        assert_eq!(walk(&window(5, 9), 0, u64::MAX, 12), Relation::Unrelated);
    }

    #[test]
    fn blocks_out_of_a_false_branch_are_unrelated() {
        let branch = [link(8, 1, 3), link(7, 2, 3)];
        assert_eq!(window(2, 9).relate(&branch), Relation::Unrelated);
    }

    #[test]
    fn an_unlinked_extension_changes_nothing() {
        let mut window = window(5, 9);
        let before = window.clone();
        assert_eq!(window.extend(&[link(10, 1, 8)], 10), Err(BrokenLink { number: 10 }));
        assert_eq!(window, before);
    }

    proptest! {
        #[test]
        fn the_ancestor_is_where_the_fork_leaves(
            first in 0_u64..1000, length in 1_u64..60, back in 0_u64..80, ahead in 0_u64..2,
        ) {
            let tip = first + length;
            let leaves_after = tip.saturating_sub(back);
            let head = (leaves_after + 1).max(tip + ahead);
            let relation = walk(&window(first, tip), 1, leaves_after, head);
            if head > tip + 1 {
                prop_assert_eq!(relation, Relation::Unrelated);
            } else if leaves_after == tip {
                prop_assert_eq!(relation, Relation::Extends);
            } else if leaves_after >= first {
                let ancestor = Place { number: leaves_after, hash: hash(0, leaves_after) };
                prop_assert_eq!(relation, Relation::Reorg { ancestor });
            } else {
                prop_assert_eq!(relation, Relation::Unrelated);
            }
        }

        #[test]
        fn our_own_blocks_are_known(first in 0_u64..1000, length in 0_u64..60, pick in 0_u64..60) {
            let number = first + pick.min(length);
            let relation = walk(&window(first, first + length), 0, u64::MAX, number);
            prop_assert_eq!(relation, Relation::Known);
        }

        #[test]
        fn a_window_keeps_its_newest_blocks(length in 1_u64..50, keep in 1_usize..60) {
            let mut window = window(0, 0);
            let new: Vec<Link> = (1..=length).map(|n| link(n, 0, u64::MAX)).collect();
            window.extend(&new, keep).unwrap();
            prop_assert_eq!(window.tip().map(|tip| tip.number), Some(length));
            prop_assert!(window.links.len() <= keep);
            window.roll_back(Place { number: length / 2, hash: B256::ZERO });
            prop_assert!(window.tip().is_none_or(|tip| tip.number <= length / 2));
        }
    }
}
