//! What nodes say about the chain: honest ones that lag, with each kind of answer on its own; one on a fork
//! of its own; one that lies. And the look that is made of their answers.
//!
//! The look is the contract between the pure core and whoever reads the chain for it. Of three nodes one may
//! be bad at a time. Its word alone makes nothing final: a block counts as final only if a second node has
//! the same block there, with the same receipt, and calls it final; and a nonce counts as used by somebody
//! else only if two say that it is, and none has a receipt of ours.

use crate::chain::{Branch, Chain, FINAL_DEPTH, UNIT};
use crate::random::Random;
use alloy::primitives::B256;
use claviger::core::tx::fee::Market;
use claviger::core::tx::step::{ChainLook, Inclusion, TransactionView};

/// How many nodes a chain has.
const NODES: usize = 3;

/// What is wrong with the one node that may be bad.
#[derive(Clone, Debug)]
pub enum Bad {
    /// It follows a branch that nobody else has, and mines on it.
    Forked(Branch),
    /// It invents.
    Lying,
}

/// A node, as it answers in one look.
pub enum Node<'a> {
    /// By how many blocks each kind of answer is behind.
    Honest {
        counts: u64,
        receipts: u64,
        blocks: u64,
    },
    Forked(&'a Branch),
    Lying(Lie),
}

/// One consistent story.
pub struct Lie {
    /// An attempt that is mined, as it says, and where.
    told: Option<Inclusion>,
    count: u64,
    final_number: u64,
    market: Market,
}

/// The nodes of one look, in the order in which they are asked.
pub fn asked<'a>(
    random: &mut Random,
    chain: &Chain,
    bad: Option<&'a Bad>,
    faults: bool,
    hashes: &[B256],
) -> Vec<Node<'a>> {
    let mut nodes: Vec<Node<'a>> = Vec::with_capacity(NODES);
    let lag = |random: &mut Random| if faults && random.one_in(3) { random.below(4) } else { 0 };
    for _ in 0..NODES - usize::from(bad.is_some()) {
        let (counts, receipts, blocks) = (lag(random), lag(random), lag(random));
        nodes.push(Node::Honest { counts, receipts, blocks });
    }
    let one = match bad {
        None => return nodes,
        Some(Bad::Forked(branch)) => Node::Forked(branch),
        Some(Bad::Lying) => Node::Lying(lie(random, chain, hashes)),
    };
    let place = random.below(NODES as u64) as usize;
    nodes.insert(place, one);
    nodes
}

fn lie(random: &mut Random, chain: &Chain, hashes: &[B256]) -> Lie {
    let height = chain.height();
    let told = random.pick(hashes).copied().filter(|_| !random.one_in(3)).map(|hash| Inclusion {
        hash,
        block_hash: B256::repeat_byte(0xee),
        block_number: 1 + random.below(height.max(1)),
        success: random.one_in(2),
    });
    Lie {
        told,
        count: random.below(12),
        final_number: random.below(height + 20),
        market: Market { base_fee: UNIT * u128::from(random.below(5000)), tips: vec![] },
    }
}

impl Node<'_> {
    fn height(&self, chain: &Chain) -> u64 {
        match self {
            Self::Honest { blocks, .. } => chain.height().saturating_sub(*blocks),
            Self::Forked(branch) => branch.height(),
            Self::Lying(_) => chain.height(),
        }
    }

    fn final_number(&self, chain: &Chain) -> u64 {
        match self {
            Self::Lying(lie) => lie.final_number,
            _ => self.height(chain).saturating_sub(FINAL_DEPTH),
        }
    }

    /// The account's nonce at the head, or at a block that the node has.
    pub fn count(&self, chain: &Chain, account: usize, at: Option<u64>) -> Option<u64> {
        match self {
            Self::Honest { counts, .. } => {
                let head = chain.height().saturating_sub(*counts);
                let at = at.unwrap_or(head);
                (at <= head).then(|| chain.nonce_at(account, at))
            }
            Self::Forked(branch) => {
                let block = chain.block(Some(branch), at.unwrap_or(branch.height()))?;
                Some(block.counts[account])
            }
            Self::Lying(lie) => Some(lie.count),
        }
    }

    fn receipt(&self, chain: &Chain, hash: B256) -> Option<Inclusion> {
        let (branch, height) = match self {
            Self::Honest { receipts, .. } => (None, chain.height().saturating_sub(*receipts)),
            Self::Forked(branch) => (Some(*branch), branch.height()),
            Self::Lying(lie) => return lie.told.filter(|told| told.hash == hash),
        };
        let (number, block, tx) = chain.find(branch, hash, height)?;
        let success = tx.succeeds;
        Some(Inclusion { hash, block_hash: block, block_number: number, success })
    }

    fn hash_at(&self, chain: &Chain, number: u64) -> Option<B256> {
        if let Self::Lying(lie) = self
            && let Some(told) = lie.told.filter(|told| told.block_number == number)
        {
            return Some(told.block_hash);
        }
        let branch = if let Self::Forked(branch) = self { Some(*branch) } else { None };
        let known = number <= self.height(chain);
        chain.block(branch, number).filter(|_| known).map(|block| block.hash)
    }

    /// The receipt of whichever attempt is mined in a block that this node calls canonical.
    fn included(&self, chain: &Chain, hashes: &[B256]) -> Option<Inclusion> {
        hashes.iter().find_map(|hash| {
            let found = self.receipt(chain, *hash)?;
            (self.hash_at(chain, found.block_number) == Some(found.block_hash)).then_some(found)
        })
    }

    pub fn balance(&self, chain: &Chain, account: usize) -> u128 {
        match self {
            Self::Honest { counts, .. } => {
                chain.balance_at(account, chain.height().saturating_sub(*counts))
            }
            Self::Forked(branch) => chain.balance_at(account, branch.base),
            Self::Lying(lie) => lie.market.base_fee,
        }
    }

    pub fn market(&self, chain: &Chain) -> Market {
        match self {
            Self::Lying(lie) => lie.market.clone(),
            _ => chain.market(),
        }
    }

    pub fn is_bad(&self) -> bool {
        !matches!(self, Self::Honest { .. })
    }
}

/// What at least two say: the second highest.
pub fn second(mut said: Vec<u64>) -> u64 {
    said.sort_unstable_by(|a, b| b.cmp(a));
    said.get(1).or(said.first()).copied().unwrap_or_default()
}

/// One look at a transaction of this account. `is_careful` is whether a second node is asked before anything
/// final is concluded.
pub fn look(
    nodes: &[Node<'_>],
    chain: &Chain,
    (tx, account): (&TransactionView, usize),
    mined: Option<Inclusion>,
    market: Option<Market>,
    is_careful: bool,
) -> ChainLook {
    let first = &nodes[0];
    let hashes: Vec<B256> = tx.attempts.iter().rev().filter_map(|it| it.hash).collect();
    let nonce_latest = first.count(chain, account, None).unwrap_or_default();
    let looks_mined = nonce_latest > tx.nonce || mined.is_some();
    let mut inclusion = looks_mined.then(|| first.included(chain, &hashes)).flatten();
    let finals = nodes.iter().map(|node| node.final_number(chain));
    let mut final_number =
        if is_careful { second(finals.collect()) } else { first.final_number(chain) };
    let mut nonce_final = None;
    if inclusion.is_none() && nonce_latest > tx.nonce {
        let said = nodes.iter().filter_map(|node| node.count(chain, account, Some(final_number)));
        let used = if is_careful {
            second(said.collect())
        } else {
            first.count(chain, account, Some(final_number)).unwrap_or_default()
        };
        if is_careful && used > tx.nonce {
            // Before it is somebody else's, every node is asked for a receipt of ours.
            let mut others = nodes.iter().filter_map(|node| node.included(chain, &hashes));
            inclusion = others.find(|found| agree(nodes, chain, found) >= 2);
        }
        nonce_final = Some(used).filter(|_| inclusion.is_none());
    }
    if let Some(found) = inclusion
        && is_careful
        && agree(nodes, chain, &found) < 2
    {
        final_number = final_number.min(found.block_number.saturating_sub(1));
    }
    let displaced = inclusion.is_none()
        && mined.is_some_and(|found| {
            // A node that is not as far as that block says nothing about it.
            let there = first.hash_at(chain, found.block_number);
            there.is_some_and(|hash| hash != found.block_hash)
        });
    ChainLook { inclusion, displaced, nonce_latest, nonce_final, final_number, market }
}

/// How many nodes have this receipt, in this block.
fn agree(nodes: &[Node<'_>], chain: &Chain, found: &Inclusion) -> usize {
    let has = |node: &&Node<'_>| {
        node.receipt(chain, found.hash) == Some(*found)
            && node.hash_at(chain, found.block_number) == Some(found.block_hash)
    };
    nodes.iter().filter(has).count()
}
