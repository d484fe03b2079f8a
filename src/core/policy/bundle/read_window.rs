//! Windows, hours and spans of time, from what is written to what is checked.

use super::grant::{Holds, Hours, Scope, Window};
use super::syntax::{RawHours, RawWindow};
use crate::core::amount::Amount;
use crate::core::policy::verdict::Period;

const DAY_MS: i64 = 86_400_000;
/// The longest span: a leap year.
const SPAN_MAX_MS: i64 = 366 * DAY_MS;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const DAY_MINUTES: u16 = 24 * 60;

/// What windows of one kind may say.
#[derive(Clone, Copy)]
pub(super) struct WindowRules {
    /// The unit of `max`; without one, only counts make sense.
    pub decimals: Option<u8>,
    /// Whether what they count goes to somebody.
    pub destinations: bool,
    /// Whether it is on a chain.
    pub on_chain: bool,
}

/// Reads windows.
pub(super) fn read_windows(
    raw: Option<&[RawWindow]>,
    rules: WindowRules,
) -> Result<Vec<Window>, String> {
    let Some(raw) = raw else {
        return Ok(Vec::new());
    };
    if raw.is_empty() {
        return Err("windows is empty: leave it out if there is none".to_owned());
    }
    let mut windows: Vec<Window> = Vec::new();
    for one in raw {
        let window = read_window(one, rules)?;
        let same = |other: &Window| {
            other.period == window.period
                && other.scope == window.scope
                && matches!(other.holds, Holds::Count(_)) == matches!(window.holds, Holds::Count(_))
        };
        if windows.iter().any(same) {
            return Err(format!("windows: two of {} by {}", window.span, window.scope.name()));
        }
        windows.push(window);
    }
    Ok(windows)
}

fn read_window(raw: &RawWindow, rules: WindowRules) -> Result<Window, String> {
    let scope = match raw.scope.as_str() {
        "group" => Scope::Group,
        "key" => Scope::Key,
        "principal" => Scope::Principal,
        "destination" if rules.destinations => Scope::Destination,
        "destination" => return Err("windows: this goes to no destination".to_owned()),
        "chain" if rules.on_chain => Scope::Chain,
        "chain" => return Err("windows: this belongs to no chain".to_owned()),
        other => return Err(format!("windows: scope `{other}` is unknown")),
    };
    let holds = match (&raw.max, raw.count, rules.decimals) {
        (Some(max), None, Some(decimals)) => Holds::Amount(
            Amount::parse_scaled(max, decimals)
                .map_err(|error| format!("windows: max `{max}`: {error}"))?,
        ),
        (Some(_), None, None) => return Err("windows: this action has no amount".to_owned()),
        (None, Some(0), _) => return Err("windows: a count of 0 allows nothing".to_owned()),
        (None, Some(count), _) => Holds::Count(count),
        _ => return Err("windows: say either max or count".to_owned()),
    };
    let period = read_period(&raw.span, raw.rolling)?;
    Ok(Window { period, span: raw.span.clone(), holds, scope })
}

/// Which span: of the calendar only where `rolling = false` says so, since a window that begins anew at
/// midnight lets twice its maximum pass around it.
fn read_period(span: &str, rolling: Option<bool>) -> Result<Period, String> {
    let calendar = match span {
        "day" => Some(Period::Day),
        "week" => Some(Period::Week),
        "month" => Some(Period::Month),
        _ => None,
    };
    match (calendar, rolling) {
        (Some(period), Some(false)) => Ok(period),
        (Some(_), _) => Err(format!(
            "windows: span `{span}` is of the calendar: it needs rolling = false (or write 24h, 7d, 30d)"
        )),
        (None, Some(false)) => Err(format!(
            "windows: span `{span}` rolls: with rolling = false it is day, week or month"
        )),
        (None, _) => read_span(span).map(Period::Rolling).map_err(|problem| {
            format!("windows: span {problem}, or day, week, month with rolling = false")
        }),
    }
}

/// Reads a span of time such as `90s`, `30m`, `24h`, `7d`, as milliseconds.
pub(super) fn read_span(text: &str) -> Result<i64, String> {
    span_ms(text).ok_or_else(|| format!("`{text}` is not like 30m, 24h, 7d (at most 366d)"))
}

fn span_ms(text: &str) -> Option<i64> {
    let unit = text.chars().next_back()?;
    let unit_ms: i64 = match unit {
        's' => 1_000,
        'm' => 60_000,
        'h' => 3_600_000,
        'd' => DAY_MS,
        _ => return None,
    };
    let digits = text.strip_suffix(unit)?;
    if !digits.bytes().all(|b| b.is_ascii_digit()) || digits.starts_with('0') {
        return None;
    }
    let span_ms = digits.parse::<i64>().ok()?.checked_mul(unit_ms)?;
    (span_ms <= SPAN_MAX_MS).then_some(span_ms)
}

/// Reads `hours`: days such as `mon-fri` or `mon-wed,sat`, and a part of the day, UTC.
pub(super) fn read_hours(raw: &RawHours) -> Result<Hours, String> {
    let mut days = [false; 7];
    for part in raw.days.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (read_day(first)?, read_day(last)?);
        if first > last {
            return Err(format!("hours: `{part}` goes backwards: weeks begin on mon"));
        }
        for day in days.iter_mut().take(last.saturating_add(1)).skip(first) {
            if *day {
                return Err(format!("hours: `{}` has a day twice", raw.days));
            }
            *day = true;
        }
    }
    let times = raw.utc.split_once('-').and_then(|(from, to)| Some((minute(from)?, minute(to)?)));
    let (from_minute, to_minute) = times
        .filter(|(from, to)| from < to)
        .ok_or_else(|| format!("hours: utc `{}` is not like 07:00-19:00", raw.utc))?;
    let text = format!("{} {} UTC", raw.days, raw.utc);
    Ok(Hours { days, from_minute, to_minute, text })
}

fn read_day(name: &str) -> Result<usize, String> {
    DAYS.iter()
        .position(|day| *day == name)
        .ok_or_else(|| format!("hours: `{name}` is none of {}", DAYS.join(", ")))
}

/// Minutes since midnight of `HH:MM`, up to `24:00`.
fn minute(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let two = |part: &str| -> Option<u16> {
        let plain = part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| part.parse().ok()).flatten()
    };
    let (hours, minutes) = (two(hours)?, two(minutes)?);
    let all = hours.checked_mul(60)?.checked_add(minutes)?;
    (minutes < 60 && all <= DAY_MINUTES).then_some(all)
}
