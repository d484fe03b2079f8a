//! What a poller does before its first step: is this the chain it was, and where does it begin?

use super::{Poller, StepError, around, link};
use crate::ports::bus::Wait;
use crate::ports::chain::Block;
use crate::ports::watch_store::{Backlog, ChainPin, SourceState};

/// How many events are looked at in one transaction for a consumer that came later.
const BACKLOG_MOST: u32 = 1000;
/// Of two nodes, one that is further behind the other has not got all blocks yet, or stands still.
const NEAR_BLOCKS: u64 = 12;

impl Poller {
    /// Pins or compares the chain, and adds new sources.
    pub(super) async fn start(&mut self) -> Result<(), StepError> {
        let (chain_id, genesis) = self.parts.chain.identity().await?;
        let configured = self.parts.plan.chain.chain_id;
        if chain_id != configured {
            let why = format!("the nodes say chain id {chain_id}, configured is {configured}");
            return Err(self.halt(why).await);
        }
        let pin = ChainPin { name: self.chain().to_owned(), chain_id, genesis };
        let known = self.parts.store.load(self.chain()).await?;
        if let Some(pinned) =
            known.as_ref().map(|state| &state.pin).filter(|pinned| **pinned != pin)
        {
            let why = format!(
                "the chain was pinned to chain id {} with genesis {}, but the nodes say {chain_id} with \
                 genesis {genesis}",
                pinned.chain_id, pinned.genesis
            );
            return Err(self.halt(why).await);
        }
        let head = self.head().await?;
        let sources = self.sources(self.head_of_most(&head).await);
        let anchor = match known.as_ref().and_then(|state| state.window.first()) {
            Some(first) => *first,
            None => link(&self.anchor(&head).await?),
        };
        self.parts.store.register(&pin, anchor).await?;
        for source in &sources {
            self.parts.store.add_source(self.chain(), source).await?;
        }
        self.begin_reads().await?;
        self.tell_backlogs().await?;
        let (chain, sources) = (self.chain(), sources.len());
        tracing::info!(chain, %chain_id, %genesis, head = head.number, sources, "following");
        self.gauge("claviger_reorg_depth", 0);
        Ok(())
    }

    /// The head that a source may begin after: of three or more nodes what the second furthest says, since
    /// one must not have it begin beyond the true one; of two the lower, if both are at work.
    async fn head_of_most(&self, head: &Block) -> u64 {
        if self.parts.chain.count() < 2 {
            return head.number;
        }
        let heads = self.heads().await;
        let said = heads.iter().map(|(_, head)| head.number);
        if heads.len() > 2 {
            return around::reference(said).map_or(head.number, |most| most.min(head.number));
        }
        let is_near = |other: &u64| other.saturating_add(NEAR_BLOCKS) >= head.number;
        said.filter(is_near).fold(head.number, u64::min)
    }

    /// What is kept of sources besides, where it is not there yet: with which block they began, and how far
    /// they were read a second time. Before anything is found: what has no second reading may be pruned.
    async fn begin_reads(&self) -> Result<(), StepError> {
        let state = self.parts.store.load(self.chain()).await?;
        let mut begin = Vec::new();
        for source in &self.parts.plan.sources {
            if let Some(from) = source.from_block {
                self.parts.store.note_first_block(&source.name, from.max(1)).await?;
            }
            let states = state.iter().flat_map(|state| &state.sources);
            let next = states.filter(|of| of.name == source.name).map(|of| of.next_block).min();
            if !source.reads_transactions() {
                begin.extend(next.map(|next| (source.name.clone(), next)));
            }
        }
        self.parts.store.checked(&begin).await?;
        Ok(())
    }

    /// The sources as they would begin now. Block 0 has no logs.
    fn sources(&self, head: u64) -> Vec<SourceState> {
        let after_head = head.saturating_add(1);
        let state = |source: &super::Source| SourceState {
            name: source.name.clone(),
            definition: source.definition(),
            next_block: source.from_block.unwrap_or(after_head).max(1),
            to_block: None,
        };
        self.parts.plan.sources.iter().map(state).collect()
    }

    /// Where a new window begins: at the final block, so that no reorg goes below it. What sources want
    /// from before it is backfill, beside what comes.
    async fn anchor(&mut self, head: &Block) -> Result<Block, StepError> {
        let node = self.node()?;
        let rule = self.parts.plan.chain.finality.into();
        let said = node.last_final(rule).await?.map_or(0, |block| block.number);
        let number = self.final_bound(rule, said).await.min(head.number);
        let block = node.block(number).await?;
        block.ok_or_else(|| StepError::Inconsistent(format!("block {number} is not there")))
    }

    /// Before anything new is found, so that the order of each source is kept.
    async fn tell_backlogs(&self) -> Result<(), StepError> {
        for (source, consumers) in &self.parts.since_beginning {
            for (consumer, wait) in consumers {
                let backlog = Backlog {
                    consumer: consumer.clone(),
                    source: source.clone(),
                    held: *wait == Wait::Final,
                    most: BACKLOG_MOST,
                    now: self.parts.clock.now(),
                };
                while self.parts.store.tell_backlog(&backlog).await? {}
            }
        }
        Ok(())
    }
}
