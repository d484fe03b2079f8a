//! One chain, as the use cases see it. Nodes can lie, lag, or lose transactions: nothing here is
//! trusted beyond what each method says.

use crate::core::agreement::Agreement;
use crate::core::amount::Amount;
use crate::core::exposure::Read;
use crate::core::id::ChainId;
use alloy::primitives::{Address, B256, Bytes, U256};
use async_trait::async_trait;

/// Why a node gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ChainError {
    /// No node answered, or the answer could not be read. Says nothing about the chain.
    #[error("no node answered: {0}")]
    Unavailable(String),
    /// A node answered that it does not do what was asked, in words of its own: it has not got a state that is
    /// so old, or has not got the method. Says nothing about the chain either.
    #[error("no node answered: {0}")]
    Refused(String),
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

impl Receipt {
    /// Its block.
    #[must_use]
    pub const fn block(&self) -> BlockId {
        BlockId { number: self.block_number, hash: self.block_hash }
    }

    /// What it paid for its gas, in wei; `None` beyond 256 bits.
    #[must_use]
    pub fn fee_paid(&self) -> Option<Amount> {
        Amount::from(self.gas_used).checked_mul(Amount::from(self.effective_gas_price))
    }
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

/// A block by height and hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockId {
    /// Height.
    pub number: u64,
    /// Its hash.
    pub hash: B256,
}

/// Where a transaction was seen mined before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Which of its hashes.
    pub transaction_hash: B256,
    /// In which block.
    pub block: BlockId,
    /// Read the receipt again wherever it is, not only where its end is due.
    pub receipt_wanted: bool,
}

/// What to look for: all that was ever signed for one nonce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sought {
    /// The nonce.
    pub nonce: u64,
    /// The hashes, the newest first.
    pub hashes: Vec<B256>,
    /// Where one of them was seen mined before.
    pub seen: Option<Seen>,
}

/// What a node has of what was sought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// None of the hashes is mined on its chain.
    Nothing,
    /// This one is: its block is canonical there, and holds the transaction.
    Mined(Receipt),
    /// It is where it was seen: that block is canonical there, holds the transaction and is not final yet.
    /// The receipt was not read again.
    Still,
    /// Another block stands where it was seen, and it is in none.
    Displaced,
    /// The node has not come to the block where it was seen, or has that block and not the receipt.
    Unknown,
}

/// One node's word about an account's transactions, all of it from that node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountLook {
    /// The node's place in the configuration, from 1.
    pub node: usize,
    /// How many transactions the account has mined, at the node's head.
    pub nonce_latest: u64,
    /// The node's newest final block; `None` if there is none, or nothing asked for it.
    pub last_final: Option<BlockId>,
    /// The count at that block; `None` if nothing asked for it, or the node has forgotten that state.
    pub nonce_final: Option<u64>,
    /// What was found of each that was sought, in the same order.
    pub found: Vec<Found>,
}

/// A receipt, and what the same node says of its block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mined {
    /// The node's place.
    pub node: usize,
    /// The receipt.
    pub receipt: Receipt,
    /// Whether the block is canonical there, and holds the transaction.
    pub is_canonical: bool,
    /// Whether it is canonical and final there.
    pub is_final: bool,
}

/// What other nodes are asked about before anything is ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// This block is canonical.
    Canonical(BlockId),
    /// This receipt, in every part: its block is canonical, holds the transaction, and is final where it must
    /// be. A receipt is one node's word until others have the same.
    Mined {
        /// As the claiming node gives it.
        receipt: Box<Receipt>,
        /// Whether its block must be final.
        must_be_final: bool,
    },
    /// The nonce is used up at the final block of this height, by none of these transactions.
    Foreign {
        /// The account.
        address: Address,
        /// The transactions.
        sought: Sought,
        /// The claiming node's final height.
        final_number: u64,
    },
    /// This block is canonical, final and of this time, and these calls answer this in its state.
    State {
        /// The block.
        block: BlockId,
        /// Seconds since 1970.
        timestamp_s: u64,
        /// What was read.
        reads: Vec<StateRead>,
    },
    /// The code of these accounts, in the state of this block, which is canonical and new. A node that does not
    /// have the block says what it has at its own head.
    Codes {
        /// The block.
        block: B256,
        /// The code of each account.
        codes: Vec<(Address, Bytes)>,
    },
    /// The node's newest block is of a time between these two, in seconds since 1970.
    HeadTime {
        /// Not before.
        from_s: u64,
        /// Not after.
        until_s: u64,
    },
}

/// A call, and what it answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateRead {
    /// What was called.
    pub read: Read,
    /// What came back.
    pub answer: Bytes,
}

/// A transaction in a block, as a node tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MinedTransaction {
    /// Its hash.
    pub hash: B256,
    /// The account's nonce.
    pub nonce: u64,
    /// The block's height.
    pub block_number: u64,
    /// The block.
    pub block_hash: B256,
    /// The recipient; `None` creates a contract.
    pub to: Option<Address>,
    /// Native value, in wei.
    pub value: U256,
    /// Calldata.
    pub data: Bytes,
    /// The signed envelope, which hashes to `hash`; `None` if it is of a type that we do not know.
    pub raw: Option<Bytes>,
}

/// The code of several accounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Codes {
    /// The node's place.
    pub node: usize,
    /// The block in whose state it was read: the node's head.
    pub block: B256,
    /// The code of each account, in their order; empty for an account without.
    pub codes: Vec<Bytes>,
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

    /// The code of each of these accounts at one node's head. All of the answer is that node's word.
    async fn codes(&self, addresses: &[Address]) -> Result<Codes, ChainError>;

    /// The fee market (`eth_feeHistory`).
    async fn fee_market(&self) -> Result<FeeMarket, ChainError>;

    /// Gas that the call would need at the head; `Reverted` if it would revert.
    async fn estimate_gas(&self, call: CallRequest) -> Result<u64, ChainError>;

    /// The receipt of a transaction, by the word of the first node that answers. It may be of a block that
    /// is no longer canonical: compare `block_hash`.
    async fn receipt(&self, hash: B256) -> Result<Option<Receipt>, ChainError>;

    /// What one node has of an account's transactions: one that does not fail on the way, and is none of
    /// `passed_over` (places). All of the answer is that node's. `None` if no node is left.
    async fn look(
        &self,
        address: Address,
        sought: &[Sought],
        passed_over: &[usize],
    ) -> Result<Option<AccountLook>, ChainError>;

    /// A mined transaction with its block and whether it is final, all from one node.
    async fn mined(&self, hash: B256) -> Result<Option<Mined>, ChainError>;

    /// Asks all nodes but `by`, which claims it and counts as agreeing. A node that does not answer, or is
    /// not to be asked now, is silent. `by` is asked after the others for a while if more than half of all
    /// contradict it.
    async fn agreement(&self, claim: &Claim, by: Option<usize>) -> Agreement;

    /// Whether one node has this block on its canonical chain; `false` also where it does not say.
    async fn has_block(&self, block: BlockId, node: usize) -> bool;

    /// All logs of one block that any of these addresses emitted, by block hash.
    async fn logs(&self, block: B256, addresses: &[Address]) -> Result<Vec<Log>, ChainError>;

    /// Sends signed bytes to every node. Sending the same bytes twice is harmless. Answers as soon as one
    /// node took them; the others are sent to all the same.
    async fn broadcast(&self, raw: &Bytes) -> Broadcast;

    // -- looking back, for an operator ----------------------------------------------------------------

    /// The transactions of this account in one block of the canonical chain. `UnknownBlock` if the node
    /// does not have it.
    async fn sent_in(
        &self,
        block: u64,
        account: Address,
    ) -> Result<Vec<MinedTransaction>, ChainError>;

    /// The account's mined transactions and those after them that wait in a node's pool, by the node that
    /// says most. Only to warn: a pool may hold more that it does not tell.
    async fn pending_nonce(&self, account: Address) -> Result<u64, ChainError>;

    /// As [`Self::broadcast`], with what each node said, by its place in the configuration, for people.
    async fn broadcast_told(&self, raw: &Bytes) -> (Broadcast, String) {
        (self.broadcast(raw).await, String::new())
    }

    // -- state, for what others may take -----------------------------------------------------------------

    /// What a call of a contract answers in the state of this block, by the word of one node. Nothing is
    /// sent. `Reverted` if it reverts.
    async fn call(&self, to: Address, data: Bytes, block: B256) -> Result<Bytes, ChainError>;
}
