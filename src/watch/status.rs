//! What an operator sees: as JSON for programs, as lines for people.

use crate::ports::bus::Kind;
use crate::ports::watch_store::{Attention, ChainState, WatchStatus};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The newest block of each chain, as the nodes say now; a chain whose nodes do not answer is absent.
pub type Heads = BTreeMap<String, u64>;

/// The status as one JSON object.
#[must_use]
pub fn to_json(status: &WatchStatus, heads: &Heads) -> Value {
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
        })
    };
    let outbox: Vec<Value> = status
        .outbox
        .iter()
        .map(|row| json!({ "consumer": row.consumer, "state": row.state, "count": row.count }))
        .collect();
    json!({
        "chains": status.chains.iter().map(chain).collect::<Vec<_>>(),
        "outbox": outbox,
        "attention": status.attention.iter().map(attention).collect::<Vec<_>>(),
    })
}

/// The status as lines.
#[must_use]
pub fn to_text(status: &WatchStatus, heads: &Heads) -> String {
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
