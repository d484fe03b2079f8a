//! An export's files, read from front to back.

use super::{Mismatch, VerifyError, failed};
use crate::audit::checkpoint::{Checkpoint, NOTE_BYTES_MAX, NotACheckpoint, Verifier, next_note};
use crate::audit::layout::{
    BUNDLE_BYTES_MAX, HISTORY, LEVELS, WIDTH, complete, entries, tile, width,
};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

/// The history's name in messages.
pub const HISTORY_NAME: &str = "`checkpoints`";

/// Reads a file with one note, such as a checkpoint.
///
/// # Errors
/// When it cannot be read, is longer than any note, or is no text.
pub fn read_note(path: &Path) -> io::Result<String> {
    let mut note = Vec::new();
    File::open(path)?.take(NOTE_BYTES_MAX.saturating_add(1)).read_to_end(&mut note)?;
    let is_longer = u64::try_from(note.len()).is_ok_and(|length| length > NOTE_BYTES_MAX);
    let note = String::from_utf8(note).ok().filter(|_| !is_longer);
    note.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is not a signed note"))
}

/// Reads a file of at most so many bytes. `None` if it is not there.
fn read(path: &Path, most: u64) -> Result<Option<Vec<u8>>, VerifyError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed(path))?,
    };
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(failed(path))?;
    Ok(Some(bytes))
}

/// The leaves, bundle after bundle.
pub struct Entries {
    dir: PathBuf,
    size: u64,
    path: String,
    bundle: Vec<u8>,
    at: usize,
}

impl Entries {
    pub fn new(dir: &Path, size: u64) -> Self {
        Self { dir: dir.to_owned(), size, path: String::new(), bundle: Vec::new(), at: 0 }
    }

    /// The next leaf, which is this one.
    pub fn next(&mut self, index: u64) -> Result<&[u8], VerifyError> {
        if index.checked_rem(WIDTH) == Some(0) {
            self.open(index)?;
        }
        let missing = |path: &str| Mismatch::at(index, format!("it is missing: `{path}` lacks it"));
        let start = self.at.saturating_add(2);
        let length = match self.bundle.get(self.at..start) {
            Some(&[high, low]) => usize::from(u16::from_be_bytes([high, low])),
            _ => return Err(missing(&self.path).into()),
        };
        let end = start.saturating_add(length);
        self.at = end;
        let after = index.saturating_add(1);
        let is_last = after == self.size || after.checked_rem(WIDTH) == Some(0);
        if is_last && end < self.bundle.len() {
            let why = format!("`{}` goes on after it", self.path);
            return Err(Mismatch::at(index, why).into());
        }
        self.bundle.get(start..end).ok_or_else(|| missing(&self.path).into())
    }

    fn open(&mut self, index: u64) -> Result<(), VerifyError> {
        let number = index.checked_div(WIDTH).unwrap_or(0);
        self.path = entries(number, width(self.size, number));
        self.at = 0;
        let found = read(&self.dir.join(&self.path), BUNDLE_BYTES_MAX)?;
        let missing = || Mismatch::at(index, format!("it is missing: there is no `{}`", self.path));
        self.bundle = found.ok_or_else(missing)?;
        Ok(())
    }
}

/// What is wrong with a tile.
pub enum TileError {
    Wrong(String),
    Other(VerifyError),
}

impl TileError {
    pub fn of_leaf(self, index: u64) -> VerifyError {
        self.of_leaves(index, index)
    }

    pub fn of_leaves(self, first: u64, last: u64) -> VerifyError {
        match self {
            Self::Wrong(why) => Mismatch::between(first, last, why).into(),
            Self::Other(error) => error,
        }
    }
}

/// The tiles, one of each level at a time.
pub struct Tiles {
    dir: PathBuf,
    size: u64,
    open: Vec<Option<(u64, Vec<u8>)>>,
}

impl Tiles {
    pub fn new(dir: &Path, size: u64) -> Self {
        Self { dir: dir.to_owned(), size, open: vec![None; usize::from(LEVELS)] }
    }

    /// A hash of a level of tiles.
    pub fn hash(&mut self, level: u8, number: u64) -> Result<[u8; 32], TileError> {
        let (tile, place) =
            (number.checked_div(WIDTH).unwrap_or(0), number.checked_rem(WIDTH).unwrap_or(0));
        let count = complete(self.size, level);
        let path = || super::files::tile(level, tile, width(count, tile));
        let Some(open) = self.open.get_mut(usize::from(level)) else {
            return Err(TileError::Wrong(format!("there is no level {level} of tiles")));
        };
        if open.as_ref().is_none_or(|(open, _)| *open != tile) {
            let path = path();
            let bytes = read(&self.dir.join(&path), WIDTH.saturating_mul(32));
            let bytes = bytes.map_err(TileError::Other)?;
            let bytes = bytes.ok_or_else(|| TileError::Wrong(format!("there is no `{path}`")))?;
            let expected = width(count, tile).saturating_mul(32);
            let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            // A tile that ends early is right as far as it goes: the leaf that it lacks is named.
            if length > expected || !bytes.len().is_multiple_of(32) {
                let why = format!("`{path}` has {length} bytes, and should have {expected}");
                return Err(TileError::Wrong(why));
            }
            *open = Some((tile, bytes));
        }
        let start = usize::try_from(place).unwrap_or(0).saturating_mul(32);
        let hash = open.as_ref().and_then(|(_, bytes)| bytes.get(start..start.saturating_add(32)));
        let hash = hash.and_then(|hash| hash.try_into().ok());
        hash.ok_or_else(|| TileError::Wrong(format!("its hash is missing from `{}`", path())))
    }
}

/// The history of checkpoints, note after note.
pub struct History {
    path: PathBuf,
    lines: BufReader<File>,
    ahead: Option<Checkpoint>,
    last: u64,
    has_ended: bool,
}

impl History {
    pub fn open(dir: &Path) -> Result<Self, VerifyError> {
        let path = dir.join(HISTORY);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Mismatch::whole(format!("there is no {HISTORY_NAME}")).into());
            }
            other => other.map_err(failed(&path))?,
        };
        Ok(Self { path, lines: BufReader::new(file), ahead: None, last: 0, has_ended: false })
    }

    /// The next checkpoint, if it is of at most this size.
    pub fn next_at(
        &mut self,
        size: u64,
        verifier: &Verifier,
    ) -> Result<Option<Checkpoint>, VerifyError> {
        if self.ahead.is_none() && !self.has_ended {
            self.ahead = self.read(verifier)?;
            self.has_ended = self.ahead.is_none();
        }
        Ok(self.ahead.take_if(|ahead| ahead.size <= size))
    }

    /// The log has ended: so must the history have.
    pub fn end(&mut self, size: u64) -> Result<(), VerifyError> {
        match &self.ahead {
            None => Ok(()),
            Some(ahead) => Err(Mismatch::at(
                size,
                format!(
                    "it is missing: {HISTORY_NAME} has a checkpoint of {} leaves, and the export \
                     ends after {size}",
                    ahead.size
                ),
            )
            .into()),
        }
    }

    fn read(&mut self, verifier: &Verifier) -> Result<Option<Checkpoint>, VerifyError> {
        let Some(note) = next_note(&mut self.lines).map_err(failed(&self.path))? else {
            return Ok(None);
        };
        let note = note.map_err(|why| self.wrong(&why))?;
        let signed = verifier.open(&note).map_err(|why| self.wrong(&why))?;
        // The empty log is not in it, and each size is once.
        if signed.size <= self.last {
            let why = format!(
                "{HISTORY_NAME} is not in order: {} comes after {}",
                signed.size, self.last
            );
            return Err(Mismatch::whole(why).into());
        }
        self.last = signed.size;
        Ok(Some(signed))
    }

    fn wrong(&self, why: &NotACheckpoint) -> VerifyError {
        let place = match self.last {
            0 => "its first checkpoint".to_owned(),
            last => format!("its checkpoint after that of {last} leaves"),
        };
        Mismatch::whole(format!("{HISTORY_NAME} cannot be trusted: {place}: {why}")).into()
    }
}
