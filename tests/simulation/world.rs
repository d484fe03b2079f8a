//! One lane of transactions over the simulated chain: the database as it is after each commit, and the
//! order of steps of the real use cases. A crash is a step that is not taken.

use crate::chain::{Chain, Said, Signed};
use crate::random::Random;
use alloy::primitives::B256;
use claviger::core::intent::{Fees, TxType};
use claviger::core::time::Timestamp;
use claviger::core::tx::fee;
use claviger::core::tx::state::{Ending, Status};
use claviger::core::tx::step::{
    AttemptView, ChainLook, Inclusion, Pace, Step, TransactionView, sendable, sped_up, step,
};

pub const PACE: Pace = Pace {
    resend_after_ms: 1000,
    rebroadcast_after_ms: 400,
    refused_patience_ms: 3000,
    cap_patience_ms: 60_000,
};
const CHAIN_CAP: Fees = Fees { max_fee: 1000, max_priority_fee: 100 };

/// A transaction as it is stored.
pub struct Row {
    pub view: TransactionView,
    pub succeeds: bool,
    pub refused: bool,
    /// What the last look recorded, with the attempt that is mined.
    pub mined: Option<Inclusion>,
}

pub struct World {
    pub random: Random,
    pub chain: Chain,
    pub now: i64,
    pub rows: Vec<Row>,
    /// Every version that was ever sent.
    pub sent: Vec<Signed>,
    /// Whether faults happen, or all is quiet.
    pub faults: bool,
    pub reorgs: u64,
    pub no_ops: u64,
}

fn hash_of(nonce: u64, number: i64) -> B256 {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&nonce.to_be_bytes());
    hash[24..].copy_from_slice(&number.to_be_bytes());
    hash.into()
}

impl World {
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            chain: Chain::new(),
            now: 0,
            rows: Vec::new(),
            sent: Vec::new(),
            faults: true,
            reorgs: 0,
            no_ops: 0,
        }
    }

    fn at(&self) -> Timestamp {
        Timestamp::from_millis(self.now)
    }

    fn crashes(&mut self) -> bool {
        self.faults && self.random.one_in(12)
    }

    /// Accepts a request and gives it the next nonce: the first decision.
    pub fn accept(&mut self) {
        let cap = Fees { max_fee: 60 + u128::from(self.random.below(900)), ..CHAIN_CAP };
        let tx_type = match self.random.below(3) {
            0 => TxType::Legacy,
            _ => TxType::Eip1559,
        };
        let fees = fee::first(&self.chain.market(), cap, tx_type);
        let not_after = self
            .random
            .one_in(6)
            .then(|| Timestamp::from_millis(self.now + 500 + self.random.below(8000) as i64));
        let mut row = Row {
            view: TransactionView {
                status: Status::Submitted,
                ending: None,
                nonce: self.rows.len() as u64,
                tx_type,
                no_op_type: TxType::Eip1559,
                cap,
                chain_cap: CHAIN_CAP,
                not_after,
                attempts: Vec::new(),
                mined_in: None,
                blocks_others: false,
                capped_since: None,
            },
            succeeds: !self.random.one_in(8),
            refused: self.random.one_in(15),
            mined: None,
        };
        row.view.attempts.push(decided(&row, false, fees));
        self.rows.push(row);
        let index = self.rows.len() - 1;
        self.sign_and_send(index, 1);
    }

    /// An operator's word.
    pub fn intervene(&mut self, index: usize) {
        let now = self.at();
        let market = self.chain.market();
        let row = &mut self.rows[index];
        if row.view.status == Status::Submitted && self.random.one_in(2) {
            row.view.status = Status::Cancelling;
            row.view.ending = Some(Ending::Cancelled);
        } else if !row.view.status.is_end()
            && row.view.mined_in.is_none()
            && let Some(fees) = sped_up(now, &row.view, &market)
        {
            let no_op = row.view.ending.is_some();
            self.decide(index, no_op, fees);
        }
    }

    fn decide(&mut self, index: usize, no_op: bool, fees: Fees) {
        let row = &mut self.rows[index];
        let attempt = decided(row, no_op, fees);
        self.no_ops += u64::from(no_op);
        let number = attempt.number;
        row.view.attempts.push(attempt);
        if !self.crashes() {
            self.sign_and_send(index, number);
        }
    }

    /// Signs what was decided; a crash or a silent HSM leaves it for later.
    pub fn sign_and_send(&mut self, index: usize, number: i64) {
        if self.crashes() {
            return;
        }
        let now = self.at();
        let row = &mut self.rows[index];
        let is_ending = row.view.ending.is_some();
        let not_after = row.view.not_after;
        let attempt = row.view.attempts.iter_mut().find(|it| it.number == number).unwrap();
        if attempt.signed_at.is_none() {
            let is_late = not_after.is_some_and(|limit| now > limit);
            if (is_ending || is_late) && !attempt.no_op {
                return;
            }
            attempt.signed_at = Some(now);
            attempt.hash = Some(hash_of(row.view.nonce, number));
        }
        if !self.crashes() {
            self.send(index, number);
        }
    }

    /// After a restart: what was decided is signed.
    pub fn recover(&mut self) {
        for index in 0..self.rows.len() {
            let row = &self.rows[index];
            let waits = |it: &&AttemptView| it.signed_at.is_none();
            let numbers: Vec<i64> =
                row.view.attempts.iter().filter(waits).map(|it| it.number).collect();
            for number in numbers {
                self.sign_and_send(index, number);
            }
        }
    }

    fn send(&mut self, index: usize, number: i64) {
        let row = &self.rows[index];
        let attempt = row.view.attempts.iter().find(|it| it.number == number).unwrap().clone();
        assert!(attempt.signed_at.is_some(), "only signed bytes are sent");
        assert!(row.view.ending.is_none() || attempt.no_op, "a payload is sent after its end");
        let tx = Signed {
            hash: attempt.hash.unwrap(),
            nonce: row.view.nonce,
            fees: attempt.fees,
            succeeds: attempt.no_op || row.succeeds,
            refused: row.refused && !attempt.no_op,
        };
        // Lost on the way there, or on the way back: nobody can tell.
        let arrives = !(self.faults && self.random.one_in(10));
        let mut said = if arrives { self.chain.send(tx) } else { Said::Nothing };
        if arrives {
            self.sent.push(tx);
        }
        if self.faults && self.random.one_in(10) {
            said = Said::Nothing;
        }
        if self.crashes() {
            return;
        }
        let now = self.at();
        let attempts = &mut self.rows[index].view.attempts;
        let stored = attempts.iter_mut().find(|it| it.number == number).unwrap();
        stored.sent_at = Some(now);
        stored.accepted |= said == Said::Taken;
        match said {
            Said::Nothing => {}
            Said::Refused => {
                stored.refused_since = stored.refused_since.or(Some(now));
                stored.refused_at = Some(now);
            }
            Said::Taken | Said::Underpriced | Said::NonceTooLow => {
                stored.refused_since = None;
                stored.refused_at = None;
            }
        }
    }

    /// A node's height as it is for one question: nodes behind one address are not equally far.
    fn lag(&mut self) -> u64 {
        let lag = if self.faults && self.random.one_in(3) { self.random.below(4) } else { 0 };
        self.chain.height().saturating_sub(lag)
    }

    /// One look at one transaction, as `follow` does it.
    pub fn follow(&mut self, index: usize) {
        if self.rows[index].view.status.is_end() {
            return;
        }
        let final_number = self.chain.final_number().min(self.lag());
        let count_at = self.lag();
        let nonce_latest = self.chain.nonce_at(count_at);
        let row = &self.rows[index];
        let looks_mined = nonce_latest > row.view.nonce || row.view.mined_in.is_some();
        let hashes: Vec<B256> = row.view.attempts.iter().rev().filter_map(|it| it.hash).collect();
        let (receipts_at, mut inclusion) = (self.lag(), None);
        if looks_mined {
            inclusion = hashes.iter().find_map(|hash| {
                let (number, block, tx) = self.chain.find(*hash, receipts_at)?;
                Some(Inclusion {
                    hash: tx.hash,
                    block_hash: block,
                    block_number: number,
                    success: tx.succeeds,
                })
            });
        }
        // A node that is not as far as that block says nothing about it.
        let seen_at = self.lag();
        let displaced = inclusion.is_none()
            && self.rows[index].mined.is_some_and(|found| {
                let there = self.chain.hash_at(found.block_number, seen_at);
                there.is_some_and(|hash| hash != found.block_hash)
            });
        let has_market = !(self.faults && self.random.one_in(5));
        let look = ChainLook {
            inclusion,
            displaced,
            nonce_latest,
            nonce_final: Some(self.chain.nonce_at(final_number)),
            final_number,
            market: has_market.then(|| self.chain.market()),
        };
        let due = step(self.at(), &self.rows[index].view, &look, PACE);
        if !self.crashes() {
            self.perform(index, due);
        }
    }

    fn perform(&mut self, index: usize, due: Step) {
        match due {
            Step::Wait => {}
            Step::Rebroadcast(number) | Step::AtCap(number) => self.send(index, number),
            Step::Replace(fees) => self.decide(index, false, fees),
            Step::NoOp(ending, fees) => {
                let view = &mut self.rows[index].view;
                view.ending = view.ending.or(Some(ending));
                self.change(index, Status::Cancelling, None);
                self.decide(index, true, fees);
            }
            Step::Mined(found, status) => self.change(index, status, Some(found)),
            Step::Reopen(status) => {
                self.change(index, status, None);
                let view = &self.rows[index].view;
                let newest = sendable(self.at(), view, PACE).map(|attempt| attempt.number);
                if let Some(number) = newest.filter(|_| !self.crashes()) {
                    self.send(index, number);
                }
            }
            Step::End { inclusion, status } => self.change(index, status, Some(inclusion)),
            // A node that is behind with its receipts: the server waits a minute before it believes it.
            Step::ForeignNonce => {}
        }
    }

    fn change(&mut self, index: usize, status: Status, mined: Option<Inclusion>) {
        let row = &mut self.rows[index];
        let before = row.view.status;
        assert!(
            before == status || before.may_become(status),
            "{before} cannot become {status} (nonce {index})"
        );
        row.view.status = status;
        row.view.mined_in = mined.map(|found| found.block_hash);
        row.mined = mined;
    }
}

fn decided(row: &Row, no_op: bool, fees: Fees) -> AttemptView {
    let last = row.view.attempts.last();
    if let Some(last) = last {
        assert!(fees.max_fee >= fee::minimum(last.fees.max_fee), "it outbids the one before");
        assert!(fees.max_priority_fee >= fee::minimum(last.fees.max_priority_fee));
    }
    let cap = if no_op { fee::minimum(CHAIN_CAP.max_fee) } else { row.view.cap.max_fee };
    assert!(fees.max_fee <= cap, "{fees:?} is above the cap {cap}");
    assert!(no_op || row.view.ending.is_none(), "a payload after its end was decided");
    AttemptView {
        number: last.map_or(1, |last| last.number + 1),
        no_op,
        fees,
        hash: None,
        signed_at: None,
        sent_at: None,
        accepted: false,
        unfunded: false,
        refused_since: None,
        refused_at: None,
    }
}
