//! `claviger doctor`: one line for each thing that must be right, and what to do where it is not.

use crate::{audit, softhsm, world};
use alloy::primitives::Address;
use claviger::cli::args::ReportArgs;
use claviger::cli::{Failure, load, print};
use claviger::config::server::ServerConfig;
use claviger::core::id::{ChainId, HsmName};
use claviger::hsm::Hsm;
use claviger::ports::chain::BlockAt;
use claviger::ports::clock::Clock;
use claviger::ports::signer::Signer;
use claviger::ports::store::{KeyFilter, Store, look};
use claviger::system::SystemClock;
use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// How far our clock may be from a chain's newest block before it is worth a word, in seconds.
const CLOCK_S_MAX: i64 = 600;

struct Finding {
    what: String,
    result: Result<String, String>,
}

type Findings = Vec<Finding>;

fn add(findings: &mut Findings, what: impl Into<String>, result: Result<String, String>) {
    findings.push(Finding { what: what.into(), result });
}

/// Checks everything and prints it. Changes nothing.
///
/// # Errors
/// When anything is wrong.
pub fn run(args: &ReportArgs) -> Result<(), Failure> {
    let config = load::config(&args.config)?;
    softhsm::with_its_environment(&config)?;
    let mut findings = Findings::new();
    crate::block_on(1, async {
        check(&args.config, &config, &mut findings).await;
        Ok(())
    })?;
    let failed = findings.iter().filter(|finding| finding.result.is_err()).count();
    if args.json {
        let shown: Vec<_> = findings
            .iter()
            .map(|finding| match &finding.result {
                Ok(text) => json!({ "check": finding.what, "ok": true, "detail": text }),
                Err(text) => json!({ "check": finding.what, "ok": false, "detail": text }),
            })
            .collect();
        print::json(&json!({ "ok": failed == 0, "checks": shown }));
    } else {
        let rows: Vec<Vec<String>> = findings
            .iter()
            .map(|finding| {
                let (word, text) = match &finding.result {
                    Ok(text) => ("ok", text),
                    Err(text) => ("FAIL", text),
                };
                vec![word.to_owned(), finding.what.clone(), text.clone()]
            })
            .collect();
        print::table(&rows);
    }
    if failed == 0 {
        return Ok(());
    }
    Err(Failure::new(format!("{failed} check(s) failed")))
}

async fn check(path: &Path, config: &ServerConfig, findings: &mut Findings) {
    add(findings, "configuration", Ok(path.display().to_string()));
    let bundle = load::both(path).map(|(_, bundle)| {
        format!("{} {:#x}, {} case(s) pass", bundle.version(), bundle.hash(), bundle.cases().len())
    });
    add(findings, "policy bundle", bundle.map_err(|e| e.to_string()));
    for hsm in &config.hsm {
        add(findings, format!("PIN file of {}", hsm.name), private(&hsm.pin_file));
    }
    if let Some(development) = &config.auth.development {
        add(findings, "development issuer", private(&development.key_file));
    }
    if let Some(tls) = &config.server.tls {
        add(findings, "TLS key", private(&tls.key_file));
    }
    let hsm = world::hsm(config).await;
    match &hsm {
        Ok(hsm) => {
            let health = hsm.health().await;
            add(findings, "HSM", health.map_err(|e| e.to_string()));
        }
        Err(error) => add(findings, "HSM", Err(error.to_string())),
    }
    database(config, hsm.ok().as_deref(), findings).await;
    add(findings, "audit log", audit::check(config).await);
    add(findings, "reconciliation", waits(config).await);
    if world::store_url(config).is_ok_and(|url| url.starts_with("postgres")) {
        add(findings, "replication", replication(config).await);
    }
    for section in &config.chains {
        let what = format!("chain {}", section.name);
        add(findings, what, chain(section).await);
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

async fn database(config: &ServerConfig, hsm: Option<&Hsm>, findings: &mut Findings) {
    let store = match world::store(config).await {
        Ok(store) => store,
        Err(error) if error.to_string().contains("another server is running") => {
            let text = "in use by a running server; ask its /readyz, and list its keys with \
                        `claviger key list`";
            add(findings, "database", Ok(text.to_owned()));
            return;
        }
        Err(error) => {
            add(findings, "database", Err(error.to_string()));
            return;
        }
    };
    let ping = store.ping().await;
    add(findings, "database", ping.map(|()| "answers".to_owned()).map_err(|e| e.to_string()));
    let keys = look(&*store, "token_keys", |unit| {
        Box::pin(async move { Ok((unit.token_keys().await?, unit.wrapped_under().await?)) })
    })
    .await;
    let (keys, wrapped) = match keys {
        Ok(found) => found,
        Err(error) => {
            add(findings, "keys", Err(error.to_string()));
            return;
        }
    };
    for under in &wrapped {
        let id = hex::encode(under.under.as_bytes());
        let what = format!("{} keys wrapped by {}", under.keys, under.hsm);
        let told = match hsm.map(|hsm| hsm.wrapping_key(&under.hsm)) {
            None => Err("the HSM is not available".to_owned()),
            Some(Some(ours)) if ours == under.under => oldest_wrapped(&*store, hsm, &under.hsm)
                .await
                .map(|address| format!("under {id}; the oldest, {address:#x}, signs and verifies")),
            Some(_) => {
                Err(format!("under {id}, which is not this token's wrapping_key: put it back"))
            }
        };
        add(findings, what, told);
    }
    if keys.is_empty() && wrapped.is_empty() {
        let text = "none yet; make one with `claviger key create` while the server runs";
        add(findings, "keys", Ok(text.to_owned()));
    }
    for key in keys {
        let what = format!("key {}", key.label);
        let proof = match hsm {
            None => Err("the HSM is not available".to_owned()),
            Some(hsm) => hsm.enroll(&key).await.map_err(|e| e.to_string()),
        };
        add(findings, what, proof.map(|()| format!("{:#x} signs and verifies", key.address)));
    }
}

/// One wrapped key unwraps and proves itself. There may be very many, and each is verified when it signs.
async fn oldest_wrapped(
    store: &dyn Store,
    hsm: Option<&Hsm>,
    name: &HsmName,
) -> Result<Address, String> {
    let filter = KeyFilter {
        after: None,
        group: None,
        hsm: Some(name.clone()),
        state: None,
        is_wrapped: Some(true),
        limit: 1,
    };
    let first = look(store, "keys_page", move |unit| {
        let filter = filter.clone();
        Box::pin(async move { unit.keys_page(&filter).await })
    })
    .await
    .map_err(|error| error.to_string())?;
    let (Some(key), Some(hsm)) = (first.first(), hsm) else {
        return Err("there is none".to_owned());
    };
    hsm.enroll(key).await.map_err(|error| error.to_string())?;
    Ok(key.address)
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
