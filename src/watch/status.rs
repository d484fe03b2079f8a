//! What an operator sees: as JSON for programs, as lines for people.

mod second_read;

use self::second_read::{second_read_to_json, second_read_to_text};
use super::progress::{Behind, behind};
use crate::core::time::Timestamp;
use crate::ports::bus::{Kind, QueueLook};
use crate::ports::watch_store::{
    Attention, ChainState, Checked, Duty, Parked, Progress, SourceState, WatchStatus, chain_duty,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The newest block of a chain, as a node says now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub number: u64,
    /// How much later it is than the block that the watcher has come to, in seconds, if that is known.
    pub ahead_seconds: Option<u64>,
}

/// The heads; a chain whose nodes do not answer is absent.
pub type Heads = BTreeMap<String, Head>;

/// The queues of a broker, or why they could not be looked at.
pub type Broker = Result<Vec<QueueLook>, String>;

/// Deliveries that nobody takes as the watcher is configured now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphans {
    /// The consumer.
    pub consumer: String,
    /// The source.
    pub source: String,
    /// How many.
    pub count: u64,
}

/// What is shown.
pub struct Shown<'a> {
    /// What is stored.
    pub status: &'a WatchStatus,
    /// What the nodes say.
    pub heads: &'a Heads,
    /// How far final blocks were read a second time.
    pub again: &'a [Checked],
    /// What waits for nobody.
    pub orphans: &'a [Orphans],
    /// What the broker says; `None` for the embedded bus.
    pub broker: Option<&'a Broker>,
    /// Now.
    pub now: Timestamp,
}

impl Shown<'_> {
    fn progress(&self, source: &SourceState) -> Option<&Progress> {
        self.status.progress.iter().find(|progress| progress.source == source.name)
    }

    fn behind(&self, chain: &ChainState, source: &SourceState) -> Option<Behind> {
        behind(chain, source, self.progress(source), self.now)
    }

    /// Who has a duty now.
    fn holder(&self, name: &str) -> Option<&Duty> {
        self.status.duties.iter().find(|duty| duty.name == name && duty.until > self.now)
    }

    /// How far a source's final blocks were read a second time.
    fn again(&self, source: &SourceState) -> Option<&Checked> {
        self.again.iter().find(|checked| checked.source == source.name)
    }
}

/// The status as one JSON object.
#[must_use]
pub fn to_json(shown: &Shown<'_>) -> Value {
    let status = shown.status;
    let outbox: Vec<Value> = status
        .outbox
        .iter()
        .map(|row| {
            json!({
                "consumer": row.consumer,
                "state": row.state,
                "count": row.count,
                "more": row.more,
            })
        })
        .collect();
    json!({
        "chains": status.chains.iter().map(|chain| chain_to_json(shown, chain)).collect::<Vec<_>>(),
        "bus": shown.broker.map_or(json!({ "kind": "embedded" }), broker_to_json),
        "outbox": outbox,
        "orphans": shown.orphans.iter().map(orphans_to_json).collect::<Vec<_>>(),
        "duties": status.duties.iter().map(|duty| duty_to_json(shown, duty)).collect::<Vec<_>>(),
        "attention": status.attention.iter().map(attention_to_json).collect::<Vec<_>>(),
        "attention_more": status.attention_more,
        "unreadable_refused": status.unreadable_refused,
    })
}

fn chain_to_json(shown: &Shown<'_>, chain: &ChainState) -> Value {
    let name = chain.pin.name.as_str();
    let head = shown.heads.get(name);
    let lag = |head: &Head| head.number.saturating_sub(chain.cursor.number);
    let source = |source: &SourceState| source_to_json(shown, chain, source);
    json!({
        "name": name,
        "chain_id": chain.pin.chain_id,
        "cursor": { "number": chain.cursor.number, "hash": chain.cursor.hash },
        "finalized": chain.finalized.map(|place| place.number),
        "head": head.map(|head| head.number),
        "lag_blocks": head.map(lag),
        "lag_seconds": head.and_then(|head| head.ahead_seconds),
        "halted": chain.halted,
        "leader": shown.holder(&chain_duty(name)).map(|duty| duty_to_json(shown, duty)),
        "sources": chain.sources.iter().map(source).collect::<Vec<_>>(),
    })
}

fn source_to_json(shown: &Shown<'_>, chain: &ChainState, source: &SourceState) -> Value {
    let progress = shown.progress(source);
    let backfill = shown.behind(chain, source).map(|behind| {
        json!({
            "from_block": behind.from_block,
            "to_block": behind.to_block,
            "blocks_left": behind.blocks_left,
            "percent": (behind.percent * 10.0).round() / 10.0,
            "blocks_per_second": behind.rate,
            "seconds_left": behind.seconds_left,
        })
    });
    json!({
        "name": source.name,
        "watches": source.definition,
        "next_block": source.next_block,
        "first_block": progress.map(|progress| progress.first_block),
        "told": progress.map(|progress| progress.told),
        "backfill": backfill,
        "second_read": shown.again(source).map(second_read_to_json),
    })
}

fn duty_to_json(shown: &Shown<'_>, duty: &Duty) -> Value {
    let held = duty.until > shown.now;
    json!({
        "name": duty.name,
        "holder": held.then_some(&duty.holder),
        "since": held.then(|| duty.since.to_string()),
        "until": held.then(|| duty.until.to_string()),
        "token": duty.token,
    })
}

fn orphans_to_json(of: &Orphans) -> Value {
    json!({ "consumer": of.consumer, "source": of.source, "count": of.count })
}

fn attention_to_json(item: &Attention) -> Value {
    json!({
        "delivery": item.delivery,
        "consumer": item.consumer,
        "kind": match item.kind { Kind::Log => "log", Kind::Retraction => "retraction" },
        "event_id": item.event_id,
        "reason": item.reason,
        "became": item.became,
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
    let document = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| json!(text));
    let line = |item: &Parked| match item {
        Parked::Delivery { delivery, consumer, event_id, reason, body } => json!({
            "delivery": delivery,
            "consumer": consumer,
            "event_id": event_id,
            "reason": reason,
            "body": document(body),
        }),
        Parked::Undecodable { source, event_id, block_number, reason, raw } => json!({
            "source": source,
            "event_id": event_id,
            "block_number": block_number,
            "reason": reason,
            "raw": document(raw),
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

/// How far a backfill is, in words.
#[must_use]
pub fn behind_to_text(behind: &Behind) -> String {
    let (left, percent) = (behind.blocks_left, behind.percent);
    let rate = match (behind.rate, behind.seconds_left) {
        (Some(rate), Some(seconds)) => format!(", {rate:.0} blocks/s, {seconds} s left"),
        _ => String::new(),
    };
    format!("reads old blocks: {percent:.1} %, {left} blocks left{rate}")
}

fn chain_to_lines(shown: &Shown<'_>, chain: &ChainState) -> Vec<String> {
    let name = chain.pin.name.as_str();
    let head = shown.heads.get(name);
    let number = head.map_or("unknown".to_owned(), |head| head.number.to_string());
    let finalized = chain.finalized.map_or("none".to_owned(), |place| place.number.to_string());
    let lag = head.map_or(String::new(), |head| {
        let blocks = head.number.saturating_sub(chain.cursor.number);
        let seconds = head.ahead_seconds.map_or(String::new(), |seconds| format!(", {seconds} s"));
        format!(", lag {blocks} blocks{seconds}")
    });
    let cursor = chain.cursor.number;
    let mut lines =
        vec![format!("chain {name}: block {cursor}, head {number}, final {finalized}{lag}")];
    if let Some(why) = &chain.halted {
        lines.push(format!("  HALTED: {why}"));
    }
    lines.push(match shown.holder(&chain_duty(name)) {
        Some(duty) => format!("  led by {} since {}", duty.holder, duty.since),
        None => "  NOBODY LEADS: no watcher runs, or none reaches the database".to_owned(),
    });
    for source in &chain.sources {
        let (name, next) = (&source.name, source.next_block);
        let told = shown.progress(source).map_or(0, |progress| progress.told);
        let watches = &source.definition;
        lines.push(format!("  source {name}: next block {next}, {told} events told, {watches}"));
        if let Some(behind) = shown.behind(chain, source) {
            lines.push(format!("    {}", behind_to_text(&behind)));
        }
        if let Some(checked) = shown.again(source) {
            lines.push(format!("    {}", second_read_to_text(checked)));
        }
    }
    lines
}

/// The status as lines.
#[must_use]
pub fn to_text(shown: &Shown<'_>) -> String {
    let status = shown.status;
    let mut lines = Vec::new();
    for chain in &status.chains {
        lines.extend(chain_to_lines(shown, chain));
    }
    lines.extend(shown.broker.map(broker_to_lines).unwrap_or_default());
    for row in &status.outbox {
        let more = if row.more { " and more" } else { "" };
        lines.push(format!("outbox {}: {}{more} {}", row.consumer, row.count, row.state));
    }
    for Orphans { consumer, source, count } in shown.orphans {
        lines.push(format!("NOBODY TAKES {count} of source {source} for {consumer}"));
    }
    for item in &status.attention {
        let (id, event) = (item.delivery, &item.event_id);
        lines.push(format!("look at {id} {} {event}: {}", item.consumer, item.reason));
    }
    if status.attention_more > 0 {
        lines.push(format!("and {} more to look at", status.attention_more));
    }
    if status.unreadable_refused > 0 {
        let refused = status.unreadable_refused;
        lines.push(format!("{refused} unreadable messages were not kept: too many are"));
    }
    if lines.is_empty() {
        lines.push("nothing was watched yet".to_owned());
    }
    lines.join("\n")
}
