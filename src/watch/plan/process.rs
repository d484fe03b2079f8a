//! The process, as it is configured.

use super::PlanError;
use crate::core::time::duration_ms;
use crate::watch::config::WatchSection;
use std::net::SocketAddr;

/// A lease is renewed four times in its length; a longer one than this keeps a standby waiting for nothing.
const LEASE_MS: std::ops::RangeInclusive<i64> = 1_000..=300_000;
/// Until then a broker may bring again what was done.
const KEEP_MS_MIN: i64 = 3_600_000;
const DAY_MS: i64 = 86_400_000;

/// The process itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessPlan {
    /// Where metrics are served.
    pub metrics_listen: Option<SocketAddr>,
    /// How long a lease lasts, in milliseconds.
    pub lease_ms: i64,
    /// How long what is done is kept, in milliseconds.
    pub keep_done_ms: i64,
}

fn fail(reason: &str) -> PlanError {
    PlanError { place: "[watch]".to_owned(), reason: reason.to_owned() }
}

/// A duration, which may also be in days.
fn long_ms(text: &str) -> Option<i64> {
    match text.strip_suffix('d') {
        Some(days) => days.parse::<i64>().ok().filter(|days| *days > 0)?.checked_mul(DAY_MS),
        None => duration_ms(text),
    }
}

impl ProcessPlan {
    pub(super) fn new(section: &WatchSection) -> Result<Self, PlanError> {
        let lease_ms = duration_ms(&section.lease).filter(|ms| LEASE_MS.contains(ms));
        let keep_done_ms = long_ms(&section.keep_done).filter(|ms| *ms >= KEEP_MS_MIN);
        Ok(Self {
            metrics_listen: section.metrics_listen,
            lease_ms: lease_ms
                .ok_or_else(|| fail("lease is a duration from `1s` to `5m`, such as `10s`"))?,
            keep_done_ms: keep_done_ms
                .ok_or_else(|| fail("keep_done is a duration of at least `1h`, such as `30d`"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_checked() {
        let plan = |lease: &str, keep: &str| {
            let (lease, keep_done) = (lease.to_owned(), keep.to_owned());
            ProcessPlan::new(&WatchSection { metrics_listen: None, lease, keep_done })
        };
        let plan_of = |lease, keep| {
            let plan = plan(lease, keep).unwrap();
            (plan.lease_ms, plan.keep_done_ms)
        };
        assert_eq!(plan_of("10s", "30d"), (10_000, 30 * DAY_MS));
        assert_eq!(plan_of("1s", "1h"), (1_000, 3_600_000));
        for (lease, keep, said) in [
            ("999ms", "30d", "lease"),
            ("6m", "30d", "lease"),
            ("fast", "30d", "lease"),
            ("10s", "59m", "keep_done"),
            ("10s", "0d", "keep_done"),
            ("10s", "-1d", "keep_done"),
            ("10s", "", "keep_done"),
        ] {
            let error = plan(lease, keep).unwrap_err().to_string();
            assert!(error.starts_with("[watch]") && error.contains(said), "{error}");
        }
    }
}
