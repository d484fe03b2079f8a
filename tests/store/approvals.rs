//! Delays, approvals, and destinations that were used before.

use crate::fixtures::{
    CHAIN, OTHER_CHAIN, add_key, at, caller, hash, insert, lane, request, stored, transaction,
};
use alloy::primitives::{Address, B256};
use claviger::core::principal::Principal;
use claviger::core::tx::state::Status;
use claviger::ports::store::{
    DueRequest, End, GivenApproval, StatusChange, Store, TransactionRow, UsedDestinations,
    WaitingFilter, WaitingRequest, unit,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

on_both!(
    what_waits_is_stored_with_what_it_waits_for_and_gets_no_nonce,
    what_is_asked_anew_takes_the_place_of_what_was_asked,
    terms_let_a_transaction_go_on_once,
    what_is_due_is_found_by_time_and_by_bundle_and_only_while_it_waits,
    waiting_ones_are_listed_newest_first_by_status,
    one_person_approves_the_same_terms_once,
    of_two_approvers_at_the_same_moment_both_are_counted_and_one_sees_the_other,
    of_an_approval_and_a_cancellation_at_the_same_moment_one_is_made,
    what_waits_is_found_for_what_the_chain_has_mined,
    destinations_are_known_by_chain_and_scope,
);

pub fn waiting(n: u128, due: i64) -> WaitingRequest {
    WaitingRequest {
        request: request(n),
        hash: hash(1),
        terms: r#"{"kind":"approval"}"#.to_owned(),
        quorums: vec![BTreeMap::from([("treasury".to_owned(), 2), ("security".to_owned(), 1)])],
        bundle: hash(99),
        asked_at: at(1000),
        due_at: at(due),
        wake_at: at(due),
        released_at: None,
    }
}

async fn insert_waiting(store: &Arc<dyn Store>, n: u128, status: Status, due: i64) {
    let (row, wait) = (transaction(n, 1), waiting(n, due));
    commit!(store, [row, wait], |unit| unit.insert_waiting(&row, status, &wait).await?).unwrap();
}

fn change(row: &TransactionRow, status: Status) -> StatusChange {
    StatusChange {
        id: row.new.id,
        version: row.version,
        status,
        mined: None,
        ending: None,
        failure: None,
        at: at(2000),
    }
}

pub async fn advance(store: &Arc<dyn Store>, row: &TransactionRow, status: Status) -> bool {
    let change = change(row, status);
    commit!(store, [change], |unit| unit.advance(&change).await?).unwrap()
}

fn approval(n: u128, hash: B256, who: Principal) -> GivenApproval {
    GivenApproval { request: request(n), hash, who, reason: "looks right".to_owned(), at: at(1500) }
}

async fn approve(store: &Arc<dyn Store>, approval: GivenApproval) -> bool {
    commit!(store, [approval], |unit| unit.insert_approval(&approval).await?).unwrap()
}

async fn what_waits_is_stored_with_what_it_waits_for_and_gets_no_nonce(store: Arc<dyn Store>) {
    let account = add_key(&store, 1).await;
    insert_waiting(&store, 1, Status::AwaitingApproval, 5000).await;
    insert_waiting(&store, 2, Status::Delayed, 5000).await;
    assert_eq!(stored(&store, request(1)).await.status, Status::AwaitingApproval);
    assert_eq!(stored(&store, request(2)).await.status, Status::Delayed);
    let found = read!(store, [], |unit| unit.waiting_request(request(1)).await?);
    assert_eq!(found, Some(waiting(1, 5000)));
    assert_eq!(read!(store, [], |unit| unit.waiting_request(request(9)).await?), None);
    // Nothing that gives nonces sees them, nor can it give one.
    let next = read!(store, [], |unit| unit.next_queued(CHAIN, account).await?);
    assert_eq!(next, None);
    let busy = read!(store, [], |unit| unit.busy_accounts(CHAIN).await?);
    assert!(busy.is_empty(), "{busy:?}");
    let lane = lane(&store, 1).await;
    let row = stored(&store, request(1)).await;
    let given = commit!(store, [lane, row], |unit| unit.take_nonce(&lane, &row, at(3000)).await?);
    assert_eq!(given.unwrap(), None);
    assert_eq!(crate::fixtures::lane(&store, 1).await.next_nonce, 0);
    // Once it is queued, it is a transaction like others.
    assert!(advance(&store, &row, Status::Queued).await);
    assert_eq!(crate::fixtures::submit(&store, request(1), 1).await, 0);
}

async fn what_is_asked_anew_takes_the_place_of_what_was_asked(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    insert_waiting(&store, 1, Status::AwaitingApproval, 5000).await;
    assert!(approve(&store, approval(1, hash(1), caller("ann"))).await);
    let anew = WaitingRequest {
        hash: hash(2),
        terms: "{}".to_owned(),
        quorums: vec![],
        bundle: hash(98),
        asked_at: at(2000),
        ..waiting(1, 9000)
    };
    commit!(store, [anew], |unit| unit.put_waiting(&anew).await?).unwrap();
    let found = read!(store, [], |unit| unit.waiting_request(request(1)).await?);
    assert_eq!(found, Some(anew));
    let given = read!(store, [], |unit| unit.approvals_of(request(1)).await?);
    assert_eq!(given, [approval(1, hash(1), caller("ann"))], "what was approved is not forgotten");
    assert!(approve(&store, approval(1, hash(2), caller("ann"))).await, "and does not count");
}

async fn terms_let_a_transaction_go_on_once(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    insert_waiting(&store, 1, Status::AwaitingApproval, 5000).await;
    let release = |which: u64| {
        let store = Arc::clone(&store);
        async move {
            let (id, terms) = (request(1), hash(which));
            commit!(store, [], |unit| unit.release_terms(id, terms, at(3000)).await?).unwrap()
        }
    };
    assert!(!release(2).await, "others");
    assert!(release(1).await);
    assert!(!release(1).await, "once");
    let found = read!(store, [], |unit| unit.waiting_request(request(1)).await?).unwrap();
    assert_eq!(found.released_at, Some(at(3000)));
    // Asked again, they are new.
    let anew = waiting(1, 5000);
    commit!(store, [anew], |unit| unit.put_waiting(&anew).await?).unwrap();
    assert!(release(1).await);
}

async fn what_is_due_is_found_by_time_and_by_bundle_and_only_while_it_waits(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    insert_waiting(&store, 1, Status::Delayed, 3000).await;
    insert_waiting(&store, 2, Status::AwaitingApproval, 4000).await;
    insert_waiting(&store, 3, Status::AwaitingApproval, 5000).await;
    insert(&store, vec![transaction(4, 1)]).await;
    let due = |now: i64, bundle: u64, after: Option<u128>, most: i64| {
        let store = Arc::clone(&store);
        async move {
            let new = |n| DueRequest { request: request(n), retry_at: at(0), failures: 0 };
            let (now, bundle, after) = (at(now), hash(bundle), after.map(new));
            let due = read!(store, [], |unit| unit.due_requests(now, bundle, after, most).await?);
            due.into_iter().map(|due| due.request).collect::<Vec<_>>()
        }
    };
    assert!(due(2999, 99, None, 10).await.is_empty());
    assert_eq!(due(3000, 99, None, 10).await, [request(1)]);
    assert_eq!(due(4000, 99, None, 10).await, [request(1), request(2)]);
    assert_eq!(due(4000, 99, Some(1), 10).await, [request(2)]);
    assert_eq!(due(0, 98, None, 10).await, [1, 2, 3].map(request), "another bundle");
    assert_eq!(due(0, 98, None, 2).await, [1, 2].map(request));
    commit!(store, [], |unit| unit.wake(request(3), at(10)).await?).unwrap();
    assert_eq!(due(10, 99, None, 10).await, [request(3)]);
    let row = stored(&store, request(3)).await;
    assert!(advance(&store, &row, Status::Rejected).await);
    assert!(due(10, 99, None, 10).await.is_empty(), "it has ended");
    let nobody = commit!(store, [], |unit| unit.wake(request(4), at(10)).await?);
    assert!(nobody.is_err(), "it waits for nothing");
}

async fn waiting_ones_are_listed_newest_first_by_status(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    insert_waiting(&store, 3, Status::Delayed, 3000).await;
    insert_waiting(&store, 1, Status::AwaitingApproval, 3000).await;
    insert(&store, vec![transaction(4, 1)]).await;
    insert_waiting(&store, 2, Status::AwaitingApproval, 3000).await;
    let page = |status: Option<Status>, before: Option<i64>, most: i64| {
        let store = Arc::clone(&store);
        async move {
            let filter = WaitingFilter { status, before_seq: before, ..WaitingFilter::default() };
            let rows = read!(store, [filter], |unit| unit.waiting_page(&filter, most).await?);
            rows.iter().map(|row| row.new.id).collect::<Vec<_>>()
        }
    };
    assert_eq!(page(None, None, 10).await, [2, 1, 3].map(request));
    assert_eq!(page(Some(Status::Delayed), None, 10).await, [request(3)]);
    assert_eq!(page(Some(Status::AwaitingApproval), None, 1).await, [request(2)]);
    let seq = stored(&store, request(2)).await.seq;
    assert_eq!(page(None, Some(seq), 10).await, [1, 3].map(request));
    assert!(page(Some(Status::Queued), None, 10).await.is_empty(), "it waits for nothing");
}

async fn one_person_approves_the_same_terms_once(store: Arc<dyn Store>) {
    let ann = caller("ann");
    assert!(approve(&store, approval(1, hash(1), ann.clone())).await);
    assert!(!approve(&store, approval(1, hash(1), ann.clone())).await);
    // Another issuer vouches for the same person.
    let elsewhere = Principal { iss: "https://other.test".to_owned(), ..ann.clone() };
    assert!(!approve(&store, approval(1, hash(1), elsewhere)).await);
    assert!(approve(&store, approval(1, hash(1), caller("bob"))).await);
    assert!(approve(&store, approval(2, hash(1), ann)).await);
    let given = read!(store, [], |unit| unit.approvals_of(request(1)).await?);
    let who: Vec<&str> = given.iter().map(|approval| approval.who.sub.as_str()).collect();
    assert_eq!(who, ["ann", "bob"]);
}

/// As the use case does it: the row's version is moved on, and what was approved is read after that. Answers
/// how many have approved, or `None` if the row had changed.
async fn approve_in_turn(store: &Arc<dyn Store>, version: i64, sub: &'static str) -> Option<usize> {
    let approved = unit(&**store, "approve", move |unit| {
        Box::pin(async move {
            if !unit.touch(request(1), version).await? {
                return Ok(End::Rollback(None));
            }
            assert!(unit.insert_approval(&approval(1, hash(1), caller(sub))).await?);
            Ok(End::Commit(Some(unit.approvals_of(request(1)).await?.len())))
        })
    });
    approved.await.unwrap()
}

async fn of_two_approvers_at_the_same_moment_both_are_counted_and_one_sees_the_other(
    store: Arc<dyn Store>,
) {
    crate::fixtures::crowd(&store).await;
    add_key(&store, 1).await;
    insert_waiting(&store, 1, Status::AwaitingApproval, 5000).await;
    let (one, two) =
        tokio::join!(approve_in_turn(&store, 0, "ann"), approve_in_turn(&store, 0, "bob"));
    let seen = [one, two];
    assert!(
        seen.contains(&Some(1)) && seen.contains(&None),
        "one is made, one looks again: {seen:?}"
    );
    let late = if one.is_none() { "ann" } else { "bob" };
    let version = stored(&store, request(1)).await.version;
    assert_eq!(approve_in_turn(&store, version, late).await, Some(2), "it sees the first");
}

async fn of_an_approval_and_a_cancellation_at_the_same_moment_one_is_made(store: Arc<dyn Store>) {
    crate::fixtures::crowd(&store).await;
    add_key(&store, 1).await;
    insert_waiting(&store, 1, Status::AwaitingApproval, 5000).await;
    let row = stored(&store, request(1)).await;
    let (approved, cancelled) =
        tokio::join!(approve_in_turn(&store, 0, "ann"), advance(&store, &row, Status::Cancelled));
    assert!(approved.is_some() != cancelled);
    let given = read!(store, [], |unit| unit.approvals_of(request(1)).await?);
    assert_eq!(given.len(), usize::from(!cancelled));
    let now = stored(&store, request(1)).await;
    assert_eq!(now.status == Status::Cancelled, cancelled);
    assert_eq!(now.version, 1);
}

async fn what_waits_is_found_for_what_the_chain_has_mined(store: Arc<dyn Store>) {
    let account = add_key(&store, 1).await;
    insert_waiting(&store, 1, Status::AwaitingApproval, 5000).await;
    insert(&store, vec![transaction(2, 1)]).await;
    insert_waiting(&store, 3, Status::Delayed, 5000).await;
    let found = read!(store, [], |unit| unit.queued_of(CHAIN, account).await?);
    let ids: Vec<_> = found.iter().map(|row| row.new.id).collect();
    assert_eq!(ids, [1, 2, 3].map(request));
    for (nonce, row) in (7..).zip(found) {
        let given = commit!(store, [row], |unit| unit.adopt_nonce(&row, nonce, at(9)).await?);
        assert!(given.unwrap());
        let row = stored(&store, row.new.id).await;
        assert_eq!((row.status, row.nonce), (Status::Submitted, Some(nonce)));
    }
}

async fn destinations_are_known_by_chain_and_scope(store: Arc<dyn Store>) {
    let [one, two, three] = [1, 2, 3].map(Address::repeat_byte);
    let used = |scope: &str, destinations: &[Address], n: u128| UsedDestinations {
        chain: CHAIN,
        scope: scope.to_owned(),
        destinations: destinations.iter().copied().collect(),
        request: request(n),
        at: at(5),
    };
    for used in [
        used("group:hot", &[one, two], 1),
        used("group:hot", &[two], 2),
        used("key:7", &[three], 3),
        used("group:hot", &[], 4),
    ] {
        commit!(store, [used], |unit| unit.use_destinations(&used).await?).unwrap();
    }
    let known = |chain, scope: &'static str| {
        let store = Arc::clone(&store);
        async move {
            let asked = BTreeSet::from([one, two, three]);
            read!(store, [asked], |unit| unit.used_among(chain, scope, &asked).await?)
        }
    };
    assert_eq!(known(CHAIN, "group:hot").await, BTreeSet::from([one, two]));
    assert_eq!(known(CHAIN, "key:7").await, BTreeSet::from([three]));
    assert!(known(CHAIN, "group:cold").await.is_empty());
    assert!(known(OTHER_CHAIN, "group:hot").await.is_empty());
    let only = BTreeSet::from([two]);
    let found = read!(store, [only], |unit| unit.used_among(CHAIN, "group:hot", &only).await?);
    assert_eq!(found, only, "what was not asked is not told");
}
