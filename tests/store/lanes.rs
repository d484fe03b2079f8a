//! Lanes: opened once, in one mode for ever, stopped for good.

use crate::fixtures::{
    CHAIN, OTHER_CHAIN, add_key, insert, key_id, lane, lane_key, request, stored, submit,
    transaction,
};
use claviger::core::key::NonceMode;
use claviger::core::tx::state::Status;
use claviger::ports::store::{LaneKey, StatusChange, Store, StoreError};
use std::sync::Arc;

on_both!(
    a_lane_is_opened_once_and_never_changes_its_mode,
    of_ten_that_open_a_lane_at_once_all_get_the_same,
    a_lane_that_was_not_opened_is_not_there,
    a_halted_lane_stays_halted_and_says_why,
    lanes_of_a_chain_are_listed,
    work_of_a_lane_is_counted_and_ordered,
);

async fn a_lane_is_opened_once_and_never_changes_its_mode(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    add_key(&store, 2).await;
    let first = lane(&store, 1).await;
    assert_eq!((first.next_nonce, first.version, first.halted.as_ref()), (0, 0, None));
    assert_eq!((first.chain, first.address), (CHAIN, lane_key(1).address));
    assert_eq!((first.key, first.mode), (key_id(1), NonceMode::Managed));
    let other = LaneKey { mode: NonceMode::External, key: key_id(2), ..lane_key(1) };
    let again = commit!(store, [other], |unit| unit.lock_lane(&other).await?).unwrap();
    assert_eq!(again, first);
    // On another chain the same account may be its callers' to number.
    let elsewhere = LaneKey { chain: OTHER_CHAIN, mode: NonceMode::External, ..lane_key(1) };
    let there = commit!(store, [elsewhere], |unit| unit.lock_lane(&elsewhere).await?).unwrap();
    assert_eq!(there.mode, NonceMode::External);
}

async fn of_ten_that_open_a_lane_at_once_all_get_the_same(store: Arc<dyn Store>) {
    crate::fixtures::crowd(&store).await;
    add_key(&store, 1).await;
    let tasks = (0..10).map(|n| {
        let store = store.clone();
        tokio::spawn(async move {
            let mode = if n % 2 == 0 { NonceMode::Managed } else { NonceMode::External };
            let open = LaneKey { mode, ..lane_key(1) };
            commit!(store, [open], |unit| unit.lock_lane(&open).await?).unwrap()
        })
    });
    let mut lanes = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        lanes.push(task.await.unwrap());
    }
    assert!(lanes.iter().all(|lane| *lane == lanes[0]), "{lanes:?}");
}

async fn a_lane_that_was_not_opened_is_not_there(store: Arc<dyn Store>) {
    let address = add_key(&store, 1).await;
    assert_eq!(read!(store, [], |unit| unit.lane(CHAIN, address).await?), None);
    let halted = commit!(store, [], |unit| unit.halt_lane(CHAIN, address, "why").await?);
    assert!(matches!(halted, Err(StoreError::Corrupt(_))), "{halted:?}");
    // Nor is one without a key of ours.
    let open = lane_key(9);
    assert!(commit!(store, [open], |unit| unit.lock_lane(&open).await?).is_err());
}

async fn a_halted_lane_stays_halted_and_says_why(store: Arc<dyn Store>) {
    let address = add_key(&store, 1).await;
    insert(&store, vec![transaction(1, 1)]).await;
    let before = lane(&store, 1).await;
    commit!(store, [], |unit| unit.halt_lane(CHAIN, address, "why").await?).unwrap();
    let halted = lane(&store, 1).await;
    assert_eq!(halted.halted.as_deref(), Some("why"));
    let row = stored(&store, request(1)).await;
    for lane in [before, halted] {
        let given = commit!(store, [lane, row], |unit| {
            unit.take_nonce(&lane, &row, crate::fixtures::at(0)).await?
        });
        assert_eq!(given.unwrap(), None);
    }
    assert_eq!(stored(&store, request(1)).await, row);
    assert_eq!(lane(&store, 1).await.next_nonce, 0);
}

async fn lanes_of_a_chain_are_listed(store: Arc<dyn Store>) {
    for key in 1..=3 {
        add_key(&store, key).await;
    }
    let mut here = vec![lane(&store, 1).await, lane(&store, 2).await];
    let elsewhere = LaneKey { chain: OTHER_CHAIN, ..lane_key(3) };
    commit!(store, [elsewhere], |unit| unit.lock_lane(&elsewhere).await?).unwrap();
    here.sort_by_key(|lane| lane.address);
    assert_eq!(read!(store, [], |unit| unit.lanes(CHAIN).await?), here);
    let first = &here[0];
    let address = first.address;
    assert_eq!(read!(store, [], |unit| unit.lane(CHAIN, address).await?).as_ref(), Some(first));
}

async fn work_of_a_lane_is_counted_and_ordered(store: Arc<dyn Store>) {
    let (one, two) = (add_key(&store, 1).await, add_key(&store, 2).await);
    let rows = [(5, 1), (4, 1), (3, 1), (2, 1), (1, 2)];
    insert(&store, rows.map(|(n, key)| transaction(n, key)).to_vec()).await;
    let next = read!(store, [], |unit| unit.next_queued(CHAIN, one).await?).unwrap();
    assert_eq!(next.new.id, request(5), "who was accepted first");
    let mut waiting = vec![one, two];
    waiting.sort();
    assert_eq!(read!(store, [], |unit| unit.busy_accounts(CHAIN).await?), waiting);
    for n in [5, 4, 3] {
        submit(&store, request(n), 1).await;
    }
    let ended = StatusChange {
        id: request(4),
        version: 1,
        status: Status::Finalized,
        mined: None,
        ending: None,
        failure: None,
        at: crate::fixtures::at(0),
    };
    commit!(store, [ended], |unit| unit.advance(&ended).await?).unwrap();
    assert_eq!(read!(store, [], |unit| unit.in_flight(CHAIN, one).await?), 2);
    assert_eq!(read!(store, [], |unit| unit.in_flight(CHAIN, two).await?), 0);
    assert_eq!(read!(store, [], |unit| unit.in_flight(OTHER_CHAIN, one).await?), 0);
    let loads = read!(store, [], |unit| unit.loads(CHAIN).await?);
    let loads: Vec<_> = loads.iter().map(|lane| (lane.address, lane.flying, lane.queued)).collect();
    assert_eq!(loads, [(one, 2, 1)], "the other has no lane yet");
    assert!(read!(store, [], |unit| unit.loads(OTHER_CHAIN).await?).is_empty());
    let owed = read!(store, [], |unit| unit.owed(CHAIN, one).await?);
    let owed: Vec<_> = owed.iter().map(|row| row.nonce).collect();
    assert_eq!(owed, [0, 2]);
    let next = read!(store, [], |unit| unit.next_queued(CHAIN, one).await?).unwrap();
    assert_eq!(next.new.id, request(2));
    submit(&store, request(2), 1).await;
    assert_eq!(read!(store, [], |unit| unit.next_queued(CHAIN, one).await?), None);
    assert_eq!(read!(store, [], |unit| unit.busy_accounts(CHAIN).await?), waiting);
}
