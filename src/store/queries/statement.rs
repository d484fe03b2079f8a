//! Running named statements inside one transaction.

use super::{Db, is_retryable};
use crate::ports::store::{End, Erased, StoreError, Work};
use crate::store::Named;
use sqlx::FromRow;
use sqlx::query::Query;

type Row = <Db as sqlx::Database>::Row;
type Arguments = <Db as sqlx::Database>::Arguments;

/// What may be bound: the portable types and their absence.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Int(Option<i64>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(Some(value))
    }
}

impl From<Option<i64>> for Value {
    fn from(value: Option<i64>) -> Self {
        Self::Int(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(Some(value.to_owned()))
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(Some(value))
    }
}

impl From<Option<String>> for Value {
    fn from(value: Option<String>) -> Self {
        Self::Text(value)
    }
}

impl From<&[u8]> for Value {
    fn from(value: &[u8]) -> Self {
        Self::Bytes(Some(value.to_vec()))
    }
}

impl From<Option<Vec<u8>>> for Value {
    fn from(value: Option<Vec<u8>>) -> Self {
        Self::Bytes(value)
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
/// closure did about it: PostgreSQL would answer `Ok` with nothing stored, SQLite would store the rest.
#[derive(Debug)]
pub(in super::super) struct Tx {
    inner: sqlx::Transaction<'static, Db>,
    unit: &'static str,
    first_error: Option<StoreError>,
}

impl Tx {
    /// Wraps a transaction that was just begun.
    pub(in super::super) const fn new(
        inner: sqlx::Transaction<'static, Db>,
        unit: &'static str,
    ) -> Self {
        Self { inner, unit, first_error: None }
    }

    /// Runs the closure, then commits or rolls back as it says.
    pub(in super::super) async fn finish(mut self, work: Work) -> Result<End<Erased>, StoreError> {
        let answer = work(&mut self).await;
        if let Some(error) = self.first_error.take() {
            // Nothing is stored whatever the rollback answers; the first error is what is told.
            let _ = self.inner.rollback().await;
            return Err(error);
        }
        match answer {
            Ok(End::Commit(value)) => {
                self.commit().await?;
                Ok(End::Commit(value))
            }
            other => {
                let _ = self.inner.rollback().await;
                other
            }
        }
    }

    /// Commits, for a caller that has met no error. Dropped instead, it keeps nothing.
    pub(super) async fn commit(self) -> Result<(), StoreError> {
        self.inner.commit().await.map_err(|e| told("commit", self.unit, &e))
    }

    /// Runs the closure and keeps nothing.
    pub(in super::super) async fn peek(mut self, work: Work) -> Result<End<Erased>, StoreError> {
        let answer = work(&mut self).await;
        let _ = self.inner.rollback().await;
        self.first_error.map_or(answer, Err)
    }

    /// Runs a statement; answers how many rows it touched.
    pub(super) async fn execute(
        &mut self,
        statement: Named,
        values: Vec<Value>,
    ) -> Result<u64, StoreError> {
        let answer = bound(statement, values).execute(&mut *self.inner).await;
        self.checked(statement, answer.map(|done| done.rows_affected()))
    }

    /// All rows of a statement.
    pub(super) async fn all<T>(
        &mut self,
        statement: Named,
        values: Vec<Value>,
    ) -> Result<Vec<T>, StoreError>
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
    ) -> Result<Option<T>, StoreError>
    where
        T: for<'r> FromRow<'r, Row> + Send + Unpin,
    {
        let answer = bound(statement, values).fetch_optional(&mut *self.inner).await;
        let answer = answer.and_then(|row| row.as_ref().map(T::from_row).transpose());
        self.checked(statement, answer)
    }

    /// An error that is not the database's: the unit can then not be committed either.
    pub(super) fn corrupt(&mut self, what: impl Into<String>) -> StoreError {
        let error = StoreError::Corrupt(what.into());
        self.keep(&error);
        error
    }

    /// Keeps the error of an operation, if it is one.
    pub(super) fn kept<T>(&mut self, answer: Result<T, StoreError>) -> Result<T, StoreError> {
        answer.inspect_err(|error| self.keep(error))
    }

    fn keep(&mut self, error: &StoreError) {
        self.first_error.get_or_insert_with(|| error.clone());
    }

    fn checked<T>(
        &mut self,
        statement: Named,
        answer: Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        answer.map_err(|error| {
            let error = told(statement.name, self.unit, &error);
            self.keep(&error);
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

fn told(statement: &str, unit: &str, error: &sqlx::Error) -> StoreError {
    if is_retryable(error) {
        return StoreError::Contended;
    }
    StoreError::Unavailable(format!("{unit}/{statement}: {error}"))
}
