//! How a node does: whether it may be asked now, and whether it keeps up with the others.
//!
//! After a failure a node is left alone for a while, twice as long after each further one. What it says about
//! a transaction (a nonce that is too low, a revert) is an answer, not a failure.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The first pause.
const BACKOFF_MIN: Duration = Duration::from_millis(250);
/// The longest pause that we make by ourselves.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// The same for a chain's only node: while it is left alone, nothing goes on.
const BACKOFF_MAX_ALONE: Duration = Duration::from_secs(4);
/// The longest that a node may ask for (`Retry-After`, RFC 9110): it says so itself, and could lie.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(5);
/// How long a node that more than half of all contradicted is asked after the others.
const OUTVOTED: Duration = Duration::from_mins(1);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    until: Option<Instant>,
    outvoted_until: Option<Instant>,
    final_number: Option<u64>,
    probed: Option<Instant>,
}

/// One node's health.
#[derive(Debug)]
pub(super) struct Health {
    /// The chain's id, for metrics.
    chain: String,
    /// The node's place.
    node: String,
    backoff_max: Duration,
    state: Mutex<State>,
}

impl Health {
    pub(super) fn new(chain: String, place: usize, is_alone: bool) -> Self {
        let backoff_max = if is_alone { BACKOFF_MAX_ALONE } else { BACKOFF_MAX };
        Self { chain, node: place.to_string(), backoff_max, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It answered.
    pub(super) fn answered(&self) {
        let mut state = self.state();
        (state.failures, state.until) = (0, None);
        drop(state);
        self.show(1.0);
    }

    /// It did not, or asked for a pause.
    pub(super) fn failed(&self, now: Instant, retry_after: Option<Duration>) {
        let mut state = self.state();
        // Calls that were under way together fail together: that is one failure.
        if state.until.is_none_or(|until| now >= until) {
            state.failures = state.failures.saturating_add(1);
        }
        let pause = pause(state.failures, retry_after, self.backoff_max);
        state.until = now.checked_add(pause).max(state.until);
        drop(state);
        self.show(0.0);
    }

    /// How long it is to be left alone, if it is.
    pub(super) fn pause_left(&self, now: Instant) -> Option<Duration> {
        let until = self.state().until?;
        Some(until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// More than half of all nodes said otherwise than this one.
    pub(super) fn outvoted(&self, now: Instant) {
        self.state().outvoted_until = now.checked_add(OUTVOTED);
    }

    pub(super) fn is_outvoted(&self, now: Instant) -> bool {
        self.state().outvoted_until.is_some_and(|until| now < until)
    }

    /// The height of its newest final block, as it said last.
    pub(super) fn final_number(&self) -> Option<u64> {
        self.state().final_number
    }

    pub(super) fn says_final(&self, number: Option<u64>) {
        self.state().final_number = number;
    }

    /// Whether it is so long since this was last answered with yes.
    pub(super) fn is_probe_due(&self, now: Instant, every: Duration) -> bool {
        let mut state = self.state();
        let due = state.probed.is_none_or(|at| now.saturating_duration_since(at) >= every);
        if due {
            state.probed = Some(now);
        }
        due
    }

    fn show(&self, up: f64) {
        let labels = [("chain", self.chain.clone()), ("node", self.node.clone())];
        metrics::gauge!("claviger_node_up", &labels).set(up);
    }
}

/// After so many failures in a row.
fn pause(failures: u32, retry_after: Option<Duration>, max: Duration) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let own = BACKOFF_MIN.saturating_mul(1_u32 << doublings).min(max);
    own.max(retry_after.unwrap_or_default().min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_half_a_minute_and_a_node_may_ask_for_longer_within_reason() {
        let ms = |failures| pause(failures, None, BACKOFF_MAX).as_millis();
        assert_eq!([1, 2, 3, 4].map(ms), [250, 500, 1000, 2000]);
        assert_eq!([7, 8, 9, u32::MAX].map(ms), [16_000, 30_000, 30_000, 30_000]);
        assert_eq!(pause(1, Some(Duration::from_secs(7)), BACKOFF_MAX), Duration::from_secs(7));
        assert_eq!(pause(9, Some(Duration::from_secs(7)), BACKOFF_MAX), Duration::from_secs(30));
        assert_eq!(pause(1, Some(Duration::MAX), BACKOFF_MAX), RETRY_AFTER_MAX);
        assert_eq!(pause(9, None, BACKOFF_MAX_ALONE), BACKOFF_MAX_ALONE);
    }

    #[test]
    fn failures_that_were_under_way_together_count_once_and_an_answer_forgets_all() {
        let (health, start) = (Health::new("1".to_owned(), 1, false), Instant::now());
        for _ in 0..16 {
            health.failed(start, None);
        }
        assert_eq!(health.pause_left(start), Some(BACKOFF_MIN));
        let later = start + BACKOFF_MIN;
        assert_eq!(health.pause_left(later), None);
        health.failed(later, None);
        assert_eq!(health.pause_left(later), Some(BACKOFF_MIN * 2));
        health.answered();
        assert_eq!(health.pause_left(later), None);
        health.failed(later, None);
        assert_eq!(health.pause_left(later), Some(BACKOFF_MIN));
    }

    #[test]
    fn a_node_that_was_outvoted_is_heard_again_after_a_minute() {
        let (health, start) = (Health::new("1".to_owned(), 1, false), Instant::now());
        health.outvoted(start);
        assert!(health.is_outvoted(start) && health.pause_left(start).is_none());
        assert!(!health.is_outvoted(start + OUTVOTED));
    }
}
