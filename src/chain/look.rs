//! One look at one node: what it has of an account's transactions, and what it says to another's claim.
//!
//! Everything in an answer is from the same node. Its final block is read before the blocks of the receipts:
//! a block that is canonical then, and not above it, is final there.

use super::evm::{Finality, block_on, codes_in, receipt_on};
use super::node::{Fault, Node};
use crate::ports::chain::{
    AccountLook, BlockAt, BlockId, Claim, Found, Mined, Receipt, Seen, Sought, StateRead,
};
use alloy::eips::BlockNumberOrTag;
use alloy::primitives::{Address, B256, Bytes, U64};
use alloy::rpc::types::Header;
use serde::Deserialize;
use serde_json::json;
use std::collections::HashMap;

/// Code in the state of a block that is further behind a node's head, in blocks and in seconds, is no word on
/// what is there now.
const CODES_BLOCKS_BEHIND: u64 = 5;
const CODES_SECONDS_BEHIND: u64 = 60;
/// So many accounts' code is held at once while it is compared.
const CODES_HELD: usize = 8;

/// A block with the hashes of its transactions.
#[derive(Debug, Deserialize)]
struct WireBlock {
    #[serde(flatten)]
    header: Header,
    transactions: Vec<B256>,
}

/// A canonical block and what is in it.
#[derive(Debug, Clone)]
struct Content {
    hash: B256,
    transactions: Vec<B256>,
}

/// One look. Blocks are read once, however many transactions are in them.
struct Look<'a> {
    node: &'a Node,
    blocks: HashMap<u64, Option<Content>>,
}

/// What an answer to a claim is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    Agrees,
    Silent,
    Contradicts,
}

/// What the node has of these transactions. See [`crate::ports::chain::Chain::look`].
pub(super) async fn account(
    node: &Node,
    finality: Finality,
    address: Address,
    sought: &[Sought],
) -> Result<AccountLook, Fault> {
    let mut look = Look { node, blocks: HashMap::new() };
    let nonce_latest = count(node, address, BlockNumberOrTag::Latest).await?;
    // What was never seen mined, and whose nonce is not used, is not mined.
    let may_be = |one: &Sought| one.seen.is_some() || nonce_latest > one.nonce;
    let last_final =
        if sought.iter().any(may_be) { final_block(node, finality).await? } else { None };
    let mut found = Vec::with_capacity(sought.len());
    for one in sought {
        found.push(if may_be(one) { look.find(one, last_final).await? } else { Found::Nothing });
    }
    let used_by_none = sought
        .iter()
        .zip(&found)
        .any(|(one, found)| *found == Found::Nothing && nonce_latest > one.nonce);
    let nonce_final = match last_final {
        Some(block) if used_by_none => {
            match count(node, address, BlockNumberOrTag::Number(block.number)).await {
                Ok(count) => Some(count),
                // It has forgotten the state of that block: nothing is concluded from it.
                Err(Fault::Said(error)) if !error.is_busy() => None,
                Err(fault) => return Err(fault),
            }
        }
        _ => None,
    };
    Ok(AccountLook { node: node.place, nonce_latest, last_final, nonce_final, found })
}

/// A mined transaction on this node. See [`crate::ports::chain::Chain::mined`].
pub(super) async fn mined(
    node: &Node,
    finality: Finality,
    hash: B256,
) -> Result<Option<Mined>, Fault> {
    let mut look = Look { node, blocks: HashMap::new() };
    let Some(receipt) = receipt_on(node, hash).await? else {
        return Ok(None);
    };
    let last_final = final_block(node, finality).await?;
    let is_canonical = look.is_in_its_block(&receipt).await?;
    let is_below = last_final.is_some_and(|block| receipt.block_number <= block.number);
    Ok(Some(Mined { node: node.place, receipt, is_canonical, is_final: is_canonical && is_below }))
}

/// What this node says to a claim.
pub(super) async fn word(node: &Node, finality: Finality, claim: &Claim) -> Word {
    let word = match claim {
        Claim::Canonical(block) => canonical(node, finality, *block).await,
        Claim::Mined { receipt, must_be_final } => {
            same_receipt(node, finality, receipt, *must_be_final).await
        }
        Claim::Foreign { address, sought, final_number } => {
            foreign(node, finality, *address, sought, *final_number).await
        }
        Claim::State { block, timestamp_s, reads } => {
            same_state(node, finality, *block, *timestamp_s, reads).await
        }
        Claim::Codes { block, codes } => same_codes(node, *block, codes).await,
        Claim::HeadTime { from_s, until_s } => {
            head_between(node, finality, *from_s, *until_s).await
        }
    };
    word.unwrap_or(Word::Silent)
}

/// Another block at that height contradicts; none yet is no answer.
async fn canonical(node: &Node, finality: Finality, block: BlockId) -> Result<Word, Fault> {
    Ok(match block_on(node, BlockAt::Number(block.number), finality).await? {
        None => Word::Silent,
        Some(here) if here.hash == block.hash => Word::Agrees,
        Some(_) => Word::Contradicts,
    })
}

/// Another block at that height, the same without the transaction, or another receipt contradicts. A node that
/// has not come so far, or has lost the receipt, gives no answer.
async fn same_receipt(
    node: &Node,
    finality: Finality,
    claimed: &Receipt,
    must_be_final: bool,
) -> Result<Word, Fault> {
    let mut look = Look { node, blocks: HashMap::new() };
    let last_final = if must_be_final { final_block(node, finality).await? } else { None };
    let Some(block) = look.block(claimed.block_number).await? else {
        return Ok(Word::Silent);
    };
    let holds = block.transactions.contains(&claimed.transaction_hash);
    if block.hash != claimed.block_hash || !holds {
        return Ok(Word::Contradicts);
    }
    let is_final = last_final.is_some_and(|last| claimed.block_number <= last.number);
    Ok(match receipt_on(node, claimed.transaction_hash).await? {
        None => Word::Silent,
        Some(own) if own != *claimed => Word::Contradicts,
        Some(_) if must_be_final && !is_final => Word::Silent,
        Some(_) => Word::Agrees,
    })
}

async fn foreign(
    node: &Node,
    finality: Finality,
    address: Address,
    sought: &Sought,
    final_number: u64,
) -> Result<Word, Fault> {
    let look = account(node, finality, address, std::slice::from_ref(sought)).await?;
    let is_used = look.nonce_final.map(|count| count > sought.nonce);
    let is_as_far = look.last_final.is_some_and(|last| last.number >= final_number);
    Ok(match (look.found.first(), is_used) {
        (Some(Found::Mined(_) | Found::Still), _) => Word::Contradicts,
        (Some(Found::Nothing), Some(true)) => Word::Agrees,
        (Some(Found::Nothing), Some(false)) if is_as_far => Word::Contradicts,
        _ => Word::Silent,
    })
}

/// What a call answers in the state of a block.
pub(super) async fn call_on(
    node: &Node,
    to: Address,
    data: &Bytes,
    block: B256,
) -> Result<Bytes, Fault> {
    let call = json!({ "to": to, "input": data });
    node.call("eth_call", (call, json!({ "blockHash": block }))).await
}

/// Another block at that height, another time of it or another answer contradicts. A node to which it is not
/// final yet, or which has forgotten that state, gives no answer.
async fn same_state(
    node: &Node,
    finality: Finality,
    block: BlockId,
    timestamp_s: u64,
    reads: &[StateRead],
) -> Result<Word, Fault> {
    let Some(here) = block_on(node, BlockAt::Number(block.number), finality).await? else {
        return Ok(Word::Silent);
    };
    if here.hash != block.hash || here.timestamp_s != timestamp_s {
        return Ok(Word::Contradicts);
    }
    let last = final_block(node, finality).await?;
    if last.is_none_or(|last| last.number < block.number) {
        return Ok(Word::Silent);
    }
    for StateRead { read, answer } in reads {
        if call_on(node, read.to, &read.data, block.hash).await? != *answer {
            return Ok(Word::Contradicts);
        }
    }
    Ok(Word::Agrees)
}

/// Other code contradicts: in that block, and of a node that does not have it, at its own head. A block that is
/// not canonical here, or that lies far behind this node's head, contradicts too: its state may be true and long
/// gone.
async fn same_codes(node: &Node, block: B256, claimed: &[(Address, Bytes)]) -> Result<Word, Fault> {
    let any = Finality::Safe;
    let Some(head) = block_on(node, BlockAt::Latest, any).await? else {
        return Ok(Word::Silent);
    };
    let found = match block_on(node, BlockAt::Hash(block), any).await {
        // Some say that they do not have it in words.
        Err(Fault::Said(error)) if !error.is_busy() => None,
        found => found?,
    };
    let at = match found {
        None => head.hash,
        Some(found) => {
            let canonical = block_on(node, BlockAt::Number(found.number), any).await?;
            let blocks = head.number.saturating_sub(found.number);
            let seconds = head.timestamp_s.saturating_sub(found.timestamp_s);
            let is_old = blocks > CODES_BLOCKS_BEHIND && seconds > CODES_SECONDS_BEHIND;
            if is_old || canonical.is_none_or(|here| here.hash != block) {
                return Ok(Word::Contradicts);
            }
            block
        }
    };
    // A few at a time: they can be long, and nobody is to make us hold many of them.
    for some in claimed.chunks(CODES_HELD) {
        let addresses: Vec<Address> = some.iter().map(|(address, _)| *address).collect();
        let own = codes_in(node, &addresses, at).await?;
        let is_same = own.len() == some.len()
            && own.iter().zip(some).all(|(own, (_, claimed))| own == claimed);
        if !is_same {
            return Ok(Word::Contradicts);
        }
    }
    Ok(Word::Agrees)
}

async fn head_between(
    node: &Node,
    finality: Finality,
    from_s: u64,
    until_s: u64,
) -> Result<Word, Fault> {
    let head = block_on(node, BlockAt::Latest, finality).await?;
    Ok(match head.map(|head| head.timestamp_s) {
        None => Word::Silent,
        Some(at) if (from_s..=until_s).contains(&at) => Word::Agrees,
        Some(_) => Word::Contradicts,
    })
}

async fn count(node: &Node, address: Address, at: BlockNumberOrTag) -> Result<u64, Fault> {
    let count: U64 = node.call("eth_getTransactionCount", (address, at)).await?;
    Ok(count.to::<u64>())
}

/// The node's newest final block.
pub(super) async fn final_block(node: &Node, finality: Finality) -> Result<Option<BlockId>, Fault> {
    let block = block_on(node, BlockAt::Final, finality).await?;
    let block = block.map(|block| BlockId { number: block.number, hash: block.hash });
    node.health.says_final(block.map(|block| block.number));
    Ok(block)
}

impl Look<'_> {
    async fn find(&mut self, one: &Sought, last_final: Option<BlockId>) -> Result<Found, Fault> {
        let Some(seen) = one.seen else {
            return Ok(self.search(one).await?.map_or(Found::Nothing, Found::Mined));
        };
        match self.block(seen.block.number).await? {
            None => Ok(Found::Unknown),
            Some(block)
                if block.hash == seen.block.hash
                    && block.transactions.contains(&seen.transaction_hash) =>
            {
                self.again(seen, last_final).await
            }
            Some(_) => Ok(self.search(one).await?.map_or(Found::Displaced, Found::Mined)),
        }
    }

    /// It is where it was seen. Its receipt is read where it will be needed.
    async fn again(&self, seen: Seen, last_final: Option<BlockId>) -> Result<Found, Fault> {
        let is_final = last_final.is_some_and(|last| seen.block.number <= last.number);
        if !is_final && !seen.receipt_wanted {
            return Ok(Found::Still);
        }
        let receipt = receipt_on(self.node, seen.transaction_hash).await?;
        let is_there = |receipt: &Receipt| receipt.block_hash == seen.block.hash;
        Ok(receipt.filter(is_there).map_or(Found::Unknown, Found::Mined))
    }

    /// The receipt of whichever of the hashes is mined in a canonical block.
    async fn search(&mut self, one: &Sought) -> Result<Option<Receipt>, Fault> {
        for hash in &one.hashes {
            if let Some(receipt) = receipt_on(self.node, *hash).await?
                && self.is_in_its_block(&receipt).await?
            {
                return Ok(Some(receipt));
            }
        }
        Ok(None)
    }

    /// Whether a receipt's block is canonical on this node. A node whose canonical block does not hold what
    /// it gave a receipt for contradicts itself, and is not believed at all.
    async fn is_in_its_block(&mut self, receipt: &Receipt) -> Result<bool, Fault> {
        let block = self.block(receipt.block_number).await?;
        let Some(block) = block.filter(|block| block.hash == receipt.block_hash) else {
            return Ok(false);
        };
        if !block.transactions.contains(&receipt.transaction_hash) {
            tracing::warn!(
                node = self.node.place,
                hash = %receipt.transaction_hash,
                "a node shows a receipt of a block that does not hold the transaction"
            );
            return Err(Fault::unreadable("a receipt of a block that does not hold it"));
        }
        Ok(true)
    }

    async fn block(&mut self, number: u64) -> Result<Option<Content>, Fault> {
        if let Some(known) = self.blocks.get(&number) {
            return Ok(known.clone());
        }
        let which = (BlockNumberOrTag::Number(number), false);
        let found: Option<WireBlock> = self.node.call("eth_getBlockByNumber", which).await?;
        if found.as_ref().is_some_and(|block| block.header.inner.number != number) {
            return Err(Fault::unreadable("a block of another number than was asked for"));
        }
        let content = found
            .map(|block| Content { hash: block.header.hash, transactions: block.transactions });
        self.blocks.insert(number, content.clone());
        Ok(content)
    }
}
