//! A PIN, read from its file and kept where it does not leak.

use crate::ports::signer::SignerError;
use secrecy::SecretString;
use secrecy::zeroize::Zeroize;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The longest PIN file that is read. Tokens take 4 to 255 bytes.
const FILE_BYTES_MAX: usize = 1024;

/// Reads a PIN. One trailing newline is not part of it.
///
/// # Errors
/// When the file cannot be read, is not a plain file, may be read or written by its group or by
/// others, is empty, too long, or not UTF-8, which `C_Login` wants (PKCS#11
/// v3.1, section 5.6.8). Nothing of its content is in the error.
pub(super) fn read_pin(path: &Path) -> Result<SecretString, SignerError> {
    let refuse =
        |why: String| SignerError::Unavailable(format!("the PIN file {} {why}", path.display()));
    let file = File::open(path).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    // The open file is judged, not its path: the path may be another file by now.
    let about = file.metadata().map_err(|error| refuse(format!("cannot be read: {error}")))?;
    if !about.is_file() {
        return Err(refuse("is not a file".to_owned()));
    }
    let mode = about.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(refuse(format!(
            "has mode {mode:03o}: group or others may use it; chmod 600 it"
        )));
    }
    // Room for all of it at once, so that no copy is left behind by growing.
    let room = FILE_BYTES_MAX.saturating_add(1);
    let mut text = String::with_capacity(room.saturating_mul(2));
    let read = file.take(room as u64).read_to_string(&mut text);
    let pin = text.strip_suffix('\n').unwrap_or(&text);
    let answer = match read {
        Err(error) => Err(refuse(format!("cannot be read: {error}"))),
        Ok(length) if length > FILE_BYTES_MAX => Err(refuse("is too long".to_owned())),
        Ok(_) if pin.is_empty() => Err(refuse("is empty".to_owned())),
        Ok(_) => Ok(SecretString::from(pin.to_owned())),
    };
    text.zeroize();
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;
    use std::fs;

    fn read(content: &str, mode: u32) -> Result<String, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pin");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let pin = read_pin(&path).map_err(|error| error.to_string())?;
        Ok(pin.expose_secret().to_owned())
    }

    #[test]
    fn one_trailing_newline_is_not_part_of_the_pin() {
        assert_eq!(read("1234\n", 0o600).unwrap(), "1234");
        assert_eq!(read("1234", 0o400).unwrap(), "1234");
        assert_eq!(read("1234\n\n", 0o600).unwrap(), "1234\n");
    }

    #[test]
    fn a_file_that_others_may_use_is_refused_without_showing_it() {
        for mode in [0o640, 0o604, 0o620, 0o644, 0o777] {
            let error = read("1234\n", mode).unwrap_err();
            assert!(error.contains(&format!("mode {mode:03o}")), "{error}");
            assert!(!error.contains("1234"), "{error}");
        }
    }

    #[test]
    fn an_empty_or_endless_file_is_refused() {
        assert!(read("\n", 0o600).unwrap_err().contains("empty"));
        assert!(read(&"1".repeat(5000), 0o600).unwrap_err().contains("too long"));
        assert!(read_pin(Path::new("/nowhere")).is_err());
        assert!(read_pin(Path::new("/dev/null")).is_err());
    }
}
