//! What somebody can do who has the database and not the log's key.

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tlog_tiles::{Error, Hash, HashReader, stored_hash_count, stored_hash_index};
use tlog_tiles::{stored_hashes, tree_hash};

pub struct Intruder(SqliteConnection);

#[derive(Default)]
struct Nodes(HashMap<u64, Hash>);

impl HashReader for Nodes {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, Error> {
        Ok(indexes.iter().map(|index| self.0[index]).collect())
    }
}

impl Intruder {
    /// Opens a database, beside a server too.
    pub async fn at(database: &Path) -> Self {
        let options =
            SqliteConnectOptions::new().filename(database).busy_timeout(Duration::from_secs(30));
        Self(options.connect().await.unwrap())
    }

    /// A copy of a database that no server has open.
    pub async fn in_a_copy(database: &Path, copy: &Path) -> (Self, PathBuf) {
        let mut open = Self::at(database).await;
        let _ = std::fs::remove_file(copy);
        let text = format!("VACUUM INTO '{}'", copy.display());
        open.run(&text).await;
        (Self::at(copy).await, copy.to_owned())
    }

    async fn run(&mut self, sql: &str) -> u64 {
        let sql = sqlx::AssertSqlSafe(sql.to_owned());
        sqlx::query(sql).execute(&mut self.0).await.unwrap().rows_affected()
    }

    pub async fn leaves(&mut self) -> Vec<Vec<u8>> {
        let sql = "SELECT leaf FROM audit_leaves ORDER BY idx";
        sqlx::query_scalar(sql).fetch_all(&mut self.0).await.unwrap()
    }

    pub async fn checkpoint_sizes(&mut self) -> Vec<i64> {
        let sql = "SELECT size FROM audit_checkpoints ORDER BY size";
        sqlx::query_scalar(sql).fetch_all(&mut self.0).await.unwrap()
    }

    pub async fn set_leaf(&mut self, index: u64, leaf: &[u8]) {
        let done = sqlx::query("UPDATE audit_leaves SET leaf = $2 WHERE idx = $1")
            .bind(i64::try_from(index).unwrap())
            .bind(leaf)
            .execute(&mut self.0)
            .await
            .unwrap();
        assert_eq!(done.rows_affected(), 1);
    }

    /// One digit of the leaf's time is another; it is still a leaf.
    pub async fn edit_leaf(&mut self, index: u64) {
        let mut leaf = self.leaves().await[usize::try_from(index).unwrap()].clone();
        // The last digit of the milliseconds in `"at":"2027-01-01T00:00:00.000Z"`.
        let at = leaf.windows(6).position(|bytes| bytes == b"\"at\":\"").unwrap();
        let digit = &mut leaf[at + 6 + 22];
        assert!(digit.is_ascii_digit(), "{}", String::from_utf8_lossy(&leaf));
        *digit = if *digit == b'9' { b'0' } else { *digit + 1 };
        self.set_leaf(index, &leaf).await;
    }

    /// Leaves from this index on are gone, and everything else fits that.
    pub async fn truncate(&mut self, size: u64) {
        assert!(self.run(&format!("DELETE FROM audit_leaves WHERE idx >= {size}")).await > 0);
        self.rebuild().await;
    }

    pub async fn delete_leaf(&mut self, index: u64) {
        assert_eq!(self.run(&format!("DELETE FROM audit_leaves WHERE idx = {index}")).await, 1);
    }

    /// Checkpoints of this size and larger are gone.
    pub async fn forget_checkpoints(&mut self, from: u64) {
        self.run(&format!("DELETE FROM audit_checkpoints WHERE size >= {from}")).await;
    }

    /// What is there is no checkpoint any more, and a larger one is made up.
    pub async fn garble_checkpoints(&mut self) {
        self.run("UPDATE audit_checkpoints SET note = 'X' || note").await;
        let largest = i64::MAX;
        let sql = format!("INSERT INTO audit_checkpoints VALUES ({largest}, zeroblob(32), 'mine')");
        self.run(&sql).await;
    }

    /// A checkpoint is made up, or taken from elsewhere, and put beside this size and root.
    pub async fn insert_checkpoint(&mut self, size: u64, root: [u8; 32], note: &str) {
        sqlx::query("INSERT INTO audit_checkpoints (size, root, note) VALUES ($1, $2, $3)")
            .bind(i64::try_from(size).unwrap())
            .bind(root.as_slice())
            .bind(note)
            .execute(&mut self.0)
            .await
            .unwrap();
    }

    /// The head says another root, or another size.
    pub async fn set_root(&mut self, root: [u8; 32]) {
        self.run(&format!("UPDATE audit_head SET root = x'{}'", hex::encode(root))).await;
    }

    pub async fn set_size(&mut self, size: i64) {
        self.run(&format!("UPDATE audit_head SET size = {size}")).await;
    }

    /// The whole tree is made anew from the leaves as they are: nodes and head.
    pub async fn rebuild(&mut self) {
        let leaves = self.leaves().await;
        let mut nodes = Nodes::default();
        for (index, leaf) in (0..).zip(&leaves) {
            let new = stored_hashes(index, leaf, &nodes).unwrap();
            nodes.0.extend((stored_hash_index(0, index)..).zip(new));
        }
        let size = u64::try_from(leaves.len()).unwrap();
        assert_eq!(u64::try_from(nodes.0.len()).unwrap(), stored_hash_count(size));
        let root = tree_hash(size, &nodes).unwrap().0;
        let mut tx = self.0.begin_with("BEGIN IMMEDIATE").await.unwrap();
        sqlx::query("DELETE FROM audit_nodes").execute(&mut *tx).await.unwrap();
        for (index, hash) in &nodes.0 {
            sqlx::query("INSERT INTO audit_nodes (idx, hash) VALUES ($1, $2)")
                .bind(i64::try_from(*index).unwrap())
                .bind(hash.0.as_slice())
                .execute(&mut *tx)
                .await
                .unwrap();
        }
        sqlx::query("UPDATE audit_head SET size = $1, root = $2")
            .bind(i64::try_from(size).unwrap())
            .bind(root.as_slice())
            .execute(&mut *tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }
}
