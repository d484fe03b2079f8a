//! The server's database: one SQL source, mounted once for SQLite and once for PostgreSQL.
//!
//! `sqlite.rs` and `postgres.rs` each set `type Db` and a few words that differ, and mount the folder
//! `queries/` below them. Whatever is written there is compiled for both.

use crate::ports::store::{Store, StoreError};
use std::sync::Arc;

/// An SQL statement with a name, for errors and logs.
#[derive(Debug, Clone, Copy)]
struct Named {
    /// Unique.
    name: &'static str,
    /// The text.
    sql: &'static str,
}

/// Declares named statements and lists them in `ALL`, for the test that prepares them.
macro_rules! statements {
    ($($name:ident = $sql:expr;)+) => {
        $(const $name: crate::store::Named =
            crate::store::Named { name: stringify!($name), sql: $sql };)+
        #[cfg(test)]
        pub(super) const ALL: &[crate::store::Named] = &[$($name),+];
    };
}

pub mod postgres;
#[cfg(test)]
#[allow(
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]
mod prepared;
pub mod sqlite;

/// Whether the database may be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// It must be there: `serve` never creates a database by accident.
    Existing,
    /// It must not be there yet: `init` creates it.
    Create,
    /// It must be there, is not migrated, and nothing can be written: for commands beside a running
    /// server. Takes no lock, so that it never keeps a server from its file.
    Reading,
}

/// Opens the database at a URL: `sqlite:PATH` or `postgres://…`.
///
/// # Errors
/// When the scheme is unknown, the database is absent (or present, for `Create`), another server holds
/// the SQLite file, or a migration fails.
pub async fn open(url: &str, mode: OpenMode) -> Result<Arc<dyn Store>, StoreError> {
    match url.split_once(':').map(|(scheme, _)| scheme) {
        Some("sqlite") if mode == OpenMode::Reading => {
            Ok(Arc::new(sqlite::SqliteReader::open(url).await?))
        }
        Some("sqlite") => Ok(Arc::new(sqlite::SqliteStore::open(url, mode).await?)),
        Some("postgres" | "postgresql") => {
            Ok(Arc::new(postgres::PostgresStore::open(url, mode).await?))
        }
        _ => Err(StoreError::Unavailable(
            "[store] url must begin with `sqlite:` or `postgres://`".to_owned(),
        )),
    }
}

/// Set in `meta` by the creation; its absence means that this is not a database of ours.
const CREATED: &str = "created_by";

fn unavailable(error: &(dyn std::error::Error + 'static)) -> StoreError {
    StoreError::Unavailable(error.to_string())
}
