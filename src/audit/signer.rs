//! The checkpoint signer. It releases a checkpoint only after it has checked, from the stored nodes, that
//! the log continues the one whose checkpoint it released before, by its own record.
//!
//! The record is durable before a checkpoint is released, so that there is never one outside that the
//! signer does not know of. What a crash leaves between the two is released at the next look.

use crate::audit::checkpoint::{Checkpoint, NotACheckpoint};
use crate::audit::key::{CheckpointKey, KeyError};
use crate::audit::record::{self, RecordError};
use crate::audit::tree::{Consistency, consistency};
use crate::ports::store::{End, LogHead, SignedCheckpoint, Store, StoreError, look, unit};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

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
    /// Whether the log itself is wrong, and not what is around it.
    #[must_use]
    pub const fn is_alarm(&self) -> bool {
        matches!(self, Self::Shorter { .. } | Self::Rewritten { .. } | Self::OtherKey { .. })
            || matches!(self, Self::Store(StoreError::Corrupt(_)))
    }
}

/// Signs the log's checkpoints. One look at a time.
pub struct CheckpointSigner {
    key: CheckpointKey,
    record_file: PathBuf,
    last: Mutex<Checkpoint>,
    alarms: AtomicU64,
}

/// What one look sees.
struct Seen {
    head: LogHead,
    newest: Option<SignedCheckpoint>,
    consistency: Option<Consistency>,
}

impl CheckpointSigner {
    /// Opens the key and the record, and compares the log with it.
    ///
    /// # Errors
    /// When one of them is missing or wrong, or the log is shorter than what was signed, or not its
    /// continuation.
    pub async fn open(
        store: &dyn Store,
        key: CheckpointKey,
        record_file: PathBuf,
    ) -> Result<Self, SignerError> {
        let mut last = record::read(&record_file, key.verifier())?;
        let newest = look(store, "newest_checkpoint", |unit| {
            Box::pin(async move { unit.newest_checkpoint().await })
        })
        .await?;
        if let Some(newest) = newest {
            let size = newest.size;
            let found = key.verifier().open(&newest.note);
            let found = found.map_err(|why| SignerError::OtherKey { size, why })?;
            // Another server process with this key signed it, or the record is an older one.
            if found.size > last.size {
                last = found;
            }
        }
        let signer = Self { key, record_file, last: Mutex::new(last), alarms: AtomicU64::new(0) };
        signer.checked(store).await?;
        Ok(signer)
    }

    /// The checkpoint that was signed last.
    #[must_use]
    pub fn last(&self) -> Checkpoint {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One look: signs the log's head if it has grown. A log that is not what was signed raises the
    /// alarm, and is not signed.
    ///
    /// # Errors
    /// When a file or the store does not work; it will be tried again.
    pub async fn look(&self, store: &dyn Store) -> Result<(), SignerError> {
        match self.sign(store).await {
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

    /// The head, if the log continues what was signed.
    async fn checked(&self, store: &dyn Store) -> Result<Seen, SignerError> {
        let last = self.last();
        let old = (last.size, last.root);
        let seen = look(store, "read_signed_head", move |unit| {
            Box::pin(async move {
                let head = unit.log_head().await?;
                let newest = unit.newest_checkpoint().await?;
                let consistency = if head.size < old.0 {
                    None
                } else {
                    Some(consistency(unit, old, (head.size, head.root)).await?)
                };
                Ok(Seen { head, newest, consistency })
            })
        })
        .await?;
        let (size, signed) = (seen.head.size, last.size);
        match seen.consistency {
            None => Err(SignerError::Shorter { size, signed }),
            Some(Consistency::Refuted) => Err(SignerError::Rewritten { size, signed }),
            Some(Consistency::Proven) => Ok(seen),
        }
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
        let note = self.key.sign(size, root)?;
        let (path, text) = (self.record_file.clone(), note.clone());
        tokio::task::spawn_blocking(move || record::replace(&path, &text))
            .await
            .map_err(|error| StoreError::Unavailable(error.to_string()))??;
        let next = Checkpoint { size, root, note };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = next.clone();
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
