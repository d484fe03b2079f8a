//! Looking back at what an account has sent: for operators, and never on the way of a request.

use super::node::{Fault, Node};
use crate::ports::chain::{ChainError, MinedTransaction};
use alloy::consensus::TxEnvelope;
use alloy::eips::eip2718::Encodable2718 as _;
use alloy::primitives::{Address, B256, Bytes, U64, U256, keccak256};
use alloy::rpc::types::Transaction;
use serde::Deserialize;
use serde_json::Value;

/// A block with its transactions. Those of others are not read: layer-2 chains have types of their own.
#[derive(Debug, Deserialize)]
struct WireBlock {
    number: U64,
    hash: B256,
    transactions: Vec<Value>,
}

/// The members that every type has.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireTransaction {
    hash: B256,
    nonce: U64,
    to: Option<Address>,
    value: U256,
    input: Bytes,
}

fn is_from(transaction: &Value, account: Address) -> bool {
    let from = transaction.get("from").and_then(Value::as_str);
    from.and_then(|from| from.parse::<Address>().ok()) == Some(account)
}

/// The signed bytes, put together again from what the node tells. `None` if they would not have the hash.
fn envelope(transaction: &Value, hash: B256) -> Option<Bytes> {
    let read: Transaction = serde_json::from_value(transaction.clone()).ok()?;
    let raw = TxEnvelope::from(read).encoded_2718();
    (keccak256(&raw) == hash).then(|| raw.into())
}

/// The account's transactions in one block, on one node.
pub(super) async fn sent_in(
    node: &Node,
    number: u64,
    account: Address,
) -> Result<Vec<MinedTransaction>, Fault> {
    let params = (U64::from(number), true);
    let block: Option<WireBlock> = node.call("eth_getBlockByNumber", params).await?;
    let block = block.ok_or_else(Fault::unknown_block)?;
    if block.number.to::<u64>() != number {
        return Err(Fault::unreadable("a block of another number than was asked for"));
    }
    let mut found = Vec::new();
    for transaction in block.transactions.iter().filter(|it| is_from(it, account)) {
        let read: WireTransaction = serde_json::from_value(transaction.clone())
            .map_err(|_| Fault::unreadable("a transaction without hash, nonce, value or input"))?;
        found.push(MinedTransaction {
            hash: read.hash,
            nonce: read.nonce.to::<u64>(),
            block_number: number,
            block_hash: block.hash,
            to: read.to,
            value: read.value,
            data: read.input,
            raw: envelope(transaction, read.hash),
        });
    }
    Ok(found)
}

/// The most that any node says.
pub(super) async fn pending_nonce(nodes: &[Node], account: Address) -> Result<u64, ChainError> {
    let (mut most, mut failure) = (None, ChainError::Unavailable("no node".to_owned()));
    for node in nodes {
        let answer: Result<U64, Fault> =
            node.call("eth_getTransactionCount", (account, "pending")).await;
        match answer {
            Ok(count) => most = most.max(Some(count.to::<u64>())),
            Err(fault) => failure = fault.into_error(node.place),
        }
    }
    most.ok_or(failure)
}
