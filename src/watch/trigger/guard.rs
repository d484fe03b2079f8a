//! The loop guard: an event that the trigger itself has caused is not acted on.

use super::Not;
use crate::core::trigger::loop_guard::{Cause, Next, next};
use crate::watch::server::Server;
use alloy::primitives::B256;
use serde_json::Value;

/// Asks the server who asked for the event's transaction, and for the transaction that made us ask for that one,
/// until nothing of ours is before it.
pub(super) async fn check(server: &Server, trigger: &str, event: B256) -> Result<(), Not> {
    let mut causes: Vec<Cause> = Vec::new();
    loop {
        let hash = match next(trigger, event, &causes) {
            Next::Ends => return Ok(()),
            Next::Loop(why) => {
                let trigger = trigger.to_owned();
                metrics::counter!("claviger_watcher_loops_cut_total", "trigger" => trigger)
                    .increment(1);
                return Err(Not::Never(why));
            }
            Next::Look(hash) => hash,
        };
        let said = server.by_hash(hash).await.map_err(|error| Not::Yet(None, error))?;
        if said.status != 200 {
            return Err(Not::Yet(said.retry_after_ms, format!("the loop guard: {said}")));
        }
        match said.document.as_ref().and_then(cause) {
            Some(cause) => causes.push(cause),
            None => return Ok(()),
        }
    }
}

/// The one transaction of a list, as a cause.
fn cause(document: &Value) -> Option<Cause> {
    let found = document.get("transactions")?.as_array()?.first()?;
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let trigger = found.get("metadata").and_then(|metadata| metadata.get("trigger"));
    let source = found.get("source").and_then(|source| source.get("transaction_hash"));
    // A request for a transfer, for a call, or for an event of another chain has no source.
    let event = found.get("metadata").and_then(|metadata| metadata.get("event_id"));
    let event = text(event).and_then(|id| id.split(':').nth(2).map(str::to_owned));
    Some(Cause {
        request: text(found.get("id")).unwrap_or_default(),
        trigger: text(trigger).unwrap_or_default(),
        source: text(source).or(event).and_then(|hash| hash.parse().ok()),
    })
}
