//! One look at a transaction that has a nonce: what the chain says, and what to do next.
//!
//! Pure: the caller reads the chain, asks [`step`], and performs the answer.

use crate::core::intent::{Fees, TxType};
use crate::core::time::Timestamp;
use crate::core::tx::fee::{self, Bump, Market};
use crate::core::tx::state::Status;
use alloy::primitives::B256;

/// One signed version, as far as deciding goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptView {
    /// From 1.
    pub number: i64,
    /// What the chain calls it.
    pub hash: B256,
    /// Its fees.
    pub fees: Fees,
    /// When it was signed.
    pub signed_at: Timestamp,
    /// When it was last sent, if ever.
    pub sent_at: Option<Timestamp>,
}

/// A transaction with a nonce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionView {
    /// Where it is.
    pub status: Status,
    /// Its nonce.
    pub nonce: u64,
    /// Its envelope.
    pub tx_type: TxType,
    /// The most that may be offered.
    pub cap: Fees,
    /// No new version is signed after this.
    pub not_after: Option<Timestamp>,
    /// All signed versions, in order.
    pub attempts: Vec<AttemptView>,
    /// The block it was last seen mined in.
    pub mined_in: Option<B256>,
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
    /// What the fee market asks for; needed only if a bump is due.
    pub market: Option<Market>,
}

/// Periods of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// An attempt that is not mined this long after it was signed is replaced, in milliseconds.
    pub resend_after_ms: i64,
    /// Bytes that were sent this long ago and are not mined are sent again, in milliseconds.
    pub rebroadcast_after_ms: i64,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing is due.
    Wait,
    /// It is mined (or mined in another block than before): record where.
    Mined(Inclusion),
    /// It was mined, and its block is gone: back to submitted, same bytes again.
    Reopen,
    /// The block is final: record the end and settle what was reserved.
    End {
        /// Where.
        inclusion: Inclusion,
        /// Finalized or reverted.
        status: Status,
    },
    /// Send the bytes of this attempt again.
    Rebroadcast(i64),
    /// Sign a replacement with the same nonce and these fees.
    Replace(Fees),
    /// A replacement is due and would be above the cap: same bytes again, and an alert.
    AtCap(i64),
    /// The nonce is final and none of our attempts is what used it.
    ForeignNonce,
}

/// Decides. `now` is our clock.
#[must_use]
pub fn step(now: Timestamp, tx: &TransactionView, look: &ChainLook, pace: Pace) -> Step {
    if let Some(found) = look.inclusion {
        if found.block_number <= look.final_number {
            let status = if found.success { Status::Finalized } else { Status::Reverted };
            return if tx.status == Status::Mined && tx.mined_in == Some(found.block_hash) {
                Step::End { inclusion: found, status }
            } else {
                Step::Mined(found)
            };
        }
        let news = tx.status != Status::Mined || tx.mined_in != Some(found.block_hash);
        return if news { Step::Mined(found) } else { Step::Wait };
    }
    if tx.status == Status::Mined {
        return if look.displaced { Step::Reopen } else { unseen(now, tx, look, pace) };
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
    match tx.attempts.last() {
        Some(last) if wanted && last.sent_at.is_none_or(due) => Step::Rebroadcast(last.number),
        _ => Step::Wait,
    }
}

fn resend(now: Timestamp, tx: &TransactionView, look: &ChainLook, pace: Pace) -> Step {
    let Some(last) = tx.attempts.last() else {
        return Step::Wait;
    };
    let Some(sent_at) = last.sent_at else {
        return Step::Rebroadcast(last.number);
    };
    // Mined by the head's count, but without a receipt yet: a node is behind. Nothing new is signed.
    if look.nonce_latest > tx.nonce {
        return Step::Wait;
    }
    let head_of_lane = look.nonce_latest == tx.nonce;
    let may_sign = tx.not_after.is_none_or(|limit| now <= limit);
    let overdue = now.since(last.signed_at) >= pace.resend_after_ms;
    let resend_due = now.since(sent_at) >= pace.rebroadcast_after_ms;
    if head_of_lane
        && overdue
        && may_sign
        && let Some(market) = &look.market
    {
        match fee::next(last.fees, market, tx.cap, tx.tx_type) {
            Bump::To(fees) => return Step::Replace(fees),
            Bump::AtCap if resend_due => return Step::AtCap(last.number),
            Bump::AtCap => {}
        }
    }
    if resend_due { Step::Rebroadcast(last.number) } else { Step::Wait }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace { resend_after_ms: 1000, rebroadcast_after_ms: 400 };

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    fn sent(signed_at: i64, sent_at: Option<i64>) -> TransactionView {
        let fees = Fees { max_fee: 100, max_priority_fee: 10 };
        TransactionView {
            status: Status::Submitted,
            nonce: 5,
            tx_type: TxType::Eip1559,
            cap: Fees { max_fee: 1000, max_priority_fee: 100 },
            not_after: None,
            attempts: vec![AttemptView {
                number: 1,
                hash: B256::repeat_byte(1),
                fees,
                signed_at: at(signed_at),
                sent_at: sent_at.map(at),
            }],
            mined_in: None,
        }
    }

    fn look() -> ChainLook {
        ChainLook {
            inclusion: None,
            displaced: false,
            nonce_latest: 5,
            nonce_final: Some(5),
            final_number: 10,
            market: Some(Market { base_fee: 50, tips: vec![5] }),
        }
    }

    fn included(number: u64) -> Inclusion {
        Inclusion {
            hash: B256::repeat_byte(1),
            block_hash: B256::repeat_byte(9),
            block_number: number,
            success: true,
        }
    }

    #[test]
    fn stored_bytes_that_were_never_sent_are_sent_before_anything_else() {
        assert_eq!(step(at(5000), &sent(0, None), &look(), PACE), Step::Rebroadcast(1));
    }

    #[test]
    fn the_head_of_the_lane_is_replaced_when_overdue_and_others_only_resent() {
        assert!(matches!(step(at(1000), &sent(0, Some(900)), &look(), PACE), Step::Replace(_)));
        assert_eq!(step(at(999), &sent(0, Some(900)), &look(), PACE), Step::Wait);
        let behind = ChainLook { nonce_latest: 4, ..look() };
        assert_eq!(step(at(2000), &sent(0, Some(900)), &behind, PACE), Step::Rebroadcast(1));
    }

    #[test]
    fn after_not_after_no_replacement_is_signed() {
        let tx = TransactionView { not_after: Some(at(500)), ..sent(0, Some(900)) };
        assert_eq!(step(at(2000), &tx, &look(), PACE), Step::Rebroadcast(1));
    }

    #[test]
    fn at_the_cap_the_same_bytes_go_out_again() {
        let cap = Fees { max_fee: 105, max_priority_fee: 100 };
        let tx = TransactionView { cap, ..sent(0, Some(100)) };
        assert_eq!(step(at(2000), &tx, &look(), PACE), Step::AtCap(1));
    }

    #[test]
    fn a_count_ahead_of_the_receipts_signs_nothing() {
        let look = ChainLook { nonce_latest: 6, ..look() };
        assert_eq!(step(at(9000), &sent(0, Some(0)), &look, PACE), Step::Wait);
    }

    #[test]
    fn an_end_is_told_only_for_the_recorded_block_once_it_is_final() {
        let mut tx = sent(0, Some(0));
        let look = ChainLook { inclusion: Some(included(10)), nonce_latest: 6, ..look() };
        assert_eq!(step(at(1), &tx, &look, PACE), Step::Mined(included(10)));
        tx.status = Status::Mined;
        tx.mined_in = Some(B256::repeat_byte(9));
        let end = step(at(2), &tx, &look, PACE);
        assert_eq!(end, Step::End { inclusion: included(10), status: Status::Finalized });
        let young = ChainLook { final_number: 9, ..look };
        assert_eq!(step(at(3), &tx, &young, PACE), Step::Wait);
    }

    #[test]
    fn a_vanished_block_reopens_and_a_foreign_final_nonce_is_told() {
        let mut tx = sent(0, Some(0));
        tx.status = Status::Mined;
        tx.mined_in = Some(B256::repeat_byte(9));
        assert_eq!(step(at(1), &tx, &look(), PACE), Step::Wait, "the node is behind");
        let later = step(at(9000), &tx, &look(), PACE);
        assert_eq!(later, Step::Rebroadcast(1), "never a replacement");
        let foreign = ChainLook { nonce_final: Some(6), nonce_latest: 6, ..look() };
        assert_eq!(step(at(1), &tx, &foreign, PACE), Step::Wait, "only the receipt is behind");
        for look in [look(), foreign.clone()] {
            let look = ChainLook { displaced: true, ..look };
            assert_eq!(step(at(1), &tx, &look, PACE), Step::Reopen, "{look:?}");
        }
        let sent = sent(0, Some(0));
        assert_eq!(step(at(1), &sent, &foreign, PACE), Step::ForeignNonce);
        let unknown = ChainLook { nonce_final: None, ..foreign };
        assert_eq!(step(at(1), &sent, &unknown, PACE), Step::Wait);
    }
}
