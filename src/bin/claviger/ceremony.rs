//! `claviger key ceremony`: makes the keys of a reviewed plan, and signs what was made.

use crate::audit::{compare_memory, key_failure, reader};
use crate::{softhsm, world};
use claviger::app::{App, PolicyInForce, ceremony, create_key, suspension};
use claviger::audit::ceremony::RECORD_BYTES_MAX;
use claviger::audit::key::{self, CheckpointKey};
use claviger::audit::sequencer;
use claviger::audit::signer::CheckpointSigner;
use claviger::cli::ceremony::{
    CeremonyArgs, CeremonyVerifyArgs, show_dry_run, show_plan, show_record,
};
use claviger::cli::{Failure, load, print};
use claviger::config::ceremony as plans;
use claviger::config::server::ServerConfig;
use claviger::core::ceremony::{About, Plan, Record, RecordedPlan, RecordedWrappingKey, principal};
use claviger::core::id::HsmName;
use claviger::core::key_report::{TokenReport, WRAPPING_EXCEPTIONS};
use claviger::hsm::Hsm;
use claviger::ports::clock::Clock;
use claviger::ports::signer::Signer;
use claviger::ports::store::{OpenCeremony, Store, StoreError, look};
use claviger::system::SystemClock;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const DAY_MS: i64 = 24 * 60 * 60 * 1000;
/// How much of the plan's hash is typed at least: nobody finds another plan with the same 32 digits.
const TYPED: usize = 32;
/// How long a running server gets to sign the end of the log, and how often it is looked at.
const SIGNED_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Runs the command.
///
/// # Errors
/// When something stands in the way (nothing was made then), or when it was interrupted.
pub fn run(args: &CeremonyArgs) -> Result<(), Failure> {
    let (config, bundle) = load::both(&args.config)?;
    let plan = args.plan.as_deref().map(plans::read).transpose();
    let plan = plan.map_err(|error| Failure::new(error.to_string()))?;
    if let Some(plan) = &plan {
        check_date(args, plan)?;
        check_hash(args, plan)?;
    }
    if let Some(out) = args.record.as_ref().filter(|out| out.exists()) {
        return Err(Failure::new(format!("{} exists already; nothing was made", out.display())));
    }
    if config.audit.signing_files().is_none() {
        return Err(Failure::new(
            "a ceremony's record is signed with the audit log's key, and `[audit] key_file` is not set: \
             nothing was made",
        ));
    }
    softhsm::with_its_environment(&config)?;
    crate::block_on(1, async move {
        let place =
            Place::open(config, Arc::new(PolicyInForce::new(Arc::new(bundle))), args.dry_run)
                .await?;
        let done = place.run(args, plan).await;
        place.close().await?;
        done
    })
}

fn check_date(args: &CeremonyArgs, plan: &Plan) -> Result<(), Failure> {
    let apart = SystemClock.now().since(plan.day);
    // From the day before to the day after, whatever the time zone of those who wrote it.
    if args.even_if_date_differs || (-DAY_MS..DAY_MS.saturating_mul(2)).contains(&apart) {
        return Ok(());
    }
    Err(Failure::new(format!(
        "the plan is for {}, which is neither today nor a day from it; --even-if-date-differs goes on",
        plan.date
    )))
}

fn check_hash(args: &CeremonyArgs, plan: &Plan) -> Result<(), Failure> {
    let hash = plan.sha256();
    match &args.yes_sha256 {
        Some(given) if !given.eq_ignore_ascii_case(&hash) => Err(Failure::new(format!(
            "the plan's SHA-256 is {hash}, not the one that was reviewed; nothing was made"
        ))),
        _ => Ok(()),
    }
}

/// Where it takes place: the HSM, the database and the log of one configuration.
struct Place {
    app: Arc<App>,
    hsm: Arc<Hsm>,
    store: Arc<dyn Store>,
    signer: Option<CheckpointSigner>,
    origin: String,
}

impl Place {
    async fn open(
        config: ServerConfig,
        policy: Arc<PolicyInForce>,
        is_dry: bool,
    ) -> Result<Self, Failure> {
        let (key_file, record_file) = config.audit.signing_files().unwrap_or_default();
        let key = CheckpointKey::load(&key_file).map_err(|error| key_failure(&error))?;
        let origin = key.verifier().name().to_owned();
        // Who only looks takes no lock and migrates nothing.
        let store = if is_dry {
            reader(&config).await?
        } else {
            world::store(&config).await.map_err(|error| match error {
                StoreError::Held(_) => Failure::new(
                    "the server is running on this SQLite database: stop it first; nothing was made",
                ),
                other => Failure::new(other.to_string()),
            })?
        };
        let signer = if is_dry {
            None
        } else {
            let opened = CheckpointSigner::open(&*store, key, record_file).await;
            let signer = opened.map_err(|error| Failure::of("the audit log", error))?;
            compare_memory(&*store, Some(&signer)).await?;
            Some(signer)
        };
        let waits = suspension::current(&*store).await;
        if let Some(why) = waits.map_err(|error| Failure::of("the database", error))? {
            return Err(Failure::new(format!(
                "the server waits for `claviger reconcile`: {}; nothing was made",
                why.reason
            )));
        }
        let hsm = world::hsm(&config).await?;
        let port: Arc<dyn Signer> = Arc::clone(&hsm) as Arc<dyn Signer>;
        let app = world::app(&config, policy, Arc::clone(&store), port)?;
        Ok(Self { app, hsm, store, signer, origin })
    }

    /// The module must be quiet before the process ends.
    async fn close(self) -> Result<(), Failure> {
        let Self { app, hsm, .. } = self;
        drop(app);
        tokio::task::spawn_blocking(move || drop(hsm)).await.map_err(|e| Failure::of("hsm", e))
    }

    async fn run(&self, args: &CeremonyArgs, plan: Option<Plan>) -> Result<(), Failure> {
        let Some(plan) = plan else {
            return self.end_interrupted(args).await;
        };
        let tokens = self.tokens(&plan).await?;
        let in_the_way = ceremony::obstacles(&self.app, &plan, &tokens).await.map_err(failed)?;
        if !in_the_way.is_empty() {
            let told = in_the_way.join("\n  ");
            return Err(Failure::new(format!("nothing was made, because\n  {told}")));
        }
        let told = tokens.iter().map(|(hsm, told)| format!("{hsm} is {told}"));
        show_plan(&plan, &told.collect::<Vec<_>>());
        if args.dry_run {
            show_dry_run(&plan, args.json);
            return Ok(());
        }
        if args.yes_sha256.is_none() {
            confirm(&plan)?;
        }
        let open = ceremony::begin(&self.app, &plan).await.map_err(failed)?;
        if let Err(failure) = self.carry_out(&plan, &open).await {
            return Err(Failure::new(format!(
                "the ceremony was interrupted: {failure}. What was begun is finished at the server's next \
                 start; `claviger key ceremony --end-interrupted REASON` ends it, and records what was made"
            )));
        }
        let ending = Ending { outcome: "complete", reason: None };
        self.end(args, &plan, &open, &tokens, ending).await
    }

    async fn tokens(&self, plan: &Plan) -> Result<Vec<(HsmName, TokenReport)>, Failure> {
        ceremony::tokens(&self.app, plan).await.map_err(failed)
    }

    async fn carry_out(&self, plan: &Plan, open: &OpenCeremony) -> Result<(), Failure> {
        for key in &plan.wrapping_keys {
            if open_ceremony(&*self.store).await?.map(|open| open.id) != Some(open.id) {
                return Err(Failure::new("the ceremony is not open any more"));
            }
            let place = key.place(open.id);
            let made = self.hsm.make_wrapping_key(&place, &key.label).await;
            let made = made.map_err(|error| Failure::of(&key.label, error))?;
            print::note(&format!("made wrapping key {}", key.label));
            let needs = made.lacks.into_iter().filter(|name| WRAPPING_EXCEPTIONS.contains(name));
            let needs: Vec<_> = needs.collect();
            if !needs.is_empty() {
                print::note(&format!(
                    "  before it is used, `[[hsm.exception]]` with cka_id {} must allow {}, with a reason",
                    hex::encode(place.cka_id.as_bytes()),
                    needs.join(", ")
                ));
            }
            claviger::failpoint!("ceremony.after_wrapping_key");
        }
        for key in &plan.keys {
            let made = ceremony::make_key(&self.app, open, key).await;
            let made = made.map_err(|error| Failure::of(&key.label, error))?;
            print::note(&format!("made {} {:#x}", made.label, made.address));
            claviger::failpoint!("ceremony.after_key");
        }
        Ok(())
    }

    /// Finishes what was begun, and records what became of the plan.
    async fn end_interrupted(&self, args: &CeremonyArgs) -> Result<(), Failure> {
        let open = open_ceremony(&*self.store).await?;
        let Some(open) = open else {
            return Err(Failure::new("no ceremony is open: there is nothing to end"));
        };
        ceremony::must_be_as_begun(&self.app, &open).await.map_err(failed)?;
        let plan = plans::parse(&open.plan).map_err(|error| Failure::of("the plan", error))?;
        let tokens = self.tokens(&plan).await?;
        let ours = principal(open.id);
        create_key::finish_begun(&self.app, Some(&ours), true).await.map_err(failed)?;
        // What is still begun is finished later, and would then be missing in the record.
        let begun = create_key::unfinished(&self.app).await.map_err(failed)?;
        if let Some(key) = begun.iter().find(|key| key.principal == ours) {
            return Err(Failure::new(format!(
                "key `{}` was begun: the ceremony is running still, or was until now, and then try again in two \
                 minutes; or the HSM does not finish it, see `claviger doctor`",
                key.label
            )));
        }
        let ending = Ending { outcome: "interrupted", reason: args.end_interrupted.as_deref() };
        self.end(args, &plan, &open, &tokens, ending).await
    }

    /// Signs the record, puts it into the log, has the log signed, and tells it.
    async fn end(
        &self,
        args: &CeremonyArgs,
        plan: &Plan,
        open: &OpenCeremony,
        tokens: &[(HsmName, TokenReport)],
        ending: Ending<'_>,
    ) -> Result<(), Failure> {
        let is_complete = ending.reason.is_none();
        let keys = ceremony::made(&self.app, open, is_complete).await.map_err(failed)?;
        let wrapping_keys = self.wrapping_keys(plan, open).await?;
        let planned = plan.wrapping_keys.iter().map(|key| key.label.clone());
        let is_made = |label: &String| wrapping_keys.iter().any(|key| key.label == *label);
        let mut not_made: Vec<String> = planned.filter(|label| !is_made(label)).collect();
        let planned = plan.keys.iter().map(|key| key.label.clone());
        let is_made = |label: &String| keys.iter().any(|key| key.label == *label);
        not_made.extend(planned.filter(|label| !is_made(label)));
        if is_complete && !not_made.is_empty() {
            return Err(Failure::new(format!(
                "not everything is there that the plan asks for: {}. The ceremony stays open; \
                 `claviger key ceremony --end-interrupted REASON` ends it",
                not_made.join(", ")
            )));
        }
        let record = Record {
            ceremony: About {
                id: open.id.to_string(),
                title: plan.title.clone(),
                purpose: plan.purpose.clone(),
                date: plan.date.clone(),
                outcome: ending.outcome.to_owned(),
                reason: ending.reason.map(str::to_owned),
                not_made,
                begun_at: open.begun_at.to_string(),
                ended_at: SystemClock.now().to_string(),
                claviger: env!("CARGO_PKG_VERSION").to_owned(),
            },
            present: plan.present.clone(),
            tokens: ceremony::recorded(tokens),
            wrapping_keys,
            keys,
            plan: RecordedPlan::of(&plan.text),
        };
        let Some(signer) = &self.signer else {
            return Err(Failure::new("nothing to sign with"));
        };
        let body = record.to_toml().map_err(Failure::new)?;
        let note = signer.attest(&body).map_err(|error| Failure::of("the record", error))?;
        ceremony::end(&self.app, open, ending.outcome, (&note, record.keys.len()))
            .await
            .map_err(failed)?;
        let size = self.sign_log(signer).await?;
        let mut more = vec![("in the log", format!("signed at {size} leaves"))];
        if let Some(out) = &args.record {
            write(out, &note).map_err(|error| {
                Failure::new(format!(
                    "{}: {error}. The record is in the audit log, and `claviger audit export` writes it",
                    out.display()
                ))
            })?;
            more.push(("written to", out.display().to_string()));
        }
        show_record(&record, &self.origin, &more, args.json);
        Ok(())
    }

    /// The wrapping keys of the plan that are in their tokens, as these tell them.
    async fn wrapping_keys(
        &self,
        plan: &Plan,
        open: &OpenCeremony,
    ) -> Result<Vec<RecordedWrappingKey>, Failure> {
        let mut found = Vec::new();
        for key in &plan.wrapping_keys {
            let place = key.place(open.id);
            let told = self.hsm.describe_wrapping_key(&place).await.map_err(failed)?;
            found.extend(told.map(|attributes| RecordedWrappingKey {
                label: key.label.clone(),
                hsm: key.hsm.to_string(),
                cka_id: hex::encode(place.cka_id.as_bytes()),
                attributes,
            }));
        }
        Ok(found)
    }

    /// Moves what waits into the log and has it signed; answers how many leaves are. Beside a running server,
    /// that one signs: it has the signer's record.
    async fn sign_log(&self, signer: &CheckpointSigner) -> Result<u64, Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::of("the record is in the database, and the log is not signed yet", error)
        };
        while sequencer::sequence(&*self.store).await.map_err(|error| failed(&error))? > 0 {}
        let now = SystemClock.now();
        let (head, servers) = look(&*self.store, "log_head", move |unit| {
            Box::pin(async move { Ok((unit.log_head().await?, unit.live_leases(now).await?)) })
        })
        .await
        .map_err(|error| failed(&error))?;
        if self.store.is_alone() || servers == 0 {
            signer.look(&*self.store).await.map_err(|error| failed(&error))?;
            let signed = signer.last().size;
            if signed < head.size {
                return Err(failed(
                    &"the signer found something wrong with it; see `claviger doctor`",
                ));
            }
            return Ok(signed);
        }
        let begun = std::time::Instant::now();
        loop {
            let newest = look(&*self.store, "newest_checkpoint", |unit| {
                Box::pin(async move { unit.newest_checkpoint().await })
            });
            let newest = newest.await.map_err(|error| failed(&error))?;
            match newest.filter(|newest| newest.size >= head.size) {
                Some(newest) => return Ok(newest.size),
                None if begun.elapsed() > SIGNED_WITHIN => {
                    return Err(failed(&"the running server has not signed it in time"));
                }
                None => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }
}

/// How it ended.
#[derive(Clone, Copy)]
struct Ending<'a> {
    outcome: &'static str,
    reason: Option<&'a str>,
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::new(error.to_string())
}

/// The ceremony that was begun and has not ended.
///
/// # Errors
/// When the database does not answer.
pub async fn open_ceremony(store: &dyn Store) -> Result<Option<OpenCeremony>, Failure> {
    let open =
        look(store, "open_ceremony", |unit| Box::pin(async move { unit.open_ceremony().await }));
    open.await.map_err(|error| Failure::of("the database", error))
}

/// The hash is on the paper that was reviewed: who types it has compared.
fn confirm(plan: &Plan) -> Result<(), Failure> {
    let hash = plan.sha256();
    print::note(&format!(
        "Compare the SHA-256 with the reviewed plan's, and type it to go on, its first {TYPED} characters at \
         least:"
    ));
    let mut typed = String::new();
    let mut input = std::io::stdin().lines().map_while(Result::ok);
    typed.push_str(input.next().unwrap_or_default().trim());
    if typed.len() >= TYPED && hash.starts_with(&typed.to_ascii_lowercase()) {
        return Ok(());
    }
    Err(Failure::new(format!(
        "that is not the beginning of the plan's SHA-256, of {TYPED} characters or more; nothing was made"
    )))
}

fn write(out: &Path, note: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(out)?;
    file.write_all(note.as_bytes()).and_then(|()| file.sync_all())
}

/// Checks a record, offline.
///
/// # Errors
/// What is wrong with it.
pub fn verify(args: &CeremonyVerifyArgs) -> Result<(), Failure> {
    let verifier = key::read_verifier(&args.key).map_err(|e| Failure::of("--key", e))?;
    let note = read(&args.record)?;
    let wrong =
        |error: &dyn std::fmt::Display| Failure::of(&args.record.display().to_string(), error);
    let body = verifier.open_record(&note).map_err(|error| wrong(&error))?;
    let record = Record::from_toml(&body).map_err(|error| wrong(&error))?;
    show_record(&record, verifier.name(), &[], args.json);
    Ok(())
}

fn read(path: &PathBuf) -> Result<String, Failure> {
    let mut note = String::new();
    File::open(path)
        .and_then(|file| file.take(RECORD_BYTES_MAX).read_to_string(&mut note))
        .map_err(|error| Failure::of(&path.display().to_string(), error))?;
    Ok(note)
}
