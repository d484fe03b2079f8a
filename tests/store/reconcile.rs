//! Suspension, orphans, and nonces that are taken from the chain.

use crate::fixtures::{
    CHAIN, OTHER_CHAIN, add_key, at, hash, insert, lane, public_key, request, stored, submit,
    transaction,
};
use alloy::primitives::Address;
use claviger::core::amount::Amount;
use claviger::core::tx::state::Status;
use claviger::ports::store::{
    DATABASE_IDENTITY, Orphan, Payment, StatusChange, Store, StoreError, Suspension, other_copy,
};
use claviger::store::{OpenMode, open};
use std::sync::Arc;

on_both!(
    the_first_reason_to_wait_stays_until_it_is_lifted,
    an_orphan_is_recorded_once_and_claimed_once,
    closed_orphans_are_nobodys,
    a_nonce_of_the_chain_is_given_once_to_a_queued_request_only,
    a_released_lane_goes_on_from_there_and_never_goes_back,
    managed_lanes_of_all_chains_are_told_with_their_next_nonces,
    all_that_waits_for_a_nonce_of_an_account_comes_in_its_order,
    leases_are_counted_until_they_end,
    only_open_orphans_that_pay_the_same_are_the_same,
    only_a_failed_request_gives_its_nonce_up,
);

async fn the_first_reason_to_wait_stays_until_it_is_lifted(store: Arc<dyn Store>) {
    assert_eq!(read!(store, [], |unit| unit.suspension().await?), None);
    let why = Suspension { reason: "restored".to_owned(), since: at(5) };
    let other = Suspension { reason: "other".to_owned(), since: at(6) };
    assert!(commit!(store, [why], |unit| unit.suspend(&why).await?).unwrap());
    assert!(!commit!(store, [other], |unit| unit.suspend(&other).await?).unwrap());
    assert_eq!(read!(store, [], |unit| unit.suspension().await?), Some(why));
    commit!(store, [], |unit| unit.lift_suspension().await?).unwrap();
    commit!(store, [], |unit| unit.lift_suspension().await?).unwrap();
    assert_eq!(read!(store, [], |unit| unit.suspension().await?), None);
}

fn orphan(n: u64, key: u8) -> Orphan {
    Orphan {
        chain: CHAIN,
        address: public_key(key).address(),
        nonce: n,
        hash: hash(n + 100),
        to: (n != 2).then(|| Address::repeat_byte(7)),
        value: Amount::from(n),
        data: vec![1, 2].into(),
        raw: (n != 3).then(|| vec![2, 3].into()),
        claimed_by: None,
    }
}

async fn orphans(store: &Arc<dyn Store>, only_open: bool) -> Vec<Orphan> {
    read!(store, [], |unit| unit.orphans(CHAIN, only_open).await?)
}

async fn put(store: &Arc<dyn Store>, orphan: Orphan, millis: i64) -> bool {
    commit!(store, [orphan], |unit| unit.insert_orphan(&orphan, at(millis)).await?).unwrap()
}

async fn an_orphan_is_recorded_once_and_claimed_once(store: Arc<dyn Store>) {
    for (n, millis) in [(3, 1), (2, 2), (1, 3)] {
        assert!(put(&store, orphan(n, 1), millis).await);
    }
    assert!(!put(&store, orphan(1, 1), 9).await, "the same place");
    assert!(!put(&store, Orphan { nonce: 9, ..orphan(1, 1) }, 9).await, "the same hash");
    assert_eq!(orphans(&store, false).await, [1, 2, 3].map(|n| orphan(n, 1)), "by nonce");
    assert_eq!(orphans(&store, true).await, [3, 2, 1].map(|n| orphan(n, 1)), "the oldest first");
    let claim = |n: u128| {
        let store = store.clone();
        async move {
            commit!(store, [], |unit| unit.claim_orphan(hash(102), request(n)).await?).unwrap()
        }
    };
    assert!(claim(1).await);
    assert!(!claim(2).await && !claim(1).await, "it is claimed");
    assert_eq!(orphans(&store, true).await, [3, 1].map(|n| orphan(n, 1)));
    let claimed = orphans(&store, false).await;
    assert_eq!(claimed[1].claimed_by, Some(request(1).to_string()));
    assert!(read!(store, [], |unit| unit.orphans(OTHER_CHAIN, false).await?).is_empty());
}

async fn closed_orphans_are_nobodys(store: Arc<dyn Store>) {
    for (n, key) in [(1, 1), (2, 1), (3, 2)] {
        assert!(put(&store, orphan(n, key), 1).await);
    }
    commit!(store, [], |unit| unit.claim_orphan(hash(101), request(1)).await?).unwrap();
    let account = public_key(1).address();
    let closed = commit!(store, [], |unit| unit.close_orphans(CHAIN, account).await?);
    assert_eq!(closed.unwrap(), 1, "what is claimed stays so");
    assert_eq!(orphans(&store, true).await, [orphan(3, 2)]);
    assert!(!commit!(store, [], |unit| unit.claim_orphan(hash(102), request(2)).await?).unwrap());
}

async fn a_nonce_of_the_chain_is_given_once_to_a_queued_request_only(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    lane(&store, 1).await;
    insert(&store, vec![transaction(1, 1), transaction(2, 1), transaction(3, 1)]).await;
    let rows = [stored(&store, request(1)).await, stored(&store, request(2)).await];
    let (first, second) = (rows[0].clone(), rows[1].clone());
    let give = commit!(store, [first], |unit| unit.adopt_nonce(&first, 7, at(9)).await?);
    assert!(give.unwrap());
    let given = stored(&store, request(1)).await;
    assert_eq!((given.status, given.nonce, given.version), (Status::Submitted, Some(7), 1));
    let again = commit!(store, [first], |unit| unit.adopt_nonce(&first, 8, at(9)).await?);
    assert!(!again.unwrap(), "it has one");
    let taken = commit!(store, [second], |unit| unit.adopt_nonce(&second, 7, at(9)).await?);
    assert!(taken.is_err(), "a nonce belongs to one request for ever");
    assert_eq!(submit(&store, request(3), 1).await, 0);
    let address = public_key(1).address();
    let nonces = read!(store, [], |unit| unit.given_nonces(CHAIN, address).await?);
    assert_eq!(nonces, [(0, request(3)), (7, request(1))]);
}

async fn a_released_lane_goes_on_from_there_and_never_goes_back(store: Arc<dyn Store>) {
    let address = add_key(&store, 1).await;
    lane(&store, 1).await;
    commit!(store, [], |unit| unit.halt_lane(CHAIN, address, "why").await?).unwrap();
    let halted = lane(&store, 1).await;
    commit!(store, [halted], |unit| unit.release_lane(&halted, 5).await?).unwrap();
    let released = lane(&store, 1).await;
    assert_eq!((released.next_nonce, released.halted.as_ref()), (5, None));
    assert!(released.version > halted.version, "who read it before has lost");
    let back = commit!(store, [released], |unit| unit.release_lane(&released, 4).await?);
    assert!(matches!(back, Err(StoreError::Corrupt(_))), "{back:?}");
    insert(&store, vec![transaction(1, 1)]).await;
    assert_eq!(submit(&store, request(1), 1).await, 5);
}

async fn managed_lanes_of_all_chains_are_told_with_their_next_nonces(store: Arc<dyn Store>) {
    use crate::fixtures::lane_key;
    use claviger::core::key::NonceMode;
    use claviger::ports::store::LaneKey;
    for key in [1, 2] {
        add_key(&store, key).await;
    }
    lane(&store, 1).await;
    let other = LaneKey { chain: OTHER_CHAIN, ..lane_key(1) };
    let external = LaneKey { mode: NonceMode::External, ..lane_key(2) };
    for open in [other, external] {
        commit!(store, [open], |unit| unit.lock_lane(&open).await?).unwrap();
    }
    insert(&store, vec![transaction(1, 1)]).await;
    submit(&store, request(1), 1).await;
    let address = public_key(1).address();
    let lanes = read!(store, [], |unit| unit.every_lane().await?);
    assert_eq!(lanes, [(OTHER_CHAIN, address, 0), (CHAIN, address, 1)]);
}

async fn all_that_waits_for_a_nonce_of_an_account_comes_in_its_order(store: Arc<dyn Store>) {
    let address = add_key(&store, 1).await;
    add_key(&store, 2).await;
    let rows = [(3, 1), (1, 1), (2, 2), (4, 1), (5, 1)];
    insert(&store, rows.map(|(n, key)| transaction(n, key)).to_vec()).await;
    submit(&store, request(1), 1).await;
    let queued = read!(store, [], |unit| unit.queued_of(CHAIN, address).await?);
    let ids: Vec<_> = queued.iter().map(|row| row.new.id).collect();
    assert_eq!(ids, [3, 4, 5].map(request));
    assert!(read!(store, [], |unit| unit.queued_of(OTHER_CHAIN, address).await?).is_empty());
}

async fn leases_are_counted_until_they_end(store: Arc<dyn Store>) {
    let holder = claviger::core::id::HolderId::new(uuid::Uuid::from_u128(1));
    for n in [1, 2] {
        let lane = (CHAIN, Address::repeat_byte(n));
        let until = at(10 * i64::from(n));
        commit!(store, [], |unit| unit.take_lease(lane, holder, at(1), until).await?).unwrap();
    }
    for (now, live) in [(1, 2), (9, 2), (10, 1), (19, 1), (20, 0)] {
        let found = read!(store, [], |unit| unit.live_leases(at(now)).await?);
        assert_eq!(found, live, "at {now}");
    }
}

async fn only_open_orphans_that_pay_the_same_are_the_same(store: Arc<dyn Store>) {
    let like = orphan(1, 1);
    let same = |nonce: u64| Orphan { nonce, hash: hash(nonce), ..like.clone() };
    let other_chain = Orphan { chain: OTHER_CHAIN, ..same(12) };
    for (orphan, millis) in [
        (same(2), 9),
        (Orphan { address: public_key(2).address(), ..same(3) }, 1),
        (Orphan { to: None, ..same(4) }, 1),
        (Orphan { to: Some(Address::repeat_byte(8)), ..same(5) }, 1),
        (Orphan { value: Amount::from(9_u64), ..same(6) }, 1),
        (Orphan { data: vec![1].into(), ..same(7) }, 1),
        (same(8), 1),
        (other_chain, 1),
    ] {
        assert!(put(&store, orphan, millis).await);
    }
    commit!(store, [], |unit| unit.claim_orphan(hash(8), request(1)).await?).unwrap();
    let Orphan { to, value, data, .. } = like.clone();
    let asked = Payment { chain: CHAIN, to, value, data };
    let created = Payment { to: None, ..asked.clone() };
    for (asked, nonces) in [(asked, &[3, 2][..]), (created, &[4])] {
        let found = read!(store, [asked], |unit| unit.same_orphans(&asked).await?);
        let found: Vec<u64> = found.iter().map(|orphan| orphan.nonce).collect();
        assert_eq!(found, nonces, "the oldest first");
    }
}

async fn only_a_failed_request_gives_its_nonce_up(store: Arc<dyn Store>) {
    let address = add_key(&store, 1).await;
    insert(&store, vec![transaction(1, 1), transaction(2, 1)]).await;
    submit(&store, request(1), 1).await;
    let give_up = || {
        let store = store.clone();
        async move { commit!(store, [], |unit| unit.give_up_nonce(request(1)).await?).unwrap() }
    };
    assert!(!give_up().await, "it is not over");
    let failed = StatusChange {
        id: request(1),
        version: 1,
        status: Status::Failed,
        mined: None,
        ending: None,
        failure: None,
        at: at(3),
    };
    assert!(commit!(store, [failed], |unit| unit.advance(&failed).await?).unwrap());
    assert!(give_up().await);
    assert!(!give_up().await, "it has none");
    assert_eq!(stored(&store, request(1)).await.nonce, None);
    let second = stored(&store, request(2)).await;
    let take = commit!(store, [second], |unit| unit.adopt_nonce(&second, 0, at(9)).await?);
    assert!(take.unwrap(), "another has it now");
    let given = read!(store, [], |unit| unit.given_nonces(CHAIN, address).await?);
    assert_eq!(given, [(0, request(2))]);
}

/// Behind the same name there may be another copy from one connection to the next.
#[tokio::test]
async fn a_connection_to_another_copy_of_postgres_has_the_server_wait_before_it_is_used() {
    let server = crate::fixtures::Database::postgres().await;
    let (store, url) = (server.store.clone(), server.url.clone());
    let found = store.identity().await.unwrap().unwrap();
    let remember = |copy: &str| {
        let (store, copy) = (store.clone(), copy.to_owned());
        async move {
            commit!(store, [copy], |unit| unit.set_meta(DATABASE_IDENTITY, &copy).await?).unwrap();
        }
    };
    let waits = || {
        let store = store.clone();
        async move { read!(store, [], |unit| unit.suspension().await?).map(|why| why.reason) }
    };
    remember(&found).await;
    open(&url, OpenMode::Existing).await.unwrap();
    assert_eq!(waits().await, None, "it is the same copy");
    remember("1/00000009").await;
    open(&url, OpenMode::Reading).await.unwrap();
    assert_eq!(waits().await, None, "who only reads changes nothing");
    let opened = open(&url, OpenMode::Existing).await.unwrap();
    assert_eq!(waits().await, Some(other_copy(&found, "1/00000009")));

    // Whoever looks next puts the alarm into the log, once.
    for _ in 0..2 {
        claviger::app::suspension::check_identity(&*opened, at(7)).await.unwrap();
    }
    let leaves = read!(store, [], |unit| unit.waiting_leaves(10).await?);
    let told = leaves.iter().filter(|leaf| {
        let text = String::from_utf8_lossy(&leaf.bytes);
        leaf.kind == "ALARM" && text.contains("another copy")
    });
    assert_eq!(told.count(), 1, "{leaves:?}");
}

#[tokio::test]
async fn postgres_says_which_copy_of_it_this_is_and_a_file_does_not() {
    let file = crate::fixtures::Database::sqlite().await;
    assert_eq!(file.store.identity().await.unwrap(), None);
    let server = crate::fixtures::Database::postgres().await;
    let copy = server.store.identity().await.unwrap().expect("the superuser may read it");
    let (system, timeline) = copy.split_once('/').unwrap();
    assert!(system.parse::<u64>().is_ok() && timeline == "00000001", "{copy}");
}
