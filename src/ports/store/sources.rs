//! Requests and the events that they name as their sources.

use super::{KeyBinding, StoreError};
use crate::core::id::RequestId;
use crate::core::time::Timestamp;
use alloy::primitives::B256;
use async_trait::async_trait;

/// What is kept of events that went away, and of transactions that are events' causes.
#[async_trait]
pub trait Sources: Send {
    /// Notes that a request's source event is gone, once: `false` if that was noted before. Moves no version.
    async fn mark_source_gone(&mut self, id: RequestId, at: Timestamp) -> Result<bool, StoreError>;

    /// Binds an idempotency key to another request and body, if it is still bound to the request of
    /// `before`: `false` if it is not, and then nothing was changed. Waits for another unit that does the
    /// same.
    async fn rebind_key(
        &mut self,
        before: &KeyBinding,
        anew: &KeyBinding,
    ) -> Result<bool, StoreError>;

    /// The transaction of which an attempt has this hash.
    async fn request_of_hash(&mut self, hash: B256) -> Result<Option<RequestId>, StoreError>;
}
