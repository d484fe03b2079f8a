//! Three lanes over the simulated chain: the database as it is after each commit, and the order of steps of
//! the real use cases. A crash is a step that is not taken; what was committed before it stays.

use crate::chain::{ACCOUNTS, Chain, Content, Said, Signed, UNIT};
use crate::laws;
use crate::nodes::Bad;
use crate::random::Random;
use alloy::primitives::B256;
use claviger::core::intent::{Fees, TxType};
use claviger::core::time::Timestamp;
use claviger::core::tx::state::{Ending, Status};
use claviger::core::tx::step::{
    AttemptView, ChainLook, Inclusion, Pace, Step, TransactionView, step,
};
use std::collections::BTreeMap;

pub const PACE: Pace = Pace {
    resend_after_ms: 1000,
    rebroadcast_after_ms: 400,
    refused_patience_ms: 3000,
    cap_patience_ms: 8_000,
};
pub const CHAIN_CAP: Fees = Fees { max_fee: 1000 * UNIT, max_priority_fee: 10 * UNIT };
/// What an account has at first.
pub const DEPOSIT: u128 = 20_000 * UNIT;

/// Why a run, or a process, goes no further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The process died.
    Crash,
    /// Something that must hold does not.
    Broken(String),
}

pub type Done = Result<(), Stop>;

/// What is tested. A test that must see the laws at work puts something wrong in its place.
#[derive(Clone, Copy)]
pub struct Core {
    pub step: fn(Timestamp, &TransactionView, &ChainLook, Pace) -> Step,
    /// The nonce of a version, the no-op or not.
    pub nonce: fn(&TransactionView, bool) -> u64,
    /// Whether what makes an end is asked of a second node.
    pub is_careful: bool,
    /// Whether others of a request's lane wait, too.
    pub others_wait: fn(&World, usize) -> bool,
}

impl Core {
    /// The program's own.
    pub const OURS: Self =
        Self { step, nonce: |tx, _| tx.nonce, is_careful: true, others_wait: laws::others_wait };
}

/// A request as it is stored. Before it has a nonce, that of its view says nothing.
pub struct Request {
    pub account: usize,
    pub value: u128,
    pub view: TransactionView,
    pub has_nonce: bool,
    pub version: u64,
    /// What the last look recorded, with the attempt that is mined.
    pub mined: Option<Inclusion>,
    pub succeeds: bool,
    /// Whether the nodes refuse what is asked, for good.
    pub refused: bool,
    /// Its nonce was used by a stranger, and an operator has seen it.
    pub is_stranded: bool,
}

impl Request {
    pub fn is_open(&self) -> bool {
        !self.view.status.is_end() && !self.is_stranded
    }

    pub fn attempt(&mut self, number: i64) -> Option<&mut AttemptView> {
        self.view.attempts.iter_mut().find(|it| it.number == number)
    }

    /// Whether it counts as in flight.
    pub fn is_flying(&self) -> bool {
        let status = matches!(self.view.status, Status::Submitted | Status::Cancelling);
        self.has_nonce && !self.is_stranded && status && self.mined.is_none()
    }
}

#[derive(Default)]
pub struct Lane {
    pub next_nonce: u64,
    pub is_halted: bool,
    /// Nonces that strangers took before they were given.
    pub skipped: Vec<u64>,
    /// Whether this process has compared it with the chain.
    pub is_checked: bool,
}

/// A worker that looked, decided, and has not done it yet.
pub struct Late {
    pub index: usize,
    pub version: u64,
    pub due: Step,
}

pub struct World {
    pub core: Core,
    pub random: Random,
    pub chain: Chain,
    pub clock: i64,
    /// How wrong our clock is.
    pub skew: i64,
    pub lanes: [Lane; ACCOUNTS],
    pub requests: Vec<Request>,
    pub late: Vec<Late>,
    /// Since when the chain says that a stranger used a request's nonce; forgotten with the process.
    pub foreign: BTreeMap<usize, Timestamp>,
    /// Every version that a node ever had.
    pub sent: Vec<Signed>,
    /// Whose each nonce is: kept beside the database, and compared with it.
    pub owners: BTreeMap<(usize, u64), usize>,
    pub bad: Option<Bad>,
    /// Whether faults happen, or all is quiet.
    pub faults: bool,
    pub counts: BTreeMap<&'static str, u64>,
    /// What happened, if it is to be told.
    pub log: Option<Vec<String>>,
}

impl World {
    pub fn new(core: Core, seed: u64, is_told: bool) -> Self {
        Self {
            core,
            random: Random::new(seed),
            chain: Chain::new(DEPOSIT),
            clock: 1_000_000,
            skew: 0,
            lanes: std::array::from_fn(|_| Lane::default()),
            requests: Vec::new(),
            late: Vec::new(),
            foreign: BTreeMap::new(),
            sent: Vec::new(),
            owners: BTreeMap::new(),
            bad: None,
            faults: true,
            counts: BTreeMap::new(),
            log: is_told.then(Vec::new),
        }
    }

    pub fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.clock + self.skew)
    }

    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Tells the log, if there is one.
    pub fn say(&mut self, what: impl FnOnce(&Self) -> String) {
        if self.log.is_some() {
            let told = format!("{:>8} {}", self.clock + self.skew, what(self));
            self.log.iter_mut().for_each(|log| log.push(told.clone()));
        }
    }

    /// One chance in so many while faults happen.
    pub fn fault(&mut self, n: u64) -> bool {
        self.faults && self.random.one_in(n)
    }

    /// Perhaps the process dies here.
    pub fn crash(&mut self, place: &'static str) -> Done {
        if !self.fault(20) {
            return Ok(());
        }
        self.count(place);
        self.say(|_| format!("CRASH, {place}"));
        Err(Stop::Crash)
    }

    /// A new process has nothing but the database.
    pub fn restart(&mut self) {
        self.foreign.clear();
        self.late.clear();
        self.lanes.iter_mut().for_each(|lane| lane.is_checked = false);
    }

    /// Whether the row is as it was when it was looked at: the compare of compare-and-swap.
    pub fn is_current(&mut self, index: usize, version: u64) -> bool {
        let is_current = self.requests[index].version == version;
        if !is_current {
            self.count("late workers that changed nothing");
            self.say(|_| format!("request {index}: too late, it has moved on"));
        }
        is_current
    }

    /// Decides a version, in one commit; then signs and sends it.
    pub fn decide(&mut self, index: usize, no_op: Option<Ending>, fees: Fees) -> Done {
        if !self.requests[index].view.attempts.is_empty() {
            // The first is decided in the commit that gives the nonce.
            self.crash("crashes before a decision")?;
        }
        let request = &mut self.requests[index];
        if let Some(ending) = no_op {
            request.view.ending = request.view.ending.or(Some(ending));
            request.view.status = Status::Cancelling;
        }
        laws::version(request, no_op.is_some(), fees).map_err(Stop::Broken)?;
        let number = request.view.attempts.last().map_or(1, |last| last.number + 1);
        request.version += 1;
        request.view.attempts.push(AttemptView {
            number,
            no_op: no_op.is_some(),
            fees,
            hash: None,
            signed_at: None,
            sent_at: None,
            accepted: false,
            unfunded: false,
            refused_since: None,
            refused_at: None,
        });
        match (no_op, number) {
            (Some(_), _) => self.count("no-ops"),
            (None, 1) => {}
            (None, _) => self.count("replacements"),
        }
        self.say(|world| {
            let nonce = world.requests[index].view.nonce;
            let what = no_op.map_or_else(String::new, |ending| format!(" a no-op ({ending:?})"));
            format!("request {index}: nonce {nonce}, version {number}{what} decided, {fees:?}")
        });
        self.crash("crashes between decision and signature")?;
        self.sign_and_send(index, number)
    }

    /// Signs what was decided and sends it. A crash or a silent HSM leaves it for later.
    pub fn sign_and_send(&mut self, index: usize, number: i64) -> Done {
        let now = self.now();
        let salt = self.random.next();
        let request = &mut self.requests[index];
        let ending = request.view.ending;
        let is_late = request.view.not_after.is_some_and(|limit| now > limit);
        let Some(attempt) = request.attempt(number) else { return Ok(()) };
        if !attempt.no_op && (ending.is_some() || is_late) {
            return Ok(());
        }
        if attempt.signed_at.is_none() {
            if self.fault(15) {
                self.count("HSM did not answer");
                return Ok(());
            }
            // No signature is the same twice, so what is not stored is lost.
            self.crash("crashes between signature and its commit")?;
            let hash = hash_of(index, number, salt);
            if let Some(attempt) = self.requests[index].attempt(number) {
                (attempt.signed_at, attempt.hash) = (Some(now), Some(hash));
            }
        }
        self.crash("crashes between commit and sending")?;
        self.send(index, number)
    }

    /// After a restart: what was decided is signed, the same bytes at the same nonce.
    pub fn recover(&mut self) -> Done {
        for index in 0..self.requests.len() {
            let view = &self.requests[index].view;
            let waits =
                |it: &&AttemptView| it.signed_at.is_none() && (it.no_op || view.ending.is_none());
            let numbers: Vec<i64> =
                view.attempts.iter().filter(waits).map(|it| it.number).collect();
            for number in numbers {
                self.sign_and_send(index, number)?;
            }
        }
        Ok(())
    }

    /// The bytes of a stored version.
    fn bytes(&mut self, index: usize, number: i64) -> Option<Signed> {
        let nonce_of = self.core.nonce;
        let request = &mut self.requests[index];
        let (account, succeeds, refused) = (request.account, request.succeeds, request.refused);
        let value = request.value;
        let view = request.view.clone();
        let attempt = request.attempt(number)?.clone();
        let nonce = nonce_of(&view, attempt.no_op);
        // One no-op in four has less gas than it needs: its nodes did not say how much that is.
        let short = attempt.no_op && attempt.hash.is_some_and(|hash| hash[8] % 4 == 0);
        Some(Signed {
            hash: attempt.hash?,
            account,
            nonce,
            fees: attempt.fees,
            value: if attempt.no_op { 0 } else { value },
            content: if attempt.no_op { Content::NoOp(index) } else { Content::Asked(index) },
            succeeds: attempt.no_op || succeeds,
            refused: if attempt.no_op { short } else { refused },
        })
    }

    /// Hands stored bytes to the nodes, and records what they said.
    pub fn send(&mut self, index: usize, number: i64) -> Done {
        let Some(tx) = self.bytes(index, number) else {
            return Err(Stop::Broken(format!("I9: request {index} sends an unsigned version")));
        };
        let is_no_op = matches!(tx.content, Content::NoOp(_));
        if !is_no_op && self.requests[index].view.ending.is_some() {
            return Ok(());
        }
        laws::sent(self, index, &tx).map_err(Stop::Broken)?;
        // Lost on the way there, or on the way back: nobody can tell.
        let arrives = !self.fault(10);
        let mut said = Said::Nothing;
        if arrives {
            said = self.chain.send(tx);
            if !self.sent.contains(&tx) {
                self.sent.push(tx);
            }
        } else {
            self.count("calls that never reached a node");
        }
        if arrives && self.fault(10) {
            self.count("answers that were lost");
            said = Said::Nothing;
        }
        self.say(|_| format!("request {index}: version {number} sent, {said:?}"));
        self.crash("crashes between sending and its record")?;
        let now = self.now();
        match said {
            Said::Refused if is_no_op => self.count("no-ops that the nodes refused"),
            Said::Refused => self.count("payloads that the nodes refused"),
            Said::Unfunded => self.count("sent without funds"),
            _ => {}
        }
        let Some(stored) = self.requests[index].attempt(number) else { return Ok(()) };
        stored.sent_at = Some(now);
        stored.accepted |= said == Said::Taken;
        stored.unfunded = said == Said::Unfunded;
        match said {
            Said::Nothing => {}
            Said::Refused => {
                stored.refused_since = stored.refused_since.or(Some(now));
                stored.refused_at = Some(now);
            }
            Said::Taken | Said::Underpriced | Said::NonceTooLow | Said::Unfunded => {
                (stored.refused_since, stored.refused_at) = (None, None);
            }
        }
        Ok(())
    }

    /// Records a status, if the row is still as it was.
    pub fn change(
        &mut self,
        index: usize,
        version: u64,
        status: Status,
        mined: Option<Inclusion>,
    ) -> Result<bool, Stop> {
        if !self.is_current(index, version) {
            return Ok(false);
        }
        let request = &mut self.requests[index];
        let before = request.view.status;
        if before != status && !before.may_become(status) {
            let what = format!("request {index}: {before} cannot become {status}");
            return Err(Stop::Broken(what));
        }
        request.view.status = status;
        request.view.mined_in = mined.map(|found| found.block_hash);
        request.mined = mined;
        request.version += 1;
        self.say(|_| format!("request {index}: {before} -> {status}, {mined:?}"));
        Ok(true)
    }
}

fn hash_of(index: usize, number: i64, salt: u64) -> B256 {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&(index as u64).to_be_bytes());
    hash[8..16].copy_from_slice(&salt.to_be_bytes());
    hash[24..].copy_from_slice(&number.to_be_bytes());
    hash.into()
}

/// A request as it is accepted.
pub fn accepted(random: &mut Random, now: i64) -> Request {
    // One in five has a cap that the market is mostly above.
    let cap = if random.one_in(5) { 2 + random.below(60) } else { 60 + random.below(900) };
    let cap = Fees { max_fee: UNIT * u128::from(cap), ..CHAIN_CAP };
    let tx_type = if random.one_in(3) { TxType::Legacy } else { TxType::Eip1559 };
    let lives = random.one_in(5).then(|| random.below(8000) as i64);
    Request {
        account: random.below(ACCOUNTS as u64) as usize,
        value: UNIT * u128::from(random.below(400)),
        view: TransactionView {
            status: Status::Queued,
            ending: None,
            nonce: 0,
            tx_type,
            no_op_type: TxType::Eip1559,
            cap: cap.at_most(CHAIN_CAP),
            chain_cap: CHAIN_CAP,
            not_after: lives.map(|ms| Timestamp::from_millis(now + ms)),
            attempts: Vec::new(),
            mined_in: None,
            blocks_others: false,
            capped_since: None,
        },
        has_nonce: false,
        version: 0,
        mined: None,
        succeeds: !random.one_in(8),
        refused: random.one_in(15),
        is_stranded: false,
    }
}
