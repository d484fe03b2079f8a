//! PostgreSQL: several watcher processes. Units that conflict are run again.

use super::{CREATED, OpenMode, Shared, unavailable};
use crate::ports::watch_store::WatchStoreError;
use sqlx::Transaction;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use std::str::FromStr;
use std::time::Duration;

type Db = sqlx::Postgres;

#[path = "queries/mod.rs"]
#[expect(clippy::duplicate_mod, reason = "the one SQL source, compiled for each database")]
mod queries;

/// Compares a term, and keeps others from taking the duty until the unit ends: taking it changes the key
/// (name, token), and waits for this lock. Renewing it changes no key, and does not.
const STILL_LEADS: &str = "SELECT token FROM duty WHERE name = $1 AND token = $2 FOR KEY SHARE";

/// An open PostgreSQL database.
#[derive(Debug)]
pub struct PostgresWatchStore {
    pool: sqlx::Pool<Db>,
    shared: Shared,
}

type Store = PostgresWatchStore;

impl PostgresWatchStore {
    /// Opens `postgres://…`. The database itself must exist; `Create` makes our tables in it.
    ///
    /// # Errors
    /// See [`super::open`].
    pub async fn open(url: &str, mode: OpenMode) -> Result<Self, WatchStoreError> {
        let options = PgConnectOptions::from_str(url)
            .map_err(|error| unavailable(&error))?
            .application_name("claviger-watcher")
            .options([
                ("statement_timeout", "30000"),
                ("lock_timeout", "15000"),
                // A process that is stopped in the middle of a unit holds its locks no longer than this:
                // another one waits for them to take its place.
                ("idle_in_transaction_session_timeout", "10000"),
            ]);
        let pool = PgPoolOptions::new()
            .max_connections(4)
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
        let migrator = sqlx::migrate!("migrations/watcher/postgres");
        migrator.run(&self.pool).await.map_err(|error| unavailable(&error))
    }

    async fn begin(&self) -> Result<Transaction<'static, Db>, WatchStoreError> {
        self.pool.begin().await.map_err(|error| unavailable(&error))
    }

    async fn begin_read(&self) -> Result<Transaction<'static, Db>, WatchStoreError> {
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        self.pool.begin_with(begin).await.map_err(|error| unavailable(&error))
    }
}

/// Serialisation failure and deadlock (SQLSTATE 40001, 40P01): the unit may be run again.
fn is_retryable(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .is_some_and(|code| code == "40001" || code == "40P01")
}
