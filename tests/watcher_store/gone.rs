//! Events that go away, come back, and go away again: whoever was told hears of it in the end.

use crate::fixtures::*;
use claviger::ports::bus::{Kind, Message, PUBLISHER, STANDS_AGAIN};
use claviger::ports::watch_store::{
    Arrived, Claimed, Ended, NewDelivery, NewEvent, Received, WatchStore,
};

on_both!(
    a_retraction_that_was_dropped_is_made_again_when_the_event_goes_for_good,
    a_retraction_in_hand_while_its_event_goes_again_does_not_pass_for_told,
    what_was_published_once_is_taken_back_each_time_it_goes,
    what_was_taken_over_a_bus_is_taken_back_from_here_when_the_bus_is_gone,
    a_retraction_over_a_bus_that_was_dropped_is_asked_for_again,
);

/// The event of block 11 is there, for this consumer.
async fn comes(store: &dyn WatchStore, consumer: &str, held: bool) {
    let deliveries = vec![NewDelivery { consumer: consumer.to_owned(), held }];
    let events = vec![NewEvent { deliveries, ..event(11, 0, held) }];
    store.advance(&advance(place(10, 0), &[link(11, 0, 0)], events)).await.unwrap();
}

/// Its block is gone.
async fn goes(store: &dyn WatchStore) {
    let standing = store.standing_above(CHAIN, 10).await.unwrap();
    store.roll_back(&roll_back(place(11, 0), place(10, 0), standing)).await.unwrap();
}

async fn claim(store: &dyn WatchStore, consumer: &str) -> Option<Claimed> {
    store.claim(consumer, SOURCE, at(9), LEASE_MS).await.unwrap()
}

async fn end(store: &dyn WatchStore, claimed: &Claimed, result: &str) {
    let done = Ended::Done(result.to_owned());
    assert!(store.finish(claimed.id, claimed.attempt, &done, at(9)).await.unwrap());
}

/// The consumer is given this next, and says that.
async fn told(store: &dyn WatchStore, consumer: &str, kind: Kind, result: &str) {
    let next = claim(store, consumer).await.unwrap();
    assert_eq!(next.message.kind, kind);
    end(store, &next, result).await;
}

async fn a_retraction_that_was_dropped_is_made_again_when_the_event_goes_for_good(
    store: &dyn WatchStore,
) {
    ready(store).await;
    comes(store, CONSUMER, false).await;
    told(store, CONSUMER, Kind::Log, "tx").await;
    for _ in 0..2 {
        goes(store).await;
        comes(store, CONSUMER, true).await;
        told(store, CONSUMER, Kind::Retraction, STANDS_AGAIN).await;
    }
    goes(store).await;
    told(store, CONSUMER, Kind::Retraction, "flagged").await;
    // Told once, it is told; what was held since was never tried.
    comes(store, CONSUMER, true).await;
    goes(store).await;
    assert_eq!(claim(store, CONSUMER).await, None);
    // The same where nobody knows what became of the log: the server may have it.
    comes(store, "trigger:other", false).await;
    let log = claim(store, "trigger:other").await.unwrap();
    let lost = Ended::Retry { due: at(9), error: "no answer".to_owned() };
    assert!(store.finish(log.id, log.attempt, &lost, at(9)).await.unwrap());
    goes(store).await;
    comes(store, "trigger:other", true).await;
    told(store, "trigger:other", Kind::Retraction, STANDS_AGAIN).await;
    goes(store).await;
    told(store, "trigger:other", Kind::Retraction, "flagged").await;
}

async fn a_retraction_in_hand_while_its_event_goes_again_does_not_pass_for_told(
    store: &dyn WatchStore,
) {
    ready(store).await;
    comes(store, CONSUMER, false).await;
    told(store, CONSUMER, Kind::Log, "tx").await;
    goes(store).await;
    comes(store, CONSUMER, true).await;
    let in_hand = claim(store, CONSUMER).await.unwrap();
    goes(store).await;
    end(store, &in_hand, STANDS_AGAIN).await;
    told(store, CONSUMER, Kind::Retraction, "flagged").await;
    assert_eq!(claim(store, CONSUMER).await, None);
}

async fn what_was_published_once_is_taken_back_each_time_it_goes(store: &dyn WatchStore) {
    ready(store).await;
    comes(store, PUBLISHER, false).await;
    told(store, PUBLISHER, Kind::Log, "published").await;
    goes(store).await;
    comes(store, PUBLISHER, true).await;
    // Whoever reads it while the event stands lets it pass.
    told(store, PUBLISHER, Kind::Retraction, "published").await;
    goes(store).await;
    told(store, PUBLISHER, Kind::Retraction, "published").await;
    // One that was not published yet serves for both.
    comes(store, PUBLISHER, true).await;
    goes(store).await;
    comes(store, PUBLISHER, true).await;
    goes(store).await;
    told(store, PUBLISHER, Kind::Retraction, "published").await;
    assert_eq!(claim(store, PUBLISHER).await, None);
}

fn takers() -> Vec<(String, String)> {
    vec![(CONSUMER.to_owned(), SOURCE.to_owned())]
}

async fn received(store: &dyn WatchStore, kind: Kind) -> Received {
    let NewEvent { source, event_id, body, .. } = event(11, 0, false);
    let arrived = Arrived {
        consumer: CONSUMER.to_owned(),
        chain: CHAIN.to_owned(),
        block_number: 11,
        message: Message { kind, source, event_id, body },
    };
    store.receive(&arrived, at(9)).await.unwrap()
}

async fn answered(store: &dyn WatchStore, kind: Kind, result: &str) {
    let received = received(store, kind).await;
    let Received::Ask(claimed) = received else { panic!("{received:?}") };
    end(store, &claimed, result).await;
}

async fn what_was_taken_over_a_bus_is_taken_back_from_here_when_the_bus_is_gone(
    store: &dyn WatchStore,
) {
    ready(store).await;
    store.set_takers(&takers()).await.unwrap();
    comes(store, PUBLISHER, false).await;
    told(store, PUBLISHER, Kind::Log, "published").await;
    answered(store, Kind::Log, "tx").await;
    store.set_takers(&[]).await.unwrap();
    goes(store).await;
    told(store, CONSUMER, Kind::Retraction, "flagged").await;
    let attention = store.status().await.unwrap().attention;
    let shown = attention.iter().find(|item| item.kind == Kind::Retraction).unwrap();
    assert_eq!(shown.became.as_deref(), Some("tx"));
}

async fn a_retraction_over_a_bus_that_was_dropped_is_asked_for_again(store: &dyn WatchStore) {
    ready(store).await;
    store.set_takers(&takers()).await.unwrap();
    comes(store, PUBLISHER, false).await;
    told(store, PUBLISHER, Kind::Log, "published").await;
    answered(store, Kind::Log, "tx").await;
    goes(store).await;
    assert_eq!(claim(store, CONSUMER).await, None, "the bus brings it");
    answered(store, Kind::Retraction, STANDS_AGAIN).await;
    comes(store, PUBLISHER, true).await;
    goes(store).await;
    answered(store, Kind::Retraction, "flagged").await;
    let again = received(store, Kind::Retraction).await;
    assert!(matches!(again, Received::Settled(_)), "{again:?}");
}
