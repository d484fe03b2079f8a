//! What a poller does before its first step: is this the chain it was, and where does it begin?

use super::{Poller, StepError, link};
use crate::ports::chain::{Block, BlockAt};
use crate::ports::watch_store::{ChainPin, SourceState};

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
        let head = self.head().await?;
        let sources = self.sources(&head);
        let known = self.parts.store.load(self.chain()).await?;
        let anchor = match known.as_ref().and_then(|state| state.window.first()) {
            Some(first) => *first,
            None => link(&self.anchor(&head, &sources).await?),
        };
        self.parts.store.register(&pin, anchor).await?;
        for source in &sources {
            self.parts.store.add_source(self.chain(), source).await?;
        }
        // If whatever halted it is still so, it halts again.
        self.parts.store.set_halted(self.chain(), None).await?;
        let (chain, sources) = (self.chain(), sources.len());
        tracing::info!(chain, %chain_id, %genesis, head = head.number, sources, "following");
        Ok(())
    }

    /// The sources as they would begin now. Block 0 has no logs.
    fn sources(&self, head: &Block) -> Vec<SourceState> {
        let after_head = head.number.saturating_add(1);
        let state = |source: &super::Source| SourceState {
            name: source.name.clone(),
            definition: source.definition(),
            next_block: source.from_block.unwrap_or(after_head).max(1),
        };
        self.parts.plan.sources.iter().map(state).collect()
    }

    /// Where a new window begins: below all sources, and final, so that no reorg goes below it.
    async fn anchor(&self, head: &Block, sources: &[SourceState]) -> Result<Block, StepError> {
        let first = sources.iter().map(|source| source.next_block).min();
        let before = first.map_or(head.number, |first| first.saturating_sub(1));
        let finalized = self.parts.chain.block(BlockAt::Final).await?;
        let finalized = finalized.map_or(0, |block| block.number);
        let number = before.min(head.number).min(finalized);
        let block = self.parts.chain.block(BlockAt::Number(number)).await?;
        block.ok_or_else(|| StepError::Inconsistent(format!("block {number} is not there")))
    }
}
