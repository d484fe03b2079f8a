//! Running named statements inside one transaction.

use super::super::{Db, is_retryable};
use crate::core::chain_view::Place;
use crate::ports::watch_store::WatchStoreError;
use crate::watch::store::Named;
use alloy::primitives::B256;
use sqlx::FromRow;
use sqlx::query::Query;
use std::collections::BTreeMap;

type Row = <Db as sqlx::Database>::Row;
type Arguments = <Db as sqlx::Database>::Arguments;

/// What may be bound: the portable types, never null.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Int(i64),
    Text(String),
    Bytes(Vec<u8>),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<&String> for Value {
    fn from(value: &String) -> Self {
        Self::Text(value.clone())
    }
}

impl From<B256> for Value {
    fn from(value: B256) -> Self {
        Self::Bytes(value.to_vec())
    }
}

/// The values of a statement, in the order of its parameters.
macro_rules! values {
    ($($value:expr),* $(,)?) => {
        vec![$(super::statement::Value::from($value)),*]
    };
}
pub(super) use values;

/// One open transaction. The first error is kept; a unit that met one cannot be committed, whatever its
/// code did about it: PostgreSQL would answer `Ok` with nothing stored, SQLite would store the rest.
#[derive(Debug)]
pub(super) struct Tx {
    inner: sqlx::Transaction<'static, Db>,
    unit: &'static str,
    first_error: Option<WatchStoreError>,
    woken: BTreeMap<String, i64>,
}

impl Tx {
    pub(super) const fn new(inner: sqlx::Transaction<'static, Db>, unit: &'static str) -> Self {
        Self { inner, unit, first_error: None, woken: BTreeMap::new() }
    }

    /// Deliveries of a source became ready: its lanes are woken by the commit.
    pub(super) fn wake(&mut self, source: &str) {
        self.woken.entry(source.to_owned()).or_default();
    }

    /// An event of a source was told: it is counted, and its lanes are woken by the commit.
    pub(super) fn told(&mut self, source: &str) {
        let count = self.woken.entry(source.to_owned()).or_default();
        *count = count.saturating_add(1);
    }

    /// The sources whose lanes are to be woken, and how many events of each were told.
    pub(super) fn take_woken(&mut self) -> BTreeMap<String, i64> {
        std::mem::take(&mut self.woken)
    }

    /// Commits if all went well, rolls back otherwise.
    pub(super) async fn end<T>(
        mut self,
        answer: Result<T, WatchStoreError>,
    ) -> Result<T, WatchStoreError> {
        let answer = self.first_error.take().map_or(answer, Err);
        match answer {
            Ok(value) => {
                self.inner.commit().await.map_err(|error| told("commit", self.unit, &error))?;
                Ok(value)
            }
            Err(error) => {
                // Nothing is stored whatever the rollback answers.
                let _ = self.inner.rollback().await;
                Err(error)
            }
        }
    }

    /// Runs a statement; answers how many rows it touched.
    pub(super) async fn execute(
        &mut self,
        statement: Named,
        values: Vec<Value>,
    ) -> Result<u64, WatchStoreError> {
        let answer = bound(statement, values).execute(&mut *self.inner).await;
        self.checked(statement, answer.map(|done| done.rows_affected()))
    }

    /// All rows of a statement.
    pub(super) async fn all<T>(
        &mut self,
        statement: Named,
        values: Vec<Value>,
    ) -> Result<Vec<T>, WatchStoreError>
    where
        T: for<'r> FromRow<'r, Row> + Send + Unpin,
    {
        let answer = bound(statement, values).fetch_all(&mut *self.inner).await;
        let answer = answer.and_then(|rows| rows.iter().map(T::from_row).collect());
        self.checked(statement, answer)
    }

    /// The one row of a statement, if there is one.
    pub(super) async fn one<T>(
        &mut self,
        statement: Named,
        values: Vec<Value>,
    ) -> Result<Option<T>, WatchStoreError>
    where
        T: for<'r> FromRow<'r, Row> + Send + Unpin,
    {
        let answer = bound(statement, values).fetch_optional(&mut *self.inner).await;
        let answer = answer.and_then(|row| row.as_ref().map(T::from_row).transpose());
        self.checked(statement, answer)
    }

    fn checked<T>(
        &mut self,
        statement: Named,
        answer: Result<T, sqlx::Error>,
    ) -> Result<T, WatchStoreError> {
        answer.map_err(|error| {
            let error = told(statement.name, self.unit, &error);
            self.first_error.get_or_insert_with(|| error.clone());
            error
        })
    }
}

fn bound(statement: Named, values: Vec<Value>) -> Query<'static, Db, Arguments> {
    values.into_iter().fold(sqlx::query::<Db>(statement.sql), |query, value| match value {
        Value::Int(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
        Value::Bytes(value) => query.bind(value),
    })
}

fn told(statement: &str, unit: &str, error: &sqlx::Error) -> WatchStoreError {
    if is_retryable(error) {
        return WatchStoreError::Contended;
    }
    WatchStoreError::Unavailable(format!("{unit}/{statement}: {error}"))
}

/// A height as it is stored.
pub(super) fn stored(number: u64) -> Result<i64, WatchStoreError> {
    i64::try_from(number).map_err(|_| contradiction("a block number is out of range"))
}

/// A height as it was stored.
pub(super) fn height(number: i64) -> Result<u64, WatchStoreError> {
    u64::try_from(number).map_err(|_| contradiction("a stored number is negative"))
}

/// A hash as it was stored.
pub(super) fn hash(bytes: &[u8]) -> Result<B256, WatchStoreError> {
    B256::try_from(bytes).map_err(|_| contradiction("a stored hash has not 32 bytes"))
}

/// A place as it was stored.
pub(super) fn place(number: i64, bytes: &[u8]) -> Result<Place, WatchStoreError> {
    Ok(Place { number: height(number)?, hash: hash(bytes)? })
}

pub(super) fn contradiction(what: impl Into<String>) -> WatchStoreError {
    WatchStoreError::Contradiction(what.into())
}
