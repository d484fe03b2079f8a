//! What a database holds that waits for an operator.

use super::{Store, StoreError, look};
use crate::core::amount::Amount;
use crate::core::id::ChainId;
use crate::core::time::Timestamp;
use alloy::primitives::{Address, B256, Bytes};

/// Name of the row of `meta` that says which copy of the database was served last, see `Store::identity`.
pub const DATABASE_IDENTITY: &str = "database_identity";

/// Which copy of the database was served last, by its own word.
///
/// # Errors
/// When the store does not answer.
pub async fn known_identity(store: &dyn Store) -> Result<Option<String>, StoreError> {
    look(store, "database_identity", |unit| {
        Box::pin(async move { unit.meta(DATABASE_IDENTITY).await })
    })
    .await
}

/// Why a server waits whose database became another copy.
#[must_use]
pub fn other_copy(found: &str, before: &str) -> String {
    format!(
        "the database is another copy than the one that was served before (system and timeline {found}, \
         before {before}): it was restored, or a replica was promoted"
    )
}

/// Why nothing is signed and no nonce is given until an operator has run `claviger reconcile`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspension {
    /// In words.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
}

/// A mined transaction of an account of ours that no request made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// The chain.
    pub chain: ChainId,
    /// The account.
    pub address: Address,
    /// Its nonce.
    pub nonce: u64,
    /// Its hash.
    pub hash: B256,
    /// The recipient; `None` created a contract.
    pub to: Option<Address>,
    /// Native value.
    pub value: Amount,
    /// Calldata.
    pub data: Bytes,
    /// The signed envelope, if it is of a type that we sign: others are never claimed.
    pub raw: Option<Bytes>,
    /// The request that has it, or `closed`.
    pub claimed_by: Option<String>,
}

/// What a transaction pays, whoever pays it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payment {
    /// The chain.
    pub chain: ChainId,
    /// The recipient; `None` creates a contract.
    pub to: Option<Address>,
    /// Native value.
    pub value: Amount,
    /// Calldata.
    pub data: Bytes,
}
