//! What a decision may look at: the request and facts read from the chain, each with its block. A fact
//! that is missing is `None`, and a rule that needs it then denies.

use crate::core::id::{GroupName, KeyId};
use crate::core::intent::{EventSource, Intent};
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use alloy::primitives::{Address, B256, Bytes};
use std::collections::BTreeSet;

/// The code at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeFact {
    /// Whose code.
    pub address: Address,
    /// At which block it was read.
    pub block: B256,
    /// The code; empty for an account without.
    pub code: Bytes,
}

/// A log that the server read from the chain itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventFact {
    /// Where the caller said it is.
    pub source: EventSource,
    /// The block's number.
    pub block_number: u64,
    /// Whether the block is on the canonical chain.
    pub canonical: bool,
    /// Whether the block is final by the chain's rule.
    pub finalized: bool,
    /// The contract that emitted the log.
    pub emitter: Address,
    /// Its topics.
    pub topics: Vec<B256>,
    /// Its data.
    pub data: Bytes,
}

/// Facts from the chain, and what we know ourselves of what was before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Code at each address that the request would call or pay, as far as it was read.
    pub codes: Vec<CodeFact>,
    /// The source event; `None` if the request names none, or it is not on the chain.
    pub event: Option<EventFact>,
    /// Destinations on this chain that the same group (or key without a group) has paid before.
    pub known_destinations: BTreeSet<Address>,
    /// Since when the request has been waiting for its delay; `None` if it is judged for the first time.
    pub waiting_since: Option<Timestamp>,
}

impl Facts {
    /// The code at an address; `None` if it was not read.
    #[must_use]
    pub fn code_at(&self, address: Address) -> Option<&CodeFact> {
        self.codes.iter().find(|code| code.address == address)
    }
}

/// One request, as policy sees it.
#[derive(Clone, Debug)]
pub struct PolicyRequest {
    /// Who asks.
    pub principal: Principal,
    /// The group that the key was chosen from, if it belongs to one.
    pub group: Option<GroupName>,
    /// The key that would sign.
    pub key: KeyId,
    /// Its address.
    pub address: Address,
    /// What is asked.
    pub intent: Intent,
    /// What the chain says.
    pub facts: Facts,
}
