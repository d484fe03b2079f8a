//! Points in time, as values: milliseconds since 1970-01-01 UTC of *our* clock.

use std::fmt;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A point in time, in milliseconds since the Unix epoch. The database keeps exactly this number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From milliseconds since the epoch.
    #[must_use]
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the epoch.
    #[must_use]
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// This much later; saturates at the end of time.
    #[must_use]
    pub const fn plus_millis(self, millis: i64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// How long after `earlier` this is, in milliseconds; negative if before.
    #[must_use]
    pub const fn since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Reads RFC 3339, as the API takes it. Sub-millisecond digits are cut off.
    #[must_use]
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        i64::try_from(at.unix_timestamp_nanos().checked_div(1_000_000)?).ok().map(Self)
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with milliseconds, as the API shows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at =
            OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0).saturating_mul(1_000_000))
                .unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let (date, hour, minute, second) = (at.date(), at.hour(), at.minute(), at.second());
        let milli = at.millisecond();
        write!(f, "{date}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
    }
}

/// Milliseconds of a duration such as `250ms`, `30s`, `15m`, `24h`. `None` for anything else, and for 0.
#[must_use]
pub fn duration_ms(text: &str) -> Option<i64> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let (digits, unit) = text.split_at(unit_at);
    let count: i64 = digits.parse().ok()?;
    let ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    count.checked_mul(ms).filter(|ms| *ms > 0)
}

/// A duration in words, in the largest unit up to hours that gives a whole number: `24h`, `90s`.
#[must_use]
pub fn duration_text(ms: i64) -> String {
    let units = [(3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    let whole = |unit: i64| ms.checked_rem(unit) == Some(0);
    let (count, unit) = units
        .into_iter()
        .find(|(unit, _)| whole(*unit))
        .map_or((Some(ms), "ms"), |(unit, name)| (ms.checked_div(unit), name));
    format!("{}{unit}", count.unwrap_or(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3339_round_trips_at_millisecond_precision() {
        let at = Timestamp::parse_rfc3339("2026-03-01T12:30:05.123Z").unwrap();
        assert_eq!(at.to_string(), "2026-03-01T12:30:05.123Z");
        let same = Timestamp::parse_rfc3339("2026-03-01T13:30:05.1239+01:00").unwrap();
        assert_eq!(at, same);
        assert_eq!(Timestamp::parse_rfc3339("yesterday"), None);
    }

    #[test]
    fn durations_have_a_unit_and_are_not_zero() {
        assert_eq!(duration_ms("250ms"), Some(250));
        assert_eq!(duration_ms("30s"), Some(30_000));
        assert_eq!(duration_ms("24h"), Some(86_400_000));
        for bad in ["", "30", "s", "0s", "-1s", "1d", "1.5s", " 1s", "99999999999999999999s"] {
            assert_eq!(duration_ms(bad), None, "{bad}");
        }
        for text in ["250ms", "1s", "90s", "15m", "24h", "168h"] {
            assert_eq!(duration_text(duration_ms(text).unwrap()), text);
        }
    }
}
