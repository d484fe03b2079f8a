//! Grouped commits. A commit costs a sync of the disk, whatever is in it, and SQLite has one writer: so
//! one task owns the writing connection, runs unit after unit in one transaction, each under a savepoint,
//! and commits when none waits any more. Only then are they answered.
//!
//! - A unit that ends in rollback, fails or panics is undone to its savepoint; the others go on.
//! - A unit sees what those before it in the group wrote, which is not durable yet. So whatever it
//!   answers, also that it changed nothing, is told only after the commit; if that fails, all have failed.
//! - A unit whose caller has gone before it began does not run. One that has begun is finished, and is
//!   stored whole or not at all.

use super::queries::{Tx, mark_created};
use super::{LockFile, unavailable};
use crate::ports::store::{End, Erased, StoreError, Work};
use futures::FutureExt as _;
use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use tokio::sync::{Mutex, mpsc, oneshot};

/// More in one transaction would keep the first one waiting for little.
const UNITS_MAX: usize = 256;

/// A unit that waits for its turn.
pub(super) struct Job {
    /// Its name, for errors.
    pub(super) name: &'static str,
    /// The closure.
    pub(super) work: Work,
    /// Where its answer goes, once it is durable.
    pub(super) answer: oneshot::Sender<Outcome>,
}

/// What became of a unit.
pub(super) enum Outcome {
    /// It ended.
    Ended(Result<End<Erased>, StoreError>),
    /// Its closure panicked. The panic goes on where the unit was asked for.
    Panicked(Box<dyn Any + Send>),
}

impl Outcome {
    /// Whether its changes are to be kept.
    const fn keeps(&self) -> bool {
        matches!(self, Self::Ended(Ok(End::Commit(_))))
    }

    /// What is told if the group was not committed.
    fn lost(self, error: &StoreError) -> Self {
        match self {
            Self::Ended(Ok(_)) => Self::Ended(Err(error.clone())),
            other => other,
        }
    }
}

type Answers = Vec<(oneshot::Sender<Outcome>, Outcome)>;

/// The task that owns the writing connection.
pub(super) struct Writer {
    options: SqliteConnectOptions,
    /// `None` after a failure that leaves its state unknown. Each unit has it for its turn.
    connection: Option<Arc<Mutex<SqliteConnection>>>,
    jobs: mpsc::Receiver<Job>,
    lock: Weak<LockFile>,
}

impl Writer {
    pub(super) fn new(
        options: SqliteConnectOptions,
        connection: SqliteConnection,
        jobs: mpsc::Receiver<Job>,
        lock: Weak<LockFile>,
    ) -> Self {
        Self { options, connection: Some(Arc::new(Mutex::new(connection))), jobs, lock }
    }

    /// Brings the tables up to date.
    pub(super) async fn migrate(&mut self) -> Result<(), StoreError> {
        let mut connection = self.connected().await?.lock_owned().await;
        let migrations = sqlx::migrate!("migrations/server/sqlite");
        migrations.run(&mut *connection).await.map_err(|e| unavailable(&e))
    }

    /// Says in the database that it is ours.
    pub(super) async fn mark_created(&mut self) -> Result<(), StoreError> {
        let connection = self.connected().await?;
        step(&connection, "BEGIN IMMEDIATE").await?;
        let tx = Tx::lent(Arc::clone(&connection).lock_owned().await, "mark_created");
        mark_created(tx).await?;
        step(&connection, "COMMIT").await
    }

    /// Works until the store is gone.
    pub(super) async fn run(mut self) {
        while let Some(first) = self.jobs.recv().await {
            // Nothing is written once another server may have the file.
            let Some(_lock) = self.lock.upgrade() else { break };
            self.group(first).await;
        }
    }

    /// One transaction: this unit, and all that wait when it is done.
    async fn group(&mut self, first: Job) {
        let mut answers = Answers::new();
        let ended = self.transaction(first, &mut answers).await;
        if ended.is_err() {
            // Closing it undoes what is open, whatever that is.
            self.connection = None;
        }
        for (answer, outcome) in answers {
            let outcome = match &ended {
                Ok(()) => outcome,
                Err(error) => outcome.lost(error),
            };
            // A caller that has gone wants no answer.
            let _ = answer.send(outcome);
        }
    }

    async fn transaction(&mut self, first: Job, answers: &mut Answers) -> Result<(), StoreError> {
        let connection = match self.begin().await {
            Ok(connection) => connection,
            Err(error) => {
                // Whoever waits behind it would wait as long again, for the same.
                let mut refused = Some(first);
                while let Some(job) = refused {
                    answers.push((job.answer, Outcome::Ended(Err(error.clone()))));
                    refused = self.jobs.try_recv().ok();
                }
                return Err(error);
            }
        };
        let (mut next, mut keeps) = (Some(first), false);
        while let Some(job) = next.take() {
            if !job.answer.is_closed() {
                let tx = Tx::lent(Arc::clone(&connection).lock_owned().await, job.name);
                let outcome = match AssertUnwindSafe(tx.finish(job.work)).catch_unwind().await {
                    Ok(ended) => Outcome::Ended(ended),
                    Err(panic) => Outcome::Panicked(panic),
                };
                let kept = outcome.keeps();
                keeps |= kept;
                answers.push((job.answer, outcome));
                // Whether another unit waits is not asked: one that comes after the asking would run in
                // this one's savepoint, and take it along when it is undone.
                let end = if kept { "RELEASE unit; SAVEPOINT unit" } else { "ROLLBACK TO unit" };
                step(&connection, end).await?;
            }
            if answers.len() < UNITS_MAX {
                next = self.jobs.try_recv().ok();
            }
        }
        if keeps {
            crate::failpoint!("store.before_group_commit");
            step(&connection, "COMMIT").await
        } else {
            step(&connection, "ROLLBACK").await
        }
    }

    /// Opens a transaction. The writer is waited for now, not in the middle.
    async fn begin(&mut self) -> Result<Arc<Mutex<SqliteConnection>>, StoreError> {
        let connection = self.connected().await?;
        step(&connection, "BEGIN IMMEDIATE; SAVEPOINT unit").await?;
        Ok(connection)
    }

    /// The connection, or a new one if the last was given up.
    async fn connected(&mut self) -> Result<Arc<Mutex<SqliteConnection>>, StoreError> {
        if let Some(connection) = &self.connection {
            return Ok(Arc::clone(connection));
        }
        let connection = self.options.connect().await.map_err(|e| unavailable(&e))?;
        let connection = Arc::new(Mutex::new(connection));
        self.connection = Some(Arc::clone(&connection));
        Ok(connection)
    }
}

/// If SQLite has undone the transaction by itself (no room, no memory, a failed write), the savepoint is
/// gone and the next step fails: then the whole group has.
async fn step(connection: &Mutex<SqliteConnection>, sql: &'static str) -> Result<(), StoreError> {
    let mut connection = connection.lock().await;
    let done = sqlx::raw_sql(sql).execute(&mut *connection).await;
    done.map(|_| ()).map_err(|e| unavailable(&e))
}
