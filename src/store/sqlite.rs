//! SQLite: the embedded default. One writer, WAL, `synchronous=FULL`, one server process.

use super::{CREATED, OpenMode, unavailable};
use crate::ports::store::{End, Erased, Store, StoreError, Work};
use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

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

/// Waits for the writer before it, not in the middle.
const BEGIN: &str = "BEGIN IMMEDIATE";

/// An open SQLite database. Holds the lock file for as long as it lives.
#[derive(Debug)]
pub struct SqliteStore {
    writer: sqlx::Pool<Db>,
    readers: sqlx::Pool<Db>,
    lock: File,
}

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
        let lock = lock(&path.canonicalize().unwrap_or_else(|_| path.to_path_buf()))?;
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(Duration::from_secs(20))
            .connect_with(options.clone())
            .await
            .map_err(|e| unavailable(&e))?;
        let readers = SqlitePoolOptions::new()
            .max_connections(2)
            .acquire_timeout(Duration::from_secs(20))
            .connect_with(options.create_if_missing(false).pragma("query_only", "ON"))
            .await
            .map_err(|e| unavailable(&e))?;
        let store = Self { writer, readers, lock };
        if mode == OpenMode::Existing {
            queries::check_created(&store).await?;
        }
        sqlx::migrate!("migrations/server/sqlite")
            .run(&store.writer)
            .await
            .map_err(|e| unavailable(&e))?;
        if mode == OpenMode::Create {
            let tx = store.writer.begin_with(BEGIN).await.map_err(|e| unavailable(&e))?;
            queries::mark_created(Tx::new(tx, "mark_created")).await?;
        }
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
fn lock(path: &Path) -> Result<File, StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&name)
        .map_err(|e| unavailable(&e))?;
    file.try_lock().map_err(|_| {
        StoreError::Unavailable(format!(
            "another server is running on {}; SQLite serves one process",
            path.display()
        ))
    })?;
    Ok(file)
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        // Said, not left to closing the file: a child that is just being started may hold a copy of it.
        let _ = self.lock.unlock();
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn run(&self, name: &'static str, work: Work) -> Result<End<Erased>, StoreError> {
        let tx = self.writer.begin_with(BEGIN).await.map_err(|e| unavailable(&e))?;
        Tx::new(tx, name).finish(work).await
    }

    async fn look(&self, name: &'static str, work: Work) -> Result<End<Erased>, StoreError> {
        let tx = self.readers.begin().await.map_err(|e| unavailable(&e))?;
        Tx::new(tx, name).peek(work).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        queries::ping(self).await
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
}

/// Whether running the unit again may help: never here, since writers wait for each other.
const fn is_retryable(_error: &sqlx::Error) -> bool {
    false
}
