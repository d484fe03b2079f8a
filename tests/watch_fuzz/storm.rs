//! What goes wrong, in an order that the seed chooses.

use crate::outcome::{self, EVENTS_LEAST};
use crate::stage::{LIMIT, REORG_MAX, Stage};
use crate::support::emitter::{EMITTER, ask};
use crate::support::fault_proxy::{Fault, FaultProxy, Lag, RuleId, Times};
use crate::support::services::poll_until;
use serde_json::{Value, json};
use std::time::Duration;

const STEPS: u64 = 90;
/// Where reorgs have left little of what happened, it goes on: so many steps at most.
const STEPS_MAX: u64 = 3 * STEPS;
const METHODS: [&str; 4] = ["*", "eth_getBlockByNumber", "eth_getBlockByHash", "eth_getLogs"];

/// What has been begun and not ended yet, and the step that ends it.
#[derive(Default)]
struct Pending {
    rules: Vec<(usize, RuleId, u64)>,
    lag_until: [u64; 2],
    watcher_at: u64,
    server_at: u64,
    broker_at: u64,
    broker_outages: u64,
}

pub async fn rage(stage: &mut Stage) {
    let (mut pending, mut order, mut sent) = (Pending::default(), 0, Vec::new());
    // Each start takes seconds.
    let outages_max = if crate::number("CLAVIGER_SEEDS").is_some() { 4 } else { 2 };
    if stage.rabbit.is_some() {
        declared(stage).await;
    }
    let mut step = 0;
    while step < STEPS || (step < STEPS_MAX && outcome::standing(stage).await < EVENTS_LEAST) {
        step += 1;
        end(stage, &mut pending, step).await;
        match stage.random.below(17) {
            0..=5 => emit(stage, &mut order, &mut sent).await,
            6 => stage.anvil.mine(1 + stage.random.below(3)).await,
            7 | 8 => change_the_past(stage, &sent).await,
            9 | 10 => lose(stage),
            11 => truncate(stage),
            12 => {
                let (at, until) =
                    (stage.random.below(2) as usize, step + 1 + stage.random.below(4));
                let behind = 1 + stage.random.below(4);
                let logs = behind + stage.random.below(3);
                stage.nodes[at].lag(Some(Lag { blocks: behind, logs, ..Lag::default() }));
                pending.lag_until[at] = until;
            }
            13 => {
                let (at, until) =
                    (stage.random.below(2) as usize, step + 1 + stage.random.below(3));
                let fault = if stage.random.one_in(2) { Fault::Hold } else { Fault::HoldReply };
                let method = *stage.random.pick(&METHODS).unwrap();
                let rule = stage.nodes[at].inject(method, Times::UntilLifted, fault);
                pending.rules.push((at, rule, until));
            }
            14 => {
                stage.watcher = None;
                pending.watcher_at = step + stage.random.below(4);
            }
            15 => {
                let answer = (503, "retry-after: 0\r\n", json!({ "code": "overloaded" }));
                stage.server.always(Some(answer));
                pending.server_at = step + 1 + stage.random.below(6);
            }
            _ => {
                let first = pending.broker_outages == 0;
                if pending.broker_at == 0
                    && pending.broker_outages < outages_max
                    && let Some(rabbit) = &mut stage.rabbit
                {
                    // This broker writes down late that a quorum queue was declared; a stop in order does it
                    // at once.
                    if first {
                        rabbit.stop()
                    } else {
                        rabbit.kill9()
                    }
                    pending.broker_outages += 1;
                    pending.broker_at = step + 1 + stage.random.below(4);
                }
            }
        }
        stage.watcher_lives();
        pace(stage.random.below(60)).await;
    }
    end(stage, &mut pending, u64::MAX).await;
    stage.nodes.iter().for_each(FaultProxy::lift_all);
    stage.server.always(None);
}

/// What the seed would do is done over the time in which a watcher polls a few times.
async fn pace(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

async fn declared(stage: &Stage) {
    poll_until(LIMIT, "the trigger's queue is read", async || {
        (stage.status()["bus"]["queues"][0]["consumers"] == 1).then_some(())
    })
    .await;
}

/// Ends what is due.
async fn end(stage: &mut Stage, pending: &mut Pending, step: u64) {
    pending.rules.retain(|(at, rule, until)| {
        let due = *until <= step;
        if due {
            stage.nodes[*at].lift(*rule);
        }
        !due
    });
    for (at, until) in pending.lag_until.iter_mut().enumerate() {
        if *until != 0 && *until <= step {
            *until = 0;
            stage.nodes[at].lag(None);
        }
    }
    if stage.watcher.is_none() && pending.watcher_at <= step {
        stage.start_watcher();
    }
    if pending.server_at != 0 && pending.server_at <= step {
        pending.server_at = 0;
        stage.server.always(None);
    }
    if pending.broker_at != 0 && pending.broker_at <= step {
        pending.broker_at = 0;
        stage.rabbit.as_mut().unwrap().start_again().await;
    }
}

/// A block with some events, and now and then one that does not decode.
async fn emit(stage: &mut Stage, order: &mut u128, sent: &mut Vec<String>) {
    for _ in 0..=stage.random.below(4) {
        *order += 1;
        sent.push(ask(&stage.anvil, *order).await);
    }
    if stage.random.one_in(12) {
        stage.anvil.send(&stage.anvil.accounts()[2], EMITTER, "0x", 0).await;
    }
    stage.anvil.mine(1).await;
}

/// Other blocks take the place of the last ones. Their transactions are gone, or come again in other blocks.
async fn change_the_past(stage: &mut Stage, sent: &[String]) {
    let depth = 1 + stage.random.below(REORG_MAX);
    let mut raw: Vec<Value> = Vec::new();
    for hash in sent.iter().rev().take(12).rev() {
        raw.push(stage.anvil.rpc("eth_getRawTransactionByHash", json!([hash])).await);
    }
    stage.anvil.rpc("anvil_reorg", json!([depth, []])).await;
    stage.anvil.rpc("anvil_dropAllTransactions", json!([])).await;
    if stage.random.one_in(2) {
        for raw in raw {
            // Some are still mined, and are refused.
            let _ = stage.anvil.try_rpc("eth_sendRawTransaction", json!([raw])).await;
        }
        stage.anvil.mine(1).await;
    }
}

/// Some answers, or the calls themselves, are lost, or refused by a node that is busy.
fn lose(stage: &mut Stage) {
    let at = stage.random.below(2) as usize;
    let method = *stage.random.pick(&METHODS).unwrap();
    let times = Times::N(1 + stage.random.below(5) as usize);
    let fault = match stage.random.below(5) {
        0 => Fault::DropReply,
        1 => Fault::DropRequest,
        2 => Fault::Status(503),
        3 => Fault::Busy { status: 429, retry_after_s: None },
        _ => Fault::Say(json!({ "code": -32005, "message": "rate limit exceeded" })),
    };
    stage.nodes[at].inject(method, times, fault);
}

/// Some lists of logs are cut, empty or doubled.
fn truncate(stage: &mut Stage) {
    let at = stage.random.below(2) as usize;
    let times = Times::N(1 + stage.random.below(3) as usize);
    let most = stage.random.below(2) as usize;
    match stage.random.below(3) {
        0 => stage.nodes[at].empty_logs(times),
        1 => stage.nodes[at].cut_logs(times, most),
        _ => stage.nodes[at].repeat_logs(times),
    };
}
