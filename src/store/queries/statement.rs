//! Running named statements inside one transaction.

use super::{Db, is_retryable};
use crate::ports::store::{End, Erased, StoreError, Work};
use crate::store::Named;
use sqlx::FromRow;
use sqlx::query::Query;
use tokio::sync::OwnedMutexGuard;

type Connection = <Db as sqlx::Database>::Connection;
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

/// Where the statements of a unit run.
#[derive(Debug)]
enum On {
    /// In a transaction of its own, which ends with it.
    Own(sqlx::Transaction<'static, Db>),
    /// In a transaction that others use before and after it. Whoever lends it keeps or undoes the unit.
    Lent(OwnedMutexGuard<Connection>),
}

impl On {
    fn connection(&mut self) -> &mut Connection {
        match self {
            Self::Own(transaction) => &mut *transaction,
            Self::Lent(connection) => &mut *connection,
        }
    }

    async fn commit(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Own(transaction) => transaction.commit().await,
            Self::Lent(_) => Ok(()),
        }
    }

    /// Nothing is stored whatever this would answer.
    async fn rollback(self) {
        if let Self::Own(transaction) = self {
            let _ = transaction.rollback().await;
        }
    }
}

/// One open transaction. The first error is kept, and after it no statement runs; a unit that met one
/// cannot be committed, whatever its closure did about it: PostgreSQL would answer `Ok` with nothing
/// stored, SQLite would store the rest.
#[derive(Debug)]
pub(in super::super) struct Tx {
    on: On,
    unit: &'static str,
    first_error: Option<StoreError>,
}

impl Tx {
    /// Wraps a transaction that was just begun.
    pub(in super::super) const fn new(
        transaction: sqlx::Transaction<'static, Db>,
        unit: &'static str,
    ) -> Self {
        Self { on: On::Own(transaction), unit, first_error: None }
    }

    /// A unit in a transaction that is not its own: only if it ends in `End::Commit` may the lender keep
    /// what it did.
    #[allow(dead_code, reason = "only SQLite has one writer, and so groups")]
    pub(in super::super) const fn lent(
        connection: OwnedMutexGuard<Connection>,
        unit: &'static str,
    ) -> Self {
        Self { on: On::Lent(connection), unit, first_error: None }
    }

    /// Runs the closure, then commits or rolls back as it says.
    pub(in super::super) async fn finish(mut self, work: Work) -> Result<End<Erased>, StoreError> {
        let answer = work(&mut self).await;
        if let Some(error) = self.first_error.take() {
            self.on.rollback().await;
            return Err(error);
        }
        match answer {
            Ok(End::Commit(value)) => {
                self.commit().await?;
                Ok(End::Commit(value))
            }
            other => {
                self.on.rollback().await;
                other
            }
        }
    }

    /// Commits, for a caller that has met no error. Dropped instead, it keeps nothing.
    pub(super) async fn commit(self) -> Result<(), StoreError> {
        self.on.commit().await.map_err(|e| told("commit", self.unit, &e))
    }

    /// Runs the closure and keeps nothing.
    pub(in super::super) async fn peek(mut self, work: Work) -> Result<End<Erased>, StoreError> {
        let answer = work(&mut self).await;
        self.on.rollback().await;
        self.first_error.map_or(answer, Err)
    }

    /// Runs a statement; answers how many rows it touched.
    pub(super) async fn execute(
        &mut self,
        statement: Named,
        values: Vec<Value>,
    ) -> Result<u64, StoreError> {
        self.usable()?;
        let answer = bound(statement, values).execute(self.on.connection()).await;
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
        self.usable()?;
        let answer = bound(statement, values).fetch_all(self.on.connection()).await;
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
        self.usable()?;
        let answer = bound(statement, values).fetch_optional(self.on.connection()).await;
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

    /// After an error SQLite may have undone the transaction by itself, and would store at once whatever
    /// comes next.
    fn usable(&self) -> Result<(), StoreError> {
        self.first_error.clone().map_or(Ok(()), Err)
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
