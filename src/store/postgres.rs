//! PostgreSQL: several server processes, replication. Row locks, and units are run again when they
//! conflict.

use super::{CREATED, OpenMode, unavailable};
use crate::ports::store::{End, Erased, Replication, Store, StoreError, Work};
use async_trait::async_trait;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use std::str::FromStr;
use std::time::Duration;

type Db = sqlx::Postgres;

/// Rows that a unit decides on are locked until its end.
macro_rules! locked {
    ($sql:literal) => {
        concat!($sql, " FOR UPDATE")
    };
}

#[path = "queries/mod.rs"]
#[expect(clippy::duplicate_mod, reason = "the one SQL source, compiled for each database")]
mod queries;

use queries::Tx;
#[cfg(test)]
pub(super) use queries::all_statements;

const RUNS_MAX: u32 = 8;

/// Said, not left to the server's default: after a wait for a lock, a unit reads what the other one
/// committed.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

/// For reads.
const BEGIN_LOOK: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// The longest that a unit may take, well above what the server's own limits allow.
const UNIT_MAX: Duration = Duration::from_secs(60);

/// The cluster and its timeline, which is the first third of the name of the WAL file that is written now:
/// the control file's own is that of the last checkpoint, some time after a promotion.
const IDENTITY: &str = "SELECT system_identifier::text || '/' || \
    substring(pg_walfile_name(pg_current_wal_lsn()) from 1 for 8) FROM pg_control_system()";

/// An open PostgreSQL database.
#[derive(Debug)]
pub struct PostgresStore {
    pool: sqlx::Pool<Db>,
}

impl PostgresStore {
    /// Opens `postgres://…`. The database itself must exist; `Create` makes our tables in it.
    ///
    /// # Errors
    /// See [`super::open`].
    pub async fn open(url: &str, mode: OpenMode) -> Result<Self, StoreError> {
        let mut options = PgConnectOptions::from_str(url)
            .map_err(|e| unavailable(&e))?
            .application_name("claviger")
            .options([("statement_timeout", "30000"), ("lock_timeout", "15000")])
            // A unit never waits for anything but the database. A process that was stopped in the midst of
            // one must not keep its locks from the process that takes over.
            .options([("idle_in_transaction_session_timeout", "10000")]);
        if mode == OpenMode::Reading {
            options = options.options([("default_transaction_read_only", "on")]);
        }
        let pool = PgPoolOptions::new()
            .max_connections(8)
            .acquire_timeout(Duration::from_secs(20))
            .connect_with(options)
            .await
            .map_err(|e| unavailable(&e))?;
        let store = Self { pool };
        if mode != OpenMode::Create {
            queries::check_created(&store).await?;
        }
        if mode == OpenMode::Reading {
            return Ok(store);
        }
        sqlx::migrate!("migrations/server/postgres")
            .run(&store.pool)
            .await
            .map_err(|e| unavailable(&e))?;
        if mode == OpenMode::Create {
            let tx = store.pool.begin_with(BEGIN).await.map_err(|e| unavailable(&e))?;
            queries::mark_created(Tx::new(tx, "mark_created")).await?;
        }
        Ok(store)
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn run(&self, name: &'static str, work: Work) -> Result<End<Erased>, StoreError> {
        for _ in 0..RUNS_MAX {
            let once = async {
                let tx = self.pool.begin_with(BEGIN).await.map_err(|e| unavailable(&e))?;
                Tx::new(tx, name).finish(work.clone()).await
            };
            match in_time(name, once).await {
                Err(StoreError::Contended) => {}
                answer => return answer,
            }
        }
        Err(StoreError::Contended)
    }

    async fn look(&self, name: &'static str, work: Work) -> Result<End<Erased>, StoreError> {
        let once = async {
            let tx = self.pool.begin_with(BEGIN_LOOK).await.map_err(|e| unavailable(&e))?;
            Tx::new(tx, name).peek(work).await
        };
        in_time(name, once).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        queries::ping(self).await
    }

    fn is_alone(&self) -> bool {
        false
    }

    async fn replication(&self) -> Result<Option<Replication>, StoreError> {
        let sql = "SELECT current_setting('synchronous_commit'), \
            current_setting('synchronous_standby_names'), \
            (SELECT count(*) FROM pg_stat_replication)";
        let (commit, names, standbys): (String, String, i64) =
            sqlx::query_as(sql).fetch_one(&self.pool).await.map_err(|e| unavailable(&e))?;
        Ok(Some(Replication { commit, names, standbys }))
    }

    async fn identity(&self) -> Result<Option<String>, StoreError> {
        let found: Result<(String,), sqlx::Error> =
            sqlx::query_as(IDENTITY).fetch_one(&self.pool).await;
        match found {
            Ok((identity,)) => Ok(Some(identity)),
            // The role may not read it, or the server is a replica that replays and has no timeline of
            // its own yet: nothing is concluded from that.
            Err(sqlx::Error::Database(_)) => Ok(None),
            Err(error) => Err(unavailable(&error)),
        }
    }
}

/// A server that vanished without a word ends no connection, and enforces no limit of its own any more: the
/// caller goes on without an answer. What was written is then known only to the database.
async fn in_time<T>(
    name: &'static str,
    once: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(UNIT_MAX, once).await {
        Ok(answer) => answer,
        Err(_elapsed) => {
            Err(StoreError::Unavailable(format!("{name}: PostgreSQL does not answer")))
        }
    }
}

/// Serialisation failure and deadlock (SQLSTATE 40001, 40P01): the unit may be run again.
fn is_retryable(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .is_some_and(|code| code == "40001" || code == "40P01")
}
