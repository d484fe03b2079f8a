//! Checkpoints: the log's size and root as a signed note (C2SP tlog-checkpoint, C2SP signed-note).
//!
//! ```text
//! claviger-dev/9a3c6c1f0f7e4d5b
//! 57
//! nND/nri//U0xuHUrYSy0HtMeal2vzD9V4k/BO79C+QeI=
//!
//! — claviger-dev/9a3c6c1f0f7e4d5b 8kCyn…
//! ```

use signed_note::{Note, NoteError, StandardVerifier, Verifier as _, VerifierList};
use std::io::{self, BufRead, Read};

/// The longest note, in bytes, wherever one is read.
pub(super) const NOTE_BYTES_MAX: u64 = 64 * 1024;

/// A checkpoint whose signature was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// How many leaves.
    pub size: u64,
    /// RFC 6962 root.
    pub root: [u8; 32],
    /// The signed note that says so, as it was read.
    pub note: String,
}

/// Why a text is not a checkpoint of the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotACheckpoint {
    /// Not a signed note with a checkpoint in it.
    #[error("it is not a signed checkpoint")]
    Malformed,
    /// The checkpoint of another log.
    #[error("it is a checkpoint of `{found}`, and the key is of `{expected}`")]
    Origin {
        /// Its origin line.
        found: String,
        /// The key's name.
        expected: String,
    },
    /// No signature by the key.
    #[error("it is not signed by the key of `{0}`")]
    Unsigned(String),
    /// A signature in the key's name that is not its.
    #[error("its signature is wrong")]
    Signature,
}

/// The public half of a log's key.
#[derive(Clone)]
pub struct Verifier(StandardVerifier);

impl Verifier {
    /// Reads a C2SP verifier key, `NAME+ID+KEY`. `None` if it is none.
    #[must_use]
    pub fn parse(vkey: &str) -> Option<Self> {
        StandardVerifier::new(vkey.trim()).ok().map(Self)
    }

    /// The key's name, which is the log's origin.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// The one key whose signatures count.
    pub(super) fn known(&self) -> VerifierList {
        VerifierList::new(vec![Box::new(self.0.clone())])
    }

    /// Reads a checkpoint of this log. Signatures of other keys, such as witnesses', are let be.
    ///
    /// # Errors
    /// See [`NotACheckpoint`].
    pub fn open(&self, note: &str) -> Result<Checkpoint, NotACheckpoint> {
        let signed = Note::from_bytes(note.as_bytes()).map_err(|_| NotACheckpoint::Malformed)?;
        let body = tlog_tiles::Checkpoint::from_bytes(signed.text())
            .map_err(|_| NotACheckpoint::Malformed)?;
        if body.origin() != self.name() {
            return Err(NotACheckpoint::Origin {
                found: body.origin().to_owned(),
                expected: self.name().to_owned(),
            });
        }
        match signed.verify(&self.known()) {
            Ok(_) => {}
            Err(NoteError::UnverifiedNote) => {
                return Err(NotACheckpoint::Unsigned(self.name().to_owned()));
            }
            Err(_) => return Err(NotACheckpoint::Signature),
        }
        Ok(Checkpoint { size: body.size(), root: body.hash().0, note: note.to_owned() })
    }
}

/// A root as notes write it.
#[must_use]
pub fn base64_root(root: &[u8; 32]) -> String {
    tlog_tiles::Hash(*root).to_string()
}

/// Reads a note that is followed by an empty line: its text, an empty line, its signatures, an empty line.
/// `None` at the end of the file; `Malformed` where it ends early or is no text.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn next_note(
    file: &mut impl BufRead,
) -> io::Result<Option<Result<String, NotACheckpoint>>> {
    let mut limited = file.take(NOTE_BYTES_MAX);
    let (mut note, mut has_text) = (Vec::new(), false);
    loop {
        let mut line = Vec::new();
        limited.read_until(b'\n', &mut line)?;
        match line.as_slice() {
            [] if note.is_empty() => return Ok(None),
            b"\n" if has_text => {
                return Ok(Some(String::from_utf8(note).map_err(|_| NotACheckpoint::Malformed)));
            }
            b"\n" => has_text = true,
            [.., b'\n'] => {}
            _ => return Ok(Some(Err(NotACheckpoint::Malformed))),
        }
        note.extend_from_slice(&line);
    }
}
