//! What must be true when the storm is over, from the chain's own logs.

use crate::stage::{FINAL_DEPTH, LIMIT, Stage, TAP};
use crate::support::emitter::{EMITTER, topic0};
use crate::support::services::poll_until;
use lapin::options::BasicGetOptions;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// How many events a run is worth the while for.
pub const EVENTS_LEAST: usize = 21;

/// A log: the block's hash, and its index in the block.
type At = (String, u64);

/// The logs of the chain in their order, and the order that each is about.
struct Truth {
    logs: Vec<At>,
    orders: BTreeMap<At, u128>,
}

fn number(value: &Value) -> u64 {
    u64::from_str_radix(value.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
}

/// The logs of the chain as it is at the end. Those that do not decode have one topic.
async fn truth(stage: &Stage) -> Truth {
    let filter = json!({
        "fromBlock": "0x0", "toBlock": "latest", "address": EMITTER,
        "topics": [topic0(&stage.anvil).await],
    });
    let logs = stage.anvil.rpc("eth_getLogs", json!([filter])).await;
    let decodes = |log: &&Value| log["topics"].as_array().unwrap().len() == 3;
    let read = |log: &Value| {
        let block = log["blockHash"].as_str().unwrap().to_owned();
        ((block, number(&log["logIndex"])), u128::from(number(&log["topics"][1])))
    };
    let logs: Vec<(At, u128)> = logs.as_array().unwrap().iter().filter(decodes).map(read).collect();
    Truth {
        logs: logs.iter().map(|(at, _)| at.clone()).collect(),
        orders: logs.into_iter().collect(),
    }
}

/// How many events stand on the chain now.
pub async fn standing(stage: &Stage) -> usize {
    truth(stage).await.logs.len()
}

pub async fn is_true(stage: &mut Stage) {
    stage.anvil.mine(FINAL_DEPTH + 1).await;
    let truth = truth(stage).await;
    let count = truth.logs.len();
    assert!(count >= EVENTS_LEAST, "the schedule made only {count} events");
    poll_until(LIMIT, "everything has come to its end", async || {
        let rows = counts(&stage.status());
        let of = |state: &str| rows.get(state).copied().unwrap_or(0);
        let open = of("held") + of("ready") + of("taken");
        (open == 0 && of("done") >= count).then_some(())
    })
    .await;
    stage.watcher_lives();
    let status = stage.status();
    assert_eq!(status["chains"][0]["halted"], Value::Null, "{status}");
    for item in status["attention"].as_array().unwrap() {
        assert!(item["reason"].as_str().unwrap().contains("undecodable"), "{item}");
    }
    asked_for_once(stage, &truth);
    told(stage, &truth).await;
}

/// How many deliveries the trigger has in each state.
fn counts(status: &Value) -> BTreeMap<String, usize> {
    let rows = status["outbox"].as_array().unwrap().iter();
    rows.filter(|row| row["consumer"] == "trigger:charge")
        .map(|row| {
            (row["state"].as_str().unwrap().to_owned(), row["count"].as_u64().unwrap() as usize)
        })
        .collect()
}

/// Each log has one key and each key one log, and there are no other requests. A request may be repeated.
fn asked_for_once(stage: &Stage, truth: &Truth) {
    let mut keys: BTreeMap<At, BTreeSet<String>> = BTreeMap::new();
    for request in stage.server.requests() {
        let source = &request.body["source"];
        let at = (source["block_hash"].as_str().unwrap().to_owned(), source["log_index"].as_u64());
        let at = (at.0, at.1.unwrap());
        let order =
            truth.orders.get(&at).unwrap_or_else(|| panic!("asked for what is not: {at:?}"));
        let id = request.body["metadata"]["business_id"].as_str().unwrap();
        assert!(id.ends_with(&format!(":{order}")), "{id} is not order {order}");
        keys.entry(at).or_default().insert(request.key);
    }
    let missing: Vec<_> = truth.logs.iter().filter(|at| !keys.contains_key(*at)).collect();
    assert!(missing.is_empty(), "never asked for: {missing:?}");
    assert!(keys.values().all(|keys| keys.len() == 1), "several keys for one event: {keys:?}");
    let different: BTreeSet<_> = keys.values().flatten().collect();
    assert_eq!(different.len(), truth.logs.len(), "one key for several events");
}

/// Over a broker, everybody else hears each of them at least once, in the order of the chain, and nothing else.
async fn told(stage: &Stage, truth: &Truth) {
    let Some((_connection, channel)) = stage.channel().await else { return };
    let mut told = Vec::new();
    let options = BasicGetOptions { no_ack: true };
    while let Some(message) = channel.basic_get(TAP.into(), options).await.unwrap() {
        let event: Value = serde_json::from_slice(&message.delivery.data).unwrap();
        assert_eq!(event["type"], "claviger.chain.log", "nothing final is retracted");
        let data = &event["data"];
        let block = data["block_hash"].as_str().unwrap().to_owned();
        let at = (block, data["log_index"].as_u64().unwrap());
        assert!(truth.orders.contains_key(&at), "told what is not: {event}");
        if !told.contains(&at) {
            told.push(at);
        }
    }
    assert_eq!(told, truth.logs, "each at least once, in the order of the chain");
}
