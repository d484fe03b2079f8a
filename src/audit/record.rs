//! The signer's own record: the last checkpoint that it released, verbatim, in a file beside its key and
//! outside the database. Whoever holds the database cannot make the signer forget what it signed.

use crate::audit::checkpoint::{Checkpoint, NOTE_BYTES_MAX, NotACheckpoint, Verifier};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Why the record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It is not there.
    #[error(
        "{} is missing: it is the last checkpoint that this log's signer released. Put the newest \
         checkpoint of this log that you kept in its place; the server goes on from there if the log \
         still agrees with it",
        .0.display()
    )]
    Missing(PathBuf),
    /// It cannot be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is no checkpoint of this log.
    #[error("{} cannot be the signer's record: {why}", path.display())]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: NotACheckpoint,
    },
}

fn failed(path: &Path) -> impl Fn(io::Error) -> RecordError {
    move |error| RecordError::File { path: path.to_owned(), error }
}

/// Reads the record.
///
/// # Errors
/// See [`RecordError`].
pub fn read(path: &Path, verifier: &Verifier) -> Result<Checkpoint, RecordError> {
    let mut note = String::new();
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(RecordError::Missing(path.to_owned()));
        }
        other => other.map_err(failed(path))?,
    };
    file.take(NOTE_BYTES_MAX).read_to_string(&mut note).map_err(failed(path))?;
    verifier.open(&note).map_err(|why| RecordError::Foreign { path: path.to_owned(), why })
}

/// Begins a record that is not there yet.
pub(super) fn begin(path: &Path, note: &str) -> Result<(), RecordError> {
    let options = OpenOptions::new().write(true).create_new(true).mode(0o600).clone();
    fill(path, &options, note)?;
    sync_folder(path)
}

/// Replaces the record: all of it or nothing, and durable on return.
pub(super) fn replace(path: &Path, note: &str) -> Result<(), RecordError> {
    let mut next = path.as_os_str().to_owned();
    next.push(".new");
    let next = PathBuf::from(next);
    let options = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).clone();
    fill(&next, &options, note)?;
    fs::rename(&next, path).map_err(failed(path))?;
    sync_folder(path)
}

fn fill(path: &Path, options: &OpenOptions, note: &str) -> Result<(), RecordError> {
    let mut file = options.open(path).map_err(failed(path))?;
    file.write_all(note.as_bytes()).and_then(|()| file.sync_all()).map_err(failed(path))
}

/// Keeps a record beside the one in use, under a name that says its size. Answers the name.
pub(super) fn keep_aside(path: &Path, lost: &Checkpoint) -> Result<PathBuf, RecordError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".lost-{}", lost.size));
    let aside = PathBuf::from(aside);
    replace(&aside, &lost.note)?;
    Ok(aside)
}

/// The new name must be as durable as the bytes.
fn sync_folder(path: &Path) -> Result<(), RecordError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed(path))
}
