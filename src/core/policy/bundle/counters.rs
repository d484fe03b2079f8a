//! What a case says that windows hold before its request.

use super::Bundle;
use super::grant::{Holds, Mode, Rules, Window};
use crate::core::amount::Amount;
use crate::core::policy::{Charge, LimitId, Reason, Verdict};
use std::collections::BTreeMap;

/// How full windows are, each by the words it is named with.
pub(super) struct Counters(Vec<Counter>);

struct Counter {
    /// How the label of each of its counters begins, and what comes after the unit.
    starts: String,
    middle: String,
    used: Amount,
}

impl Counters {
    /// Reads `used = { "GRANT SPAN SCOPE" = "AMOUNT" }`; windows that count requests are `"… count"`, those
    /// of fees `"… fee"`.
    pub fn read(bundle: &Bundle, raw: Option<&BTreeMap<String, String>>) -> Result<Self, String> {
        let known = windows(bundle);
        let mut counters = Vec::new();
        for (name, text) in raw.into_iter().flatten() {
            let words: Vec<&str> = name.split(' ').collect();
            let (grant, span, scope, what) = match *words.as_slice() {
                [grant, span, scope] => (grant, span, scope, "value"),
                [grant, span, scope, what @ ("count" | "fee")] => (grant, span, scope, what),
                _ => {
                    return Err(format!(
                        "used: `{name}` is not \"GRANT SPAN SCOPE\", perhaps with count or fee"
                    ));
                }
            };
            if !known.contains(&(grant, span, scope, what)) {
                return Err(format!("used: there is no such window `{name}`"));
            }
            let used = Amount::parse(text).map_err(|error| format!("used: `{text}`: {error}"))?;
            counters.push(Counter {
                starts: format!("{grant}: {what} ("),
                middle: format!(") in {span} per {scope} "),
                used,
            });
        }
        Ok(Self(counters))
    }

    /// The windows that have no room for what is asked.
    pub fn full(&self, verdict: &Verdict) -> Vec<Reason> {
        let mut asked: BTreeMap<LimitId, (&Charge, Option<Amount>)> = BTreeMap::new();
        let held = verdict.exposures.iter().flat_map(|exposure| &exposure.charges);
        for charge in verdict.charges.iter().chain(held) {
            let sum = asked.entry(charge.limit).or_insert((charge, Some(Amount::ZERO)));
            sum.1 = sum.1.zip(charge.asked()).and_then(|(sum, more)| sum.checked_add(more));
        }
        let full = asked.into_values().filter_map(|(charge, asked)| {
            let counter = self.0.iter().find(|counter| counter.is_of(charge))?;
            let after = asked.and_then(|asked| asked.checked_add(counter.used));
            let fits = after.is_some_and(|after| after <= charge.max);
            (!fits).then(|| Reason {
                grant: Some(charge.grant.clone()),
                field: "windows".to_owned(),
                expected: format!("at most {} of {}", charge.max, charge.label),
                actual: after.map_or_else(|| "more than 2^256".to_owned(), |sum| sum.to_string()),
            })
        });
        full.collect()
    }
}

impl Counter {
    fn is_of(&self, charge: &Charge) -> bool {
        let rest = charge.label.strip_prefix(&self.starts);
        rest.is_some_and(|rest| {
            rest.split_once(')').is_some_and(|(unit, _)| {
                rest.strip_prefix(unit).is_some_and(|rest| rest.starts_with(&self.middle))
            })
        })
    }
}

type Named<'a> = (&'a str, &'a str, &'a str, &'static str);

/// Every window that a case can name.
fn windows(bundle: &Bundle) -> Vec<Named<'_>> {
    fn named<'a>(id: &'a str, window: &'a Window, fee: bool) -> Named<'a> {
        let what = match (fee, window.holds) {
            (true, _) => "fee",
            (false, Holds::Count(_)) => "count",
            (false, Holds::Amount(_)) => "value",
        };
        (id, window.span.as_str(), window.scope.name(), what)
    }
    let mut found = Vec::new();
    for grant in bundle.grants.iter().filter(|grant| grant.mode == Mode::Enforce) {
        let id = grant.id.as_str();
        match &grant.rules {
            Rules::Message { windows, .. } => {
                found.extend(windows.iter().map(|window| named(id, window, false)));
            }
            Rules::OnChain(rules) => {
                for rule in rules.values() {
                    let fees = rule.fee.iter().flat_map(|fee| &fee.windows);
                    found.extend(rule.windows.iter().map(|window| named(id, window, false)));
                    found.extend(fees.map(|window| named(id, window, true)));
                }
            }
        }
    }
    for limit in &bundle.guardrails.limits {
        found.extend(limit.windows.iter().map(|window| named(limit.id.as_str(), window, false)));
    }
    found
}
