//! All logs of one block, and whether they can be believed to be all.

use super::fetch::PARALLEL;
use super::{Poller, StepError, link};
use crate::core::chain_view::Place;
use crate::core::chain_view::completeness::{self, Incomplete, SeenLog};
use crate::core::time::Timestamp;
use crate::ports::chain::{Block, ChainError, Log};
use crate::ports::chain_reader::OneNode;
use crate::watch::plan::Source;
use alloy::primitives::B256;
use futures::future::join_all;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// A node that lags behind with the logs of a new block has them after so long, in milliseconds. One that has
/// not got them then never will: the block's receipts are read.
const LAG_MS_MAX: i64 = 30_000;
/// So many of them are kept in mind.
const INCOMPLETE_MAX: usize = 256;
/// Of the first blocks that are seen, so many whose bloom filter says that they have no log are looked at.
const SAMPLES_FIRST: usize = 16;
/// Later, one in so many blocks.
const SAMPLE_EVERY: u64 = 256;

/// How a block's logs are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// A new block: the node may not have its logs yet.
    Live,
    /// A block that is final: what the node has not got now it never will have.
    Final,
    /// A block with more logs than the node gives at once: from its receipts.
    Receipts,
}

/// What is known of a chain's bloom filters.
#[derive(Debug, Default)]
pub(super) struct Blooms {
    /// One was found to be wrong.
    useless: AtomicBool,
    /// Blocks that went by since one was looked at.
    unseen: AtomicU64,
    sampled: AtomicBool,
    /// New blocks whose logs are incomplete, and since when.
    incomplete: Mutex<BTreeMap<B256, Timestamp>>,
}

impl Blooms {
    pub(super) const fn new() -> Self {
        Self {
            useless: AtomicBool::new(false),
            unseen: AtomicU64::new(0),
            sampled: AtomicBool::new(false),
            incomplete: Mutex::new(BTreeMap::new()),
        }
    }

    /// Whether this block's logs have been incomplete for longer than a node lags.
    fn is_incomplete_long(&self, block: B256, now: Timestamp) -> bool {
        let mut incomplete = self.incomplete.lock().unwrap_or_else(PoisonError::into_inner);
        if incomplete.len() >= INCOMPLETE_MAX && !incomplete.contains_key(&block) {
            incomplete.clear();
        }
        let since = *incomplete.entry(block).or_insert(now);
        now >= since.plus_millis(LAG_MS_MAX)
    }
}

impl Poller {
    fn uses_bloom(&self) -> bool {
        self.parts.plan.chain.logs_bloom && !self.past.blooms.useless.load(Ordering::Relaxed)
    }

    /// Whether a block may have logs for a source.
    pub(super) fn may_be_in(&self, source: &Source, block: &Block) -> bool {
        !self.uses_bloom() || source.may_be_in(&block.logs_bloom)
    }

    /// From now on the headers' bloom filters are not used: they would hide logs.
    pub(super) fn distrust_blooms(&self, block: &Block) {
        if !self.past.blooms.useless.swap(true, Ordering::Relaxed) {
            let (chain, block) = (self.chain(), block.number);
            tracing::warn!(
                chain,
                block,
                "a block has logs that its bloom filter lacks: the filters of this chain are not used any \
                 more; set logs_bloom = false"
            );
            metrics::counter!("claviger_watcher_blooms_distrusted_total", "chain" => chain.to_owned())
                .increment(1);
        }
    }

    /// Looks, at first and now and then, whether blocks that have no log by their filter have none.
    pub(super) async fn sample_blooms(&self, node: &dyn OneNode, headers: &[Block]) {
        if !self.uses_bloom() {
            return;
        }
        let blooms = &self.past.blooms;
        let count = u64::try_from(headers.len()).unwrap_or(u64::MAX);
        let unseen = blooms.unseen.fetch_add(count, Ordering::Relaxed).saturating_add(count);
        let samples = if !blooms.sampled.swap(true, Ordering::Relaxed) {
            SAMPLES_FIRST
        } else if unseen >= SAMPLE_EVERY {
            1
        } else {
            return;
        };
        blooms.unseen.store(0, Ordering::Relaxed);
        let empty = headers.iter().rev().filter(|block| completeness::has_none(&block.logs_bloom));
        let empty: Vec<&Block> = empty.take(samples).collect();
        for chunk in empty.chunks(PARALLEL) {
            let asked = chunk.iter().map(|block| node.block_logs(block.hash));
            for (block, logs) in chunk.iter().zip(join_all(asked).await) {
                // A node that gives no answer here gives none to what follows either.
                if logs.is_ok_and(|logs| !logs.is_empty()) {
                    self.distrust_blooms(block);
                }
            }
        }
    }

    /// All logs of a block, checked against its header: from its list of logs, or else from its receipts.
    pub(super) async fn whole(
        &self,
        node: &dyn OneNode,
        block: &Block,
        reading: Reading,
    ) -> Result<Vec<Log>, StepError> {
        if reading == Reading::Receipts
            && let Ok(logs) = receipt_logs(node, block).await
            && self.check(block, &logs).is_ok()
        {
            return Ok(logs);
        }
        let listed = node.block_logs(block.hash).await;
        let failure = match &listed {
            Ok(logs) => match self.check(block, logs) {
                Ok(()) => return Ok(listed?),
                Err(incomplete) => incomplete,
            },
            // Some refuse lists without an address, or so long.
            Err(ChainError::Refused(_)) => Incomplete::Bloom,
            Err(error) => return Err(error.clone().into()),
        };
        metrics::counter!("claviger_rpc_errors_total", "class" => "incomplete").increment(1);
        let now = self.parts.clock.now();
        let may_come = reading == Reading::Live
            && failure != Incomplete::Filter
            && listed.is_ok()
            && !self.past.blooms.is_incomplete_long(block.hash, now);
        if may_come {
            node.doubted();
            return Err(incomplete(block, failure));
        }
        let receipts = receipt_logs(node, block).await?;
        match self.check(block, &receipts) {
            Ok(()) => Ok(receipts),
            // Two calls of the node say the same, and the header has less.
            Err(Incomplete::Filter) if listed.as_ref().map_or(true, |logs| *logs == receipts) => {
                self.distrust_blooms(block);
                Ok(receipts)
            }
            Err(failure) => {
                node.doubted();
                Err(incomplete(block, failure))
            }
        }
    }

    fn check(&self, block: &Block, logs: &[Log]) -> Result<(), Incomplete> {
        let seen: Vec<SeenLog<'_>> = logs
            .iter()
            .map(|log| SeenLog {
                block: Place { number: log.block_number, hash: log.block_hash },
                index: log.log_index,
                address: log.address,
                topics: &log.topics,
            })
            .collect();
        let bloom = self.uses_bloom().then_some(block.logs_bloom.as_ref());
        completeness::check(link(block).place(), bloom, &seen)
    }
}

async fn receipt_logs(node: &dyn OneNode, block: &Block) -> Result<Vec<Log>, StepError> {
    let receipts = node.block_receipts(block.hash).await?;
    let mut logs: Vec<Log> = receipts.into_iter().flat_map(|receipt| receipt.logs).collect();
    logs.sort_by_key(|log| log.log_index);
    Ok(logs)
}

fn incomplete(block: &Block, why: Incomplete) -> StepError {
    StepError::Inconsistent(format!("block {}: {why}", block.number))
}
