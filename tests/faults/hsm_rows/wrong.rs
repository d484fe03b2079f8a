//! A module that gives signatures which are none of the key over the data.

use super::Rows;
use crate::support::report::report;
use crate::support::server::LIMIT;
use crate::support::services::poll_until;
use serde_json::Value;

const EACH: usize = 3;

/// Of how many wrong signatures a leaf tells.
fn times(alarm: &Value) -> Option<usize> {
    let told = alarm["what"].as_str()?.split_once(" gave a wrong signature for key ")?.1;
    told.split_once(", ")?.1.split_once(" times;")?.0.parse().ok()
}

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
            let released = messages.tally().wrong;
            assert!(released.is_empty(), "released: {released:?}");
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
    // The first of each key is in the audit log at once.
    let invariants = rows.stage.invariants();
    poll_until(LIMIT, "the first are in the audit log", async || {
        let told: usize = invariants.leaves("ALARM").await.iter().filter_map(times).sum();
        assert!(told <= expected, "{told} of {expected}");
        (told > 0).then_some(())
    })
    .await;
    // What was decided is signed later, right: no caller is told that it failed.
    let (messages, payouts) = rows.stop("h4", messages, payouts).await;
    assert_eq!((messages.failed, payouts.failed), (0, 0));
    // Each is in the audit log, some of them together: what would wait for its minute, when the server ends.
    rows.server.stop().await;
    let alarms = invariants.leaves("ALARM").await;
    assert_eq!(alarms.iter().filter_map(times).sum::<usize>(), expected, "{alarms:#?}");
    report(&format!("h4: {expected} wrong signatures, {} leaves, none released", alarms.len()));
}
