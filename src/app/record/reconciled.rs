//! What an operator put right, as leaves.

use super::{finish, map, or_none};
use crate::app::reconcile::{Account, Lost, Standstill};
use crate::core::audit::{EncodedLeaf, Leaf, LeafKind, Value};
use crate::core::time::Timestamp;
use crate::ports::store::StoreError;
use alloy::primitives::B256;

/// The `RECONCILED` leaf of an account: what was found, and from which nonce its lane goes on.
///
/// # Errors
/// When the leaf would be too long.
pub fn reconciled_account(
    account: &Account,
    reason: &str,
    next: u64,
    at: Timestamp,
) -> Result<EncodedLeaf, StoreError> {
    let findings = account.findings.iter().map(|finding| {
        let (what, request) = finding.what.named();
        let hash = finding.mined.as_ref().map(|mined| format!("{:#x}", mined.hash));
        map([
            ("nonce", finding.nonce.into()),
            ("transaction_hash", or_none(hash)),
            ("what", if finding.is_chosen { "chosen" } else { what }.into()),
            ("request", or_none(request.or(finding.asked_by.filter(|_| finding.is_chosen)))),
        ])
    });
    // One text, so that any number of findings fits beside the leaf.
    let found = serde_json::to_string(&Value::List(findings.collect())).unwrap_or_default();
    let subject = format!("{}:{:#x}", account.chain.id, account.address);
    finish(
        Leaf::new(LeafKind::Reconciled, subject, at)
            .with("action", "account")
            .with("reason", reason)
            .with("halted", or_none(account.halted.as_ref()))
            .with("found", found)
            .with("next_nonce_before", account.next)
            .with("next_nonce", next),
    )
}

/// The `RECONCILED` leaf that states a signed checkpoint which the log does not continue.
///
/// # Errors
/// When the leaf would be too long.
pub fn checkpoint_lost(
    lost: &Lost,
    reason: &str,
    at: Timestamp,
) -> Result<EncodedLeaf, StoreError> {
    finish(
        Leaf::new(LeafKind::Reconciled, "audit", at)
            .with("action", "checkpoint_lost")
            .with("reason", reason)
            .with("lost_size", lost.size)
            .with("lost_root", &lost.root)
            .with("lost_checkpoint", &lost.note)
            .with("goes_on_from", lost.goes_on_from),
    )
}

/// The `RECONCILED` leaf of orphans that nobody will ask for any more.
///
/// # Errors
/// When the leaf would be too long.
pub fn orphans_closed(
    subject: &str,
    reason: &str,
    at: Timestamp,
) -> Result<EncodedLeaf, StoreError> {
    let leaf = Leaf::new(LeafKind::Reconciled, subject, at);
    finish(leaf.with("action", "orphans_closed").with("reason", reason))
}

/// The `RECONCILED` leaf after which the server goes on.
///
/// # Errors
/// When the leaf would be too long.
pub fn resumed(reason: &str, at: Timestamp) -> Result<EncodedLeaf, StoreError> {
    let leaf = Leaf::new(LeafKind::Reconciled, "database", at);
    finish(leaf.with("action", "resumed").with("reason", reason))
}

/// A chain that stood still goes on from this block.
///
/// # Errors
/// When the reason is too long for a leaf.
pub fn chain_resumed(
    still: &Standstill,
    from: Option<(u64, B256)>,
    reason: &str,
    at: Timestamp,
) -> Result<EncodedLeaf, StoreError> {
    let from = from.map(|(number, hash)| format!("{number} {hash:#x}"));
    finish(
        Leaf::new(LeafKind::Reconciled, still.chain.id, at)
            .with("action", "chain_resumed")
            .with("reason", reason)
            .with("halted", still.reason.as_str())
            .with("from_block", or_none(from)),
    )
}
