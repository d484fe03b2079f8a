//! A chain that forks, forgets and lags, small enough for hundreds of thousands of runs.

use crate::random::Random;
use alloy::primitives::B256;
use claviger::core::intent::Fees;
use claviger::core::tx::fee::Market;
use std::collections::BTreeMap;

/// Blocks this far below the head are final; no reorg reaches them.
pub const FINAL_DEPTH: u64 = 6;

/// Signed bytes, as far as a chain can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signed {
    pub hash: B256,
    pub nonce: u64,
    pub fees: Fees,
    /// Whether its execution succeeds.
    pub succeeds: bool,
    /// Whether every node refuses it for a reason of its own.
    pub refused: bool,
}

#[derive(Clone, Debug)]
pub struct Block {
    pub hash: B256,
    pub mined: Vec<Signed>,
}

/// What a node says to signed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    Taken,
    Underpriced,
    NonceTooLow,
    Refused,
    /// The answer was lost; it may have been taken.
    Nothing,
}

pub struct Chain {
    /// From the first block on; number 0 is empty.
    pub blocks: Vec<Block>,
    pub pool: BTreeMap<u64, Signed>,
    pub base_fee: u128,
    forks: u64,
}

impl Chain {
    pub fn new() -> Self {
        let genesis = Block { hash: B256::repeat_byte(0xff), mined: Vec::new() };
        Self { blocks: vec![genesis], pool: BTreeMap::new(), base_fee: 50, forks: 0 }
    }

    pub fn height(&self) -> u64 {
        self.blocks.len() as u64 - 1
    }

    pub fn final_number(&self) -> u64 {
        self.height().saturating_sub(FINAL_DEPTH)
    }

    /// How many transactions of the account are mined as of this block.
    pub fn nonce_at(&self, number: u64) -> u64 {
        self.blocks[..=number as usize].iter().map(|block| block.mined.len() as u64).sum()
    }

    /// Where a transaction is mined, as a node at this height knows it.
    pub fn find(&self, hash: B256, height: u64) -> Option<(u64, B256, Signed)> {
        let known = self.blocks.iter().enumerate().take(height as usize + 1);
        known.rev().find_map(|(number, block)| {
            let found = block.mined.iter().find(|tx| tx.hash == hash)?;
            Some((number as u64, block.hash, *found))
        })
    }

    /// The block with this number, as a node at this height knows it.
    pub fn hash_at(&self, number: u64, height: u64) -> Option<B256> {
        let known = self.blocks.get(number as usize).filter(|_| number <= height);
        known.map(|block| block.hash)
    }

    pub fn market(&self) -> Market {
        Market { base_fee: self.base_fee, tips: vec![5] }
    }

    /// Takes bytes as a pool does that wants a tenth more in both fields.
    pub fn send(&mut self, tx: Signed) -> Said {
        if tx.refused {
            return Said::Refused;
        }
        if tx.nonce < self.nonce_at(self.height()) {
            return Said::NonceTooLow;
        }
        let enough = |old: u128, new: u128| new >= old + old.div_ceil(10).max(1);
        match self.pool.get(&tx.nonce) {
            Some(old) if old.hash == tx.hash => Said::Taken,
            Some(old)
                if !enough(old.fees.max_fee, tx.fees.max_fee)
                    || !enough(old.fees.max_priority_fee, tx.fees.max_priority_fee) =>
            {
                Said::Underpriced
            }
            _ => {
                self.pool.insert(tx.nonce, tx);
                Said::Taken
            }
        }
    }

    /// Mines what the pool has and pays the base fee, in the order of nonces.
    pub fn mine(&mut self, most: usize) {
        let next = self.nonce_at(self.height());
        let mut mined = Vec::new();
        while mined.len() < most {
            let nonce = next + mined.len() as u64;
            match self.pool.get(&nonce) {
                Some(tx) if tx.fees.max_fee >= self.base_fee => mined.push(*tx),
                _ => break,
            }
        }
        self.append(mined);
    }

    fn append(&mut self, mined: Vec<Signed>) {
        self.forks += 1;
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&self.forks.to_be_bytes());
        for tx in &mined {
            self.pool.remove(&tx.nonce);
        }
        let next = self.nonce_at(self.height()) + mined.len() as u64;
        self.pool.retain(|nonce, _| *nonce >= next);
        self.blocks.push(Block { hash: hash.into(), mined });
    }

    /// Another branch wins. What it took away may come back to the pool, be forgotten, or be mined in the
    /// new branch as any version that was ever sent.
    pub fn reorg(&mut self, random: &mut Random, sent: &[Signed]) {
        let deepest = FINAL_DEPTH.min(self.height());
        let depth = 1 + random.below(deepest.max(1)).min(deepest.saturating_sub(1));
        if deepest == 0 {
            return;
        }
        let keep = self.blocks.len() - depth as usize;
        for block in self.blocks.split_off(keep) {
            for tx in block.mined {
                if random.one_in(2) {
                    self.pool.insert(tx.nonce, tx);
                }
            }
        }
        for _ in 0..=depth {
            let next = self.nonce_at(self.height());
            let versions: Vec<Signed> =
                sent.iter().filter(|tx| tx.nonce == next && !tx.refused).copied().collect();
            match random.pick(&versions) {
                Some(version) if random.one_in(2) => self.append(vec![*version]),
                _ => self.mine(2),
            }
        }
    }
}
