//! SQLite: the embedded default. One connection, WAL, `synchronous=FULL`.

use super::{CREATED, OpenMode, Shared, unavailable};
use crate::ports::watch_store::WatchStoreError;
use sqlx::Transaction;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use std::str::FromStr;
use std::time::Duration;

type Db = sqlx::Sqlite;

#[path = "queries/mod.rs"]
mod queries;

/// Compares a term. A unit is alone in the database from its beginning: that is the lock.
const STILL_LEADS: &str = "SELECT token FROM duty WHERE name = $1 AND token = $2";

/// An open SQLite database.
#[derive(Debug)]
pub struct SqliteWatchStore {
    pool: sqlx::Pool<Db>,
    shared: Shared,
}

type Store = SqliteWatchStore;

impl SqliteWatchStore {
    /// Opens `sqlite:PATH`.
    ///
    /// # Errors
    /// See [`super::open`].
    pub async fn open(url: &str, mode: OpenMode) -> Result<Self, WatchStoreError> {
        let options = SqliteConnectOptions::from_str(url)
            .map_err(|error| unavailable(&error))?
            .create_if_missing(mode == OpenMode::Create)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        let path = options.get_filename().to_owned();
        if mode == OpenMode::Existing && !path.exists() {
            return Err(WatchStoreError::Unavailable(format!(
                "there is no database at {}; `claviger-watcher init` creates one",
                path.display()
            )));
        }
        if mode == OpenMode::Create && path.exists() {
            let text = format!("{} exists already", path.display());
            return Err(WatchStoreError::Unavailable(text));
        }
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(Duration::from_secs(20))
            .connect_with(options)
            .await
            .map_err(|error| unavailable(&error))?;
        let store = Self { pool, shared: Shared::default() };
        queries::set_up(&store, mode).await?;
        Ok(store)
    }

    async fn migrate(&self) -> Result<(), WatchStoreError> {
        let migrator = sqlx::migrate!("migrations/watcher/sqlite");
        migrator.run(&self.pool).await.map_err(|error| unavailable(&error))
    }

    async fn begin(&self) -> Result<Transaction<'static, Db>, WatchStoreError> {
        self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(|error| unavailable(&error))
    }

    async fn begin_read(&self) -> Result<Transaction<'static, Db>, WatchStoreError> {
        self.pool.begin().await.map_err(|error| unavailable(&error))
    }
}

/// Whether running the unit again may help: never here, since writers wait for each other.
const fn is_retryable(_error: &sqlx::Error) -> bool {
    false
}
