//! PostgreSQL: several server processes, replication. Row locks, and units are run again when they
//! conflict.

use super::{CREATED, OpenMode, unavailable};
use crate::ports::store::{
    DATABASE_IDENTITY, End, Erased, Replication, Store, StoreError, Work, other_copy,
};
use async_trait::async_trait;
use sqlx::Connection as _;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
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

/// A migration takes as long as its tables are large. It waits for others' locks, and for another server that
/// migrates, but not for ever: what comes after it waits behind it.
const MIGRATES: &str = "SET statement_timeout = 0; SET lock_timeout = '10min'";

/// The longest that a unit may take, well above what the server's own limits allow.
const UNIT_MAX: Duration = Duration::from_secs(60);

/// The longest that a connection which does nothing may take to say so.
const ANSWER_MAX: Duration = Duration::from_secs(5);

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
        let writes = mode != OpenMode::Reading;
        let pool = PgPoolOptions::new()
            .max_connections(8)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(Duration::from_secs(20))
            .test_before_acquire(false)
            .before_acquire(|connection, _| Box::pin(answers(connection)))
            .after_release(|connection, _| Box::pin(answers(connection)))
            .after_connect(move |connection, _| {
                Box::pin(
                    async move { if writes { look_which_copy(connection).await } else { Ok(()) } },
                )
            })
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
        store.migrate().await.map_err(|e| unavailable(&e))?;
        if mode == OpenMode::Create {
            let tx = store.pool.begin_with(BEGIN).await.map_err(|e| unavailable(&e))?;
            queries::mark_created(Tx::new(tx, "mark_created")).await?;
        }
        Ok(store)
    }

    /// Brings the tables up to date, on a connection that is used for nothing else: the limits of units would
    /// cancel an index over a large table at every start.
    async fn migrate(&self) -> Result<(), sqlx::migrate::MigrateError> {
        let mut connection = self.pool.acquire().await?;
        sqlx::raw_sql(MIGRATES).execute(&mut *connection).await?;
        sqlx::migrate!("migrations/server/postgres").run(&mut *connection).await?;
        // Its settings must not come to a unit.
        Ok(connection.close().await?)
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

/// Whether the server at the other end of a connection answers at once: asked before each use and after. sqlx's
/// own question has no end, and where a host vanished without a word the kernel waits a quarter of an hour for
/// its answer; so long the connection would keep its place among the few that there are.
async fn answers(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    match tokio::time::timeout(ANSWER_MAX, connection.ping()).await {
        Ok(answer) => answer.map(|()| true),
        // An error, so that it is not closed with words that nobody hears.
        Err(_elapsed) => Err(sqlx::Error::Protocol("PostgreSQL does not answer".to_owned())),
    }
}

/// Before a connection is used: whether it leads to the copy of the database that was served last, since
/// behind the same name there may be a promoted replica from one connection to the next. If it does not, the
/// server waits from now on; the alarm in the log follows when the identity is looked at the next time.
///
/// A replica that still replays is refused: it may be promoted under the connection, which would stay.
async fn look_which_copy(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let (is_replica, has_tables): (bool, bool) = sqlx::query_as(
        "SELECT pg_is_in_recovery(), \
         to_regclass('suspension') IS NOT NULL AND to_regclass('meta') IS NOT NULL",
    )
    .fetch_one(&mut *connection)
    .await?;
    if is_replica {
        return Err(sqlx::Error::Protocol("the database is a replica that replays".to_owned()));
    }
    if !has_tables {
        // It is being created, or was made before there was a suspension.
        return Ok(());
    }
    let known: Option<(String,)> = sqlx::query_as("SELECT value FROM meta WHERE name = $1")
        .bind(DATABASE_IDENTITY)
        .fetch_optional(&mut *connection)
        .await?;
    let Some((known,)) = known else { return Ok(()) };
    let found: Result<(String,), sqlx::Error> =
        sqlx::query_as(IDENTITY).fetch_one(&mut *connection).await;
    let found = match found {
        Ok((found,)) => found,
        // As `identity`: nothing is concluded where it may not be read.
        Err(sqlx::Error::Database(_)) => return Ok(()),
        Err(error) => return Err(error),
    };
    if found != known {
        sqlx::query(
            "INSERT INTO suspension (only_row, reason, since) \
             VALUES (1, $1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint) \
             ON CONFLICT (only_row) DO NOTHING",
        )
        .bind(other_copy(&found, &known))
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Serialisation failure and deadlock (SQLSTATE 40001, 40P01): the unit may be run again.
fn is_retryable(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .is_some_and(|code| code == "40001" || code == "40P01")
}
