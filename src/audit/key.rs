//! The log's key: Ed25519, in a file, for checkpoints and the records of key ceremonies only.
//!
//! Private half: `PRIVATE+KEY+NAME+ID+KEY`, as golang.org/x/mod/sumdb/note writes it. Public half: a C2SP
//! verifier key, `NAME+ID+KEY`, in the file beside it with the extension `vkey`. The name is the log's
//! origin.

use crate::audit::ceremony;
use crate::audit::checkpoint::{NotACheckpoint, Verifier};
use crate::audit::record::{self, RecordError};
use aws_lc_rs::encoding::{AsBigEndian, Curve25519SeedBin};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use secrecy::zeroize::{Zeroize, Zeroizing};
use secrecy::{ExposeSecret, SecretString};
use signed_note::{Note, Signer as _, StandardSigner, is_key_name_valid, key_id};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tlog_tiles::{EMPTY_HASH, Hash};

/// Signature type 1 of C2SP signed-note: Ed25519.
const ED25519: u8 = 1;
/// The longest key file, in bytes; ours have about 120.
const FILE_BYTES_MAX: u64 = 4_096;
/// The longest name of a log, in bytes.
const ORIGIN_BYTES_MAX: usize = 128;

/// Why there is no usable key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A file cannot be read or written; an existing one is never overwritten.
    #[error("{}: {error}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Others may read the key.
    #[error("{} has mode {mode:03o}: others can use the log's key; chmod 600 it", path.display())]
    Mode {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a key.
    #[error("{} is not a key of the audit log", .0.display())]
    NotAKey(PathBuf),
    /// The public half is of another key.
    #[error("{} is not the public half of {}", vkey.display(), key.display())]
    Halves {
        /// The private half's file.
        key: PathBuf,
        /// The public half's file.
        vkey: PathBuf,
    },
    /// The name cannot be one.
    #[error("a log's name has 1 to {ORIGIN_BYTES_MAX} bytes and neither spaces nor `+`")]
    Origin,
    /// The system made no key, or the key did not sign.
    #[error("the audit log's key does not work")]
    Broken,
    /// The signer's record cannot be begun.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Where the public half of this key is.
#[must_use]
pub fn vkey_file(key_file: &Path) -> PathBuf {
    key_file.with_extension("vkey")
}

/// Makes a key with its public half, and begins the signer's record with a checkpoint of the empty log,
/// which is the beginning of every log.
///
/// # Errors
/// When one of the files is there already, or cannot be made; or the name is none.
pub fn create(key_file: &Path, record_file: &Path, origin: &str) -> Result<(), KeyError> {
    let fits = origin.len() <= ORIGIN_BYTES_MAX && !origin.chars().any(char::is_control);
    if !fits || !is_key_name_valid(origin) {
        return Err(KeyError::Origin);
    }
    let vkey_file = vkey_file(key_file);
    for path in [key_file, &vkey_file, record_file] {
        if path.exists() {
            let error = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(KeyError::File { path: path.to_owned(), error });
        }
    }
    let pair = Ed25519KeyPair::generate().map_err(|_| KeyError::Broken)?;
    let seed = pair.seed().map_err(|_| KeyError::Broken)?;
    let seed: Curve25519SeedBin<'_> = seed.as_be_bytes().map_err(|_| KeyError::Broken)?;
    let secret = Zeroizing::new([&[ED25519], seed.as_ref()].concat());
    let public = [&[ED25519], pair.public_key().as_ref()].concat();
    let id = key_id(origin, &public);
    let encoded = Zeroizing::new(base64(&secret));
    let private = Zeroizing::new(format!("PRIVATE+KEY+{origin}+{id:08x}+{}\n", encoded.as_str()));
    write_new(key_file, private.as_bytes(), 0o600)?;
    let vkey = format!("{origin}+{id:08x}+{}\n", base64(&public));
    write_new(&vkey_file, vkey.as_bytes(), 0o644)?;
    // Loading it proves that both halves are right.
    let key = CheckpointKey::load(key_file)?;
    Ok(record::begin(record_file, &key.sign(0, EMPTY_HASH.0)?)?)
}

/// The log's key, both halves.
pub struct CheckpointKey {
    signer: StandardSigner,
    verifier: Verifier,
}

impl CheckpointKey {
    /// Reads the key and its public half, and lets them prove themselves.
    ///
    /// # Errors
    /// See [`KeyError`]. Nothing of the key is in the error.
    pub fn load(key_file: &Path) -> Result<Self, KeyError> {
        let vkey_file = vkey_file(key_file);
        let secret = read_private(key_file)?;
        let signer = StandardSigner::new(secret.expose_secret().trim_end())
            .map_err(|_| KeyError::NotAKey(key_file.to_owned()))?;
        let verifier = read_verifier(&vkey_file)?;
        let key = Self { signer, verifier };
        // A checkpoint of the empty log: true of every log, so it may be signed at any time.
        match key.verifier.open(&key.sign(0, EMPTY_HASH.0)?) {
            Ok(_) => Ok(key),
            Err(NotACheckpoint::Malformed) => Err(KeyError::Broken),
            Err(_) => Err(KeyError::Halves { key: key_file.to_owned(), vkey: vkey_file }),
        }
    }

    /// The public half.
    #[must_use]
    pub const fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// A signed checkpoint. Who calls this must have checked that it is consistent with all that were
    /// signed before.
    pub(super) fn sign(&self, size: u64, root: [u8; 32]) -> Result<String, KeyError> {
        let body = tlog_tiles::Checkpoint::new(self.signer.name(), size, Hash(root), "")
            .map_err(|_| KeyError::Broken)?;
        self.note(&body.to_bytes())
    }

    /// A signed record of a key ceremony, which can be taken for nothing else: see [`super::ceremony`].
    ///
    /// # Errors
    /// When the body has control characters other than line ends, or does not end with one.
    pub fn attest(&self, body: &str) -> Result<String, KeyError> {
        self.note(ceremony::text(self.signer.name(), body).as_bytes())
    }

    fn note(&self, text: &[u8]) -> Result<String, KeyError> {
        let mut note = Note::new(text, &[]).map_err(|_| KeyError::Broken)?;
        note.add_sigs(&[&self.signer]).map_err(|_| KeyError::Broken)?;
        String::from_utf8(note.to_bytes()).map_err(|_| KeyError::Broken)
    }
}

/// Reads a public half.
///
/// # Errors
/// When the file cannot be read or holds no verifier key.
pub fn read_verifier(path: &Path) -> Result<Verifier, KeyError> {
    let failed = |error| KeyError::File { path: path.to_owned(), error };
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text))
        .map_err(failed)?;
    Verifier::parse(&text).ok_or_else(|| KeyError::NotAKey(path.to_owned()))
}

fn read_private(path: &Path) -> Result<SecretString, KeyError> {
    let failed = |error| KeyError::File { path: path.to_owned(), error };
    let file = File::open(path).map_err(failed)?;
    // The open file is judged, not its path: the path may be another file by now.
    let about = file.metadata().map_err(failed)?;
    let mode = about.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Mode { path: path.to_owned(), mode });
    }
    // Room for all of it at once, so that no copy is left behind by growing.
    let mut text = String::with_capacity(usize::try_from(FILE_BYTES_MAX).unwrap_or(4_096));
    let read = file.take(FILE_BYTES_MAX).read_to_string(&mut text);
    let secret = read.map(|_| SecretString::from(text.as_str())).map_err(failed);
    text.zeroize();
    secret
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), KeyError> {
    let failed = |error| KeyError::File { path: path.to_owned(), error };
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)
}

/// RFC 4648 section 4, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().saturating_mul(2));
    for group in bytes.chunks(3) {
        let at = |place: usize| u32::from(group.get(place).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for (place, shift) in [18_u32, 12, 6, 0].into_iter().enumerate() {
            let digit = usize::try_from(bits >> shift & 63).unwrap_or(0);
            let digit = DIGITS.get(digit).filter(|_| place <= group.len());
            text.push(digit.map_or('=', |digit| char::from(*digit)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (key, record) = (dir.path().join("audit.key"), dir.path().join("audit.record"));
        (dir, key, record)
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }

    #[test]
    fn a_new_key_signs_what_its_public_half_verifies_and_is_private() {
        let (_dir, key_file, record) = files();
        create(&key_file, &record, "claviger-dev/1").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&key_file), mode(&vkey_file(&key_file))), (0o600, 0o644));
        let key = CheckpointKey::load(&key_file).unwrap();
        let note = key.sign(7, [9; 32]).unwrap();
        let opened = read_verifier(&vkey_file(&key_file)).unwrap().open(&note).unwrap();
        assert_eq!((opened.size, opened.root), (7, [9; 32]));
        assert!(note.starts_with("claviger-dev/1\n7\n"), "{note}");
        assert_eq!(key.sign(7, [9; 32]).unwrap(), note, "one checkpoint has one note");
    }

    #[test]
    fn no_file_is_overwritten() {
        for taken in ["audit.key", "audit.vkey", "audit.record"] {
            let (dir, key_file, record) = files();
            std::fs::write(dir.path().join(taken), "mine").unwrap();
            let told = create(&key_file, &record, "log").unwrap_err().to_string();
            assert!(told.contains(taken), "{told}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_key_that_others_can_read_or_with_a_foreign_half_is_refused() {
        let (_dir, key_file, record) = files();
        create(&key_file, &record, "log").unwrap();
        let (_other, other_key, other_record) = files();
        create(&other_key, &other_record, "log").unwrap();
        let note = CheckpointKey::load(&other_key).unwrap().sign(1, [0; 32]).unwrap();
        let verifier = read_verifier(&vkey_file(&key_file)).unwrap();
        assert_eq!(verifier.open(&note), Err(NotACheckpoint::Unsigned("log".to_owned())));

        std::fs::copy(vkey_file(&other_key), vkey_file(&key_file)).unwrap();
        assert!(matches!(CheckpointKey::load(&key_file), Err(KeyError::Halves { .. })));
        std::fs::set_permissions(&other_key, PermissionsExt::from_mode(0o640)).unwrap();
        assert!(matches!(CheckpointKey::load(&other_key), Err(KeyError::Mode { mode: 0o640, .. })));
    }

    #[test]
    fn a_name_that_a_note_cannot_carry_is_refused() {
        for origin in ["", "two words", "a+b", "a\nb", "a\u{7}", &"x".repeat(129)] {
            let (_dir, key_file, record) = files();
            assert!(matches!(create(&key_file, &record, origin), Err(KeyError::Origin)));
        }
    }
}
