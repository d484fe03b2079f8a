//! The bundle: read, checked, hashed. (Skeleton; see the policy helper.)

use alloy::primitives::B256;
use std::collections::BTreeMap;

/// A checked policy bundle.
#[derive(Clone, Debug)]
pub struct Bundle {
    hash: B256,
}

/// Why a bundle does not load: file, and what is wrong in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {problem}")]
pub struct BundleError {
    /// Which file of the bundle.
    pub file: String,
    /// What is wrong, with the line where known.
    pub problem: String,
}

impl Bundle {
    /// Reads a bundle from its files (path below the bundle's folder → bytes).
    ///
    /// # Errors
    /// When anything is missing, unknown, contradictory, or a test case fails.
    pub fn load(files: &BTreeMap<String, Vec<u8>>) -> Result<Self, BundleError> {
        let _ = files;
        Err(BundleError { file: "bundle.toml".into(), problem: "not implemented".into() })
    }

    /// SHA-256 over the bundle's files.
    #[must_use]
    pub const fn hash(&self) -> B256 {
        self.hash
    }
}
