//! Several nodes of one chain, each with a view of its own.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    dead_code,
    reason = "a helper of tests: to panic is how a test fails"
)]

use super::lying_chain::LyingChain;
use alloy::primitives::B256;
use async_trait::async_trait;
use claviger::core::agreement::Agreement;
use claviger::core::id::ChainId;
use claviger::ports::chain::{Block, BlockId, ChainError, Claim, Log};
use claviger::ports::chain_reader::{
    ChainReader, LogFilter, OneNode, RangeError, Rule, SeenReceipt, SeenTransaction,
};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Nodes with places from 1, asked in this order.
#[derive(Default)]
pub struct ManyNodes {
    nodes: Vec<LyingChain>,
    down: Vec<AtomicBool>,
    /// The places that were asked for a head, in order.
    pub asked: Arc<Mutex<Vec<usize>>>,
}

struct Placed {
    place: usize,
    chain: LyingChain,
    asked: Arc<Mutex<Vec<usize>>>,
}

impl ManyNodes {
    pub fn of(nodes: &[LyingChain]) -> Self {
        let down = nodes.iter().map(|_| AtomicBool::new(false)).collect();
        Self { nodes: nodes.to_vec(), down, asked: Arc::default() }
    }

    /// A node that is down is left alone, and says nothing.
    pub fn set_down(&self, place: usize, down: bool) {
        self.down[place - 1].store(down, Ordering::SeqCst);
    }

    fn up(&self) -> impl Iterator<Item = (usize, &LyingChain)> {
        let up = |place: &usize| !self.down[place - 1].load(Ordering::SeqCst);
        (1..).zip(&self.nodes).filter(move |(place, _)| up(place))
    }
}

#[async_trait]
impl ChainReader for ManyNodes {
    fn id(&self) -> ChainId {
        self.nodes[0].id()
    }

    async fn identity(&self) -> Result<(ChainId, B256), ChainError> {
        self.nodes[0].identity().await
    }

    fn count(&self) -> usize {
        self.nodes.len()
    }

    fn node(&self, but: &[usize]) -> Option<Arc<dyn OneNode>> {
        let (place, chain) = self.up().find(|(place, _)| !but.contains(place))?;
        Some(Arc::new(Placed { place, chain: chain.clone(), asked: self.asked.clone() }))
    }

    async fn agreement(&self, claim: &Claim, by: Option<usize>) -> Agreement {
        let Claim::Canonical(block) = claim else { panic!("no such claim here") };
        let mut said = Agreement::default();
        for (place, chain) in (1..).zip(&self.nodes) {
            let head = chain.head().await.unwrap();
            if Some(place) == by {
                said.agree.push(place);
            } else if self.down[place - 1].load(Ordering::SeqCst) || head.number < block.number {
                said.silent.push(place);
            } else if chain.has_block(*block, place).await {
                said.agree.push(place);
            } else {
                said.contradict.push(place);
            }
        }
        said
    }

    async fn has_block(&self, block: BlockId, node: usize) -> bool {
        self.nodes[node - 1].has_block(block, node).await
    }
}

#[async_trait]
impl OneNode for Placed {
    fn place(&self) -> usize {
        self.place
    }

    async fn head(&self) -> Result<Block, ChainError> {
        self.asked.lock().unwrap().push(self.place);
        self.chain.head().await
    }

    async fn last_final(&self, rule: Rule) -> Result<Option<Block>, ChainError> {
        self.chain.last_final(rule).await
    }

    async fn block(&self, number: u64) -> Result<Option<Block>, ChainError> {
        let head = self.chain.head().await?;
        if number > head.number { Ok(None) } else { self.chain.block(number).await }
    }

    async fn block_by_hash(&self, hash: B256) -> Result<Option<Block>, ChainError> {
        self.chain.block_by_hash(hash).await
    }

    async fn block_logs(&self, hash: B256) -> Result<Vec<Log>, ChainError> {
        self.chain.block_logs(hash).await
    }

    async fn range_logs(
        &self,
        from: u64,
        to: u64,
        filter: &LogFilter,
    ) -> Result<Vec<Log>, RangeError> {
        self.chain.range_logs(from, to, filter).await
    }

    async fn block_receipts(&self, hash: B256) -> Result<Vec<SeenReceipt>, ChainError> {
        self.chain.block_receipts(hash).await
    }

    async fn block_transactions(&self, hash: B256) -> Result<Vec<SeenTransaction>, ChainError> {
        self.chain.block_transactions(hash).await
    }
}
