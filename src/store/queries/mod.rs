//! All SQL, once. Compiled under `sqlite` and under `postgres`, where `Db` and `locked!` differ.
//!
//! The portable subset: i64, text and bytes; amounts as 32 bytes; `RETURNING`, `ON CONFLICT`; arithmetic
//! on amounts in Rust. Every statement has a name, and a test prepares them all on both databases.

mod attempts;
mod audit;
mod column;
mod keys;
mod lanes;
mod requests;
mod rows;
mod signatures;
mod spend;
mod statement;
mod unit;

pub(super) use statement::Tx;

use super::{CREATED, Db, OpenMode, is_retryable};
use crate::ports::store::{End, Store, StoreError, look, unit as run_unit};

/// Every statement, for the test that prepares them.
#[cfg(test)]
pub(super) fn all_statements() -> Vec<statement::Statement> {
    [attempts::ALL, audit::ALL, keys::ALL, lanes::ALL, requests::ALL, signatures::ALL, spend::ALL]
        .concat()
}

/// A database of ours says so in `meta`; a new one is told to.
pub(super) async fn check_created(store: &dyn Store, mode: OpenMode) -> Result<(), StoreError> {
    match mode {
        OpenMode::Existing => {
            let found = look(store, "check_created", |unit| {
                Box::pin(async move { unit.meta(CREATED).await })
            })
            .await;
            match found {
                Ok(Some(_)) => Ok(()),
                Ok(None) | Err(_) => Err(StoreError::Unavailable(
                    "the database was not set up by `claviger init`".to_owned(),
                )),
            }
        }
        OpenMode::Create => {
            let fresh = run_unit(store, "mark_created", |unit| {
                Box::pin(async move {
                    if unit.meta(CREATED).await?.is_some() {
                        return Ok(End::Rollback(false));
                    }
                    unit.set_meta(CREATED, env!("CARGO_PKG_VERSION")).await?;
                    Ok(End::Commit(true))
                })
            })
            .await?;
            if fresh {
                Ok(())
            } else {
                Err(StoreError::Unavailable("the database was set up before".to_owned()))
            }
        }
    }
}

/// The cheapest question.
pub(super) async fn ping(store: &dyn Store) -> Result<(), StoreError> {
    look(store, "ping", |unit| Box::pin(async move { unit.meta(CREATED).await })).await.map(|_| ())
}
