//! One look at a transaction that has a nonce: what the chain says, and what to do next.
//!
//! Pure: the caller reads the chain, asks [`step`], and performs the answer.

use crate::core::intent::{Fees, TxType};
use crate::core::time::Timestamp;
use crate::core::tx::fee::{self, Bump, Market};
use crate::core::tx::state::{Ending, Status};
use alloy::primitives::B256;

/// One version that was decided, signed or not, as far as deciding goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptView {
    /// From 1.
    pub number: i64,
    /// Whether it is the request's no-op, and not what was asked.
    pub no_op: bool,
    /// Its fees.
    pub fees: Fees,
    /// What the chain calls it, once signed.
    pub hash: Option<B256>,
    /// When it was signed.
    pub signed_at: Option<Timestamp>,
    /// When it was last sent, if ever.
    pub sent_at: Option<Timestamp>,
    /// Whether a node ever took it.
    pub accepted: bool,
    /// Whether the nodes said last that the account cannot pay for it.
    pub unfunded: bool,
    /// Since when the nodes have refused it for a reason of its own, each time they answered.
    pub refused_since: Option<Timestamp>,
    /// When they refused it last.
    pub refused_at: Option<Timestamp>,
}

/// A transaction with a nonce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionView {
    /// Where it is.
    pub status: Status,
    /// Why a no-op is to take its nonce, if one is.
    pub ending: Option<Ending>,
    /// Its nonce.
    pub nonce: u64,
    /// Its envelope.
    pub tx_type: TxType,
    /// The envelope of a no-op.
    pub no_op_type: TxType,
    /// The most that may be offered for what was asked.
    pub cap: Fees,
    /// The most that may be offered on the chain for anything.
    pub chain_cap: Fees,
    /// No new version is signed after this.
    pub not_after: Option<Timestamp>,
    /// All versions, in order.
    pub attempts: Vec<AttemptView>,
    /// The block it was last seen mined in.
    pub mined_in: Option<B256>,
    /// Whether others of its lane wait behind it, for their block or for a nonce. Asked only of a head that
    /// [`may_block`].
    pub blocks_others: bool,
    /// Since when it was found to keep them waiting at its fee cap, without a break.
    pub capped_since: Option<Timestamp>,
}

/// A receipt of one of the attempts, whose block was found canonical.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inclusion {
    /// Which attempt.
    pub hash: B256,
    /// In which block.
    pub block_hash: B256,
    /// The block's height.
    pub block_number: u64,
    /// Whether execution succeeded.
    pub success: bool,
}

/// What the chain says about it, read in one look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainLook {
    /// The receipt of whichever attempt is mined in a canonical block.
    pub inclusion: Option<Inclusion>,
    /// Another block stands where it was last seen mined. A node that has no receipt, or no block at that
    /// height, is only behind.
    pub displaced: bool,
    /// The account's nonce at the head: how many of its transactions are mined.
    pub nonce_latest: u64,
    /// The account's nonce at the newest final block; `None` if it was not needed or not to be had.
    pub nonce_final: Option<u64>,
    /// The newest final block's height.
    pub final_number: u64,
    /// What the fee market asks for; needed only if a new version is due.
    pub market: Option<Market>,
}

/// Periods of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// An attempt that is not mined this long after it was signed is replaced, in milliseconds.
    pub resend_after_ms: i64,
    /// Bytes that were sent this long ago and are not mined are sent again, in milliseconds.
    pub rebroadcast_after_ms: i64,
    /// What the nodes refused, and refuse still so much later, in milliseconds, they refuse for good.
    pub refused_patience_ms: i64,
    /// A head that can offer no more, and has kept others of its lane waiting for so long, gives way to a
    /// no-op, in milliseconds.
    pub cap_patience_ms: i64,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing is due.
    Wait,
    /// It is mined (or mined in another block than before): record where. `Mined`, or `Cancelling` if it
    /// is the no-op.
    Mined(Inclusion, Status),
    /// It was mined, and its block is gone: back to submitted (or cancelling), same bytes again.
    Reopen(Status),
    /// The block is final: record the end and settle what was reserved.
    End {
        /// Where.
        inclusion: Inclusion,
        /// Finalized or reverted; with a no-op in the block, what the no-op was for.
        status: Status,
    },
    /// Send the bytes of this attempt again.
    Rebroadcast(i64),
    /// Sign a replacement with the same nonce and these fees.
    Replace(Fees),
    /// Sign a no-op with the same nonce and these fees, for this reason.
    NoOp(Ending, Fees),
    /// A replacement is due and would be above the cap: same bytes again, and an alert.
    AtCap(i64),
    /// The nonce is final and none of our attempts is what used it.
    ForeignNonce,
}

/// Decides. `now` is our clock.
#[must_use]
pub fn step(now: Timestamp, tx: &TransactionView, look: &ChainLook, pace: Pace) -> Step {
    if let Some(found) = look.inclusion {
        return included(tx, look, found);
    }
    if tx.mined_in.is_some() {
        if look.displaced {
            return Step::Reopen(unmined(tx));
        }
        let is_final = look.nonce_final.is_some_and(|used| used > tx.nonce);
        return if is_final { Step::ForeignNonce } else { unseen(now, tx, look, pace) };
    }
    if look.nonce_final.is_some_and(|used| used > tx.nonce) {
        return Step::ForeignNonce;
    }
    resend(now, tx, look, pace)
}

/// Mined, as far as we know, and this node has neither its receipt nor another block in its place: it is
/// behind, or its chain became shorter. The same bytes again hurt nobody, and nothing new is signed.
fn unseen(now: Timestamp, tx: &TransactionView, look: &ChainLook, pace: Pace) -> Step {
    let wanted = look.nonce_latest <= tx.nonce;
    let due = |sent_at: Timestamp| now.since(sent_at) >= pace.rebroadcast_after_ms;
    match sendable(now, tx, pace) {
        Some(newest) if wanted && newest.sent_at.is_none_or(due) => {
            Step::Rebroadcast(newest.number)
        }
        _ => Step::Wait,
    }
}

const fn unmined(tx: &TransactionView) -> Status {
    match tx.ending {
        None => Status::Submitted,
        Some(_) => Status::Cancelling,
    }
}

fn included(tx: &TransactionView, look: &ChainLook, found: Inclusion) -> Step {
    let no_op = tx.attempts.iter().any(|it| it.no_op && it.hash == Some(found.hash));
    // A no-op is never told as mined: a caller would take it for what it asked.
    let mined = if no_op { Status::Cancelling } else { Status::Mined };
    if tx.status != mined || tx.mined_in != Some(found.block_hash) {
        return Step::Mined(found, mined);
    }
    if found.block_number > look.final_number {
        return Step::Wait;
    }
    let status = match (no_op, found.success) {
        (true, _) => tx.ending.unwrap_or(Ending::Cancelled).status(),
        (false, true) => Status::Finalized,
        (false, false) => Status::Reverted,
    };
    Step::End { inclusion: found, status }
}

/// Why a no-op should take the nonce now: it was said before, or its time is over, or the nodes refused it
/// and refuse it still, and no version of it was ever taken by one of them, or it has kept others waiting at
/// its fee cap for too long.
#[must_use]
pub fn ending(now: Timestamp, tx: &TransactionView, pace: Pace) -> Option<Ending> {
    let expired = || tx.not_after.filter(|limit| now > *limit).map(|_| Ending::Expired);
    let refused = || {
        let last = tx.attempts.last().filter(|last| !last.no_op)?;
        let (since, again) = (last.refused_since?, last.refused_at?);
        let is_lasting = again.since(since) >= pace.refused_patience_ms;
        let was_taken = tx.attempts.iter().any(|attempt| attempt.accepted);
        (is_lasting && !was_taken).then_some(Ending::Failed)
    };
    let outpriced = || {
        let last = tx.attempts.last().filter(|_| tx.blocks_others)?;
        // Its bytes went out again after all that time, and still it is not mined.
        let waited = last.sent_at?.since(tx.capped_since?);
        (waited >= pace.cap_patience_ms).then_some(Ending::Outpriced)
    };
    tx.ending.or_else(expired).or_else(refused).or_else(outpriced)
}

/// Whether it is a head that was not mined in time and can offer no more: if others of its lane wait behind
/// it, they wait for a market that may never come. A version that waits for its signature, that the account
/// cannot pay for, or that the nodes refuse, waits for something else.
#[must_use]
pub fn may_block(now: Timestamp, tx: &TransactionView, nonce_latest: u64, pace: Pace) -> bool {
    let Some(last) = tx.attempts.last() else {
        return false;
    };
    tx.ending.is_none()
        && tx.mined_in.is_none()
        && !last.no_op
        && is_overdue(now, tx, nonce_latest, pace)
        && fee::is_at_cap(last.fees, tx.cap, tx.tx_type)
}

/// Whether its fee cap is too low for this market, and not the chain that makes no blocks, and a no-op could be
/// mined in its place: else nobody would be helped by its end.
#[must_use]
pub fn is_outpriced(tx: &TransactionView, market: &Market) -> bool {
    let usual = fee::median(&market.tips).unwrap_or(0);
    let cap_tip = match tx.tx_type {
        TxType::Eip1559 => tx.cap.max_priority_fee,
        TxType::Legacy | TxType::Eip2930 => tx.cap.max_fee,
    };
    let tip = tx.cap.max_fee.checked_sub(market.base_fee).map(|room| room.min(cap_tip));
    let is_too_low = tip.is_none_or(|tip| tip < usual);
    is_too_low && no_op_cap(tx).max_fee >= market.base_fee
}

/// The newest version that may be sent: once a no-op is to take the nonce, only that. One that the nodes
/// refuse gives way to an older one that they took.
#[must_use]
pub fn sendable(now: Timestamp, tx: &TransactionView, pace: Pace) -> Option<&AttemptView> {
    let ends = ending(now, tx, pace).is_some();
    let wanted = |it: &&AttemptView| it.signed_at.is_some() && (!ends || it.no_op);
    let newest = || tx.attempts.iter().rev().filter(wanted);
    newest().find(|it| it.refused_since.is_none()).or_else(|| newest().next())
}

fn resend(now: Timestamp, tx: &TransactionView, look: &ChainLook, pace: Pace) -> Step {
    let Some(last) = tx.attempts.last() else {
        return Step::Wait;
    };
    // Mined by the head's count, but without a receipt yet: a node is behind. Nothing new is signed.
    let is_used = look.nonce_latest > tx.nonce;
    let ending = ending(now, tx, pace);
    if let (Some(ending), false, false, Some(market)) = (ending, last.no_op, is_used, &look.market)
        && let Bump::To(fees) = fee::next(last.fees, market, no_op_cap(tx), tx.no_op_type)
    {
        return Step::NoOp(ending, fees);
    }
    let Some(newest) = sendable(now, tx, pace) else {
        return Step::Wait;
    };
    let Some(sent_at) = newest.sent_at else {
        return Step::Rebroadcast(newest.number);
    };
    if is_used {
        return Step::Wait;
    }
    let resend_due = now.since(sent_at) >= pace.rebroadcast_after_ms;
    if is_overdue(now, tx, look.nonce_latest, pace)
        && let Some(market) = &look.market
    {
        let (cap, tx_type) =
            if last.no_op { (no_op_cap(tx), tx.no_op_type) } else { (tx.cap, tx.tx_type) };
        // A no-op that the nodes refuse and never took is in no pool: the next need not outbid it.
        let is_free = last.no_op
            && last.refused_since.is_some()
            && !last.accepted
            && last.fees == last.fees.at_most(cap);
        match (fee::next(last.fees, market, cap, tx_type), ending) {
            (Bump::To(fees), Some(ending)) => return Step::NoOp(ending, fees),
            (Bump::AtCap, Some(ending)) if is_free && resend_due => {
                return Step::NoOp(ending, last.fees);
            }
            (Bump::To(fees), None) => return Step::Replace(fees),
            (Bump::AtCap, _) if resend_due => return Step::AtCap(newest.number),
            (Bump::AtCap, _) => {}
        }
    }
    if resend_due { Step::Rebroadcast(newest.number) } else { Step::Wait }
}

/// Whether the head of the lane has waited so long that it is to be outbid. A version that waits for its
/// signature, that the account cannot pay for, or that the nodes refuse whatever it offers, is not. (A no-op
/// that is refused is decided anew, with the gas that it needs then.)
fn is_overdue(now: Timestamp, tx: &TransactionView, nonce_latest: u64, pace: Pace) -> bool {
    let may_help = |it: &&AttemptView| !it.unfunded && (it.no_op || it.refused_since.is_none());
    let signed_at = tx.attempts.last().filter(may_help).and_then(|it| it.signed_at);
    let waited = signed_at.is_some_and(|at| now.since(at) >= pace.resend_after_ms);
    waited && nonce_latest == tx.nonce
}

/// No-ops have a cap of their own, so that a head at its cap can always be outbid: 110 % of the chain's
/// cap, or of the highest fee that was ever decided for what was asked. Their tip may be twice the highest,
/// so that a tip at its cap does not keep the fee from being raised again.
fn no_op_cap(tx: &TransactionView) -> Fees {
    let asked = tx.attempts.iter().filter(|attempt| !attempt.no_op).map(|attempt| attempt.fees);
    let highest = asked.fold(tx.chain_cap, |highest, fees| Fees {
        max_fee: highest.max_fee.max(fees.max_fee),
        max_priority_fee: highest.max_priority_fee.max(fees.max_priority_fee),
    });
    Fees {
        max_fee: fee::minimum(highest.max_fee),
        max_priority_fee: highest.max_priority_fee.saturating_mul(2),
    }
}

/// The next fees that an operator who cannot wait may offer; `None` at the cap, or where nothing new may
/// be signed now.
#[must_use]
pub fn sped_up(now: Timestamp, tx: &TransactionView, market: &Market) -> Option<Fees> {
    let last = tx.attempts.last().filter(|last| last.signed_at.is_some())?;
    let (cap, tx_type) = match (tx.ending, last.no_op) {
        (Some(_), true) => (no_op_cap(tx), tx.no_op_type),
        // Its no-op is about to be decided, or it may not be signed any more.
        (Some(_), false) => return None,
        (None, _) if tx.not_after.is_some_and(|limit| now > limit) => return None,
        (None, _) => (tx.cap, tx.tx_type),
    };
    match fee::next(last.fees, market, cap, tx_type) {
        Bump::To(fees) => Some(fees),
        Bump::AtCap => None,
    }
}

#[cfg(test)]
#[path = "step_tests.rs"]
mod tests;
