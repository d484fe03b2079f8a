//! SoftHSM behind a module that fails when it is told to: `tests/pkcs11-faults`.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests: to panic is how a test fails"
)]
#![allow(dead_code, reason = "each test crate uses a part of these helpers")]

use super::services::{repository, tool};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
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

    /// From now on these calls fail: lines as the head of `tests/pkcs11-faults` explains them, such as
    /// `C_Sign CKR_DEVICE_ERROR 3`. Counts begin anew, also with the same lines.
    pub fn set(&self, lines: &str) {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        // A remark makes it another file; it is renamed into its place, so that no call reads a half of it.
        let text = format!("{lines}\n# {}\n", COUNT.fetch_add(1, Ordering::Relaxed));
        let (written, control) =
            (self.folder.path().join("new"), self.folder.path().join("control"));
        std::fs::write(&written, text).unwrap();
        std::fs::rename(written, control).unwrap();
    }

    /// Nothing fails any more.
    pub fn clear(&self) {
        self.set("");
    }

    /// How many calls a line has said something of.
    pub fn count(&self) -> usize {
        self.log().lines().count()
    }

    /// As [`Self::count`], of one function.
    pub fn count_of(&self, function: &str) -> usize {
        let named = |line: &&str| line.split('\t').next() == Some(function);
        self.log().lines().filter(named).count()
    }

    /// As [`Self::count`], of one line of the control file.
    pub fn count_by(&self, line: &str) -> usize {
        self.log()
            .lines()
            .filter(|told| told.split_once('\t').is_some_and(|it| it.1 == line))
            .count()
    }

    /// As [`Self::count`], of the lines that have one of these words.
    pub fn count_with(&self, words: &[&str]) -> usize {
        let has = |line: &&str| line.split_whitespace().any(|word| words.contains(&word));
        self.log().lines().filter(has).count()
    }

    /// Whether the module was finalised while another call was in it, which may crash a real one.
    pub fn was_finalized_during_a_call(&self) -> bool {
        self.log().lines().any(|line| line == "C_Finalize\tOVERLAP")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("control.log")).unwrap_or_default()
    }
}

/// The module, built into the folder of the program under test: cargo builds no library of another package
/// for a test by itself. What it needs is built already, for the program.
pub fn module() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let programs = Path::new(env!("CARGO_BIN_EXE_claviger")).parent().unwrap();
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
