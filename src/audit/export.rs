//! The log as files, exactly up to one signed checkpoint. `layout` has the form.
//!
//! Leaves, nodes and texts are written as the database has them: an export is evidence, and finding what
//! is wrong with it is the verifier's work. Where the database lacks something, the export ends there and
//! says so.

use crate::audit::checkpoint::{Checkpoint, base64_root};
use crate::audit::layout::{
    CHECKPOINT, HISTORY, LEVELS, TEXTS, TILE_LEVELS, WIDTH, complete, entries, tile,
};
use crate::core::audit::read::{LongText, ReadLeaf};
use crate::ports::store::{LogLeaf, SignedCheckpoint, Store, StoreError, look};
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use tlog_tiles::{stored_hash_count, stored_hash_index};

/// Checkpoints that are read at once.
const PAGE: i64 = 512;

/// Why there is no export.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The log has no checkpoint.
    #[error(
        "the log has no signed checkpoint: start the server with `[audit] key_file` set, and let it \
         sign the log once"
    )]
    NotSigned,
    /// The folder is in use.
    #[error("{} is not empty; nothing was written", .0.display())]
    NotEmpty(PathBuf),
    /// A file cannot be written.
    #[error("{}: {error}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The database does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Leaves, by the checkpoint.
    pub size: u64,
    /// The checkpoint's root, base64.
    pub root: String,
    /// Checkpoints of the history.
    pub checkpoints: u64,
    /// Texts beside the log.
    pub texts: u64,
    /// The first leaf that is not there, or not with its nodes, if the database lacks one.
    pub ends_at: Option<u64>,
}

fn failed(path: &Path) -> impl Fn(io::Error) -> ExportError {
    move |error| ExportError::File { path: path.to_owned(), error }
}

/// Writes the log into a new folder, up to the newest signed checkpoint: of those in the database and
/// `recorded`, the signer's own, which nobody with the database alone can take away. `progress` is told
/// how many leaves of how many are done.
///
/// # Errors
/// When nothing is signed, the folder is not empty, or something cannot be read or written. What was
/// written until then has no `checkpoint` and is no export.
pub async fn export(
    store: &dyn Store,
    recorded: Option<Checkpoint>,
    out: &Path,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Exported, ExportError> {
    let newest = newest(store, recorded).await?;
    make_folder(out)?;
    let checkpoints = history(store, newest.size, out).await?;
    let mut writer = LogWriter::new(out, newest.size);
    let mut ends_at = None;
    let mut done = 0;
    progress(0, newest.size);
    while done < newest.size {
        let chunk = read_chunk(store, done, newest.size).await?;
        let whole = writer.write(store, done, chunk).await?;
        if let Some(lacks) = whole {
            ends_at = Some(lacks);
            break;
        }
        done = done.saturating_add(WIDTH).min(newest.size);
        progress(done, newest.size);
    }
    writer.finish()?;
    // Last, and at once: an export without it was not finished.
    let path = out.join(CHECKPOINT);
    let begun = out.join("checkpoint.new");
    let mut file = File::create(&begun).map_err(failed(&begun))?;
    file.write_all(newest.note.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(failed(&begun))?;
    fs::rename(&begun, &path).map_err(failed(&path))?;
    File::open(out).and_then(|folder| folder.sync_all()).map_err(failed(out))?;
    let root = base64_root(&newest.root);
    Ok(Exported { size: newest.size, root, checkpoints, texts: writer.texts, ends_at })
}

async fn newest(
    store: &dyn Store,
    recorded: Option<Checkpoint>,
) -> Result<SignedCheckpoint, ExportError> {
    let stored = look(store, "newest_checkpoint", |unit| {
        Box::pin(async move { unit.newest_checkpoint().await })
    })
    .await?;
    let recorded = recorded
        // The signer's record begins with the empty log, before anything is released.
        .filter(|recorded| recorded.size > 0)
        .map(|Checkpoint { size, root, note }| SignedCheckpoint { size, root, note });
    stored.into_iter().chain(recorded).max_by_key(|one| one.size).ok_or(ExportError::NotSigned)
}

fn make_folder(out: &Path) -> Result<(), ExportError> {
    if out.exists() && fs::read_dir(out).map_err(failed(out))?.next().is_some() {
        return Err(ExportError::NotEmpty(out.to_owned()));
    }
    fs::create_dir_all(out.join(TEXTS)).map_err(failed(out))
}

/// Writes the history; answers how many checkpoints it has.
async fn history(store: &dyn Store, size: u64, out: &Path) -> Result<u64, ExportError> {
    let path = out.join(HISTORY);
    let mut file = BufWriter::new(File::create_new(&path).map_err(failed(&path))?);
    let (mut from, mut count) = (0, 0_u64);
    loop {
        let page = look(store, "read_checkpoints", move |unit| {
            Box::pin(async move { unit.checkpoints(from, PAGE).await })
        })
        .await?;
        let before = count;
        for signed in page.iter().filter(|signed| signed.size <= size) {
            writeln!(file, "{}", signed.note).map_err(failed(&path))?;
            count = count.saturating_add(1);
            from = signed.size.saturating_add(1);
        }
        if count == before {
            file.flush().map_err(failed(&path))?;
            return Ok(count);
        }
    }
}

/// Leaves of one bundle, with the nodes that became complete by them and the texts that they name.
struct Chunk {
    leaves: Vec<LogLeaf>,
    nodes: HashMap<u64, [u8; 32]>,
}

async fn read_chunk(store: &dyn Store, from: u64, size: u64) -> Result<Chunk, StoreError> {
    let below = from.saturating_add(WIDTH).min(size);
    let nodes = (stored_hash_index(0, from), stored_hash_count(below));
    let most = i64::try_from(below.saturating_sub(from)).unwrap_or(0);
    look(store, "read_log", move |unit| {
        Box::pin(async move {
            let leaves = unit.log_leaves(from, most).await?;
            let nodes = unit.log_nodes_between(nodes.0, nodes.1).await?.into_iter().collect();
            Ok(Chunk { leaves, nodes })
        })
    })
    .await
}

/// Writes tiles and bundles as they fill.
struct LogWriter<'a> {
    out: &'a Path,
    size: u64,
    /// Per level of tiles: how many are full and written, and the hashes of the next.
    levels: Vec<(u64, Vec<u8>)>,
    texts: u64,
}

impl<'a> LogWriter<'a> {
    fn new(out: &'a Path, size: u64) -> Self {
        Self { out, size, levels: vec![(0, Vec::new()); usize::from(LEVELS)], texts: 0 }
    }

    /// Writes one bundle and its hashes. Answers the first leaf that is not whole, if there is one;
    /// then nothing may be written after it.
    async fn write(
        &mut self,
        store: &dyn Store,
        from: u64,
        chunk: Chunk,
    ) -> Result<Option<u64>, ExportError> {
        let below = from.saturating_add(WIDTH).min(self.size);
        let mut bundle = Vec::new();
        let mut leaves = chunk.leaves.into_iter().peekable();
        let mut lacks = None;
        for index in from..below {
            let leaf = leaves.next_if(|leaf| leaf.index == index);
            let Some((leaf, length)) = leaf.and_then(with_length) else {
                lacks = Some(index);
                break;
            };
            bundle.extend_from_slice(&length.to_be_bytes());
            bundle.extend_from_slice(&leaf.bytes);
            self.keep_texts(store, &leaf.bytes).await?;
            if !self.push_hashes(index, &chunk.nodes)? {
                lacks = Some(index);
                break;
            }
        }
        let number = from.checked_div(WIDTH).unwrap_or(0);
        self.put(&entries(number, below.saturating_sub(from)), &bundle)?;
        Ok(lacks)
    }

    /// Adds the hashes that this leaf completes to their tiles. `false` if the tree lacks one.
    fn push_hashes(
        &mut self,
        index: u64,
        nodes: &HashMap<u64, [u8; 32]>,
    ) -> Result<bool, ExportError> {
        let after = index.saturating_add(1);
        for level in 0..LEVELS {
            let count = complete(after, level);
            if count == complete(index, level) {
                break;
            }
            let tree_level = level.saturating_mul(TILE_LEVELS);
            let place = stored_hash_index(tree_level, count.saturating_sub(1));
            let Some(hash) = nodes.get(&place) else { return Ok(false) };
            let Some((number, hashes)) = self.levels.get_mut(usize::from(level)) else { break };
            hashes.extend_from_slice(hash);
            if count.checked_rem(WIDTH) == Some(0) {
                let path = tile(level, *number, WIDTH);
                *number = number.saturating_add(1);
                let full = std::mem::take(hashes);
                self.put(&path, &full)?;
            }
        }
        Ok(true)
    }

    /// Writes the tiles that are not full.
    fn finish(&mut self) -> Result<(), ExportError> {
        for (level, (number, hashes)) in (0..LEVELS).zip(std::mem::take(&mut self.levels)) {
            if !hashes.is_empty() {
                let width = complete(self.size, level).saturating_sub(number.saturating_mul(WIDTH));
                self.put(&tile(level, number, width.min(WIDTH)), &hashes)?;
            }
        }
        Ok(())
    }

    async fn keep_texts(&mut self, store: &dyn Store, leaf: &[u8]) -> Result<(), ExportError> {
        // What is no leaf names nothing; the verifier will say so.
        let named = ReadLeaf::parse(leaf).map_or_else(|_| Vec::new(), |leaf| leaf.long_texts());
        for LongText { hash, .. } in named {
            let name = hex::encode(hash);
            if self.out.join(TEXTS).join(&name).exists() {
                continue;
            }
            let text = look(store, "long_text", move |unit| {
                Box::pin(async move { unit.long_text(&hash).await })
            })
            .await?;
            if let Some(text) = text {
                self.put(&format!("{TEXTS}/{name}"), &text)?;
                self.texts = self.texts.saturating_add(1);
            }
        }
        Ok(())
    }

    fn put(&self, path: &str, bytes: &[u8]) -> Result<(), ExportError> {
        let path = self.out.join(path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed(folder))?;
        }
        let new = OpenOptions::new().write(true).create_new(true).open(&path);
        new.and_then(|mut file| file.write_all(bytes)).map_err(failed(&path))
    }
}

/// A leaf with its length, if a bundle can hold it.
fn with_length(leaf: LogLeaf) -> Option<(LogLeaf, u16)> {
    let length = u16::try_from(leaf.bytes.len()).ok()?;
    Some((leaf, length))
}
