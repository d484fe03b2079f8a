//! What a node's error means: one table of texts, specific before general, "execution reverted" first.
//!
//! The texts are those of geth (`core/error.go`, `core/txpool/errors.go`), reth
//! (`InvalidTransactionError`, `RpcPoolError`), Nethermind (`AcceptTxResult`), Besu (`RpcErrorType`),
//! Erigon (`txpoolcfg.DiscardReason`), anvil (`PoolError`, `InvalidTransactionError`) and the old
//! OpenEthereum. They are compared in lower case and anywhere in the text, since clients and providers
//! put their own words in front.

use crate::ports::chain::Broadcast;
use alloy::primitives::hex;
use alloy::sol_types::{Panic, Revert, SolError};
use serde_json::Value;

/// Longest text of a node that is kept, in characters.
const TEXT_CHARS_MAX: usize = 500;

/// So much of one is searched for known words.
const WORDS_CHARS_MAX: usize = 4000;

/// A JSON-RPC error object, as the node gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeError {
    /// The `code` member.
    pub code: i64,
    /// The `message` member.
    pub message: String,
    /// The `data` member if it was a string, or the first string inside it.
    pub data: Option<String>,
    /// The whole `data` member: some providers put what they want to say inside it.
    pub raw: Option<Value>,
}

/// What one node made of signed bytes, by its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    Known,
    NonceTooLow,
    Underpriced,
    InsufficientFunds,
    /// Not now: the pool is full, or the nonce is ahead of what this node has. Same bytes again.
    NotNow,
    Refused,
}

/// The table. The first row whose text occurs decides.
const SENT: &[(&str, Meaning)] = &[
    // A simulated or checked execution: whatever follows is the contract's text, not the pool's.
    ("execution reverted", Meaning::Refused),
    ("vm execution error", Meaning::Refused),
    // Contains "known transaction", and means the opposite.
    ("unknown transaction", Meaning::Refused),
    ("already known", Meaning::Known),
    ("alreadyknown", Meaning::Known),
    ("known transaction", Meaning::Known),
    ("already imported", Meaning::Known),
    ("already in pool", Meaning::Known),
    ("already in the pool", Meaning::Known),
    ("already exists in pool", Meaning::Known),
    ("existing tx with same hash", Meaning::Known),
    // Replacements. OpenEthereum's says "too low", so it stands before the nonces.
    ("another transaction with same nonce", Meaning::Underpriced),
    ("could not replace existing tx", Meaning::Underpriced),
    ("replacementnotallowed", Meaning::Underpriced),
    ("replacement transaction underpriced", Meaning::Underpriced),
    ("replacement underpriced", Meaning::Underpriced),
    // Nonces.
    ("nonce too low", Meaning::NonceTooLow),
    ("oldnonce", Meaning::NonceTooLow),
    ("nonce is too low", Meaning::NonceTooLow),
    ("nonce too high", Meaning::NotNow),
    ("noncegap", Meaning::NotNow),
    ("noncetoofarinfuture", Meaning::NotNow),
    ("too distant from current sender nonce", Meaning::NotNow),
    ("invalid transaction with a lower nonce exists", Meaning::NotNow),
    ("gapped-nonce tx", Meaning::NotNow),
    ("in-flight transaction limit reached", Meaning::NotNow),
    // Fees below what the pool or the next block takes.
    ("underpriced", Meaning::Underpriced),
    ("feetoolow", Meaning::Underpriced),
    ("fee too low", Meaning::Underpriced),
    ("max fee per gas less than block base fee", Meaning::Underpriced),
    ("gas price below current base fee", Meaning::Underpriced),
    ("gas price below configured minimum", Meaning::Underpriced),
    // Money.
    ("insufficient funds", Meaning::InsufficientFunds),
    ("insufficientfunds", Meaning::InsufficientFunds),
    ("upfront cost exceeds account balance", Meaning::InsufficientFunds),
    // The pool.
    ("txpool is full", Meaning::NotNow),
    ("sub-pool is full", Meaning::NotNow),
    ("transaction pool not accepting", Meaning::NotNow),
    ("account limit exceeded", Meaning::NotNow),
    ("future transaction tries to replace pending", Meaning::NotNow),
    ("address already reserved", Meaning::NotNow),
];

/// Texts that mean the node is short of time or quota: it says nothing about what was asked.
const BUSY: &[&str] = &[
    "rate limit",
    "rate exceeded",
    "too many requests",
    "request limit",
    "credits limited",
    "request count exceeded",
    "exceeded the quota",
    "capacity limit",
    "compute units",
    "reached the free tier",
    "limit for your current plan",
    "upgrade your tier",
    "too much load",
    "no server available",
    "temporarily unavailable",
    "network connection issue",
    "timed out",
    "timeout",
];

/// Texts that mean the node does not have the block.
const UNKNOWN_BLOCK: &[&str] = &[
    "unknown block",
    "header not found",
    "block not found",
    "cannot find block",
    "could not find block",
    "header for hash not found",
    "hash is not currently canonical",
    "missing trie node",
    // What a node says of a range of logs that goes beyond what it has: reth and Nethermind; Erigon; geth;
    // OpenEthereum.
    "beyond current head block",
    "beyond latest executed block",
    "invalid block range params",
    "pending block is not available",
    "one of the blocks specified in filter",
];

/// Texts that mean that the call ran and failed without a revert's data.
const FAILED_EXECUTION: &[&str] = &[
    "execution reverted",
    "vm execution error",
    "transaction reverted",
    "always failing transaction",
    "gas required exceeds allowance",
    "out of gas",
    "invalid opcode",
    "invalid jump destination",
    "stack underflow",
    "stack limit reached",
    "insufficient funds",
    "insufficientfunds",
    "upfront cost exceeds account balance",
];

fn mentions(text: &str, patterns: &[&str]) -> bool {
    patterns.iter().any(|pattern| text.contains(pattern))
}

/// Cuts a node's text to what is worth keeping, without control characters.
#[must_use]
pub fn bounded(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TEXT_CHARS_MAX).collect()
}

impl NodeError {
    /// What it said, in lower case; a text can be megabytes long.
    fn words(&self) -> String {
        let read = |text: &str| text.chars().take(WORDS_CHARS_MAX).collect::<String>();
        let data = self.data.as_deref().unwrap_or_default();
        format!("{} {}", read(&self.message), read(data)).to_lowercase()
    }

    /// Whether the node, or the provider in front of it, refuses to serve now.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        let words = self.words();
        // EIP-1474 gives -32005 the words "limit exceeded"; Besu uses the code for other things.
        let limited = self.code == -32005 && words.contains("limit exceeded");
        let busy = self.code == 429 || limited || mentions(&words, BUSY);
        busy && !mentions(&words, FAILED_EXECUTION)
    }

    /// Whether the node says that it does not have the block.
    #[must_use]
    pub fn is_unknown_block(&self) -> bool {
        let words = self.words();
        !mentions(&words, FAILED_EXECUTION) && mentions(&words, UNKNOWN_BLOCK)
    }

    /// The reason, if the call was executed and failed. Code 3 is geth's for a revert with data.
    ///
    /// `Error(string)` and `Panic(uint256)` (Solidity's ABI) are decoded; other data is shown as hex.
    #[must_use]
    pub fn revert_reason(&self) -> Option<String> {
        let words = self.words();
        if self.code != 3 && !mentions(&words, FAILED_EXECUTION) {
            return None;
        }
        let data = self.data.as_deref().map(|data| data.trim_start_matches("Reverted ").trim());
        let bytes = data.and_then(|data| hex::decode(data).ok()).unwrap_or_default();
        if let Ok(revert) = Revert::abi_decode(&bytes) {
            return Some(bounded(&revert.reason));
        }
        if let Ok(panic) = Panic::abi_decode(&bytes) {
            return Some(format!("panic 0x{:x}", panic.code));
        }
        if bytes.is_empty() {
            return Some(bounded(&self.message));
        }
        Some(bounded(&format!("{} (data 0x{})", self.message, hex::encode(&bytes))))
    }

    /// What this answer to `eth_sendRawTransaction` means.
    ///
    /// A busy node or an internal error (−32603) without known words proves nothing about the bytes,
    /// so it is ambiguous.
    #[must_use]
    pub fn broadcast(&self) -> Broadcast {
        let words = self.words();
        let known = SENT.iter().find(|(text, _)| words.contains(text)).map(|(_, meaning)| *meaning);
        match known {
            Some(Meaning::Known) => Broadcast::Accepted,
            Some(Meaning::NonceTooLow) => Broadcast::NonceTooLow,
            Some(Meaning::Underpriced) => Broadcast::Underpriced,
            Some(Meaning::InsufficientFunds) => Broadcast::InsufficientFunds,
            Some(Meaning::NotNow) => Broadcast::Ambiguous(bounded(&self.message)),
            Some(Meaning::Refused) => Broadcast::Refused(bounded(&self.message)),
            None if self.is_busy() || self.code == -32603 => {
                Broadcast::Ambiguous(bounded(&self.message))
            }
            None => Broadcast::Refused(bounded(&self.message)),
        }
    }
}

/// One answer out of all nodes': the first in this order that any node gave is the answer: accepted,
/// nonce too low, underpriced, insufficient funds, refused, ambiguous. A node that is silent for good must
/// not keep the others' refusal from being heard; no single refusal is taken for the last word.
#[must_use]
pub fn combine(answers: Vec<Broadcast>) -> Broadcast {
    answers
        .into_iter()
        .min_by_key(|answer| match answer {
            Broadcast::Accepted => 0_u8,
            Broadcast::NonceTooLow => 1,
            Broadcast::Underpriced => 2,
            Broadcast::InsufficientFunds => 3,
            Broadcast::Refused(_) => 4,
            Broadcast::Ambiguous(_) => 5,
        })
        .unwrap_or_else(|| Broadcast::Ambiguous("no node is configured".to_owned()))
}

#[cfg(test)]
#[path = "classify_tests.rs"]
mod tests;
