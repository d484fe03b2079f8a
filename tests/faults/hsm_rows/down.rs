//! A device or a token that is gone for a while.

use super::Rows;
use crate::support::server::LIMIT;
use crate::support::services::poll_until;
use crate::support::signing_load::{Caller, Load, Tally, hello, signer_of};

/// So many answers of the module while it is down: it is asked now and then whether it is back.
const PROBES: usize = 3;

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
    let (refused, _) = more.stop().await;
    let (caller, key) = (Caller::of(&rows.server), row.replace(' ', "-"));
    if !lifted_by_the_server {
        // Refused is refused: nothing is bound to the idempotency key.
        for text in ["before", "instead"] {
            let said = caller.post("/v1/signatures", &key, &hello(&rows.keys[0], text)).await;
            let said = said.unwrap();
            assert_eq!((said.status, said.body["code"].as_str()), (503, Some("hsm-unavailable")));
            assert!(said.retry_after.is_some());
        }
        // It is asked whether it is back, and only now and then: not once for each caller.
        let seen = rows.faults.count();
        let told = |tally: &Tally| tally.retried + tally.pending;
        let before = told(&messages.tally()) + told(&payouts.tally());
        poll_until(LIMIT, "it is probed", async || {
            (rows.faults.count() >= seen + PROBES).then_some(())
        })
        .await;
        let times = told(&messages.tally()) + told(&payouts.tally()) - before;
        println!("{row}: {PROBES} probes while callers were told {times} times to come again");
        rows.faults.clear();
    }
    // No restart of ours.
    messages.until_released(200).await;
    payouts.until_released(5).await;
    let said = poll_until(LIMIT, "the key is still free", async || {
        caller.post("/v1/signatures", &key, &hello(&rows.keys[0], "instead")).await
    })
    .await;
    assert_eq!(said.status, 201, "{}", said.body);
    assert_eq!(signer_of("instead", &said.body).as_ref(), Ok(&rows.keys[0]));
    println!("{row}: while it was down: {refused}");
    let (messages, payouts) = rows.stop(row, messages, payouts).await;
    assert_eq!((messages.failed, payouts.failed), (0, 0));
    let invariants = rows.stage.invariants();
    let (down, up) = (invariants.leaves("HSM_DOWN").await, invariants.leaves("HSM_UP").await);
    assert_eq!((down.len(), up.len()), (1, 1), "{down:#?} {up:#?}");
    println!("{row}: {} {}", down[0], up[0]);
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
