//! Leaves about policy bundles. Each is about the bundle's hash.

use super::finish;
use crate::core::audit::{EncodedLeaf, Leaf, LeafKind};
use crate::core::policy::diff::Diff;
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use crate::ports::store::{BundleRejection, StoreError};
use alloy::primitives::B256;

/// The `BUNDLE_PROPOSED` leaf, with all of its files.
///
/// # Errors
/// When the leaf would be too long.
pub fn bundle_proposed(
    hash: B256,
    version: &str,
    files_json: &str,
    who: &Principal,
    at: Timestamp,
) -> Result<EncodedLeaf, StoreError> {
    finish(
        Leaf::new(LeafKind::BundleProposed, format!("{hash:#x}"), at)
            .with("version", version)
            .with("files", files_json)
            .with("iss", &who.iss)
            .with("sub", &who.sub),
    )
}

/// The `BUNDLE_ENDORSED` leaf: somebody's word that it may be put in force over that one.
///
/// # Errors
/// When the leaf would be too long.
pub fn bundle_voice(
    hash: B256,
    in_force: B256,
    who: &Principal,
    reason: &str,
    at: Timestamp,
) -> Result<EncodedLeaf, StoreError> {
    finish(
        Leaf::new(LeafKind::BundleEndorsed, format!("{hash:#x}"), at)
            .with("in_force", format!("{in_force:#x}"))
            .with("iss", &who.iss)
            .with("sub", &who.sub)
            .with("reason", reason),
    )
}

/// The `BUNDLE_REJECTED` leaf: people put it in force no more.
///
/// # Errors
/// When the leaf would be too long.
pub fn bundle_rejected(it: &BundleRejection) -> Result<EncodedLeaf, StoreError> {
    finish(
        Leaf::new(LeafKind::BundleRejected, format!("{:#x}", it.bundle), it.at)
            .with("iss", &it.who.iss)
            .with("sub", &it.who.sub)
            .with("reason", &it.reason),
    )
}

/// How a bundle came to be in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The folder of the configuration, at a start.
    Folder,
    /// People, over the admin API.
    People,
}

/// The `BUNDLE_ACTIVATED` leaf: from here on it decides.
///
/// # Errors
/// When the leaf would be too long.
pub fn bundle_activated(
    (hash, version): (B256, &str),
    previous: Option<B256>,
    by: By,
    diff: Option<&Diff>,
    at: Timestamp,
) -> Result<EncodedLeaf, StoreError> {
    let by = match by {
        By::Folder => "folder",
        By::People => "people",
    };
    let is_looser = diff.map_or("", |diff| if diff.is_looser() { "true" } else { "false" });
    // One text, so that any number of changes fits beside the leaf.
    let changes = diff
        .map_or_else(String::new, |diff| serde_json::to_string(&diff.changes).unwrap_or_default());
    finish(
        Leaf::new(LeafKind::BundleActivated, format!("{hash:#x}"), at)
            .with("version", version)
            .with("previous", previous.map_or_else(String::new, |hash| format!("{hash:#x}")))
            .with("by", by)
            .with("loosens", is_looser)
            .with("changes", changes),
    )
}
