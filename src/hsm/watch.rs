//! Since when each HSM thread is in its present job. A call into the module cannot be cancelled, so a
//! stuck one must at least be seen.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Longer than this on one job, and no new work is taken: the module is stuck, and a queue in front
/// of it would only make callers wait for nothing.
pub(super) const STUCK: Duration = Duration::from_secs(30);

/// Longer than this on one job, and `health` says so. A signature takes milliseconds.
pub(super) const SLOW: Duration = Duration::from_secs(2);

const IDLE: u64 = 0;
const GONE: u64 = u64::MAX;

/// What one thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It waits for work.
    Idle,
    /// It has been on one job for so long.
    Busy(Duration),
    /// It has ended.
    Gone,
}

/// One cell per thread, written by it alone: when its job began, in milliseconds after `start`, plus
/// one.
pub(super) struct Watch {
    start: Instant,
    since: Vec<AtomicU64>,
}

impl Watch {
    pub(super) fn new(threads: usize) -> Self {
        Self { start: Instant::now(), since: (0..threads).map(|_| AtomicU64::new(IDLE)).collect() }
    }

    pub(super) fn begin(&self, thread: usize) {
        self.set(thread, self.now().saturating_add(1));
    }

    pub(super) fn end(&self, thread: usize) {
        self.set(thread, IDLE);
    }

    pub(super) fn gone(&self, thread: usize) {
        self.set(thread, GONE);
    }

    /// What each thread is doing now.
    pub(super) fn activities(&self) -> Vec<Activity> {
        self.activities_at(self.now())
    }

    /// Whether no thread has come back from its job within `limit`.
    pub(super) fn all_busy_for(&self, limit: Duration) -> bool {
        all_busy_for(&self.activities(), limit)
    }

    fn set(&self, thread: usize, value: u64) {
        if let Some(cell) = self.since.get(thread) {
            cell.store(value, Ordering::Relaxed);
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(GONE.saturating_sub(2))
    }

    fn activities_at(&self, now: u64) -> Vec<Activity> {
        let read = |cell: &AtomicU64| match cell.load(Ordering::Relaxed) {
            IDLE => Activity::Idle,
            GONE => Activity::Gone,
            since => {
                let began = since.saturating_sub(1);
                Activity::Busy(Duration::from_millis(now.saturating_sub(began)))
            }
        };
        self.since.iter().map(read).collect()
    }
}

fn all_busy_for(threads: &[Activity], limit: Duration) -> bool {
    threads.iter().all(|thread| match thread {
        Activity::Idle => false,
        Activity::Busy(span) => *span > limit,
        Activity::Gone => true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_threads_must_be_stuck_before_work_is_refused() {
        let busy = |seconds| Activity::Busy(Duration::from_secs(seconds));
        assert!(!all_busy_for(&[busy(31), Activity::Idle], STUCK));
        assert!(!all_busy_for(&[busy(31), busy(1)], STUCK));
        assert!(!all_busy_for(&[busy(31), busy(30)], STUCK));
        assert!(all_busy_for(&[busy(31), busy(40)], STUCK));
        assert!(all_busy_for(&[busy(31), Activity::Gone], STUCK));
        assert!(all_busy_for(&[Activity::Gone], STUCK));
    }

    #[test]
    fn a_job_is_seen_from_its_first_millisecond_to_its_end() {
        let watch = Watch::new(2);
        watch.begin(1);
        let began = watch.since[1].load(Ordering::Relaxed) - 1;
        let later = watch.activities_at(began + 31_000);
        assert_eq!(later, [Activity::Idle, Activity::Busy(Duration::from_secs(31))]);
        watch.end(1);
        assert_eq!(watch.activities(), [Activity::Idle, Activity::Idle]);
        watch.gone(0);
        assert_eq!(watch.activities(), [Activity::Gone, Activity::Idle]);
    }
}
