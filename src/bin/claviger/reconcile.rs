//! `claviger reconcile`: compares the database with the chains, and puts it right on an operator's word.

use crate::audit::{key_failure, reader};
use crate::world;
use claviger::app::reconcile::{
    Account, Applied, Choices, Lost, Order, Remembered, close_orphans, declare_lost, examine,
    forgotten, lift, live_servers, release_chain, send_again, settle_account, standing_still,
};
use claviger::app::suspension::{self, Standing};
use claviger::audit::checkpoint::base64_root;
use claviger::audit::key::CheckpointKey;
use claviger::audit::signer::CheckpointSigner;
use claviger::cli::reconcile::{Looking, ReconcileArgs, Report};
use claviger::cli::{Failure, load};
use claviger::config::server::ServerConfig;
use claviger::core::id::{ChainId, ChainName};
use claviger::core::intent::ChainRef;
use claviger::hsm::is_signed_by;
use claviger::ports::chain::{Chain, MinedTransaction};
use claviger::ports::store::{Store, StoreError, look};
use claviger::system::{SystemClock, SystemEntropy};
use std::sync::Arc;

/// Said where the server's waiting, or the database itself, changed under the command.
const CHANGED: &str = "the database changed meanwhile, or what the server waits for: nothing was lifted. Run \
                       this again";

/// Runs the command.
///
/// # Errors
/// When something does not agree, cannot be looked at, or could not be put right.
pub async fn run(args: &ReconcileArgs) -> Result<(), Failure> {
    let choices = args.choices()?;
    let config = load::config(&args.config)?;
    let store = open(&config, args.apply).await?;
    let signer = signer(&config, &*store).await?;
    let remembered = match &signer {
        Some((signer, _)) => signer.memory().map_err(|e| Failure::of("the memory", e))?.lanes,
        None => Remembered::new(),
    };
    let places = places(&config)?;
    let lease = config.server.lease;
    let world = World { args, store, signer, places, remembered, choices, lease };
    if args.apply { world.apply().await } else { world.tell().await }
}

async fn open(config: &ServerConfig, writes: bool) -> Result<Arc<dyn Store>, Failure> {
    match world::store(config).await {
        Err(StoreError::Held(_)) if writes => Err(Failure::new(
            "the server is running on this SQLite database: stop it first, then run this again",
        )),
        // Beside the server it is only read.
        Err(StoreError::Held(_)) => reader(config).await,
        other => Ok(other?),
    }
}

type Signer = (CheckpointSigner, Option<String>);

/// The log's signer with what is wrong with the log, if the log is signed.
async fn signer(config: &ServerConfig, store: &dyn Store) -> Result<Option<Signer>, Failure> {
    let Some((key_file, record_file)) = config.audit.signing_files() else {
        return Ok(None);
    };
    let key = CheckpointKey::load(&key_file).map_err(|error| key_failure(&error))?;
    let opened = CheckpointSigner::open_any(store, key, record_file).await;
    let (signer, wrong) = opened.map_err(|error| Failure::of("the audit log", error))?;
    Ok(Some((signer, wrong.map(|wrong| wrong.to_string()))))
}

type Place = (ChainRef, Arc<dyn Chain>);

fn places(config: &ServerConfig) -> Result<Vec<Place>, Failure> {
    let place = |section| {
        let nodes = world::nodes(section)?;
        let (name, id) = (ChainName::new(section.name.clone()), ChainId::new(section.chain_id));
        Ok((ChainRef { name, id }, nodes))
    };
    config.chains.iter().map(place).collect()
}

struct World<'a> {
    args: &'a ReconcileArgs,
    store: Arc<dyn Store>,
    signer: Option<Signer>,
    places: Vec<Place>,
    remembered: Remembered,
    choices: Choices,
    /// How long a killed server's leases last, as it is configured.
    lease: String,
}

impl World<'_> {
    async fn accounts(&self) -> Result<Vec<Account>, Failure> {
        let line = Looking::new();
        let progress = |block| line.at(block);
        let said = (&self.remembered, &self.choices);
        let found = examine(&*self.store, &self.places, said, is_signed_by, &progress).await;
        drop(line);
        let found = found.map_err(|error| Failure::of("the accounts cannot be compared", error))?;
        match self.args.account {
            Some(asked) if found.iter().all(|account| account.address != asked) => {
                Err(Failure::new(format!(
                    "{asked:#x} is no managed account of this database that was used on a configured \
                     chain; `claviger key list` shows the accounts"
                )))
            }
            _ => Ok(found),
        }
    }

    /// What was named by `--adopt` must have been found: with a wrong word nothing is put right.
    fn must_be_found(&self, accounts: &[Account]) -> Result<(), Failure> {
        let accounts = accounts.iter().filter(|account| self.is_asked(account));
        let findings: Vec<_> = accounts.flat_map(|account| &account.findings).collect();
        for hash in self.choices.keys() {
            let is_it = |mined: &MinedTransaction| mined.hash == *hash;
            if !findings.iter().any(|it| it.is_chosen && it.mined.as_ref().is_some_and(is_it)) {
                return Err(Failure::new(format!(
                    "--adopt {hash:#x}: either this transaction is not among what was found (perhaps it was put \
                     right before: then leave it out), or the request does not wait for a nonce of its account \
                     and ask for the same. `claviger reconcile` says what was found; nothing was changed"
                )));
            }
        }
        Ok(())
    }

    /// Whether the command is about this account.
    fn is_asked(&self, account: &Account) -> bool {
        self.args.account.is_none_or(|asked| account.address == asked)
    }

    async fn report(&self, accounts: Vec<Account>) -> Result<Report, Failure> {
        let suspension = suspension::current(&*self.store).await;
        let suspension = suspension.map_err(|error| Failure::of("the database", error))?;
        let forgotten = forgotten(&*self.store, &self.remembered, &accounts).await;
        let accounts = accounts.into_iter().filter(|account| self.is_asked(account));
        Ok(Report {
            suspension,
            forgotten: forgotten.map_err(|error| Failure::of("the database", error))?,
            log: self.signer.as_ref().and_then(|(_, wrong)| wrong.clone()),
            chains: standing_still(&*self.store, &self.places)
                .await
                .map_err(|error| Failure::of("the database", error))?,
            accounts: accounts.map(|account| (account, None)).collect(),
            unclaimed: self.unclaimed().await?,
            done: Vec::new(),
        })
    }

    async fn unclaimed(&self) -> Result<Vec<String>, Failure> {
        let mut told = Vec::new();
        for (chain, _) in &self.places {
            let id = chain.id;
            let open = look(&*self.store, "unclaimed", move |unit| {
                Box::pin(async move { unit.orphans(id, true).await })
            });
            for orphan in open.await.map_err(|error| Failure::of("the database", error))? {
                let to = orphan.to.map_or_else(String::new, |to| format!("{to:#x}"));
                told.push(format!(
                    "{} {:#x} nonce {}: {:#x}, {} wei to {to}",
                    chain.name, orphan.address, orphan.nonce, orphan.hash, orphan.value
                ));
            }
        }
        Ok(told)
    }

    async fn tell(&self) -> Result<(), Failure> {
        let report = self.report(self.accounts().await?).await?;
        report.show(self.args.json);
        match report.findings() {
            0 => Ok(()),
            count => Err(Failure::new(format!(
                "{count} thing(s) do not agree; nothing was changed. `claviger reconcile --apply \
                 --reason …` puts right what can be"
            ))),
        }
    }

    async fn apply(&self) -> Result<(), Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::of("not put right", error);
        let order = Order {
            store: &*self.store,
            clock: &SystemClock,
            entropy: &SystemEntropy,
            reason: self.args.reason.as_deref().unwrap_or_default(),
            even_if_pending: self.args.even_if_pending,
        };
        let servers = live_servers(&order).await.map_err(|error| failed(&error))?;
        if servers > 0 {
            return Err(Failure::new(format!(
                "{servers} lease(s) of servers on this database have not ended: stop all its servers first, \
                 then run this again. Those of a server that was killed end by themselves within {}, its \
                 `[server] lease`",
                self.lease
            )));
        }
        let before = self.standing().await?;
        let accounts = self.accounts().await?;
        self.must_be_found(&accounts)?;
        let others = accounts.iter().filter(|account| !self.is_asked(account));
        let mut left = others.filter(|account| !account.agrees()).count();
        let mut report = self.report(accounts).await?;
        for (account, done) in &mut report.accounts {
            // What agrees is let be.
            if !account.agrees() {
                let applied = settle_account(&order, account).await.map_err(|e| failed(&e))?;
                if matches!(applied, Applied::Done(_)) {
                    report.done.extend(send_again(self.nodes(&account.chain)?, account).await);
                } else {
                    left = left.saturating_add(1);
                }
                *done = Some(told(applied));
            }
            if self.args.close_unclaimed {
                report.done.extend(close(&order, account).await?);
            }
        }
        if !self.args.even_if_pending {
            left = left.saturating_add(report.forgotten.len());
        }
        if left == 0 {
            self.go_on(&order, &before, &mut report).await?;
        }
        report.unclaimed = self.unclaimed().await?;
        report.show(self.args.json);
        match left {
            0 => Ok(()),
            left => Err(Failure::new(format!(
                "{left} account(s) still do not agree with the chain: what is said of them has to happen \
                 first. Nothing else was lifted"
            ))),
        }
    }

    async fn standing(&self) -> Result<Standing, Failure> {
        let standing = suspension::standing(&*self.store).await;
        standing.map_err(|error| Failure::of("the database", error))
    }

    /// All agrees: chains, log and server go on.
    async fn go_on(
        &self,
        order: &Order<'_>,
        before: &Standing,
        report: &mut Report,
    ) -> Result<(), Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::of("not put right", error);
        if self.standing().await? != *before {
            return Err(Failure::new(CHANGED));
        }
        for still in &report.chains {
            let nodes = self.nodes(&still.chain)?;
            release_chain(order, nodes, still).await.map_err(|error| failed(&error))?;
            report.done.push(format!("chain `{}` goes on", still.chain.name));
        }
        self.log(order, report).await?;
        if !lift(order, before).await.map_err(|error| failed(&error))? {
            return Err(Failure::new(CHANGED));
        }
        if let Some((signer, _)) = &self.signer {
            let kept = signer.remember_database(&*self.store).await;
            kept.map_err(|error| failed(&error))?;
        }
        if report.suspension.is_some() {
            report.done.push("the server goes on".to_owned());
        }
        Ok(())
    }

    fn nodes(&self, chain: &ChainRef) -> Result<&dyn Chain, Failure> {
        let place = self.places.iter().find(|(place, _)| place.id == chain.id);
        place.map(|(_, nodes)| &**nodes).ok_or_else(|| Failure::new("a chain without nodes"))
    }

    /// The log goes on from where it was signed and does continue, and says so first.
    async fn log(&self, order: &Order<'_>, report: &mut Report) -> Result<(), Failure> {
        let Some((signer, Some(_))) = &self.signer else {
            return Ok(());
        };
        let failed = |error: &dyn std::fmt::Display| Failure::of("the audit log", error);
        let fork = signer.fork(&*self.store).await.map_err(|error| {
            Failure::new(format!(
                "the audit log was not put back to an earlier state, it is another one: {error}. Keep the \
                 database as evidence; docs/OPERATIONS.md says how a new log is begun"
            ))
        })?;
        let lost = Lost {
            size: fork.lost.size,
            root: base64_root(&fork.lost.root),
            note: fork.lost.note.clone(),
            goes_on_from: fork.base.as_ref().map_or(0, |base| base.size),
        };
        declare_lost(order, &lost).await.map_err(|error| failed(&error))?;
        let aside = signer.go_on_from(&fork).map_err(|error| failed(&error))?;
        report.done.push(format!(
            "the audit log goes on from {} leaves; the lost checkpoint of {} is declared in it and kept in \
             {}: give it to the auditors",
            lost.goes_on_from,
            lost.size,
            aside.display()
        ));
        Ok(())
    }
}

/// Closes what nobody has claimed of an account. What was found in this run has not been told to anybody yet:
/// its callers may ask for it again.
async fn close(order: &Order<'_>, account: &Account) -> Result<Option<String>, Failure> {
    let address = account.address;
    if !(account.findings.is_empty() && account.waits().is_empty()) {
        return Ok(Some(format!(
            "{address:#x}: nothing is closed, as its transactions were found by this run; run it again with \
             --close-unclaimed once nobody will ask for them"
        )));
    }
    let closed = close_orphans(order, account).await;
    let closed = closed.map_err(|error| Failure::of("not put right", error))?;
    Ok((closed > 0).then(|| format!("{address:#x}: {closed} unclaimed transaction(s) closed")))
}

fn told(applied: Applied) -> String {
    match applied {
        Applied::Done(next) => format!("put right; its lane goes on from nonce {next}"),
        Applied::Waits => "nothing was done: it has to wait".to_owned(),
        Applied::Moved => "nothing was done: it changed meanwhile; run this again".to_owned(),
    }
}
