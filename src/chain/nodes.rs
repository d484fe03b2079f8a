//! The nodes of one chain together: in which order they are asked, what they agree on, and sends to all.

use super::classify::{bounded, combine};
use super::evm::Finality;
use super::look::{self, Word};
use super::node::{Fault, Node};
use crate::core::agreement::Agreement;
use crate::ports::chain::{AccountLook, BlockId, Broadcast, ChainError, Claim, Mined, Sought};
use alloy::primitives::{Address, B256, Bytes};
use futures::stream::{FuturesUnordered, StreamExt};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::timeout_at;

/// Once one node has answered in words, or enough have, the others have so much longer.
const GRACE: Duration = Duration::from_secs(1);
/// How often a chain's nodes are asked how far they are, where there are several.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// A node whose final block is more than so many behind is asked after the others.
const LAG_MAX: u64 = 12;

/// The nodes of a chain.
#[derive(Debug)]
pub(super) struct Nodes {
    list: Vec<Node>,
    finality: Finality,
}

impl Nodes {
    pub(super) const fn new(list: Vec<Node>, finality: Finality) -> Self {
        Self { list, finality }
    }

    /// Every node, in the order of the configuration.
    pub(super) fn all(&self) -> &[Node] {
        &self.list
    }

    /// The nodes that may be asked now, in the order in which they should be.
    pub(super) fn in_order(&self) -> Vec<&Node> {
        let now = Instant::now();
        let far = self.reference();
        let is_last = |node: &&Node| {
            let lags = |number: u64| number.saturating_add(LAG_MAX) < far;
            // One that tells no final block, while others do, is still syncing, or stands still.
            let final_number = node.health.final_number().unwrap_or(0);
            node.health.is_outvoted(now) || lags(final_number)
        };
        let mut nodes: Vec<&Node> =
            self.list.iter().filter(|node| node.health.pause_left(now).is_none()).collect();
        nodes.sort_by_key(is_last);
        nodes
    }

    /// How far the chain is final: as the furthest node says; of three or more, as the second furthest does,
    /// so that one that lies cannot make the others late.
    fn reference(&self) -> u64 {
        let mut said: Vec<u64> =
            self.list.iter().filter_map(|node| node.health.final_number()).collect();
        said.sort_unstable_by(|one, other| other.cmp(one));
        let place = usize::from(said.len() > 2);
        said.get(place).copied().unwrap_or(0)
    }

    /// No node may be asked now.
    pub(super) fn all_left_alone(&self) -> ChainError {
        let now = Instant::now();
        let pauses = self.list.iter().filter_map(|node| node.health.pause_left(now));
        let next = pauses.min().unwrap_or_default().as_millis();
        let what = "every node failed lately and is left alone for a while";
        ChainError::Unavailable(format!("{what}; the first is asked again in {next} ms"))
    }

    /// Asks the nodes in order. A revert is an answer; a node that does not answer, or does not know
    /// the block, is passed over. If none is left, "unknown block" of any of them is the answer.
    pub(super) async fn read<R, F, A>(&self, ask: F) -> Result<R, ChainError>
    where
        F: Fn(Node) -> A + Send + Sync,
        A: Future<Output = Result<R, Fault>> + Send,
        R: Send,
    {
        let mut failure = None;
        for node in self.in_order() {
            match ask(node.clone()).await.map_err(|fault| fault.into_error(node.place)) {
                Ok(answer) => return Ok(answer),
                Err(reverted @ ChainError::Reverted(_)) => return Err(reverted),
                Err(ChainError::UnknownBlock) => failure = Some(ChainError::UnknownBlock),
                Err(other) => failure = failure.or(Some(other)),
            }
        }
        Err(failure.unwrap_or_else(|| self.all_left_alone()))
    }

    /// Asks the nodes in the background how far they are, so that one that stands still is noticed.
    pub(super) fn probe(&self) {
        let now = Instant::now();
        for node in self.list.iter().filter(|_| self.list.len() > 1) {
            let may_be_asked = node.health.pause_left(now).is_none();
            if may_be_asked && node.health.is_probe_due(now, PROBE_EVERY) {
                let (node, finality) = (node.clone(), self.finality);
                tokio::spawn(async move {
                    // It keeps what it said; a failure is kept by the call.
                    let _ = look::final_block(&node, finality).await;
                });
            }
        }
    }

    fn node(&self, place: usize) -> Option<&Node> {
        self.list.iter().find(|node| node.place == place)
    }

    pub(super) async fn look(
        &self,
        address: Address,
        sought: &[Sought],
        passed_over: &[usize],
    ) -> Result<Option<AccountLook>, ChainError> {
        self.probe();
        let mut failure = None;
        let nodes = self.in_order();
        if nodes.is_empty() && passed_over.is_empty() {
            return Err(self.all_left_alone());
        }
        for node in nodes.into_iter().filter(|node| !passed_over.contains(&node.place)) {
            match look::account(node, self.finality, address, sought).await {
                Ok(found) => return Ok(Some(found)),
                Err(fault) => failure = failure.or(Some(doubted(node, fault))),
            }
        }
        failure.map_or(Ok(None), Err)
    }

    pub(super) async fn mined(&self, hash: B256) -> Result<Option<Mined>, ChainError> {
        let mut failure = None;
        for node in self.in_order() {
            match look::mined(node, self.finality, hash).await {
                Ok(found) => return Ok(found),
                Err(fault) => failure = failure.or(Some(doubted(node, fault))),
            }
        }
        Err(failure.unwrap_or_else(|| self.all_left_alone()))
    }

    pub(super) async fn agreement(&self, claim: &Claim, by: Option<usize>) -> Agreement {
        let (mut said, mut asked) = (Agreement::default(), Vec::new());
        let words = FuturesUnordered::new();
        let now = Instant::now();
        for node in &self.list {
            if Some(node.place) == by {
                said.agree.push(node.place);
            } else if node.health.pause_left(now).is_some() {
                said.silent.push(node.place);
            } else {
                asked.push(node.place);
                words.push(async { (node.place, look::word(node, self.finality, claim).await) });
            }
        }
        hear(words, asked, self.list.len(), &mut said).await;
        if said.is_outvoted() {
            by.iter().for_each(|place| self.outvoted(*place));
        } else if said.is_carried() {
            said.contradict.iter().for_each(|place| self.outvoted(*place));
        }
        said
    }

    pub(super) async fn has_block(&self, block: BlockId, place: usize) -> bool {
        match self.node(place).filter(|it| it.health.pause_left(Instant::now()).is_none()) {
            Some(node) => {
                let claim = Claim::Canonical(block);
                look::word(node, self.finality, &claim).await == Word::Agrees
            }
            None => false,
        }
    }

    fn outvoted(&self, node: usize) {
        if let Some(node) = self.node(node) {
            node.health.outvoted(Instant::now());
        }
    }

    /// What the nodes make of it together, and what each has said.
    pub(super) async fn broadcast(&self, raw: &Bytes) -> (Broadcast, String) {
        let now = Instant::now();
        let usable = |node: &&Node| node.health.pause_left(now).is_none();
        let all = !self.list.iter().any(|node| usable(&node));
        let (tell, mut told) = mpsc::unbounded_channel();
        let mut said = BTreeMap::new();
        for node in &self.list {
            if !all && !usable(&node) {
                said.insert(node.place, "left alone after a failure".to_owned());
                continue;
            }
            said.insert(node.place, "not heard yet".to_owned());
            let (node, raw, tell) = (node.clone(), raw.clone(), tell.clone());
            // It goes on when the answer is given, for as long as a request may take.
            tokio::spawn(async move {
                // Nobody listens any more once one node has taken it.
                let _ = tell.send((node.place, send_on(node, raw).await));
            });
        }
        drop(tell);
        let mut answers = Vec::new();
        let mut until: Option<tokio::time::Instant> = None;
        loop {
            let next = match until {
                None => told.recv().await,
                Some(until) => timeout_at(until, told.recv()).await.unwrap_or_default(),
            };
            let Some((place, (answer, word))) = next else {
                return (combine(answers), listed(&said));
            };
            said.insert(place, word);
            if answer == Broadcast::Accepted {
                return (answer, listed(&said));
            }
            let in_words = !matches!(answer, Broadcast::Ambiguous(_));
            if in_words && until.is_none() {
                until = tokio::time::Instant::now().checked_add(GRACE);
            }
            answers.push(answer);
        }
    }
}

/// What each node said, for people.
fn listed(said: &BTreeMap<usize, String>) -> String {
    let each: Vec<String> =
        said.iter().map(|(place, word)| format!("node {place}: {word}")).collect();
    each.join("; ")
}

/// What it means, and what the node said.
async fn send_on(node: Node, raw: Bytes) -> (Broadcast, String) {
    match node.call::<_, B256>("eth_sendRawTransaction", (raw,)).await {
        Ok(_) => (Broadcast::Accepted, "taken".to_owned()),
        Err(Fault::Said(error)) => (error.broadcast(), bounded(&error.message)),
        Err(Fault::Silent { detail, .. } | Fault::Unreadable(detail)) => {
            (Broadcast::Ambiguous(format!("node {}: {detail}", node.place)), detail)
        }
    }
}

/// A node that cannot be believed in one thing, or fails in the midst of a look, is asked after the others for a
/// while.
fn doubted(node: &Node, fault: Fault) -> ChainError {
    if matches!(fault, Fault::Unreadable(_) | Fault::Silent { .. }) {
        node.health.outvoted(Instant::now());
    }
    fault.into_error(node.place)
}

/// Collects words until all are there; once more than half of all nodes say the same, the others have a
/// moment longer. Those that say nothing are silent.
async fn hear<W>(mut words: W, mut asked: Vec<usize>, all: usize, said: &mut Agreement)
where
    W: futures::Stream<Item = (usize, Word)> + Unpin,
{
    let mut until: Option<tokio::time::Instant> = None;
    loop {
        let decided = [&said.agree, &said.contradict].iter().any(|side| side.len() > all / 2);
        if decided && until.is_none() {
            until = tokio::time::Instant::now().checked_add(GRACE);
        }
        let next = match until {
            None => words.next().await,
            Some(until) => timeout_at(until, words.next()).await.unwrap_or_default(),
        };
        let Some((place, word)) = next else {
            break;
        };
        asked.retain(|other| *other != place);
        match word {
            Word::Agrees => said.agree.push(place),
            Word::Silent => said.silent.push(place),
            Word::Contradicts => said.contradict.push(place),
        }
    }
    said.silent.append(&mut asked);
    for side in [&mut said.agree, &mut said.silent, &mut said.contradict] {
        side.sort_unstable();
    }
}
