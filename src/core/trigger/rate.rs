//! How often a trigger may ask: so many requests in a span, all at once or one after the other.

use crate::core::time::{Timestamp, duration_ms, duration_text};
use std::fmt;

/// Above this a step between two requests would be lost in the rounding.
const COUNT_MAX: i64 = 1_000_000;
/// No longer than a year: beyond it the sums might not fit.
const SPAN_MS_MAX: i64 = 366 * 24 * 3_600_000;

/// A rate, such as `100/1m`: a bucket of so many tokens that fills in the span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    count: i64,
    span_ms: i64,
}

/// What a bucket says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It may go on; this is to be kept.
    Now(Full),
    /// Not before so many milliseconds.
    In(i64),
}

/// When the bucket is full again, in microseconds since 1970: all that is kept of it (the theoretical arrival
/// time of the generic cell rate algorithm, ITU-T I.371). 0 of one that was never used.
pub type Full = i64;

impl Rate {
    /// Reads `COUNT/SPAN`; `None` if it is not one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (count, span) = text.split_once('/')?;
        let count = count.parse().ok().filter(|count| (1..=COUNT_MAX).contains(count))?;
        let span_ms = duration_ms(span).filter(|ms| (1..=SPAN_MS_MAX).contains(ms))?;
        Some(Self { count, span_ms })
    }

    /// Takes a token, if there is one. Of a clock that went back the bucket fills no faster than it should: it is
    /// never fuller than full, and never empties by that.
    #[must_use]
    pub fn take(self, full: Full, now: Timestamp) -> Turn {
        let now = now.millis().saturating_mul(1000);
        let span = self.span_ms.saturating_mul(1000);
        let step = span.checked_div(self.count).unwrap_or(span);
        // A clock that was far ahead once must not stop the trigger until it is there again.
        let begun = full.clamp(now, now.saturating_add(span));
        let next = begun.saturating_add(step);
        let wait = next.saturating_sub(now.saturating_add(span));
        if wait <= 0 {
            return Turn::Now(next);
        }
        Turn::In(wait.saturating_add(999).checked_div(1000).unwrap_or(wait))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, duration_text(self.span_ms))
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, reason = "small numbers of a property test")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn a_rate_is_a_count_and_a_span() {
        assert_eq!(Rate::parse("100/1m"), Some(Rate { count: 100, span_ms: 60_000 }));
        assert_eq!(Rate::parse("100/1m").unwrap().to_string(), "100/1m");
        for wrong in ["", "100", "0/1m", "-1/1m", "1/0s", "1/", "x/1m", "1/1y", "1/1m/1m"] {
            assert_eq!(Rate::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_full_bucket_gives_all_it_has_and_then_one_a_step() {
        let rate = Rate::parse("3/3s").unwrap();
        let mut full = 0;
        for _ in 0..3 {
            let Turn::Now(next) = rate.take(full, at(10_000)) else { panic!("it has tokens") };
            full = next;
        }
        assert_eq!(rate.take(full, at(10_000)), Turn::In(1000));
        assert_eq!(rate.take(full, at(10_400)), Turn::In(600));
        assert!(matches!(rate.take(full, at(11_000)), Turn::Now(_)));
    }

    #[test]
    fn a_clock_that_was_ahead_stops_it_for_no_longer_than_the_span() {
        let rate = Rate::parse("1/1m").unwrap();
        let Turn::Now(full) = rate.take(0, at(1_000_000_000)) else { panic!("it is full") };
        assert_eq!(rate.take(full, at(5_000)), Turn::In(60_000));
    }

    proptest! {
        #[test]
        fn no_span_has_more_than_a_bucket_and_what_flows_in(
            count in 1_i64..20, span_ms in 1_i64..5_000,
            gaps in prop::collection::vec(0_i64..400, 1..200),
        ) {
            let rate = Rate { count, span_ms };
            let (mut full, mut now, mut taken) = (0, 1_000_000, Vec::new());
            for gap in gaps {
                now += gap;
                if let Turn::Now(next) = rate.take(full, at(now)) {
                    full = next;
                    taken.push(now);
                }
            }
            for (place, from) in taken.iter().enumerate() {
                let inside = taken[place..].iter().filter(|at| **at - from < span_ms).count();
                prop_assert!(inside as i64 <= 2 * count, "{inside} of {count}");
            }
        }

        #[test]
        fn who_waits_as_long_as_told_has_a_turn(count in 1_i64..50, span_ms in 1_i64..10_000) {
            let rate = Rate { count, span_ms };
            let (mut full, mut now) = (0, 50_000);
            for _ in 0..count * 3 {
                match rate.take(full, at(now)) {
                    Turn::Now(next) => full = next,
                    Turn::In(wait) => {
                        now += wait;
                        let Turn::Now(next) = rate.take(full, at(now)) else {
                            panic!("told to come back after {wait}")
                        };
                        full = next;
                    }
                }
            }
        }
    }
}
