//! The audit log: every leaf once, in a tree that another implementation computes too.

use crate::fixtures::{Database, at};
use claviger::audit::sequencer::sequence;
use claviger::core::audit::{EncodedLeaf, INLINE_TEXT_MAX, Leaf, LeafKind};
use claviger::ports::store::{LogBatch, LogHead, LogLeaf, SignedCheckpoint, Store, StoreError};
use ct_merkle::mem_backed_tree::MemoryBackedTree;
use sha2_for_ct::Sha256;
use sqlx::Connection as _;
use std::collections::BTreeSet;
use std::sync::Arc;

on_both!(
    an_empty_log_has_the_root_of_nothing,
    a_leaf_waits_until_it_is_sequenced,
    a_leaf_of_a_unit_that_was_rolled_back_is_not_there,
    two_sequencers_put_every_leaf_into_the_log_once,
    a_batch_for_another_size_changes_nothing,
    a_leaf_that_does_not_wait_is_not_logged,
    events_of_a_subject_come_in_order,
    units_that_keep_the_same_texts_do_not_block_each_other,
    a_checkpoint_of_a_size_is_kept_once_and_the_largest_is_the_newest,
    nodes_are_read_by_their_range_and_long_texts_by_their_hash,
);

fn leaf(n: usize) -> EncodedLeaf {
    Leaf::new(LeafKind::Decided, format!("request {n}"), at(0)).with("n", n).encode().unwrap()
}

async fn append(store: &Arc<dyn Store>, leaf: EncodedLeaf) {
    commit!(store, [leaf], |unit| unit.append_leaf(&leaf).await?).unwrap();
}

async fn head(store: &Arc<dyn Store>) -> LogHead {
    read!(store, [], |unit| unit.log_head().await?)
}

async fn leaves(store: &Arc<dyn Store>, from: u64, most: i64) -> Vec<LogLeaf> {
    read!(store, [], |unit| unit.log_leaves(from, most).await?)
}

fn root(leaves: &[LogLeaf]) -> Vec<u8> {
    let mut tree = MemoryBackedTree::<Sha256, Vec<u8>>::new();
    for leaf in leaves {
        tree.push(leaf.bytes.clone());
    }
    tree.root().as_bytes().to_vec()
}

async fn an_empty_log_has_the_root_of_nothing(store: Arc<dyn Store>) {
    assert_eq!(sequence(&*store).await.unwrap(), 0);
    let head = head(&store).await;
    assert_eq!((head.size, head.root.to_vec()), (0, root(&[])));
    assert!(leaves(&store, 0, 10).await.is_empty());
}

async fn a_leaf_waits_until_it_is_sequenced(store: Arc<dyn Store>) {
    for n in 0..3 {
        append(&store, leaf(n)).await;
    }
    let waiting = read!(store, [], |unit| unit.waiting_leaves(2).await?);
    let subjects: Vec<_> = waiting.iter().map(|leaf| leaf.subject.as_str()).collect();
    assert_eq!(subjects, ["request 0", "request 1"]);
    assert_eq!((waiting[0].kind.as_str(), &waiting[0].bytes), ("DECIDED", &leaf(0).bytes));
    assert_eq!(read!(store, [], |unit| unit.waiting_leaf_count().await?), 3);
    assert_eq!(sequence(&*store).await.unwrap(), 3);
    assert_eq!(read!(store, [], |unit| unit.waiting_leaf_count().await?), 0);
    let logged = leaves(&store, 1, 1).await;
    let expected = LogLeaf {
        index: 1,
        kind: "DECIDED".to_owned(),
        subject: "request 1".to_owned(),
        bytes: leaf(1).bytes,
    };
    assert_eq!(logged, [expected]);
    let head = head(&store).await;
    assert_eq!((head.size, head.root.to_vec()), (3, root(&leaves(&store, 0, 10).await)));
}

async fn a_leaf_of_a_unit_that_was_rolled_back_is_not_there(store: Arc<dyn Store>) {
    let leaf = leaf(1);
    roll_back!(store, [leaf], |unit| unit.append_leaf(&leaf).await?).unwrap();
    assert_eq!(read!(store, [], |unit| unit.waiting_leaf_count().await?), 0);
}

async fn two_sequencers_put_every_leaf_into_the_log_once(store: Arc<dyn Store>) {
    crate::fixtures::crowd(&store).await;
    const WRITERS: usize = 4;
    const EACH: usize = 60;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for n in 0..EACH {
                    append(&store, leaf(writer * EACH + n)).await;
                }
            })
        })
        .collect();
    let sequencers: Vec<_> = (0..2)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let all = u64::try_from(WRITERS * EACH).unwrap();
                while head(&store).await.size < all {
                    sequence(&*store).await.unwrap();
                }
            })
        })
        .collect();
    for task in writers.into_iter().chain(sequencers) {
        task.await.unwrap();
    }
    assert_eq!(sequence(&*store).await.unwrap(), 0);
    let logged = leaves(&store, 0, 1000).await;
    assert_eq!(logged.len(), WRITERS * EACH);
    assert!(logged.iter().zip(0..).all(|(leaf, index)| leaf.index == index));
    let logged_bytes: BTreeSet<_> = logged.iter().map(|leaf| leaf.bytes.clone()).collect();
    let appended: BTreeSet<_> = (0..WRITERS * EACH).map(|n| leaf(n).bytes).collect();
    assert_eq!(logged_bytes, appended);
    assert_eq!(head(&store).await.root.to_vec(), root(&logged));
}

async fn batch(store: &Arc<dyn Store>, size_before: u64) -> LogBatch {
    let leaves = read!(store, [], |unit| unit.waiting_leaves(10).await?);
    LogBatch { size_before, leaves, nodes: vec![(0, [1; 32])], root: [2; 32] }
}

async fn a_batch_for_another_size_changes_nothing(store: Arc<dyn Store>) {
    append(&store, leaf(0)).await;
    let before = head(&store).await;
    let batch = batch(&store, 1).await;
    assert!(!commit!(store, [batch], |unit| unit.append_log(&batch).await?).unwrap());
    assert_eq!(head(&store).await, before);
    assert_eq!(read!(store, [], |unit| unit.waiting_leaf_count().await?), 1);
    assert!(leaves(&store, 0, 10).await.is_empty());
}

async fn a_leaf_that_does_not_wait_is_not_logged(store: Arc<dyn Store>) {
    append(&store, leaf(0)).await;
    let mut batch = batch(&store, 0).await;
    batch.leaves[0].seq += 1;
    let answer = commit!(store, [batch], |unit| unit.append_log(&batch).await?);
    assert!(matches!(answer, Err(StoreError::Corrupt(_))), "{answer:?}");
    assert_eq!(head(&store).await.size, 0);
    // Nor are nodes that are not there made up.
    let nodes = commit!(store, [], |unit| unit.log_nodes(&[0]).await?);
    assert!(matches!(nodes, Err(StoreError::Corrupt(_))), "{nodes:?}");
    assert_eq!(sequence(&*store).await.unwrap(), 1);
    assert_eq!(read!(store, [], |unit| unit.log_nodes(&[0]).await?).len(), 1);
}

async fn events_of_a_subject_come_in_order(store: Arc<dyn Store>) {
    let event = |n: u64, subject: &str| claviger::ports::store::NewEvent {
        id: format!("event {n}"),
        kind: "claviger.transaction.queued".to_owned(),
        subject: subject.to_owned(),
        data_json: format!("{{\"n\":{n}}}"),
        at: at(-1),
    };
    for (n, subject) in [(3, "a"), (1, "b"), (2, "a")] {
        let event = event(n, subject);
        commit!(store, [event], |unit| unit.append_event(&event).await?).unwrap();
    }
    let found = read!(store, [], |unit| unit.events_of("a").await?);
    assert_eq!(found, [event(3, "a"), event(2, "a")]);
}

fn long(letter: &str) -> String {
    letter.repeat(INLINE_TEXT_MAX + 1)
}

async fn units_that_keep_the_same_texts_do_not_block_each_other(store: Arc<dyn Store>) {
    crate::fixtures::crowd(&store).await;
    let tasks: Vec<_> = (0..20)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                let (one, two) = if n % 2 == 0 { ("x", "y") } else { ("y", "x") };
                let leaf = Leaf::new(LeafKind::Decided, n, at(0));
                let leaf = leaf.with("one", long(one)).with("two", long(two));
                append(&store, leaf.encode().unwrap()).await;
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(sequence(&*store).await.unwrap(), 20);
}

fn checkpoint(size: u64, note: &str) -> SignedCheckpoint {
    SignedCheckpoint { size, root: [7; 32], note: note.to_owned() }
}

async fn keep(store: &Arc<dyn Store>, signed: SignedCheckpoint) -> bool {
    commit!(store, [signed], |unit| unit.keep_checkpoint(&signed).await?).unwrap()
}

async fn a_checkpoint_of_a_size_is_kept_once_and_the_largest_is_the_newest(store: Arc<dyn Store>) {
    assert_eq!(read!(store, [], |unit| unit.newest_checkpoint().await?), None);
    for (size, is_new) in [(3, true), (12, true), (5, true), (12, false)] {
        assert_eq!(keep(&store, checkpoint(size, &format!("note {size} {is_new}"))).await, is_new);
    }
    let newest = read!(store, [], |unit| unit.newest_checkpoint().await?);
    assert_eq!(newest, Some(checkpoint(12, "note 12 true")));
    let page = read!(store, [], |unit| unit.checkpoints(4, 1).await?);
    assert_eq!(page, [checkpoint(5, "note 5 true")]);
    let sizes = read!(store, [], |unit| unit.checkpoints(0, 9).await?);
    assert_eq!(sizes.iter().map(|one| one.size).collect::<Vec<_>>(), [3, 5, 12]);
}

async fn nodes_are_read_by_their_range_and_long_texts_by_their_hash(store: Arc<dyn Store>) {
    let texts = Leaf::new(LeafKind::Decided, "request", at(0)).with("text", long("x"));
    let texts = texts.encode().unwrap();
    append(&store, texts.clone()).await;
    for n in 1..4 {
        append(&store, leaf(n)).await;
    }
    assert_eq!(sequence(&*store).await.unwrap(), 4);
    // Leaves 0 and 1, their node, leaf 2, leaf 3, and the two nodes above.
    let nodes = read!(store, [], |unit| unit.log_nodes_between(2, 100).await?);
    assert_eq!(nodes.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
    let root = nodes.last().unwrap().1;
    assert_eq!(root, head(&store).await.root);
    assert!(read!(store, [], |unit| unit.log_nodes_between(7, 8).await?).is_empty());

    let (hash, text) = texts.blobs[0].clone();
    assert_eq!(read!(store, [], |unit| unit.long_text(&hash).await?), Some(text));
    assert_eq!(read!(store, [], |unit| unit.long_text(&[0; 32]).await?), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_texts_are_kept_once_beside_the_log() {
    const BLOBS: &str = "SELECT hash, bytes FROM audit_blobs";
    for database in [Database::sqlite().await, Database::postgres().await] {
        let store = &database.store;
        let leaf = Leaf::new(LeafKind::Decided, "request", at(0)).with("text", long("x"));
        let leaf = leaf.encode().unwrap();
        append(store, leaf.clone()).await;
        append(store, leaf.clone()).await;
        assert_eq!(sequence(&**store).await.unwrap(), 2);
        let kept: Vec<(Vec<u8>, Vec<u8>)> = if database.url.starts_with("sqlite:") {
            let mut raw = sqlx::SqliteConnection::connect(&database.url).await.unwrap();
            sqlx::query_as(BLOBS).fetch_all(&mut raw).await.unwrap()
        } else {
            let mut raw = sqlx::PgConnection::connect(&database.url).await.unwrap();
            sqlx::query_as(BLOBS).fetch_all(&mut raw).await.unwrap()
        };
        let (hash, text) = leaf.blobs[0].clone();
        assert_eq!(kept, [(hash.to_vec(), text)]);
    }
}
