//! Back to the common ancestor, or to a halt: never by one node's word against the others'.

use super::{Poller, StepError, View, link};
use crate::core::chain_view::retraction::{Verdict, Word, judge, weigh};
use crate::core::chain_view::{Link, Place};
use crate::ports::chain::{Block, BlockId, Claim};
use crate::ports::watch_store::{RollBack, StandingEvent, WatchStoreError};
use crate::watch::cloudevent;

/// How long a branch that as many nodes contradict as have it is not followed while ours does not grow, in
/// milliseconds: one side gives way within a few blocks. It is long for a chain whose blocks come every
/// quarter of a minute, and short for people.
const SPLIT_MS: i64 = 60_000;

/// The documents that take these events back.
pub(super) fn retractions(
    standing: Vec<StandingEvent>,
    now: crate::core::time::Timestamp,
) -> Result<Vec<StandingEvent>, WatchStoreError> {
    let retraction = |event: StandingEvent| {
        let body = cloudevent::retraction(&event.body, now);
        let unread = || WatchStoreError::Contradiction("a stored event is no JSON".to_owned());
        Ok(StandingEvent { body: body.ok_or_else(unread)?, ..event })
    };
    standing.into_iter().map(retraction).collect()
}

impl Poller {
    /// Goes back to where a branch leaves our chain.
    pub(super) async fn reorg(&mut self, view: View, newest: &Block) -> Result<View, StepError> {
        let mut branch = vec![link(newest)];
        let verdict = loop {
            match judge(&view.window, view.finalized, &branch) {
                Verdict::NeedsParent(parent) => branch.push(self.parent(parent).await?),
                verdict => break verdict,
            }
        };
        if verdict == Verdict::Ours {
            return Err(StepError::Inconsistent("the head went back and forth".to_owned()));
        }
        // The branch's oldest block is the one that ours has not: nodes that are not as far as its newest
        // can speak of it too.
        let oldest = branch.last().map_or_else(|| link(newest).place(), Link::place);
        self.hear_others(&view, oldest).await?;
        match verdict {
            Verdict::Back { ancestor, depth } => {
                self.gauge("claviger_reorg_depth", depth);
                self.roll_back(&view, ancestor, depth).await?;
                self.load().await
            }
            Verdict::Halt(why) => Err(self.halt(why.to_string()).await),
            Verdict::Ours | Verdict::NeedsParent(_) => Ok(view),
        }
    }

    /// Asks the other nodes about a block that ours is to give way to. `Ok` if it may; otherwise this
    /// node is passed over for the step.
    async fn hear_others(&mut self, view: &View, block: Place) -> Result<(), StepError> {
        let place = self.node()?.place();
        let claim = Claim::Canonical(BlockId { number: block.number, hash: block.hash });
        let said = self.parts.chain.agreement(&claim, Some(place)).await;
        let now = self.parts.clock.now();
        let (number, against) = (block.number, said.contradict.len());
        let refused = match weigh(&said) {
            Word::Believed => false,
            Word::PassedOver => true,
            Word::Split => {
                let waited = self.others.split_since(view.tip, now);
                now.millis().saturating_sub(waited.millis()) < SPLIT_MS
            }
        };
        if !refused {
            self.others.forget_split();
            return Ok(());
        }
        self.others.passed_over = Some(place);
        self.count_passed_over("contradicted");
        let (chain, against_of) = (self.chain(), self.parts.chain.count());
        tracing::warn!(
            chain,
            node = place,
            number,
            against,
            "a node is on a branch that others contradict; it is passed over"
        );
        Err(StepError::Inconsistent(format!(
            "node {place} has another block {number} than ours, which {against} of {against_of} nodes \
             contradict"
        )))
    }

    async fn roll_back(&self, view: &View, to: Place, depth: u64) -> Result<(), StepError> {
        let now = self.parts.clock.now();
        let standing = self.parts.store.standing_above(self.chain(), to.number).await?;
        let retractions = retractions(standing, now)?;
        let (chain, ancestor, events) = (self.chain(), to.number, retractions.len());
        tracing::warn!(chain, depth, ancestor, events, "reorg: events are retracted");
        let back = RollBack {
            chain: self.chain().to_owned(),
            expected: view.tip,
            ancestor: to,
            retractions,
            now,
        };
        Ok(self.parts.store.roll_back(&back).await?)
    }

    /// Stores that the chain stands still until an operator lets it go on.
    pub(super) async fn halt(&mut self, why: String) -> StepError {
        let stored = self.parts.store.set_halted(self.chain(), Some(&why)).await;
        let halted = self.stand_still(why);
        match stored {
            Ok(()) => halted,
            Err(error) => StepError::Store(error),
        }
    }

    /// Tells it, once for each process.
    pub(super) fn stand_still(&mut self, why: String) -> StepError {
        self.gauge("claviger_watcher_halted", 1);
        if self.halted.as_ref() != Some(&why) {
            let chain = self.chain();
            tracing::error!(
                chain,
                why,
                "the chain is halted; nothing is taken until an operator looks (`claviger-watcher resume`)"
            );
            self.halted = Some(why.clone());
        }
        StepError::Halted(why)
    }
}
