//! Nonces: each given once, without a gap, whoever asks (I2, I3).

use crate::fixtures::{
    CHAIN, OTHER_CHAIN, add_key, at, insert, lane, lane_key, request, stored, submit, transaction,
};
use claviger::core::key::NonceMode;
use claviger::core::tx::state::Status;
use claviger::ports::store::{Filter, Lane, LaneKey, Store, StoreError};
use std::collections::BTreeMap;
use std::sync::Arc;

on_both!(
    eight_workers_give_forty_nonces_without_a_gap,
    eight_workers_that_lock_nothing_give_no_nonce_twice,
    a_nonce_moves_the_transaction_and_the_lane,
    a_lane_that_moved_on_gives_none,
    a_transaction_that_moved_on_leaves_no_gap,
    a_lane_of_external_nonces_gives_none,
    a_lane_gives_only_to_its_own_transactions,
    no_two_transactions_share_a_nonce,
    the_same_account_has_a_lane_on_each_chain,
);

async fn nonces(store: &Arc<dyn Store>) -> Vec<u64> {
    let all = Filter { limit: 1000, ..Filter::default() };
    let rows = read!(store, [all], |unit| unit.transactions(&all).await?);
    let by_seq: BTreeMap<i64, u64> =
        rows.iter().map(|row| (row.seq, row.nonce.expect("it was given one"))).collect();
    by_seq.into_values().collect()
}

async fn work(store: Arc<dyn Store>, locked: bool) {
    let open = lane_key(1);
    let address = open.address;
    loop {
        let busy = commit!(store, [open], |unit| {
            let early = if locked { None } else { unit.next_queued(CHAIN, address).await? };
            let lane = if locked {
                unit.lock_lane(&open).await?
            } else {
                unit.lane(CHAIN, address).await?.unwrap()
            };
            let row = if locked { unit.next_queued(CHAIN, address).await? } else { early };
            match row {
                // Committed whatever it answers: a caller that forgets to roll back makes no gap.
                Some(row) => Some(unit.take_nonce(&lane, &row, at(2000)).await?),
                None => None,
            }
        });
        match busy.unwrap() {
            Some(given) => assert!(given.is_some() || !locked, "nobody is faster under a lock"),
            None => return,
        }
    }
}

async fn race(store: &Arc<dyn Store>, locked: bool) {
    crate::fixtures::crowd(store).await;
    add_key(store, 1).await;
    lane(store, 1).await;
    insert(store, (1..=40).map(|n| transaction(n, 1)).collect()).await;
    let workers: Vec<_> = (0..8).map(|_| tokio::spawn(work(store.clone(), locked))).collect();
    for worker in workers {
        worker.await.unwrap();
    }
    assert_eq!(lane(store, 1).await.next_nonce, 40);
}

async fn eight_workers_give_forty_nonces_without_a_gap(store: Arc<dyn Store>) {
    race(&store, true).await;
    // In the order of acceptance, too.
    assert_eq!(nonces(&store).await, (0..40).collect::<Vec<_>>());
}

async fn eight_workers_that_lock_nothing_give_no_nonce_twice(store: Arc<dyn Store>) {
    race(&store, false).await;
    let mut given = nonces(&store).await;
    given.sort_unstable();
    assert_eq!(given, (0..40).collect::<Vec<_>>());
}

async fn take(
    store: &Arc<dyn Store>,
    lane: &Lane,
    n: u128,
    version: i64,
) -> Result<Option<u64>, StoreError> {
    let mut row = stored(store, request(n)).await;
    row.version = version;
    commit!(store, [lane, row], |unit| unit.take_nonce(&lane, &row, at(2000)).await?)
}

async fn a_nonce_moves_the_transaction_and_the_lane(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    insert(&store, vec![transaction(1, 1)]).await;
    let before = lane(&store, 1).await;
    assert_eq!(take(&store, &before, 1, 0).await.unwrap(), Some(0));
    let row = stored(&store, request(1)).await;
    assert_eq!((row.status, row.nonce, row.version), (Status::Submitted, Some(0), 1));
    assert_eq!(row.updated_at, at(2000));
    let after = lane(&store, 1).await;
    assert_eq!((after.next_nonce, after.version), (1, before.version + 1));
}

async fn a_lane_that_moved_on_gives_none(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    insert(&store, vec![transaction(1, 1), transaction(2, 1)]).await;
    let old = lane(&store, 1).await;
    submit(&store, request(1), 1).await;
    assert_eq!(take(&store, &old, 2, 0).await.unwrap(), None);
    assert_eq!(stored(&store, request(2)).await.nonce, None);
    assert_eq!(lane(&store, 1).await.next_nonce, 1);
}

async fn a_transaction_that_moved_on_leaves_no_gap(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    insert(&store, vec![transaction(1, 1), transaction(2, 1)]).await;
    submit(&store, request(1), 1).await;
    let now = lane(&store, 1).await;
    // It has a nonce already; and a version that is not its own.
    assert_eq!(take(&store, &now, 1, 1).await.unwrap(), None);
    assert_eq!(take(&store, &now, 2, 7).await.unwrap(), None);
    assert_eq!(lane(&store, 1).await, now);
    assert_eq!(take(&store, &now, 2, 0).await.unwrap(), Some(1));
}

async fn a_lane_of_external_nonces_gives_none(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    insert(&store, vec![transaction(1, 1)]).await;
    let open = LaneKey { mode: NonceMode::External, ..lane_key(1) };
    let lane = commit!(store, [open], |unit| unit.lock_lane(&open).await?).unwrap();
    assert_eq!(take(&store, &lane, 1, 0).await.unwrap(), None);
    // Nor to one who holds it for another kind.
    let lane = Lane { mode: NonceMode::Managed, ..lane };
    assert_eq!(take(&store, &lane, 1, 0).await.unwrap(), None);
}

async fn a_lane_gives_only_to_its_own_transactions(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    add_key(&store, 2).await;
    let mut elsewhere = transaction(2, 1);
    elsewhere.intent.chain.id = OTHER_CHAIN;
    insert(&store, vec![transaction(1, 2), elsewhere]).await;
    let lane = lane(&store, 1).await;
    for n in [1, 2] {
        assert_eq!(take(&store, &lane, n, 0).await.unwrap(), None);
        assert_eq!(stored(&store, request(n)).await.nonce, None);
    }
}

async fn no_two_transactions_share_a_nonce(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    insert(&store, vec![transaction(1, 1), transaction(2, 1)]).await;
    submit(&store, request(1), 1).await;
    let now = lane(&store, 1).await;
    let forged = Lane { next_nonce: 0, ..now.clone() };
    let given = take(&store, &forged, 2, 0).await;
    assert!(given.is_err(), "{given:?}");
    assert_eq!(stored(&store, request(2)).await.status, Status::Queued);
    assert_eq!(lane(&store, 1).await, now);
}

async fn the_same_account_has_a_lane_on_each_chain(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    let mut elsewhere = transaction(2, 1);
    elsewhere.intent.chain.id = OTHER_CHAIN;
    insert(&store, vec![transaction(1, 1), elsewhere]).await;
    submit(&store, request(1), 1).await;
    let open = LaneKey { chain: OTHER_CHAIN, ..lane_key(1) };
    let there = commit!(store, [open], |unit| unit.lock_lane(&open).await?).unwrap();
    assert_eq!(take(&store, &there, 2, 0).await.unwrap(), Some(0));
}
