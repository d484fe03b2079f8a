//! Before a trigger asks, it reads the event again from a node, by the hash of its block: what the node does not
//! have is tried again, since it may be behind; what contradicts is parked.

use super::Not;
use crate::core::chain_view::Place;
use crate::core::chain_view::completeness::{self, Incomplete, SeenLog};
use crate::ports::chain::{Block, ChainError, Log};
use crate::ports::chain_reader::{ChainReader, OneNode, Rule, SeenTransaction};
use crate::watch::cloudevent::{Fact, Found};
use alloy::primitives::B256;
use std::sync::Arc;

/// So many nodes are asked before anything is parked.
const NODES_MAX: usize = 3;

/// One node's word.
#[derive(Debug, PartialEq, Eq)]
enum Word {
    /// The very log or transaction, in a final block of its chain.
    Same,
    /// The very log or transaction; its block is not final there.
    NotFinal(String),
    /// It does not have the block, or has another one at that height.
    NotThere(String),
    /// It has the block, and the log is not what was told.
    Contradicts(String),
    /// It did not answer.
    Silent(String),
}

/// Reads the event of a document again. The first node that has it is enough: a trigger's request names the
/// event, and the server reads it from nodes of its own.
///
/// # Errors
/// Why it is not acted on: not yet, or never if all nodes that answer contradict.
pub(super) async fn read(chain: &dyn ChainReader, rule: Rule, told: &Fact) -> Result<(), Not> {
    let (mut passed, mut words) = (Vec::new(), Vec::new());
    while passed.len() < NODES_MAX.min(chain.count()) {
        let Some(node) = chain.node(&passed) else { break };
        passed.push(node.place());
        match word(&node, rule, told).await.unwrap_or_else(|e| Word::Silent(e.to_string())) {
            Word::Same if words.iter().all(|word| !matches!(word, Word::Contradicts(_))) => {
                return Ok(());
            }
            Word::Same => {
                return Err(Not::Early("nodes contradict each other about it".to_owned()));
            }
            // A node that stands still says so for ever, and others may be further.
            word => words.push(word),
        }
    }
    metrics::counter!("claviger_watcher_reread_failures_total").increment(1);
    Err(judge(words))
}

fn judge(words: Vec<Word>) -> Not {
    let (mut contradiction, mut absence, mut silence, mut not_final) = (None, None, None, None);
    for word in words {
        match word {
            Word::Contradicts(why) => contradiction = Some(why),
            Word::NotThere(why) => absence = Some(why),
            Word::Silent(why) => silence = Some(why),
            Word::NotFinal(why) => not_final = Some(why),
            Word::Same => {}
        }
    }
    match (contradiction, absence, not_final.or(silence)) {
        (Some(why), None, None) => Not::Never(format!("the chain says otherwise: {why}")),
        (_, Some(why), _) => Not::Early(format!("not on the chain: {why}")),
        (Some(why), None, Some(_)) => Not::Early(format!("a node says otherwise: {why}")),
        (None, None, undecided) => {
            Not::Yet(None, undecided.unwrap_or_else(|| "no node can be asked now".to_owned()))
        }
    }
}

async fn word(node: &Arc<dyn OneNode>, rule: Rule, told: &Fact) -> Result<Word, ChainError> {
    let (hash, number) = (told.block_hash, told.block_number);
    let Some(block) = node.block_by_hash(hash).await? else {
        return Ok(Word::NotThere(format!("node {} does not know block {hash}", node.place())));
    };
    if block.number != number {
        let why = format!("block {hash} is number {}, and not {number}", block.number);
        return Ok(Word::Contradicts(why));
    }
    match node.block(number).await? {
        Some(canonical) if canonical.hash == hash => {}
        _ => {
            let why = format!("block {hash} is not on the chain of node {}", node.place());
            return Ok(Word::NotThere(why));
        }
    }
    let differs = match &told.found {
        Found::Log(log) => log_differs(node, &block, log).await?,
        Found::Transaction(transaction) => transaction_differs(node, hash, transaction).await?,
    };
    if let Some(word) = differs {
        return Ok(word);
    }
    let last = node.last_final(rule).await?;
    if last.is_some_and(|last| last.number >= number) {
        return Ok(Word::Same);
    }
    Ok(Word::NotFinal(format!("block {hash} is not final at node {}", node.place())))
}

/// A node's list of a block's logs can lack some, as a reading of the poller can. So what is not in it is looked
/// for in the receipts, and the node contradicts only with logs that are all of the block's.
async fn log_differs(
    node: &Arc<dyn OneNode>,
    block: &Block,
    told: &Log,
) -> Result<Option<Word>, ChainError> {
    let (hash, place, index) = (told.block_hash, node.place(), told.log_index);
    // Some refuse lists without an address.
    let none =
        |error: &ChainError| matches!(error, ChainError::UnknownBlock | ChainError::Refused(_));
    let listed = match node.block_logs(hash).await {
        Err(error) if none(&error) => Vec::new(),
        logs => logs?,
    };
    if listed.contains(told) {
        return Ok(None);
    }
    let receipts = match node.block_receipts(hash).await {
        Err(error) if none(&error) => None,
        receipts => Some(receipts?),
    };
    let is_another = match receipts {
        Some(receipts) => {
            let mut logs: Vec<Log> = receipts.into_iter().flat_map(|of| of.logs).collect();
            if logs.contains(told) {
                return Ok(None);
            }
            logs.sort_by_key(|log| log.log_index);
            are_all(block, &logs)
        }
        // Without them, a list that was cut at its end may pass for whole.
        None => are_all(block, &listed) && listed.iter().any(|log| log.log_index == index),
    };
    Ok(Some(if is_another {
        Word::Contradicts(format!("log {index} of block {hash} is another one"))
    } else {
        Word::NotThere(format!("node {place} has not all logs of {hash}"))
    }))
}

/// Whether these can be all logs of a block. A header's bloom filter that lacks some of them is of no use, and
/// hides none.
fn are_all(block: &Block, logs: &[Log]) -> bool {
    let seen: Vec<SeenLog<'_>> = logs.iter().map(seen).collect();
    let place = Place { number: block.number, hash: block.hash };
    let checked = completeness::check(place, Some(&block.logs_bloom), &seen);
    !logs.is_empty() && matches!(checked, Ok(()) | Err(Incomplete::Filter))
}

fn seen(log: &Log) -> SeenLog<'_> {
    SeenLog {
        block: Place { number: log.block_number, hash: log.block_hash },
        index: log.log_index,
        address: log.address,
        topics: &log.topics,
    }
}

/// A transaction is what was told if it is at its place and its receipt says that it succeeded.
async fn transaction_differs(
    node: &Arc<dyn OneNode>,
    block: B256,
    told: &SeenTransaction,
) -> Result<Option<Word>, ChainError> {
    let (index, place) = (told.index, node.place());
    let transactions = match node.block_transactions(block).await {
        Err(ChainError::UnknownBlock) => Vec::new(),
        transactions => transactions?,
    };
    if transactions.is_empty() {
        return Ok(Some(Word::NotThere(format!("node {place} has no transactions of {block}"))));
    }
    // The calldata of a native transfer is not told.
    let is_told = |seen: &SeenTransaction| {
        let data = if told.data.is_empty() { &told.data } else { &seen.data };
        *told == SeenTransaction { data: data.clone(), ..seen.clone() }
    };
    if !transactions.iter().any(is_told) {
        let why = format!("transaction {index} of block {block} is another one");
        return Ok(Some(Word::Contradicts(why)));
    }
    let receipts = match node.block_receipts(block).await {
        Err(ChainError::UnknownBlock) => Vec::new(),
        receipts => receipts?,
    };
    Ok(match receipts.iter().find(|receipt| receipt.transaction == told.hash) {
        Some(receipt) if receipt.success => None,
        Some(_) => Some(Word::Contradicts(format!("transaction {} failed", told.hash))),
        None => Some(Word::NotThere(format!("node {place} has no receipt of {}", told.hash))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_all_nodes_contradict_is_given_up() {
        let no = || Word::Contradicts("x".to_owned());
        let silent = || Word::Silent("y".to_owned());
        let absent = || Word::NotThere("z".to_owned());
        let behind = || Word::NotFinal("w".to_owned());
        assert!(matches!(judge(vec![no(), no()]), Not::Never(_)));
        assert!(matches!(judge(vec![no(), silent()]), Not::Early(_)));
        assert!(matches!(judge(vec![no(), absent()]), Not::Early(_)));
        assert!(matches!(judge(vec![absent()]), Not::Early(_)));
        assert!(matches!(judge(vec![silent()]), Not::Yet(..)));
        assert!(matches!(judge(Vec::new()), Not::Yet(..)));
        assert!(matches!(judge(vec![behind(), silent()]), Not::Yet(..)));
        assert!(matches!(judge(vec![behind(), absent()]), Not::Early(_)));
        assert!(matches!(judge(vec![no(), behind()]), Not::Early(_)));
    }
}
