//! A module that gives signatures which are none of the key over the data.

use super::Rows;
use crate::support::server::LIMIT;
use crate::support::services::poll_until;

const EACH: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h4_a_wrong_signature_is_caught_told_and_never_released() {
    let rows = Rows::open(&[]).await;
    let (messages, payouts) = (rows.messages(12), rows.payouts(4));
    messages.until_released(50).await;
    let mut expected = 0;
    for fault in ["WRONG", "OTHER_KEY", "RANDOM", "SHORT"] {
        rows.faults.set(&format!("C_Sign {fault} {EACH}"));
        expected += EACH;
        poll_until(LIMIT, &format!("each {fault} is caught"), async || {
            (rows.signatures("wrong").await > expected as f64 - 0.5).then_some(())
        })
        .await;
        messages.until_released(50).await;
        payouts.until_released(2).await;
    }
    assert_eq!(rows.faults.count_of("C_Sign"), expected);
    let wrong = rows.signatures("wrong").await;
    assert!((wrong - expected as f64).abs() < 0.5, "{wrong}");
    let log = rows.server.program.stderr();
    let alarms = log.lines().filter(|line| line.contains("a wrong signature was discarded"));
    let alarms: Vec<_> = alarms.filter(|line| line.contains("\"level\":\"ERROR\"")).collect();
    assert_eq!(alarms.len(), expected, "{alarms:#?}");
    // What was decided is signed later, right: no caller is told that it failed.
    let (messages, payouts) = rows.stop("h4", messages, payouts).await;
    assert_eq!((messages.failed, payouts.failed), (0, 0));
}
