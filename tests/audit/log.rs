//! A log of its own in this process: a database, a key, a sequencer and a signer that tests step.

use crate::commands::{Ran, verify};
use claviger::audit::export::{Exported, export};
use claviger::audit::key::{self, CheckpointKey};
use claviger::audit::sequencer::sequence;
use claviger::audit::signer::{CheckpointSigner, SignerError};
use claviger::core::audit::{EncodedLeaf, Leaf, LeafKind};
use claviger::core::time::Timestamp;
use claviger::ports::store::{End, SignedCheckpoint, Store, look, unit};
use claviger::store::{OpenMode, open};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

pub struct Log {
    pub store: Arc<dyn Store>,
    pub signer: CheckpointSigner,
    pub folder: TempDir,
    count: usize,
}

pub fn leaf(kind: LeafKind, n: usize) -> EncodedLeaf {
    let at = Timestamp::from_millis(1_700_000_000_000 + i64::try_from(n).unwrap());
    Leaf::new(kind, format!("request {n}"), at)
        .with("attempt", 1)
        .with("digest", format!("0x{n:064x}"))
        .encode()
        .unwrap()
}

impl Log {
    /// An empty log.
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("claviger.db").display());
        let store = open(&url, OpenMode::Create).await.unwrap();
        let (key_file, record) =
            (folder.path().join("audit.key"), folder.path().join("audit.record"));
        key::create(&key_file, &record, "log.test/1").unwrap();
        let key = CheckpointKey::load(&key_file).unwrap();
        let signer = CheckpointSigner::open(&*store, key, record).await.unwrap();
        Self { store, signer, folder, count: 0 }
    }

    /// A log of these leaves, signed after each batch.
    pub async fn of(batches: &[usize]) -> Self {
        let mut log = Self::new().await;
        for batch in batches {
            log.grow(*batch).await;
        }
        log
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn vkey(&self) -> PathBuf {
        self.path("audit.vkey")
    }

    pub fn database(&self) -> PathBuf {
        self.path("claviger.db")
    }

    /// Opens the signer again, as a restarted server would.
    pub async fn reopened(&self) -> Result<CheckpointSigner, SignerError> {
        let key = CheckpointKey::load(&self.path("audit.key")).unwrap();
        CheckpointSigner::open(&*self.store, key, self.path("audit.record")).await
    }

    /// So many further requests, decided and then signed, and a checkpoint. Two leaves each.
    pub async fn grow(&mut self, requests: usize) {
        let from = self.count;
        self.count += requests;
        let kinds = [LeafKind::Decided, LeafKind::Signed];
        let leaves = kinds.iter().flat_map(|kind| (from..self.count).map(|n| leaf(*kind, n)));
        self.append(leaves.collect()).await;
        self.signer.look(&*self.store).await.unwrap();
    }

    /// Puts leaves into the log.
    pub async fn append(&self, leaves: Vec<EncodedLeaf>) {
        let leaves = Arc::new(leaves);
        unit(&*self.store, "append", move |unit| {
            let leaves = leaves.clone();
            Box::pin(async move {
                for leaf in leaves.iter() {
                    unit.append_leaf(leaf).await?;
                }
                Ok(End::Commit(()))
            })
        })
        .await
        .unwrap();
        while sequence(&*self.store).await.unwrap() > 0 {}
    }

    /// The newest checkpoint in the database.
    pub async fn newest(&self) -> Option<SignedCheckpoint> {
        look(&*self.store, "newest", |unit| Box::pin(async move { unit.newest_checkpoint().await }))
            .await
            .unwrap()
    }

    /// The newest checkpoint in a file of this name.
    pub async fn keep(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, self.newest().await.unwrap().note).unwrap();
        path
    }

    /// Exports the log to a new folder.
    pub async fn export(&self, name: &str) -> (PathBuf, Exported) {
        let out = self.path(name);
        let last = Some(self.signer.last());
        let exported = export(&*self.store, last, &out, &mut |_, _| {}).await.unwrap();
        (out, exported)
    }

    pub fn verify(&self, export: &Path, more: &[(&str, &Path)]) -> Ran {
        verify(export, &self.vkey(), more)
    }
}
