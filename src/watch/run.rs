//! The loops: one for each chain, one for each source of each consumer. All end after the step they
//! are in when they are told to stop.

use super::poller::{Poller, Progress, StepError};
use crate::bus::embedded::{Lane, Step};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often the outbox is looked at.
const OUTBOX_POLL: Duration = Duration::from_millis(100);
/// Longest wait after failures that follow each other.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Waits, but not after the stop. `false` when it is time to end.
async fn rest(stop: CancellationToken, wait: Duration) -> bool {
    tokio::select! {
        () = stop.cancelled_owned() => false,
        () = tokio::time::sleep(wait) => true,
    }
}

/// Doubles with each failure in a row.
fn backoff(base: Duration, failures: u32) -> Duration {
    base.saturating_mul(2_u32.saturating_pow(failures.min(16))).min(BACKOFF_MAX)
}

/// Follows a chain until the stop.
pub async fn follow(mut poller: Poller, poll: Duration, stop: CancellationToken) {
    let mut failures = 0_u32;
    while !stop.is_cancelled() {
        let wait = match poller.step().await {
            Ok(Progress::More) => {
                failures = 0;
                continue;
            }
            Ok(Progress::Idle) => {
                failures = 0;
                poll
            }
            // It was told when it happened.
            Err(StepError::Halted(_)) => BACKOFF_MAX,
            Err(error) => {
                failures = failures.saturating_add(1);
                let chain = poller.chain();
                tracing::warn!(chain, failures, %error, "a step was not taken; will try again");
                backoff(poll, failures)
            }
        };
        if !rest(stop.clone(), wait).await {
            break;
        }
    }
    tracing::info!(chain = poller.chain(), "stopped following");
}

/// Delivers one source's events to one consumer until the stop.
pub async fn deliver(lane: Lane, stop: CancellationToken) {
    let mut failures = 0_u32;
    while !stop.is_cancelled() {
        let wait = match lane.step().await {
            Ok(Step::Moved) => {
                failures = 0;
                continue;
            }
            Ok(Step::Idle) => {
                failures = 0;
                OUTBOX_POLL
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                tracing::warn!(lane = lane.name(), failures, %error, "the outbox was not read");
                backoff(OUTBOX_POLL, failures)
            }
        };
        if !rest(stop.clone(), wait).await {
            break;
        }
    }
}
