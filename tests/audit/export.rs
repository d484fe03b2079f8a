//! An export's form, and what the verifier says of one that is not whole.

use crate::commands::{Ran, claviger, verify};
use crate::intruder::Intruder;
use crate::log::{Log, leaf};
use claviger::audit::export::{ExportError, export};
use claviger::core::audit::{EncodedLeaf, INLINE_TEXT_MAX, Leaf, LeafKind};
use claviger::core::time::Timestamp;
use ct_merkle::mem_backed_tree::MemoryBackedTree;
use sha2_for_ct::{Digest as _, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// All files below a folder, by their paths in it.
fn files(dir: &Path) -> Vec<String> {
    let (mut found, mut folders) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(dir).unwrap().display().to_string());
            }
        }
    }
    found.sort();
    found
}

/// The leaves of a bundle, read by the words of the specification.
fn entries(bundle: &[u8]) -> Vec<Vec<u8>> {
    let (mut rest, mut found) = (bundle, Vec::new());
    while let [high, low, after @ ..] = rest {
        let (leaf, after) = after.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        found.push(leaf.to_vec());
        rest = after;
    }
    found
}

fn decided_with(n: usize, text: &str) -> EncodedLeaf {
    let at = Timestamp::from_millis(0);
    let leaf = Leaf::new(LeafKind::Decided, format!("request {n}"), at).with("attempt", 1);
    leaf.with("digest", format!("0x{n:064x}")).with("decision", text).encode().unwrap()
}

/// 604 leaves, the last with a long text, signed four times.
async fn some_log() -> Log {
    let log = Log::of(&[1, 200, 100]).await;
    log.append(vec![decided_with(301, &"x".repeat(5000)), leaf(LeafKind::Signed, 301)]).await;
    log.signer.look(&*log.store).await.unwrap();
    log
}

#[tokio::test]
async fn an_export_is_in_the_form_of_tlog_tiles_and_a_second_implementation_has_its_root() {
    let log = some_log().await;
    let (dir, exported) = log.export("log").await;
    assert_eq!((exported.size, exported.checkpoints, exported.texts), (604, 4, 1));
    assert_eq!(exported.ends_at, None);
    let blob = format!("blobs/{}", hex::encode(Sha256::digest("x".repeat(5000))));
    let expected = [
        &*blob,
        "checkpoint",
        "checkpoints",
        "tile/0/000",
        "tile/0/001",
        "tile/0/002.p/92",
        "tile/1/000.p/2",
        "tile/entries/000",
        "tile/entries/001",
        "tile/entries/002.p/92",
    ];
    assert_eq!(files(&dir), expected);

    let mut tree = MemoryBackedTree::<Sha256, Vec<u8>>::new();
    let mut hashes = Vec::new();
    for name in ["000", "001", "002.p/92"] {
        for leaf in entries(&fs::read(dir.join("tile/entries").join(name)).unwrap()) {
            hashes.extend(Sha256::new().chain_update([0]).chain_update(&leaf).finalize());
            tree.push(leaf);
        }
    }
    let tiles = ["000", "001", "002.p/92"].map(|name| fs::read(dir.join("tile/0").join(name)));
    assert_eq!(tiles.map(Result::unwrap).concat(), hashes);
    let note = fs::read_to_string(dir.join("checkpoint")).unwrap();
    let root = tlog_tiles::Hash(tree.root().as_bytes().as_slice().try_into().unwrap());
    assert!(note.starts_with(&format!("log.test/1\n604\n{root}\n\n— log.test/1 ")), "{note}");
    assert!(fs::read_to_string(dir.join("checkpoints")).unwrap().ends_with(&format!("{note}\n")));

    let ran = log.verify(&dir, &[]);
    assert_eq!(ran.err, "", "no bar where there is no terminal");
    let found = ran.ok();
    assert_eq!(found["kinds"], serde_json::json!({ "DECIDED": 302, "SIGNED": 302 }));
    assert_eq!((&found["checkpoints"], &found["texts"]), (&4.into(), &1.into()));
}

#[tokio::test]
async fn one_flipped_bit_in_any_file_of_an_export_is_seen() {
    let log = some_log().await;
    let (dir, _) = log.export("log").await;
    let mut seen = 0;
    for name in files(&dir) {
        let path = dir.join(&name);
        let whole = fs::read(&path).unwrap();
        for at in [0, whole.len() / 2, whole.len() - 1] {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            fs::write(&path, flipped).unwrap();
            let (first, _, why) = log.verify(&dir, &[]).bad();
            let is_leaf = name.starts_with("tile") || name.starts_with("blobs");
            assert_eq!(first.is_some(), is_leaf, "{name} at {at}: {why}");
            seen += 1;
        }
        fs::write(&path, &whole).unwrap();
    }
    assert_eq!(seen, 30);
    log.verify(&dir, &[]).ok();
}

#[tokio::test]
async fn a_file_that_is_missing_or_too_short_or_too_long_is_seen() {
    let log = some_log().await;
    let (dir, _) = log.export("log").await;
    for (name, index) in [
        ("tile/entries/001", Some(256)),
        ("tile/0/002.p/92", Some(512)),
        ("tile/1/000.p/2", Some(0)),
        ("checkpoints", None),
    ] {
        let whole = fs::read(dir.join(name)).unwrap();
        fs::remove_file(dir.join(name)).unwrap();
        assert_eq!(log.verify(&dir, &[]).bad().0, index, "{name} is gone");
        let cut = &whole[..whole.len() - 1];
        for other in [cut, &[&whole[..], b"\n"].concat()] {
            fs::write(dir.join(name), other).unwrap();
            log.verify(&dir, &[]).bad();
        }
        fs::write(dir.join(name), &whole).unwrap();
    }
    log.verify(&dir, &[]).ok();
}

#[tokio::test]
async fn half_an_export_is_none() {
    let log = some_log().await;
    let (store, dir) = (log.store.clone(), log.path("log"));
    let out = dir.clone();
    let interrupted = tokio::spawn(async move {
        let mut end = |done, _| {
            if done == 512 {
                std::panic::resume_unwind(Box::new("interrupted"));
            }
        };
        export(&*store, None, &out, &mut end).await
    });
    assert!(interrupted.await.unwrap_err().is_panic());
    assert!(dir.join("tile/entries/001").exists());
    let (first, _, why) = log.verify(&dir, &[]).bad();
    assert_eq!(first, None);
    assert!(why.contains("the export was not finished"), "{why}");
    // Nor is it gone on with.
    let again = export(&*log.store, None, &dir, &mut |_, _| {}).await;
    assert!(matches!(again, Err(ExportError::NotEmpty(_))), "{again:?}");
}

#[tokio::test]
async fn an_export_ends_at_the_newest_checkpoint_and_not_at_the_head() {
    let mut log = Log::of(&[2]).await;
    log.append(vec![leaf(LeafKind::Decided, 100)]).await;
    let (dir, exported) = log.export("log").await;
    assert_eq!(exported.size, 4);
    log.verify(&dir, &[]).ok();
    log.grow(1).await;
    assert_eq!(log.export("more").await.1.size, 7);
}

#[tokio::test]
async fn a_log_of_another_key_or_name_is_not_this_log() {
    let (log, other) = (Log::of(&[3]).await, Log::of(&[3]).await);
    let (dir, _) = log.export("log").await;
    // The same name, another key.
    let (first, _, why) = verify(&dir, &other.vkey(), &[]).bad();
    assert!(first.is_none() && why.contains("not signed by the key"), "{why}");
    // A checkpoint that the other log signed.
    let kept = other.keep("kept").await;
    let ran = log.verify(&dir, &[("--checkpoint", &kept)]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("not signed by the key"), "{ran:#?}");
    // Another name.
    let (key, record) = (other.path("b.key"), other.path("b.record"));
    claviger::audit::key::create(&key, &record, "log.test/2").unwrap();
    let why = verify(&dir, &other.path("b.vkey"), &[]).bad().2;
    assert!(why.contains("a checkpoint of `log.test/1`, and the key is of `log.test/2`"), "{why}");
    let ran = log.verify(&dir, &[("--checkpoint", &record)]);
    assert!(ran.code == 1 && ran.err.contains("log.test/2"), "{ran:#?}");
    // The private half is no public key.
    let ran = verify(&dir, &log.path("audit.key"), &[]);
    assert!(ran.code == 1 && ran.err.contains("--key"), "{ran:#?}");
    assert!(!ran.err.contains("PRIVATE"), "{ran:#?}");
}

#[tokio::test]
async fn a_rewritten_log_of_one_signed_leaf_a_time_names_the_leaf_by_its_checkpoints_alone() {
    let log = Log::new().await;
    for n in 0..8 {
        log.append(vec![leaf(LeafKind::Decided, n)]).await;
        log.signer.look(&*log.store).await.unwrap();
    }
    let mut intruder = Intruder::at(&log.database()).await;
    intruder.edit_leaf(5).await;
    intruder.rebuild().await;
    let (dir, _) = log.export("log").await;
    let (bad, why) = log.verify(&dir, &[]).bad_leaf();
    assert_eq!(bad, 5);
    assert!(why.contains("the first 5 leaves are as they were signed"), "{why}");
    // Of a kept checkpoint alone, the history deleted: no better than its size.
    intruder.forget_checkpoints(0).await;
    let (dir, _) = log.export("bare").await;
    assert_eq!(log.verify(&dir, &[]).bad().1, Some(7));
}

#[tokio::test]
async fn a_leaf_that_is_gone_from_the_middle_is_named() {
    let log = Log::of(&[150]).await;
    let mut intruder = Intruder::at(&log.database()).await;
    intruder.delete_leaf(257).await;
    let (dir, exported) = log.export("log").await;
    assert_eq!(exported.ends_at, Some(257));
    let (bad, why) = log.verify(&dir, &[]).bad_leaf();
    assert_eq!(bad, 257);
    assert!(why.contains("it is missing: `tile/entries/001.p/44` lacks it"), "{why}");
}

/// Puts these leaves after an honest pair, has them signed, and answers what the verifier says.
async fn signed_and_verified(leaves: Vec<EncodedLeaf>) -> Ran {
    let log = Log::of(&[1]).await;
    log.append(leaves).await;
    log.signer.look(&*log.store).await.unwrap();
    let (dir, _) = log.export("log").await;
    log.verify(&dir, &[])
}

#[tokio::test]
async fn a_signature_without_its_decision_before_it_is_named() {
    use LeafKind::{Decided, Signed};
    let with_digest = |digest: usize| {
        let leaf = Leaf::new(Signed, "request 7", Timestamp::from_millis(0)).with("attempt", 1);
        leaf.with("digest", format!("0x{digest:064x}")).encode().unwrap()
    };
    let second = Leaf::new(Signed, "request 7", Timestamp::from_millis(0)).with("attempt", 2);
    let second = second.with("digest", format!("0x{:064x}", 7)).encode().unwrap();
    for (leaves, bad) in [
        (vec![leaf(Signed, 7)], 2),
        (vec![leaf(Signed, 7), leaf(Decided, 7)], 2),
        (vec![leaf(Decided, 7), with_digest(8)], 3),
        (vec![leaf(Decided, 7), second], 3),
        (vec![leaf(Decided, 7), leaf(Signed, 7), leaf(Signed, 7)], 4),
    ] {
        let (named, why) = signed_and_verified(leaves).await.bad_leaf();
        assert_eq!(named, bad);
        assert!(why.contains("a signature of attempt"), "{why}");
    }
    let other = Leaf::new(Decided, "request 7", Timestamp::from_millis(0)).with("attempt", 1);
    let other = other.with("digest", format!("0x{:064x}", 8)).encode().unwrap();
    for again in [leaf(Decided, 7), other] {
        let (named, why) = signed_and_verified(vec![leaf(Decided, 7), again]).await.bad_leaf();
        assert_eq!(named, 3);
        assert!(why.contains("a decision of attempt 1 of request 7"), "{why}");
    }
    let decided = vec![leaf(Decided, 8), leaf(Decided, 7), with_digest(7)];
    assert_eq!(signed_and_verified(decided).await.ok()["decided_unsigned"], 1);
}

#[tokio::test]
async fn bytes_that_are_no_leaf_are_named_though_they_were_signed() {
    let good = leaf(LeafKind::Decided, 7);
    let text = String::from_utf8(good.bytes.clone()).unwrap();
    for (bytes, told) in [
        (text.replace("DECIDED", "ASSUMED"), "unknown kind `ASSUMED`"),
        (text.replace("{\"at\"", "{ \"at\""), "not written in the one encoding"),
        (text.replace("\"v\":\"1\"", "\"v\":1"), "not a JSON object of strings"),
        (String::new(), "not a JSON object"),
    ] {
        let bytes = bytes.into_bytes();
        let (named, why) =
            signed_and_verified(vec![EncodedLeaf { bytes, ..good.clone() }]).await.bad_leaf();
        assert_eq!(named, 2);
        assert!(why.contains(told), "{why}");
    }
}

#[tokio::test]
async fn a_long_text_is_there_and_is_what_its_leaf_names() {
    let long = decided_with(7, &"y".repeat(INLINE_TEXT_MAX + 1));
    let gone = EncodedLeaf { blobs: vec![], ..long.clone() };
    let (named, why) = signed_and_verified(vec![gone]).await.bad_leaf();
    assert!(named == 2 && why.contains("which is gone"), "{why}");
    let (hash, text) = long.blobs[0].clone();
    let other = EncodedLeaf { blobs: vec![(hash, [&text[1..], b"z"].concat())], ..long.clone() };
    let (named, why) = signed_and_verified(vec![other]).await.bad_leaf();
    assert!(named == 2 && why.contains("is not the text that it names"), "{why}");
    assert_eq!(signed_and_verified(vec![long]).await.ok()["texts"], 1);
    // Of a denied request the longest texts are not kept.
    let denied = Leaf::new(LeafKind::Denied, "request 8", Timestamp::from_millis(0));
    let denied = denied.with("decision", "z".repeat(40_000)).encode().unwrap();
    let denied = EncodedLeaf { blobs: vec![], ..denied };
    assert_eq!(signed_and_verified(vec![denied]).await.ok()["ok"], true);
}

#[tokio::test]
async fn a_text_that_is_no_file_of_its_length_is_not_read() {
    let mut log = Log::of(&[1]).await;
    log.append(vec![decided_with(7, &"y".repeat(5000))]).await;
    log.grow(1).await;
    let (dir, _) = log.export("log").await;
    let name = dir.join("blobs").join(hex::encode(Sha256::digest("y".repeat(5000))));
    let elsewhere = log.path("elsewhere");
    fs::rename(&name, &elsewhere).unwrap();
    let wrong = || {
        let (named, why) = log.verify(&dir, &[]).bad_leaf();
        assert!(named == 2 && why.contains("is not the text that it names"), "{why}");
    };
    std::os::unix::fs::symlink(&elsewhere, &name).unwrap();
    wrong();
    fs::remove_file(&name).unwrap();
    // Without a byte on the disk, and a day's reading.
    fs::File::create(&name).unwrap().set_len(1 << 42).unwrap();
    wrong();
    fs::remove_file(&name).unwrap();
    fs::create_dir(&name).unwrap();
    wrong();
    fs::remove_dir(&name).unwrap();
    fs::rename(&elsewhere, &name).unwrap();
    log.verify(&dir, &[]).ok();

    let note = fs::File::create(dir.join("checkpoint")).unwrap();
    note.set_len(1 << 42).unwrap();
    let (_, _, why) = log.verify(&dir, &[]).bad();
    assert!(why.contains("`checkpoint` cannot be trusted"), "{why}");
}

#[tokio::test]
async fn a_leaf_cannot_write_on_the_auditors_screen() {
    let id = "x\u{1b}[2J\u{9b}1A\nclaviger: verified";
    let hostile = Leaf::new(LeafKind::Signed, id, Timestamp::from_millis(0)).with("attempt", 1);
    let ran = signed_and_verified(vec![hostile.with("digest", "0x00").encode().unwrap()]).await;
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(ran.err.contains("x\\u{1b}[2J\\u{9b}1A\\nclaviger: verified"), "{ran:#?}");
    for printed in [&ran.out, &ran.err] {
        assert!(!printed.contains(|c: char| c.is_control() && c != '\n'), "{ran:#?}");
    }
    assert_eq!(ran.err.lines().count(), 1, "{ran:#?}");
}

#[tokio::test]
async fn what_is_kept_is_written_only_of_a_log_that_is_right_and_is_checked_before_it_is_used() {
    let mut log = Log::of(&[10]).await;
    let (dir, _) = log.export("log").await;
    let kept = log.path("kept");
    log.verify(&dir, &[("--keep", &kept)]).ok();
    let whole = fs::read(&kept).unwrap();
    let note = fs::read(dir.join("checkpoint")).unwrap();
    assert_eq!(whole.len(), note.len() + 1 + 20 * 32);
    let taken = log.verify(&dir, &[("--keep", &kept)]);
    assert!(taken.code == 1 && taken.err.contains("exists"), "{taken:#?}");

    log.grow(5).await;
    let (later, _) = log.export("later").await;
    assert_eq!(log.verify(&later, &[("--against", &kept)]).ok()["kept"], 1);
    // An older export than what was kept lacks leaves.
    let newer = log.path("newer");
    log.verify(&later, &[("--keep", &newer)]).ok();
    assert_eq!(log.verify(&dir, &[("--against", &newer)]).bad_leaf().0, 20);

    for damaged in [whole[..whole.len() - 1].to_vec(), {
        let mut other = whole.clone();
        *other.last_mut().unwrap() ^= 1;
        other
    }] {
        fs::write(&kept, damaged).unwrap();
        let ran = log.verify(&later, &[("--against", &kept)]);
        assert!(ran.code == 1 && ran.err.contains("--against"), "{ran:#?}");
        assert_eq!(ran.out, "", "the log is not blamed");
    }

    let leaf = later.join("tile/entries/000.p/30");
    let mut bytes = fs::read(&leaf).unwrap();
    bytes[40] ^= 1;
    fs::write(&leaf, bytes).unwrap();
    let others = log.path("others.new");
    fs::write(&others, "another's").unwrap();
    let taken = log.verify(&dir, &[("--keep", &log.path("others"))]);
    assert!(taken.code == 1 && taken.err.contains("exists"), "{taken:#?}");
    assert_eq!(fs::read_to_string(&others).unwrap(), "another's");
    let unwritten = log.path("unwritten");
    log.verify(&later, &[("--keep", &unwritten)]).bad();
    let left: Vec<PathBuf> = fs::read_dir(log.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.display().to_string().contains("unwritten"))
        .collect();
    assert_eq!(left, Vec::<PathBuf>::new());
}

#[test]
fn bad_usage_is_told_apart_from_a_bad_log() {
    for args in [&["audit", "verify", "--export", "x"][..], &["audit", "export"], &["audit", "x"]] {
        assert_eq!(claviger(args, &[]).code, 2, "{args:?}");
    }
    let nowhere = claviger(&["audit", "verify", "--export", "/nowhere", "--key", "/nowhere"], &[]);
    assert_eq!(nowhere.code, 1);
    for command in ["export", "verify", "init-key"] {
        let help = claviger(&["audit", command, "--help"], &[]);
        assert!(help.out.contains("Example:\n  claviger audit "), "{help:#?}");
    }
}
