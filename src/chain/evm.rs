//! EVM chains over JSON-RPC (execution-apis), through alloy's client.
//!
//! Reads ask the nodes in their order and go on to the next when one does not answer; a read that takes
//! several calls makes them all on one node. A node that failed is left alone for a while, one that lags far
//! behind the others, or that most of them contradicted, is asked after them. Sends go to every node at once.

use super::classify::{bounded, combine};
use super::history;
use super::look::{self, Word};
use super::node::{Fault, Node};
use super::wire::{self, WireReceipt};
use crate::core::agreement::Agreement;
use crate::core::id::ChainId;
use crate::ports::chain::{
    AccountLook, Block, BlockAt, Broadcast, CallRequest, Chain, ChainError, Claim, FeeMarket, Log,
    Mined, MinedTransaction, Receipt, Sought,
};
use alloy::eips::BlockNumberOrTag;
use alloy::primitives::{Address, B256, Bytes, U64, U256};
use alloy::rpc::types::{FeeHistory, Log as WireLog};
use async_trait::async_trait;
use futures::stream::{FuturesUnordered, StreamExt};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::timeout_at;
use url::Url;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Blocks of `eth_feeHistory` that are looked at.
const FEE_HISTORY_BLOCKS: u64 = 10;
/// Percentile of each block's priority fees.
const FEE_HISTORY_PERCENTILE: f64 = 50.0;

/// Once one node has answered in words, or enough have, the others have so much longer.
const GRACE: Duration = Duration::from_secs(1);
/// How often a chain's nodes are asked how far they are, where there are several.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// A node whose final block is more than so many behind is asked after the others.
const LAG_MAX: u64 = 12;

/// How a chain tells that a block is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finality {
    /// The node's `finalized` tag.
    Finalized,
    /// The node's `safe` tag.
    Safe,
    /// So many blocks below the head.
    Depth(u64),
}

/// What a chain's configuration says.
#[derive(Debug, Clone)]
pub struct EvmConfig {
    /// The pinned chain id (EIP-155).
    pub chain_id: ChainId,
    /// Nodes, in the order in which reads ask them.
    pub rpc: Vec<Url>,
    /// When a block is final.
    pub finality: Finality,
}

/// Why the edge could not be built.
#[derive(Debug, thiserror::Error)]
pub enum EvmError {
    /// No URL at all.
    #[error("a chain needs at least one rpc URL")]
    NoNode,
    /// Not http or https. The place counts from 1.
    #[error("rpc URL {0} is neither http nor https")]
    Scheme(usize),
    /// The HTTP client, usually its TLS roots.
    #[error("the HTTP client: {0}")]
    Client(#[from] reqwest::Error),
}

/// One EVM chain behind its nodes.
#[derive(Debug)]
pub struct EvmChain {
    chain_id: ChainId,
    finality: Finality,
    nodes: Vec<Node>,
}

impl EvmChain {
    /// Builds the edge; connects to nothing yet.
    pub fn new(config: EvmConfig) -> Result<Self, EvmError> {
        if config.rpc.is_empty() {
            return Err(EvmError::NoNode);
        }
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()?;
        let mut nodes = Vec::with_capacity(config.rpc.len());
        for (place, url) in (1..).zip(config.rpc) {
            if !matches!(url.scheme(), "http" | "https") {
                return Err(EvmError::Scheme(place));
            }
            nodes.push(Node::new(place, config.chain_id, http.clone(), url));
        }
        Ok(Self { chain_id: config.chain_id, finality: config.finality, nodes })
    }

    /// The nodes that may be asked now, in the order in which they should be.
    fn in_order(&self) -> Vec<&Node> {
        let now = Instant::now();
        let far = self.reference();
        let is_last = |node: &&Node| {
            let lags = |number: u64| number.saturating_add(LAG_MAX) < far;
            node.health.is_outvoted(now) || node.health.final_number().is_some_and(lags)
        };
        let mut nodes: Vec<&Node> =
            self.nodes.iter().filter(|node| node.health.pause_left(now).is_none()).collect();
        nodes.sort_by_key(is_last);
        nodes
    }

    /// How far the chain is final: as the furthest node says; of three or more, as the second furthest does,
    /// so that one that lies cannot make the others late.
    fn reference(&self) -> u64 {
        let mut said: Vec<u64> =
            self.nodes.iter().filter_map(|node| node.health.final_number()).collect();
        said.sort_unstable_by(|one, other| other.cmp(one));
        let place = usize::from(said.len() > 2);
        said.get(place).copied().unwrap_or(0)
    }

    /// No node may be asked now.
    fn all_left_alone(&self) -> ChainError {
        let now = Instant::now();
        let pauses = self.nodes.iter().filter_map(|node| node.health.pause_left(now));
        let next = pauses.min().unwrap_or_default().as_millis();
        let what = "every node failed lately and is left alone for a while";
        ChainError::Unavailable(format!("{what}; the first is asked again in {next} ms"))
    }

    /// Asks the nodes in order. A revert is an answer; a node that does not answer, or does not know
    /// the block, is passed over. If none is left, "unknown block" of any of them is the answer.
    async fn read<R, F, A>(&self, ask: F) -> Result<R, ChainError>
    where
        F: Fn(Node) -> A + Send + Sync,
        A: Future<Output = Result<R, Fault>> + Send,
        R: Send,
    {
        let mut failure = None;
        for node in self.in_order() {
            match ask(node.clone()).await.map_err(|fault| fault.into_error(node.place)) {
                Ok(answer) => return Ok(answer),
                Err(reverted @ ChainError::Reverted(_)) => return Err(reverted),
                Err(ChainError::UnknownBlock) => failure = Some(ChainError::UnknownBlock),
                Err(other) => failure = failure.or(Some(other)),
            }
        }
        Err(failure.unwrap_or_else(|| self.all_left_alone()))
    }

    /// Asks the nodes in the background how far they are, so that one that stands still is noticed.
    fn probe(&self) {
        let now = Instant::now();
        for node in self.nodes.iter().filter(|_| self.nodes.len() > 1) {
            let may_be_asked = node.health.pause_left(now).is_none();
            if may_be_asked && node.health.is_probe_due(now, PROBE_EVERY) {
                let (node, finality) = (node.clone(), self.finality);
                tokio::spawn(async move {
                    // It keeps what it said; a failure is kept by the call.
                    let _ = look::final_block(&node, finality).await;
                });
            }
        }
    }

    fn node(&self, place: usize) -> Option<&Node> {
        self.nodes.iter().find(|node| node.place == place)
    }
}

/// Who a node says it is.
async fn identity_of(node: &Node) -> Result<(ChainId, B256), Fault> {
    let id: U64 = node.call("eth_chainId", json!([])).await?;
    let genesis = block_on(node, BlockAt::Number(0), Finality::Safe).await?;
    let genesis = genesis.ok_or_else(|| Fault::unreadable("no block 0"))?;
    Ok((ChainId::new(id.to::<u64>()), genesis.hash))
}

/// A block on one node, by whatever names it.
pub(super) async fn block_on(
    node: &Node,
    at: BlockAt,
    finality: Finality,
) -> Result<Option<Block>, Fault> {
    const BY_NUMBER: &str = "eth_getBlockByNumber";
    let by_number = |tag: BlockNumberOrTag| node.header(BY_NUMBER, tag);
    let block = match (at, finality) {
        (BlockAt::Latest, _) => by_number(BlockNumberOrTag::Latest).await?,
        (BlockAt::Number(number), _) => by_number(number.into()).await?,
        (BlockAt::Hash(hash), _) => node.header("eth_getBlockByHash", hash).await?,
        (BlockAt::Final, Finality::Finalized) => by_number(BlockNumberOrTag::Finalized).await?,
        (BlockAt::Final, Finality::Safe) => by_number(BlockNumberOrTag::Safe).await?,
        (BlockAt::Final, Finality::Depth(depth)) => {
            let head = by_number(BlockNumberOrTag::Latest).await?;
            match head.and_then(|head| head.number.checked_sub(depth)) {
                Some(number) => by_number(number.into()).await?,
                None => None,
            }
        }
    };
    match (&block, at) {
        (Some(found), BlockAt::Number(number)) if found.number != number => {
            Err(Fault::unreadable("a block of another number than was asked for"))
        }
        (Some(found), BlockAt::Hash(hash)) if found.hash != hash => {
            Err(Fault::unreadable("a block of another hash than was asked for"))
        }
        _ => Ok(block),
    }
}

/// The block parameter of state reads (EIP-1898 for hashes). `Final` becomes that block's number.
async fn state_at(node: &Node, at: BlockAt, finality: Finality) -> Result<Value, Fault> {
    Ok(match at {
        BlockAt::Latest => json!(BlockNumberOrTag::Latest),
        BlockAt::Number(number) => json!(BlockNumberOrTag::Number(number)),
        BlockAt::Hash(hash) => json!({ "blockHash": hash }),
        BlockAt::Final => match block_on(node, at, finality).await? {
            Some(block) => json!(BlockNumberOrTag::Number(block.number)),
            // Nothing is final yet: the state before the first block.
            None => json!(BlockNumberOrTag::Earliest),
        },
    })
}

/// Logs of a block by hash: of these addresses, or all of them (`None`). An empty list counts only from
/// a node that has the block: some clients (anvil) answer an unknown hash with an empty list.
async fn logs_on(
    node: &Node,
    block: B256,
    addresses: Option<&[Address]>,
) -> Result<Vec<Log>, Fault> {
    let filter = match addresses {
        Some(addresses) => json!([{ "blockHash": block, "address": addresses }]),
        None => json!([{ "blockHash": block }]),
    };
    let found: Vec<WireLog> = node.call("eth_getLogs", filter).await?;
    if found.is_empty() && block_on(node, BlockAt::Hash(block), Finality::Safe).await?.is_none() {
        return Err(Fault::unknown_block());
    }
    let logs: Option<Vec<Log>> = found.into_iter().map(wire::log).collect();
    let logs = logs.ok_or_else(|| Fault::unreadable("a removed log, or one without its place"))?;
    let asked = |log: &Log| addresses.is_none_or(|addresses| addresses.contains(&log.address));
    if logs.iter().any(|log| log.block_hash != block || !asked(log)) {
        return Err(Fault::unreadable("logs of another block or address than was asked for"));
    }
    Ok(logs)
}

/// A receipt on one node, which must be of the transaction that was asked for.
pub(super) async fn receipt_on(node: &Node, hash: B256) -> Result<Option<Receipt>, Fault> {
    let found: Option<WireReceipt> = node.call("eth_getTransactionReceipt", (hash,)).await?;
    let receipt = match found {
        Some(found) => found.into_receipt().map_err(Fault::unreadable)?,
        None => None,
    };
    match receipt {
        Some(receipt) if receipt.transaction_hash != hash => {
            Err(Fault::unreadable("a receipt of another transaction"))
        }
        other => Ok(other),
    }
}

/// What it means, and what the node said.
async fn send_on(node: Node, raw: Bytes) -> (Broadcast, String) {
    let place = node.place;
    match node.call::<_, B256>("eth_sendRawTransaction", (raw,)).await {
        Ok(_) => (Broadcast::Accepted, format!("node {place}: taken")),
        Err(Fault::Said(error)) => {
            let said = format!("node {place}: {}", bounded(&error.message));
            (error.broadcast(), said)
        }
        Err(Fault::Silent { detail, .. } | Fault::Unreadable(detail)) => {
            let said = format!("node {place}: {detail}");
            (Broadcast::Ambiguous(said.clone()), said)
        }
    }
}

fn call_object(call: &CallRequest) -> Value {
    let mut object = json!({ "from": call.from, "value": call.value, "input": call.data });
    if let (Some(to), Some(members)) = (call.to, object.as_object_mut()) {
        members.insert("to".to_owned(), json!(to));
    }
    object
}

#[async_trait]
impl Chain for EvmChain {
    fn id(&self) -> ChainId {
        self.chain_id
    }

    async fn identity(&self) -> Result<(ChainId, B256), ChainError> {
        let mut found: Option<(ChainId, B256)> = None;
        let mut failure = self.all_left_alone();
        for node in self.in_order() {
            match identity_of(node).await.map_err(|fault| fault.into_error(node.place)) {
                Ok(said) if found.is_none_or(|first| first == said) => found = Some(said),
                Ok((id, genesis)) => {
                    return Err(ChainError::Unavailable(format!(
                        "node {} is of another chain than the one before: id {id}, genesis {genesis}",
                        node.place
                    )));
                }
                Err(error) => failure = error,
            }
        }
        found.ok_or(failure)
    }

    async fn block(&self, at: BlockAt) -> Result<Option<Block>, ChainError> {
        self.read(|node| async move { block_on(&node, at, self.finality).await }).await
    }

    async fn nonce(&self, address: Address, at: BlockAt) -> Result<u64, ChainError> {
        self.read(|node| async move {
            let at = state_at(&node, at, self.finality).await?;
            let count: U64 = node.call("eth_getTransactionCount", (address, at)).await?;
            Ok(count.to::<u64>())
        })
        .await
    }

    async fn balance(&self, address: Address) -> Result<U256, ChainError> {
        let params = (address, BlockNumberOrTag::Latest);
        self.read(|node| async move { node.call("eth_getBalance", params).await }).await
    }

    async fn code(&self, address: Address, block: B256) -> Result<Bytes, ChainError> {
        self.read(|node| async move {
            node.call("eth_getCode", (address, json!({ "blockHash": block }))).await
        })
        .await
    }

    async fn fee_market(&self) -> Result<FeeMarket, ChainError> {
        let blocks = U64::from(FEE_HISTORY_BLOCKS);
        let params = (blocks, BlockNumberOrTag::Latest, [FEE_HISTORY_PERCENTILE]);
        self.read(|node| async move {
            let history: FeeHistory = node.call("eth_feeHistory", params).await?;
            wire::fee_market(&history).map_err(Fault::unreadable)
        })
        .await
    }

    async fn estimate_gas(&self, call: CallRequest) -> Result<u64, ChainError> {
        let params = (call_object(&call), BlockNumberOrTag::Latest);
        self.read(|node| {
            let params = params.clone();
            async move {
                let gas: U64 = node.call("eth_estimateGas", params).await?;
                Ok(gas.to::<u64>())
            }
        })
        .await
    }

    async fn receipt(&self, hash: B256) -> Result<Option<Receipt>, ChainError> {
        self.read(|node| async move { receipt_on(&node, hash).await }).await
    }

    async fn look(
        &self,
        address: Address,
        sought: &[Sought],
        passed_over: &[usize],
    ) -> Result<Option<AccountLook>, ChainError> {
        self.probe();
        let mut failure = None;
        let nodes = self.in_order();
        if nodes.is_empty() && passed_over.is_empty() {
            return Err(self.all_left_alone());
        }
        for node in nodes.into_iter().filter(|node| !passed_over.contains(&node.place)) {
            match look::account(node, self.finality, address, sought).await {
                Ok(found) => return Ok(Some(found)),
                Err(fault) => failure = failure.or(Some(doubted(node, fault))),
            }
        }
        failure.map_or(Ok(None), Err)
    }

    async fn mined(&self, hash: B256) -> Result<Option<Mined>, ChainError> {
        let mut failure = None;
        for node in self.in_order() {
            match look::mined(node, self.finality, hash).await {
                Ok(found) => return Ok(found),
                Err(fault) => failure = failure.or(Some(doubted(node, fault))),
            }
        }
        Err(failure.unwrap_or_else(|| self.all_left_alone()))
    }

    async fn agreement(&self, claim: &Claim, by: Option<usize>) -> Agreement {
        let (mut said, mut asked) = (Agreement::default(), Vec::new());
        let words = FuturesUnordered::new();
        let now = Instant::now();
        for node in &self.nodes {
            if Some(node.place) == by {
                said.agree.push(node.place);
            } else if node.health.pause_left(now).is_some() {
                said.silent.push(node.place);
            } else {
                asked.push(node.place);
                words.push(async { (node.place, look::word(node, self.finality, claim).await) });
            }
        }
        hear(words, asked, self.nodes.len(), &mut said).await;
        if said.is_outvoted() {
            by.iter().for_each(|place| self.outvoted(*place));
        } else if said.is_carried() {
            said.contradict.iter().for_each(|place| self.outvoted(*place));
        }
        said
    }

    fn outvoted(&self, node: usize) {
        if let Some(node) = self.node(node) {
            node.health.outvoted(Instant::now());
        }
    }

    async fn logs(&self, block: B256, addresses: &[Address]) -> Result<Vec<Log>, ChainError> {
        if addresses.is_empty() {
            // To a node, no address means every address.
            return Ok(Vec::new());
        }
        self.read(|node| async move { logs_on(&node, block, Some(addresses)).await }).await
    }

    async fn broadcast(&self, raw: &Bytes) -> Broadcast {
        self.broadcast_told(raw).await.0
    }

    async fn broadcast_told(&self, raw: &Bytes) -> (Broadcast, String) {
        let now = Instant::now();
        let usable = |node: &&Node| node.health.pause_left(now).is_none();
        let all = !self.nodes.iter().any(|node| usable(&node));
        let (tell, mut told) = mpsc::unbounded_channel();
        for node in self.nodes.iter().filter(|node| all || usable(node)) {
            let (node, raw, tell) = (node.clone(), raw.clone(), tell.clone());
            // It goes on when the answer is given, for as long as a request may take.
            tokio::spawn(async move {
                // Nobody listens any more once one node has taken it.
                let _ = tell.send(send_on(node, raw).await);
            });
        }
        drop(tell);
        let (mut answers, mut said) = (Vec::new(), Vec::new());
        let mut until: Option<tokio::time::Instant> = None;
        loop {
            let next = match until {
                None => told.recv().await,
                Some(until) => timeout_at(until, told.recv()).await.unwrap_or_default(),
            };
            match next {
                Some((answer, word)) => {
                    said.push(word);
                    if answer == Broadcast::Accepted {
                        return (answer, said.join("; "));
                    }
                    let in_words = !matches!(answer, Broadcast::Ambiguous(_));
                    if in_words && until.is_none() {
                        until = tokio::time::Instant::now().checked_add(GRACE);
                    }
                    answers.push(answer);
                }
                None => return (combine(answers), said.join("; ")),
            }
        }
    }

    async fn sent_in(
        &self,
        block: u64,
        account: Address,
    ) -> Result<Vec<MinedTransaction>, ChainError> {
        self.read(|node| async move { history::sent_in(&node, block, account).await }).await
    }

    async fn pending_nonce(&self, account: Address) -> Result<u64, ChainError> {
        history::pending_nonce(&self.nodes, account).await
    }
}

/// A node that cannot be believed in one thing is asked after the others for a while.
fn doubted(node: &Node, fault: Fault) -> ChainError {
    if matches!(fault, Fault::Unreadable(_)) {
        node.health.outvoted(Instant::now());
    }
    fault.into_error(node.place)
}

/// Collects words until all are there; once more than half of all nodes say the same, the others have a
/// moment longer. Those that say nothing are silent.
async fn hear<W>(mut words: W, mut asked: Vec<usize>, all: usize, said: &mut Agreement)
where
    W: futures::Stream<Item = (usize, Word)> + Unpin,
{
    let mut until: Option<tokio::time::Instant> = None;
    loop {
        let decided = [&said.agree, &said.contradict].iter().any(|side| side.len() > all / 2);
        if decided && until.is_none() {
            until = tokio::time::Instant::now().checked_add(GRACE);
        }
        let next = match until {
            None => words.next().await,
            Some(until) => timeout_at(until, words.next()).await.unwrap_or_default(),
        };
        let Some((place, word)) = next else {
            break;
        };
        asked.retain(|other| *other != place);
        match word {
            Word::Agrees => said.agree.push(place),
            Word::Silent => said.silent.push(place),
            Word::Contradicts => said.contradict.push(place),
        }
    }
    said.silent.append(&mut asked);
    for side in [&mut said.agree, &mut said.silent, &mut said.contradict] {
        side.sort_unstable();
    }
}

#[cfg(feature = "watcher")]
#[async_trait]
impl crate::ports::block_logs::BlockLogs for EvmChain {
    async fn block_logs(&self, block: B256) -> Result<Vec<Log>, ChainError> {
        self.read(|node| async move { logs_on(&node, block, None).await }).await
    }
}
