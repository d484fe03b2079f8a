//! What a poller asks of the nodes, and what it does not believe.

use super::{Poller, StepError, View, cloudevent, link};
use crate::core::chain_view::completeness::{self, SeenLog};
use crate::core::chain_view::{Link, Place};
use crate::ports::bus::Wait;
use crate::ports::chain::{Block, BlockAt, Chain, ChainError, Log};
use crate::ports::watch_store::{NewDelivery, NewEvent};
use crate::watch::plan::Source;
use futures::future::try_join_all;

/// How many questions are asked at once.
const PARALLEL: usize = 8;

impl Poller {
    /// The newest block.
    pub(super) async fn head(&self) -> Result<Block, StepError> {
        let head = self.parts.chain.block(BlockAt::Latest).await?;
        head.ok_or_else(|| ChainError::Unavailable("the node has no head".to_owned()).into())
    }

    async fn header(&self, number: u64) -> Result<Block, StepError> {
        let block = self.parts.chain.block(BlockAt::Number(number)).await?;
        let missing = || StepError::Inconsistent(format!("block {number} is not there"));
        block.filter(|block| block.number == number).ok_or_else(missing)
    }

    /// The headers of these heights, in order. Whether they are linked is the caller's to check.
    pub(super) async fn headers(&self, from: u64, to: u64) -> Result<Vec<Block>, StepError> {
        let numbers: Vec<u64> = (from..=to).collect();
        let mut headers = Vec::with_capacity(numbers.len());
        for chunk in numbers.chunks(PARALLEL) {
            headers.extend(try_join_all(chunk.iter().map(|number| self.header(*number))).await?);
        }
        Ok(headers)
    }

    /// A block of a branch, by hash.
    pub(super) async fn parent(&self, at: Place) -> Result<Link, StepError> {
        let block = self.parts.chain.block(BlockAt::Hash(at.hash)).await?;
        let found = block.as_ref().map(link).filter(|link| link.place() == at);
        let missing = format!("the parent at {} is not there", at.number);
        found.ok_or(StepError::Inconsistent(missing))
    }

    /// The newest final block that is on our chain; `None` if the nodes' answer does not fit ours.
    pub(super) async fn final_place(
        &self,
        chain: &dyn Chain,
        view: &View,
    ) -> Result<Option<Place>, StepError> {
        let Some(found) = chain.block(BlockAt::Final).await? else { return Ok(None) };
        let place = Place { number: found.number, hash: found.hash };
        if place.number <= view.tip.number {
            return Ok(Some(place).filter(|place| view.window.has(*place)));
        }
        // All that we have is final, if it is what the node has at that height.
        let at_tip = chain.block(BlockAt::Number(view.tip.number)).await?;
        Ok(at_tip.map(|block| link(&block).place()).filter(|place| *place == view.tip))
    }

    /// What these sources find in these blocks, in order.
    pub(super) async fn events(
        &self,
        headers: &[Block],
        sources: &[&Source],
        view: &View,
    ) -> Result<Vec<NewEvent>, StepError> {
        let mut found = Vec::new();
        for chunk in headers.chunks(PARALLEL) {
            let asked = chunk.iter().map(|block| self.events_of(block, sources, view));
            found.extend(try_join_all(asked).await?.into_iter().flatten());
        }
        Ok(found)
    }

    async fn events_of(
        &self,
        block: &Block,
        sources: &[&Source],
        view: &View,
    ) -> Result<Vec<NewEvent>, StepError> {
        let uses_bloom = self.parts.plan.chain.logs_bloom;
        let may_have = |source: &&&Source| {
            let begun = view.next_of(source) <= block.number;
            let topic0 = source.event.topic0();
            let bloom = &block.logs_bloom;
            begun && (!uses_bloom || completeness::may_have(bloom, source.address, topic0))
        };
        let sources: Vec<&Source> = sources.iter().filter(may_have).copied().collect();
        if sources.is_empty() {
            return Ok(Vec::new());
        }
        let mut logs = self.parts.chain.block_logs(block.hash).await?;
        logs.sort_by_key(|log| log.log_index);
        self.check_complete(block, &logs)?;
        let mut events = Vec::new();
        for log in &logs {
            for source in &sources {
                if log.address == source.address
                    && log.topics.first() == Some(&source.event.topic0())
                {
                    events.push(self.event(source, block, log));
                }
            }
        }
        Ok(events)
    }

    fn check_complete(&self, block: &Block, logs: &[Log]) -> Result<(), StepError> {
        let seen = |log: &'_ Log| Place { number: log.block_number, hash: log.block_hash };
        let seen: Vec<SeenLog<'_>> = logs
            .iter()
            .map(|log| SeenLog {
                block: seen(log),
                index: log.log_index,
                address: log.address,
                topics: &log.topics,
            })
            .collect();
        let bloom = self.parts.plan.chain.logs_bloom.then_some(block.logs_bloom.as_ref());
        completeness::check(link(block).place(), bloom, &seen).map_err(|error| {
            metrics::counter!("claviger_rpc_errors_total", "class" => "incomplete").increment(1);
            StepError::Inconsistent(format!("block {}: {error}", block.number))
        })
    }

    fn event(&self, source: &Source, block: &Block, log: &Log) -> NewEvent {
        let chain = self.chain();
        let decoded = source.event.decode(&log.topics, &log.data);
        let (body, undecodable) = match &decoded {
            Ok(decoded) => (cloudevent::log(chain, source, block, log, decoded), None),
            Err(error) => (cloudevent::raw(chain, log), Some(error.to_string())),
        };
        let subscribers = self.parts.subscribers.get(&source.name).map_or(&[][..], Vec::as_slice);
        let delivery = |(consumer, wait): &(String, Wait)| NewDelivery {
            consumer: consumer.clone(),
            held: *wait == Wait::Final,
        };
        let deliveries = if undecodable.is_some() { &[][..] } else { subscribers };
        NewEvent {
            source: source.name.clone(),
            event_id: cloudevent::event_id(chain, log),
            block: link(block).place(),
            body: body.to_string(),
            undecodable,
            deliveries: deliveries.iter().map(delivery).collect(),
        }
    }
}
