//! `claviger policy check DIR`, `claviger policy test DIR`, `claviger policy diff OLD NEW`

use crate::cli::{Failure, load, print};
use crate::core::policy::Reason;
use crate::core::policy::bundle::{CaseReport, TestReport};
use crate::core::policy::diff::{Direction, diff as compare};
use serde_json::{Value, json};
use std::path::Path;

/// Loads a bundle, which runs its cases, and prints what it grants.
///
/// # Errors
/// When it does not load.
pub fn check(dir: &Path, as_json: bool) -> Result<(), Failure> {
    let bundle = load::bundle(dir)?;
    if as_json {
        let grants: Vec<_> = bundle.grants().into_iter().map(|grant| json!(grant)).collect();
        print::json(&json!({
            "version": bundle.version(),
            "hash": format!("{:#x}", bundle.hash()),
            "cases": bundle.cases().len(),
            "grants": grants,
        }));
        return Ok(());
    }
    print::line(&format!("bundle {} {:#x}", bundle.version(), bundle.hash()));
    print::line(&format!("{} case(s) pass", bundle.cases().len()));
    let mut rows =
        vec![["GRANT", "ACTION", "PRINCIPALS", "SIGNERS", "EXPIRES"].map(str::to_owned).to_vec()];
    rows.extend(bundle.grants().into_iter().map(|grant| {
        vec![
            grant.id,
            grant.action.to_owned(),
            grant.principals.join(","),
            grant.signers.join(","),
            grant.expires,
        ]
    }));
    print::table(&rows);
    Ok(())
}

/// Runs a bundle's cases and prints one line for each: whether it holds, what it expects, what the
/// bundle decided, and why.
///
/// # Errors
/// When the bundle cannot be read, a case does not hold, or there is none.
pub fn test(dir: &Path, as_json: bool) -> Result<(), Failure> {
    let report = load::bundle_cases(dir)?;
    let failed = report.failed();
    if as_json {
        print::json(&shown(&report));
    } else {
        print::line(&format!("bundle {} {:#x}", report.version, report.hash));
        let mut rows = vec![["", "CASE", "EXPECTED", "GOT", "WHY"].map(str::to_owned).to_vec()];
        rows.extend(report.cases.iter().map(row));
        if !report.cases.is_empty() {
            print::table(&rows);
        }
    }
    if report.cases.is_empty() {
        let dir = dir.display();
        return Err(Failure::new(format!("{dir} has no test case: add a [[case]] to cases.toml")));
    }
    let all = report.cases.len();
    if failed > 0 {
        return Err(Failure::new(format!("{failed} of {all} case(s) failed")));
    }
    if !as_json {
        print::line(&format!("{all} case(s) pass"));
    }
    Ok(())
}

/// Prints what the second bundle newly permits and refuses.
///
/// # Errors
/// When one of them does not load.
pub fn diff(old: &Path, new: &Path, as_json: bool) -> Result<(), Failure> {
    let (old, new) = (load::bundle(old)?, load::bundle(new)?);
    let found = compare(&old, &new);
    if as_json {
        print::json(&json!({
            "from": format!("{:#x}", old.hash()),
            "to": format!("{:#x}", new.hash()),
            "loosens": found.is_looser(),
            "changes": found.changes,
        }));
        return Ok(());
    }
    print::line(&format!("from {} {:#x}", old.version(), old.hash()));
    print::line(&format!("to   {} {:#x}", new.version(), new.hash()));
    for (direction, head) in [
        (Direction::Loosens, "newly permitted, or not shown to be refused as before:"),
        (Direction::Tightens, "newly refused:"),
        (Direction::Neutral, "different, without an effect of its own:"),
    ] {
        let of = found.changes.iter().filter(|change| change.direction == direction);
        let lines: Vec<String> =
            of.map(|change| format!("  {}: {}", change.about, change.what)).collect();
        if !lines.is_empty() {
            print::line("");
            print::line(head);
            lines.iter().for_each(|line| print::line(line));
        }
    }
    print::line("");
    print::line(if found.is_looser() {
        "the second bundle loosens"
    } else if found.is_empty() {
        "no difference that matters"
    } else {
        "the second bundle loosens nothing"
    });
    Ok(())
}

fn row(case: &CaseReport) -> Vec<String> {
    let mark = if case.problem.is_none() { "ok" } else { "FAILED" };
    vec![mark.to_owned(), case.name.clone(), case.expected.clone(), got(case).to_owned(), why(case)]
}

/// The outcome; a case that cannot be read has none.
fn got(case: &CaseReport) -> &'static str {
    case.got.map_or("error", |outcome| outcome.name())
}

/// What is wrong with the case; else the grants that cover it, or the nearest refusal.
fn why(case: &CaseReport) -> String {
    if let Some(problem) = &case.problem {
        return problem.clone();
    }
    if case.reasons.is_empty() {
        let grants = case.grants.iter().map(|id| id.as_str());
        return grants.collect::<Vec<_>>().join(", ");
    }
    case.reasons.iter().take(2).map(in_words).collect::<Vec<_>>().join("; ")
}

fn in_words(reason: &Reason) -> String {
    let grant = reason.grant.as_ref().map_or_else(String::new, |id| format!("{id}: "));
    format!("{grant}{} expected {}, is {}", reason.field, reason.expected, reason.actual)
}

fn shown(report: &TestReport) -> Value {
    let cases: Vec<Value> = report
        .cases
        .iter()
        .map(|case| {
            json!({
                "name": case.name,
                "line": case.line,
                "holds": case.problem.is_none(),
                "expected": case.expected,
                "got": got(case),
                "grants": case.grants,
                "reasons": case.reasons,
                "problem": case.problem,
            })
        })
        .collect();
    json!({
        "version": report.version,
        "hash": format!("{:#x}", report.hash),
        "passed": report.cases.len().saturating_sub(report.failed()),
        "failed": report.failed(),
        "cases": cases,
    })
}
