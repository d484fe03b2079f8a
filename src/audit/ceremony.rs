//! Records of key ceremonies, signed with the log's key: a C2SP signed note.
//!
//! ```text
//! claviger-dev/9a3c6c1f0f7e4d5b/key-ceremony
//! claviger key ceremony record, version 1
//!
//! [ceremony]
//! …
//!
//! — claviger-dev/9a3c6c1f0f7e4d5b 8kCyn…
//! ```
//!
//! What is signed is the text alone, so the texts must tell themselves apart: the second line of a checkpoint
//! is a number of leaves, and the second line of a record is never one. Neither can be taken for the other,
//! whatever the log is called; the origin line differs as well.

use crate::audit::checkpoint::Verifier;
use signed_note::{Note, NoteError};

/// What the log's name gets in the first line.
const SUFFIX: &str = "/key-ceremony";
/// The second line.
const KIND: &str = "claviger key ceremony record, version 1";
/// The longest record, in bytes.
pub const RECORD_BYTES_MAX: u64 = 900_000;

/// Why a text is not a record of this log's signer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotARecord {
    /// Not a signed note with a record in it.
    #[error("it is not a signed record of a key ceremony")]
    Malformed,
    /// The record of another log's signer.
    #[error("it is a record of `{found}`, and the key is of `{expected}`")]
    Origin {
        /// Whose it says it is.
        found: String,
        /// The key's name.
        expected: String,
    },
    /// No signature by the key.
    #[error("it is not signed by the key of `{0}`")]
    Unsigned(String),
    /// A signature in the key's name that is not its.
    #[error("its signature is wrong: it was changed after it was signed")]
    Signature,
}

/// The text that is signed.
pub(super) fn text(origin: &str, body: &str) -> String {
    format!("{origin}{SUFFIX}\n{KIND}\n\n{body}")
}

impl Verifier {
    /// Reads a signed record; answers its body.
    ///
    /// # Errors
    /// See [`NotARecord`].
    pub fn open_record(&self, note: &str) -> Result<String, NotARecord> {
        let signed = Note::from_bytes(note.as_bytes()).map_err(|_| NotARecord::Malformed)?;
        let text = std::str::from_utf8(signed.text()).map_err(|_| NotARecord::Malformed)?;
        let (first, rest) = text.split_once('\n').ok_or(NotARecord::Malformed)?;
        let body = rest.strip_prefix(KIND).and_then(|rest| rest.strip_prefix("\n\n"));
        let body = body.ok_or(NotARecord::Malformed)?;
        let origin = first.strip_suffix(SUFFIX).ok_or(NotARecord::Malformed)?;
        if origin != self.name() {
            let (found, expected) = (origin.to_owned(), self.name().to_owned());
            return Err(NotARecord::Origin { found, expected });
        }
        match signed.verify(&self.known()) {
            Ok(_) => Ok(body.to_owned()),
            Err(NoteError::UnverifiedNote) => Err(NotARecord::Unsigned(self.name().to_owned())),
            Err(_) => Err(NotARecord::Signature),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::checkpoint::NotACheckpoint;
    use crate::audit::key::{CheckpointKey, create};

    fn key(name: &str) -> (tempfile::TempDir, CheckpointKey) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("audit.key");
        create(&file, &dir.path().join("audit.record"), name).unwrap();
        let key = CheckpointKey::load(&file).unwrap();
        (dir, key)
    }

    #[test]
    fn a_record_is_read_by_who_has_the_key_and_every_changed_byte_is_seen() {
        let (_dir, key) = key("log");
        let body = "[ceremony]\ntitle = \"x\"\n\nplan = '''\n— log AAAA\n'''\n";
        let note = key.attest(body).unwrap();
        assert_eq!(key.verifier().open_record(&note).unwrap(), body);
        for at in 0..note.len() {
            let mut bent = note.clone().into_bytes();
            bent[at] ^= 1;
            let Ok(bent) = String::from_utf8(bent) else { continue };
            assert!(key.verifier().open_record(&bent).is_err(), "byte {at}: {bent}");
        }
    }

    #[test]
    fn a_record_is_no_checkpoint_and_a_checkpoint_no_record() {
        let (_dir, key) = key("log");
        // The body of a checkpoint, with the name that would make the origins meet.
        for body in ["57\nnND/nri//U0xuHUrYSy0HtMeal2vzD9V4k/BO79C+QeI=\n", "x\n"] {
            let note = key.attest(body).unwrap();
            assert_eq!(key.verifier().open(&note), Err(NotACheckpoint::Malformed));
        }
        let checkpoint = key.sign(7, [9; 32]).unwrap();
        assert_eq!(key.verifier().open_record(&checkpoint), Err(NotARecord::Malformed));
        let (_other, named_so) = self::key("log/key-ceremony");
        let checkpoint = named_so.sign(7, [9; 32]).unwrap();
        assert_eq!(named_so.verifier().open_record(&checkpoint), Err(NotARecord::Malformed));
        assert_eq!(key.verifier().open_record(&checkpoint), Err(NotARecord::Malformed));
    }

    #[test]
    fn the_record_of_another_signer_is_refused() {
        let (_one, mine) = key("log");
        let (_two, same_name) = key("log");
        let (_three, other) = key("other");
        let note = same_name.attest("x\n").unwrap();
        assert_eq!(mine.verifier().open_record(&note), Err(NotARecord::Unsigned("log".to_owned())));
        let note = other.attest("x\n").unwrap();
        assert!(matches!(mine.verifier().open_record(&note), Err(NotARecord::Origin { .. })));
    }
}
