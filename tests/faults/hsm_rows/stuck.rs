//! Calls that do not come back.

use super::Rows;
use crate::support::report::report;
use crate::support::server::LIMIT;
use crate::support::services::poll_until;
use crate::support::signing_load::Load;
use std::time::Duration;

/// So long a caller may wait for its 503 at most: the server's own limit for an answer of the HSM, and what a
/// busy machine adds.
const REFUSED_WITHIN: Duration = Duration::from_secs(30);
/// What callers who are refused may cost, in bytes.
const MEMORY_MAX: u64 = 64 * 1024 * 1024;

/// What the process has in memory, in bytes (`VmRSS`).
fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = line.split_whitespace().next().unwrap().parse().unwrap();
    kib * 1024
}

/// Waits until the watchdog tells of so many threads that do not come back.
async fn until_stalled(rows: &Rows, threads: f64) {
    poll_until(LIMIT, &format!("{threads} stalled"), async || {
        let told = rows.server.metric("claviger_hsm_stalled_threads", &[("hsm", "default")]).await;
        ((told - threads).abs() < 0.5).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h5_a_thread_that_is_stuck_is_replaced_and_the_others_work() {
    let rows = Rows::open(&[("CLAVIGER__HSM__SESSIONS", "2")]).await;
    let (messages, payouts) = (rows.messages(8), rows.payouts(2));
    messages.until_released(50).await;
    // One after the other, as many as there were at the start: the same line once more lets the first one hang.
    for stuck in [1_u8, 2] {
        rows.faults.set("C_Sign WAIT 1");
        poll_until(LIMIT, "one more call hangs", async || {
            (rows.faults.count() == usize::from(stuck)).then_some(())
        })
        .await;
        until_stalled(&rows, f64::from(stuck)).await;
        messages.until_released(200).await;
        payouts.until_released(5).await;
        report(&format!("h5, while {stuck} of 2 threads hung: {}", messages.tally()));
    }
    assert_eq!(rows.server.program.stderr().matches("another HSM thread was started").count(), 2);
    rows.faults.clear();
    until_stalled(&rows, 0.0).await;
    messages.until_released(100).await;
    let (messages, payouts) = rows.stop("h5 stuck and replaced", messages, payouts).await;
    assert_eq!((messages.failed, payouts.failed), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h5_while_all_threads_are_stuck_callers_are_told_so_and_memory_does_not_grow() {
    let envs = [("CLAVIGER__HSM__SESSIONS", "2"), ("CLAVIGER__HSM__QUEUE", "8")];
    let rows = Rows::open(&envs).await;
    let (messages, payouts) = (rows.messages(16), rows.payouts(4));
    messages.until_released(200).await;
    payouts.until_released(5).await;
    let before = memory(rows.server.program.pid());
    rows.faults.set("C_Sign WAIT");
    poll_until(LIMIT, "both calls hang", async || (rows.faults.count() >= 2).then_some(())).await;
    // Callers with other requests: those of before are decided, and are not refused any more.
    let keys: Vec<&str> = rows.keys.iter().map(String::as_str).collect();
    let more = Load::impatient(&rows.server, &keys, 64);
    let refused = more
        .until("two thousand are told to come again", |now| {
            now.code("overloaded") + now.code("hsm-unavailable") >= 2_000
        })
        .await;
    assert!(refused.slowest_refusal < REFUSED_WITHIN, "{refused}");
    let grown = memory(rows.server.program.pid()).saturating_sub(before);
    assert!(grown < MEMORY_MAX, "{grown} bytes more");
    // Each thread has perhaps been given a second to stand in for it, and no third.
    assert!(rows.faults.count() <= 4, "{}", rows.faults.count());
    assert_eq!(refused.released, 0);
    // A full queue is told before anything is decided; a few come in beside each other.
    assert!(refused.code("overloaded") > 0 && refused.pending < 200, "{refused}");
    let (more, _) = more.stop().await;
    report(&format!("h5, while all were stuck: {more}; {} KiB more", grown / 1024));
    rows.faults.clear();
    messages.until_released(200).await;
    payouts.until_released(5).await;
    let (messages, payouts) = rows.stop("h5 all stuck", messages, payouts).await;
    assert_eq!((messages.failed, payouts.failed), (0, 0));
}
