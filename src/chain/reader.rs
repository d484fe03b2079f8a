//! One chain as the watcher reads it.
//!
//! A range of logs that a node refuses because of its width is no fault of the node: it stays as healthy as
//! it was. What the refusals mean is in [`super::range_errors`].

use super::evm::{EvmChain, Finality, block_on, logs_on, receipt_on};
use super::node::{Fault, Node, TOO_LONG};
use super::range_errors::{self, Asked, Refusal};
use super::wire::{self, WireReceipt};
use crate::core::agreement::Agreement;
use crate::core::id::ChainId;
use crate::ports::chain::{Block, BlockAt, BlockId, ChainError, Claim, Log, Receipt};
use crate::ports::chain_reader::{
    ChainReader, LogFilter, OneNode, RangeError, Rule, SeenReceipt, SeenTransaction,
};
use alloy::primitives::{Address, B256, Bytes, U64, U256};
use alloy::rpc::types::Log as WireLog;
use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

const LOGS: &str = "eth_getLogs";
/// So many receipts of a block are asked for at once, where they must be asked for one by one.
const RECEIPTS_AT_ONCE: usize = 8;

impl From<Rule> for Finality {
    fn from(rule: Rule) -> Self {
        match rule {
            Rule::Finalized => Self::Finalized,
            Rule::Safe => Self::Safe,
            Rule::Depth(depth) => Self::Depth(depth),
        }
    }
}

#[async_trait]
impl ChainReader for EvmChain {
    fn id(&self) -> ChainId {
        self.chain_id
    }

    async fn identity(&self) -> Result<(ChainId, B256), ChainError> {
        crate::ports::chain::Chain::identity(self).await
    }

    fn count(&self) -> usize {
        self.nodes.all().len()
    }

    fn node(&self, but: &[usize]) -> Option<Arc<dyn OneNode>> {
        // The order is by how far each is final, and nobody else asks those that no step is taken with.
        self.nodes.probe();
        let mut nodes = self.nodes.in_order().into_iter();
        let found = nodes.find(|node| !but.contains(&node.place))?;
        Some(Arc::new(Reading { node: found.clone() }))
    }

    async fn agreement(&self, claim: &Claim, by: Option<usize>) -> Agreement {
        self.nodes.agreement(claim, by).await
    }

    async fn has_block(&self, block: BlockId, node: usize) -> bool {
        self.nodes.has_block(block, node).await
    }
}

/// One node.
struct Reading {
    node: Node,
}

impl Reading {
    fn told<T>(&self, answer: Result<T, Fault>) -> Result<T, ChainError> {
        answer.map_err(|fault| fault.into_error(self.node.place))
    }

    /// What a refusal means to the poller. The node is blamed only for what is not the range's fault.
    fn refused(&self, refused: Refused) -> RangeError {
        let Refused { fault, meaning } = refused;
        if let Refusal::TooWide { blocks, to } = meaning {
            self.node.health.answered();
            metrics::counter!("claviger_rpc_errors_total", "class" => "range").increment(1);
            let text = fault.into_error(self.node.place).to_string();
            return RangeError::TooWide { blocks, to, text };
        }
        let is_busy = match (&meaning, &fault) {
            (Refusal::Busy, _) | (Refusal::Undecided, Fault::Said(_)) => true,
            // A gateway that says nothing, also of half: it may be the width all the same.
            _ => false,
        };
        let after = match &fault {
            Fault::Silent { retry_after, .. } => *retry_after,
            _ => None,
        };
        self.node.note(LOGS, &fault);
        let error = fault.into_error(self.node.place);
        if !is_busy {
            return error.into();
        }
        // Some say so in words that elsewhere mean something else.
        self.node.health.failed(Instant::now(), after);
        RangeError::Busy { after, text: error.to_string() }
    }

    async fn at(&self, at: BlockAt, rule: Finality) -> Result<Option<Block>, ChainError> {
        self.told(block_on(&self.node, at, rule).await)
    }
}

#[async_trait]
impl OneNode for Reading {
    fn place(&self) -> usize {
        self.node.place
    }

    fn doubted(&self) {
        self.node.health.outvoted(Instant::now());
    }

    async fn head(&self) -> Result<Block, ChainError> {
        self.at(BlockAt::Latest, Finality::Safe).await?.ok_or(ChainError::UnknownBlock)
    }

    async fn last_final(&self, rule: Rule) -> Result<Option<Block>, ChainError> {
        let block = self.at(BlockAt::Final, rule.into()).await?;
        self.node.health.says_final(block.as_ref().map(|block| block.number));
        Ok(block)
    }

    async fn block(&self, number: u64) -> Result<Option<Block>, ChainError> {
        self.at(BlockAt::Number(number), Finality::Safe).await
    }

    async fn block_by_hash(&self, hash: B256) -> Result<Option<Block>, ChainError> {
        self.at(BlockAt::Hash(hash), Finality::Safe).await
    }

    async fn block_logs(&self, hash: B256) -> Result<Vec<Log>, ChainError> {
        let mut logs = self.told(logs_on(&self.node, hash, None).await)?;
        logs.sort_by_key(|log| log.log_index);
        Ok(logs)
    }

    async fn range_logs(
        &self,
        from: u64,
        to: u64,
        filter: &LogFilter,
    ) -> Result<Vec<Log>, RangeError> {
        let asked = Asked { from, to };
        let refused = match range_on(&self.node, asked, filter).await {
            Ok(logs) => return Ok(logs),
            Err(refused) => refused,
        };
        if refused.meaning == Refusal::Undecided {
            return Err(self.refused(decided(&self.node, refused, asked, filter).await));
        }
        Err(self.refused(refused))
    }

    async fn block_receipts(&self, hash: B256) -> Result<Vec<SeenReceipt>, ChainError> {
        self.told(receipts_on(&self.node, hash).await)
    }

    async fn block_transactions(&self, hash: B256) -> Result<Vec<SeenTransaction>, ChainError> {
        self.told(transactions_on(&self.node, hash).await)
    }
}

/// Why a range was not answered, before the node is blamed for it.
struct Refused {
    fault: Fault,
    meaning: Refusal,
}

impl Refused {
    fn too_wide(self, blocks: Option<u64>, to: Option<u64>) -> Self {
        Self { meaning: Refusal::TooWide { blocks, to }, ..self }
    }

    fn of(fault: Fault, asked: Asked) -> Self {
        let meaning = match &fault {
            Fault::Said(error) => range_errors::read(error, asked),
            Fault::Silent { class, status, .. } => silence(class, *status, asked),
            Fault::Unreadable(_) => Refusal::Other,
        };
        Self { fault, meaning }
    }
}

/// Whether a refusal that may be one of the width is: less is asked for, half of it and, if the node spoke, one
/// block. A node that refuses these in the same words is short of quota.
async fn decided(node: &Node, refused: Refused, asked: Asked, filter: &LogFilter) -> Refused {
    let one = Asked { to: asked.from, ..asked };
    let spoke = matches!(refused.fault, Fault::Said(_));
    let trials = [asked.half(), Some(one).filter(|_| spoke)];
    for trial in trials.into_iter().flatten().filter(|trial| *trial != asked) {
        match range_on(node, trial, filter).await {
            // The answer is not used: the caller asks for as much again, and goes on from there.
            Ok(_) => return refused.too_wide(None, Some(trial.to).filter(|to| *to > asked.from)),
            Err(Refused { meaning: Refusal::TooWide { blocks, to }, .. }) => {
                return refused.too_wide(blocks, to);
            }
            Err(_) => {}
        }
    }
    refused
}

/// What it means that a node said nothing. Of several blocks, an answer that is too long is too many; one that
/// does not come, or a gateway's page, may be.
fn silence(class: &str, status: Option<u16>, asked: Asked) -> Refusal {
    let too_wide = Refusal::TooWide { blocks: None, to: None };
    match status {
        Some(413) => too_wide,
        Some(429) => Refusal::Busy,
        Some(400 | 504 | 524) if !asked.is_one() => Refusal::Undecided,
        None if class == TOO_LONG => too_wide,
        None if class == "timeout" && !asked.is_one() => Refusal::Undecided,
        _ => Refusal::Other,
    }
}

/// Logs of a range on one node, whose health is not touched by a refusal.
async fn range_on(node: &Node, asked: Asked, filter: &LogFilter) -> Result<Vec<Log>, Refused> {
    let Asked { from, to } = asked;
    let mut members = json!({ "fromBlock": U64::from(from), "toBlock": U64::from(to) });
    if let Some(members) = members.as_object_mut() {
        if !filter.addresses.is_empty() {
            members.insert("address".to_owned(), json!(filter.addresses));
        }
        if !filter.topic0.is_empty() {
            members.insert("topics".to_owned(), json!([filter.topic0]));
        }
    }
    let found = node.ask::<_, Vec<WireLog>>(LOGS, (members,)).await;
    let logs = found.and_then(|found| fitting(found, asked, filter));
    match logs {
        Ok(logs) => {
            node.health.answered();
            Ok(logs)
        }
        Err(fault) => Err(Refused::of(fault, asked)),
    }
}

/// The logs in order, each once, if they are what was asked for.
fn fitting(found: Vec<WireLog>, asked: Asked, filter: &LogFilter) -> Result<Vec<Log>, Fault> {
    let logs: Option<Vec<Log>> = found.into_iter().map(wire::log).collect();
    let mut logs =
        logs.ok_or_else(|| Fault::unreadable("a removed log, or one without its place"))?;
    let fits = |log: &Log| {
        let of_address = filter.addresses.is_empty() || filter.addresses.contains(&log.address);
        let topic0 = log.topics.first();
        let of_topic =
            filter.topic0.is_empty() || topic0.is_some_and(|topic0| filter.topic0.contains(topic0));
        of_address && of_topic && (asked.from..=asked.to).contains(&log.block_number)
    };
    if !logs.iter().all(fits) {
        return Err(Fault::unreadable("logs of another block or address than was asked for"));
    }
    logs.sort_by_key(|log| (log.block_number, log.log_index));
    logs.dedup();
    let place = |log: &Log| (log.block_number, log.log_index);
    let pairs = logs.iter().zip(logs.iter().skip(1));
    if pairs.into_iter().any(|(one, other)| place(one) == place(other)) {
        return Err(Fault::unreadable("two logs with one place"));
    }
    Ok(logs)
}

/// All receipts of a block: together, or one by one from a node that has no call for that.
async fn receipts_on(node: &Node, hash: B256) -> Result<Vec<SeenReceipt>, Fault> {
    let found = node.call::<_, Option<Vec<WireReceipt>>>("eth_getBlockReceipts", (hash,)).await;
    let found: Vec<Option<Receipt>> = match found {
        Ok(found) => {
            let found = found.ok_or_else(Fault::unknown_block)?.into_iter();
            let read = found.map(WireReceipt::into_receipt).collect::<Result<_, _>>();
            read.map_err(Fault::unreadable)?
        }
        Err(Fault::Said(error)) if !error.is_busy() && !error.is_unknown_block() => {
            let transactions = transactions_on(node, hash).await?.into_iter();
            let asked = transactions.map(|transaction| receipt_on(node, transaction.hash));
            futures::stream::iter(asked).buffered(RECEIPTS_AT_ONCE).try_collect().await?
        }
        Err(fault) => return Err(fault),
    };
    let mut receipts = Vec::with_capacity(found.len());
    for (index, receipt) in (0..).zip(found) {
        let receipt = receipt.filter(|receipt| receipt.block_hash == hash);
        let receipt = receipt.ok_or_else(|| Fault::unreadable("a receipt of another block"))?;
        receipts.push(SeenReceipt {
            transaction: receipt.transaction_hash,
            index,
            success: receipt.success,
            logs: receipt.logs,
        });
    }
    if receipts.is_empty() && block_on(node, BlockAt::Hash(hash), Finality::Safe).await?.is_none() {
        return Err(Fault::unknown_block());
    }
    Ok(receipts)
}

/// A block with its transactions: the members that every type has.
#[derive(Debug, Deserialize)]
struct WireBlock {
    hash: B256,
    transactions: Vec<Value>,
}

#[derive(Debug, Deserialize)]
struct WireTransaction {
    hash: B256,
    from: Address,
    to: Option<Address>,
    value: U256,
    input: Bytes,
}

async fn transactions_on(node: &Node, hash: B256) -> Result<Vec<SeenTransaction>, Fault> {
    let block: Option<WireBlock> = node.call("eth_getBlockByHash", (hash, true)).await?;
    let block = block.ok_or_else(Fault::unknown_block)?;
    if block.hash != hash {
        return Err(Fault::unreadable("a block of another hash than was asked for"));
    }
    let read = |(index, value): (u64, Value)| {
        let read: WireTransaction = serde_json::from_value(value)
            .map_err(|_| Fault::unreadable("a transaction without hash, from, value or input"))?;
        Ok(SeenTransaction {
            hash: read.hash,
            index,
            from: read.from,
            to: read.to,
            value: read.value,
            data: read.input,
        })
    };
    (0..).zip(block.transactions).map(read).collect()
}
