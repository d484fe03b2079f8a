//! A chain in memory whose node can lie about it.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    dead_code,
    reason = "a helper of tests: to panic is how a test fails"
)]

use alloy::primitives::{Address, B256, Bloom, Bytes, keccak256};
use async_trait::async_trait;
use claviger::core::agreement::Agreement;
use claviger::core::id::ChainId;
use claviger::ports::chain::{Block, BlockId, ChainError, Claim, Log};
use claviger::ports::chain_reader::{
    ChainReader, LogFilter, OneNode, RangeError, Rule, SeenReceipt, SeenTransaction,
};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

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
    /// No range of blocks is given.
    NoRanges,
    /// No block is known by its hash.
    NoHashes,
    /// The head is this many blocks behind.
    Behind(u64),
}

struct State {
    canonical: Vec<B256>,
    blocks: HashMap<B256, (Block, Vec<Log>)>,
    forks: u64,
    lie: Option<Lie>,
    has_receipts: bool,
}

/// The chain: block 0 and what was mined on it.
#[derive(Clone)]
pub struct LyingChain {
    id: u64,
    depth: u64,
    state: Arc<Mutex<State>>,
}

impl LyingChain {
    /// Final are blocks `depth` below the head.
    pub fn new(id: u64, depth: u64) -> Self {
        let state = State {
            canonical: Vec::new(),
            blocks: HashMap::new(),
            forks: 0,
            lie: None,
            has_receipts: false,
        };
        let chain = Self { id, depth, state: Arc::new(Mutex::new(state)) };
        chain.mine(&[]);
        chain
    }

    pub fn lie(&self, lie: Option<Lie>) {
        self.state.lock().unwrap().lie = lie;
    }

    /// From now on it gives receipts; they are not lied about.
    pub fn give_receipts(&self) {
        self.state.lock().unwrap().has_receipts = true;
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

#[async_trait]
impl ChainReader for LyingChain {
    fn id(&self) -> ChainId {
        ChainId::new(self.id)
    }

    async fn identity(&self) -> Result<(ChainId, B256), ChainError> {
        Ok((ChainId::new(self.id), self.state.lock().unwrap().canonical[0]))
    }

    fn count(&self) -> usize {
        1
    }

    fn node(&self, but: &[usize]) -> Option<Arc<dyn OneNode>> {
        but.is_empty().then(|| Arc::new(self.clone()) as Arc<dyn OneNode>)
    }

    async fn agreement(&self, _: &Claim, by: Option<usize>) -> Agreement {
        Agreement { agree: by.into_iter().collect(), ..Agreement::default() }
    }

    async fn has_block(&self, block: BlockId, _: usize) -> bool {
        let state = self.state.lock().unwrap();
        state.number(block.number).is_some_and(|found| found.hash == block.hash)
    }
}

#[async_trait]
impl OneNode for LyingChain {
    fn place(&self) -> usize {
        1
    }

    async fn head(&self) -> Result<Block, ChainError> {
        let state = self.state.lock().unwrap();
        state.number(state.head()).ok_or(ChainError::UnknownBlock)
    }

    async fn last_final(&self, _: Rule) -> Result<Option<Block>, ChainError> {
        let state = self.state.lock().unwrap();
        Ok(state.head().checked_sub(self.depth).and_then(|number| state.number(number)))
    }

    async fn block(&self, number: u64) -> Result<Option<Block>, ChainError> {
        let state = self.state.lock().unwrap();
        Ok(state.number(number).map(|block| match state.lie {
            Some(Lie::Unlinked) if number.is_multiple_of(2) => {
                Block { parent: keccak256(block.parent), ..block }
            }
            _ => block,
        }))
    }

    async fn block_by_hash(&self, hash: B256) -> Result<Option<Block>, ChainError> {
        let state = self.state.lock().unwrap();
        let found = state.blocks.get(&hash).filter(|_| state.lie != Some(Lie::NoHashes));
        Ok(found.map(|(block, _)| block.clone()))
    }

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

    async fn range_logs(
        &self,
        from: u64,
        to: u64,
        filter: &LogFilter,
    ) -> Result<Vec<Log>, RangeError> {
        let state = self.state.lock().unwrap();
        // Of what it has not got it says that there is nothing in it.
        let blocks = (from..=to.min(state.head())).filter_map(|number| state.number(number));
        let logs = blocks.flat_map(|block| state.blocks[&block.hash].1.clone());
        let asked = |log: &Log| {
            let of_address = filter.addresses.is_empty() || filter.addresses.contains(&log.address);
            of_address && (filter.topic0.is_empty() || filter.topic0.contains(&log.topics[0]))
        };
        let mut logs: Vec<Log> = logs.filter(asked).collect();
        match state.lie {
            Some(Lie::NoLogs) => logs.clear(),
            Some(Lie::NoRanges) => {
                let error = ChainError::Refused("this node has no old logs".to_owned());
                return Err(error.into());
            }
            Some(Lie::CutLogs) => drop(logs.pop()),
            _ => {}
        }
        Ok(logs)
    }

    async fn block_receipts(&self, block: B256) -> Result<Vec<SeenReceipt>, ChainError> {
        let state = self.state.lock().unwrap();
        if !state.has_receipts {
            return Err(ChainError::Refused("this chain has no receipts".to_owned()));
        }
        let (_, logs) = state.blocks.get(&block).ok_or(ChainError::UnknownBlock)?;
        let receipt = |log: &Log| SeenReceipt {
            transaction: log.transaction_hash,
            index: log.log_index,
            success: true,
            logs: vec![log.clone()],
        };
        Ok(logs.iter().map(receipt).collect())
    }

    async fn block_transactions(&self, _: B256) -> Result<Vec<SeenTransaction>, ChainError> {
        Err(ChainError::Refused("this chain has no transactions".to_owned()))
    }
}
