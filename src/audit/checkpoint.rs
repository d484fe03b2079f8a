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
        let known = VerifierList::new(vec![Box::new(self.0.clone())]);
        match signed.verify(&known) {
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
