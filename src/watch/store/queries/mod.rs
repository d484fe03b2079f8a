//! All SQL of the watcher, once. Compiled under `sqlite` and under `postgres`, where `Db` and `Store`
//! differ. The portable subset: i64, text, bytes, no nulls; `RETURNING`, `ON CONFLICT`.

mod advance;
mod arrivals;
mod chains;
mod follow;
mod lead;
mod outbox;
mod second_read;
mod statement;
mod triggers;
mod upkeep;

use super::{CREATED, OpenMode, Store};
use crate::core::chain_view::Link;
use crate::core::time::Timestamp;
use crate::ports::watch_store::{
    Advance, Arrived, ChainPin, ChainState, Claimed, Ended, Lanes as _, Received, RollBack, Settle,
    SourceState, StandingEvent, Unreadable, WatchStatus, WatchStore, WatchStoreError,
};
use async_trait::async_trait;
use statement::Tx;

/// Every statement, for the test that prepares them.
#[cfg(test)]
pub(super) fn all_statements() -> Vec<crate::watch::store::Named> {
    [
        advance::ALL,
        arrivals::ALL,
        chains::ALL,
        follow::ALL,
        lead::ALL,
        outbox::ALL,
        second_read::ALL,
        triggers::ALL,
        upkeep::ALL,
    ]
    .concat()
}

/// Runs work in a transaction of this name, again if others were in its way.
macro_rules! unit {
    ($store:expr, $name:literal, |$tx:ident| $work:expr) => {{
        use $crate::ports::watch_store::WatchStoreError;
        for _ in 0..$crate::watch::store::RUNS_MAX {
            let answer = match $store.open_unit($name).await {
                Ok(mut open) => {
                    let $tx = &mut open;
                    let answer = $work.await;
                    $store.close_unit(open, answer).await
                }
                Err(error) => Err(error),
            };
            match answer {
                Err(WatchStoreError::Contended) => {}
                answer => return answer,
            }
        }
        Err(WatchStoreError::Contended)
    }};
}

/// Reads at one moment.
macro_rules! look {
    ($store:expr, $name:literal, |$tx:ident| $work:expr) => {{
        let mut open = $store.open_look($name).await?;
        let $tx = &mut open;
        let answer = $work.await;
        open.end(answer).await
    }};
}

use {look, unit};

impl Store {
    /// Begins a unit, in the term that this handle acts in.
    async fn open_unit(&self, name: &'static str) -> Result<Tx, WatchStoreError> {
        let mut open = Tx::new(self.begin().await?, name);
        match lead::still_leads(&mut open, self.shared.fence.as_ref()).await {
            Ok(()) => Ok(open),
            // Whoever comes next may have to wait for the lock otherwise.
            Err(error) => open.end(Err(error)).await,
        }
    }

    async fn close_unit<T>(
        &self,
        open: Tx,
        answer: Result<T, WatchStoreError>,
    ) -> Result<T, WatchStoreError> {
        lead::close(open, answer, &self.shared.bells).await
    }

    async fn open_look(&self, name: &'static str) -> Result<Tx, WatchStoreError> {
        Ok(Tx::new(self.begin_read().await?, name))
    }
}

/// Brings the schema up to date, and checks or sets the mark of a database of ours.
pub(super) async fn set_up(store: &Store, mode: OpenMode) -> Result<(), WatchStoreError> {
    match mode {
        OpenMode::Existing => {
            let marked = created(store).await.unwrap_or(false);
            if !marked {
                return Err(WatchStoreError::Unavailable(
                    "the database was not set up by `claviger-watcher init`".to_owned(),
                ));
            }
            store.migrate().await
        }
        OpenMode::Create => {
            store.migrate().await?;
            if mark(store).await? {
                return Ok(());
            }
            Err(WatchStoreError::Unavailable("the database was set up before".to_owned()))
        }
    }
}

async fn created(store: &Store) -> Result<bool, WatchStoreError> {
    look!(store, "created", |tx| chains::meta(tx, CREATED))
}

async fn mark(store: &Store) -> Result<bool, WatchStoreError> {
    unit!(store, "mark", |tx| chains::set_meta(tx, CREATED, env!("CARGO_PKG_VERSION")))
}

#[async_trait]
impl WatchStore for Store {
    async fn register(&self, pin: &ChainPin, anchor: Link) -> Result<(), WatchStoreError> {
        unit!(self, "register", |tx| chains::register(tx, pin, anchor))
    }

    async fn add_source(&self, chain: &str, source: &SourceState) -> Result<(), WatchStoreError> {
        unit!(self, "add_source", |tx| chains::add_source(tx, chain, source))
    }

    async fn load(&self, chain: &str) -> Result<Option<ChainState>, WatchStoreError> {
        look!(self, "load", |tx| chains::load(tx, chain))
    }

    async fn advance(&self, advance: &Advance) -> Result<(), WatchStoreError> {
        unit!(self, "advance", |tx| advance::advance(tx, advance))
    }

    async fn standing_above(
        &self,
        chain: &str,
        number: u64,
    ) -> Result<Vec<StandingEvent>, WatchStoreError> {
        look!(self, "standing_above", |tx| advance::standing_above(tx, chain, number))
    }

    async fn roll_back(&self, roll_back: &RollBack) -> Result<(), WatchStoreError> {
        unit!(self, "roll_back", |tx| advance::roll_back(tx, roll_back))
    }

    async fn settle(&self, settle: &Settle) -> Result<(), WatchStoreError> {
        unit!(self, "settle", |tx| advance::settle(tx, settle))
    }

    async fn set_halted(&self, chain: &str, why: Option<&str>) -> Result<(), WatchStoreError> {
        unit!(self, "set_halted", |tx| chains::set_halted(tx, chain, why.unwrap_or_default()))
    }

    async fn claim(
        &self,
        consumer: &str,
        source: &str,
        now: Timestamp,
        lease_ms: i64,
    ) -> Result<Option<Claimed>, WatchStoreError> {
        let until = now.plus_millis(lease_ms);
        let claims = self.claim_some(consumer, source, now, until, 1).await?;
        Ok(claims.claimed.into_iter().next())
    }

    async fn finish(
        &self,
        id: i64,
        attempt: i64,
        ended: &Ended,
        now: Timestamp,
    ) -> Result<bool, WatchStoreError> {
        unit!(self, "finish", |tx| outbox::finish(tx, id, attempt, ended, now))
    }

    async fn receive(
        &self,
        arrived: &Arrived,
        now: Timestamp,
    ) -> Result<Received, WatchStoreError> {
        unit!(self, "receive", |tx| arrivals::receive(tx, arrived, now))
    }

    async fn keep_unreadable(
        &self,
        message: &Unreadable,
        now: Timestamp,
    ) -> Result<bool, WatchStoreError> {
        unit!(self, "keep_unreadable", |tx| arrivals::keep_unreadable(tx, message, now))
    }

    async fn rewind(&self, source: &str, from_block: u64) -> Result<bool, WatchStoreError> {
        unit!(self, "rewind", |tx| chains::rewind(tx, source, from_block))
    }

    async fn unpark(&self, id: Option<i64>, now: Timestamp) -> Result<u64, WatchStoreError> {
        unit!(self, "unpark", |tx| outbox::unpark(tx, id.unwrap_or(0), now))
    }

    async fn status(&self) -> Result<WatchStatus, WatchStoreError> {
        look!(self, "status", |tx| outbox::status(tx))
    }
}

#[cfg(test)]
mod tests {
    /// The names are those of errors and logs.
    #[test]
    fn statements_have_names_of_their_own() {
        let names: std::collections::BTreeSet<_> =
            super::all_statements().iter().map(|statement| statement.name).collect();
        assert_eq!(names.len(), super::all_statements().len());
    }
}
