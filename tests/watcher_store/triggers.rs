//! What triggers keep: turns and patience, over a restart and between processes.

use crate::fixtures::*;
use claviger::core::trigger::Rate;
use claviger::ports::watch_store::WatchStore;

async fn a_bucket_gives_what_it_has_once_for_each_event(store: &dyn WatchStore) {
    let rate = Rate::parse("2/10s").unwrap();
    for event in ["a", "b", "a", "b"] {
        assert_eq!(store.admit(CONSUMER, event, rate, at(1_000)).await.unwrap(), None, "{event}");
    }
    assert_eq!(store.admit(CONSUMER, "c", rate, at(1_000)).await.unwrap(), Some(5_000));
    assert_eq!(store.admit("trigger:other", "c", rate, at(1_000)).await.unwrap(), None);
    assert_eq!(store.admit(CONSUMER, "c", rate, at(5_999)).await.unwrap(), Some(1));
    assert_eq!(store.admit(CONSUMER, "c", rate, at(6_000)).await.unwrap(), None);
    store.forget_turn(CONSUMER, "a").await.unwrap();
    assert_eq!(store.admit(CONSUMER, "a", rate, at(6_000)).await.unwrap(), Some(5_000), "anew");
}

async fn of_many_at_once_no_more_go_on_than_there_are_tokens(store: &dyn WatchStore) {
    let rate = Rate::parse("3/1h").unwrap();
    let events: Vec<String> = (0..12).map(|n| format!("event-{n}")).collect();
    let all = events.iter().map(|event| store.admit(CONSUMER, event, rate, at(1_000)));
    let turns = futures::future::join_all(all).await;
    let turns: Vec<Option<i64>> = turns.into_iter().map(|turn| turn.unwrap_or(Some(0))).collect();
    assert!(turns.iter().filter(|turn| turn.is_none()).count() <= 3, "{turns:?}");
    let mut gone = 0;
    for event in &events {
        gone += usize::from(store.admit(CONSUMER, event, rate, at(1_000)).await.unwrap().is_none());
    }
    assert_eq!(gone, 3);
}

async fn patience_begins_with_the_first_refusal_and_ends_with_the_answer(store: &dyn WatchStore) {
    let rate = Rate::parse("5/1s").unwrap();
    assert_eq!(store.admit(CONSUMER, "a", rate, at(50)).await.unwrap(), None);
    assert_eq!(store.refused_since(CONSUMER, "a", at(100)).await.unwrap(), at(100));
    assert_eq!(store.refused_since(CONSUMER, "a", at(900)).await.unwrap(), at(100));
    assert_eq!(store.refused_since(CONSUMER, "b", at(900)).await.unwrap(), at(900));
    // A clock that was ahead for a moment does not make it endless.
    assert_eq!(store.refused_since(CONSUMER, "c", at(9_000_000)).await.unwrap(), at(9_000_000));
    assert_eq!(store.refused_since(CONSUMER, "c", at(1_000)).await.unwrap(), at(1_000));
    assert_eq!(store.refused_since(CONSUMER, "c", at(1_100)).await.unwrap(), at(1_000));
    store.forget_turn(CONSUMER, "a").await.unwrap();
    assert_eq!(store.refused_since(CONSUMER, "a", at(2_000)).await.unwrap(), at(2_000));
}

async fn an_event_stands_until_it_is_retracted(store: &dyn WatchStore) {
    ready(store).await;
    let told = event(11, 1, false);
    let step = advance(place(10, 0), &[link(11, 1, 0)], vec![told.clone()]);
    assert!(!store.stands(SOURCE, &told.event_id).await.unwrap());
    store.advance(&step).await.unwrap();
    assert!(store.stands(SOURCE, &told.event_id).await.unwrap());
    let standing = store.standing_above(CHAIN, 10).await.unwrap();
    store.roll_back(&roll_back(place(11, 1), place(10, 0), standing)).await.unwrap();
    assert!(!store.stands(SOURCE, &told.event_id).await.unwrap());
}

on_both!(
    a_bucket_gives_what_it_has_once_for_each_event,
    of_many_at_once_no_more_go_on_than_there_are_tokens,
    patience_begins_with_the_first_refusal_and_ends_with_the_answer,
    an_event_stands_until_it_is_retracted,
);
