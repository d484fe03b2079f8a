//! Sessions and logins that are lost, and a PIN that is wrong.

use super::Rows;
use crate::stage::{Options, Stage, id};
use crate::support::pkcs11_faults::Pkcs11Faults;
use crate::support::report::report;
use crate::support::server::{LIMIT, READY};
use crate::support::services::poll_until;
use crate::support::signing_load::{Caller, hello};
use std::os::unix::fs::PermissionsExt as _;

/// The exit code of a start that only a person can mend: EX_CONFIG of sysexits.h.
const REFUSED_BY_THE_SET_UP: i32 = 78;

/// What is lost costs one login, whoever noticed it first, and no caller notices.
async fn one_login_each(row: &str, fault: &str) {
    let rows = Rows::open(&[]).await;
    let (messages, payouts) = (rows.messages(16), rows.payouts(4));
    messages.until_released(50).await;
    for _ in 0..6 {
        let before = rows.logins().await;
        rows.faults.set(fault);
        poll_until(LIMIT, "it logs in again", async || {
            (rows.logins().await > before).then_some(())
        })
        .await;
        messages.until_released(100).await;
        payouts.until_released(2).await;
        let more = rows.logins().await - before;
        assert!((more - 1.0).abs() < 0.5, "one login for all that wait: {more}");
    }
    assert_eq!(rows.faults.count(), 6);
    report(&format!("{row}: 6 times, one login each"));
    let (messages, payouts) = rows.stop(row, messages, payouts).await;
    Rows::assert_unnoticed(&messages);
    Rows::assert_unnoticed(&payouts);
    assert!(rows.signatures("wrong").await < 0.5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h1_sessions_closed_under_load_cost_one_login_each_and_no_request() {
    one_login_each("h1 sessions closed", "C_Sign CLOSE_ALL_SESSIONS 1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h1_a_login_lost_under_load_costs_one_login_and_no_request() {
    one_login_each("h1 login lost", "C_SignInit LOGOUT 1").await;
}

#[tokio::test]
async fn h3_a_wrong_pin_ends_the_start_with_a_clear_error_after_one_try() {
    let stage = Stage::with(Options::default()).await;
    let faults = Pkcs11Faults::new();
    let pin_file = stage.setup.dir().join("pin");
    let right = std::fs::read_to_string(&pin_file).unwrap();
    std::fs::write(&pin_file, "not-this-one\n").unwrap();
    std::fs::set_permissions(&pin_file, std::fs::Permissions::from_mode(0o600)).unwrap();
    faults.set("C_Login LOG");
    let mut program = stage.setup.spawn(&faults.envs());
    let status = program.exit_status(LIMIT).await;
    assert_eq!(status.code(), Some(REFUSED_BY_THE_SET_UP), "{status}");
    let told = program.stderr();
    assert!(told.contains("CKR_PIN_INCORRECT"), "{told}");
    assert!(!told.contains("not-this-one") && !told.contains(right.trim()), "{told}");
    assert!(!told.contains(READY));
    assert_eq!(faults.count_of("C_Login"), 1, "{told}");

    // The token has counted one, and the right PIN works.
    std::fs::write(&pin_file, &right).unwrap();
    let (server, _) = stage.open(&faults.envs()).await;
    assert_eq!(faults.count_of("C_Login"), 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h3_a_pin_that_was_changed_meanwhile_is_tried_once_and_never_again() {
    let rows = Rows::open(&[]).await;
    let (messages, payouts) = (rows.messages(8), rows.payouts(2));
    messages.until_released(50).await;
    payouts.until_released(2).await;
    rows.faults.set("C_Sign LOGOUT 1\nC_Login CKR_PIN_INCORRECT");
    let until_refused = "every caller is told to come again";
    messages.until(until_refused, |now| now.retried + now.pending >= 16).await;
    poll_until(LIMIT, "it is told", async || {
        rows.server.program.stderr().contains("CKR_PIN_INCORRECT").then_some(())
    })
    .await;
    // Far more than it would take to lock the token, if each of them tried.
    let seen = messages.tally();
    messages
        .until("they go on asking", |now| {
            now.retried + now.pending >= seen.retried + seen.pending + 100
        })
        .await;
    let caller = Caller::of(&rows.server);
    let said = caller.post("/v1/signatures", "h3", &hello(&rows.keys[0], "h3")).await.unwrap();
    assert_eq!((said.status, said.body["code"].as_str()), (503, Some("hsm-unavailable")));
    assert_eq!(rows.faults.count_of("C_Login"), 1);

    // Also not when it would be right again: that is a person's to say, by a restart.
    rows.faults.set("C_Login LOG");
    let seen = messages.tally();
    messages
        .until("they go on asking", |now| {
            now.retried + now.pending >= seen.retried + seen.pending + 100
        })
        .await;
    assert_eq!(rows.faults.count_of("C_Login"), 1, "a PIN that was refused is never tried again");
    let refused = rows.server.metric("claviger_hsm_logins_total", &[("outcome", "refused")]).await;
    assert!((refused - 1.0).abs() < 0.5, "{refused}");
    report(&format!("h3, until the restart: messages: {}", messages.leave().await));
    report(&format!("h3, until the restart: payouts: {}", payouts.leave().await));
    let rows = rows.restart(&[], || ()).await;
    // What was accepted before, answered or not, is paid too: once.
    let before = rows.server.list().await;
    let (messages, payouts) = (rows.messages(8), rows.payouts(2));
    messages.until_released(50).await;
    let (messages, _) = messages.stop().await;
    let (payouts, ids) = payouts.stop().await;
    report(&format!("h3, after the restart: messages: {messages}"));
    report(&format!("h3, after the restart: payouts: {payouts}"));
    assert_eq!((messages.failed, payouts.failed), (0, 0));
    assert!(before.len() < 200, "more than one page");
    rows.settle(&[before.iter().map(id).collect(), ids].concat()).await;
}
