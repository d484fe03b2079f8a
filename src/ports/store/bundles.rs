//! What changes of policy read and write.

use super::StoreError;
use crate::core::policy::change::Voice;
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use alloy::primitives::B256;
use async_trait::async_trait;

/// A policy bundle with its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleRow {
    /// SHA-256 over its files.
    pub hash: B256,
    /// What its authors call this version.
    pub version: String,
    /// A JSON object: path below the bundle's folder, text. Empty in listings.
    pub files_json: String,
    /// Who proposed it; both texts are empty for a folder's.
    pub author: Principal,
    /// When it was first seen.
    pub at: Timestamp,
}

/// A bundle that was put in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activation {
    /// 1 for the first, and so on without gaps. The highest is in force.
    pub serial: i64,
    /// Which bundle.
    pub bundle: B256,
    /// `folder` or `people`.
    pub way: String,
    /// When.
    pub at: Timestamp,
}

/// Somebody's word that a bundle may be put in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVoice {
    /// Which bundle.
    pub bundle: B256,
    /// Over which activation: once another is in force it counts no more.
    pub serial: i64,
    /// Who.
    pub who: Principal,
    /// Why, in their words.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// Somebody's word that a bundle must not be put in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleRejection {
    /// Which bundle.
    pub bundle: B256,
    /// Who.
    pub who: Principal,
    /// Why, in their words.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// The part of a unit that keeps policy bundles.
#[async_trait]
pub trait BundleBook: Send {
    /// Keeps a bundle. `false` if it is kept already; then nothing was changed, but that one without an author
    /// gets this one's with its time, and the answer is `true`.
    async fn keep_bundle(&mut self, bundle: &BundleRow) -> Result<bool, StoreError>;

    /// A bundle with its files.
    async fn bundle(&mut self, hash: B256) -> Result<Option<BundleRow>, StoreError>;

    /// Bundles without their files, newest first.
    async fn bundles(&mut self, most: i64) -> Result<Vec<BundleRow>, StoreError>;

    /// What is in force; `None` if nothing ever was.
    async fn active_bundle(&mut self) -> Result<Option<Activation>, StoreError>;

    /// Activations, newest first.
    async fn activations(&mut self, most: i64) -> Result<Vec<Activation>, StoreError>;

    /// Puts a bundle in force as this activation. `false` if another has that number already; then nothing
    /// was changed.
    async fn activate_bundle(&mut self, activation: &Activation) -> Result<bool, StoreError>;

    /// Keeps somebody's word. `false` if they have said so already; then nothing was changed.
    async fn add_voice(&mut self, voice: &NewVoice) -> Result<bool, StoreError>;

    /// Who has said so over this activation, each `sub` once, the first word first.
    async fn voices(&mut self, bundle: B256, serial: i64) -> Result<Vec<Voice>, StoreError>;

    /// The bundles that somebody wants in force in the place of this activation, and nobody has rejected.
    async fn wanted_bundles(&mut self, serial: i64) -> Result<Vec<B256>, StoreError>;

    /// Keeps that somebody rejected a bundle. `false` if it was rejected already; then nothing was changed.
    async fn reject_bundle(&mut self, it: &BundleRejection) -> Result<bool, StoreError>;

    /// Who rejected a bundle, if somebody has.
    async fn bundle_rejection(
        &mut self,
        bundle: B256,
    ) -> Result<Option<BundleRejection>, StoreError>;
}
