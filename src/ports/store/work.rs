//! Rows of the work on lanes: leases, what is owed and waited for, and the blocks in which ends were told.

use crate::core::amount::Amount;
use crate::core::id::{ChainId, HolderId};
use crate::core::time::Timestamp;
use alloy::primitives::{Address, B256};

/// The newest block of a chain in which an end was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// Its height.
    pub number: u64,
    /// Its hash.
    pub hash: B256,
    /// Why the chain stands still, if another block was found at that height.
    pub broken: Option<String>,
}

/// Clocks of servers that differ by more are wrong, and a lease by such a clock is none, in milliseconds.
pub const CLOCKS_DIFFER_MS: i64 = 3_600_000;

/// The right to work an account's lane. Its token is what a late worker is recognised by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The chain.
    pub chain: ChainId,
    /// The account.
    pub address: Address,
    /// Whose it is.
    pub holder: HolderId,
    /// Grows at every change of the holder.
    pub token: i64,
}

/// A stored lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseRow {
    /// The lease.
    pub lease: Lease,
    /// Its end, by its holder's clock.
    pub until: Timestamp,
}

/// What an unmined transaction may still take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owed {
    /// Its nonce.
    pub nonce: u64,
    /// The value, in wei.
    pub value: Amount,
    /// The gas limit.
    pub gas: u64,
    /// Wei per gas that its newest attempt offers; its cap, if it has none.
    pub max_fee: u128,
}

/// How old a lane's work is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneAge {
    /// The account.
    pub address: Address,
    /// Transactions that have a nonce and are not mined.
    pub flying: i64,
    /// When the oldest that waits, or is not mined, was accepted.
    pub oldest: Option<Timestamp>,
    /// Its lease, if it ever had one: who, until when by their clock.
    pub lease: Option<(HolderId, Timestamp)>,
}

/// What a transaction waits for, found by whoever works on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// One of the constants of this type, in kebab-case.
    pub code: String,
    /// For people.
    pub detail: String,
    /// Since when, without a break.
    pub since: Timestamp,
}

impl Wait {
    /// The account cannot pay for it.
    pub const UNFUNDED: &str = "unfunded";
    /// The base fee is above its fee cap.
    pub const BASE_FEE: &str = "base-fee-above-cap";
    /// No higher fee may be offered for it, and others of its lane wait behind it.
    pub const AT_CAP: &str = "at-fee-cap";
    /// Whether its source event still stands is not known now.
    pub const SOURCE: &str = "source-event";
}

/// Where a transaction stands in its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Of what has no nonce: how many were accepted before it and have none either. Of what has one: how many
    /// with a lower nonce are not mined.
    pub ahead: i64,
    /// How many transactions of the lane have a nonce and are not mined.
    pub flying: i64,
}
