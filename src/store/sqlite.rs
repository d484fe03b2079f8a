//! SQLite: the embedded default. One writer, WAL, `synchronous=FULL`, one server process. Commits are
//! grouped, see [`group`].

mod group;

use super::{CREATED, OpenMode, unavailable};
use crate::ports::store::{End, Erased, Store, StoreError, Work};
use async_trait::async_trait;
use group::{Job, Outcome, Writer};
use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

type Db = sqlx::Sqlite;

/// The writer excludes others for the whole unit, so rows need no lock of their own.
macro_rules! locked {
    ($sql:literal) => {
        $sql
    };
}

#[path = "queries/mod.rs"]
mod queries;

use queries::Tx;
#[cfg(test)]
pub(super) use queries::all_statements;

/// How many units may wait for the writer; beyond that, callers wait to be let in.
const WAITING_MAX: usize = 1_024;

/// How long they do.
const PATIENCE: Duration = Duration::from_secs(20);

/// An open SQLite database. Holds the lock file for as long as it lives, and until a commit that is being
/// made is done.
#[derive(Debug)]
pub struct SqliteStore {
    jobs: mpsc::Sender<Job>,
    readers: sqlx::Pool<Db>,
    _lock: Arc<LockFile>,
}

/// The lock on the file beside the database.
#[derive(Debug)]
struct LockFile(File);

impl SqliteStore {
    /// Opens `sqlite:PATH`.
    ///
    /// # Errors
    /// See [`super::open`].
    pub async fn open(url: &str, mode: OpenMode) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::from_str(url)
            .map_err(|e| unavailable(&e))?
            .create_if_missing(mode == OpenMode::Create)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        let path = options.get_filename().to_owned();
        check_presence(&path, mode)?;
        // By its real name: a link must not lead around the lock.
        let lock = Arc::new(lock(&path.canonicalize().unwrap_or_else(|_| path.to_path_buf()))?);
        let writer = options.connect().await.map_err(|e| unavailable(&e))?;
        let options = options.create_if_missing(false);
        let readers = SqlitePoolOptions::new()
            .max_connections(2)
            .idle_timeout(None)
            .max_lifetime(None)
            // A file does not hang up.
            .test_before_acquire(false)
            .acquire_timeout(PATIENCE)
            .connect_with(options.clone().pragma("query_only", "ON"))
            .await
            .map_err(|e| unavailable(&e))?;
        let (jobs, waiting) = mpsc::channel(WAITING_MAX);
        let mut writer = Writer::new(options, writer, waiting, Arc::downgrade(&lock));
        let store = Self { jobs, readers, _lock: lock };
        if mode == OpenMode::Existing {
            queries::check_created(&store).await?;
        }
        writer.migrate().await?;
        if mode == OpenMode::Create {
            writer.mark_created().await?;
        }
        tokio::spawn(writer.run());
        Ok(store)
    }
}

fn check_presence(path: &Path, mode: OpenMode) -> Result<(), StoreError> {
    match (path.exists(), mode) {
        (false, OpenMode::Existing | OpenMode::Reading) => Err(StoreError::Unavailable(format!(
            "there is no database at {}; `claviger init` creates one",
            path.display()
        ))),
        (true, OpenMode::Create) => {
            Err(StoreError::Unavailable(format!("{} exists already", path.display())))
        }
        _ => Ok(()),
    }
}

/// A second server on the same file would give the same nonces: it is refused.
fn lock(path: &Path) -> Result<LockFile, StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&name)
        .map_err(|e| unavailable(&e))?;
    file.try_lock().map_err(|_| StoreError::Held(path.display().to_string()))?;
    Ok(LockFile(file))
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // Said, not left to closing the file: a child that is just being started may hold a copy of it.
        let _ = self.0.unlock();
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn run(&self, name: &'static str, work: Work) -> Result<End<Erased>, StoreError> {
        let (answer, answered) = oneshot::channel();
        let job = Job { name, work, answer };
        let told = |why: &str| StoreError::Unavailable(format!("{name}: {why}"));
        match tokio::time::timeout(PATIENCE, self.jobs.send(job)).await {
            Err(_elapsed) => return Err(told("too many wait for the writer")),
            Ok(Err(_closed)) => return Err(told("the writer has ended")),
            Ok(Ok(())) => {}
        }
        match answered.await {
            Ok(Outcome::Ended(ended)) => ended,
            Ok(Outcome::Panicked(panic)) => std::panic::resume_unwind(panic),
            Err(_gone) => Err(told("the writer has ended")),
        }
    }

    async fn look(&self, name: &'static str, work: Work) -> Result<End<Erased>, StoreError> {
        let tx = self.readers.begin().await.map_err(|e| unavailable(&e))?;
        Tx::new(tx, name).peek(work).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        queries::ping(self).await
    }

    fn is_alone(&self) -> bool {
        true
    }
}

/// An SQLite database that is only read, beside the server that writes it: in WAL mode neither waits for
/// the other. It takes no lock, so it neither stops a server nor makes the file its own.
#[derive(Debug)]
pub struct SqliteReader {
    readers: sqlx::Pool<Db>,
}

impl SqliteReader {
    /// Opens `sqlite:PATH`, which must be of this version.
    ///
    /// # Errors
    /// See [`super::open`].
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        // Opened read-only, SQLite itself refuses every write, and the last to close does not
        // checkpoint. The journal's mode is in the file and is not set here.
        let options = SqliteConnectOptions::from_str(url)
            .map_err(|e| unavailable(&e))?
            .create_if_missing(false)
            .read_only(true)
            .busy_timeout(Duration::from_secs(10));
        check_presence(options.get_filename(), OpenMode::Reading)?;
        let readers = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(Duration::from_secs(20))
            .connect_with(options)
            .await
            .map_err(|e| unavailable(&e))?;
        let store = Self { readers };
        queries::check_created(&store).await?;
        Ok(store)
    }
}

#[async_trait]
impl Store for SqliteReader {
    async fn run(&self, name: &'static str, _work: Work) -> Result<End<Erased>, StoreError> {
        Err(StoreError::Unavailable(format!("{name}: the database was opened to be read only")))
    }

    async fn look(&self, name: &'static str, work: Work) -> Result<End<Erased>, StoreError> {
        let tx = self.readers.begin().await.map_err(|e| unavailable(&e))?;
        Tx::new(tx, name).peek(work).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        queries::ping(self).await
    }

    fn is_alone(&self) -> bool {
        false
    }
}

/// Whether running the unit again may help: never here, since writers wait for each other.
const fn is_retryable(_error: &sqlx::Error) -> bool {
    false
}
