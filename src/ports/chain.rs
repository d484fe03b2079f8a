//! One chain, as the use cases see it. Nodes can lie, lag, or lose transactions: nothing here is
//! trusted beyond what each method says.

use crate::core::id::ChainId;
use alloy::primitives::{Address, B256, Bytes, U256};
use async_trait::async_trait;

/// Why a node gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ChainError {
    /// No node answered, or the answer could not be read. Says nothing about the chain.
    #[error("no node answered: {0}")]
    Unavailable(String),
    /// The node does not know the block that was asked for: retry, never "empty".
    #[error("the node does not know the block")]
    UnknownBlock,
    /// The call was executed and reverted.
    #[error("execution reverted: {0}")]
    Reverted(String),
}

/// Which block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockAt {
    /// The newest the node has.
    Latest,
    /// The newest final one by this chain's rule (tag or depth).
    Final,
    /// By number, on the node's canonical chain.
    Number(u64),
    /// By hash, canonical or not.
    Hash(B256),
}

/// What we need of a block's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Height.
    pub number: u64,
    /// Its hash.
    pub hash: B256,
    /// Its parent's hash.
    pub parent: B256,
    /// Seconds since 1970.
    pub timestamp_s: u64,
    /// Wei per gas; zero before EIP-1559.
    pub base_fee: u128,
    /// 256 bytes.
    pub logs_bloom: Bytes,
}

/// A log with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The contract.
    pub address: Address,
    /// Topics, the first usually the event's signature hash.
    pub topics: Vec<B256>,
    /// Data.
    pub data: Bytes,
    /// The block's height.
    pub block_number: u64,
    /// The block.
    pub block_hash: B256,
    /// The transaction.
    pub transaction_hash: B256,
    /// Index in the block.
    pub log_index: u64,
}

/// What became of a mined transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Which attempt.
    pub transaction_hash: B256,
    /// The block's height.
    pub block_number: u64,
    /// The block.
    pub block_hash: B256,
    /// Gas that was used.
    pub gas_used: u64,
    /// Wei per gas that was paid.
    pub effective_gas_price: u128,
    /// Whether execution succeeded.
    pub success: bool,
    /// Its logs.
    pub logs: Vec<Log>,
}

/// What the fee market looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeeMarket {
    /// Base fee of the next block, wei per gas.
    pub base_fee: u128,
    /// Priority fees that were paid lately (one percentile a block), without those of empty blocks.
    pub tips: Vec<u128>,
}

/// A call to simulate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallRequest {
    /// The sender.
    pub from: Address,
    /// The recipient.
    pub to: Option<Address>,
    /// Native value, in wei.
    pub value: U256,
    /// Calldata.
    pub data: Bytes,
}

/// What a node said to signed bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broadcast {
    /// At least one node took it, or has it already.
    Accepted,
    /// The nonce is used up on the node's chain: it, or another attempt, or a stranger was mined.
    NonceTooLow,
    /// A replacement that the pool finds too cheap; the earlier attempt is still there.
    Underpriced,
    /// The account cannot pay for it now.
    InsufficientFunds,
    /// Refused for a reason of its own. One node's word is not permanent.
    Refused(String),
    /// No node answered in time: it may have been taken all the same. Ambiguous means sent.
    Ambiguous(String),
}

/// A chain's nodes.
#[async_trait]
pub trait Chain: Send + Sync {
    /// The pinned chain id.
    fn id(&self) -> ChainId;

    /// The chain id that the nodes say, and the hash of block 0. Asked at start and compared.
    async fn identity(&self) -> Result<(ChainId, B256), ChainError>;

    /// A block, or `None` if the node does not have it (for `Hash`: not known; for `Final`: none yet).
    async fn block(&self, at: BlockAt) -> Result<Option<Block>, ChainError>;

    /// The number of transactions that the account has mined, as of this block. Never `pending`.
    async fn nonce(&self, address: Address, at: BlockAt) -> Result<u64, ChainError>;

    /// Native balance at the head, in wei.
    async fn balance(&self, address: Address) -> Result<U256, ChainError>;

    /// The code of an account at this block.
    async fn code(&self, address: Address, block: B256) -> Result<Bytes, ChainError>;

    /// The fee market (`eth_feeHistory`).
    async fn fee_market(&self) -> Result<FeeMarket, ChainError>;

    /// Gas that the call would need at the head; `Reverted` if it would revert.
    async fn estimate_gas(&self, call: CallRequest) -> Result<u64, ChainError>;

    /// The receipt of a transaction, by the word of the first node that answers. It may be of a block that
    /// is no longer canonical: compare `block_hash`.
    async fn receipt(&self, hash: B256) -> Result<Option<Receipt>, ChainError>;

    /// The receipt of a transaction by the word of any node. Only a reason to wait: nothing may be ended or
    /// allowed on it, since one node that lies is enough to invent it.
    async fn receipt_anywhere(&self, hash: B256) -> Result<Option<Receipt>, ChainError>;

    /// All logs of one block that any of these addresses emitted, by block hash.
    async fn logs(&self, block: B256, addresses: &[Address]) -> Result<Vec<Log>, ChainError>;

    /// Sends signed bytes to every node. Sending the same bytes twice is harmless.
    async fn broadcast(&self, raw: &Bytes) -> Broadcast;

    /// As [`Self::broadcast`], with what each node said, by its place in the configuration, for people.
    async fn broadcast_told(&self, raw: &Bytes) -> (Broadcast, String) {
        (self.broadcast(raw).await, String::new())
    }
}
