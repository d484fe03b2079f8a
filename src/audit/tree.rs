//! The RFC 6962 tree: its right edge in memory, and its nodes in the store.

use crate::ports::store::{StoreError, Unit};
use std::collections::HashMap;
use tlog_tiles::{
    EMPTY_HASH, Error, Hash, HashReader, check_tree, node_hash, prove_tree, record_hash,
};

/// A tree that only grows: the roots of the complete subtrees at its right edge, one for each bit of its
/// size that is set. A root costs at most 64 hashes at any time, whatever the size.
#[derive(Debug, Clone, Default)]
pub struct Edge {
    size: u64,
    /// Level and root, the largest subtree first.
    subtrees: Vec<(u8, Hash)>,
}

impl Edge {
    /// How many leaves.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf by its hash. Answers the subtrees that became complete, by level, from 0 on.
    pub fn push(&mut self, leaf: [u8; 32]) -> Vec<[u8; 32]> {
        let mut hash = Hash(leaf);
        let mut level = 0_u8;
        let mut complete = vec![hash.0];
        while let Some((_, left)) = self.subtrees.pop_if(|(left, _)| *left == level) {
            hash = node_hash(left, hash);
            level = level.saturating_add(1);
            complete.push(hash.0);
        }
        self.subtrees.push((level, hash));
        self.size = self.size.saturating_add(1);
        complete
    }

    /// The root at this size.
    pub fn root(&self) -> [u8; 32] {
        let mut subtrees = self.subtrees.iter().rev().map(|(_, hash)| *hash);
        let last = subtrees.next().unwrap_or(EMPTY_HASH);
        subtrees.fold(last, |right, left| node_hash(left, right)).0
    }
}

/// `SHA-256(0x00 || leaf)`.
pub fn leaf_hash(leaf: &[u8]) -> [u8; 32] {
    record_hash(leaf).0
}

/// Whether one tree is the beginning of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// It is.
    Proven,
    /// It is not, or the nodes that would show it are gone.
    Refuted,
}

/// Checks, from the stored nodes, that the tree of `old` leaves with `old_root` is the beginning of the
/// tree of `new` leaves with `new_root` (RFC 6962 section 2.1.2). `old` must not be above `new`.
///
/// # Errors
/// When the store does not answer.
pub async fn consistency(
    unit: &mut dyn Unit,
    (old, old_root): (u64, [u8; 32]),
    (new, new_root): (u64, [u8; 32]),
) -> Result<Consistency, StoreError> {
    if old == 0 {
        // Every tree begins with the empty one.
        return Ok(if old_root == EMPTY_HASH.0 {
            Consistency::Proven
        } else {
            Consistency::Refuted
        });
    }
    let Some(indexes) = needed(new, old) else {
        return Ok(Consistency::Refuted);
    };
    let mut nodes = Nodes::default();
    for index in indexes {
        let found = unit.log_nodes_between(index, index.saturating_add(1)).await?;
        nodes.0.extend(found.into_iter().map(|(index, hash)| (index, Hash(hash))));
    }
    let shown = prove_tree(new, old, &nodes)
        .and_then(|proof| check_tree(&proof, new, Hash(new_root), old, Hash(old_root)));
    Ok(if shown.is_ok() { Consistency::Proven } else { Consistency::Refuted })
}

/// The nodes that a proof needs. `None` if there is no such proof.
fn needed(new: u64, old: u64) -> Option<Vec<u64>> {
    let asked = Asked::default();
    prove_tree(new, old, &asked).ok()?;
    Some(asked.0.into_inner())
}

/// Notes which nodes are read, since the store cannot be asked in the middle of a proof.
#[derive(Default)]
struct Asked(std::cell::RefCell<Vec<u64>>);

impl HashReader for Asked {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, Error> {
        self.0.borrow_mut().extend_from_slice(indexes);
        Ok(vec![EMPTY_HASH; indexes.len()])
    }
}

/// Nodes at hand, by stored-hash index.
#[derive(Default)]
pub struct Nodes(pub HashMap<u64, Hash>);

impl HashReader for Nodes {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, Error> {
        indexes
            .iter()
            .map(|index| self.0.get(index).copied().ok_or(Error::IndexesNotInTree))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ct_merkle::mem_backed_tree::MemoryBackedTree;
    use sha2_for_ct::Sha256;

    #[test]
    fn the_edge_has_the_root_of_a_second_implementation_at_every_size() {
        let mut other = MemoryBackedTree::<Sha256, Vec<u8>>::new();
        let mut edge = Edge::default();
        assert_eq!(edge.root().as_slice(), other.root().as_bytes().as_slice());
        for n in 0..700_u32 {
            let leaf = n.to_be_bytes().to_vec();
            edge.push(leaf_hash(&leaf));
            other.push(leaf);
            assert_eq!(edge.root().as_slice(), other.root().as_bytes().as_slice(), "{n}");
        }
        assert_eq!(edge.size(), 700);
    }

    #[test]
    fn a_leaf_completes_the_subtrees_that_end_with_it() {
        let mut edge = Edge::default();
        let complete: Vec<usize> = (0..8_u8).map(|n| edge.push([n; 32]).len()).collect();
        assert_eq!(complete, [1, 2, 1, 3, 1, 2, 1, 4]);
    }
}
