//! What an operator sees: as JSON for programs, as lines for people.

use crate::ports::bus::{Kind, QueueLook};
use crate::ports::watch_store::{Attention, ChainState, Parked, WatchStatus};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The newest block of each chain, as the nodes say now; a chain whose nodes do not answer is absent.
pub type Heads = BTreeMap<String, u64>;

/// The queues of a broker, or why they could not be looked at.
pub type Broker = Result<Vec<QueueLook>, String>;

/// The status as one JSON object; `broker` is `None` for the embedded bus.
#[must_use]
pub fn to_json(status: &WatchStatus, heads: &Heads, broker: Option<&Broker>) -> Value {
    let chain = |chain: &ChainState| {
        let head = heads.get(&chain.pin.name).copied();
        let sources: Vec<Value> = chain
            .sources
            .iter()
            .map(|source| {
                json!({
                    "name": source.name,
                    "watches": source.definition,
                    "next_block": source.next_block,
                })
            })
            .collect();
        json!({
            "name": chain.pin.name,
            "chain_id": chain.pin.chain_id,
            "cursor": { "number": chain.cursor.number, "hash": chain.cursor.hash },
            "finalized": chain.finalized.map(|place| place.number),
            "head": head,
            "lag_blocks": head.map(|head| head.saturating_sub(chain.cursor.number)),
            "halted": chain.halted,
            "sources": sources,
        })
    };
    let attention = |item: &Attention| {
        json!({
            "delivery": item.delivery,
            "consumer": item.consumer,
            "kind": match item.kind { Kind::Log => "log", Kind::Retraction => "retraction" },
            "event_id": item.event_id,
            "reason": item.reason,
            "became": item.became,
        })
    };
    let outbox: Vec<Value> = status
        .outbox
        .iter()
        .map(|row| json!({ "consumer": row.consumer, "state": row.state, "count": row.count }))
        .collect();
    json!({
        "chains": status.chains.iter().map(chain).collect::<Vec<_>>(),
        "bus": broker.map_or(json!({ "kind": "embedded" }), broker_to_json),
        "outbox": outbox,
        "attention": status.attention.iter().map(attention).collect::<Vec<_>>(),
    })
}

fn broker_to_json(broker: &Broker) -> Value {
    let queue = |look: &QueueLook| json!({ "name": look.name, "messages": look.messages, "consumers": look.consumers });
    match broker {
        Ok(looks) => json!({
            "kind": "rabbitmq",
            "reachable": true,
            "queues": looks.iter().map(queue).collect::<Vec<_>>(),
        }),
        Err(error) => json!({ "kind": "rabbitmq", "reachable": false, "error": error }),
    }
}

/// What is parked, one JSON object a line, with its document or its bytes.
#[must_use]
pub fn parked_to_lines(parked: &[Parked]) -> String {
    let line = |item: &Parked| match item {
        Parked::Delivery { delivery, consumer, event_id, reason, body } => json!({
            "delivery": delivery,
            "consumer": consumer,
            "event_id": event_id,
            "reason": reason,
            "body": serde_json::from_str(body).unwrap_or_else(|_| json!(body)),
        }),
        Parked::Unreadable(message) => json!({
            "consumer": message.consumer,
            "sha256": message.digest,
            "reason": message.reason,
            "bytes": message.bytes,
            "text": String::from_utf8_lossy(&message.bytes),
        }),
    };
    parked.iter().map(|item| format!("{}\n", line(item))).collect()
}

fn broker_to_lines(broker: &Broker) -> Vec<String> {
    let queue = |look: &QueueLook| match (look.messages, look.consumers) {
        (Some(messages), Some(consumers)) => {
            format!("queue {}: {messages} messages, {consumers} consumers", look.name)
        }
        _ => format!("queue {}: not there", look.name),
    };
    match broker {
        Ok(looks) => looks.iter().map(queue).collect(),
        Err(error) => vec![format!("BROKER: {error}")],
    }
}

/// The status as lines.
#[must_use]
pub fn to_text(status: &WatchStatus, heads: &Heads, broker: Option<&Broker>) -> String {
    let mut lines = Vec::new();
    for chain in &status.chains {
        let head = heads.get(&chain.pin.name).map_or("unknown".to_owned(), u64::to_string);
        let finalized = chain.finalized.map_or("none".to_owned(), |place| place.number.to_string());
        lines.push(format!(
            "chain {}: block {}, head {head}, final {finalized}",
            chain.pin.name, chain.cursor.number
        ));
        if let Some(why) = &chain.halted {
            lines.push(format!("  HALTED: {why}"));
        }
        for source in &chain.sources {
            let (name, next) = (&source.name, source.next_block);
            lines.push(format!("  source {name}: next block {next}, {}", source.definition));
        }
    }
    lines.extend(broker.map(broker_to_lines).unwrap_or_default());
    for row in &status.outbox {
        lines.push(format!("outbox {}: {} {}", row.consumer, row.count, row.state));
    }
    for item in &status.attention {
        let (id, event) = (item.delivery, &item.event_id);
        lines.push(format!("look at {id} {} {event}: {}", item.consumer, item.reason));
    }
    if lines.is_empty() {
        lines.push("nothing was watched yet".to_owned());
    }
    lines.join("\n")
}
