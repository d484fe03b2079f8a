//! A device or a token that is gone for a while.

use super::Rows;
use crate::support::report::report;
use crate::support::server::LIMIT;
use crate::support::services::poll_until;
use crate::support::signing_load::{Caller, Load, hello, signer_of};
use std::time::{Duration, Instant};

/// So long it is down, and so many probes fail at least.
const OUTAGE: Duration = Duration::from_secs(30);
const PROBES: usize = 3;

/// How many probes have failed.
fn probes(rows: &Rows) -> usize {
    rows.server.program.stderr().matches("the HSM is still down").count()
}

/// The token is not there until the test brings it back; whoever asks meanwhile is told so, and not by asking it.
async fn down_for_a_while(row: &str, rows: &Rows, refused: &Load, caller: &Caller, key: &str) {
    // Refused is refused: nothing is bound to the idempotency key.
    for text in ["before", "instead"] {
        let said = caller.post("/v1/signatures", key, &hello(&rows.keys[0], text)).await;
        let said = said.unwrap();
        assert_eq!((said.status, said.body["code"].as_str()), (503, Some("hsm-unavailable")));
        assert!(said.retry_after.is_some());
    }
    let (begun, seen) = (Instant::now(), refused.tally());
    let (calls_before, probes_before) = (rows.faults.count(), probes(rows));
    refused.until("the outage lasts", |_| begun.elapsed() >= OUTAGE).await;
    poll_until(LIMIT, "it is probed", async || {
        (probes(rows) >= probes_before + PROBES).then_some(())
    })
    .await;
    // It is asked whether it is back, and only now and then: not once for each caller.
    let calls = rows.faults.count() - calls_before;
    let code = "hsm-unavailable";
    let refusals = usize::try_from(refused.tally().code(code) - seen.code(code)).unwrap();
    let (probes, lasted) = (probes(rows) - probes_before, begun.elapsed().as_secs());
    report(&format!(
        "{row}: down for {lasted} s: {refusals} refused, {probes} probes, {calls} calls of the module"
    ));
    assert!(calls * 10 < refusals, "{calls} calls, {refusals} refusals");
    // Pauses grow: as often as at first would be more than a hundred times.
    assert!(probes < 30, "{probes}");
    rows.faults.clear();
}

async fn an_outage(row: &str, fault: &str, lifted_by_the_server: bool) {
    let rows = Rows::open(&[]).await;
    let (messages, payouts) = (rows.messages(16), rows.payouts(4));
    messages.until_released(50).await;
    payouts.until_released(2).await;
    rows.faults.set(fault);
    // Callers with other requests: what was decided before is not refused any more.
    let keys: Vec<&str> = rows.keys.iter().map(String::as_str).collect();
    let more = Load::impatient(&rows.server, &keys, 8);
    more.until("callers are told to come again", |now| now.code("hsm-unavailable") >= 8).await;
    let (caller, key) = (Caller::of(&rows.server), row.replace(' ', "-"));
    if !lifted_by_the_server {
        down_for_a_while(row, &rows, &more, &caller, &key).await;
    }
    let (refused, _) = more.stop().await;
    // No restart of ours.
    messages.until_released(200).await;
    payouts.until_released(5).await;
    let said = poll_until(LIMIT, "the key is still free", async || {
        caller.post("/v1/signatures", &key, &hello(&rows.keys[0], "instead")).await
    })
    .await;
    assert_eq!(said.status, 201, "{}", said.body);
    assert_eq!(signer_of("instead", &said.body).as_ref(), Ok(&rows.keys[0]));
    report(&format!("{row}: new requests while it was down: {refused}"));
    let (messages, payouts) = rows.stop(row, messages, payouts).await;
    assert_eq!((messages.failed, payouts.failed), (0, 0));
    let invariants = rows.stage.invariants();
    let (down, up) = (invariants.leaves("HSM_DOWN").await, invariants.leaves("HSM_UP").await);
    assert_eq!((down.len(), up.len()), (1, 1), "{down:#?} {up:#?}");
    report(&format!("{row}: {} {}", down[0], up[0]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2_a_device_error_under_load_is_told_recorded_once_and_recovered_from() {
    an_outage("h2 device error", "* CKR_DEVICE_ERROR", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2_a_token_that_is_pulled_out_and_put_back_is_found_again() {
    an_outage("h2 token", "* CKR_TOKEN_NOT_PRESENT", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2_a_module_that_must_be_initialised_again_is_initialised_again() {
    an_outage("h2 module", "* CKR_DEVICE_REMOVED UNTIL_INITIALIZE", true).await;
}
