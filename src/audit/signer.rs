//! The checkpoint signer. It releases a checkpoint only after it has checked, from the stored nodes, that
//! the log continues the one whose checkpoint it released before, by its own record, and also the newest
//! one in the database, which another server with the same key may have released.
//!
//! The record is durable before a checkpoint is released, so that there is never one outside that the
//! signer does not know of. What a crash leaves between the two is released at the next look.

use crate::audit::checkpoint::{Checkpoint, NotACheckpoint};
use crate::audit::key::{CheckpointKey, KeyError};
use crate::audit::memory::Memory;
use crate::audit::record::{self, RecordError};
use crate::audit::tree::{Consistency, consistency};
use crate::ports::store::{
    End, LogHead, SignedCheckpoint, Store, StoreError, Unit, known_identity, look, unit,
};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use tlog_tiles::EMPTY_HASH;

/// An alarm that goes on is told again every so many looks.
const ALARM_AGAIN: u64 = 60;

/// Why nothing is signed.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// The log has lost leaves.
    #[error(
        "the audit log has {size} leaves, and a checkpoint of {signed} was signed: leaves are gone. The \
         database was restored from a backup, or somebody deleted them"
    )]
    Shorter {
        /// Leaves in the log.
        size: u64,
        /// Leaves that were signed.
        signed: u64,
    },
    /// The log has other leaves than were signed.
    #[error(
        "the audit log of {size} leaves does not continue the one that was signed at {signed}: it was \
         rewritten. `claviger audit export` and `claviger audit verify` say where"
    )]
    Rewritten {
        /// Leaves in the log.
        size: u64,
        /// Leaves that were signed.
        signed: u64,
    },
    /// The database has a checkpoint that this key did not sign.
    #[error("the database's checkpoint at {size} is not this signer's: {why}")]
    OtherKey {
        /// Its size.
        size: u64,
        /// What is wrong with it.
        why: NotACheckpoint,
    },
    /// The database's checkpoint is beside a size or a root that it does not state.
    #[error(
        "the database's checkpoint at {size} says something else than its row: somebody changed the \
         database"
    )]
    OtherRow {
        /// The size that the row has.
        size: u64,
    },
    /// The database has forgotten what is remembered beside the record.
    #[error("{0}")]
    Forgotten(String),
    /// No key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// No database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl SignerError {
    /// Whether the database is another one, or was put back: the server has to wait for an operator.
    const fn is_other_database(&self) -> bool {
        matches!(self, Self::Shorter { .. } | Self::Rewritten { .. } | Self::Forgotten(_))
    }

    /// Whether the log itself is wrong, and not what is around it.
    #[must_use]
    pub const fn is_alarm(&self) -> bool {
        self.is_other_database()
            || matches!(self, Self::OtherKey { .. } | Self::OtherRow { .. })
            || matches!(self, Self::Store(StoreError::Corrupt(_)))
    }
}

/// Signs the log's checkpoints. One look at a time.
pub struct CheckpointSigner {
    key: CheckpointKey,
    record_file: PathBuf,
    last: Mutex<Checkpoint>,
    alarms: AtomicU64,
    /// What is wrong with the log itself, as of the last look.
    wrong: Mutex<Option<String>>,
    /// Whether the server waited for an operator at the last look: the record may be another since.
    waited: AtomicBool,
}

/// A log that does not continue what was signed, and what it does continue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fork {
    /// The signer's record.
    pub lost: Checkpoint,
    /// The newest checkpoint in the database; none before the first.
    pub base: Option<Checkpoint>,
}

/// What one look finds right.
struct Seen {
    head: LogHead,
    newest: Option<Checkpoint>,
}

impl CheckpointSigner {
    /// Opens the key and the record, and compares the log with it.
    ///
    /// # Errors
    /// When one of them is missing or wrong, or the log is shorter than what was signed, or not its
    /// continuation; by the record, or by the newest checkpoint in the database.
    pub async fn open(
        store: &dyn Store,
        key: CheckpointKey,
        record_file: PathBuf,
    ) -> Result<Self, SignerError> {
        let signer = Self::read(key, record_file)?;
        signer.compare(store).await?;
        Ok(signer)
    }

    /// As [`Self::open`], but also where the log has lost leaves or is another one: then with what is wrong.
    /// Such a log is not signed until an operator has said so.
    ///
    /// # Errors
    /// When key, record or database are missing or of another log.
    pub async fn open_any(
        store: &dyn Store,
        key: CheckpointKey,
        record_file: PathBuf,
    ) -> Result<(Self, Option<SignerError>), SignerError> {
        let signer = Self::read(key, record_file)?;
        match signer.compare(store).await {
            Ok(()) => Ok((signer, None)),
            Err(error) if error.is_other_database() => {
                *signer.wrong.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(error.to_string());
                Ok((signer, Some(error)))
            }
            Err(error) => Err(error),
        }
    }

    fn read(key: CheckpointKey, record_file: PathBuf) -> Result<Self, SignerError> {
        let last = Mutex::new(record::read(&record_file, key.verifier())?);
        let (alarms, waited) = (AtomicU64::new(0), AtomicBool::new(false));
        Ok(Self { key, record_file, last, alarms, wrong: Mutex::default(), waited })
    }

    async fn compare(&self, store: &dyn Store) -> Result<(), SignerError> {
        let newest = self.checked(store).await?.newest;
        // Another server process with this key signed it, or the record is an older one. Both are the
        // beginning of the same log, or `checked` would have refused.
        if let Some(newest) = newest.filter(|newest| newest.size > self.last().size) {
            self.remember(newest);
        }
        Ok(())
    }

    /// What the log does continue, where it does not continue the record: the newest checkpoint of the
    /// database, as after a restore.
    ///
    /// # Errors
    /// When it does not continue that one either: then it was not restored, but rewritten.
    pub async fn fork(&self, store: &dyn Store) -> Result<Fork, SignerError> {
        let lost = self.last();
        let (head, newest, since) = look(store, "read_fork", |unit| {
            Box::pin(async move {
                let newest = unit.newest_checkpoint().await?;
                let head = unit.log_head().await?;
                let since = match &newest {
                    Some(newest) => continues(unit, (newest.size, newest.root), &head).await?,
                    None => Some(Consistency::Proven),
                };
                Ok((head, newest, since))
            })
        })
        .await?;
        let base = newest.map(|newest| self.opened(&lost, newest)).transpose()?;
        require(since, head.size, base.as_ref().map_or(0, |base| base.size))?;
        Ok(Fork { lost, base })
    }

    /// Goes on from what the log does continue. The lost record is kept beside the new one, and its file
    /// named in the answer. The log must have declared it lost before.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn go_on_from(&self, fork: &Fork) -> Result<PathBuf, SignerError> {
        let aside = record::keep_aside(&self.record_file, &fork.lost)?;
        let note = match &fork.base {
            Some(base) => base.note.clone(),
            None => self.key.sign(0, EMPTY_HASH.0)?,
        };
        record::replace(&self.record_file, &note)?;
        self.reload()?;
        Ok(aside)
    }

    fn reload(&self) -> Result<(), SignerError> {
        self.remember(record::read(&self.record_file, self.key.verifier())?);
        Ok(())
    }

    /// What is wrong with the log itself, as of the last look: it lost leaves, or is another one.
    #[must_use]
    pub fn wrong(&self) -> Option<String> {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is remembered outside the database.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn memory(&self) -> Result<Memory, SignerError> {
        Ok(Memory::read(&self.record_file)?)
    }

    /// Remembers the database as it is, whatever was remembered before: for an operator's word.
    ///
    /// # Errors
    /// When the database does not answer or the file cannot be written.
    pub async fn remember_database(&self, store: &dyn Store) -> Result<(), SignerError> {
        self.write_memory(Memory::of(store).await?).await
    }

    /// What the database has forgotten of what is remembered, if it has. One that was reconciled by another
    /// host while this one was away is taken over.
    ///
    /// # Errors
    /// When the database does not answer, or the memory cannot be read or written.
    pub async fn compare_memory(&self, store: &dyn Store) -> Result<Option<String>, SignerError> {
        match self.remember_if_it_continues(store).await {
            Ok(()) => Ok(None),
            Err(SignerError::Forgotten(what)) => Ok(Some(what)),
            Err(error) => Err(error),
        }
    }

    async fn remember_if_it_continues(&self, store: &dyn Store) -> Result<(), SignerError> {
        // The file first: what another process of this host writes meanwhile is not ahead of the database then.
        let path = self.record_file.clone();
        let before = blocking(move || Memory::read(&path)).await?;
        let known = known_identity(store).await?;
        let found = Memory::of(store).await?;
        match before.forgotten(&found, known.as_deref()) {
            Some(what) => Err(SignerError::Forgotten(what)),
            None if before == found => Ok(()),
            // Which copy it is may not be told at a moment; what was known is kept.
            None => self.write_memory(Memory { copy: found.copy.or(before.copy), ..found }).await,
        }
    }

    async fn write_memory(&self, memory: Memory) -> Result<(), SignerError> {
        let path = self.record_file.clone();
        blocking(move || memory.write(&path)).await
    }

    /// A signed record of a key ceremony.
    ///
    /// # Errors
    /// When the body cannot be that of a note.
    pub fn attest(&self, body: &str) -> Result<String, SignerError> {
        Ok(self.key.attest(body)?)
    }

    /// The checkpoint that was signed last.
    #[must_use]
    pub fn last(&self) -> Checkpoint {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remember(&self, next: Checkpoint) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = next;
    }

    /// One look: signs the log's head if it has grown. A log that is not what was signed raises the
    /// alarm, and is not signed.
    ///
    /// # Errors
    /// When a file or the store does not work; it will be tried again.
    pub async fn look(&self, store: &dyn Store) -> Result<(), SignerError> {
        if waits(store).await? {
            self.waited.store(true, Ordering::Relaxed);
            // It is for the operator now: said again after that, it would be of what was put right.
            *self.wrong.lock().unwrap_or_else(PoisonError::into_inner) = None;
            return Ok(());
        }
        if self.waited.swap(false, Ordering::Relaxed) {
            self.reload()?;
        }
        let signed = self.sign(store).await;
        let wrong = match &signed {
            Err(error) if error.is_other_database() => Some(error.to_string()),
            _ => None,
        };
        *self.wrong.lock().unwrap_or_else(PoisonError::into_inner) = wrong;
        match signed {
            Err(error) if error.is_alarm() => {
                metrics::gauge!("claviger_audit_alarm").set(1.0);
                let before = self.alarms.fetch_add(1, Ordering::Relaxed);
                if before.checked_rem(ALARM_AGAIN) == Some(0) {
                    tracing::error!(%error, "ALARM: the audit log is wrong and is not signed");
                }
                Ok(())
            }
            Ok(()) => {
                metrics::gauge!("claviger_audit_alarm").set(0.0);
                metrics::gauge!("claviger_audit_signed_size").set(as_f64(self.last().size));
                self.alarms.store(0, Ordering::Relaxed);
                Ok(())
            }
            other => other,
        }
    }

    /// The head and the newest checkpoint in the database, if the log continues what was signed: by the
    /// signer's record, and by that checkpoint. One alone would not do: the record does not know of what
    /// another server signed, and the checkpoint may be of a fork that begins below the record.
    async fn checked(&self, store: &dyn Store) -> Result<Seen, SignerError> {
        let last = self.last();
        let old = (last.size, last.root);
        let found = look(store, "read_signed_head", move |unit| {
            Box::pin(async move {
                // The checkpoint first: the head can then not be an older one than it.
                let newest = unit.newest_checkpoint().await?;
                let head = unit.log_head().await?;
                let since_last = continues(unit, old, &head).await?;
                let since_newest = match &newest {
                    Some(SignedCheckpoint { size, root, .. }) if (*size, *root) != old => {
                        continues(unit, (*size, *root), &head).await?
                    }
                    _ => since_last,
                };
                Ok((head, newest, since_last, since_newest))
            })
        })
        .await?;
        let (head, newest, since_last, since_newest) = found;
        require(since_last, head.size, last.size)?;
        let newest = newest.map(|newest| self.opened(&last, newest)).transpose()?;
        if let Some(newest) = &newest {
            require(since_newest, head.size, newest.size)?;
        }
        Ok(Seen { head, newest })
    }

    /// A row of the database, if it is a checkpoint of this key and is beside what it states.
    fn opened(&self, last: &Checkpoint, row: SignedCheckpoint) -> Result<Checkpoint, SignerError> {
        let SignedCheckpoint { size, root, note } = row;
        let found = if note == last.note {
            // It is checked already, and so it is nearly always.
            last.clone()
        } else {
            let found = self.key.verifier().open(&note);
            found.map_err(|why| SignerError::OtherKey { size, why })?
        };
        if (found.size, found.root) != (size, root) {
            return Err(SignerError::OtherRow { size });
        }
        Ok(found)
    }

    async fn sign(&self, store: &dyn Store) -> Result<(), SignerError> {
        let seen = self.checked(store).await?;
        let last = self.last();
        let released = seen.newest.map_or(0, |newest| newest.size);
        if last.size > released {
            // A crash came between the record and the release.
            self.release(store, &last).await?;
        }
        let LogHead { size, root } = seen.head;
        if size == last.size {
            return Ok(());
        }
        self.remember_if_it_continues(store).await?;
        let note = self.key.sign(size, root)?;
        let (path, text) = (self.record_file.clone(), note.clone());
        blocking(move || record::replace(&path, &text)).await?;
        let next = Checkpoint { size, root, note };
        self.remember(next.clone());
        crate::failpoint!("checkpoint.after_record");
        self.release(store, &next).await
    }

    /// Puts a checkpoint where others read it.
    async fn release(&self, store: &dyn Store, next: &Checkpoint) -> Result<(), SignerError> {
        let Checkpoint { size, root, note } = next.clone();
        let signed = SignedCheckpoint { size, root, note };
        let kept = unit(store, "keep_checkpoint", move |unit| {
            let signed = signed.clone();
            Box::pin(async move {
                if unit.keep_checkpoint(&signed).await? {
                    return Ok(End::Commit(Some(signed.root)));
                }
                let there = unit.checkpoints(signed.size, 1).await?;
                Ok(End::Rollback(there.into_iter().next().map(|there| there.root)))
            })
        })
        .await?;
        crate::failpoint!("checkpoint.after_release");
        if kept == Some(root) {
            return Ok(());
        }
        // Another root was signed at this size, or is said to have been.
        Err(SignerError::Rewritten { size, signed: size })
    }
}

/// Work with a file, off the runtime's threads.
async fn blocking<T, F>(work: F) -> Result<T, SignerError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, RecordError> + Send + 'static,
{
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|error| StoreError::Unavailable(error.to_string()))??)
}

/// Whether the server waits for an operator: the log may be another than the one that was signed.
async fn waits(store: &dyn Store) -> Result<bool, StoreError> {
    look(store, "suspension", |unit| {
        Box::pin(async move { Ok(unit.suspension().await?.is_some()) })
    })
    .await
}

/// Whether the log's head continues a checkpoint. `None` if the log is shorter.
async fn continues(
    unit: &mut dyn Unit,
    signed: (u64, [u8; 32]),
    head: &LogHead,
) -> Result<Option<Consistency>, StoreError> {
    if head.size < signed.0 {
        return Ok(None);
    }
    consistency(unit, signed, (head.size, head.root)).await.map(Some)
}

const fn require(
    continues: Option<Consistency>,
    size: u64,
    signed: u64,
) -> Result<(), SignerError> {
    match continues {
        None => Err(SignerError::Shorter { size, signed }),
        Some(Consistency::Refuted) => Err(SignerError::Rewritten { size, signed }),
        Some(Consistency::Proven) => Ok(()),
    }
}

/// Metrics are floating point; sizes beyond 2^53 do not occur.
#[expect(clippy::cast_precision_loss, reason = "a gauge for people, not for decisions")]
const fn as_f64(size: u64) -> f64 {
    size as f64
}

/// Whether this database's log has been signed before: then it must go on being signed.
///
/// # Errors
/// When the store does not answer.
pub async fn is_signed(store: &dyn Store) -> Result<bool, StoreError> {
    look(store, "newest_checkpoint", |unit| {
        Box::pin(async move { Ok(unit.newest_checkpoint().await?.is_some()) })
    })
    .await
}
