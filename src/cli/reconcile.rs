//! `claviger reconcile`: its arguments, and what it prints. The program puts database, log and chains to it.

use crate::app::reconcile::{Account, Choices, Forgotten, Standstill, explain, explain_forgotten};
use crate::cli::{Failure, print};
use crate::core::id::RequestId;
use crate::ports::store::Suspension;
use alloy::primitives::{Address, B256};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use std::path::PathBuf;

/// The longest reason, in characters: it stands in the log as it is.
const REASON_CHARS_MAX: usize = 1_000;

/// `claviger reconcile`
#[derive(Debug, Args)]
pub struct ReconcileArgs {
    /// The server's configuration file.
    #[arg(long)]
    pub config: PathBuf,
    /// Make the database agree with the chain, release halted lanes, and let the server go on.
    #[arg(long, requires = "reason")]
    pub apply: bool,
    /// Why, for the audit log.
    #[arg(long, requires = "apply", value_parser = reason)]
    pub reason: Option<String>,
    /// Only this account. The server goes on once all accounts agree.
    #[arg(long)]
    pub account: Option<Address>,
    /// Go on although transactions that this database does not know may be pending, were made by accounts
    /// that it does not know, or are told of by one node only: look elsewhere first. If they are mined later,
    /// or are not what was told, their requests may be paid twice.
    #[arg(long, requires = "apply")]
    pub even_if_pending: bool,
    /// Nobody will ask again for the mined transactions that no request has claimed: the next request for
    /// the same is a new one. Only of accounts that agreed before: what is found now is closed by a later run.
    #[arg(long, requires = "apply")]
    pub close_unclaimed: bool,
    /// This mined transaction is this request, which waits for a nonce and asks for the same; or `none` of those
    /// that do. Only needed where several do, and it says so. May be given again for another one.
    #[arg(long, requires = "apply", value_name = "0xHASH=REQUEST", value_parser = adoption)]
    pub adopt: Vec<(B256, Option<RequestId>)>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

impl ReconcileArgs {
    /// What is named by `--adopt`.
    ///
    /// # Errors
    /// When a transaction or a request is named twice.
    pub fn choices(&self) -> Result<Choices, Failure> {
        let mut choices = Choices::new();
        for (hash, request) in &self.adopt {
            let is_again = request.is_some() && choices.values().any(|named| named == request);
            if is_again || choices.insert(*hash, *request).is_some() {
                return Err(Failure::new("--adopt names a transaction or a request twice"));
            }
        }
        Ok(choices)
    }
}

fn adoption(text: &str) -> Result<(B256, Option<RequestId>), String> {
    let (hash, request) = text.split_once('=').ok_or("it is 0xHASH=REQUEST, or 0xHASH=none")?;
    let hash = hash.parse().map_err(|error| format!("the hash: {error}"))?;
    match request {
        "none" => Ok((hash, None)),
        id => Ok((hash, Some(id.parse().map_err(|error| format!("the request: {error}"))?))),
    }
}

fn reason(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("say why".to_owned()),
        text if text.chars().count() > REASON_CHARS_MAX => {
            Err(format!("it has more than {REASON_CHARS_MAX} characters"))
        }
        text => Ok(text.to_owned()),
    }
}

/// A line on standard error with the block that is looked at, if that is a terminal; otherwise nothing.
pub struct Looking(ProgressBar);

impl Looking {
    /// The line.
    #[must_use]
    pub fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{spinner} comparing: block {msg}") {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// This block is looked at.
    pub fn at(&self, block: u64) {
        self.0.set_message(block.to_string());
        self.0.tick();
    }
}

impl Default for Looking {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// All that was found, and what was done.
#[derive(Debug, Default)]
pub struct Report {
    /// Why the server waits.
    pub suspension: Option<Suspension>,
    /// What is wrong with the audit log.
    pub log: Option<String>,
    /// Chains that were reorganised below what was told as final.
    pub chains: Vec<Standstill>,
    /// Accounts that are remembered, and that this database does not know.
    pub forgotten: Vec<Forgotten>,
    /// The accounts, each with what was done.
    pub accounts: Vec<(Account, Option<String>)>,
    /// Mined transactions that no request has claimed.
    pub unclaimed: Vec<String>,
    /// What else was done.
    pub done: Vec<String>,
}

impl Report {
    /// How many things do not agree.
    #[must_use]
    pub fn findings(&self) -> usize {
        let accounts = self.accounts.iter().filter(|(account, _)| !account.agrees()).count();
        let server = usize::from(self.suspension.is_some());
        let log = usize::from(self.log.is_some());
        let others = [server, log, self.chains.len(), self.forgotten.len()];
        others.into_iter().fold(accounts, usize::saturating_add)
    }

    /// Prints it.
    pub fn show(&self, as_json: bool) {
        if as_json {
            print::json(&self.json());
            return;
        }
        match &self.suspension {
            Some(why) => print::line(&format!("suspended since {}: {}", why.since, why.reason)),
            None => print::line("the server is not suspended"),
        }
        match &self.log {
            Some(wrong) => print::line(&format!("audit log: {wrong}")),
            None => print::line("audit log: nothing is wrong with it"),
        }
        for still in &self.chains {
            print::line(&format!("chain `{}` stands still: {}", still.chain.name, still.reason));
        }
        for (account, done) in &self.accounts {
            print::line("");
            print::line(&headline(account));
            let told = explain(account);
            if told.is_empty() {
                print::line("  all mined nonces are this database's");
            }
            for sentence in told {
                print::line(&format!("  - {sentence}"));
            }
            if let Some(done) = done {
                print::line(&format!("  => {done}"));
            }
        }
        for forgotten in &self.forgotten {
            print::line("");
            print::line(&explain_forgotten(forgotten));
        }
        if !self.unclaimed.is_empty() {
            print::line("");
            print::line("mined, and bound to the next request that asks for the same:");
            for orphan in &self.unclaimed {
                print::line(&format!("  {orphan}"));
            }
        }
        if !self.done.is_empty() {
            print::line("");
        }
        for done in &self.done {
            print::line(done);
        }
    }

    fn json(&self) -> Value {
        let accounts: Vec<Value> =
            self.accounts.iter().map(|(account, done)| shown(account, done.as_deref())).collect();
        json!({
            "ok": self.findings() == 0,
            "suspension": self.suspension.as_ref().map(|why| json!({
                "reason": why.reason, "since": why.since.to_string(),
            })),
            "log": self.log,
            "chains": self.chains.iter().map(|still| json!({
                "chain": still.chain.name.as_str(), "reason": still.reason,
            })).collect::<Vec<_>>(),
            "accounts": accounts,
            "forgotten": self.forgotten.iter().map(|forgotten| json!({
                "chain_id": forgotten.chain.to_string(),
                "address": format!("{:#x}", forgotten.address),
                "given": forgotten.given.to_string(),
                "explained": explain_forgotten(forgotten),
            })).collect::<Vec<_>>(),
            "unclaimed": self.unclaimed,
            "done": self.done,
        })
    }
}

fn count(value: Option<u64>) -> String {
    value.map_or_else(|| "?".to_owned(), |value| value.to_string())
}

fn headline(account: &Account) -> String {
    let given = account.remembered.map_or_else(String::new, |given| {
        format!(", {given} given by the memory beside the audit record")
    });
    format!(
        "{} {:#x}: {} nonces given by the database{given}; {} mined, {} of them final; {} with what pools \
         have; {} request(s) wait for a nonce, and are sent when the lane goes on",
        account.chain.name,
        account.address,
        account.next,
        account.latest,
        count(account.last_final),
        count(account.pending),
        account.queued,
    )
}

fn shown(account: &Account, done: Option<&str>) -> Value {
    let findings: Vec<Value> = account
        .findings
        .iter()
        .map(|finding| {
            let (what, request) = finding.what.named();
            let mined = finding.mined.as_ref();
            json!({
                "nonce": finding.nonce.to_string(),
                "what": what,
                "request": request.map(|request| request.to_string()),
                "transaction_hash": mined.map(|mined| format!("{:#x}", mined.hash)),
                "block_number": mined.map(|mined| mined.block_number.to_string()),
                "to": mined.and_then(|mined| mined.to).map(|to| format!("{to:#x}")),
                "value": mined.map(|mined| mined.value.to_string()),
                "final": finding.is_final,
                "candidates": finding.candidates.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "asked_by": finding.asked_by.map(|request| request.to_string()),
            })
        })
        .collect();
    json!({
        "chain": account.chain.name.as_str(),
        "address": format!("{:#x}", account.address),
        "next_nonce": account.next.to_string(),
        "given": account.remembered.map(|given| given.to_string()),
        "mined": account.latest.to_string(),
        "final": account.last_final.map(|count| count.to_string()),
        "pending": account.pending.map(|count| count.to_string()),
        "queued": account.queued.to_string(),
        "halted": account.halted,
        "findings": findings,
        "must_wait": !account.waits().is_empty(),
        "explained": explain(account),
        "done": done,
    })
}
