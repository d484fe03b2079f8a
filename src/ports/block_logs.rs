//! Whole blocks, as the watcher reads them.

use super::chain::{Chain, ChainError, Log};
use alloy::primitives::B256;
use async_trait::async_trait;

/// A chain whose blocks can be read whole.
#[async_trait]
pub trait BlockLogs: Chain {
    /// Every log of one block, by block hash, whoever emitted it, in the order of their indices. An
    /// unknown block is `UnknownBlock`, never empty; but a node may still leave logs out, so callers
    /// check them against the block's header.
    async fn block_logs(&self, block: B256) -> Result<Vec<Log>, ChainError>;
}
