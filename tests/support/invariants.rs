//! The invariants I1 to I9 and I11, from the chain and the database.
//!
//! The server is not asked. What was mined is read block by block and decoded by ethers-core, which shares
//! no line of encoding with us; rows, leaves and limits are read with SQL of their own. A violation names
//! the invariant, the request and the numbers.
//!
//! [`Invariants::check`] looks until chain and database stand still for the time of one look, so it may be
//! called while a server runs; some invariants say what must hold once all is quiet, and are asked only
//! then.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests: to panic is how a test fails"
)]
#![allow(dead_code, unused_imports, reason = "each test crate uses a part of these helpers")]

mod chain;
mod database;
mod events;
mod log;
mod spend;
mod transactions;

use chain::Mined;
use database::{AttemptRow, Snapshot};
use ethers_core::types::U256;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

/// How long to wait for a still moment.
const LIMIT: Duration = Duration::from_secs(30);

/// What does not hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// `I1` to `I11`.
    pub invariant: &'static str,
    /// The request, or whatever else it is about.
    pub subject: String,
    /// What was found, with its numbers.
    pub found: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.invariant, self.subject, self.found)
    }
}

/// When a block is final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinalBy {
    /// The node's `finalized` tag.
    Tag,
    /// So many blocks below the head.
    Depth(u64),
}

/// Logs that must be answered (I6).
#[derive(Clone, Debug)]
pub struct Watched {
    /// The emitter, lower case.
    pub address: String,
    /// The event's signature hash, lower case.
    pub topic: String,
    /// The watcher's database, where its outbox is to be looked at too.
    pub watcher_url: Option<String>,
}

/// What to look at.
#[derive(Clone, Debug)]
pub struct Invariants {
    store_url: String,
    chain_url: String,
    final_by: FinalBy,
    answered: BTreeSet<String>,
    foreign: BTreeSet<String>,
    excepted: BTreeSet<String>,
    sent: Vec<String>,
    no_op_fee_max: Option<U256>,
    watched: Vec<Watched>,
}

impl Invariants {
    /// One chain and one server database.
    pub fn new(chain_url: &str, store_url: &str) -> Self {
        Self {
            store_url: store_url.to_owned(),
            chain_url: chain_url.to_owned(),
            final_by: FinalBy::Tag,
            answered: BTreeSet::new(),
            foreign: BTreeSet::new(),
            excepted: BTreeSet::new(),
            sent: Vec::new(),
            no_op_fee_max: None,
            watched: Vec::new(),
        }
    }

    /// The same questions about another database: a copy.
    pub fn of(mut self, store_url: &str) -> Self {
        self.store_url = store_url.to_owned();
        self
    }

    /// The same questions to another node.
    pub fn on(mut self, chain_url: &str) -> Self {
        self.chain_url = chain_url.to_owned();
        self
    }

    /// Finality by depth instead of the node's tag.
    pub fn final_at_depth(mut self, depth: u64) -> Self {
        self.final_by = FinalBy::Depth(depth);
        self
    }

    /// Requests that callers were answered 2xx for (I11).
    pub fn answered(mut self, ids: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.answered.extend(ids.into_iter().map(Into::into));
        self
    }

    /// Mined transactions of our accounts that a stranger sent on purpose of the test: not ours to answer for.
    pub fn foreign(mut self, hashes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.foreign.extend(hashes.into_iter().map(Into::into));
        self
    }

    /// Requests whose end was told in a block that is gone, because the chain was reorganised below what was
    /// final. An end that was told is not taken back: the chain is not asked for that block (I5), nor whether
    /// they paid there what they paid since (I8). Everything else is asked of them, too, and that they are no
    /// others: theirs is mined in another block now, or not at all and the chain's anchor is broken.
    pub fn except(mut self, ids: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.excepted.extend(ids.into_iter().map(Into::into));
        self
    }

    /// Every raw transaction that was seen on its way to a node, 0x hex (I9).
    pub fn sent(mut self, raws: impl IntoIterator<Item = String>) -> Self {
        self.sent.extend(raws);
        self
    }

    /// The chain's cap for fees, in wei: no no-op may offer more than twice as much (I7).
    pub fn chain_cap(mut self, max_fee_wei: u128) -> Self {
        self.no_op_fee_max = Some(U256::from(max_fee_wei) * 2);
        self
    }

    /// Logs that must be answered once they are final (I6).
    pub fn watched(mut self, watched: Watched) -> Self {
        self.watched.push(watched);
        self
    }

    /// Panics with every violation.
    pub async fn check(&self) {
        let found = self.violations().await;
        let told: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(found.is_empty(), "{} violation(s):\n{}", told.len(), told.join("\n"));
    }

    /// What does not hold.
    pub async fn violations(&self) -> Vec<Violation> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let before = Snapshot::read(&self.store_url).await;
            let chain = chain::read(&self.chain_url, self.final_by, &before).await;
            let head = chain::head(&self.chain_url).await;
            let after = Snapshot::read(&self.store_url).await;
            if before.is_same(&after) && head == chain.head {
                return self.judge(&World::new(after, chain)).await;
            }
            assert!(Instant::now() < deadline, "chain and database do not stand still");
        }
    }

    /// The leaves of this kind, in the log or on their way to it, in order.
    pub async fn leaves(&self, kind: &str) -> Vec<serde_json::Value> {
        let leaves = database::leaves(&self.store_url, kind).await;
        leaves.iter().map(|leaf| serde_json::from_slice(leaf).unwrap()).collect()
    }

    /// Whether nothing is held against any limit.
    pub async fn settled(&self) -> bool {
        let db = Snapshot::read(&self.store_url).await;
        db.entries.iter().all(|entry| entry.settled_at.is_some())
    }

    async fn judge(&self, world: &World) -> Vec<Violation> {
        let mut found = Found(Vec::new());
        transactions::check(world, self, &mut found);
        spend::check(world, self, &mut found);
        log::check(world, self, &mut found);
        events::check(world, self, &mut found).await;
        let mut found = found.0;
        found.sort();
        found.dedup();
        found
    }
}

/// Chain and database at one moment.
struct World {
    db: Snapshot,
    chain: chain::Reading,
    /// Which request and attempt a signed transaction is, and why there is that attempt, by hash.
    attempts: BTreeMap<String, (String, i64, String)>,
    /// Where in the reading of the chain a request's mined transactions are.
    mined: BTreeMap<String, Vec<usize>>,
}

impl World {
    fn new(db: Snapshot, chain: chain::Reading) -> Self {
        let signed = db.attempts.iter().filter_map(|attempt| {
            let AttemptRow { request_id, number, reason, hash, .. } = attempt;
            Some((hex(hash.as_ref()?), (request_id.clone(), *number, reason.clone())))
        });
        let attempts: BTreeMap<String, (String, i64, String)> = signed.collect();
        let mut mined: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (at, found) in chain.mined.iter().enumerate() {
            if let Some((request, ..)) = attempts.get(&found.hash) {
                mined.entry(request.clone()).or_default().push(at);
            }
        }
        Self { db, chain, attempts, mined }
    }

    /// The mined transactions of a request.
    fn mined_of(&self, request: &str) -> impl Iterator<Item = &Mined> {
        let places = self.mined.get(request).into_iter().flatten();
        places.map(|at| &self.chain.mined[*at])
    }

    /// Why there is the attempt with this hash.
    fn reason(&self, hash: &str) -> &str {
        self.attempts.get(hash).map_or("", |(_, _, reason)| reason)
    }
}

/// Why an attempt carries nothing but its nonce.
const NO_OP: &str = "no_op";

struct Found(Vec<Violation>);

impl Found {
    fn say(&mut self, invariant: &'static str, subject: impl ToString, found: String) {
        self.0.push(Violation { invariant, subject: subject.to_string(), found });
    }
}

fn hex(bytes: &[u8]) -> String {
    format!("0x{}", ::hex::encode(bytes))
}

/// A 32-byte big-endian amount.
fn amount(bytes: &[u8]) -> U256 {
    U256::from_big_endian(bytes)
}
