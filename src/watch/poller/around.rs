//! How far the other nodes are: a node that stands still is not noticed by asking it.

use super::Poller;
use crate::core::chain_view::Place;
use crate::core::chain_view::retraction::{Word, weigh};
use crate::core::time::Timestamp;
use crate::ports::chain::{Block, BlockId, Claim};
use crate::ports::chain_reader::{ChainReader, OneNode, Rule};
use futures::future::join_all;
use std::sync::Arc;
use std::time::Duration;

/// How often the nodes' heads are compared, in milliseconds.
const LOOK_EVERY_MS: i64 = 5_000;
/// How long is waited for a node to tell its head. A step does not wait for one that hangs; its call goes
/// on, and fails against it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(1);
/// A node that is so many blocks behind the furthest is passed over until the next look.
pub(super) const BEHIND_BLOCKS: u64 = 3;
/// How many heads are asked about at most in one look.
const CLAIMS_MAX: usize = 3;

/// What is known of the nodes besides the one in hand.
pub(super) struct Others {
    looked_at: Option<Timestamp>,
    /// The furthest head that was shown, and is not outvoted.
    furthest: u64,
    /// Those that are behind it.
    behind: Vec<usize>,
    /// Nodes contradict each other, and none is more than half: since when, and where we stood.
    split: Option<(Place, Timestamp)>,
    /// The node of this step is not believed.
    pub(super) passed_over: Option<usize>,
    /// What others have borne out of finality, by rule.
    finals: Vec<BorneOut>,
}

/// How high finality was borne out by other nodes than the one in hand.
#[derive(Clone, Copy)]
struct BorneOut {
    rule: Rule,
    number: u64,
    /// The height that they were asked for last, and when.
    asked_for: u64,
    at: Timestamp,
}

impl Others {
    pub(super) const fn new() -> Self {
        Self {
            looked_at: None,
            furthest: 0,
            behind: Vec::new(),
            split: None,
            passed_over: None,
            finals: Vec::new(),
        }
    }

    /// The furthest head, where the node in hand has this one.
    pub(super) fn furthest(&self, head: u64) -> u64 {
        self.furthest.max(head)
    }

    /// Since when nodes contradict each other while we stand here.
    pub(super) fn split_since(&mut self, tip: Place, now: Timestamp) -> Timestamp {
        match self.split {
            Some((at, since)) if at == tip && since <= now => since,
            _ => {
                self.split = Some((tip, now));
                now
            }
        }
    }

    pub(super) const fn forget_split(&mut self) {
        self.split = None;
    }
}

impl Poller {
    /// The node to take a step with, none of these: the first that is not behind the others; one that is,
    /// if no other may be asked.
    pub(super) fn choose(&self, passed_over: &[usize]) -> Option<Arc<dyn OneNode>> {
        let but = [passed_over, &self.others.behind].concat();
        self.parts.chain.node(&but).or_else(|| self.parts.chain.node(passed_over))
    }

    /// Compares the nodes' heads now and then.
    pub(super) async fn look_around(&mut self) {
        let now = self.parts.clock.now();
        let since = self.others.looked_at.map(|at| now.millis().saturating_sub(at.millis()));
        // A clock that was ahead is not waited for.
        let is_due = since.is_none_or(|since| !(0..LOOK_EVERY_MS).contains(&since));
        if self.parts.chain.count() < 2 || !is_due {
            return;
        }
        self.others.looked_at = Some(now);
        let heads = self.heads().await;
        let furthest = self.furthest_of(&heads).await;
        let is_behind =
            |head: &Block| head.number.saturating_add(BEHIND_BLOCKS) < furthest.unwrap_or(0);
        let mut behind = Vec::new();
        for (node, head) in heads.iter().filter(|(_, head)| is_behind(head)) {
            let place = node.place();
            behind.push(place);
            if !self.others.behind.contains(&place) {
                let (chain, furthest) = (self.chain(), furthest.unwrap_or(0));
                let head = head.number;
                tracing::warn!(
                    chain,
                    node = place,
                    head,
                    furthest,
                    "a node is behind; passed over"
                );
                self.count_passed_over("behind");
            }
        }
        self.others.furthest = furthest.unwrap_or(0);
        self.others.behind = behind;
    }

    pub(super) fn count_passed_over(&self, why: &'static str) {
        let chain = self.chain().to_owned();
        metrics::counter!("claviger_watcher_passed_over_total", "chain" => chain, "why" => why)
            .increment(1);
    }

    /// The heads of all nodes that answer in time.
    pub(super) async fn heads(&self) -> Vec<(Arc<dyn OneNode>, Block)> {
        let head = |node: Arc<dyn OneNode>| async move { node.head().await.ok() };
        ask_all(&*self.parts.chain, head).await
    }

    async fn furthest_of(&self, heads: &[(Arc<dyn OneNode>, Block)]) -> Option<u64> {
        let contradicted = |node: usize, number: u64| {
            let chain = self.chain();
            tracing::warn!(chain, node, number, "a node is on a branch that others contradict");
            self.count_passed_over("contradicted");
        };
        furthest_of(&*self.parts.chain, heads, contradicted).await
    }

    /// How high finality may be raised by one node's word for this height: where three or more speak, to
    /// what the second furthest says, so that one that lies makes nothing final. Others are asked only for
    /// what they have not borne out yet.
    pub(super) async fn final_bound(&mut self, rule: Rule, said: u64) -> u64 {
        let known = self.others.finals.iter().find(|of| of.rule == rule).copied();
        let now = self.parts.clock.now();
        if self.parts.chain.count() < 3 {
            return said;
        }
        if let Some(known) = known {
            let since = now.millis().saturating_sub(known.at.millis());
            let is_fresh = (0..LOOK_EVERY_MS).contains(&since);
            if said <= known.number || (is_fresh && said <= known.asked_for) {
                return said.min(known.number);
            }
        }
        let last_final = move |node: Arc<dyn OneNode>| async move {
            Some(node.last_final(rule).await.ok()?.map_or(0, |block| block.number))
        };
        let words = ask_all(&*self.parts.chain, last_final).await;
        let number = reference(words.into_iter().map(|(_, number)| number)).unwrap_or(0);
        let number = number.max(known.map_or(0, |known| known.number));
        self.others.finals.retain(|of| of.rule != rule);
        self.others.finals.push(BorneOut { rule, number, asked_for: said, at: now });
        if number < said {
            let chain = self.chain();
            tracing::debug!(chain, said, number, "a final block is not borne out yet");
        }
        said.min(number)
    }
}

/// The furthest of what nodes say of themselves; of three or more, the second furthest.
pub(super) fn reference(said: impl Iterator<Item = u64>) -> Option<u64> {
    let mut said: Vec<u64> = said.collect();
    said.sort_unstable_by(|one, other| other.cmp(one));
    said.get(usize::from(said.len() > 2)).copied()
}

/// Asks all nodes at once; who does not answer in time is left out. Its call goes on, and fails against it.
pub(super) async fn ask_all<T, F, A>(chain: &dyn ChainReader, ask: F) -> Vec<(Arc<dyn OneNode>, T)>
where
    T: Send + 'static,
    F: Fn(Arc<dyn OneNode>) -> A,
    A: Future<Output = Option<T>> + Send + 'static,
{
    let (mut nodes, mut places) = (Vec::new(), Vec::new());
    while let Some(node) = chain.node(&places) {
        places.push(node.place());
        nodes.push(node);
    }
    let asked = nodes.into_iter().map(|node| {
        let call = tokio::spawn(ask(Arc::clone(&node)));
        async move {
            let answer = tokio::time::timeout(HEAD_TIMEOUT, call).await;
            Some((node, answer.ok()?.ok()??))
        }
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// The furthest head whose node is on no branch that more than half of the others contradict. They
/// are asked about its block at a height that all have reached: above its own head a node says
/// nothing. So a node that invents blocks above all others is not found out by this; its blocks must
/// still be the children of ours, and others contradict them once they are as far.
pub(super) async fn furthest_of(
    chain: &dyn ChainReader,
    heads: &[(Arc<dyn OneNode>, Block)],
    contradicted: impl Fn(usize, u64),
) -> Option<u64> {
    let mut heads: Vec<&(Arc<dyn OneNode>, Block)> = heads.iter().collect();
    heads.sort_by_key(|(_, head)| std::cmp::Reverse(head.number));
    let lowest = heads.last().map(|(_, head)| head.number)?;
    for (node, head) in heads.into_iter().take(CLAIMS_MAX) {
        if head.number == lowest {
            return Some(lowest);
        }
        let at = tokio::time::timeout(HEAD_TIMEOUT, node.block(lowest)).await;
        let Ok(Ok(Some(at))) = at else { continue };
        let claim = Claim::Canonical(BlockId { number: at.number, hash: at.hash });
        let said = chain.agreement(&claim, Some(node.place())).await;
        if weigh(&said) != Word::PassedOver {
            return Some(head.number);
        }
        contradicted(node.place(), at.number);
    }
    Some(lowest)
}
