//! The watcher's database: one SQL source, mounted once for SQLite and once for PostgreSQL, as the
//! server's store is. It shares no code with that one, since the watcher is built without it.

use crate::ports::watch_store::{Fence, WatchStore, WatchStoreError};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// An SQL statement with a name, for errors and logs.
#[derive(Debug, Clone, Copy)]
struct Named {
    name: &'static str,
    sql: &'static str,
}

/// Declares named statements and lists them in `ALL`, for the test that prepares them.
macro_rules! statements {
    ($($name:ident = $sql:expr;)+) => {
        $(const $name: crate::watch::store::Named =
            crate::watch::store::Named { name: stringify!($name), sql: $sql };)+
        #[cfg(test)]
        pub(super) const ALL: &[crate::watch::store::Named] = &[$($name),+];
    };
}

pub mod postgres;
pub mod sqlite;

/// Rung, by source, after commits that made deliveries ready.
#[derive(Debug, Default)]
struct Bells(Mutex<BTreeMap<String, watch::Sender<u64>>>);

impl Bells {
    fn of(&self, source: &str) -> watch::Receiver<u64> {
        let mut bells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bells.entry(source.to_owned()).or_default().subscribe()
    }

    fn ring(&self, source: &str) {
        let bells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bell) = bells.get(source) {
            bell.send_modify(|rung| *rung = rung.wrapping_add(1));
        }
    }
}

/// What the handles of one database in one process share, and the term that this one acts in.
#[derive(Debug, Clone, Default)]
struct Shared {
    fence: Option<Fence>,
    bells: Arc<Bells>,
}

/// Whether the database may be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// It must be there: `run` never creates a database by accident.
    Existing,
    /// It must not be there yet: `init` creates it.
    Create,
}

/// Set in `meta` by the creation; its absence means that this is not a database of ours.
const CREATED: &str = "watcher_created_by";

/// How often a unit is run again when others are in its way.
const RUNS_MAX: u32 = 8;

/// Opens the database at a URL: `sqlite:PATH` or `postgres://…`.
///
/// # Errors
/// When the scheme is unknown, the database is absent (or present, for `Create`), or a migration fails.
pub async fn open(url: &str, mode: OpenMode) -> Result<Arc<dyn WatchStore>, WatchStoreError> {
    match url.split_once(':').map(|(scheme, _)| scheme) {
        Some("sqlite") => Ok(Arc::new(sqlite::SqliteWatchStore::open(url, mode).await?)),
        Some("postgres" | "postgresql") => {
            Ok(Arc::new(postgres::PostgresWatchStore::open(url, mode).await?))
        }
        _ => Err(WatchStoreError::Unavailable(
            "[store] url must begin with `sqlite:` or `postgres://`".to_owned(),
        )),
    }
}

fn unavailable(error: &(dyn std::error::Error + 'static)) -> WatchStoreError {
    WatchStoreError::Unavailable(error.to_string())
}
