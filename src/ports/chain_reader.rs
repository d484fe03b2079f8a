//! A chain as the watcher reads it: each step is taken with one node, so that head, blocks and logs are of
//! one view; other nodes are asked to confirm, or to read again.

use super::chain::{Block, BlockId, ChainError, Claim, Log};
use crate::core::agreement::Agreement;
use crate::core::id::ChainId;
use alloy::primitives::{Address, B256, Bytes, U256};
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;

/// When a block is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The node's `finalized` tag.
    Finalized,
    /// The node's `safe` tag.
    Safe,
    /// So many blocks below the head.
    Depth(u64),
}

/// Which logs are asked for. Empty lists name everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogFilter {
    /// Of these contracts.
    pub addresses: Vec<Address>,
    /// With one of these first topics.
    pub topic0: Vec<B256>,
}

/// Why a range of blocks gave no logs.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RangeError {
    /// The node refuses, or cannot do, so many blocks or logs at once: ask for fewer.
    #[error("the range is too wide: {text}")]
    TooWide {
        /// How many blocks it says would do.
        blocks: Option<u64>,
        /// The last block that it says would do.
        to: Option<u64>,
        /// Its words.
        text: String,
    },
    /// It wants to be left alone for a while: the range has nothing to do with it.
    #[error("the node is busy: {text}")]
    Busy {
        /// For how long, if it says so.
        after: Option<Duration>,
        /// Its words.
        text: String,
    },
    /// Any other failure.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

/// A transaction of a block, as far as a watcher looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenTransaction {
    /// Its hash.
    pub hash: B256,
    /// Place in the block.
    pub index: u64,
    /// Who sent it.
    pub from: Address,
    /// The recipient; `None` creates a contract.
    pub to: Option<Address>,
    /// Native value, in wei.
    pub value: U256,
    /// Calldata.
    pub data: Bytes,
}

/// A transaction's receipt, as far as a watcher looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenReceipt {
    /// The transaction.
    pub transaction: B256,
    /// Place in the block.
    pub index: u64,
    /// Whether it succeeded.
    pub success: bool,
    /// Its logs.
    pub logs: Vec<Log>,
}

/// One node of a chain. A failure is counted against it; whoever asks goes on with another.
#[async_trait]
pub trait OneNode: Send + Sync {
    /// Its place in the configuration, from 1.
    fn place(&self) -> usize;

    /// What it said cannot be so: it is asked after the others for a while.
    fn doubted(&self) {}

    /// Its newest block.
    async fn head(&self) -> Result<Block, ChainError>;

    /// The newest block that is final by this rule; `None` if none is.
    async fn last_final(&self, rule: Rule) -> Result<Option<Block>, ChainError>;

    /// A block of its canonical chain; `None` if it has none of that number.
    async fn block(&self, number: u64) -> Result<Option<Block>, ChainError>;

    /// A block by hash, canonical or not; `None` if it does not have it.
    async fn block_by_hash(&self, hash: B256) -> Result<Option<Block>, ChainError>;

    /// All logs of one block, whoever emitted them, in the order of their indices. An unknown block is
    /// `UnknownBlock`, never empty; but logs may be left out, so they are compared with the block's header.
    async fn block_logs(&self, hash: B256) -> Result<Vec<Log>, ChainError>;

    /// Logs of the blocks `from` to `to` of its canonical chain, in order. It may leave some out.
    async fn range_logs(
        &self,
        from: u64,
        to: u64,
        filter: &LogFilter,
    ) -> Result<Vec<Log>, RangeError>;

    /// All receipts of one block, in order. An unknown block is `UnknownBlock`.
    async fn block_receipts(&self, hash: B256) -> Result<Vec<SeenReceipt>, ChainError>;

    /// All transactions of one block, in order. An unknown block is `UnknownBlock`.
    async fn block_transactions(&self, hash: B256) -> Result<Vec<SeenTransaction>, ChainError>;
}

/// A chain's nodes.
#[async_trait]
pub trait ChainReader: Send + Sync {
    /// The pinned chain id.
    fn id(&self) -> ChainId;

    /// The chain id that the nodes say, and the hash of block 0. Fails if they differ.
    async fn identity(&self) -> Result<(ChainId, B256), ChainError>;

    /// How many nodes there are.
    fn count(&self) -> usize;

    /// The node to take a step with: the first that does well, but none of these places. `None` if no other
    /// may be asked now.
    fn node(&self, but: &[usize]) -> Option<Arc<dyn OneNode>>;

    /// What the nodes make of a claim; `by` is the one that has made it.
    async fn agreement(&self, claim: &Claim, by: Option<usize>) -> Agreement;

    /// Whether this block is on the canonical chain of this node.
    async fn has_block(&self, block: BlockId, node: usize) -> bool;
}
