//! Checks an export with nothing but the log's public key and what the auditor kept: offline, in one pass
//! from the first leaf to the last.
//!
//! Memory does not grow with the log. Held at any time are one bundle of leaves (16 MiB at most), one tile
//! a level, the tree's right edge, the checkpoints that were given by name, and 64 bytes for each attempt
//! that is decided and not yet signed.

mod decided;
mod files;
mod kept;

pub use files::read_note;
pub use kept::{KeepFile, KeptLeaves};

use crate::audit::checkpoint::{Checkpoint, NotACheckpoint, Verifier, base64_root};
use crate::audit::layout::{CHECKPOINT, LEVELS, TEXTS, TILE_LEVELS, complete};
use crate::audit::tree::{Edge, leaf_hash};
use crate::core::audit::LeafKind;
use crate::core::audit::read::{LongText, ReadLeaf};
use decided::Decided;
use files::{Entries, History, Tiles};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Leaves between two words about progress.
const PROGRESS_EVERY: u64 = 256;

/// What the auditor brings.
pub struct Given {
    /// The log's public key.
    pub verifier: Verifier,
    /// Checkpoints that were kept from before, each with the name of its file.
    pub checkpoints: Vec<(String, Checkpoint)>,
    /// Leaf hashes that were kept from before.
    pub against: Option<KeptLeaves>,
    /// Where to write what should be kept from now on.
    pub keep: Option<PathBuf>,
}

/// What was found right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The log's origin.
    pub origin: String,
    /// How many leaves.
    pub size: u64,
    /// The root, base64.
    pub root: String,
    /// Leaves of each kind.
    pub kinds: BTreeMap<&'static str, u64>,
    /// Checkpoints of the history that the log agrees with.
    pub history: u64,
    /// Checkpoints that the auditor kept and that the log agrees with.
    pub kept: u64,
    /// Long texts that leaves name, as often as they are named.
    pub texts: u64,
    /// Attempts that are decided and not signed.
    pub unsigned: u64,
}

/// The log is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{why}", place(.first, .last))]
pub struct Mismatch {
    /// The first bad leaf, or the first that may be it. None where the log as a whole is not there.
    pub first: Option<u64>,
    /// The last leaf that may be the first bad one.
    pub last: Option<u64>,
    /// What is wrong.
    pub why: String,
}

fn place(first: &Option<u64>, last: &Option<u64>) -> String {
    match (first, last) {
        (Some(first), Some(last)) if first == last => format!("leaf {first}: "),
        (Some(first), Some(last)) => {
            format!("the first bad leaf is one of {first} to {last}: ")
        }
        _ => String::new(),
    }
}

impl Mismatch {
    fn at(index: u64, why: impl Into<String>) -> Self {
        Self::between(index, index, why)
    }

    fn between(first: u64, last: u64, why: impl Into<String>) -> Self {
        Self { first: Some(first), last: Some(last), why: one_line(why) }
    }

    fn whole(why: impl Into<String>) -> Self {
        Self { first: None, last: None, why: one_line(why) }
    }
}

/// A leaf's text may be in it, and must not look like a line of ours.
fn one_line(why: impl Into<String>) -> String {
    why.into().replace('\n', "\\n")
}

/// Why the log was not found right.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It is not right.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// It could not be checked.
    #[error("{}: {error}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

fn failed(path: &Path) -> impl Fn(io::Error) -> VerifyError {
    move |error| VerifyError::File { path: path.to_owned(), error }
}

/// Checks an export. `progress` is told how many leaves of how many are done.
///
/// # Errors
/// The first thing that is wrong, in the order of the leaves; or a file that cannot be read.
pub fn verify(
    dir: &Path,
    given: Given,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Verified, VerifyError> {
    let checkpoint = signed_checkpoint(dir, &given.verifier)?;
    let size = checkpoint.size;
    let mut pass = Pass::new(dir, checkpoint, given)?;
    progress(0, size);
    pass.checkpoints()?;
    for index in 0..size {
        pass.leaf(index)?;
        pass.subtrees(index)?;
        pass.checkpoints()?;
        let done = index.saturating_add(1);
        if done.checked_rem(PROGRESS_EVERY) == Some(0) || done == size {
            progress(done, size);
        }
    }
    pass.end()
}

/// A leaf which declares that the log does not continue a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declaration {
    /// The leaf.
    pub leaf: u64,
    /// Up to so many leaves the log is the one that was signed before.
    pub goes_on_from: u64,
    /// The operator's words.
    pub reason: String,
}

/// Whether the log itself declares that it does not continue a checkpoint, which was signed before its
/// database was put back to an earlier state. The declaration explains what is missing, and makes nothing
/// right.
///
/// # Errors
/// When a file cannot be read.
pub fn declared_lost(
    dir: &Path,
    verifier: &Verifier,
    kept: &Checkpoint,
) -> Result<Option<Declaration>, VerifyError> {
    let size = signed_checkpoint(dir, verifier)?.size;
    let mut entries = Entries::new(dir, size);
    for index in 0..size {
        let read = ReadLeaf::parse(entries.next(index)?);
        let Ok(leaf) = read.map_err(drop) else { continue };
        let note = leaf.text("lost_checkpoint").filter(|_| leaf.kind == LeafKind::Reconciled);
        let lost = note.and_then(|note| verifier.open(note).ok());
        // Whatever was signed up to the lost one, and is not in this log, was lost with it.
        if lost.is_some_and(|lost| lost.size >= kept.size) {
            let goes_on_from = leaf.text("goes_on_from").and_then(|size| size.parse().ok());
            let reason = leaf.text("reason").unwrap_or_default().to_owned();
            let goes_on_from = goes_on_from.unwrap_or(0);
            return Ok(Some(Declaration { leaf: index, goes_on_from, reason }));
        }
    }
    Ok(None)
}

fn signed_checkpoint(dir: &Path, verifier: &Verifier) -> Result<Checkpoint, VerifyError> {
    let path = dir.join(CHECKPOINT);
    let note = match read_note(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Mismatch::whole(format!(
                "{} has no `{CHECKPOINT}`: the export was not finished, or this is none",
                dir.display()
            ))
            .into());
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(not_signed(CHECKPOINT, &NotACheckpoint::Malformed).into());
        }
        other => other.map_err(failed(&path))?,
    };
    Ok(verifier.open(&note).map_err(|why| not_signed(CHECKPOINT, &why))?)
}

fn not_signed(file: &str, why: &NotACheckpoint) -> Mismatch {
    Mismatch::whole(format!("`{file}` cannot be trusted: {why}"))
}

/// A checkpoint that the log has to agree with once it has that many leaves.
struct Expected {
    checkpoint: Checkpoint,
    /// Which file says so.
    source: String,
}

/// One pass over the leaves.
struct Pass {
    dir: PathBuf,
    verifier: Verifier,
    head: Checkpoint,
    entries: Entries,
    tiles: Tiles,
    history: History,
    /// What the auditor kept, the smallest last.
    expected: Vec<Expected>,
    against: Option<KeptLeaves>,
    keep: Option<KeepFile>,
    edge: Edge,
    /// The largest size at which the log is known to be what was signed.
    good: u64,
    decided: Decided,
    /// What is wrong with the history itself. It names no leaf, so the pass goes on without it to find
    /// one: an intruder who spoils the history must not hide what else was done.
    doubt: Option<Mismatch>,
    found: Verified,
}

impl Pass {
    fn new(dir: &Path, head: Checkpoint, given: Given) -> Result<Self, VerifyError> {
        let Given { verifier, checkpoints, against, keep } = given;
        let kept = against.as_ref().map(|kept| (kept.name().to_owned(), kept.checkpoint().clone()));
        let mut expected: Vec<Expected> = checkpoints
            .into_iter()
            .chain(kept)
            .map(|(source, checkpoint)| Expected { checkpoint, source })
            .collect();
        expected.sort_by_key(|expected| std::cmp::Reverse(expected.checkpoint.size));
        let keep = keep.map(|path| KeepFile::create(path, &head.note)).transpose()?;
        let found = Verified {
            origin: verifier.name().to_owned(),
            size: head.size,
            root: base64_root(&head.root),
            kinds: BTreeMap::new(),
            history: 0,
            kept: 0,
            texts: 0,
            unsigned: 0,
        };
        Ok(Self {
            entries: Entries::new(dir, head.size),
            tiles: Tiles::new(dir, head.size),
            history: History::open(dir)?,
            dir: dir.to_owned(),
            verifier,
            head,
            expected,
            against,
            keep,
            edge: Edge::default(),
            good: 0,
            decided: Decided::default(),
            doubt: None,
            found,
        })
    }

    /// The leaf itself: that it is the one in the tree, that it is a leaf, and what it says.
    fn leaf(&mut self, index: u64) -> Result<(), VerifyError> {
        let leaf = self.entries.next(index)?;
        let (hash, read) = (leaf_hash(leaf), ReadLeaf::parse(leaf));
        let in_tree = self.tiles.hash(0, index).map_err(|error| error.of_leaf(index))?;
        if hash != in_tree {
            let (is, was) = (hex::encode(hash), hex::encode(in_tree));
            let why = format!("its bytes hash to {is}, and the tree has {was} there");
            return Err(Mismatch::at(index, why).into());
        }
        self.compare(index, &hash)?;
        let read = read.map_err(|why| Mismatch::at(index, why.to_string()))?;
        self.decided.take(&read).map_err(|why| Mismatch::at(index, why))?;
        for text in read.long_texts() {
            check_text(&self.dir, index, &text)?;
            self.found.texts = self.found.texts.saturating_add(1);
        }
        let count = self.found.kinds.entry(read.kind.name()).or_default();
        *count = count.saturating_add(1);
        if let Some(keep) = &mut self.keep {
            keep.push(&hash)?;
        }
        Ok(())
    }

    /// The leaf is the one that the auditor kept.
    fn compare(&mut self, index: u64, hash: &[u8; 32]) -> Result<(), VerifyError> {
        let Some(against) = &mut self.against else { return Ok(()) };
        match against.next()? {
            Some(kept) if kept != *hash => {
                let (name, was, is) = (against.name(), hex::encode(kept), hex::encode(hash));
                let why = format!(
                    "it is not the leaf that was kept in {name}: its hash was {was}, and is {is}"
                );
                Err(Mismatch::at(index, why).into())
            }
            _ => Ok(()),
        }
    }

    /// The subtrees that this leaf completes have the hashes that the upper tiles say.
    fn subtrees(&mut self, index: u64) -> Result<(), VerifyError> {
        let hash = self.tiles.hash(0, index).map_err(|error| error.of_leaf(index))?;
        let computed = self.edge.push(hash);
        for level in 1..LEVELS {
            let place = usize::from(level).saturating_mul(usize::from(TILE_LEVELS));
            let Some(computed) = computed.get(place) else { break };
            let number = complete(self.edge.size(), level).saturating_sub(1);
            let leaves = 1_u64.checked_shl(u32::from(level).saturating_mul(8)).unwrap_or(0);
            let first = self.edge.size().saturating_sub(leaves);
            let stated = self.tiles.hash(level, number).map_err(|e| e.of_leaves(first, index))?;
            if stated != *computed {
                let why = format!(
                    "hash {number} of level {level} in the tiles is not the hash of these leaves"
                );
                return Err(Mismatch::between(first, index, why).into());
            }
        }
        Ok(())
    }

    /// What was signed at this size, by whichever source.
    fn checkpoints(&mut self) -> Result<(), VerifyError> {
        let size = self.edge.size();
        let mut due = Vec::new();
        while let Some(signed) = self.signed_at(size)? {
            self.found.history = self.found.history.saturating_add(1);
            due.push(Expected { checkpoint: signed, source: files::HISTORY_NAME.to_owned() });
        }
        while let Some(kept) = self.expected.pop_if(|kept| kept.checkpoint.size <= size) {
            self.found.kept = self.found.kept.saturating_add(1);
            due.push(kept);
        }
        if size == self.head.size {
            let (checkpoint, source) = (self.head.clone(), format!("`{CHECKPOINT}`"));
            due.push(Expected { checkpoint, source });
        }
        if due.is_empty() {
            return Ok(());
        }
        let root = self.edge.root();
        for Expected { checkpoint, source } in &due {
            if checkpoint.root != root {
                return Err(self.rewritten(source, &checkpoint.root, &root).into());
            }
        }
        self.good = size;
        Ok(())
    }

    /// The next of the history, if it is of at most this size and the history can be trusted.
    fn signed_at(&mut self, size: u64) -> Result<Option<Checkpoint>, VerifyError> {
        if self.doubt.is_some() {
            return Ok(None);
        }
        match self.history.next_at(size, &self.verifier) {
            Err(VerifyError::Mismatch(doubt)) => {
                self.doubt = Some(doubt);
                Ok(None)
            }
            other => other,
        }
    }

    fn rewritten(&self, source: &str, signed: &[u8; 32], root: &[u8; 32]) -> Mismatch {
        let size = self.edge.size();
        let why = format!(
            "the tree of {size} leaves has the root {}, and {source} says that {} was signed; the \
             first {} leaves are as they were signed",
            base64_root(root),
            base64_root(signed),
            self.good,
        );
        Mismatch::between(self.good, size.saturating_sub(1), why)
    }

    fn end(mut self) -> Result<Verified, VerifyError> {
        let size = self.edge.size();
        if let Some(Expected { checkpoint, source }) = self.expected.pop() {
            let why = format!(
                "it is missing: {source} was signed at {} leaves, and the export ends after {size}; \
                 leaves are gone, or the export is older than that checkpoint",
                checkpoint.size
            );
            return Err(Mismatch::at(size, why).into());
        }
        if let Some(doubt) = self.doubt {
            return Err(doubt.into());
        }
        self.history.end(size)?;
        if let Some(keep) = self.keep.take() {
            keep.finish()?;
        }
        self.found.unsigned = self.decided.waiting();
        Ok(self.found)
    }
}

/// A text beside the log is there and is what the leaf names.
fn check_text(dir: &Path, index: u64, named: &LongText) -> Result<(), VerifyError> {
    let name = format!("{TEXTS}/{}", hex::encode(named.hash));
    let path = dir.join(&name);
    let found = match std::fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if named.is_kept {
                return Err(Mismatch::at(index, format!("it names `{name}`, which is gone")).into());
            }
            return Ok(());
        }
        other => other.map_err(failed(&path))?,
    };
    let other = || Mismatch::at(index, format!("`{name}` is not the text that it names"));
    // What is no file may have no end, and a link leads out of the export.
    if !found.is_file() || found.len() != named.length {
        return Err(other().into());
    }
    let file = std::fs::File::open(&path).map_err(failed(&path))?;
    // It may have changed since.
    let mut file = file.take(named.length.saturating_add(1));
    let (mut hasher, mut length, mut buffer) = (Sha256::new(), 0_u64, [0; 8192]);
    loop {
        let read = file.read(&mut buffer).map_err(failed(&path))?;
        if read == 0 {
            break;
        }
        hasher.update(buffer.get(..read).unwrap_or_default());
        length = length.saturating_add(u64::try_from(read).unwrap_or(0));
    }
    let hash: [u8; 32] = hasher.finalize().into();
    if hash != named.hash || length != named.length {
        return Err(other().into());
    }
    Ok(())
}
