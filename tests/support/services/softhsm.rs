//! A SoftHSM token of its own for each test, made by the same script that developers use.

use super::program::scratch;
use super::{repository, run, tool};
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// A fresh token. The module finds it by `SOFTHSM2_CONF`, which belongs in the environment of the
/// process that loads the module.
pub struct SoftHsm {
    folder: TempDir,
}

impl SoftHsm {
    /// The label of the token.
    pub const LABEL: &str = "claviger";

    pub fn create() -> Self {
        let folder = scratch("softhsm");
        let made = folder.path().join("token");
        run(Command::new("bash").arg(repository().join("softhsm/setup.sh")).arg(made));
        Self { folder }
    }

    /// The PKCS#11 module.
    pub fn module(&self) -> PathBuf {
        tool("SOFTHSM_MODULE")
    }

    /// The value for `SOFTHSM2_CONF`.
    pub fn conf(&self) -> PathBuf {
        self.folder.path().join("token/softhsm2.conf")
    }

    /// The file with the user's PIN.
    pub fn pin_file(&self) -> PathBuf {
        self.folder.path().join("token/pin")
    }

    /// The folder with the token's objects, to damage them.
    pub fn tokens(&self) -> PathBuf {
        self.folder.path().join("token/tokens")
    }
}
