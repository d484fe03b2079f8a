//! Somebody who has the database, and neither the log's key nor what an auditor kept, changes the log.
//! After a fresh export the verifier sees it and names the leaf.

use crate::commands::{export, verify};
use crate::intruder::Intruder;
use crate::running::{chain, exported, out, pay, signed, vkey};
use crate::support::server::{SetUp, payout_grants};
use std::path::{Path, PathBuf};

/// A log of real payouts, and what an auditor kept on the way.
struct Story {
    setup: SetUp,
    /// Leaves at the end.
    size: u64,
    /// Sizes that were signed.
    signed: Vec<u64>,
    /// The checkpoint at the end.
    checkpoint: PathBuf,
    /// The checkpoint and the leaf hashes at the end.
    kept: PathBuf,
}

impl Story {
    async fn told() -> Self {
        let anvil = chain().await;
        let setup = SetUp::new(&anvil.url(), None, &payout_grants("100.0"));
        let server = setup.start(&[("CLAVIGER__AUDIT__CHECKPOINT_EVERY", "50ms")]).await;
        server.funded_key(&anvil, "op-1").await;
        pay(&server, &anvil, "pay", 5).await;
        let (size, note) = signed(&server).await;
        server.stop().await;
        let (checkpoint, kept) = (out(&setup, "kept.note"), out(&setup, "kept.leaves"));
        std::fs::write(&checkpoint, note).unwrap();
        let (first, _) = exported(&setup, "first");
        let found = verify(&first, &vkey(&setup), &[("--keep", &kept)]).ok();
        assert_eq!(found["size"], size);
        let mut intruder = Intruder::at(&setup.dir().join("claviger.db")).await;
        let signed = intruder.checkpoint_sizes().await;
        let signed = signed.into_iter().map(|size| u64::try_from(size).unwrap()).collect();
        Self { setup, size, signed, checkpoint, kept }
    }

    /// The database in an intruder's hands.
    async fn intruder(&self, name: &str) -> (Intruder, PathBuf) {
        let database = self.setup.dir().join("claviger.db");
        Intruder::in_a_copy(&database, &self.setup.dir().join(format!("{name}.db"))).await
    }

    /// A fresh export of a database.
    fn export(&self, database: &Path) -> PathBuf {
        let out = database.with_extension("export");
        export(&self.setup.config(), &out, Some(database)).ok();
        out
    }

    fn verify(&self, export: &Path, more: &[(&str, &Path)]) -> crate::commands::Ran {
        verify(export, &vkey(&self.setup), more)
    }

    /// Where the first bad leaf may be that has this index, going by the signed sizes up to `below`.
    fn between(&self, index: u64, below: u64) -> (Option<u64>, Option<u64>) {
        let known = self.signed.iter().copied().filter(|size| *size < below).chain([below]);
        let (good, bad): (Vec<u64>, Vec<u64>) = known.partition(|size| *size <= index);
        (Some(good.into_iter().max().unwrap_or(0)), bad.into_iter().min().map(|size| size - 1))
    }
}

#[tokio::test]
async fn editing_one_byte_of_a_stored_leaf_is_seen_and_the_leaf_named() {
    let story = Story::told().await;
    for index in [0, story.size / 2, story.size - 1] {
        let (mut intruder, database) = story.intruder(&format!("edited-{index}")).await;
        intruder.edit_leaf(index).await;
        let export = story.export(&database);
        let (bad, why) = story.verify(&export, &[("--checkpoint", &story.checkpoint)]).bad_leaf();
        assert_eq!(bad, index);
        assert!(why.contains("its bytes hash to"), "{why}");
    }
}

#[tokio::test]
async fn deleting_the_last_ten_leaves_is_seen_and_the_first_missing_named() {
    let story = Story::told().await;
    let left = story.size - 10;
    for (name, forget) in [("signed", None), ("unsigned", Some(left + 1)), ("bare", Some(0))] {
        let (mut intruder, database) = story.intruder(&format!("shorter-{name}")).await;
        intruder.truncate(left).await;
        if let Some(from) = forget {
            intruder.forget_checkpoints(from).await;
        }
        let export = story.export(&database);
        let (bad, why) = story.verify(&export, &[("--checkpoint", &story.checkpoint)]).bad_leaf();
        assert_eq!(bad, left, "{name}");
        assert!(why.contains("missing"), "{why}");
        // Without anything kept too: the signer's record knows better than the database.
        assert_eq!(story.verify(&export, &[]).bad_leaf().0, left, "{name}");
    }
}

#[tokio::test]
async fn an_auditor_without_the_signers_record_sees_deleted_leaves_by_the_kept_checkpoint() {
    let story = Story::told().await;
    // The largest signed size that leaves at least ten out.
    let left = *story.signed.iter().rfind(|size| **size + 10 <= story.size).unwrap();
    let (mut intruder, database) = story.intruder("shorter").await;
    intruder.truncate(left).await;
    intruder.forget_checkpoints(left + 1).await;
    std::fs::remove_file(story.setup.dir().join("audit.record")).unwrap();
    let export = story.export(&database);
    // In itself the shorter log is as it once was.
    assert_eq!(story.verify(&export, &[]).ok()["size"], left);
    for given in [("--checkpoint", story.checkpoint.as_path()), ("--against", &story.kept)] {
        let (bad, why) = story.verify(&export, &[given]).bad_leaf();
        assert_eq!(bad, left);
        assert!(why.contains("it is missing"), "{why}");
    }
}

#[tokio::test]
async fn rebuilding_the_tree_after_an_edit_is_seen_and_the_leaf_named() {
    let story = Story::told().await;
    let index = story.size / 2;
    let last = story.size;
    for (name, forget) in [
        ("history-kept", None),
        ("history-after-it-deleted", Some(index + 1)),
        ("history-deleted", Some(0)),
    ] {
        let (mut intruder, database) = story.intruder(name).await;
        intruder.edit_leaf(index).await;
        intruder.rebuild().await;
        if let Some(from) = forget {
            intruder.forget_checkpoints(from).await;
        }
        let export = story.export(&database);
        let ran = story.verify(&export, &[("--checkpoint", &story.checkpoint)]);
        let (from, to, why) = ran.bad();
        assert!(why.contains("says that") && why.contains("was signed"), "{why}");
        // As exactly as the checkpoints that are left allow.
        let expected = match name {
            "history-kept" => story.between(index, last),
            "history-deleted" => (Some(0), Some(last - 1)),
            _ => (story.between(index, last).0, Some(last - 1)),
        };
        assert_eq!((from, to), expected, "{name}");
        assert!((from.unwrap()..=to.unwrap()).contains(&index), "{name}");
        // With the kept hashes, to the leaf.
        let (bad, why) = story.verify(&export, &[("--against", &story.kept)]).bad_leaf();
        assert_eq!(bad, index, "{name}");
        assert!(why.contains("it is not the leaf that was kept"), "{why}");
    }
}
