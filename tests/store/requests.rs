//! Idempotency keys and claimed events.

use crate::attempts::attempt;
use crate::fixtures::{add_key, caller, hash, insert, request, submit, transaction};
use claviger::core::id::{ChainName, RequestId};
use claviger::core::policy::verdict::EventUse;
use claviger::ports::store::{Bound, KeyBinding, Store};
use std::sync::Arc;

on_both!(
    of_fifty_that_bind_a_key_at_once_one_is_new,
    a_key_of_another_scope_is_another_key,
    a_binding_that_was_rolled_back_is_free,
    an_event_is_claimed_once_for_a_function,
    of_twenty_that_claim_an_event_at_once_one_has_it,
    only_the_place_of_an_event_makes_it_the_same,
    an_event_is_free_again_unless_something_was_decided_for_it,
);

fn binding(scope: &str, key: &str, n: u128) -> KeyBinding {
    KeyBinding {
        scope: scope.to_owned(),
        key: key.to_owned(),
        body_hash: hash(u64::try_from(n).unwrap()),
        request: request(n),
    }
}

fn event(log_index: u64, used_for: &str) -> EventUse {
    EventUse {
        chain: ChainName::new("local"),
        block_hash: hash(10),
        transaction_hash: hash(11),
        log_index,
        used_for: used_for.to_owned(),
    }
}

async fn of_fifty_that_bind_a_key_at_once_one_is_new(store: Arc<dyn Store>) {
    crate::fixtures::crowd(&store).await;
    let tasks = (1..=50).map(|n| {
        let store = store.clone();
        tokio::spawn(async move {
            let bind = binding("scope", "key", n);
            let bound = commit!(store, [bind], |unit| unit.bind_key(&bind).await?);
            (bind, bound.unwrap())
        })
    });
    let mut answers = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        answers.push(task.await.unwrap());
    }
    let (new, before): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|(_, bound)| *bound == Bound::New);
    assert_eq!((new.len(), before.len()), (1, 49));
    let winner = &new[0].0;
    assert!(before.iter().all(|(_, bound)| *bound == Bound::Before(winner.clone())));
    let bound = read!(store, [], |unit| unit.bound_key("scope", "key").await?);
    assert_eq!(bound.as_ref(), Some(winner));
}

async fn a_key_of_another_scope_is_another_key(store: Arc<dyn Store>) {
    let (mine, theirs) = (caller("one").scope(), caller("two").scope());
    for (scope, n) in [(&mine, 1), (&theirs, 2)] {
        let bind = binding(scope, "key", n);
        let bound = commit!(store, [bind], |unit| unit.bind_key(&bind).await?).unwrap();
        assert_eq!(bound, Bound::New);
    }
    let found = read!(store, [theirs], |unit| unit.bound_key(&theirs, "key").await?);
    assert_eq!(found.unwrap().request, request(2));
    let none = read!(store, [theirs], |unit| unit.bound_key(&theirs, "KEY").await?);
    assert_eq!(none, None, "case counts");
}

async fn a_binding_that_was_rolled_back_is_free(store: Arc<dyn Store>) {
    let (first, second) = (binding("scope", "key", 1), binding("scope", "key", 2));
    let bound = roll_back!(store, [first], |unit| unit.bind_key(&first).await?).unwrap();
    assert_eq!(bound, Bound::New);
    let bound = commit!(store, [second], |unit| unit.bind_key(&second).await?).unwrap();
    assert_eq!(bound, Bound::New);
}

async fn claim(store: &Arc<dyn Store>, event: EventUse, n: u128) -> Option<RequestId> {
    commit!(store, [event], |unit| unit.claim_event(&event, request(n)).await?).unwrap()
}

async fn an_event_is_claimed_once_for_a_function(store: Arc<dyn Store>) {
    assert_eq!(claim(&store, event(0, "pay"), 1).await, None);
    assert_eq!(claim(&store, event(0, "pay"), 2).await, Some(request(1)));
    assert_eq!(claim(&store, event(0, "refund"), 3).await, None);
    assert_eq!(claim(&store, event(1, "pay"), 4).await, None);
    for (event, by) in [
        (event(0, "pay"), Some(request(1))),
        (event(0, "refund"), Some(request(3))),
        (event(2, "pay"), None),
    ] {
        let found = read!(store, [event], |unit| unit.claimed_by(&event).await?);
        assert_eq!(found, by, "{event:?}");
    }
}

async fn of_twenty_that_claim_an_event_at_once_one_has_it(store: Arc<dyn Store>) {
    crate::fixtures::crowd(&store).await;
    let tasks = (1..=20).map(|n| {
        let store = store.clone();
        tokio::spawn(async move { (n, claim(&store, event(0, "pay"), n).await) })
    });
    let mut answers = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        answers.push(task.await.unwrap());
    }
    let winners: Vec<u128> =
        answers.iter().filter(|(_, had)| had.is_none()).map(|(n, _)| *n).collect();
    assert_eq!(winners.len(), 1);
    let others = answers.iter().filter(|(n, _)| *n != winners[0]);
    assert!(others.into_iter().all(|(_, had)| *had == Some(request(winners[0]))));
}

async fn only_the_place_of_an_event_makes_it_the_same(store: Arc<dyn Store>) {
    assert_eq!(claim(&store, event(0, "pay"), 1).await, None);
    // Who says that another transaction emitted it still means the same log.
    let retold = EventUse { transaction_hash: hash(12), ..event(0, "pay") };
    assert_eq!(claim(&store, retold, 2).await, Some(request(1)));
    let elsewhere = EventUse { chain: ChainName::new("other"), ..event(0, "pay") };
    assert_eq!(claim(&store, elsewhere, 3).await, None);
    let reorganised = EventUse { block_hash: hash(13), ..event(0, "pay") };
    assert_eq!(claim(&store, reorganised, 4).await, None);
}

async fn an_event_is_free_again_unless_something_was_decided_for_it(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    insert(&store, vec![transaction(1, 1), transaction(2, 1)]).await;
    assert_eq!(claim(&store, event(0, "pay"), 1).await, None);
    assert_eq!(claim(&store, event(1, "pay"), 2).await, None);
    let free = async |n: u128| {
        commit!(store, [], |unit| unit.free_events(request(n)).await?).unwrap();
    };
    free(1).await;
    assert_eq!(claim(&store, event(1, "pay"), 3).await, Some(request(2)), "another's stays");
    assert_eq!(claim(&store, event(0, "pay"), 2).await, None, "it is free");
    submit(&store, request(2), 1).await;
    let decided = attempt(2, 1);
    commit!(store, [decided], |unit| unit.insert_attempt(&decided).await?).unwrap();
    free(2).await;
    assert_eq!(claim(&store, event(0, "pay"), 3).await, Some(request(2)), "it was decided");
}
