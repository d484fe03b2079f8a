//! EVM chains over JSON-RPC (execution-apis), through alloy's client.
//!
//! Reads ask the nodes in their order and go on to the next when one does not answer; a read that takes
//! several calls makes them all on one node. A node that failed is left alone for a while, one that lags far
//! behind the others, or that most of them contradicted, is asked after them. Sends go to every node at once.

use super::history;
use super::node::{Fault, Node};
use super::nodes::Nodes;
use super::wire::{self, WireReceipt};
use crate::core::agreement::Agreement;
use crate::core::id::ChainId;
use crate::ports::chain::{
    AccountLook, Block, BlockAt, BlockId, Broadcast, CallRequest, Chain, ChainError, Claim, Codes,
    FeeMarket, Log, Mined, MinedTransaction, Receipt, Sought,
};
use alloy::eips::BlockNumberOrTag;
use alloy::primitives::{Address, B256, Bytes, U64, U256};
use alloy::rpc::types::{FeeHistory, Log as WireLog};
use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};
use std::time::Duration;
use url::Url;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Blocks of `eth_feeHistory` that are looked at.
const FEE_HISTORY_BLOCKS: u64 = 10;
/// Percentile of each block's priority fees.
const FEE_HISTORY_PERCENTILE: f64 = 50.0;

/// So many accounts' codes are asked for at once.
const CODES_AT_ONCE: usize = 8;

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
    pub(super) chain_id: ChainId,
    finality: Finality,
    pub(super) nodes: Nodes,
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
        let is_alone = config.rpc.len() == 1;
        for (place, url) in (1..).zip(config.rpc) {
            if !matches!(url.scheme(), "http" | "https") {
                return Err(EvmError::Scheme(place));
            }
            nodes.push(Node::new(place, config.chain_id, http.clone(), (url, is_alone)));
        }
        let nodes = Nodes::new(nodes, config.finality);
        Ok(Self { chain_id: config.chain_id, finality: config.finality, nodes })
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
pub(super) async fn logs_on(
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

/// The code of each of these accounts at the node's head.
pub(super) async fn codes_on(node: &Node, addresses: &[Address]) -> Result<Codes, Fault> {
    let head = block_on(node, BlockAt::Latest, Finality::Safe).await?;
    let block = head.ok_or_else(Fault::unknown_block)?.hash;
    let codes = codes_in(node, addresses, block).await?;
    Ok(Codes { node: node.place, block, codes })
}

/// The same in the state of a block, some of them asked for at once.
pub(super) async fn codes_in(
    node: &Node,
    addresses: &[Address],
    block: B256,
) -> Result<Vec<Bytes>, Fault> {
    let asked = addresses.iter().copied().map(|address| {
        let params = (address, json!({ "blockHash": block }));
        async move { node.call("eth_getCode", params).await }
    });
    futures::stream::iter(asked).buffered(CODES_AT_ONCE).try_collect().await
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
        let mut failure = self.nodes.all_left_alone();
        for node in self.nodes.in_order() {
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
        self.nodes.read(|node| async move { block_on(&node, at, self.finality).await }).await
    }

    async fn nonce(&self, address: Address, at: BlockAt) -> Result<u64, ChainError> {
        self.nodes
            .read(|node| async move {
                let at = state_at(&node, at, self.finality).await?;
                let count: U64 = node.call("eth_getTransactionCount", (address, at)).await?;
                Ok(count.to::<u64>())
            })
            .await
    }

    async fn balance(&self, address: Address) -> Result<U256, ChainError> {
        let params = (address, BlockNumberOrTag::Latest);
        self.nodes.read(|node| async move { node.call("eth_getBalance", params).await }).await
    }

    async fn code(&self, address: Address, block: B256) -> Result<Bytes, ChainError> {
        self.nodes
            .read(|node| async move {
                node.call("eth_getCode", (address, json!({ "blockHash": block }))).await
            })
            .await
    }

    async fn codes(&self, addresses: &[Address]) -> Result<Codes, ChainError> {
        self.nodes.read(|node| async move { codes_on(&node, addresses).await }).await
    }

    async fn fee_market(&self) -> Result<FeeMarket, ChainError> {
        let blocks = U64::from(FEE_HISTORY_BLOCKS);
        let params = (blocks, BlockNumberOrTag::Latest, [FEE_HISTORY_PERCENTILE]);
        self.nodes
            .read(|node| async move {
                let history: FeeHistory = node.call("eth_feeHistory", params).await?;
                wire::fee_market(&history).map_err(Fault::unreadable)
            })
            .await
    }

    async fn estimate_gas(&self, call: CallRequest) -> Result<u64, ChainError> {
        let params = (call_object(&call), BlockNumberOrTag::Latest);
        self.nodes
            .read(|node| {
                let params = params.clone();
                async move {
                    let gas: U64 = node.call("eth_estimateGas", params).await?;
                    Ok(gas.to::<u64>())
                }
            })
            .await
    }

    async fn receipt(&self, hash: B256) -> Result<Option<Receipt>, ChainError> {
        self.nodes.read(|node| async move { receipt_on(&node, hash).await }).await
    }

    async fn look(
        &self,
        address: Address,
        sought: &[Sought],
        passed_over: &[usize],
    ) -> Result<Option<AccountLook>, ChainError> {
        self.nodes.look(address, sought, passed_over).await
    }

    async fn mined(&self, hash: B256) -> Result<Option<Mined>, ChainError> {
        self.nodes.mined(hash).await
    }

    async fn agreement(&self, claim: &Claim, by: Option<usize>) -> Agreement {
        self.nodes.agreement(claim, by).await
    }

    async fn has_block(&self, block: BlockId, node: usize) -> bool {
        self.nodes.has_block(block, node).await
    }

    async fn logs(&self, block: B256, addresses: &[Address]) -> Result<Vec<Log>, ChainError> {
        if addresses.is_empty() {
            // To a node, no address means every address.
            return Ok(Vec::new());
        }
        self.nodes.read(|node| async move { logs_on(&node, block, Some(addresses)).await }).await
    }

    async fn broadcast(&self, raw: &Bytes) -> Broadcast {
        self.broadcast_told(raw).await.0
    }

    async fn broadcast_told(&self, raw: &Bytes) -> (Broadcast, String) {
        self.nodes.broadcast(raw).await
    }

    async fn call(&self, to: Address, data: Bytes, block: B256) -> Result<Bytes, ChainError> {
        self.nodes
            .read(|node| {
                let data = data.clone();
                async move { super::look::call_on(&node, to, &data, block).await }
            })
            .await
    }

    async fn sent_in(
        &self,
        block: u64,
        account: Address,
    ) -> Result<Vec<MinedTransaction>, ChainError> {
        self.nodes.read(|node| async move { history::sent_in(&node, block, account).await }).await
    }

    async fn pending_nonce(&self, account: Address) -> Result<u64, ChainError> {
        history::pending_nonce(self.nodes.all(), account).await
    }
}
