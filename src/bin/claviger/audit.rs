//! `claviger audit`: the log's signer, export and verifier, put together with the database.

use crate::world;
use claviger::app::{AppError, suspension};
use claviger::audit::checkpoint::{Checkpoint, Verifier};
use claviger::audit::export::{self, Exported, Signer};
use claviger::audit::key::{self, CheckpointKey};
use claviger::audit::signer::{CheckpointSigner, SignerError, is_signed};
use claviger::audit::verify::{
    self, Declaration, Given, KeptLeaves, Mismatch, Verified, VerifyError,
};
use claviger::audit::{record, sequencer};
use claviger::cli::audit::{AuditCommand, Bar, ExportArgs, InitKeyArgs, VerifyArgs, summary};
use claviger::cli::{Failure, load, print};
use claviger::config::server::ServerConfig;
use claviger::core::time::duration_ms;
use claviger::jobs::EdgeJob;
use claviger::ports::clock::{Clock, Entropy};
use claviger::ports::store::{Store, StoreError};
use claviger::store::{self, OpenMode};
use claviger::system::{SystemClock, SystemEntropy};
use futures::future::BoxFuture;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

/// How often the log is signed where the configuration does not say, in milliseconds.
const CHECKPOINT_MS: u64 = 1_000;

/// Runs an audit command.
///
/// # Errors
/// When it fails; for `verify` also when the log is wrong.
pub async fn run(command: &AuditCommand) -> Result<(), Failure> {
    match command {
        AuditCommand::Export(args) => export(args).await,
        AuditCommand::Verify(args) => verify(args),
        AuditCommand::InitKey(args) => init_key(args),
    }
}

/// The signer of a served log.
pub struct Signing {
    signer: Arc<CheckpointSigner>,
    store: Arc<dyn Store>,
    every_ms: u64,
}

impl Signing {
    /// Opens the signer, if there is one, and has it look at the log.
    ///
    /// # Errors
    /// When the log must not be served: it is not what was signed, or it was signed before and would not
    /// be any more.
    pub async fn open(
        config: &ServerConfig,
        store: &Arc<dyn Store>,
    ) -> Result<Option<Self>, Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::of("the audit log", error);
        let Some((key_file, record_file)) = config.audit.signing_files() else {
            if is_signed(&**store).await.map_err(|error| failed(&error))? {
                return Err(Failure::new(
                    "the audit log was signed before, and `[audit] key_file` is not set: set it, so \
                     that the log goes on being signed",
                ));
            }
            tracing::warn!("the audit log is not signed: `[audit] key_file` is not set");
            compare_memory(&**store, None).await?;
            return Ok(None);
        };
        let key = CheckpointKey::load(&key_file).map_err(|error| key_failure(&error))?;
        let origin = key.verifier().name().to_owned();
        let signer = CheckpointSigner::open_any(&**store, key, record_file).await;
        let (signer, wrong) = signer.map_err(|error| failed(&error))?;
        if let Some(wrong) = wrong {
            suspend(&**store, &wrong.to_string()).await.map_err(|error| failed(&error))?;
        } else {
            let size = signer.last().size;
            tracing::info!(origin, size, "the audit log continues what was signed");
        }
        compare_memory(&**store, Some(&signer)).await?;
        let signer = Arc::new(signer);
        let every = duration_ms(&config.audit.checkpoint_every);
        let every_ms = every.and_then(|every| u64::try_from(every).ok()).unwrap_or(CHECKPOINT_MS);
        Ok(Some(Self { signer, store: Arc::clone(store), every_ms }))
    }

    /// Signs the log as it grows.
    #[must_use]
    pub fn job(&self) -> EdgeJob {
        let (signer, store) = (Arc::clone(&self.signer), Arc::clone(&self.store));
        let run = move || {
            let (signer, store) = (Arc::clone(&signer), Arc::clone(&store));
            Box::pin(async move {
                signer.look(&*store).await.map_err(|error| match error {
                    SignerError::Store(error) => AppError::Store(error),
                    other => AppError::internal(other),
                })?;
                if let Some(wrong) = signer.wrong() {
                    suspend(&*store, &wrong).await?;
                }
                Ok(())
            }) as BoxFuture<'static, _>
        };
        EdgeJob { name: "checkpoint", every_ms: self.every_ms, run: Box::new(run) }
    }

    /// What was done until the server stopped is signed too. What fails is done at the next start.
    pub async fn close(self) {
        let rest = async {
            while sequencer::sequence(&*self.store).await? > 0 {}
            self.signer.look(&*self.store).await
        };
        if let Err(error) = rest.await {
            tracing::warn!(%error, "the end of the audit log is not signed yet");
        }
    }
}

async fn suspend(store: &dyn Store, wrong: &str) -> Result<(), StoreError> {
    suspension::suspend(store, wrong, SystemClock.now()).await.map(|_| ())
}

/// At the start of a server: whether this database is the one that was served before, by its own word and by
/// the word of whoever remembers it outside.
pub async fn compare_memory(
    store: &dyn Store,
    signer: Option<&CheckpointSigner>,
) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::of("the database", error);
    let now = SystemClock.now();
    // The memory first: a database that does not know which copy it is would be believed afterwards.
    if let Some(signer) = signer {
        let forgotten = signer.compare_memory(store).await.map_err(|error| failed(&error))?;
        if let Some(reason) = forgotten {
            suspension::suspend(store, &reason, now).await.map_err(|error| failed(&error))?;
        }
    }
    suspension::check_identity(store, now).await.map_err(|error| failed(&error))
}

/// What is wrong with the log's key, and what to do.
pub fn key_failure(error: &key::KeyError) -> Failure {
    let help = match error {
        key::KeyError::File { .. } => {
            ". Without its key the log cannot be signed: put key and `.vkey` back, or, for a log that \
             was never signed, make them with `claviger audit init-key`"
        }
        _ => "",
    };
    Failure::new(format!("the audit log's key: {error}{help}"))
}

/// Makes the log's key in a new set-up.
///
/// # Errors
/// When a file is there already or cannot be written.
pub fn create_key(config: &ServerConfig, origin: &str) -> Result<(), Failure> {
    let Some((key_file, record_file)) = config.audit.signing_files() else {
        return Err(Failure::new("`[audit] key_file` is not set in the configuration"));
    };
    key::create(&key_file, &record_file, origin)
        .map_err(|error| Failure::of("the audit log's key", error))
}

/// A name for a log that nobody named.
#[must_use]
pub fn random_origin() -> String {
    let [.., a, b, c, d, e, f, g, h] = SystemEntropy.bytes16();
    format!("claviger-dev/{}", hex::encode([a, b, c, d, e, f, g, h]))
}

fn init_key(args: &InitKeyArgs) -> Result<(), Failure> {
    let config = load::config(&args.config)?;
    let origin = args.origin.clone().unwrap_or_else(random_origin);
    create_key(&config, &origin)?;
    let (key_file, _) = config.audit.signing_files().unwrap_or_default();
    print::line(&format!("The log is `{origin}`. Its public key, for those who verify it:"));
    print::line(&key::vkey_file(&key_file).display().to_string());
    Ok(())
}

/// What `doctor` says about the signer, its files and the log.
///
/// # Errors
/// What is wrong.
pub async fn check(config: &ServerConfig) -> Result<String, String> {
    let Some((key_file, record_file)) = config.audit.signing_files() else {
        return Err("the log is not signed: set `[audit] key_file`, then run \
                    `claviger audit init-key`"
            .to_owned());
    };
    let key = CheckpointKey::load(&key_file).map_err(|error| key_failure(&error).to_string())?;
    let origin = key.verifier().name().to_owned();
    let store = reader(config).await.map_err(|error| error.to_string())?;
    let signer = CheckpointSigner::open(&*store, key, record_file).await;
    let signer = signer.map_err(|error| error.to_string())?;
    Ok(format!("`{origin}`, signed at {} leaves, and the log continues it", signer.last().size))
}

/// The database, to be read beside a running server.
///
/// # Errors
/// When it is not there.
pub async fn reader(config: &ServerConfig) -> Result<Arc<dyn Store>, Failure> {
    let url = world::store_url(config)?;
    store::open(&url, OpenMode::Reading).await.map_err(|e| Failure::new(e.to_string()))
}

/// The signer's key and record, where they can be read: it knows of the newest checkpoint whatever was
/// done to the database.
fn known_signer(config: &ServerConfig) -> Option<Signer> {
    let (key_file, record_file) = config.audit.signing_files()?;
    let verifier = key::read_verifier(&key::vkey_file(&key_file)).ok();
    let signer = verifier.map(|verifier| {
        let recorded = record::read(&record_file, &verifier).ok();
        Signer { verifier, recorded }
    });
    if signer.as_ref().is_none_or(|signer| signer.recorded.is_none()) {
        print::note(
            "the signer's record cannot be read: the newest checkpoint is taken from the database",
        );
    }
    signer
}

async fn export(args: &ExportArgs) -> Result<(), Failure> {
    let config = load::config(&args.config)?;
    let store = reader(&config).await?;
    let bar = Bar::leaves("exporting");
    let mut progress = |done, of| bar.at(done, of);
    let exported = export::export(&*store, known_signer(&config), &args.out, &mut progress).await;
    drop(bar);
    let Exported { size, root, checkpoints, texts, ends_at } =
        exported.map_err(|error| Failure::new(error.to_string()))?;
    if let Some(index) = ends_at {
        print::note(&format!(
            "the database lacks leaf {index} or its hashes: the export ends there, and `audit verify` \
             will say so"
        ));
    }
    let out = args.out.display().to_string();
    let shown = json!({
        "out": out, "size": size, "root": root, "checkpoints": checkpoints, "texts": texts,
        "ends_at": ends_at,
    });
    let lines = [
        ("exported", out),
        ("leaves", size.to_string()),
        ("root", root),
        ("checkpoints", checkpoints.to_string()),
        ("texts", texts.to_string()),
    ];
    summary(args.json, &shown, &lines);
    Ok(())
}

fn verify(args: &VerifyArgs) -> Result<(), Failure> {
    let verifier = key::read_verifier(&args.key).map_err(|e| Failure::of("--key", e))?;
    let mut checkpoints = Vec::new();
    for path in &args.checkpoints {
        checkpoints.push((path.display().to_string(), kept_checkpoint(path, &verifier)?));
    }
    let against = args.against.as_ref().map(|path| KeptLeaves::open(path, &verifier)).transpose();
    let against = against.map_err(|error| Failure::of("--against", error))?;
    let known = Known {
        verifier: verifier.clone(),
        kept: checkpoints
            .iter()
            .map(|(_, kept)| kept.clone())
            .chain(against.as_ref().map(|against| against.checkpoint().clone()))
            .collect(),
    };
    let given = Given { verifier, checkpoints, against, keep: args.keep.clone() };
    let bar = Bar::leaves("verifying");
    let verified = verify::verify(&args.export, given, &mut |done, of| bar.at(done, of));
    drop(bar);
    let verified = verified.map_err(|error| declared(&args.export, &known, error));
    match verified {
        Ok(verified) => {
            show_verified(args, &verified);
            Ok(())
        }
        Err(VerifyError::Mismatch(mismatch)) => {
            let Mismatch { first, last, why } = &mismatch;
            if args.json {
                let shown = json!({
                    "ok": false, "first_bad_index": first, "first_bad_index_max": last, "why": why,
                });
                print::json(&shown);
            }
            Err(Failure::new(format!("the log is not right: {mismatch}")))
        }
        Err(error) => Err(Failure::new(error.to_string())),
    }
}

/// What the auditor brought, for a second look.
struct Known {
    verifier: Verifier,
    kept: Vec<Checkpoint>,
}

/// Says of what is wrong that the log declares it, where it does: a kept checkpoint was lost by a restore.
/// What differs below the place from which the log goes on is not explained by that.
fn declared(export: &Path, known: &Known, error: VerifyError) -> VerifyError {
    let VerifyError::Mismatch(mut mismatch) = error else {
        return error;
    };
    for kept in &known.kept {
        let Ok(Some(lost)) = verify::declared_lost(export, &known.verifier, kept) else { continue };
        let Declaration { leaf, goes_on_from, reason } = lost;
        if mismatch.last.is_none_or(|last| last < goes_on_from) {
            continue;
        }
        let told = format!(
            "leaf {leaf} declares that the checkpoint of {} leaves that you kept was lost when the \
             database was put back to an earlier state (`{reason}`). The log goes on from its first \
             {goes_on_from} leaves, and what was signed above them then is gone",
            kept.size
        );
        if mismatch.first == mismatch.last {
            mismatch.why = format!("{}; {told}", mismatch.why);
        } else {
            // The checkpoints between are of the log that goes on.
            mismatch.first = Some(goes_on_from);
            mismatch.why = told;
        }
        break;
    }
    VerifyError::Mismatch(mismatch)
}

fn kept_checkpoint(path: &Path, verifier: &Verifier) -> Result<Checkpoint, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::of(&path.display().to_string(), error);
    let note = verify::read_note(path).map_err(|error| failed(&error))?;
    verifier.open(&note).map_err(|error| failed(&error))
}

fn show_verified(args: &VerifyArgs, verified: &Verified) {
    let Verified { origin, size, root, kinds, history, kept, texts, unsigned } = verified;
    let shown = json!({
        "ok": true, "origin": origin, "size": size, "root": root, "kinds": kinds,
        "checkpoints": history, "kept": kept, "texts": texts, "decided_unsigned": unsigned,
    });
    let counts: Vec<String> = kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let mut lines = vec![
        ("verified", origin.clone()),
        ("leaves", format!("{size}: {}", counts.join(", "))),
        ("root", root.clone()),
        ("checkpoints", format!("{history} of the log's history, {kept} kept from before")),
        ("texts", texts.to_string()),
        ("in hand", format!("{unsigned} decided and not signed yet")),
    ];
    lines.extend(args.keep.iter().map(|path| ("keep", path.display().to_string())));
    summary(args.json, &shown, &lines);
}
