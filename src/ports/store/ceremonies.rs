//! What imports and key ceremonies read and write.

use super::StoreError;
use crate::core::id::{HolderId, HsmName, KeyId};
use crate::core::key::{CkaId, OperatorKey};
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use async_trait::async_trait;
use uuid::Uuid;

/// The part of a unit that imports and key ceremonies use.
#[async_trait]
pub trait KeyBook: Send {
    /// Pins a key that the HSM has already; it is active. `false` if its id or its address is known.
    async fn import_key(
        &mut self,
        key: &OperatorKey,
        principal: &Principal,
    ) -> Result<bool, StoreError>;

    /// The finished keys that this principal asked for, oldest first.
    async fn keys_of(&mut self, principal: &Principal) -> Result<Vec<OperatorKey>, StoreError>;

    /// The names of all keys, begun ones too.
    async fn key_names(&mut self) -> Result<Vec<String>, StoreError>;

    /// Notes that a ceremony has begun. `false` if one is open: it must be ended first.
    async fn begin_ceremony(&mut self, ceremony: &OpenCeremony) -> Result<bool, StoreError>;

    /// Ends a ceremony. `false` if it is not open.
    async fn end_ceremony(&mut self, id: Uuid, at: Timestamp) -> Result<bool, StoreError>;

    /// The ceremony that was begun and has not ended.
    async fn open_ceremony(&mut self) -> Result<Option<OpenCeremony>, StoreError>;

    /// Whether this ceremony is open; until the unit's end it stays so.
    async fn holds_ceremony(&mut self, id: &str) -> Result<bool, StoreError>;

    /// Takes a begun key until then, to make or to finish it. `false` if it is not begun, or if somebody has
    /// it at `now`. A claim that would last for more than an hour is one of a wrong clock, and none.
    async fn claim_key(
        &mut self,
        key: KeyId,
        holder: HolderId,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<bool, StoreError>;

    /// The leaves about a subject, in the log and on their way into it, oldest first.
    async fn leaves_about(&mut self, subject: &str) -> Result<Vec<Vec<u8>>, StoreError>;

    /// The token and the label of the key with this `CKA_ID`, a begun one too.
    async fn key_with(&mut self, cka_id: &CkaId) -> Result<Option<(HsmName, String)>, StoreError>;
}

/// A key ceremony that was begun and has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenCeremony {
    /// Its id.
    pub id: Uuid,
    /// What its plan calls it.
    pub title: String,
    /// Its plan, the whole text.
    pub plan: String,
    /// When it began.
    pub begun_at: Timestamp,
}
