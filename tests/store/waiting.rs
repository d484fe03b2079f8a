//! How many requests of a principal may wait, and in which order what waits is looked at.

use crate::approvals::{advance, waiting};
use crate::fixtures::{Database, add_key, at, caller, crowd, hash, request, stored, transaction};
use claviger::core::principal::Principal;
use claviger::core::tx::state::Status;
use claviger::ports::store::{DueRequest, End, Store, WaitingFilter, unit};
use claviger::store::{OpenMode, open};
use futures::future::join_all;
use std::sync::Arc;

on_both!(
    who_has_no_room_keeps_nobody_else_from_it_and_an_end_makes_some,
    the_log_is_told_once_within_a_time,
    what_was_put_off_comes_after_what_was_not_and_later,
    what_waits_is_listed_by_who_asked,
);

/// As the use case does it: asked and added in one unit. `false` if there was no room.
async fn wait(store: &Arc<dyn Store>, n: u128, who: Principal, most: i64) -> bool {
    let mut row = transaction(n, 1);
    row.principal = who;
    let work = Arc::new((row, waiting(n, 5000)));
    let added = unit(&**store, "wait", move |unit| {
        let work = Arc::clone(&work);
        Box::pin(async move {
            let (row, wait) = &*work;
            if !unit.has_room_to_wait(&row.principal.sub, most).await? {
                return Ok(End::Rollback(false));
            }
            unit.insert_waiting(row, Status::AwaitingApproval, wait).await?;
            Ok(End::Commit(true))
        })
    });
    added.await.unwrap()
}

async fn listed(store: &Arc<dyn Store>, sub: &str, before: Option<i64>, most: i64) -> Vec<i64> {
    let requester = Some(sub.to_owned());
    let filter = WaitingFilter { requester, before_seq: before, status: None };
    let rows = read!(store, [filter], |unit| unit.waiting_page(&filter, most).await?);
    rows.into_iter().map(|row| row.seq).collect()
}

async fn exactly_as_many_wait_as_have_room(stores: &[Arc<dyn Store>]) {
    const MOST: i64 = 7;
    for store in stores {
        crowd(store).await;
    }
    add_key(&stores[0], 1).await;
    let all = (0..20_u128).map(|n| {
        let store = &stores[usize::try_from(n).unwrap() % stores.len()];
        wait(store, n + 1, caller("ann"), MOST)
    });
    let added = join_all(all).await.into_iter().filter(|added| *added).count();
    assert_eq!(added, 7);
    assert_eq!(listed(&stores[0], "ann", None, 100).await.len(), 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_twenty_at_once_exactly_as_many_wait_as_have_room_on_sqlite() {
    let database = Database::sqlite().await;
    exactly_as_many_wait_as_have_room(std::slice::from_ref(&database.store)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_twenty_at_once_exactly_as_many_wait_as_have_room_for_two_pools_on_postgres() {
    let database = Database::postgres().await;
    let other = open(&database.url, OpenMode::Existing).await.unwrap();
    exactly_as_many_wait_as_have_room(&[database.store.clone(), other]).await;
}

async fn who_has_no_room_keeps_nobody_else_from_it_and_an_end_makes_some(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    let ann = caller("ann");
    // Another issuer vouches for the same person.
    let elsewhere = Principal { iss: "https://other.test".to_owned(), ..ann.clone() };
    assert!(wait(&store, 1, ann.clone(), 2).await);
    assert!(wait(&store, 2, elsewhere.clone(), 2).await);
    assert!(!wait(&store, 3, ann.clone(), 2).await);
    assert!(!wait(&store, 3, elsewhere, 2).await);
    assert!(wait(&store, 4, caller("bob"), 2).await);
    assert!(wait(&store, 3, ann.clone(), 3).await, "there is more room");
    let mut next = 5;
    for status in
        [Status::Rejected, Status::Cancelled, Status::Expired, Status::Failed, Status::Queued]
    {
        assert!(!wait(&store, next, ann.clone(), 3).await, "{status}");
        let row = stored(&store, request(if next == 5 { 1 } else { next - 1 })).await;
        assert!(advance(&store, &row, status).await);
        assert!(wait(&store, next, ann.clone(), 3).await, "{status}");
        next += 1;
    }
    let is_below = |most: i64| {
        let store = Arc::clone(&store);
        async move { read!(store, [], |unit| unit.waits_below("ann", most).await?) }
    };
    assert!(!is_below(3).await && is_below(4).await, "in a read too");
    // What comes back to wait finds its place, room or not.
    let row = stored(&store, request(8)).await;
    assert_eq!(row.status, Status::Queued);
    assert!(advance(&store, &row, Status::AwaitingApproval).await);
    assert_eq!(listed(&store, "ann", None, 100).await.len(), 4);
    assert!(!wait(&store, next, ann, 4).await, "and it counts");
}

async fn the_log_is_told_once_within_a_time(store: Arc<dyn Store>) {
    let told = |sub: &'static str, now: i64| {
        let store = Arc::clone(&store);
        async move { commit!(store, [], |unit| unit.tell_waiter(sub, at(now), 1_000).await?).unwrap() }
    };
    assert!(told("ann", 50_000).await);
    assert!(!told("ann", 50_000).await);
    assert!(told("bob", 50_000).await);
    assert!(!told("ann", 50_999).await);
    assert!(told("ann", 51_000).await);
    assert!(told("ann", 1_000).await, "a clock that was put back keeps nothing from being told");
}

async fn what_was_put_off_comes_after_what_was_not_and_later(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    for n in 1..=4 {
        assert!(wait(&store, n, caller("ann"), 10).await);
    }
    let due = |now: i64, bundle: u64, after: Option<DueRequest>, most: i64| {
        let store = Arc::clone(&store);
        async move {
            let (now, bundle) = (at(now), hash(bundle));
            read!(store, [], |unit| unit.due_requests(now, bundle, after, most).await?)
        }
    };
    let put_off = |n: u128, failures: i64, until: i64| {
        let store = Arc::clone(&store);
        async move {
            let (id, until) = (request(n), at(until));
            commit!(store, [], |unit| unit.put_off(id, failures, until).await?).unwrap()
        }
    };
    let ids = |due: &[DueRequest]| due.iter().map(|due| due.request).collect::<Vec<_>>();
    assert!(put_off(1, 0, 6_000).await);
    assert!(!put_off(1, 0, 9_000).await, "another process was faster");
    assert!(put_off(2, 0, 5_500).await);
    // Neither its time nor another bundle has it looked at before.
    assert_eq!(ids(&due(5_499, 99, None, 10).await), [3, 4].map(request));
    assert_eq!(ids(&due(5_499, 98, None, 10).await), [3, 4].map(request));
    let all = due(6_000, 99, None, 10).await;
    assert_eq!(ids(&all), [3, 4, 2, 1].map(request));
    assert_eq!((all[3].failures, all[3].retry_at), (1, at(6_000)));
    // By pages.
    let mut seen = Vec::new();
    let mut after = None;
    while let Some(one) = due(6_000, 99, after, 1).await.pop() {
        seen.push(one);
        after = Some(one);
    }
    assert_eq!(seen, all);
    assert!(put_off(1, 1, 7_000).await);
    commit!(store, [], |unit| unit.wake(request(1), at(5_000)).await?).unwrap();
    assert_eq!(ids(&due(5_000, 99, None, 10).await), [1, 3, 4].map(request), "woken");
    let anew = waiting(2, 5_000);
    commit!(store, [anew], |unit| unit.put_waiting(&anew).await?).unwrap();
    assert_eq!(due(5_000, 99, None, 10).await.len(), 4, "asked anew");
}

async fn what_waits_is_listed_by_who_asked(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    for n in 1..=6 {
        let who = caller(if n % 2 == 0 { "ann" } else { "bob" });
        assert!(wait(&store, n, who, 10).await);
    }
    let ann = listed(&store, "ann", None, 10).await;
    assert_eq!(ann.len(), 3);
    assert!(ann.is_sorted_by(|one, other| one > other), "newest first");
    let first = listed(&store, "ann", None, 2).await;
    let rest = listed(&store, "ann", first.last().copied(), 2).await;
    assert_eq!([first, rest].concat(), ann, "by pages, without those of others");
    assert!(listed(&store, "an", None, 10).await.is_empty());
}
