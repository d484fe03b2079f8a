//! The trigger consumer: an event becomes a request to the signing server.
//!
//! The event is read again from a node first: neither a broker nor the watcher's own database can invent one.
//! The request names its source event, which the server reads too, and carries the hash of the event's business
//! id as its idempotency key: however often the event is delivered, by whichever watcher, there is one
//! transaction. A retraction is told to the server, which reads that from the chain as well where it can.

mod answer;
pub mod check;
mod guard;
mod linked;
mod reread;
mod retract;

use super::cloudevent::{self, Fact};
use super::plan::TriggerPlan;
use super::server::Server;
use crate::core::trigger::{DecodedLog, idempotency_key};
use crate::ports::bus::{Consumer, Kind, Message, Outcome, Wait};
use crate::ports::chain_reader::ChainReader;
use crate::ports::clock::Clock;
use crate::ports::watch_store::{WatchStore, WatchStoreError};
use async_trait::async_trait;
use serde_json::{Value, json};
use std::sync::Arc;

/// So long is tried again what time may heal, such as nodes that are behind; then an operator must look. In
/// milliseconds.
const PATIENCE_MS: i64 = 10 * 60_000;
/// A reason that begins so is shown by `status` at once.
const ABOVE_RATE: &str = "above its rate";

/// What a trigger stands on.
pub struct Means {
    /// The signing server.
    pub server: Arc<Server>,
    /// The nodes of the chain that its source is on.
    pub chain: Arc<dyn ChainReader>,
    /// The watcher's database.
    pub store: Arc<dyn WatchStore>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

/// One trigger.
pub struct TriggerConsumer {
    name: String,
    plan: TriggerPlan,
    means: Means,
}

/// Why an event became nothing, or not yet.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Not {
    /// Not yet: tried again for as long as it takes; not before so many milliseconds, if given.
    Yet(Option<i64>, String),
    /// Not yet: it steps aside, and is tried again for as long as it takes.
    Aside(String),
    /// Time may heal it: it steps aside, is tried again for a while, and is then parked. Whoever may emit
    /// events of the source can bring it about, so what comes after it must not wait for it.
    Early(String),
    /// Never: parked.
    Never(String),
}

impl From<WatchStoreError> for Not {
    fn from(error: WatchStoreError) -> Self {
        Self::Yet(None, error.to_string())
    }
}

/// A request to the server, and its idempotency key.
#[derive(Debug, PartialEq)]
struct Request {
    key: String,
    body: Value,
}

impl TriggerConsumer {
    /// A consumer named `trigger:NAME`.
    #[must_use]
    pub fn new(plan: TriggerPlan, means: Means) -> Self {
        Self { name: format!("trigger:{}", plan.name), plan, means }
    }

    /// What a document tells of, decoded from the raw bytes in it.
    fn told(&self, message: &Message) -> Result<Fact, Not> {
        cloudevent::fact(&message.body, &self.plan.source_chain, &self.plan.source)
            .map_err(Not::Never)
    }

    async fn ask(&self, message: &Message) -> Result<String, Not> {
        let told = self.told(message)?;
        // What cannot be one of ours needs no node.
        let request = request(&self.plan, &message.event_id, &told)?;
        let rule = self.plan.source.finality.into();
        reread::read(&*self.means.chain, rule, &told).await?;
        let server = &*self.means.server;
        if !self.plan.allows_loop {
            guard::check(server, &self.plan.name, told.transaction_hash).await?;
        }
        self.take_turn(message).await?;
        let said = server.request(&request.key, &request.body).await;
        let said = said.map_err(|error| Not::Yet(None, error))?;
        match answer::of_request(&said) {
            answer::Said::Is(id) => Ok(id),
            answer::Said::Bound(id) => linked::resolve(server, &request.body, &id, &said).await,
            answer::Said::Not(not) => Err(not),
        }
    }

    /// Waits for the trigger's rate: nothing is lost, and nothing counts as refused.
    async fn take_turn(&self, message: &Message) -> Result<(), Not> {
        let Some(rate) = self.plan.rate else { return Ok(()) };
        let now = self.means.clock.now();
        let wait = self.means.store.admit(&self.name, &message.event_id, rate, now).await?;
        let Some(wait) = wait else { return Ok(()) };
        let trigger = self.plan.name.clone();
        metrics::counter!("claviger_watcher_rate_waits_total", "trigger" => trigger).increment(1);
        Err(Not::Yet(Some(wait), format!("{ABOVE_RATE} of {rate}: waits {wait} ms")))
    }

    /// What is said of a message: what is refused for what time may heal is parked when it has taken too long.
    async fn outcome(&self, message: &Message, end: Result<String, Not>) -> Outcome {
        let (store, event_id) = (&self.means.store, message.event_id.as_str());
        let book = turn_name(&self.name, message.kind);
        let outcome = match end {
            Ok(result) => Outcome::Done(result),
            Err(Not::Never(reason)) => Outcome::Park(reason),
            Err(Not::Yet(after_ms, error)) => return Outcome::Retry { after_ms, error },
            Err(Not::Aside(error)) => return Outcome::Aside(error),
            Err(Not::Early(error)) => {
                let now = self.means.clock.now();
                match store.refused_since(&book, event_id, now).await {
                    Ok(since) if now.since(since) >= PATIENCE_MS => Outcome::Park(error),
                    Ok(_) => return Outcome::Aside(error),
                    Err(failed) => {
                        return Outcome::Retry { after_ms: None, error: failed.to_string() };
                    }
                }
            }
        };
        // What is left behind costs a token, should the event be delivered once more.
        if let Err(error) = store.forget_turn(&book, event_id).await {
            tracing::warn!(consumer = self.name, event_id, %error, "a turn was not forgotten");
        }
        outcome
    }
}

/// Under which name a turn is kept: a retraction has patience of its own.
fn turn_name(consumer: &str, kind: Kind) -> String {
    match kind {
        Kind::Log => consumer.to_owned(),
        Kind::Retraction => format!("{consumer}:retraction"),
    }
}

/// The request that a trigger makes of what a document tells of. The same always gives the same bytes.
fn request(plan: &TriggerPlan, event_id: &str, told: &Fact) -> Result<Request, Not> {
    let never = |reason: String| Not::Never(reason);
    let none = DecodedLog::default();
    let values = told.values.as_ref().unwrap_or(&none);
    let data = plan.call.calldata(values).map_err(|error| never(error.to_string()))?;
    let business_id = plan
        .business_id
        .values(&plan.source_chain, told.subject, told.transaction_hash, values)
        .ok_or_else(|| never("the event lacks a field of the business id".to_owned()))?;
    let mut body = json!({
        "chain": plan.chain,
        "signer": plan.signer,
        "to": format!("{:#x}", plan.to),
        "value": "0",
        "data": data,
        "metadata": {
            "event_id": event_id,
            "business_id": business_id.join(":"),
            "trigger": plan.name,
        },
    });
    // The server reads a source on the transaction's own chain: one of another chain it could not find. A
    // transfer or a call is no log that it could read. It has the event's id in the metadata, and takes our word
    // for it.
    if plan.chain == plan.source_chain
        && let (Some(members), Some(source)) = (body.as_object_mut(), source(told))
    {
        members.insert("source".to_owned(), source);
    }
    Ok(Request { key: idempotency_key(&plan.name, &business_id), body })
}

fn source(told: &Fact) -> Option<Value> {
    Some(json!({
        "block_hash": told.block_hash,
        "transaction_hash": told.transaction_hash,
        "log_index": told.log_index?,
    }))
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
        let end = match message.kind {
            Kind::Log => self.ask(message).await,
            Kind::Retraction => self.retract(message).await,
        };
        self.outcome(message, end).await
    }
}
