//! Several processes over one database: duties, and the fence before every write.

use crate::fixtures::*;
use claviger::ports::watch_store::{Ended, Fence, WatchStore, WatchStoreError};

on_both!(
    a_duty_has_one_holder_at_a_time_and_its_token_grows,
    a_holder_renews_what_it_has_and_gives_it_back,
    a_lease_of_a_clock_that_is_ahead_is_as_good_as_over,
    of_several_that_take_at_once_one_gets_it,
    a_late_write_of_any_kind_changes_nothing,
    claims_of_a_term_that_is_over_are_free_and_retries_wait_on,
);

const DUTY: &str = "chain:local";

fn fence(token: i64) -> Fence {
    Fence { duty: DUTY.to_owned(), token }
}

async fn take(store: &dyn WatchStore, holder: &str, now: i64) -> Option<i64> {
    store.take(DUTY, holder, at(now), at(now + 100)).await.unwrap()
}

async fn a_duty_has_one_holder_at_a_time_and_its_token_grows(store: &dyn WatchStore) {
    assert!(store.duties().await.unwrap().is_empty());
    assert_eq!(take(store, "one", 0).await, Some(1));
    assert_eq!(take(store, "two", 99).await, None);
    let duty = &store.duties().await.unwrap()[0];
    assert_eq!((duty.name.as_str(), duty.holder.as_str(), duty.token), (DUTY, "one", 1));
    assert_eq!((duty.since, duty.until), (at(0), at(100)));
    assert_eq!(take(store, "two", 100).await, Some(2));
    assert_eq!(take(store, "one", 101).await, None);
    // Also its own earlier lease makes a new term, once it is over.
    assert_eq!(take(store, "two", 200).await, Some(3));
}

async fn a_holder_renews_what_it_has_and_gives_it_back(store: &dyn WatchStore) {
    take(store, "one", 0).await.unwrap();
    let duties = store.renew("one", at(150)).await.unwrap();
    assert_eq!((duties[0].until, duties[0].token), (at(150), 1));
    assert_eq!(take(store, "two", 149).await, None);
    assert_eq!(take(store, "two", 150).await, Some(2));
    // Its place is taken: it prolongs nothing, and gives nothing back.
    let duties = store.renew("one", at(999)).await.unwrap();
    assert_eq!((duties[0].holder.as_str(), duties[0].until), ("two", at(250)));
    store.give_back("one").await.unwrap();
    assert_eq!(take(store, "one", 151).await, None);
    store.give_back("two").await.unwrap();
    assert_eq!(
        store.renew("two", at(999)).await.unwrap()[0].until,
        at(0),
        "what is given is given"
    );
    assert_eq!(take(store, "one", 151).await, Some(3));
}

async fn a_lease_of_a_clock_that_is_ahead_is_as_good_as_over(store: &dyn WatchStore) {
    let day = 86_400_000;
    assert_eq!(take(store, "ahead", day).await, Some(1));
    assert_eq!(take(store, "right", 0).await, Some(2));
}

async fn of_several_that_take_at_once_one_gets_it(store: &dyn WatchStore) {
    for round in 1..=5 {
        let now = round * 1000;
        let taken = tokio::join!(
            take(store, "one", now),
            take(store, "two", now),
            take(store, "three", now),
            take(store, "four", now)
        );
        let taken = [taken.0, taken.1, taken.2, taken.3];
        assert_eq!(taken.into_iter().flatten().collect::<Vec<_>>(), [round]);
    }
}

async fn a_late_write_of_any_kind_changes_nothing(store: &dyn WatchStore) {
    ready(store).await;
    let first = take(store, "one", 0).await.unwrap();
    let early = store.under(fence(first));
    let taken = advance(place(10, 0), &[link(11, 0, 0)], vec![event(11, 0, false)]);
    early.advance(&taken).await.unwrap();
    let claimed = early.claim(CONSUMER, SOURCE, at(1), LEASE_MS).await.unwrap().unwrap();

    let second = take(store, "two", 100).await.unwrap();
    let late = WatchStoreError::NotLeading(DUTY.to_owned());
    let before = (store.load(CHAIN).await.unwrap(), store.status().await.unwrap());
    let more = advance(place(11, 0), &[link(12, 0, 0)], vec![event(12, 0, true)]);
    assert_eq!(early.advance(&more).await, Err(late.clone()));
    let final_ = settle(place(11, 0), place(11, 0), 11);
    assert_eq!(early.settle(&final_).await, Err(late.clone()));
    let standing = early.standing_above(CHAIN, 10).await.unwrap();
    let back = roll_back(place(11, 0), place(10, 0), standing);
    assert_eq!(early.roll_back(&back).await, Err(late.clone()));
    assert_eq!(early.set_halted(CHAIN, Some("why")).await, Err(late.clone()));
    let done = Ended::Done("tx-late".to_owned());
    assert_eq!(early.finish(claimed.id, 1, &done, at(101)).await, Err(late.clone()));
    let both = [(claimed.clone(), Some(done.clone()))];
    assert_eq!(early.finish_some(&both, at(101)).await, Err(late.clone()));
    assert_eq!(early.free_claims(CONSUMER, SOURCE, at(101)).await, Err(late));
    assert_eq!((store.load(CHAIN).await.unwrap(), store.status().await.unwrap()), before);

    // The one who leads now does all of it.
    let now = store.under(fence(second));
    now.advance(&more).await.unwrap();
    assert!(now.finish(claimed.id, 1, &done, at(101)).await.unwrap());
}

async fn claims_of_a_term_that_is_over_are_free_and_retries_wait_on(store: &dyn WatchStore) {
    ready(store).await;
    let other = claviger::ports::watch_store::NewEvent {
        source: "other".to_owned(),
        ..event(11, 0, false)
    };
    let second = claviger::ports::watch_store::SourceState {
        name: "other".to_owned(),
        ..source("X() of 0x01")
    };
    store.add_source(CHAIN, &second).await.unwrap();
    let mut step = advance(place(10, 0), &[link(11, 0, 0)], vec![event(11, 0, false), other]);
    step.moves.push(claviger::ports::watch_store::SourceMove {
        source: "other".to_owned(),
        from: 11,
        to: 12,
    });
    store.advance(&step).await.unwrap();
    let first = store.under(fence(take(store, "one", 0).await.unwrap()));
    first.claim(CONSUMER, SOURCE, at(0), LEASE_MS).await.unwrap().unwrap();
    let failed = first.claim(CONSUMER, "other", at(0), LEASE_MS).await.unwrap().unwrap();
    let again = Ended::Retry { due: at(900), error: "busy".to_owned() };
    assert!(first.finish(failed.id, 1, &again, at(0)).await.unwrap());

    let second = store.under(fence(take(store, "two", 100).await.unwrap()));
    assert_eq!(second.claim(CONSUMER, SOURCE, at(100), LEASE_MS).await.unwrap(), None, "in hand");
    assert_eq!(second.free_claims(CONSUMER, SOURCE, at(100)).await.unwrap(), 1);
    assert_eq!(second.free_claims(CONSUMER, "other", at(100)).await.unwrap(), 0);
    let claimed = second.claim(CONSUMER, SOURCE, at(100), LEASE_MS).await.unwrap().unwrap();
    assert_eq!(claimed.attempt, 2);
    assert_eq!(second.claim(CONSUMER, "other", at(100), LEASE_MS).await.unwrap(), None);
    assert!(second.claim(CONSUMER, "other", at(900), LEASE_MS).await.unwrap().is_some());
}
