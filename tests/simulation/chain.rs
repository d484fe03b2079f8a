//! A chain that forks, forgets and is mined on by strangers, small enough for hundreds of thousands of runs.

use crate::random::Random;
use alloy::primitives::B256;
use claviger::core::intent::Fees;
use claviger::core::tx::fee::{Market, minimum};
use std::collections::BTreeMap;

/// Accounts of ours.
pub const ACCOUNTS: usize = 3;
/// Blocks this far below the head are final; no reorg reaches them.
pub const FINAL_DEPTH: u64 = 6;
/// What prices are counted in, in wei, so that the smallest priority fee is one tenth of it.
pub const UNIT: u128 = 10_000_000;

/// What signed bytes do. Requests are named by their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Asked(usize),
    NoOp(usize),
    /// Somebody else has the account's key.
    Stranger,
}

/// Signed bytes, as far as a chain can tell. Each uses one gas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signed {
    pub hash: B256,
    pub account: usize,
    pub nonce: u64,
    pub fees: Fees,
    pub value: u128,
    pub content: Content,
    /// Whether its execution succeeds.
    pub succeeds: bool,
    /// Whether every node refuses it for a reason of its own.
    pub refused: bool,
}

#[derive(Clone, Debug)]
pub struct Block {
    pub hash: B256,
    pub mined: Vec<Signed>,
    /// How many transactions of each account are mined up to here, and what they have cost.
    pub counts: [u64; ACCOUNTS],
    spent: [u128; ACCOUNTS],
}

/// What a node says to signed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    Taken,
    Underpriced,
    NonceTooLow,
    Unfunded,
    Refused,
    /// The answer was lost; it may have been taken.
    Nothing,
}

/// Blocks that are not on the canonical chain, above one that is.
#[derive(Clone, Debug)]
pub struct Branch {
    /// The newest canonical block below it.
    pub base: u64,
    pub blocks: Vec<Block>,
}

impl Branch {
    pub fn height(&self) -> u64 {
        self.base + self.blocks.len() as u64
    }
}

pub struct Chain {
    /// From the first block on; number 0 is empty.
    pub blocks: Vec<Block>,
    pub pool: BTreeMap<(usize, u64), Signed>,
    pub base_fee: u128,
    /// What each account was ever given, less what was taken from it.
    pub deposits: [u128; ACCOUNTS],
    /// Where each canonical transaction is.
    places: BTreeMap<B256, u64>,
    made: u64,
}

impl Chain {
    pub fn new(deposit: u128) -> Self {
        let genesis = Block {
            hash: B256::repeat_byte(0xff),
            mined: Vec::new(),
            counts: [0; ACCOUNTS],
            spent: [0; ACCOUNTS],
        };
        Self {
            blocks: vec![genesis],
            pool: BTreeMap::new(),
            base_fee: 50 * UNIT,
            deposits: [deposit; ACCOUNTS],
            places: BTreeMap::new(),
            made: 0,
        }
    }

    pub fn height(&self) -> u64 {
        self.blocks.len() as u64 - 1
    }

    pub fn final_number(&self) -> u64 {
        self.height().saturating_sub(FINAL_DEPTH)
    }

    /// The block with this number, on a branch or on the canonical chain.
    pub fn block<'a>(&'a self, branch: Option<&'a Branch>, number: u64) -> Option<&'a Block> {
        match branch.filter(|branch| number > branch.base) {
            Some(branch) => branch.blocks.get((number - branch.base - 1) as usize),
            None => self.blocks.get(number as usize),
        }
    }

    /// How many transactions of the account are mined as of this canonical block.
    pub fn nonce_at(&self, account: usize, number: u64) -> u64 {
        self.blocks[number as usize].counts[account]
    }

    /// What the account has as of this canonical block.
    pub fn balance_at(&self, account: usize, number: u64) -> u128 {
        self.deposits[account].saturating_sub(self.blocks[number as usize].spent[account])
    }

    /// Where a transaction is mined, as one who has the blocks up to this height knows it.
    pub fn find(
        &self,
        branch: Option<&Branch>,
        hash: B256,
        height: u64,
    ) -> Option<(u64, B256, Signed)> {
        let told = |number: u64, block: &Block| {
            let found = block.mined.iter().find(|tx| tx.hash == hash)?;
            Some((number, block.hash, *found))
        };
        if let Some(branch) = branch {
            let mut numbered = (branch.base + 1..=height).zip(&branch.blocks);
            if let Some(found) = numbered.find_map(|(number, block)| told(number, block)) {
                return Some(found);
            }
        }
        let known = branch.map_or(height, |branch| branch.base.min(height));
        let number = self.places.get(&hash).copied().filter(|number| *number <= known)?;
        told(number, &self.blocks[number as usize])
    }

    /// Whether it is on the canonical chain.
    pub fn is_mined(&self, hash: B256) -> bool {
        self.places.contains_key(&hash)
    }

    /// The canonical transaction of an account with this nonce.
    pub fn used_by(&self, account: usize, nonce: u64) -> Option<(u64, &Signed)> {
        let at = self.blocks.partition_point(|block| block.counts[account] <= nonce);
        let block = self.blocks.get(at)?;
        let found = block.mined.iter().find(|tx| tx.account == account && tx.nonce == nonce);
        found.map(|tx| (at as u64, tx))
    }

    pub fn market(&self) -> Market {
        Market { base_fee: self.base_fee, tips: vec![UNIT / 2] }
    }

    /// Takes bytes as a pool does that wants a tenth more in both fields.
    pub fn send(&mut self, tx: Signed) -> Said {
        let height = self.height();
        if tx.refused {
            return Said::Refused;
        }
        if tx.nonce < self.nonce_at(tx.account, height) {
            return Said::NonceTooLow;
        }
        if tx.value + tx.fees.max_fee > self.balance_at(tx.account, height) {
            return Said::Unfunded;
        }
        let place = (tx.account, tx.nonce);
        match self.pool.get(&place) {
            Some(old) if old.hash == tx.hash => Said::Taken,
            Some(old)
                if tx.fees.max_fee < minimum(old.fees.max_fee)
                    || tx.fees.max_priority_fee < minimum(old.fees.max_priority_fee) =>
            {
                Said::Underpriced
            }
            _ => {
                self.pool.insert(place, tx);
                Said::Taken
            }
        }
    }

    /// Mines what the pool has and can pay for itself, at most so many of each account.
    pub fn mine(&mut self, most: usize) {
        let height = self.height();
        let mut mined = Vec::new();
        for account in 0..ACCOUNTS {
            let mut balance = self.balance_at(account, height);
            let next = self.nonce_at(account, height);
            for nonce in next..next + most as u64 {
                let Some(tx) = self.pool.get(&(account, nonce)) else { break };
                if tx.fees.max_fee < self.base_fee || tx.value + tx.fees.max_fee > balance {
                    break;
                }
                balance -= cost(tx, self.base_fee);
                mined.push(*tx);
            }
        }
        self.append(mined);
    }

    /// The next block over `last`.
    fn made(&mut self, last: &Block, mined: Vec<Signed>) -> Block {
        self.made += 1;
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&self.made.to_be_bytes());
        let (mut counts, mut spent) = (last.counts, last.spent);
        for tx in &mined {
            counts[tx.account] += 1;
            spent[tx.account] += cost(tx, self.base_fee);
        }
        Block { hash: hash.into(), mined, counts, spent }
    }

    fn append(&mut self, mined: Vec<Signed>) {
        let last = self.blocks[self.height() as usize].clone();
        let block = self.made(&last, mined);
        let number = self.blocks.len() as u64;
        for tx in &block.mined {
            self.places.insert(tx.hash, number);
        }
        let counts = block.counts;
        self.blocks.push(block);
        self.pool.retain(|(account, nonce), _| *nonce >= counts[*account]);
    }

    /// Another branch wins. What it took away may come back to the pool, be forgotten, or be mined in the
    /// new branch as any version that was ever sent. Gives the branch that lost.
    pub fn reorg(&mut self, random: &mut Random, sent: &[Signed]) -> Branch {
        let deepest = FINAL_DEPTH.min(self.height());
        let depth = (1 + random.below(FINAL_DEPTH)).min(deepest);
        let keep = self.blocks.len() - depth as usize;
        let lost = Branch { base: keep as u64 - 1, blocks: self.blocks.split_off(keep) };
        for tx in lost.blocks.iter().flat_map(|block| &block.mined) {
            self.places.remove(&tx.hash);
            if random.one_in(2) {
                self.pool.insert((tx.account, tx.nonce), *tx);
            }
        }
        for _ in 0..=depth {
            let mined = self.any_versions(random, self.blocks[self.height() as usize].counts, sent);
            if mined.is_empty() { self.mine(2) } else { self.append(mined) }
        }
        lost
    }

    /// The next transactions of some accounts, in any version that was ever sent.
    fn any_versions(
        &self,
        random: &mut Random,
        next: [u64; ACCOUNTS],
        sent: &[Signed],
    ) -> Vec<Signed> {
        let mut mined = Vec::new();
        for (account, next) in next.into_iter().enumerate() {
            if random.one_in(2) {
                continue;
            }
            let fits = |tx: &&Signed| tx.account == account && tx.nonce == next && !tx.refused;
            let versions: Vec<Signed> = sent.iter().filter(fits).copied().collect();
            mined.extend(random.pick(&versions));
        }
        mined
    }

    /// A branch that somebody else still believes in grows.
    pub fn extend(&mut self, branch: &mut Branch, random: &mut Random, sent: &[Signed]) {
        let last = branch.blocks.last().unwrap_or(&self.blocks[branch.base as usize]).clone();
        let mined = self.any_versions(random, last.counts, sent);
        let block = self.made(&last, mined);
        branch.blocks.push(block);
    }
}

fn cost(tx: &Signed, base_fee: u128) -> u128 {
    let price = tx.fees.max_fee.min(base_fee + tx.fees.max_priority_fee);
    if tx.succeeds { tx.value + price } else { price }
}
