//! Who does what, and the fence before every unit.

use super::super::Store;
use super::statement::{Tx, values};
use super::{look, unit};
use crate::core::time::Timestamp;
use crate::ports::watch_store::{Duty, Fence, Lead, WatchStore, WatchStoreError};
use crate::watch::store::{Bells, Shared};
use async_trait::async_trait;
use std::sync::Arc;

statements! {
    DUTIES = "SELECT name, holder, token, held_since, ends_at FROM duty ORDER BY name";
    RENEW = "UPDATE duty SET ends_at = $2 WHERE holder = $1 AND ends_at > 0";
    // A lease that ends later than any does was taken by a clock that is ahead: it is as good as over.
    TAKE_DUTY = "INSERT INTO duty (name, holder, token, held_since, ends_at) VALUES ($1, $2, 1, $3, $4) \
                 ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, token = duty.token + 1, \
                 held_since = excluded.held_since, ends_at = excluded.ends_at \
                 WHERE duty.ends_at <= $3 OR duty.ends_at > $5 RETURNING token";
    GIVE_BACK = "UPDATE duty SET ends_at = 0 WHERE holder = $1 AND ends_at > 0";
    // It locks the row: until this unit has ended, nobody takes the duty. Its holder can renew it.
    STILL_LEADS = super::super::STILL_LEADS;
    TOLD_MORE = "UPDATE progress SET told = told + $2 WHERE source = $1";
}

/// No lease is longer than five minutes, and clocks differ by less than one.
const SANE_MS: i64 = 360_000;

/// Compares the term that a unit acts in with the one that is.
pub(super) async fn still_leads(tx: &mut Tx, fence: Option<&Fence>) -> Result<(), WatchStoreError> {
    let Some(Fence { duty, token }) = fence else { return Ok(()) };
    match tx.one::<(i64,)>(STILL_LEADS, values![duty, *token]).await? {
        Some(_) => Ok(()),
        None => {
            metrics::counter!("claviger_watcher_fenced_writes_total").increment(1);
            Err(WatchStoreError::NotLeading(duty.clone()))
        }
    }
}

/// Counts what was told, commits, and wakes whom the commit concerns.
pub(super) async fn close<T>(
    mut tx: Tx,
    answer: Result<T, WatchStoreError>,
    bells: &Bells,
) -> Result<T, WatchStoreError> {
    let woken = tx.take_woken();
    if answer.is_ok() {
        for (source, count) in woken.iter().filter(|(_, count)| **count > 0) {
            // An error is kept by the transaction, which then does not commit.
            let _ = tx.execute(TOLD_MORE, values![source, *count]).await;
        }
    }
    let answer = tx.end(answer).await;
    if answer.is_ok() {
        woken.keys().for_each(|source| bells.ring(source));
    }
    answer
}

pub(super) async fn duties(tx: &mut Tx) -> Result<Vec<Duty>, WatchStoreError> {
    let rows = tx.all::<(String, String, i64, i64, i64)>(DUTIES, Vec::new()).await?;
    let duty = |(name, holder, token, since, until)| Duty {
        name,
        holder,
        token,
        since: Timestamp::from_millis(since),
        until: Timestamp::from_millis(until),
    };
    Ok(rows.into_iter().map(duty).collect())
}

async fn renew(tx: &mut Tx, holder: &str, until: Timestamp) -> Result<Vec<Duty>, WatchStoreError> {
    tx.execute(RENEW, values![holder, until.millis()]).await?;
    duties(tx).await
}

async fn take(
    tx: &mut Tx,
    duty: &str,
    holder: &str,
    now: Timestamp,
    until: Timestamp,
) -> Result<Option<i64>, WatchStoreError> {
    let sane = now.plus_millis(SANE_MS).millis();
    let row = values![duty, holder, now.millis(), until.millis(), sane];
    Ok(tx.one::<(i64,)>(TAKE_DUTY, row).await?.map(|(token,)| token))
}

async fn give_back(tx: &mut Tx, holder: &str) -> Result<(), WatchStoreError> {
    tx.execute(GIVE_BACK, values![holder]).await.map(|_| ())
}

#[async_trait]
impl Lead for Store {
    async fn duties(&self) -> Result<Vec<Duty>, WatchStoreError> {
        look!(self, "duties", |tx| duties(tx))
    }

    async fn renew(&self, holder: &str, until: Timestamp) -> Result<Vec<Duty>, WatchStoreError> {
        unit!(self, "renew", |tx| renew(tx, holder, until))
    }

    async fn take(
        &self,
        duty: &str,
        holder: &str,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Option<i64>, WatchStoreError> {
        unit!(self, "take_duty", |tx| take(tx, duty, holder, now, until))
    }

    async fn give_back(&self, holder: &str) -> Result<(), WatchStoreError> {
        unit!(self, "give_back", |tx| give_back(tx, holder))
    }

    fn under(&self, fence: Fence) -> Arc<dyn WatchStore> {
        let shared = Shared { fence: Some(fence), bells: Arc::clone(&self.shared.bells) };
        Arc::new(Self { pool: self.pool.clone(), shared })
    }
}
