//! What the server does when it is stepped: gives nonces, looks at what is open, does what is due; and what
//! its operators do.

use crate::chain::{ACCOUNTS, Content};
use crate::laws;
use crate::nodes::{asked, look, second};
use crate::world::{Done, Late, PACE, Stop, World};
use alloy::primitives::B256;
use claviger::core::tx::fee;
use claviger::core::tx::state::{Ending, Status};
use claviger::core::tx::step::{Step, is_outpriced, may_block, sendable, sped_up};

/// How many transactions of an account may be in flight.
const IN_FLIGHT_MAX: usize = 4;
/// How long the chain must say that a stranger used a nonce before it is believed, as in `app/follow.rs`.
const FOREIGN_AFTER_MS: i64 = 60_000;

impl World {
    /// Gives nonces to what waits, as `app/lane.rs` does.
    pub fn work_lane(&mut self, account: usize) -> Done {
        while !self.lanes[account].is_halted {
            let mine = |at: &usize| self.requests[*at].account == account;
            let flying = (0..self.requests.len()).filter(mine);
            let flying: Vec<usize> = flying.filter(|at| self.requests[*at].is_flying()).collect();
            let waits = |at: &usize| self.requests[*at].view.status == Status::Queued;
            let queued = (0..self.requests.len()).filter(mine).filter(waits);
            let queued: Vec<usize> = queued.collect();
            if queued.is_empty() {
                return Ok(());
            }
            let now = self.now();
            if flying.len() >= IN_FLIGHT_MAX {
                self.count("lanes that were full");
                return Ok(());
            }
            let bad = self.bad.take();
            let nodes = asked(&mut self.random, &self.chain, bad.as_ref(), self.faults, &[]);
            let counts = nodes.iter().filter_map(|node| node.count(&self.chain, account, None));
            let mined = second(counts.collect());
            let balance = nodes[0].balance(&self.chain, account);
            let market = nodes[0].market(&self.chain);
            drop(nodes);
            self.bad = bad;
            if !self.lanes[account].is_checked && mined > self.lanes[account].next_nonce {
                return self.halt(account);
            }
            self.lanes[account].is_checked = true;
            let is_late =
                |at: &usize| self.requests[*at].view.not_after.is_some_and(|limit| now > limit);
            if let Some(late) = queued.iter().copied().find(is_late) {
                self.count("expired while queued");
                self.change(late, self.requests[late].version, Status::Expired, None)?;
                continue;
            }
            // What this market is too dear for is passed over.
            let is_payable = |at: &usize| self.requests[*at].view.cap.max_fee >= market.base_fee;
            let Some(index) = queued.iter().copied().find(is_payable) else {
                self.count("parked: the market is above the cap");
                return Ok(());
            };
            if index != queued[0] {
                self.count("given a nonce before one that the market is too dear for");
            }
            let request = &self.requests[index];
            let fees = fee::first(&market, request.view.cap, request.view.tx_type);
            let owed = flying.iter().chain([&index]).map(|at| self.requests[*at].value);
            if owed.map(|value| value + fees.max_fee).sum::<u128>() > balance {
                self.count("parked: no funds");
                return Ok(());
            }
            self.give_nonce(account, index, fees)?;
        }
        Ok(())
    }

    /// One commit: the nonce and the first decision.
    fn give_nonce(
        &mut self,
        account: usize,
        index: usize,
        fees: claviger::core::intent::Fees,
    ) -> Done {
        self.crash("crashes before a nonce is given")?;
        let nonce = self.lanes[account].next_nonce;
        self.lanes[account].next_nonce += 1;
        let before = self.owners.insert((account, nonce), index);
        if let Some(before) = before {
            return Err(Stop::Broken(format!("I2: nonce {nonce} was given to request {before}")));
        }
        let request = &mut self.requests[index];
        request.has_nonce = true;
        request.view.nonce = nonce;
        request.view.status = Status::Submitted;
        self.count("nonces given");
        self.decide(index, None, fees)
    }

    fn halt(&mut self, account: usize) -> Done {
        self.lanes[account].is_halted = true;
        self.count("lanes halted");
        self.say(|_| format!("account {account}: halted, somebody else has its key"));
        let strange = |tx: &crate::chain::Signed| {
            tx.account == account && matches!(tx.content, Content::Stranger)
        };
        if self.sent.iter().any(strange) {
            return Ok(());
        }
        Err(Stop::Broken(format!("account {account} is halted, and there was no stranger")))
    }

    /// One look at one transaction, as `follow` does it. Perhaps the worker is slow to do what is due.
    pub fn follow(&mut self, index: usize) -> Done {
        let request = &self.requests[index];
        if !request.is_open() || !request.has_nonce {
            return Ok(());
        }
        let hashes: Vec<B256> = request.view.attempts.iter().filter_map(|it| it.hash).collect();
        let has_market = !self.fault(5);
        let bad = self.bad.take();
        let nodes = asked(&mut self.random, &self.chain, bad.as_ref(), self.faults, &hashes);
        let market = has_market.then(|| nodes[0].market(&self.chain));
        let request = &self.requests[index];
        let (view, mined) = ((&request.view, request.account), request.mined);
        let look = look(&nodes, &self.chain, view, mined, market, self.core.is_careful);
        let was_bad = nodes[0].is_bad();
        drop(nodes);
        self.bad = bad;
        if was_bad {
            self.count("looks through a bad node");
        }
        self.behind(index, look.nonce_latest);
        let due = (self.core.step)(self.now(), &self.requests[index].view, &look, PACE);
        laws::due(self, index, &due)
            .map_err(|what| Stop::Broken(format!("request {index}: {what}")))?;
        if due != Step::ForeignNonce {
            self.foreign.remove(&index);
        }
        let version = self.requests[index].version;
        if self.fault(20) && due != Step::Wait {
            self.late.push(Late { index, version, due });
            return Ok(());
        }
        self.perform(Late { index, version, due })
    }

    /// Notes since when a head that can offer no more keeps others of its lane waiting.
    fn behind(&mut self, index: usize, nonce_latest: u64) {
        let now = self.now();
        // Found anew in each look, unlike since when.
        self.requests[index].view.blocks_others = false;
        let this = &self.requests[index];
        if nonce_latest < this.view.nonce {
            return;
        }
        let blocks = (self.core.others_wait)(self, index)
            && may_block(now, &this.view, nonce_latest, PACE)
            && is_outpriced(&this.view, &self.chain.market());
        let view = &mut self.requests[index].view;
        view.blocks_others = blocks;
        view.capped_since = blocks.then(|| view.capped_since.unwrap_or(now));
    }

    /// Does what a worker found due, perhaps long ago.
    pub fn perform(&mut self, Late { index, version, due }: Late) -> Done {
        match due {
            Step::Wait => Ok(()),
            Step::AtCap(number) => {
                self.count("at the cap");
                self.send(index, number)
            }
            Step::Rebroadcast(number) => {
                self.count("same bytes again");
                self.send(index, number)
            }
            Step::Replace(fees) if self.is_current(index, version) => {
                self.decide(index, None, fees)
            }
            Step::NoOp(ending, fees) if self.is_current(index, version) => {
                if ending == Ending::Outpriced && self.requests[index].view.ending.is_none() {
                    self.count("heads at their cap that gave way");
                }
                self.decide(index, Some(ending), fees)
            }
            Step::Replace(_) | Step::NoOp(..) => Ok(()),
            Step::Mined(found, status) => {
                self.change(index, version, status, Some(found)).map(|_| ())
            }
            Step::Reopen(status) => {
                if !self.change(index, version, status, None)? {
                    return Ok(());
                }
                self.count("reopened");
                let newest = sendable(self.now(), &self.requests[index].view, PACE);
                let Some(number) = newest.map(|attempt| attempt.number) else { return Ok(()) };
                self.crash("crashes between reopening and sending")?;
                self.send(index, number)
            }
            Step::End { inclusion, status } => {
                self.change(index, version, status, Some(inclusion)).map(|_| ())
            }
            Step::ForeignNonce => {
                let now = self.now();
                let since = *self.foreign.entry(index).or_insert(now);
                if now.since(since) < FOREIGN_AFTER_MS {
                    return Ok(());
                }
                self.stranger_found(index)
            }
        }
    }

    /// The lane stands still. It must be so: the final chain has somebody else's transaction there.
    fn stranger_found(&mut self, index: usize) -> Done {
        let (account, nonce) = (self.requests[index].account, self.requests[index].view.nonce);
        let found = self.chain.used_by(account, nonce);
        let is_so = found.is_some_and(|(number, tx)| {
            number <= self.chain.final_number() && matches!(tx.content, Content::Stranger)
        });
        if !is_so {
            let what = format!("request {index}: nonce {nonce} is no stranger's: {found:?}");
            return Err(Stop::Broken(what));
        }
        if self.lanes[account].is_halted { Ok(()) } else { self.halt(account) }
    }

    /// An operator's word about one transaction.
    pub fn intervene(&mut self, index: usize) -> Done {
        let now = self.now();
        let market = self.chain.market();
        let request = &self.requests[index];
        if !request.is_open() {
            return Ok(());
        }
        match request.view.status {
            Status::Queued => {
                self.count("cancelled without a nonce");
                self.change(index, self.requests[index].version, Status::Cancelled, None)?;
            }
            Status::Submitted if self.random.one_in(2) => {
                self.count("cancelled with a nonce");
                let request = &mut self.requests[index];
                request.view.status = Status::Cancelling;
                request.view.ending = Some(Ending::Cancelled);
                request.version += 1;
                self.say(|_| format!("request {index}: an operator cancels"));
            }
            _ if request.view.mined_in.is_none() => {
                if let Some(fees) = sped_up(now, &request.view, &market) {
                    self.count("sped up");
                    let no_op = self.requests[index].view.ending;
                    return self.decide(index, no_op, fees);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// An operator looks at lanes that stand still. Only what is final is believed; nothing is issued again.
    pub fn reconcile(&mut self) {
        for account in 0..ACCOUNTS {
            let head = self.chain.height();
            let (used, last) = (self.chain.nonce_at(account, head), self.chain.final_number());
            let is_settled = used == self.chain.nonce_at(account, last);
            if !self.lanes[account].is_halted || !is_settled {
                continue;
            }
            for nonce in 0..used {
                let found = self.chain.used_by(account, nonce);
                if !found.is_some_and(|(_, tx)| matches!(tx.content, Content::Stranger)) {
                    continue;
                }
                match self.owners.get(&(account, nonce)) {
                    Some(index) => self.requests[*index].is_stranded = true,
                    None if nonce >= self.lanes[account].next_nonce => {
                        self.lanes[account].skipped.push(nonce);
                    }
                    None => {}
                }
            }
            let lane = &mut self.lanes[account];
            lane.next_nonce = lane.next_nonce.max(used);
            lane.is_halted = false;
            self.count("lanes reconciled");
            self.say(|world| {
                let next = world.lanes[account].next_nonce;
                format!("account {account}: reconciled, the next nonce is {next}")
            });
        }
    }
}
