//! What is found, as it is stored: the document, and who takes it.

use super::{Poller, StepError, View, link};
use crate::ports::bus::Wait;
use crate::ports::chain::{Block, Log};
use crate::ports::chain_reader::{OneNode, SeenReceipt, SeenTransaction};
use crate::ports::watch_store::{Again, NewDelivery, NewEvent};
use crate::watch::cloudevent;
use crate::watch::plan::Source;
use serde_json::Value;

/// How much is decoded again in one step.
const AGAIN_MAX: u32 = 64;

impl Poller {
    /// A log of a source's event.
    pub(super) fn event(&self, source: &Source, block: &Block, log: &Log) -> NewEvent {
        let chain = self.chain();
        let decoded = source.event().map(|event| event.decode(&log.topics, &log.data));
        let (body, undecodable) = match decoded {
            Some(Ok(decoded)) => (cloudevent::log(chain, source, block, log, &decoded), None),
            Some(Err(error)) => (cloudevent::raw(chain, log), Some(error.to_string())),
            None => (cloudevent::raw(chain, log), Some("the source is of no event".to_owned())),
        };
        self.new_event(source, block, cloudevent::event_id(chain, log), &body, undecodable)
    }

    /// A transaction that a source watches.
    fn transaction_event(
        &self,
        source: &Source,
        block: &Block,
        transaction: &SeenTransaction,
    ) -> NewEvent {
        let chain = self.chain();
        let (body, undecodable) = match cloudevent::decode(source, transaction) {
            Ok(values) => {
                (cloudevent::transaction(chain, source, block, transaction, values.as_ref()), None)
            }
            Err(error) => {
                (cloudevent::raw_transaction(chain, source, block, transaction), Some(error))
            }
        };
        let id = cloudevent::transaction_id(chain, block, transaction);
        self.new_event(source, block, id, &body, undecodable)
    }

    fn new_event(
        &self,
        source: &Source,
        block: &Block,
        event_id: String,
        body: &Value,
        undecodable: Option<String>,
    ) -> NewEvent {
        let subscribers = self.parts.subscribers.get(&source.name).map_or(&[][..], Vec::as_slice);
        let delivery = |(consumer, wait): &(String, Wait)| NewDelivery {
            consumer: consumer.clone(),
            held: *wait == Wait::Final,
        };
        let deliveries = if undecodable.is_some() { &[][..] } else { subscribers };
        NewEvent {
            source: source.name.clone(),
            event_id,
            block: link(block).place(),
            body: body.to_string(),
            undecodable,
            deliveries: deliveries.iter().map(delivery).collect(),
        }
    }

    /// What sources that watch transactions find in a block. Receipts are read only where a transaction
    /// would be one of theirs; they say whether it succeeded.
    pub(super) async fn transaction_events(
        &self,
        node: &dyn OneNode,
        block: &Block,
        sources: &[&Source],
        view: &View,
    ) -> Result<Vec<NewEvent>, StepError> {
        let begun =
            |source: &&&Source| source.reads_transactions() && view.next_of(source) <= block.number;
        let sources: Vec<&Source> = sources.iter().filter(begun).copied().collect();
        if sources.is_empty() {
            return Ok(Vec::new());
        }
        let transactions = node.block_transactions(block.hash).await?;
        let is_wanted = |seen: &SeenTransaction| sources.iter().any(|of| of.is_transaction(seen));
        if !transactions.iter().any(is_wanted) {
            return Ok(Vec::new());
        }
        let receipts = node.block_receipts(block.hash).await?;
        check_pairs(&transactions, &receipts)
            .map_err(|why| StepError::Inconsistent(format!("block {}: {why}", block.number)))?;
        let mut events = Vec::new();
        for (seen, _) in transactions.iter().zip(&receipts).filter(|(_, of)| of.success) {
            for source in sources.iter().filter(|source| source.is_transaction(seen)) {
                events.push(self.transaction_event(source, block, seen));
            }
        }
        Ok(events)
    }

    /// Decodes again what an operator asked for, after a signature was corrected. `true` if there was
    /// anything. What cannot be decoded again now is as it was before, with the reason: it holds up nothing.
    pub(super) async fn decode_again(&mut self, view: &View) -> Result<bool, StepError> {
        let marked = self.parts.store.to_decode_again(self.chain(), AGAIN_MAX).await?;
        let mut events = Vec::with_capacity(marked.len());
        for again in &marked {
            let event = self.decoded_again(again).await.unwrap_or_else(|why| {
                let (source, event_id) = (again.source.as_str(), again.event_id.as_str());
                tracing::warn!(source, event_id, why, "it cannot be decoded again now");
                NewEvent {
                    source: again.source.clone(),
                    event_id: again.event_id.clone(),
                    block: again.block,
                    body: again.body.clone(),
                    undecodable: Some(format!("cannot be decoded again now: {why}")),
                    deliveries: Vec::new(),
                }
            });
            events.push(event);
        }
        if events.is_empty() {
            return Ok(false);
        }
        self.advance(view, Vec::new(), Vec::new(), events).await?;
        Ok(true)
    }

    async fn decoded_again(&self, again: &Again) -> Result<NewEvent, String> {
        let source = self.parts.plan.sources.iter().find(|source| source.name == again.source);
        let source = source.ok_or("its source is not configured")?;
        let node = self.node().map_err(|error| error.to_string())?;
        let block =
            node.block_by_hash(again.block.hash).await.map_err(|error| error.to_string())?;
        let missing = || format!("the node does not have block {}", again.block.hash);
        let block = block.filter(|block| link(block).place() == again.block).ok_or_else(missing)?;
        let raw: Value = serde_json::from_str(&again.body).unwrap_or_default();
        let event = if source.reads_transactions() {
            cloudevent::seen_transaction(&raw)
                .map(|seen| self.transaction_event(source, &block, &seen))
        } else {
            cloudevent::seen_log(&raw).map(|log| self.event(source, &block, &log))
        };
        // Of another id it would leave the mark where it is.
        let event = event.filter(|event| event.event_id == again.event_id);
        event.ok_or_else(|| "what was kept of it does not read".to_owned())
    }
}

/// One receipt for each transaction, both complete by their numbers.
fn check_pairs(
    transactions: &[SeenTransaction],
    receipts: &[SeenReceipt],
) -> Result<(), &'static str> {
    if transactions.len() != receipts.len() {
        return Err("there are not as many receipts as transactions");
    }
    let fits = |((index, seen), receipt): ((u64, &SeenTransaction), &SeenReceipt)| {
        seen.index == index && receipt.index == index && receipt.transaction == seen.hash
    };
    if (0..).zip(transactions).zip(receipts).all(fits) {
        Ok(())
    } else {
        Err("receipts are of other transactions")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::primitives::{Address, B256, Bytes, U256};

    fn seen(index: u64) -> SeenTransaction {
        SeenTransaction {
            hash: B256::with_last_byte(u8::try_from(index).unwrap()),
            index,
            from: Address::ZERO,
            to: None,
            value: U256::ZERO,
            data: Bytes::new(),
        }
    }

    fn receipt(index: u64) -> SeenReceipt {
        let transaction = seen(index).hash;
        SeenReceipt { transaction, index, success: true, logs: Vec::new() }
    }

    #[test]
    fn receipts_that_are_cut_or_of_others_are_noticed() {
        let transactions = [seen(0), seen(1)];
        assert!(check_pairs(&transactions, &[receipt(0), receipt(1)]).is_ok());
        assert!(check_pairs(&transactions, &[receipt(0)]).is_err());
        assert!(check_pairs(&transactions, &[receipt(1), receipt(0)]).is_err());
        assert!(check_pairs(&transactions[1..], &[receipt(1)]).is_err());
    }
}
