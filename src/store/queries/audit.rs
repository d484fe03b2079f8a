//! The audit log: leaves on their way, leaves in place, nodes of the tree.

use super::column::{corrupt, exactly_one, to_i64, to_u64};
use super::statement::{Tx, values};
use crate::core::audit::EncodedLeaf;
use crate::ports::store::{LogBatch, LogHead, LogLeaf, SignedCheckpoint, StoreError, WaitingLeaf};
use sqlx::FromRow;

statements! {
    APPEND_LEAF = "INSERT INTO audit_outbox (kind, subject, leaf) VALUES ($1, $2, $3)";
    KEEP_BLOB = "INSERT INTO audit_blobs (hash, bytes) VALUES ($1, $2) \
        ON CONFLICT (hash) DO NOTHING";
    WAITING_LEAVES = "SELECT seq, kind, subject, leaf FROM audit_outbox ORDER BY seq LIMIT $1";
    WAITING_COUNT = "SELECT COUNT(*) AS n FROM audit_outbox";
    DROP_WAITING = "DELETE FROM audit_outbox WHERE seq = $1";
    INSERT_LEAF = "INSERT INTO audit_leaves (idx, kind, subject, leaf) VALUES ($1, $2, $3, $4)";
    INSERT_NODE = "INSERT INTO audit_nodes (idx, hash) VALUES ($1, $2)";
    LOG_HEAD = "SELECT size, root FROM audit_head WHERE only_row = 1";
    MOVE_HEAD = "UPDATE audit_head SET size = $2, root = $3 WHERE only_row = 1 AND size = $1";
    LOG_NODE = "SELECT hash FROM audit_nodes WHERE idx = $1";
    LOG_LEAVES = "SELECT idx, kind, subject, leaf FROM audit_leaves WHERE idx >= $1 \
        ORDER BY idx LIMIT $2";
    NODES_BETWEEN = "SELECT idx, hash FROM audit_nodes WHERE idx >= $1 AND idx < $2 ORDER BY idx";
    LONG_TEXT = "SELECT bytes FROM audit_blobs WHERE hash = $1";
    KEEP_CHECKPOINT = "INSERT INTO audit_checkpoints (size, root, note) VALUES ($1, $2, $3) \
        ON CONFLICT (size) DO NOTHING";
    NEWEST_CHECKPOINT = "SELECT size, root, note FROM audit_checkpoints ORDER BY size DESC LIMIT 1";
    CHECKPOINTS = "SELECT size, root, note FROM audit_checkpoints WHERE size >= $1 \
        ORDER BY size LIMIT $2";
}

#[derive(FromRow)]
struct WaitingColumns {
    seq: i64,
    kind: String,
    subject: String,
    leaf: Vec<u8>,
}

#[derive(FromRow)]
struct LeafColumns {
    idx: i64,
    kind: String,
    subject: String,
    leaf: Vec<u8>,
}

#[derive(FromRow)]
struct HeadColumns {
    size: i64,
    root: Vec<u8>,
}

#[derive(FromRow)]
struct NodeColumn {
    hash: Vec<u8>,
}

#[derive(FromRow)]
struct NodeColumns {
    idx: i64,
    hash: Vec<u8>,
}

#[derive(FromRow)]
struct TextColumn {
    bytes: Vec<u8>,
}

#[derive(FromRow)]
struct CheckpointColumns {
    size: i64,
    root: Vec<u8>,
    note: String,
}

impl CheckpointColumns {
    fn read(self) -> Result<SignedCheckpoint, StoreError> {
        let root = self.root.try_into().map_err(|_| corrupt("a checkpoint's root"))?;
        Ok(SignedCheckpoint { size: to_u64(self.size)?, root, note: self.note })
    }
}

#[derive(FromRow)]
struct Count {
    n: i64,
}

pub(super) async fn append_leaf(tx: &mut Tx, leaf: &EncodedLeaf) -> Result<(), StoreError> {
    // In one order everywhere: two units that keep the same texts wait for each other.
    let mut blobs: Vec<_> = leaf.blobs.iter().collect();
    blobs.sort();
    for (hash, bytes) in blobs {
        tx.execute(KEEP_BLOB, values![hash.as_slice(), bytes.as_slice()]).await?;
    }
    let values = values![leaf.kind, leaf.subject.as_str(), leaf.bytes.as_slice()];
    let rows = tx.execute(APPEND_LEAF, values).await?;
    exactly_one(tx, "append_leaf", rows)
}

pub(super) async fn waiting_leaves(tx: &mut Tx, most: i64) -> Result<Vec<WaitingLeaf>, StoreError> {
    let rows = tx.all::<WaitingColumns>(WAITING_LEAVES, values![most]).await?;
    Ok(rows
        .into_iter()
        .map(|row| WaitingLeaf {
            seq: row.seq,
            kind: row.kind,
            subject: row.subject,
            bytes: row.leaf,
        })
        .collect())
}

pub(super) async fn waiting_leaf_count(tx: &mut Tx) -> Result<i64, StoreError> {
    Ok(tx.one::<Count>(WAITING_COUNT, values![]).await?.map_or(0, |row| row.n))
}

pub(super) async fn append_log(tx: &mut Tx, batch: &LogBatch) -> Result<bool, StoreError> {
    let count = u64::try_from(batch.leaves.len()).map_err(|_| corrupt("a batch"))?;
    let size = batch.size_before.checked_add(count).ok_or_else(|| corrupt("the log's size"))?;
    let head = values![to_i64(batch.size_before)?, to_i64(size)?, batch.root.as_slice()];
    if tx.execute(MOVE_HEAD, head).await? != 1 {
        return Ok(false);
    }
    for (index, leaf) in (batch.size_before..size).zip(&batch.leaves) {
        let rows = tx.execute(DROP_WAITING, values![leaf.seq]).await?;
        exactly_one(tx, "drop_waiting", rows)?;
        let values = values![
            to_i64(index)?,
            leaf.kind.as_str(),
            leaf.subject.as_str(),
            leaf.bytes.as_slice(),
        ];
        tx.execute(INSERT_LEAF, values).await?;
    }
    for (index, hash) in &batch.nodes {
        tx.execute(INSERT_NODE, values![to_i64(*index)?, hash.as_slice()]).await?;
    }
    Ok(true)
}

pub(super) async fn log_head(tx: &mut Tx) -> Result<LogHead, StoreError> {
    let Some(row) = tx.one::<HeadColumns>(LOG_HEAD, values![]).await? else {
        return Err(tx.corrupt("the log has no head"));
    };
    let root = row.root.try_into().map_err(|_| corrupt("the log's root"))?;
    Ok(LogHead { size: to_u64(row.size)?, root })
}

pub(super) async fn log_nodes(tx: &mut Tx, indexes: &[u64]) -> Result<Vec<[u8; 32]>, StoreError> {
    let mut nodes = Vec::with_capacity(indexes.len());
    for index in indexes {
        let row = tx.one::<NodeColumn>(LOG_NODE, values![to_i64(*index)?]).await?;
        let node = row.and_then(|row| row.hash.try_into().ok());
        match node {
            Some(node) => nodes.push(node),
            None => return Err(tx.corrupt(format!("the tree has no node {index}"))),
        }
    }
    Ok(nodes)
}

pub(super) async fn log_leaves(
    tx: &mut Tx,
    from: u64,
    most: i64,
) -> Result<Vec<LogLeaf>, StoreError> {
    let rows = tx.all::<LeafColumns>(LOG_LEAVES, values![to_i64(from)?, most]).await?;
    rows.into_iter()
        .map(|row| {
            Ok(LogLeaf {
                index: to_u64(row.idx)?,
                kind: row.kind,
                subject: row.subject,
                bytes: row.leaf,
            })
        })
        .collect()
}

pub(super) async fn log_nodes_between(
    tx: &mut Tx,
    from: u64,
    below: u64,
) -> Result<Vec<(u64, [u8; 32])>, StoreError> {
    let values = values![to_i64(from)?, to_i64(below)?];
    let rows = tx.all::<NodeColumns>(NODES_BETWEEN, values).await?;
    rows.into_iter()
        .map(|row| {
            let hash = row.hash.try_into().map_err(|_| corrupt("a node of the tree"))?;
            Ok((to_u64(row.idx)?, hash))
        })
        .collect()
}

pub(super) async fn long_text(tx: &mut Tx, hash: &[u8; 32]) -> Result<Option<Vec<u8>>, StoreError> {
    let row = tx.one::<TextColumn>(LONG_TEXT, values![hash.as_slice()]).await?;
    Ok(row.map(|row| row.bytes))
}

pub(super) async fn keep_checkpoint(
    tx: &mut Tx,
    signed: &SignedCheckpoint,
) -> Result<bool, StoreError> {
    let values = values![to_i64(signed.size)?, signed.root.as_slice(), signed.note.as_str()];
    Ok(tx.execute(KEEP_CHECKPOINT, values).await? == 1)
}

pub(super) async fn newest_checkpoint(tx: &mut Tx) -> Result<Option<SignedCheckpoint>, StoreError> {
    let row = tx.one::<CheckpointColumns>(NEWEST_CHECKPOINT, values![]).await?;
    row.map(CheckpointColumns::read).transpose()
}

pub(super) async fn checkpoints(
    tx: &mut Tx,
    from: u64,
    most: i64,
) -> Result<Vec<SignedCheckpoint>, StoreError> {
    let rows = tx.all::<CheckpointColumns>(CHECKPOINTS, values![to_i64(from)?, most]).await?;
    rows.into_iter().map(CheckpointColumns::read).collect()
}
