//! A chain in memory whose node can lie about it.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    dead_code,
    reason = "a helper of tests: to panic is how a test fails"
)]

use alloy::primitives::{Address, B256, Bloom, Bytes, U256, keccak256};
use async_trait::async_trait;
use claviger::core::agreement::Agreement;
use claviger::core::id::ChainId;
use claviger::ports::block_logs::BlockLogs;
use claviger::ports::chain::{
    AccountLook, Block, BlockAt, BlockId, Broadcast, CallRequest, Chain, ChainError, Claim, Codes,
    FeeMarket, Log, Mined, MinedTransaction, Receipt, Sought,
};
use std::collections::HashMap;
use std::sync::Mutex;

/// What the node gets wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Every list of logs is empty.
    NoLogs,
    /// The last log is missing.
    CutLogs,
    /// Logs are said to be of an unknown block.
    UnknownBlock,
    /// Headers by number are of another fork than their parents.
    Unlinked,
    /// The head is this many blocks behind.
    Behind(u64),
}

struct State {
    canonical: Vec<B256>,
    blocks: HashMap<B256, (Block, Vec<Log>)>,
    forks: u64,
    lie: Option<Lie>,
}

/// The chain: block 0 and what was mined on it.
pub struct LyingChain {
    id: u64,
    depth: u64,
    state: Mutex<State>,
}

impl LyingChain {
    /// Final are blocks `depth` below the head.
    pub fn new(id: u64, depth: u64) -> Self {
        let state = State { canonical: Vec::new(), blocks: HashMap::new(), forks: 0, lie: None };
        let chain = Self { id, depth, state: Mutex::new(state) };
        chain.mine(&[]);
        chain
    }

    pub fn lie(&self, lie: Option<Lie>) {
        self.state.lock().unwrap().lie = lie;
    }

    /// Mines a block with these logs: address, topics and data.
    pub fn mine(&self, logs: &[(Address, Vec<B256>, Vec<u8>)]) -> Block {
        let mut state = self.state.lock().unwrap();
        let number = state.canonical.len() as u64;
        let parent = state.canonical.last().copied().unwrap_or_default();
        let hash = keccak256(
            [&number.to_be_bytes()[..], &state.forks.to_be_bytes(), &parent[..]].concat(),
        );
        let mut bloom = Bloom::ZERO;
        let made: Vec<Log> = (0..)
            .zip(logs)
            .map(|(log_index, (address, topics, data))| {
                bloom.accrue_raw_log(*address, topics);
                Log {
                    address: *address,
                    topics: topics.clone(),
                    data: data.clone().into(),
                    block_number: number,
                    block_hash: hash,
                    transaction_hash: keccak256(data),
                    log_index,
                }
            })
            .collect();
        let block = Block {
            number,
            hash,
            parent,
            timestamp_s: 1_700_000_000 + number,
            base_fee: 0,
            logs_bloom: Bytes::copy_from_slice(bloom.as_slice()),
        };
        state.canonical.push(hash);
        state.blocks.insert(hash, (block.clone(), made));
        block
    }

    /// Mines empty blocks.
    pub fn mine_empty(&self, count: u64) {
        for _ in 0..count {
            self.mine(&[]);
        }
    }

    /// Takes the newest blocks off the canonical chain; what is mined next is another fork.
    pub fn drop_blocks(&self, depth: usize) {
        let mut state = self.state.lock().unwrap();
        let left = state.canonical.len() - depth;
        state.canonical.truncate(left);
        state.forks += 1;
    }
}

impl State {
    fn number(&self, number: u64) -> Option<Block> {
        let hash = self.canonical.get(usize::try_from(number).unwrap())?;
        Some(self.blocks[hash].0.clone())
    }

    fn head(&self) -> u64 {
        let behind = match self.lie {
            Some(Lie::Behind(behind)) => behind,
            _ => 0,
        };
        self.canonical.len() as u64 - 1 - behind
    }
}

fn unasked<T>() -> Result<T, ChainError> {
    Err(ChainError::Unavailable("the watcher does not ask for this".to_owned()))
}

#[async_trait]
impl Chain for LyingChain {
    fn id(&self) -> ChainId {
        ChainId::new(self.id)
    }

    async fn identity(&self) -> Result<(ChainId, B256), ChainError> {
        Ok((self.id(), self.state.lock().unwrap().canonical[0]))
    }

    async fn block(&self, at: BlockAt) -> Result<Option<Block>, ChainError> {
        let state = self.state.lock().unwrap();
        Ok(match at {
            BlockAt::Latest => state.number(state.head()),
            BlockAt::Final => {
                state.head().checked_sub(self.depth).and_then(|number| state.number(number))
            }
            BlockAt::Hash(hash) => state.blocks.get(&hash).map(|(block, _)| block.clone()),
            BlockAt::Number(number) => state.number(number).map(|block| match state.lie {
                Some(Lie::Unlinked) if number % 2 == 0 => {
                    Block { parent: keccak256(block.parent), ..block }
                }
                _ => block,
            }),
        })
    }

    async fn nonce(&self, _: Address, _: BlockAt) -> Result<u64, ChainError> {
        unasked()
    }

    async fn balance(&self, _: Address) -> Result<U256, ChainError> {
        unasked()
    }

    async fn code(&self, _: Address, _: B256) -> Result<Bytes, ChainError> {
        unasked()
    }

    async fn codes(&self, _: &[Address]) -> Result<Codes, ChainError> {
        unasked()
    }

    async fn fee_market(&self) -> Result<FeeMarket, ChainError> {
        unasked()
    }

    async fn call(&self, _: Address, _: Bytes, _: B256) -> Result<Bytes, ChainError> {
        unasked()
    }

    async fn estimate_gas(&self, _: CallRequest) -> Result<u64, ChainError> {
        unasked()
    }

    async fn receipt(&self, _: B256) -> Result<Option<Receipt>, ChainError> {
        unasked()
    }

    async fn look(
        &self,
        _: Address,
        _: &[Sought],
        _: &[usize],
    ) -> Result<Option<AccountLook>, ChainError> {
        unasked()
    }

    async fn mined(&self, _: B256) -> Result<Option<Mined>, ChainError> {
        unasked()
    }

    async fn agreement(&self, _: &Claim, _: Option<usize>) -> Agreement {
        Agreement::default()
    }

    async fn has_block(&self, _: BlockId, _: usize) -> bool {
        false
    }

    async fn logs(&self, _: B256, _: &[Address]) -> Result<Vec<Log>, ChainError> {
        unasked()
    }

    async fn broadcast(&self, _: &Bytes) -> Broadcast {
        Broadcast::Ambiguous("the watcher sends nothing".to_owned())
    }

    async fn sent_in(&self, _: u64, _: Address) -> Result<Vec<MinedTransaction>, ChainError> {
        unasked()
    }

    async fn pending_nonce(&self, _: Address) -> Result<u64, ChainError> {
        unasked()
    }
}

#[async_trait]
impl BlockLogs for LyingChain {
    async fn block_logs(&self, block: B256) -> Result<Vec<Log>, ChainError> {
        let state = self.state.lock().unwrap();
        let logs = state.blocks.get(&block).map(|(_, logs)| logs.clone());
        match state.lie {
            Some(Lie::NoLogs) => Ok(Vec::new()),
            Some(Lie::UnknownBlock) => Err(ChainError::UnknownBlock),
            Some(Lie::CutLogs) => {
                let mut logs = logs.ok_or(ChainError::UnknownBlock)?;
                logs.pop();
                Ok(logs)
            }
            _ => logs.ok_or(ChainError::UnknownBlock),
        }
    }
}
