//! `claviger doctor`: one line for each thing that must be right, and what to do where it is not.

mod keys;

use crate::{audit, softhsm, telling, world};
use claviger::app::policies;
use claviger::cli::args::ReportArgs;
use claviger::cli::{Failure, load, print};
use claviger::config::server::ServerConfig;
use claviger::core::id::ChainId;
use claviger::hsm::Diagnosis;
use claviger::ports::chain::BlockAt;
use claviger::ports::clock::Clock;
use claviger::ports::store::{Store, StoreError, look};
use claviger::system::SystemClock;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

/// How far our clock may be from a chain's newest block before it is worth a word, in seconds.
const CLOCK_S_MAX: i64 = 600;

/// What became of one check.
enum Outcome {
    Right(String),
    Wrong {
        what: String,
        /// What to do, where that is not in what is wrong.
        advice: Option<String>,
    },
    /// Something else is wrong that has to be put right first.
    NotChecked(String),
}

struct Finding {
    what: String,
    outcome: Outcome,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, what: impl Into<String>, result: Result<String, String>) {
        let outcome = match result {
            Ok(text) => Outcome::Right(text),
            Err(what) => Outcome::Wrong { what, advice: None },
        };
        self.0.push(Finding { what: what.into(), outcome });
    }

    fn wrong(&mut self, what: impl Into<String>, wrong: Diagnosis) {
        let Diagnosis { what: is, advice } = wrong;
        let outcome = Outcome::Wrong { what: is, advice: Some(advice) };
        self.0.push(Finding { what: what.into(), outcome });
    }

    fn not_checked(&mut self, what: impl Into<String>, why: impl Into<String>) {
        self.0.push(Finding { what: what.into(), outcome: Outcome::NotChecked(why.into()) });
    }
}

impl Finding {
    fn json(&self) -> Value {
        match &self.outcome {
            Outcome::Right(text) => json!({ "check": self.what, "ok": true, "detail": text }),
            Outcome::Wrong { what, advice } => {
                json!({ "check": self.what, "ok": false, "detail": what, "advice": advice })
            }
            // Neither right nor wrong.
            Outcome::NotChecked(why) => json!({ "check": self.what, "ok": null, "detail": why }),
        }
    }

    fn row(&self) -> Vec<String> {
        let (word, text) = match &self.outcome {
            Outcome::Right(text) => ("ok", text.clone()),
            Outcome::Wrong { what, advice: None } => ("FAIL", what.clone()),
            Outcome::Wrong { what, advice: Some(advice) } => {
                ("FAIL", format!("{what}. To do: {advice}"))
            }
            Outcome::NotChecked(why) => ("--", format!("not checked: {why}")),
        };
        vec![word.to_owned(), self.what.clone(), text]
    }
}

/// Checks everything and prints it. Changes nothing.
///
/// # Errors
/// When anything is wrong.
pub fn run(args: &ReportArgs) -> Result<(), Failure> {
    let config = load::config(&args.config)?;
    softhsm::with_its_environment(&config)?;
    let mut findings = Findings::default();
    crate::block_on(1, async {
        check(&args.config, &config, &mut findings).await;
        Ok(())
    })?;
    let Findings(findings) = findings;
    let is_wrong = |finding: &&Finding| matches!(finding.outcome, Outcome::Wrong { .. });
    let failed = findings.iter().filter(is_wrong).count();
    if args.json {
        let shown: Vec<_> = findings.iter().map(Finding::json).collect();
        print::json(&json!({ "ok": failed == 0, "checks": shown }));
    } else {
        print::table(&findings.iter().map(Finding::row).collect::<Vec<_>>());
    }
    if failed == 0 {
        return Ok(());
    }
    Err(Failure::new(format!("{failed} check(s) failed")))
}

async fn check(path: &Path, config: &ServerConfig, findings: &mut Findings) {
    findings.add("configuration", Ok(path.display().to_string()));
    let bundle = load::both(path).map(|(_, bundle)| {
        format!("{} {:#x}, {} case(s) pass", bundle.version(), bundle.hash(), bundle.cases().len())
    });
    findings.add("policy bundle", bundle.map_err(|e| e.to_string()));
    if let Some(development) = &config.auth.development {
        findings.add("development issuer", private(&development.key_file));
    }
    if let Some(tls) = &config.server.tls {
        findings.add("TLS key", private(&tls.key_file));
    }
    if let Some(section) = &config.bus {
        findings.add("bus", telling::look_at_bus(section).await);
        if let Some(file) = &section.url_file {
            findings.add("bus URL", private(file));
        }
    }
    for section in &config.webhooks {
        let what = format!("webhook {}", section.name);
        let usable = telling::webhook(section).map_err(|error| error.to_string());
        let usable = usable.and_then(|_| private(&section.secret_file));
        findings.add(
            what,
            usable.map(|file| format!("{}; {file}", section.url.origin().ascii_serialization())),
        );
    }
    let store = database(config, findings).await;
    if let Some(store) = &store {
        findings.add("events", telling::owed(config, &**store).await);
    }
    keys::check(config, store.as_deref(), findings).await;
    drop(store);
    findings.add("policy in force", policy_in_force(config).await);
    findings.add("audit log", audit::check(config).await);
    findings.add("reconciliation", waits(config).await);
    if world::store_url(config).is_ok_and(|url| url.starts_with("postgres")) {
        findings.add("replication", replication(config).await);
    }
    for section in &config.chains {
        let what = format!("chain {}", section.name);
        findings.add(what, chain(section).await);
    }
}

/// A secret is its owner's alone.
fn private(path: &Path) -> Result<String, String> {
    let metadata = std::fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(format!("{} (mode {mode:03o})", path.display()));
    }
    Err(format!(
        "{} has mode {mode:03o}: others can read it; chmod 600 it, and change the secret",
        path.display()
    ))
}

/// The database, for what is looked up in it.
async fn database(config: &ServerConfig, findings: &mut Findings) -> Option<Arc<dyn Store>> {
    match world::store(config).await {
        Ok(store) => {
            let ping = store.ping().await;
            let answers = ping.map(|()| "answers".to_owned()).map_err(|e| e.to_string());
            findings.add("database", answers);
            Some(store)
        }
        Err(StoreError::Held(_)) => {
            let text = "in use by a running server; it is only read here";
            findings.add("database", Ok(text.to_owned()));
            audit::reader(config).await.ok()
        }
        Err(error) => {
            findings.add("database", Err(error.to_string()));
            None
        }
    }
}

/// Whether what was answered can be lost in a crash or a failover.
async fn replication(config: &ServerConfig) -> Result<String, String> {
    let store = audit::reader(config).await.map_err(|error| error.to_string())?;
    let found = store.replication().await.map_err(|error| error.to_string())?;
    let Some(found) = found else {
        return Ok("there is none".to_owned());
    };
    match found.finding() {
        Some(finding) => Err(finding),
        None => Ok(format!(
            "synchronous_commit is {}; {} standby(s); synchronous_standby_names is `{}`",
            found.commit, found.standbys, found.names
        )),
    }
}

/// Which bundle the database has in force, and whether the folder has another.
async fn policy_in_force(config: &ServerConfig) -> Result<String, String> {
    let store = audit::reader(config).await.map_err(|error| error.to_string())?;
    let found = look(&*store, "policy_in_force", |unit| {
        Box::pin(async move {
            let Some(active) = unit.active_bundle().await? else {
                return Ok(None);
            };
            Ok(unit.bundle(active.bundle).await?.map(|row| (active, row)))
        })
    });
    let Some((active, row)) = found.await.map_err(|error| error.to_string())? else {
        return Ok("none yet: the first start puts the folder's in force".to_owned());
    };
    let in_force = policies::load(&row.files_json)
        .map_err(|problem| format!("{:#x} does not load: {problem}", row.hash))?;
    let differences = load::differences(config, &in_force);
    if !differences.is_empty() {
        return Err(format!("{} {:#x}: {}", row.version, row.hash, differences.join("; ")));
    }
    let folder = load::bundle(&config.policies.dir).map_err(|error| error.to_string())?;
    let text = format!("{} {:#x} since {}", row.version, row.hash, active.at);
    if folder.hash() == row.hash {
        return Ok(text);
    }
    let other = format!("the folder has {} {:#x}", folder.version(), folder.hash());
    if in_force.guardrails().change.is_some() {
        return Ok(format!("{text}; {other}, which does not replace it"));
    }
    Ok(format!("{text}; {other}, which the next start puts in force"))
}

/// Whether the server or a lane waits for an operator.
async fn waits(config: &ServerConfig) -> Result<String, String> {
    let store = audit::reader(config).await.map_err(|error| error.to_string())?;
    let chains: Vec<ChainId> =
        config.chains.iter().map(|section| ChainId::new(section.chain_id)).collect();
    let found = look(&*store, "waits", move |unit| {
        let chains = chains.clone();
        Box::pin(async move {
            let (mut halted, mut still) = (Vec::new(), Vec::new());
            for chain in chains.iter().copied() {
                halted.extend(unit.lanes(chain).await?);
            }
            halted.retain(|lane| lane.halted.is_some());
            for chain in chains {
                let broken = unit.anchor(chain).await?.and_then(|anchor| anchor.broken);
                still.extend(broken.map(|reason| format!("chain {chain} stands still: {reason}")));
            }
            Ok((unit.suspension().await?, halted, still))
        })
    })
    .await;
    let help = "run `claviger reconcile`";
    let copy = store.identity().await.map_err(|error| error.to_string())?;
    let is_postgres = world::store_url(config).is_ok_and(|url| url.starts_with("postgres"));
    let copy = match copy {
        Some(copy) => format!("; PostgreSQL's system and timeline are {copy}"),
        None if is_postgres => {
            "; PostgreSQL does not say its system and timeline to this role, so a \
                                promoted replica is seen by the audit log and the nonces only"
                .to_owned()
        }
        None => String::new(),
    };
    match found {
        // A database of an older version has no such state, and is migrated by the next start.
        Err(error) => Err(error.to_string()),
        Ok((Some(why), ..)) => {
            Err(format!("suspended since {}: {}; {help}", why.since, why.reason))
        }
        Ok((None, halted, still)) if halted.is_empty() && still.is_empty() => {
            Ok(format!("nothing waits for it{copy}"))
        }
        Ok((None, halted, still)) => {
            let lanes = halted.iter().map(|lane| {
                let why = lane.halted.as_deref().unwrap_or_default();
                format!("the lane of {:#x} is halted: {why}", lane.address)
            });
            let told: Vec<String> = still.into_iter().chain(lanes).collect();
            Err(format!("{}; {help}", told.join("; ")))
        }
    }
}

async fn chain(section: &claviger::config::server::ChainSection) -> Result<String, String> {
    let nodes = world::nodes(section).map_err(|e| e.to_string())?;
    let (id, genesis) = nodes.identity().await.map_err(|e| e.to_string())?;
    if id.get() != section.chain_id {
        return Err(format!("the node says chain id {id}, not {}", section.chain_id));
    }
    let head = nodes.block(BlockAt::Latest).await.map_err(|e| e.to_string())?;
    let head = head.ok_or("the node has no block")?;
    let now_s = SystemClock.now().millis().div_euclid(1000);
    let apart = now_s.saturating_sub(i64::try_from(head.timestamp_s).unwrap_or(i64::MAX));
    let clock = if apart.abs() > CLOCK_S_MAX {
        format!("; its newest block is {apart} s from our clock")
    } else {
        String::new()
    };
    Ok(format!("id {id}, genesis {genesis:#x}, head {}{clock}", head.number))
}
