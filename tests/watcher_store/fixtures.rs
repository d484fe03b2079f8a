//! What the tests of the database share.

use crate::support::services::Postgres;
use alloy::primitives::B256;
use claviger::core::chain_view::{Link, Place};
use claviger::core::id::ChainId;
use claviger::core::time::Timestamp;
use claviger::ports::watch_store::{
    Advance, ChainPin, NewDelivery, NewEvent, Parked, ParkedFrom, PruneFrom, RollBack, Settle,
    SourceMove, SourceState, StandingEvent, WatchStore,
};
use claviger::watch::store::{OpenMode, open};
use std::path::Path;
use std::sync::Arc;

pub const CHAIN: &str = "local";
pub const SOURCE: &str = "charges";
pub const CONSUMER: &str = "trigger:charge";
pub const LEASE_MS: i64 = 1000;

pub fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

/// Block `number` of fork `fork`.
pub fn hash(number: u64, fork: u8) -> B256 {
    let mut bytes = [fork; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    B256::from(bytes)
}

pub fn place(number: u64, fork: u8) -> Place {
    Place { number, hash: hash(number, fork) }
}

pub fn link(number: u64, fork: u8, parent_fork: u8) -> Link {
    Link { number, hash: hash(number, fork), parent: hash(number - 1, parent_fork) }
}

pub fn event(number: u64, fork: u8, held: bool) -> NewEvent {
    NewEvent {
        source: SOURCE.to_owned(),
        event_id: format!("{CHAIN}:{}:0x00:0", hash(number, fork)),
        block: place(number, fork),
        body: format!("event of block {number}"),
        undecodable: None,
        deliveries: vec![NewDelivery { consumer: CONSUMER.to_owned(), held }],
    }
}

pub fn advance(from: Place, blocks: &[Link], events: Vec<NewEvent>) -> Advance {
    let to = blocks.last().map_or(from.number, |block| block.number);
    Advance {
        chain: CHAIN.to_owned(),
        expected: from,
        blocks: blocks.to_vec(),
        moves: vec![SourceMove { source: SOURCE.to_owned(), from: from.number + 1, to: to + 1 }],
        events,
        keep: 4,
        now: at(0),
    }
}

/// A store whose chain stands at block 10 of fork 0.
pub async fn ready(store: &dyn WatchStore) {
    store.register(&pin(), link(10, 0, 0)).await.unwrap();
    store.add_source(CHAIN, &source("Paid() of 0x00")).await.unwrap();
}

pub fn pin() -> ChainPin {
    ChainPin { name: CHAIN.to_owned(), chain_id: ChainId::new(31337), genesis: hash(0, 0) }
}

pub fn source(definition: &str) -> SourceState {
    let (name, definition) = (SOURCE.to_owned(), definition.to_owned());
    SourceState { name, definition, next_block: 11, to_block: None }
}

pub fn roll_back(from: Place, to: Place, retractions: Vec<StandingEvent>) -> RollBack {
    RollBack { chain: CHAIN.to_owned(), expected: from, ancestor: to, retractions, now: at(5) }
}

pub fn settle(cursor: Place, final_: Place, upto: u64) -> Settle {
    Settle {
        chain: CHAIN.to_owned(),
        expected: cursor,
        finalized: Some(final_),
        releases: vec![(SOURCE.to_owned(), upto)],
        now: at(0),
    }
}

pub async fn counts(store: &dyn WatchStore) -> Vec<(String, u64)> {
    let status = store.status().await.unwrap();
    status.outbox.into_iter().map(|row| (row.state, row.count)).collect()
}

/// All that is parked, read in the smallest pages.
pub async fn parked(store: &dyn WatchStore) -> Vec<Parked> {
    let (mut all, mut from) = (Vec::new(), Some(ParkedFrom::default()));
    while let Some(at) = from {
        let page = store.parked_page(at, 1).await.unwrap();
        all.extend(page.items);
        from = page.next;
    }
    all
}

/// Prunes all there is to prune.
pub async fn prune(store: &dyn WatchStore, before: i64) -> u64 {
    let (mut rows, mut from) = (0, Some(PruneFrom::default()));
    while let Some(at_row) = from {
        let pruned = store.prune(at_row, at(before)).await.unwrap();
        rows += pruned.rows;
        from = pruned.next;
    }
    rows
}

pub async fn sqlite(folder: &Path) -> Arc<dyn WatchStore> {
    let url = format!("sqlite:{}", folder.join("watcher.db").display());
    open(&url, OpenMode::Create).await.unwrap()
}

pub async fn postgres() -> Arc<dyn WatchStore> {
    open(&Postgres::shared().await.create_database(), OpenMode::Create).await.unwrap()
}

macro_rules! on_both {
    ($($behaviour:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $behaviour() {
                let folder = tempfile::tempdir().unwrap();
                let store = crate::fixtures::sqlite(folder.path()).await;
                super::$behaviour(store.as_ref()).await;
            })+
        }
        mod postgres {
            $(#[tokio::test]
            async fn $behaviour() {
                let store = crate::fixtures::postgres().await;
                super::$behaviour(store.as_ref()).await;
            })+
        }
    };
}
