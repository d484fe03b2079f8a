//! Guardrails: what no grant can allow, limits that no grant can be without, and who may change all that.

use super::grant::{Destinations, SignerRef, Window};
use crate::core::amount::Amount;
use crate::core::id::{ChainName, GrantId};
use alloy::primitives::Address;
use std::collections::{BTreeMap, BTreeSet};

/// What a bundle says beside its grants.
#[derive(Clone, Debug, Default)]
pub struct Guardrails {
    /// What is denied whatever a grant says, by id.
    pub denies: Vec<DenyRule>,
    /// Limits over everything, by id.
    pub limits: Vec<LimitRule>,
    /// People by quorum group; none is empty.
    pub quorums: BTreeMap<String, BTreeSet<String>>,
    /// How the bundle itself may be changed; `None` where the folder on disk rules.
    pub change: Option<ChangeRule>,
}

/// A global deny: a request is denied if one of its effects matches everything that is said here. At least
/// one thing is.
#[derive(Clone, Debug)]
pub struct DenyRule {
    /// Unique among grants and guardrails.
    pub id: GrantId,
    /// Why it exists.
    pub reason: String,
    /// Whoever asks, by `sub`.
    pub principals: Option<BTreeSet<String>>,
    /// Whoever signs.
    pub signers: Option<BTreeSet<SignerRef>>,
    /// On these chains.
    pub chains: Option<BTreeSet<ChainName>>,
    /// Effects that these actions match, by their names in grants.
    pub actions: Option<BTreeSet<String>>,
    /// Effects that concern one of these, by chain; a chain that is not named has none. They are destinations,
    /// the contracts of typed data, and contracts that the account acts through.
    pub to: Option<BTreeMap<ChainName, Destinations>>,
}

/// A global limit: it counts every effect of its unit on its chain, whichever grant allowed it.
#[derive(Clone, Debug)]
pub struct LimitRule {
    /// Unique among grants and guardrails.
    pub id: GrantId,
    /// Why it exists.
    pub reason: String,
    /// Where.
    pub chain: ChainName,
    /// What it counts.
    pub unit: LimitUnit,
    /// What one request may take at most, in the smallest unit, fees included.
    pub per_tx: Option<Amount>,
    /// Over time.
    pub windows: Vec<Window>,
}

/// What a global limit counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitUnit {
    /// The chain's own currency, fees included.
    Native,
    /// A registered ERC-20 asset: transfers and allowances.
    Asset {
        /// Its name.
        name: String,
        /// Its contract.
        address: Address,
    },
}

/// How a bundle may be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeRule {
    /// How many people of which quorum group must activate the next one, its author not among them.
    pub quorum: BTreeMap<String, u32>,
    /// How long a bundle that newly permits anything waits after the quorum, in milliseconds.
    pub delay_ms: i64,
}
