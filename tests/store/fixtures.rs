//! Databases to test on, and rows to put into them.

use crate::support::services::Postgres;
use alloy::primitives::{Address, B256};
use claviger::core::amount::Amount;
use claviger::core::id::{ChainId, ChainName, GroupName, HsmName, KeyId, RequestId};
use claviger::core::intent::{ChainRef, FeeAsk, Fees, TransactionIntent, TxType};
use claviger::core::key::{CkaId, NonceMode, PublicKey};
use claviger::core::principal::Principal;
use claviger::core::time::Timestamp;
use claviger::ports::store::{
    DecisionSummary, End, Lane, LaneKey, NewKey, NewTransaction, Store, TransactionRow, unit,
};
use claviger::store::{OpenMode, open};
use std::sync::Arc;
use tempfile::TempDir;
use uuid::Uuid;

/// Runs an expression on a unit and commits what it answers. What is in brackets is cloned into each run.
macro_rules! commit {
    ($store:expr, [$($kept:ident),*], |$unit:ident| $body:expr) => {
        end!($store, [$($kept),*], |$unit| claviger::ports::store::End::Commit($body))
    };
}

/// As `commit!`, but keeps nothing.
macro_rules! roll_back {
    ($store:expr, [$($kept:ident),*], |$unit:ident| $body:expr) => {
        end!($store, [$($kept),*], |$unit| claviger::ports::store::End::Rollback($body))
    };
}

/// As `commit!`, but the expression says how it ends.
macro_rules! end {
    ($store:expr, [$($kept:ident),*], |$unit:ident| $body:expr) => {{
        $(let $kept = $kept.clone();)*
        claviger::ports::store::unit($store.as_ref(), "test", move |$unit| {
            $(let $kept = $kept.clone();)*
            Box::pin(async move { Ok($body) })
        })
        .await
    }};
}

/// Reads beside the writer.
macro_rules! read {
    ($store:expr, [$($kept:ident),*], |$unit:ident| $body:expr) => {{
        $(let $kept = $kept.clone();)*
        claviger::ports::store::look($store.as_ref(), "test", move |$unit| {
            $(let $kept = $kept.clone();)*
            Box::pin(async move { Ok($body) })
        })
        .await
        .unwrap()
    }};
}

/// Makes a test of each function for each database.
macro_rules! on_both {
    ($($behaviour:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $behaviour() {
                let database = crate::fixtures::Database::sqlite().await;
                super::$behaviour(database.store.clone()).await;
            })+
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $behaviour() {
                let database = crate::fixtures::Database::postgres().await;
                super::$behaviour(database.store.clone()).await;
            })+
        }
    };
}

/// A new database of ours. A file goes with it.
pub struct Database {
    pub store: Arc<dyn Store>,
    pub url: String,
    pub _folder: Option<TempDir>,
}

impl Database {
    pub async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("claviger.db").display());
        let store = open(&url, OpenMode::Create).await.unwrap();
        Self { store, url, _folder: Some(folder) }
    }

    pub async fn postgres() -> Self {
        let url = Postgres::shared().await.create_database();
        let store = open(&url, OpenMode::Create).await.unwrap();
        Self { store, url, _folder: None }
    }
}

pub const CHAIN: ChainId = ChainId::new(31337);
pub const OTHER_CHAIN: ChainId = ChainId::new(1);

pub const fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

pub const fn request(n: u128) -> RequestId {
    RequestId::new(Uuid::from_u128(n))
}

pub const fn key_id(n: u128) -> KeyId {
    KeyId::new(Uuid::from_u128(n))
}

pub fn hash(n: u64) -> B256 {
    B256::left_padding_from(&n.to_be_bytes())
}

pub fn caller(name: &str) -> Principal {
    Principal { iss: "https://issuer.test".to_owned(), sub: name.to_owned() }
}

pub fn decision() -> DecisionSummary {
    DecisionSummary {
        outcome: "allow".to_owned(),
        bundle: hash(99),
        grants: vec!["payouts".to_owned(), "fees".to_owned()],
    }
}

/// A point of the right shape; the store does not ask whether it lies on the curve.
pub fn public_key(n: u8) -> PublicKey {
    let mut point = [n; 65];
    point[0] = 4;
    PublicKey::from_sec1(&point).unwrap()
}

pub fn new_key(n: u8) -> NewKey {
    NewKey {
        id: key_id(u128::from(n)),
        hsm: HsmName::default(),
        cka_id: CkaId::new(vec![n; 16]),
        label: format!("key {n}"),
        group: Some(GroupName::new("hot")),
        mode: NonceMode::Managed,
        principal: caller("admin"),
        at: at(i64::from(n)),
    }
}

/// Stores an active key; answers its address.
pub async fn add_key(store: &Arc<dyn Store>, n: u8) -> Address {
    let (key, point) = (new_key(n), public_key(n));
    commit!(store, [key, point], |unit| {
        assert!(unit.begin_key(&key).await?);
        assert!(unit.pin_key(key.id, &point).await?);
    })
    .unwrap();
    point.address()
}

/// A transaction of key `key`, as accepted.
pub fn transaction(n: u128, key: u8) -> NewTransaction {
    let fee_cap = Fees { max_fee: 30, max_priority_fee: 2 };
    NewTransaction {
        id: request(n),
        principal: caller("backend"),
        intent: TransactionIntent {
            chain: ChainRef { name: ChainName::new("local"), id: CHAIN },
            tx_type: TxType::Eip1559,
            to: Some(Address::repeat_byte(0xaa)),
            value: Amount::from(7_u64),
            data: vec![1, 2, 3].into(),
            gas: 21_000,
            fees: FeeAsk::UpTo(fee_cap),
            access_list: vec![],
            nonce: None,
            not_after: None,
            source: None,
        },
        fee_cap,
        signer: "group:hot".to_owned(),
        key: key_id(u128::from(key)),
        address: public_key(key).address(),
        decision: decision(),
        decision_json: "{}".to_owned(),
        metadata_json: "{}".to_owned(),
        at: at(1000),
    }
}

pub async fn insert(store: &Arc<dyn Store>, rows: Vec<NewTransaction>) {
    let rows = Arc::new(rows);
    commit!(store, [rows], |unit| {
        for row in rows.iter() {
            unit.insert_transaction(row).await?;
        }
    })
    .unwrap();
}

pub async fn stored(store: &Arc<dyn Store>, id: RequestId) -> TransactionRow {
    read!(store, [], |unit| unit.transaction(id).await?).unwrap()
}

pub fn lane_key(key: u8) -> LaneKey {
    LaneKey {
        chain: CHAIN,
        address: public_key(key).address(),
        key: key_id(u128::from(key)),
        mode: NonceMode::Managed,
    }
}

/// The lane of a key, opened if need be.
pub async fn lane(store: &Arc<dyn Store>, key: u8) -> Lane {
    let open = lane_key(key);
    commit!(store, [open], |unit| unit.lock_lane(&open).await?).unwrap()
}

/// Gives a queued transaction its lane's next nonce.
pub async fn submit(store: &Arc<dyn Store>, id: RequestId, key: u8) -> u64 {
    let open = lane_key(key);
    let given = unit(&**store, "submit", move |unit| {
        let open = open.clone();
        Box::pin(async move {
            let lane = unit.lock_lane(&open).await?;
            let row = unit.transaction(id).await?.unwrap();
            Ok(End::Commit(unit.take_nonce(&lane, &row, at(2000)).await?))
        })
    });
    given.await.unwrap().unwrap()
}

/// Opens all connections, so that what follows at once is truly at once.
pub async fn crowd(store: &Arc<dyn Store>) {
    let pings = futures::future::join_all((0..8).map(|_| store.ping()));
    assert!(pings.await.iter().all(Result::is_ok));
}
