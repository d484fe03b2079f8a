//! The sequencer: leaves get their index, in the order in which their units were seen committed.
//!
//! Safe with several processes: the head moves by compare-and-swap on the size, so one of two wins and
//! the other changes nothing.

use crate::audit::tree::Nodes;
use crate::ports::store::{End, LogBatch, LogHead, Store, StoreError, WaitingLeaf, look, unit};
use std::sync::Arc;
use tlog_tiles::{Error, Hash, stored_hash_index, stored_hashes, tree_hash};

/// How many leaves are moved in one unit.
const BATCH: i64 = 512;

/// Moves waiting leaves into the log, one batch. Answers how many.
///
/// # Errors
/// When the store does not answer, or the tree in it does not fit its head. Nothing was moved then.
pub async fn sequence(store: &dyn Store) -> Result<usize, StoreError> {
    let found = look(store, "read_log_edge", |unit| {
        Box::pin(async move {
            let leaves = unit.waiting_leaves(BATCH).await?;
            let head = unit.log_head().await?;
            let edge = edge(head.size);
            let nodes = if leaves.is_empty() { vec![] } else { unit.log_nodes(&edge).await? };
            Ok((leaves, head, edge, nodes))
        })
    })
    .await?;
    let (leaves, head, edge, nodes) = found;
    if leaves.is_empty() {
        return Ok(0);
    }
    let edge = edge.into_iter().zip(nodes.into_iter().map(Hash)).collect();
    let batch = Arc::new(grow(Nodes(edge), &head, leaves)?);
    let moved = unit(store, "append_log", move |unit| {
        let batch = batch.clone();
        Box::pin(async move {
            if unit.append_log(&batch).await? {
                Ok(End::Commit(batch.leaves.len()))
            } else {
                Ok(End::Rollback(0))
            }
        })
    })
    .await?;
    crate::failpoint!("audit.after_append");
    Ok(moved)
}

/// The stored nodes at the right edge of a tree of this size: one for each bit of the size that is set,
/// the largest subtree first.
fn edge(size: u64) -> Vec<u64> {
    let mut before = 0_u64;
    let mut nodes = Vec::new();
    for level in (0..64_u8).rev() {
        let width = 1_u64.checked_shl(u32::from(level)).unwrap_or(0);
        if size & width != 0 {
            let at = before.checked_shr(u32::from(level)).unwrap_or(0);
            nodes.push(stored_hash_index(level, at));
            before |= width;
        }
    }
    nodes
}

/// Computes what a batch adds, from the complete subtrees at the log's right edge.
fn grow(
    mut nodes: Nodes,
    head: &LogHead,
    leaves: Vec<WaitingLeaf>,
) -> Result<LogBatch, StoreError> {
    let broken = |error: Error| StoreError::Corrupt(format!("the audit tree: {error:?}"));
    let root_before = tree_hash(head.size, &nodes).map_err(broken)?;
    if root_before.0 != head.root {
        return Err(StoreError::Corrupt("the audit tree does not have its own root".to_owned()));
    }
    let mut added = Vec::new();
    let mut size = head.size;
    for leaf in &leaves {
        let mut at = stored_hash_index(0, size);
        for hash in stored_hashes(size, &leaf.bytes, &nodes).map_err(broken)? {
            nodes.0.insert(at, hash);
            added.push((at, hash.0));
            at = at.saturating_add(1);
        }
        size = size.saturating_add(1);
    }
    let root = tree_hash(size, &nodes).map_err(broken)?.0;
    Ok(LogBatch { size_before: head.size, leaves, nodes: added, root })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    use ct_merkle::mem_backed_tree::MemoryBackedTree;
    use sha2_for_ct::Sha256;

    fn leaf(n: u64) -> WaitingLeaf {
        WaitingLeaf {
            seq: i64::try_from(n).unwrap(),
            kind: "T".into(),
            subject: n.to_string(),
            bytes: format!("leaf {n}").into_bytes(),
        }
    }

    #[test]
    fn a_second_implementation_has_the_same_root_at_every_size_and_batching() {
        let mut other = MemoryBackedTree::<Sha256, Vec<u8>>::new();
        let mut all: HashMap<u64, Hash> = HashMap::new();
        let mut head = LogHead { size: 0, root: tlog_tiles::EMPTY_HASH.0 };
        for batch in [1, 1, 2, 3, 1, 5, 64, 7, 1, 130] {
            let leaves: Vec<_> = (head.size..head.size + batch).map(leaf).collect();
            for leaf in &leaves {
                other.push(leaf.bytes.clone());
            }
            let edge = edge(head.size).into_iter().map(|at| (at, all[&at])).collect();
            let grown = grow(Nodes(edge), &head, leaves).unwrap();
            all.extend(grown.nodes.iter().map(|(at, hash)| (*at, Hash(*hash))));
            head = LogHead { size: head.size + batch, root: grown.root };
            assert_eq!(head.root.as_slice(), other.root().as_bytes().as_slice(), "{}", head.size);
        }
    }

    #[test]
    fn a_tree_that_does_not_fit_its_head_is_not_grown() {
        let head = LogHead { size: 0, root: [1; 32] };
        assert!(grow(Nodes(HashMap::new()), &head, vec![leaf(0)]).is_err());
    }
}
