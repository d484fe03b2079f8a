//! What goes wrong between our programs and their node.

use crate::random::Random;
use crate::run::{Run, pace};
use crate::support::fault_proxy::{Fault, FaultProxy, Lag, RuleId, SEND, Times};
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Methods that are picked on; `*` is whatever comes next.
const METHODS: [&str; 8] = [
    SEND,
    SEND,
    "*",
    "eth_getTransactionReceipt",
    "eth_getTransactionCount",
    "eth_getBlockByNumber",
    "eth_feeHistory",
    "eth_getLogs",
];

/// The watcher's proxy, of the two.
const WATCHER: usize = 1;

/// A rule: at which proxy, until when, and what its hits count as.
struct Injected {
    at: usize,
    rule: RuleId,
    until: Instant,
    what: &'static str,
}

/// Changes the weather until all is quiet, then clears it up. Nothing lasts: who asks rarely, because it was
/// not answered before, must not find the faults of an hour waiting for it.
pub async fn change(run: Arc<Run>, proxies: Vec<Arc<FaultProxy>>) {
    let mut random = run.random(4);
    let mut injected: Vec<Injected> = Vec::new();
    while !run.is_quiet() {
        // The server's side, two times of three.
        let at = if random.one_in(3) { WATCHER } else { 0 };
        fault(&run, &mut random, (at, &proxies[at]), &mut injected).await;
        pace(30 + random.below(250)).await;
        let now = Instant::now();
        injected
            .iter()
            .filter(|one| one.until < now)
            .for_each(|one| proxies[one.at].lift(one.rule));
    }
    proxies.iter().for_each(|proxy| proxy.lift_all());
    for Injected { at, rule, what, .. } in injected {
        (0..proxies[at].hits(rule)).for_each(|_| run.count(what));
    }
    std::future::pending::<()>().await;
}

async fn fault(
    run: &Run,
    random: &mut Random,
    (at, proxy): (usize, &FaultProxy),
    injected: &mut Vec<Injected>,
) {
    // The server reads its one event by receipt, and needs no list of logs.
    if at == WATCHER && random.one_in(4) {
        let times = Times::N(1 + random.below(3) as usize);
        let (rule, what) = match random.below(3) {
            0 => (proxy.empty_logs(times), "faults: lists of logs that were empty"),
            1 => (proxy.cut_logs(times, 1), "faults: lists of logs that were cut"),
            _ => (proxy.repeat_logs(times), "faults: lists of logs with one twice"),
        };
        let until = Instant::now() + Duration::from_millis(500 + random.below(2_000));
        injected.push(Injected { at, rule, until, what });
        return;
    }
    let method = *random.pick(&METHODS).unwrap();
    let times = Times::N(1 + random.below(4) as usize);
    let limited = json!({ "code": -32005, "message": "rate limit exceeded" });
    let (fault, what) = match random.below(8) {
        0 | 1 => (Fault::DropReply, "faults: replies dropped"),
        2 => (Fault::DropRequest, "faults: requests dropped"),
        3 => (Fault::Say(limited), "faults: -32005"),
        4 => (Fault::Status(429), "faults: HTTP 429"),
        5 => (Fault::Status(503), "faults: HTTP 503"),
        6 => {
            let fault = if random.one_in(2) { Fault::Hold } else { Fault::HoldReply };
            let rule = proxy.inject(method, Times::UntilLifted, fault);
            let until = Instant::now();
            injected.push(Injected { at, rule, until, what: "faults: calls held" });
            pace(100 + random.below(1_500)).await;
            return;
        }
        _ => {
            let mut behind = || random.below(4);
            let lag = Lag {
                nonces: behind(),
                receipts: behind(),
                blocks: behind(),
                logs: behind(),
                finals: 0,
            };
            proxy.lag(Some(lag));
            run.count("faults: times of lagging answers");
            pace(200 + random.below(2_000)).await;
            proxy.lag(None);
            return;
        }
    };
    let until = Instant::now() + Duration::from_millis(200 + random.below(1_500));
    injected.push(Injected { at, rule: proxy.inject(method, times, fault), until, what });
}
