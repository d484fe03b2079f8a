//! What of our chain is final, by what a node says of its own.
//!
//! A node names its newest final block. It says something of our chain only if that block is on ours.
//! Within the window that is seen by its hash. Outside it, one block of the node's chain decides, since a
//! block has one ancestor at each height:
//!
//! - Above our tip: if the node has our tip at its height, our tip is below its final block, so final.
//! - Below the window's oldest block: if the node has that oldest block at its height, then the node's
//!   final block is an ancestor of it, and so is every block of ours below it: each was followed as the
//!   parent of the next one. At the final block's height both are the same block, though we no longer
//!   keep its hash. So what stands at that height or below is final, and may be let go by its number.
//!
//! A node whose chain leaves ours below the window has another block in that place, and says nothing.

use super::{Place, Window};

/// At which height the node's chain must be compared with ours before its final block means anything;
/// `None` if the window itself can tell.
#[must_use]
pub fn compare_at(window: &Window, found: Place) -> Option<u64> {
    let (oldest, tip) = (window.oldest()?, window.tip()?);
    if found.number > tip.number {
        Some(tip.number)
    } else if found.number < oldest.number {
        Some(oldest.number)
    } else {
        None
    }
}

/// The newest block of ours that is final, when a node's newest final block is `found`, and it has `here`
/// at the height of [`compare_at`]. `None` if the node's chain is not ours there.
#[must_use]
pub fn on_ours(window: &Window, found: Place, here: Option<Place>) -> Option<Place> {
    let (oldest, tip) = (window.oldest()?, window.tip()?);
    if found.number > tip.number {
        (here == Some(tip)).then_some(tip)
    } else if found.number < oldest.number {
        (here == Some(oldest)).then_some(found)
    } else {
        window.has(found).then_some(found)
    }
}

/// Whether finality is older than the window: a reorg that is allowed may then leave it, which halts the
/// chain.
#[must_use]
pub fn is_older_than_window(window: &Window, finalized: Option<Place>) -> bool {
    let oldest = window.oldest().map(|oldest| oldest.number);
    finalized.zip(oldest).is_some_and(|(finalized, oldest)| finalized.number < oldest)
}
