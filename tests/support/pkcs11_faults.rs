//! SoftHSM behind a module that fails when it is told to: `tests/pkcs11-faults`.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests: to panic is how a test fails"
)]
#![allow(dead_code, reason = "each test crate uses a part of these helpers")]

use super::server::BIN;
use super::services::{repository, tool};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use tempfile::TempDir;

/// A module that forwards to SoftHSM, and its control file.
pub struct Pkcs11Faults {
    folder: TempDir,
    envs: Vec<(&'static str, String)>,
}

impl Pkcs11Faults {
    /// Builds the module if it is not built; no fault yet.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = |path: &Path| path.display().to_string();
        let envs = vec![
            ("CLAVIGER__HSM__MODULE", text(module())),
            ("PKCS11_FAULTS_MODULE", text(&tool("SOFTHSM_MODULE"))),
            ("PKCS11_FAULTS_CONTROL", text(&folder.path().join("control"))),
        ];
        Self { folder, envs }
    }

    /// The environment of a server that is to use it.
    pub fn envs(&self) -> Vec<(&str, &str)> {
        self.envs.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }

    /// From now on these calls fail: `C_Sign CKR_DEVICE_ERROR`, or with a count as third word.
    pub fn set(&self, lines: &str) {
        // Renamed into its place, so that no call reads a half of it.
        let (written, control) =
            (self.folder.path().join("new"), self.folder.path().join("control"));
        std::fs::write(&written, lines).unwrap();
        std::fs::rename(written, control).unwrap();
    }

    /// Nothing fails any more.
    pub fn clear(&self) {
        self.set("");
    }

    /// How many calls have failed.
    pub fn count(&self) -> usize {
        let log = std::fs::read_to_string(self.folder.path().join("control.log"));
        log.map_or(0, |log| log.lines().count())
    }
}

/// The module, built into the folder of the program under test: cargo builds no library of another package
/// for a test by itself. What it needs is built already, for the program.
fn module() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let programs = Path::new(BIN).parent().unwrap();
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--offline", "--locked", "-p", "pkcs11-faults", "--target-dir"]);
        build.arg(programs.parent().unwrap()).current_dir(repository());
        if programs.ends_with("release") {
            build.arg("--release");
        }
        let built = build.output().expect("cargo does not run");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let module = programs.join("libpkcs11_faults.so");
        assert!(module.is_file(), "{} was not built", module.display());
        module
    })
}
