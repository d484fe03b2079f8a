//! `claviger key ceremony`: its arguments, and what it prints. The program puts HSM, database and log to it.

use crate::cli::print;
use crate::core::ceremony::{Person, Plan, Record};
use clap::Args;
use serde_json::{Value, json};
use std::path::PathBuf;

/// The longest reason, in characters: it stands in the record as it is.
const REASON_CHARS_MAX: usize = 500;

/// `claviger key ceremony`
#[derive(Debug, Args)]
#[command(
    after_help = "The plan says who is present and what is made; people review it before, and agree on its SHA-256. Stop \
                  the server first where the database is SQLite. --dry-run checks everything and changes nothing. The \
                  record of what was made is signed with the audit log's key and stands in the log; --record writes it \
                  to a file too. softhsm/ceremony.example.toml is a plan.\n\n\
                  Example:\n  claviger key ceremony --config ./dev/claviger.toml --plan ./ceremony.toml --dry-run\n  \
                  claviger key ceremony --config ./dev/claviger.toml --plan ./ceremony.toml --record ./ceremony.record"
)]
pub struct CeremonyArgs {
    /// The server's configuration file.
    #[arg(long)]
    pub config: PathBuf,
    /// The plan, a TOML file.
    #[arg(long, required_unless_present = "end_interrupted")]
    pub plan: Option<PathBuf>,
    /// Where to write the signed record, too. Must not exist.
    #[arg(long)]
    pub record: Option<PathBuf>,
    /// Check everything, say what would be made, and change nothing.
    #[arg(long, conflicts_with = "end_interrupted")]
    pub dry_run: bool,
    /// The full SHA-256 of the plan that was reviewed: nothing is asked then.
    #[arg(long, conflicts_with = "end_interrupted")]
    pub yes_sha256: Option<String>,
    /// Go on although the plan's date is not today, within a day.
    #[arg(long)]
    pub even_if_date_differs: bool,
    /// End the ceremony that was begun and did not end: keys that it had begun are finished, and the record says
    /// what was made and what was not. With the reason, for the record.
    #[arg(long, value_name = "REASON", conflicts_with = "plan", value_parser = reason)]
    pub end_interrupted: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `claviger key ceremony-verify`
#[derive(Debug, Args)]
#[command(
    after_help = "Checked are the signature, that it is a record and nothing else, that the plan's hash is that of its text, \
                  and that each address is its public key's. Whether the record stands in the log is what \
                  `claviger audit verify` shows: it is a text of a KEY_CEREMONY leaf.\n\n\
                  Example:\n  claviger key ceremony-verify --record ./ceremony.record --key ./audit.vkey"
)]
pub struct CeremonyVerifyArgs {
    /// The record.
    #[arg(long)]
    pub record: PathBuf,
    /// The audit log's public key (C2SP verifier key), from where you trust it.
    #[arg(long)]
    pub key: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

fn reason(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("say why".to_owned()),
        text if text.chars().count() > REASON_CHARS_MAX => {
            Err(format!("it has more than {REASON_CHARS_MAX} characters"))
        }
        text if text.chars().any(char::is_control) => Err("it has control characters".to_owned()),
        text => Ok(text.to_owned()),
    }
}

/// Prints what would be made, on standard error: it is what is confirmed.
pub fn show_plan(plan: &Plan, tokens: &[String]) {
    let mut lines = vec![
        format!("{} ({})", plan.title, plan.date),
        format!("  {}", plan.purpose),
        format!("  present: {}", people(&plan.present)),
    ];
    lines.extend(tokens.iter().map(|token| format!("  token: {token}")));
    for key in &plan.wrapping_keys {
        lines.push(format!("  makes wrapping key {} in {}", key.label, key.hsm));
    }
    for key in &plan.keys {
        let group = key.group.as_ref().map_or_else(String::new, |group| format!(", group {group}"));
        let (mode, custody) = (key.mode.name(), key.custody.name());
        lines.push(format!("  makes {mode} key {} in {} ({custody}){group}", key.label, key.hsm));
    }
    lines.push(format!("  SHA-256 of the plan: {}", plan.sha256()));
    print::note(&lines.join("\n"));
}

fn people(present: &[Person]) -> String {
    let one = |person: &Person| format!("{} ({})", person.name, person.role);
    present.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Prints a plan that could be carried out.
pub fn show_dry_run(plan: &Plan, as_json: bool) {
    let (keys, wrapping) = (plan.keys.len(), plan.wrapping_keys.len());
    if as_json {
        let labels: Vec<_> = plan.keys.iter().map(|key| &key.label).collect();
        print::json(&json!({
            "ok": true, "plan_sha256": plan.sha256(), "keys": labels, "wrapping_keys": wrapping,
        }));
        return;
    }
    print::line(&format!(
        "Nothing is in the way: {keys} key(s) and {wrapping} wrapping key(s) would be made. Nothing was \
         changed."
    ));
}

/// What a record says, in short, or as JSON.
pub fn show_record(record: &Record, origin: &str, more: &[(&str, String)], as_json: bool) {
    if as_json {
        let mut shown = json!({ "ok": true, "origin": origin, "record": record });
        if let Value::Object(map) = &mut shown {
            map.extend(more.iter().map(|(name, value)| ((*name).to_owned(), json!(value))));
        }
        print::json(&shown);
        return;
    }
    let about = &record.ceremony;
    let mut rows = vec![
        ("ceremony", format!("{} ({})", about.title, about.id)),
        ("outcome", about.outcome.clone()),
        ("signed by", origin.to_owned()),
        ("present", people(&record.present)),
        ("begun, ended", format!("{}, {}", about.begun_at, about.ended_at)),
        ("plan", record.plan.sha256.clone()),
    ];
    rows.extend(about.reason.iter().map(|reason| ("reason", reason.clone())));
    for token in &record.tokens {
        let told = format!("{}: {}, serial {}", token.hsm, token.label, token.serial);
        rows.push(("token", told));
    }
    rows.extend(record.wrapping_keys.iter().map(|key| ("wrapping key", key.label.clone())));
    rows.extend(record.keys.iter().map(|key| ("key", format!("{} {}", key.address, key.label))));
    rows.extend(about.not_made.iter().map(|label| ("not made", label.clone())));
    rows.extend(more.iter().map(|(name, value)| (*name, value.clone())));
    let rows: Vec<Vec<String>> =
        rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    print::table(&rows);
}
