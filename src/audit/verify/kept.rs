//! What an auditor keeps: a checkpoint with the hash of every leaf, 32 bytes each. With it the leaf that
//! was changed is named exactly, whatever was rewritten around it.
//!
//! The file is the signed note, an empty line, and the hashes, one after the other.

use super::{VerifyError, failed};
use crate::audit::checkpoint::{Checkpoint, NotACheckpoint, Verifier, next_note};
use crate::audit::tree::Edge;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A file being written. It has its name only once the whole log was found right.
pub struct KeepFile {
    path: PathBuf,
    begun: PathBuf,
    file: BufWriter<File>,
    is_finished: bool,
}

impl KeepFile {
    /// Begins the file.
    ///
    /// # Errors
    /// When it cannot be written, or is there already.
    pub fn create(path: PathBuf, note: &str) -> Result<Self, VerifyError> {
        if path.exists() {
            return Err(failed(&path)(io::Error::from(io::ErrorKind::AlreadyExists)));
        }
        let mut begun = path.as_os_str().to_owned();
        begun.push(".new");
        let begun = PathBuf::from(begun);
        // Another's file of this name, or what a link of this name leads to, is not ours to write over.
        let file = File::create_new(&begun).map_err(failed(&begun))?;
        let mut keep = Self { path, begun, file: BufWriter::new(file), is_finished: false };
        writeln!(keep.file, "{note}").map_err(failed(&keep.begun))?;
        Ok(keep)
    }

    pub(super) fn push(&mut self, hash: &[u8; 32]) -> Result<(), VerifyError> {
        self.file.write_all(hash).map_err(failed(&self.begun))
    }

    pub(super) fn finish(mut self) -> Result<(), VerifyError> {
        self.file.flush().map_err(failed(&self.begun))?;
        self.file.get_ref().sync_all().map_err(failed(&self.begun))?;
        fs::rename(&self.begun, &self.path).map_err(failed(&self.path))?;
        self.is_finished = true;
        Ok(())
    }
}

impl Drop for KeepFile {
    fn drop(&mut self) {
        // If it was finished, a file of this name is not this one.
        if !self.is_finished {
            let _ = fs::remove_file(&self.begun);
        }
    }
}

/// Why a file is not what an auditor kept.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// It cannot be read.
    #[error("{}: {error}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It was not written by `--keep`, is of another log, or is damaged.
    #[error("{}: {why}", path.display())]
    Wrong {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// A file that was written by [`KeepFile`], found right in itself.
pub struct KeptLeaves {
    path: PathBuf,
    name: String,
    checkpoint: Checkpoint,
    hashes: BufReader<File>,
    left: u64,
}

impl KeptLeaves {
    /// Opens the file and checks that its hashes have the root that was signed: what it says later about
    /// a leaf is then the log's fault and not its own.
    ///
    /// # Errors
    /// See [`KeptError`].
    pub fn open(path: &Path, verifier: &Verifier) -> Result<Self, KeptError> {
        let failed = |error| KeptError::File { path: path.to_owned(), error };
        let wrong = |why: String| KeptError::Wrong { path: path.to_owned(), why };
        let mut file = BufReader::new(File::open(path).map_err(failed)?);
        let note = next_note(&mut file).map_err(failed)?.unwrap_or(Err(NotACheckpoint::Malformed));
        let note = note.map_err(|why| wrong(format!("it was not written by `--keep`: {why}")))?;
        let checkpoint = verifier.open(&note).map_err(|why| wrong(why.to_string()))?;
        let start = file.stream_position().map_err(failed)?;
        let mut edge = Edge::default();
        while edge.size() < checkpoint.size {
            let hash = read_hash(&mut file).map_err(failed)?;
            edge.push(hash);
        }
        let after = file.read(&mut [0]).map_err(failed)?;
        if edge.root() != checkpoint.root || after != 0 {
            return Err(wrong(
                "it is damaged: its hashes are not those that were signed".to_owned(),
            ));
        }
        file.seek(SeekFrom::Start(start)).map_err(failed)?;
        let name = path.display().to_string();
        Ok(Self { path: path.to_owned(), name, left: checkpoint.size, checkpoint, hashes: file })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The checkpoint that the hashes were kept with.
    #[must_use]
    pub const fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The hash of the next leaf; `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<[u8; 32]>, VerifyError> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        read_hash(&mut self.hashes).map(Some).map_err(failed(&self.path))
    }
}

fn read_hash(file: &mut impl Read) -> io::Result<[u8; 32]> {
    let mut hash = [0; 32];
    file.read_exact(&mut hash)?;
    Ok(hash)
}
