//! All SQL, once. Compiled under `sqlite` and under `postgres`, where `Db` and `locked!` differ.
//!
//! The portable subset: i64, text and bytes; amounts as 32 bytes; `RETURNING`, `ON CONFLICT`; arithmetic
//! on amounts in Rust. Every statement has a name, and a test prepares them all on both databases.

mod anchors;
mod approvals;
mod attempts;
mod audit;
mod buckets;
mod bundles;
mod ceremonies;
mod column;
mod consumers;
mod exposures;
mod keys;
mod lanes;
mod leases;
mod many_keys;
mod outbox;
mod reconcile;
mod requests;
mod rows;
mod signatures;
mod sources;
mod spend;
mod statement;
mod unit;
mod waiting;
mod waits;

pub(super) use statement::Tx;

use super::{CREATED, Db, is_retryable};
use crate::ports::store::{Store, StoreError, look};

/// Every statement, for the test that prepares them.
#[cfg(test)]
pub(in super::super) fn all_statements() -> Vec<crate::store::Named> {
    [
        anchors::ALL,
        approvals::ALL,
        attempts::ALL,
        audit::ALL,
        buckets::ALL,
        bundles::ALL,
        ceremonies::ALL,
        consumers::ALL,
        exposures::ALL,
        keys::ALL,
        lanes::ALL,
        leases::ALL,
        many_keys::ALL,
        outbox::ALL,
        reconcile::ALL,
        requests::ALL,
        signatures::ALL,
        sources::ALL,
        spend::ALL,
        waiting::ALL,
        waits::ALL,
    ]
    .concat()
}

/// A database of ours says so in `meta`.
pub(super) async fn check_created(store: &dyn Store) -> Result<(), StoreError> {
    let found =
        look(store, "check_created", |unit| Box::pin(async move { unit.meta(CREATED).await }))
            .await;
    match found {
        Ok(Some(_)) => Ok(()),
        Ok(None) | Err(_) => Err(StoreError::Unavailable(
            "the database was not set up by `claviger init`".to_owned(),
        )),
    }
}

/// Says in `meta` that this is a database of ours. Of two that set it up at once, one is refused.
pub(super) async fn mark_created(mut tx: Tx) -> Result<(), StoreError> {
    if requests::set_meta_once(&mut tx, CREATED, env!("CARGO_PKG_VERSION")).await? {
        tx.commit().await
    } else {
        Err(StoreError::Unavailable("the database was set up before".to_owned()))
    }
}

/// The cheapest question.
pub(super) async fn ping(store: &dyn Store) -> Result<(), StoreError> {
    look(store, "ping", |unit| Box::pin(async move { unit.meta(CREATED).await })).await.map(|_| ())
}
