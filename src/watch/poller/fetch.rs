//! What a poller asks of the nodes, and what it does not believe.

use super::whole::Reading;
use super::{Poller, StepError, View, link};
use crate::core::chain_view::{Link, Place};
use crate::ports::chain::{Block, Log};
use crate::ports::chain_reader::OneNode;
use crate::ports::watch_store::NewEvent;
use crate::watch::plan::Source;
use futures::future::try_join_all;

/// How many questions are asked at once.
pub(super) const PARALLEL: usize = 8;

async fn header_on(node: &dyn OneNode, number: u64) -> Result<Block, StepError> {
    let block = node.block(number).await?;
    let missing = || StepError::Inconsistent(format!("block {number} is not there"));
    block.filter(|block| block.number == number).ok_or_else(missing)
}

/// The headers of these heights as one node has them, in order, linked or not.
pub(super) async fn headers_on(
    node: &dyn OneNode,
    from: u64,
    to: u64,
) -> Result<Vec<Block>, StepError> {
    let numbers: Vec<u64> = (from..=to).collect();
    let mut headers = Vec::with_capacity(numbers.len());
    for chunk in numbers.chunks(PARALLEL) {
        headers.extend(try_join_all(chunk.iter().map(|number| header_on(node, *number))).await?);
    }
    Ok(headers)
}

/// Which node is asked for blocks, and what is to be expected of it.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) node: &'a dyn OneNode,
    /// Up to where blocks are final: what the node lacks of them now it never will have.
    pub(super) final_to: Option<u64>,
}

impl Asked<'_> {
    fn reading(self, block: &Block) -> Reading {
        if self.final_to >= Some(block.number) { Reading::Final } else { Reading::Live }
    }
}

impl Poller {
    /// The newest block.
    pub(super) async fn head(&self) -> Result<Block, StepError> {
        Ok(self.node()?.head().await?)
    }

    /// The headers of these heights, in order. Whether they are linked is the caller's to check.
    pub(super) async fn headers(&self, from: u64, to: u64) -> Result<Vec<Block>, StepError> {
        headers_on(self.node()?.as_ref(), from, to).await
    }

    /// A block of a branch, by hash.
    pub(super) async fn parent(&self, at: Place) -> Result<Link, StepError> {
        let block = self.node()?.block_by_hash(at.hash).await?;
        let found = block.as_ref().map(link).filter(|link| link.place() == at);
        let missing = format!("the parent at {} is not there", at.number);
        found.ok_or(StepError::Inconsistent(missing))
    }

    /// What these sources find in these blocks, in order.
    pub(super) async fn events(
        &self,
        asked: Asked<'_>,
        headers: &[Block],
        sources: &[&Source],
        view: &View,
    ) -> Result<Vec<NewEvent>, StepError> {
        self.sample_blooms(asked.node, headers).await;
        let mut found = Vec::new();
        for chunk in headers.chunks(PARALLEL) {
            let each = chunk.iter().map(|block| self.events_of(asked, block, sources, view));
            found.extend(try_join_all(each).await?.into_iter().flatten());
        }
        Ok(found)
    }

    async fn events_of(
        &self,
        asked: Asked<'_>,
        block: &Block,
        sources: &[&Source],
        view: &View,
    ) -> Result<Vec<NewEvent>, StepError> {
        let may_have = |source: &&&Source| {
            let begun = view.next_of(source) <= block.number;
            begun && !source.reads_transactions() && self.may_be_in(source, block)
        };
        let mut events = self.transaction_events(asked.node, block, sources, view).await?;
        let sources: Vec<&Source> = sources.iter().filter(may_have).copied().collect();
        if sources.is_empty() {
            return Ok(events);
        }
        let logs = self.whole(asked.node, block, asked.reading(block)).await?;
        events.extend(self.events_in(block, &logs, &sources));
        Ok(events)
    }

    /// What these sources find among these logs of a block.
    pub(super) fn events_in(
        &self,
        block: &Block,
        logs: &[Log],
        sources: &[&Source],
    ) -> Vec<NewEvent> {
        let mut events = Vec::new();
        for log in logs {
            for source in sources.iter().filter(|source| source.is_log(log)) {
                events.push(self.event(source, block, log));
            }
        }
        events
    }
}
