//! The trigger consumer: an event becomes a request to the signing server.
//!
//! The request names its source event, which the server reads again from the chain, and carries the
//! hash of the event's business id as its idempotency key: however often the event is delivered, by
//! whichever watcher, there is one transaction.

use super::plan::TriggerPlan;
use super::server::Server;
use crate::core::trigger::idempotency_key;
use crate::ports::bus::{Consumer, Kind, Message, Outcome, Wait};
use alloy::primitives::{Address, B256, Bytes};
use async_trait::async_trait;
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

/// One trigger.
#[derive(Debug)]
pub struct TriggerConsumer {
    name: String,
    plan: TriggerPlan,
    server: Arc<Server>,
}

/// What a trigger reads of a document: the raw log, which it decodes itself.
#[derive(Debug, Deserialize)]
struct Event {
    data: RawLog,
}

#[derive(Debug, Deserialize)]
struct RawLog {
    contract: Address,
    block_hash: B256,
    transaction_hash: B256,
    log_index: u64,
    topics: Vec<B256>,
    data: Bytes,
}

/// A request to the server, and its idempotency key.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    key: String,
    body: String,
}

impl TriggerConsumer {
    /// A consumer named `trigger:NAME`.
    #[must_use]
    pub fn new(plan: TriggerPlan, server: Arc<Server>) -> Self {
        Self { name: format!("trigger:{}", plan.name), plan, server }
    }
}

/// The request that a trigger makes of a message. The same message always gives the same bytes.
fn request(plan: &TriggerPlan, message: &Message) -> Result<Request, String> {
    let event: Event = serde_json::from_str(&message.body).map_err(|error| error.to_string())?;
    let log = event.data;
    if log.contract != plan.source.address {
        return Err("the event is of another contract".to_owned());
    }
    let decoded = plan.source.event.decode(&log.topics, &log.data).map_err(|e| e.to_string())?;
    let data = plan.call.calldata(&decoded).map_err(|error| error.to_string())?;
    let business_id = plan
        .business_id
        .values(&plan.source_chain, log.contract, log.transaction_hash, &decoded)
        .ok_or("the event lacks a field of the business id")?;
    let body = json!({
        "chain": plan.chain,
        "signer": plan.signer,
        "to": format!("{:#x}", plan.to),
        "value": "0",
        "data": data,
        "source": {
            "block_hash": log.block_hash,
            "transaction_hash": log.transaction_hash,
            "log_index": log.log_index,
        },
        "metadata": {
            "event_id": message.event_id,
            "business_id": business_id.join(":"),
            "trigger": plan.name,
        },
    });
    Ok(Request { key: idempotency_key(&plan.name, &business_id), body: body.to_string() })
}

#[async_trait]
impl Consumer for TriggerConsumer {
    fn name(&self) -> &str {
        &self.name
    }

    fn subscriptions(&self) -> Vec<(String, Wait)> {
        vec![(self.plan.source.name.clone(), Wait::Final)]
    }

    async fn deliver(&self, message: &Message) -> Outcome {
        if message.kind == Kind::Retraction {
            let (trigger, event_id) = (self.plan.name.as_str(), message.event_id.as_str());
            tracing::error!(trigger, event_id, "retracted after the server was asked");
            return Outcome::Done("noted; nothing is reversed by itself".to_owned());
        }
        match request(&self.plan, message) {
            Ok(request) => self.server.request(&request.key, request.body).await,
            Err(reason) => Outcome::Park(reason),
        }
    }
}
