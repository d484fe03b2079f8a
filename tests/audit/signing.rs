//! What the signer signs, and what it refuses.

use crate::intruder::Intruder;
use crate::log::{Log, leaf};
use claviger::audit::key::{self, CheckpointKey};
use claviger::audit::signer::{CheckpointSigner, SignerError, is_signed};
use claviger::core::audit::LeafKind;
use claviger::ports::store::StoreError;

#[tokio::test]
async fn every_size_that_was_signed_is_kept_and_is_what_the_record_says() {
    let mut log = Log::new().await;
    assert!(!is_signed(&*log.store).await.unwrap());
    let mut sizes = Vec::new();
    for requests in [1, 2, 150, 1] {
        log.grow(requests).await;
        let newest = log.newest().await.unwrap();
        assert_eq!(newest.note, log.signer.last().note);
        assert_eq!(newest.note, std::fs::read_to_string(log.path("audit.record")).unwrap());
        sizes.push(i64::try_from(newest.size).unwrap());
        // Nothing new, nothing signed.
        log.signer.look(&*log.store).await.unwrap();
    }
    assert_eq!(sizes, [2, 6, 306, 308]);
    assert_eq!(Intruder::at(&log.database()).await.checkpoint_sizes().await, sizes);
    assert!(is_signed(&*log.store).await.unwrap());
    assert_eq!(log.reopened().await.unwrap().last().size, 308);
}

#[tokio::test]
async fn a_log_that_is_not_what_was_signed_is_never_signed_again() {
    let ways = ["rewritten", "rewritten, grown", "shorter", "shorter, grown", "root", "size"];
    for how in ways {
        let log = Log::of(&[5, 20]).await;
        let before = log.newest().await.unwrap();
        let mut intruder = Intruder::at(&log.database()).await;
        if how.starts_with("rewritten") {
            intruder.edit_leaf(7).await;
            intruder.rebuild().await;
        } else if how.starts_with("shorter") {
            intruder.truncate(40).await;
        } else if how == "root" {
            intruder.set_root([7; 32]).await;
        } else {
            intruder.set_size(i64::MAX).await;
        }
        if how.ends_with("grown") {
            log.append((100..120).map(|n| leaf(LeafKind::Decided, n)).collect()).await;
        }
        log.signer.look(&*log.store).await.unwrap();
        assert_eq!(log.newest().await, Some(before.clone()), "{how}");
        assert_eq!(log.signer.last().note, before.note, "{how}");
        let refused = log.reopened().await.err().expect("it must not start");
        if how == "shorter" {
            assert!(matches!(refused, SignerError::Shorter { size: 40, signed: 50 }));
        } else {
            assert!(matches!(refused, SignerError::Rewritten { .. }), "{how}: {refused}");
        }
    }
}

#[tokio::test]
async fn a_fork_that_another_server_signed_with_this_key_is_refused() {
    let mut log = Log::new().await;
    let forked_record = log.path("forked.record");
    std::fs::copy(log.path("audit.record"), &forked_record).unwrap();
    log.grow(2).await;
    let before = log.signer.last();
    let mut intruder = Intruder::at(&log.database()).await;
    let original = intruder.leaves().await[1].clone();
    intruder.edit_leaf(1).await;
    intruder.rebuild().await;
    intruder.forget_checkpoints(0).await;
    log.append(vec![leaf(LeafKind::Decided, 50)]).await;
    let key = CheckpointKey::load(&log.path("audit.key")).unwrap();
    let other = CheckpointSigner::open(&*log.store, key, forked_record).await.unwrap();
    other.look(&*log.store).await.unwrap();
    assert_eq!(log.newest().await.unwrap().size, 5);
    // The newest checkpoint is larger than the record and fits the log; the record does not.
    let refused = log.reopened().await.err().expect("it must not start");
    assert!(matches!(refused, SignerError::Rewritten { size: 5, signed: 4 }), "{refused}");
    log.signer.look(&*log.store).await.unwrap();
    assert_eq!(log.signer.last(), before);
    // And the other way round: the record fits the log, and the newest checkpoint is of the fork.
    intruder.set_leaf(1, &original).await;
    intruder.rebuild().await;
    log.signer.look(&*log.store).await.unwrap();
    assert_eq!(log.signer.last(), before);
    let refused = log.reopened().await.err().expect("it must not start");
    assert!(matches!(refused, SignerError::Rewritten { size: 5, signed: 5 }), "{refused}");
    // Without the fork it goes on.
    intruder.forget_checkpoints(0).await;
    log.signer.look(&*log.store).await.unwrap();
    assert_eq!(log.signer.last().size, 5);
    assert_eq!(intruder.checkpoint_sizes().await, [4, 5]);
}

#[tokio::test]
async fn a_row_that_somebody_put_among_the_checkpoints_is_an_alarm() {
    let log = Log::of(&[2, 3]).await;
    let before = log.signer.last();
    let note = before.note.clone();
    let mut intruder = Intruder::at(&log.database()).await;
    for (size, root, note) in [
        (1 << 62, [0; 32], "mine"),
        (1 << 62, before.root, &*note),
        (11, before.root, &*note),
        (10, [7; 32], &*note),
        (10, before.root, "mine"),
    ] {
        intruder.forget_checkpoints(10).await;
        intruder.insert_checkpoint(size, root, note).await;
        // Also where there is nothing to sign, and where there is.
        log.signer.look(&*log.store).await.unwrap();
        log.append(vec![leaf(LeafKind::Decided, 50)]).await;
        log.signer.look(&*log.store).await.unwrap();
        assert_eq!(log.signer.last(), before, "{size} {note}");
        let refused = log.reopened().await.err().expect("it must not start");
        assert!(refused.is_alarm(), "{refused}");
        if note == "mine" {
            assert!(matches!(refused, SignerError::OtherKey { .. }), "{refused}");
        } else {
            assert!(matches!(refused, SignerError::OtherRow { .. }), "{refused}");
        }
    }
    intruder.forget_checkpoints(10).await;
    log.signer.look(&*log.store).await.unwrap();
    assert_eq!(log.signer.last().size, 15);
    assert_eq!(intruder.checkpoint_sizes().await, [4, 10, 15]);
}

#[tokio::test]
async fn two_servers_with_one_key_and_a_record_each_release_one_history() {
    let mut log = Log::of(&[2]).await;
    let other_record = log.path("other.record");
    std::fs::copy(log.path("audit.record"), &other_record).unwrap();
    let key = CheckpointKey::load(&log.path("audit.key")).unwrap();
    let other = CheckpointSigner::open(&*log.store, key, other_record.clone()).await.unwrap();
    log.grow(1).await;
    other.look(&*log.store).await.unwrap();
    assert_eq!(other.last(), log.signer.last());
    log.append(vec![leaf(LeafKind::Decided, 50)]).await;
    other.look(&*log.store).await.unwrap();
    log.grow(1).await;
    assert_eq!(Intruder::at(&log.database()).await.checkpoint_sizes().await, [4, 6, 7, 9]);
    assert_eq!(std::fs::read_to_string(other_record).unwrap(), other.last().note);
    let (dir, _) = log.export("log").await;
    assert_eq!(log.verify(&dir, &[]).ok()["checkpoints"], 4);
}

#[tokio::test]
async fn the_database_of_another_log_is_refused() {
    let log = Log::of(&[3]).await;
    let (key_file, record) = (log.path("other.key"), log.path("other.record"));
    key::create(&key_file, &record, "log.test/other").unwrap();
    let key = CheckpointKey::load(&key_file).unwrap();
    let refused = CheckpointSigner::open(&*log.store, key, record.clone()).await.err().unwrap();
    assert!(matches!(refused, SignerError::OtherKey { size: 6, .. }), "{refused}");

    // Nor does a record of another log begin one.
    let key = CheckpointKey::load(&log.path("audit.key")).unwrap();
    let refused = CheckpointSigner::open(&*log.store, key, record).await.err().unwrap();
    assert!(refused.to_string().contains("`log.test/other`"), "{refused}");
}

#[tokio::test]
async fn a_database_that_is_read_only_is_not_written() {
    let log = Log::of(&[3]).await;
    let url = format!("sqlite:{}", log.database().display());
    let reader = claviger::store::open(&url, claviger::store::OpenMode::Reading).await.unwrap();
    let wrote = claviger::ports::store::unit(&*reader, "write", |unit| {
        Box::pin(async move {
            unit.set_meta("x", "y").await?;
            Ok(claviger::ports::store::End::Commit(()))
        })
    })
    .await;
    assert!(matches!(wrote, Err(StoreError::Unavailable(_))), "{wrote:?}");
    let wrote = claviger::ports::store::look(&*reader, "write", |unit| {
        Box::pin(async move { unit.set_meta("x", "y").await })
    })
    .await;
    assert!(matches!(wrote, Err(StoreError::Unavailable(_))), "{wrote:?}");
}

/// The memory beside the record is ahead of the database: it is kept, and nothing is signed.
#[tokio::test]
async fn a_database_that_forgot_nonces_is_not_signed_and_overwrites_no_memory() {
    let log = Log::of(&[5]).await;
    let (before, memory) = (log.newest().await, log.path("audit.record.database"));
    let lane = format!("lane 1 {:#x} 3", alloy::primitives::Address::repeat_byte(7));
    let text = format!("claviger database memory 1\n{lane}\n");
    std::fs::write(&memory, &text).unwrap();
    log.append((100..110).map(|n| leaf(LeafKind::Decided, n)).collect()).await;
    log.signer.look(&*log.store).await.unwrap();
    assert!(log.signer.wrong().unwrap().contains("has given 0 nonces"));
    assert_eq!(log.newest().await, before);
    assert_eq!(std::fs::read_to_string(&memory).unwrap(), text);
    // While an operator is waited for it is not said again: it may be put right at any moment.
    let now = claviger::core::time::Timestamp::from_millis(1);
    assert!(claviger::app::suspension::suspend(&*log.store, "so", now).await.unwrap());
    log.signer.look(&*log.store).await.unwrap();
    assert_eq!(log.signer.wrong(), None);
    log.signer.remember_database(&*log.store).await.unwrap();
    assert_eq!(std::fs::read_to_string(&memory).unwrap(), "claviger database memory 1\n");
}
