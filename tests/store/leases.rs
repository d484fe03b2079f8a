//! Leases: one holder a lane, a token that never comes back, and a fence that lets nobody late through.

use crate::attempts::attempt;
use crate::fixtures::{
    CHAIN, OTHER_CHAIN, add_key, at, crowd, insert, lane, lane_key, request, stored, submit,
    transaction,
};
use alloy::primitives::Address;
use claviger::core::id::{ChainId, HolderId};
use claviger::core::intent::Fees;
use claviger::core::time::Timestamp;
use claviger::core::tx::state::Status;
use claviger::ports::store::{
    End, Filter, Lane, LaneKey, Lease, LeaseRow, NewAttempt, Owed, StatusChange, Store,
    TransactionRow, unit,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::Notify;
use uuid::Uuid;

on_both!(
    a_lease_is_taken_renewed_and_taken_over_only_when_it_has_run_out,
    a_lease_that_was_given_back_is_free_and_its_token_is_not_given_again,
    where_a_process_is_alone_all_leases_end_at_its_start,
    who_seizes_a_lease_has_it_and_the_other_has_not,
    of_ten_that_want_a_free_lane_one_has_it,
    a_write_with_an_old_token_is_rolled_back_whatever_the_row_versions_say,
    a_write_with_an_old_row_version_changes_nothing_whatever_the_lease_says,
    while_leases_change_hands_no_write_is_made_under_an_older_token_than_the_one_before,
    processes_whose_clocks_differ_take_leases_too_early_and_still_one_of_them_writes,
    busy_accounts_are_those_with_work_of_any_kind,
    what_has_expired_is_found_wherever_it_stands,
    what_is_owed_is_priced_at_each_ones_newest_attempt,
    the_age_of_a_lane_is_that_of_its_oldest_unmined_work,
);

const fn holder(n: u128) -> HolderId {
    HolderId::new(Uuid::from_u128(n))
}

fn place() -> (ChainId, Address) {
    (CHAIN, lane_key(1).address)
}

async fn take(store: &Arc<dyn Store>, who: u128, now: i64, until: i64) -> Option<Lease> {
    let (lane, who, now, until) = (place(), holder(who), at(now), at(until));
    commit!(store, [lane], |unit| unit.take_lease(lane, who, now, until).await?).unwrap()
}

async fn seize(store: &Arc<dyn Store>, who: u128) -> Lease {
    let lane = place();
    commit!(store, [lane], |unit| unit.seize_lease(lane, holder(who), at(3_000)).await?).unwrap()
}

async fn holds(store: &Arc<dyn Store>, lease: Lease) -> bool {
    commit!(store, [lease], |unit| unit.holds_lease(&lease).await?).unwrap()
}

async fn kept(store: &Arc<dyn Store>) -> Option<LeaseRow> {
    let (chain, address) = place();
    read!(store, [], |unit| unit.lease(chain, address).await?)
}

async fn a_lease_is_taken_renewed_and_taken_over_only_when_it_has_run_out(store: Arc<dyn Store>) {
    assert_eq!(kept(&store).await, None);
    let first = take(&store, 1, 100, 200).await.unwrap();
    assert_eq!((first.chain, first.address), place());
    assert_eq!((first.holder, first.token), (holder(1), 1));
    assert_eq!(take(&store, 2, 199, 300).await, None, "it is held");
    assert_eq!(kept(&store).await, Some(LeaseRow { lease: first, until: at(200) }));
    // Its holder renews it whenever it likes, with the same token, also after it has run out.
    for (now, until) in [(150, 250), (900, 1000), (100, 200)] {
        assert_eq!(take(&store, 1, now, until).await, Some(first));
        assert_eq!(kept(&store).await, Some(LeaseRow { lease: first, until: at(until) }));
    }
    assert!(holds(&store, first).await);
    let second = take(&store, 2, 200, 300).await.unwrap();
    assert_eq!((second.holder, second.token), (holder(2), 2));
    assert!(!holds(&store, first).await && holds(&store, second).await);
    assert_eq!(take(&store, 1, 250, 400).await, None);
    let third = take(&store, 1, 300, 400).await.unwrap();
    assert_eq!(third.token, 3, "a holder that comes back has another token");
    assert!(!holds(&store, first).await, "and its old one is as old as it was");
    // Other lanes are other leases.
    let elsewhere = (OTHER_CHAIN, place().1);
    let (who, now, until) = (holder(2), at(0), at(1));
    let there =
        commit!(store, [elsewhere], |unit| unit.take_lease(elsewhere, who, now, until).await?);
    assert_eq!(there.unwrap().map(|lease| lease.token), Some(1));
    assert!(holds(&store, third).await);
}

async fn a_lease_that_was_given_back_is_free_and_its_token_is_not_given_again(
    store: Arc<dyn Store>,
) {
    let first = take(&store, 1, 0, 1000).await.unwrap();
    commit!(store, [], |unit| unit.release_leases(holder(2)).await?).unwrap();
    assert_eq!(take(&store, 2, 10, 1000).await, None, "another's release gives nothing back");
    let stale = Lease { token: 0, ..first };
    commit!(store, [stale], |unit| unit.release_lease(&stale).await?).unwrap();
    assert_eq!(take(&store, 2, 10, 1000).await, None, "nor does an older lease's");
    commit!(store, [], |unit| unit.release_leases(holder(1)).await?).unwrap();
    assert!(holds(&store, first).await, "nobody else has it yet");
    let second = take(&store, 2, 10, 1000).await.unwrap();
    assert_eq!(second.token, 2);
    assert!(!holds(&store, first).await);
    commit!(store, [second], |unit| unit.release_lease(&second).await?).unwrap();
    assert_eq!(take(&store, 1, 11, 1000).await.unwrap().token, 3);
}

async fn where_a_process_is_alone_all_leases_end_at_its_start(store: Arc<dyn Store>) {
    let first = take(&store, 1, 0, 1000).await.unwrap();
    commit!(store, [], |unit| unit.end_leases().await?).unwrap();
    assert_eq!(take(&store, 2, 10, 1000).await.unwrap().token, first.token + 1);
}

async fn who_seizes_a_lease_has_it_and_the_other_has_not(store: Arc<dyn Store>) {
    assert_eq!(seize(&store, 1).await.token, 1, "a lane without one, too");
    let first = take(&store, 1, 0, 1000).await.unwrap();
    let second = seize(&store, 2).await;
    assert_eq!((second.holder, second.token), (holder(2), 2));
    assert!(!holds(&store, first).await && holds(&store, second).await);
    assert_eq!(seize(&store, 2).await, second, "its own stays its own");
    assert_eq!(take(&store, 1, 999, 2000).await, None);
}

async fn of_ten_that_want_a_free_lane_one_has_it(store: Arc<dyn Store>) {
    crowd(&store).await;
    for round in 0..5 {
        let now = round * 100;
        let tasks: Vec<_> = (0..10)
            .map(|n| {
                let store = store.clone();
                tokio::spawn(async move { take(&store, 10 + n, now, now + 100).await })
            })
            .collect();
        let mut won = Vec::new();
        for task in tasks {
            won.extend(task.await.unwrap());
        }
        assert_eq!(won.len(), 1, "{won:?}");
        assert_eq!(kept(&store).await.unwrap().lease, won[0]);
    }
}

/// Gives the transaction its lane's next nonce under a lease, as the server does.
async fn give(store: &Arc<dyn Store>, lease: Lease, row: &TransactionRow) -> Option<Option<u64>> {
    let (open, row) = (lane_key(1), row.clone());
    let given = unit(&**store, "give", move |unit| {
        let (open, row) = (open.clone(), row.clone());
        Box::pin(async move {
            if !unit.holds_lease(&lease).await? {
                return Ok(End::Rollback(None));
            }
            // A worker has other things to do before it writes.
            for _ in 0..3 {
                unit.count_by_status().await?;
            }
            let lane: Lane = unit.lock_lane(&open).await?;
            Ok(End::Commit(Some(unit.take_nonce(&lane, &row, at(lease.token)).await?)))
        })
    });
    given.await.unwrap()
}

async fn a_write_with_an_old_token_is_rolled_back_whatever_the_row_versions_say(
    store: Arc<dyn Store>,
) {
    add_key(&store, 1).await;
    insert(&store, vec![transaction(1, 1)]).await;
    let before = lane(&store, 1).await;
    let old = take(&store, 1, 0, 10).await.unwrap();
    let new = take(&store, 2, 10, 20).await.unwrap();
    // Nobody has touched lane or row: their versions are as the late worker read them.
    let row = stored(&store, request(1)).await;
    assert_eq!(give(&store, old, &row).await, None);
    assert_eq!(stored(&store, request(1)).await, row);
    assert_eq!(lane(&store, 1).await, before);
    // A forged token is no better, nor the right one in another's name.
    assert_eq!(give(&store, Lease { token: 7, ..old }, &row).await, None);
    assert_eq!(give(&store, Lease { holder: holder(1), ..new }, &row).await, None);
    // Whatever else the unit did before it asked is undone with it.
    let change = StatusChange {
        id: request(1),
        version: row.version,
        status: Status::Expired,
        mined: None,
        ending: None,
        failure: None,
        at: at(5),
    };
    let fenced = end!(store, [change], |unit| {
        assert!(unit.advance(&change).await?, "the row's version would let it through");
        if unit.holds_lease(&old).await? { End::Commit(true) } else { End::Rollback(false) }
    });
    assert!(!fenced.unwrap());
    assert_eq!(stored(&store, request(1)).await, row);
    assert_eq!(give(&store, new, &row).await, Some(Some(0)));
}

async fn a_write_with_an_old_row_version_changes_nothing_whatever_the_lease_says(
    store: Arc<dyn Store>,
) {
    add_key(&store, 1).await;
    insert(&store, vec![transaction(1, 1)]).await;
    let lease = take(&store, 1, 0, 10).await.unwrap();
    let early = stored(&store, request(1)).await;
    assert_eq!(give(&store, lease, &early).await, Some(Some(0)));
    // Two tasks of one process, under one lease: the second has read an older row.
    assert_eq!(give(&store, lease, &early).await, Some(None));
    assert_eq!(stored(&store, request(1)).await.nonce, Some(0));
    assert_eq!(lane(&store, 1).await.next_nonce, 1);
}

async fn while_leases_change_hands_no_write_is_made_under_an_older_token_than_the_one_before(
    store: Arc<dyn Store>,
) {
    crowd(&store).await;
    add_key(&store, 1).await;
    lane(&store, 1).await;
    insert(&store, (7..=66).map(|n| transaction(n, 1)).collect()).await;
    let workers: Vec<_> = (1..=6)
        .map(|who| {
            let store = store.clone();
            tokio::spawn(async move {
                // Rows of its own, whose versions no other moves: the fence alone keeps it back.
                let (mut fenced, mut own) = (0, (1..=10).map(|n| n * 6 + who));
                let mut next = own.next();
                while let Some(n) = next {
                    let lease = seize(&store, who).await;
                    while let Some(n) = next.filter(|next| *next >= n) {
                        let row = stored(&store, request(n)).await;
                        let Some(given) = give(&store, lease, &row).await else {
                            fenced += 1;
                            break;
                        };
                        assert!(given.is_some(), "nobody else touches the row");
                        next = own.next();
                    }
                }
                fenced
            })
        })
        .collect();
    let mut fenced = 0;
    for worker in workers {
        fenced += worker.await.unwrap();
    }
    assert!(fenced > 0, "nobody was ever late");
    let all = Filter { limit: 1000, ..Filter::default() };
    let rows = read!(store, [all], |unit| unit.transactions(&all).await?);
    let tokens: BTreeMap<u64, Timestamp> =
        rows.iter().map(|row| (row.nonce.expect("given"), row.updated_at)).collect();
    assert_eq!(tokens.keys().copied().collect::<Vec<_>>(), (0..60).collect::<Vec<_>>());
    let tokens: Vec<i64> = tokens.into_values().map(Timestamp::millis).collect();
    assert!(tokens.is_sorted(), "{tokens:?}");
}

/// As a process that was stopped in the midst of a unit: it holds the lease's row and says nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_postgres_a_unit_that_stands_still_keeps_its_locks_for_ten_seconds_and_stores_nothing() {
    let database = crate::fixtures::Database::postgres().await;
    let store = database.store.clone();
    add_key(&store, 1).await;
    lane(&store, 1).await;
    let old = take(&store, 1, 0, 10).await.unwrap();
    let (entered, goes_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let standing = {
        let (store, entered, goes_on) = (store.clone(), entered.clone(), goes_on.clone());
        tokio::spawn(async move {
            commit!(store, [entered, goes_on], |unit| {
                assert!(unit.holds_lease(&old).await?);
                entered.notify_one();
                goes_on.notified().await;
                unit.halt_lane(CHAIN, old.address, "too late").await?;
            })
        })
    };
    entered.notified().await;
    let new = seize(&store, 2).await;
    goes_on.notify_one();
    let late = standing.await.unwrap();
    assert!(late.is_err(), "its transaction is gone: {late:?}");
    assert!(holds(&store, new).await && !holds(&store, old).await);
    assert_eq!(lane(&store, 1).await.halted, None);
}

async fn processes_whose_clocks_differ_take_leases_too_early_and_still_one_of_them_writes(
    store: Arc<dyn Store>,
) {
    add_key(&store, 1).await;
    insert(&store, (1..=20).map(|n| transaction(n, 1)).collect()).await;
    // The second's clock is two hours ahead: to it, each lease of the first has run out.
    let ahead = 7_200_000;
    let mut given = Vec::new();
    for round in 0..10_i64 {
        let now = round * 100;
        // A lease that ends later than any may is none: a clock that is wrong keeps nobody out.
        let slow = take(&store, 1, now, now + 15_000).await.unwrap();
        let fast = take(&store, 2, now + ahead, now + ahead + 15_000).await.unwrap();
        let row = read!(store, [], |unit| unit.next_queued(place().0, place().1).await?).unwrap();
        assert_eq!(give(&store, slow, &row).await, None, "late, by its own clock in time");
        given.push(give(&store, fast, &row).await.unwrap().unwrap());
    }
    assert_eq!(given, (0..10).collect::<Vec<_>>());
}

async fn busy_accounts_are_those_with_work_of_any_kind(store: Arc<dyn Store>) {
    let mut accounts = Vec::new();
    for key in 1..=5 {
        accounts.push(add_key(&store, key).await);
    }
    let mut elsewhere = transaction(9, 5);
    elsewhere.intent.chain.id = OTHER_CHAIN;
    insert(&store, [1, 2, 3, 4].map(|n| transaction(n, u8::try_from(n).unwrap())).to_vec()).await;
    insert(&store, vec![elsewhere]).await;
    // The first waits, the second flies, the third is mined, the fourth is over.
    for (n, key, status) in
        [(2, 2, None), (3, 3, Some(Status::Mined)), (4, 4, Some(Status::Finalized))]
    {
        submit(&store, request(n), key).await;
        if let Some(status) = status {
            let change = StatusChange {
                id: request(n),
                version: 1,
                status,
                mined: None,
                ending: None,
                failure: None,
                at: at(0),
            };
            assert!(commit!(store, [change], |unit| unit.advance(&change).await?).unwrap());
        }
    }
    let mut busy = accounts[..3].to_vec();
    busy.sort();
    assert_eq!(read!(store, [], |unit| unit.busy_accounts(CHAIN).await?), busy);
    assert_eq!(read!(store, [], |unit| unit.busy_accounts(OTHER_CHAIN).await?), [accounts[4]]);
    let mut open = Vec::new();
    for account in accounts {
        let rows = read!(store, [], |unit| unit.open_of(CHAIN, account).await?);
        open.push(rows.iter().map(|row| row.new.id).collect::<Vec<_>>());
    }
    assert_eq!(open, [vec![], vec![request(2)], vec![request(3)], vec![], vec![]]);
}

async fn what_has_expired_is_found_wherever_it_stands(store: Arc<dyn Store>) {
    let address = add_key(&store, 1).await;
    let rows = [(1, None), (2, Some(500)), (3, Some(300)), (4, Some(900)), (5, Some(300))];
    let rows = rows.map(|(n, limit)| {
        let mut row = transaction(n, 1);
        row.intent.not_after = limit.map(at);
        row
    });
    insert(&store, rows.to_vec()).await;
    submit(&store, request(5), 1).await;
    let expired = async |now: i64| {
        let row = read!(store, [], |unit| unit.next_expired(CHAIN, address, at(now)).await?);
        row.map(|row| row.new.id)
    };
    assert_eq!(expired(300).await, None, "at its end it may still be signed; 5 has its nonce");
    assert_eq!(expired(301).await, Some(request(3)));
    assert_eq!(expired(10_000).await, Some(request(3)), "the oldest deadline first");
    let other = Address::repeat_byte(1);
    assert_eq!(read!(store, [], |unit| unit.next_expired(CHAIN, other, at(10_000)).await?), None);
    assert_eq!(
        read!(store, [], |unit| unit.next_expired(OTHER_CHAIN, address, at(10_000)).await?),
        None
    );
}

async fn what_is_owed_is_priced_at_each_ones_newest_attempt(store: Arc<dyn Store>) {
    let address = add_key(&store, 1).await;
    insert(&store, [1, 2, 3].map(|n| transaction(n, 1)).to_vec()).await;
    for n in [1, 2] {
        submit(&store, request(n), 1).await;
    }
    let attempts = Arc::new([(1, 11_u128), (2, 22)].map(|(number, max_fee)| NewAttempt {
        fees: Fees { max_fee, max_priority_fee: 1 },
        ..attempt(1, number)
    }));
    commit!(store, [attempts], |unit| {
        for attempt in attempts.iter() {
            assert!(unit.insert_attempt(attempt).await?);
        }
    })
    .unwrap();
    let owed = read!(store, [], |unit| unit.owed(CHAIN, address).await?);
    let of = |nonce, max_fee| Owed { nonce, value: 7_u64.into(), gas: 21_000, max_fee };
    assert_eq!(owed, [of(0, 22), of(1, 30)], "one without an attempt counts with its cap");
}

async fn the_age_of_a_lane_is_that_of_its_oldest_unmined_work(store: Arc<dyn Store>) {
    let (one, two) = (add_key(&store, 1).await, add_key(&store, 2).await);
    let born = |n, key, millis| {
        let mut row = transaction(n, key);
        row.at = at(millis);
        row
    };
    insert(&store, vec![born(1, 1, 50), born(2, 1, 60), born(3, 1, 70)]).await;
    lane(&store, 2).await;
    submit(&store, request(1), 1).await;
    let first = take(&store, 4, 0, 99).await.unwrap();
    let ages = read!(store, [], |unit| unit.lane_ages(CHAIN).await?);
    let age = |address| ages.iter().find(|age| age.address == address).unwrap().clone();
    assert_eq!((age(one).flying, age(one).oldest), (1, Some(at(50))));
    assert_eq!(age(one).lease, Some((first.holder, at(99))));
    assert_eq!((age(two).flying, age(two).oldest, age(two).lease), (0, None, None));
    let loads = read!(store, [], |unit| unit.loads(CHAIN).await?);
    let load = loads.iter().find(|load| load.address == one).unwrap();
    assert_eq!((load.flying, load.queued, load.lease), (1, 2, age(one).lease));
    let open = LaneKey { chain: OTHER_CHAIN, ..lane_key(1) };
    commit!(store, [open], |unit| unit.lock_lane(&open).await?).unwrap();
    let there = read!(store, [], |unit| unit.lane_ages(OTHER_CHAIN).await?);
    assert_eq!(there[0].lease, None, "a lease is of one chain");
}
