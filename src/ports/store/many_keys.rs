//! Tens of thousands of keys: made in one step, found without the others, listed by pages.

use super::{LaneLoad, NewKey, StoreError};
use crate::core::id::{ChainId, GroupName, HsmName, KeyId};
use crate::core::key::{CkaId, KeyState, OperatorKey, PublicKey, WrappedKey};
use alloy::primitives::Address;
use async_trait::async_trait;

/// Of so many lanes of a chain each has gauges of its own.
pub const FEW_LANES: i64 = 256;

/// Among how many keys of a group the least busy is chosen.
#[must_use]
pub const fn candidates_max() -> i64 {
    32
}

/// A key that may be given work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The key.
    pub key: OperatorKey,
    /// Its lane, if it has been used on that chain.
    pub lane: Option<LaneLoad>,
}

/// How many keys are wrapped under a wrapping key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrapped {
    /// The token.
    pub hsm: HsmName,
    /// The wrapping key's `CKA_ID` there.
    pub under: CkaId,
    /// How many.
    pub keys: i64,
}

/// Which keys to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFilter {
    /// Only those after this one.
    pub after: Option<KeyId>,
    /// Only of this group.
    pub group: Option<GroupName>,
    /// Only of this token.
    pub hsm: Option<HsmName>,
    /// Only in this state.
    pub state: Option<KeyState>,
    /// Only those that are wrapped, or only those that are not.
    pub is_wrapped: Option<bool>,
    /// At most so many.
    pub limit: i64,
}

/// The part of a unit whose cost does not grow with the number of keys, but where it says so.
#[async_trait]
pub trait ManyKeys: Send {
    /// Stores a wrapped key, pinned and active at once: its private half is in the row alone. `false` if its
    /// id, its `CKA_ID` or its address is taken.
    async fn insert_wrapped_key(
        &mut self,
        key: &NewKey,
        public_key: &PublicKey,
        wrapped: &WrappedKey,
    ) -> Result<bool, StoreError>;

    /// A finished key.
    async fn key(&mut self, id: KeyId) -> Result<Option<OperatorKey>, StoreError>;

    /// The finished key with this address.
    async fn key_at(&mut self, address: Address) -> Result<Option<OperatorKey>, StoreError>;

    /// The oldest active key of a group.
    async fn oldest_of(&mut self, group: &GroupName) -> Result<Option<OperatorKey>, StoreError>;

    /// The finished keys that are objects of their tokens, oldest first: as many as tokens hold.
    async fn token_keys(&mut self) -> Result<Vec<OperatorKey>, StoreError>;

    /// How many wrapped keys there are under each wrapping key.
    async fn wrapped_under(&mut self) -> Result<Vec<Wrapped>, StoreError>;

    /// Finished keys that match all of the filter, by id, which is by time.
    async fn keys_page(&mut self, filter: &KeyFilter) -> Result<Vec<OperatorKey>, StoreError>;

    /// Active keys of a group, each with its lane on this chain if it has been used there. Of a group with no
    /// more than [`candidates_max`] keys these are all, oldest first; else as many, by address from `from`
    /// on, round the end. Costs the same however many keys there are.
    async fn candidates(
        &mut self,
        chain: ChainId,
        group: &GroupName,
        from: Address,
    ) -> Result<Vec<Candidate>, StoreError>;

    /// Whether a chain has more than [`FEW_LANES`] lanes.
    async fn has_many_lanes(&mut self, chain: ChainId) -> Result<bool, StoreError>;
}
