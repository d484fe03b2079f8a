//! Compare the database with the chain, nonce by nonce, after a restore or a halt: `examine` says what is
//! there, `explain` says it in words, `apply` makes the database agree on an operator's word.

mod apply;
mod charges;
mod examine;
mod explain;
mod locate;
mod matching;

pub use apply::{
    Applied, Lost, Order, close_orphans, declare_lost, lift, live_servers, release_chain,
    send_again, settle_account,
};
pub use examine::{Places, examine, forgotten, standing_still};
pub use explain::{explain, explain_forgotten};

use crate::app::adopt::OnChain;
use crate::core::id::{ChainId, KeyId, RequestId};
use crate::core::intent::ChainRef;
use crate::ports::chain::MinedTransaction;
use alloy::primitives::{Address, B256, Bytes};
use std::collections::BTreeMap;

/// How far nonces were given, by the memory of somebody outside the database: one more than the highest.
pub type Remembered = BTreeMap<(ChainId, Address), u64>;

/// What an operator has named by the hash of a mined transaction: the request that it is, of those that wait for a
/// nonce and ask for just this; or that it is none of them.
pub type Choices = BTreeMap<B256, Option<RequestId>>;

/// One managed account on one chain, compared.
#[derive(Debug, Clone)]
pub struct Account {
    /// The chain.
    pub chain: ChainRef,
    /// The account.
    pub address: Address,
    /// Its key.
    pub key: KeyId,
    /// The next nonce by the database.
    pub next: u64,
    /// Mined transactions at the head.
    pub latest: u64,
    /// Mined transactions in the newest final block, where a node has its state.
    pub last_final: Option<u64>,
    /// With what waits in nodes' pools, as far as they say.
    pub pending: Option<u64>,
    /// How far nonces were given by an outside memory.
    pub remembered: Option<u64>,
    /// Requests that wait for a nonce: they are sent when the lane goes on.
    pub queued: usize,
    /// Why its lane stands still, if it does.
    pub halted: Option<String>,
    /// What does not agree, by nonce.
    pub findings: Vec<Finding>,
}

/// An account that somebody outside the database remembers, and that the database does not know: its key was
/// made in the time that was lost, or its chain is not configured any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forgotten {
    /// The chain.
    pub chain: ChainId,
    /// The account.
    pub address: Address,
    /// How far nonces were given: one more than the highest.
    pub given: u64,
}

/// A mined transaction that the database does not know as it should.
#[derive(Debug, Clone)]
pub struct Finding {
    /// The nonce.
    pub nonce: u64,
    /// What the chain has there, if its block was found.
    pub mined: Option<MinedTransaction>,
    /// The same, read back and signed by the account's key; `None` if it is of a type that we do not sign, or
    /// a node tells of it without its signature: then there is only that node's word.
    pub found: Option<OnChain>,
    /// Whether its block is final.
    pub is_final: bool,
    /// What it is to us.
    pub what: What,
    /// Signed bytes that are to be sent again, so that the nonce does not stay empty.
    pub again: Option<Bytes>,
    /// A request that waits for a nonce and asks for just this, where it is foreign to the one that has the
    /// nonce.
    pub asked_by: Option<RequestId>,
    /// Where several requests that wait ask for just this, and nothing tells which of them it is, or whether it
    /// is one at all: all of them, the oldest first. An operator names it.
    pub candidates: Vec<RequestId>,
    /// Whether an operator has named what it is.
    pub is_chosen: bool,
}

/// A chain that was reorganised below a block in which an end was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standstill {
    /// The chain.
    pub chain: ChainRef,
    /// What was found.
    pub reason: String,
}

/// What a mined transaction is to the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// What this request asked, at its nonce: the database lost the attempt.
    Attempt(RequestId),
    /// The account's no-op at the nonce of this request: the database lost its cancellation.
    NoOp(RequestId),
    /// What this request asked, which the database believes to wait for a nonce.
    Queued(RequestId),
    /// What several requests asked that wait for a nonce; only one of them was sent.
    Undecided,
    /// Something else at the nonce of this request.
    Foreign(RequestId),
    /// No request of this database has the nonce, or asks for the same.
    Orphan,
    /// The nonce is used, and the block was not found.
    Unseen,
    /// The end of this request was told, and its nonce is not used any more.
    Vanished(RequestId),
    /// The end of this request was told, and the chain has another transaction at its nonce now.
    Turned(RequestId),
}

impl What {
    /// The name in the log and in JSON, and the request that it is about.
    #[must_use]
    pub const fn named(self) -> (&'static str, Option<RequestId>) {
        match self {
            Self::Attempt(request) => ("attempt", Some(request)),
            Self::NoOp(request) => ("no_op", Some(request)),
            Self::Queued(request) => ("queued", Some(request)),
            Self::Foreign(request) => ("foreign", Some(request)),
            Self::Undecided => ("undecided", None),
            Self::Orphan => ("orphan", None),
            Self::Unseen => ("unseen", None),
            Self::Vanished(request) => ("vanished", Some(request)),
            Self::Turned(request) => ("turned", Some(request)),
        }
    }
}

/// Why an account cannot be put right now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wait {
    /// A mined transaction is not final.
    NotFinal(u64),
    /// A mined transaction was not found.
    Unseen(u64),
    /// A mined transaction is told of without a signature of the account's key.
    Unread(u64),
    /// A pool has transactions that the database does not know, up to this nonce.
    Pending(u64),
    /// Nonces up to this one were given by the database that is gone, and are not mined.
    Given(u64),
    /// Several requests ask for what is mined with this nonce, and an operator must name the one that it is.
    Undecided(u64),
}

impl Wait {
    /// Whether an operator may go on all the same.
    #[must_use]
    pub const fn may_be_overruled(&self) -> bool {
        matches!(self, Self::Pending(_) | Self::Given(_) | Self::Unread(_))
    }
}

impl Account {
    /// Whether there is nothing to say about it.
    #[must_use]
    pub fn agrees(&self) -> bool {
        self.findings.is_empty() && self.halted.is_none() && self.waits().is_empty()
    }

    /// What has to happen first.
    #[must_use]
    pub fn waits(&self) -> Vec<Wait> {
        let mut waits = Vec::new();
        for finding in &self.findings {
            match finding.what {
                What::Unseen => waits.push(Wait::Unseen(finding.nonce)),
                // Nothing of ours would bring it back after a reorganisation.
                What::Orphan | What::Foreign(_) if !finding.is_final => {
                    waits.push(Wait::NotFinal(finding.nonce));
                }
                _ => {}
            }
            if !finding.candidates.is_empty() {
                waits.push(Wait::Undecided(finding.nonce));
            }
            // One node's word: what is ours may be there in truth, and a request would be failed, or paid
            // again.
            if matches!(finding.what, What::Orphan | What::Foreign(_)) && finding.found.is_none() {
                waits.push(Wait::Unread(finding.nonce));
            }
        }
        let known = self.next.max(self.latest);
        if let Some(pending) = self.pending.filter(|pending| *pending > known) {
            waits.push(Wait::Pending(pending.saturating_sub(1)));
        }
        if let Some(given) = self.remembered.filter(|given| *given > known) {
            waits.push(Wait::Given(given.saturating_sub(1)));
        }
        waits
    }
}
