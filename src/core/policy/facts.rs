//! What a decision may look at: the request and facts read from the chain, each with its block. A fact
//! that is missing is `None`, and a rule that needs it then denies.

use crate::core::id::{GroupName, KeyId};
use crate::core::intent::{EventSource, Intent};
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use alloy::primitives::{Address, B256, Bytes, keccak256};
use std::collections::{BTreeMap, BTreeSet};

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

/// The first bytes of a delegated account's code (EIP-7702): the address whose code it runs comes after them.
const DELEGATION: [u8; 3] = [0xef, 0x01, 0x00];

/// Length of the address in such a code, in bytes.
const ADDRESS_BYTES: usize = 20;

impl CodeFact {
    /// Of an account with delegated code (EIP-7702) the address whose code it runs; what else begins like one
    /// is taken for one. `None` for other code.
    #[must_use]
    pub fn delegation(&self) -> Option<Bytes> {
        let rest = self.code.strip_prefix(&DELEGATION)?;
        Some(Bytes::copy_from_slice(rest.get(..ADDRESS_BYTES).unwrap_or(rest)))
    }

    /// Stands for a code of which only length and [`Self::delegation`] are known.
    #[must_use]
    pub fn stand_in(length: usize, delegation: Option<&Bytes>) -> Bytes {
        let mut code = delegation
            .map_or_else(Vec::new, |rest| [DELEGATION.as_slice(), rest.as_ref()].concat());
        code.resize(length, 0);
        code.into()
    }
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
    /// keccak-256 of codes that were not kept: of a recorded decision only their hash is. What stands in
    /// `codes` for such an address has the length, and is a delegation where the code was one.
    pub code_hashes: BTreeMap<Address, B256>,
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

    /// keccak-256 of the code at an address; `None` if it was not read.
    #[must_use]
    pub fn code_hash_at(&self, address: Address) -> Option<B256> {
        let code = self.code_at(address)?;
        let recorded = self.code_hashes.get(&address).copied();
        Some(recorded.unwrap_or_else(|| keccak256(&code.code)))
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
