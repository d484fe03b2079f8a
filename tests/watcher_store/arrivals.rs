//! What comes over a bus.

use crate::fixtures::*;

use claviger::ports::bus::{Kind, Message, PUBLISHER};
use claviger::ports::watch_store::{
    Arrived, Claimed, Ended, NewDelivery, NewEvent, Parked, Received, Unreadable, WatchStore,
};
use claviger::watch::cloudevent;

on_both!(
    what_comes_over_a_bus_is_asked_for_until_it_is_answered_and_never_after,
    what_came_over_a_bus_is_parked_and_tried_again_by_the_outbox,
    a_retraction_that_comes_over_a_bus_is_told_once_if_something_was_asked_for,
    an_event_that_is_told_again_over_a_bus_is_asked_for,
    an_event_that_is_known_here_is_asked_for_as_it_is_here_and_when_it_is_final,
    a_retraction_of_what_stands_here_changes_nothing,
    an_event_that_is_not_known_here_is_not_asked_for,
    what_cannot_be_read_is_kept_once_with_its_bytes,
    only_so_many_unreadable_messages_are_kept,
    what_a_broker_has_lost_is_published_again,
);

/// An event of block `number` that is published to a broker.
fn published(number: u64) -> NewEvent {
    let consumer = PUBLISHER.to_owned();
    let deliveries = vec![NewDelivery { consumer, held: false }];
    NewEvent { deliveries, ..event(number, 0, false) }
}

/// The same event, as the broker hands it to the trigger.
fn arrived(number: u64, kind: Kind) -> Arrived {
    let NewEvent { source, event_id, body, .. } = event(number, 0, false);
    Arrived {
        consumer: CONSUMER.to_owned(),
        chain: CHAIN.to_owned(),
        block_number: number,
        message: Message { kind, source, event_id, body },
    }
}

async fn asked(store: &dyn WatchStore, arrived: &Arrived) -> Claimed {
    match store.receive(arrived, at(1)).await.unwrap() {
        Received::Ask(claimed) => claimed,
        other => panic!("{other:?}"),
    }
}

async fn settled(store: &dyn WatchStore, arrived: &Arrived) {
    let received = store.receive(arrived, at(2)).await.unwrap();
    assert!(matches!(received, Received::Settled(_)), "{received:?}");
}

async fn takes_back(store: &dyn WatchStore, from: u64) {
    let standing = store.standing_above(CHAIN, 10).await.unwrap();
    store.roll_back(&roll_back(place(from, 0), place(10, 0), standing)).await.unwrap();
}

/// The trigger takes its source's events over the bus.
async fn set_takers(store: &dyn WatchStore) {
    store.set_takers(&[(CONSUMER.to_owned(), SOURCE.to_owned())]).await.unwrap();
}

async fn what_comes_over_a_bus_is_asked_for_until_it_is_answered_and_never_after(
    store: &dyn WatchStore,
) {
    let log = arrived(11, Kind::Log);
    assert_eq!(store.receive(&log, at(0)).await.unwrap(), Received::TooEarly);
    ready(store).await;
    let blocks = [link(11, 0, 0)];
    store.advance(&advance(place(10, 0), &blocks, vec![published(11)])).await.unwrap();
    let first = asked(store, &log).await;
    assert_eq!((first.attempt, &first.message), (1, &log.message));
    let again = Ended::Retry { due: at(9), error: "busy".to_owned() };
    assert!(store.finish(first.id, 1, &again, at(1)).await.unwrap());
    // Handed out again, after a crash: the same row. The lane of the outbox leaves it alone.
    let second = asked(store, &log).await;
    assert_eq!((second.id, second.attempt), (first.id, 2));
    assert_eq!(store.claim(CONSUMER, SOURCE, at(99), LEASE_MS).await.unwrap(), None);
    let done = Ended::Done("tx-1".to_owned());
    assert!(!store.finish(first.id, 1, &done, at(2)).await.unwrap(), "a late first attempt");
    assert!(store.finish(first.id, 2, &done, at(2)).await.unwrap());
    settled(store, &log).await;
}

async fn what_came_over_a_bus_is_parked_and_tried_again_by_the_outbox(store: &dyn WatchStore) {
    ready(store).await;
    let blocks = [link(11, 0, 0)];
    store.advance(&advance(place(10, 0), &blocks, vec![published(11)])).await.unwrap();
    let log = arrived(11, Kind::Log);
    let claimed = asked(store, &log).await;
    park(store, &claimed).await;
    settled(store, &log).await;
    let parked = parked(store).await;
    let [Parked::Delivery { delivery, body, .. }] = &parked[..] else { panic!("{parked:?}") };
    assert_eq!((*delivery, body), (claimed.id, &log.message.body));
    assert_eq!(store.unpark(None, at(3)).await.unwrap(), 1);
    settled(store, &log).await;
    let again = store.claim(CONSUMER, SOURCE, at(3), LEASE_MS).await.unwrap().unwrap();
    assert_eq!((again.id, again.attempt, again.message), (claimed.id, 2, log.message));
}

async fn a_retraction_that_comes_over_a_bus_is_told_once_if_something_was_asked_for(
    store: &dyn WatchStore,
) {
    ready(store).await;
    set_takers(store).await;
    let blocks = [link(11, 0, 0), link(12, 0, 0), link(13, 0, 0)];
    let events = vec![published(11), published(12), published(13)];
    store.advance(&advance(place(10, 0), &blocks, events)).await.unwrap();
    for _ in blocks {
        let claimed = store.claim(PUBLISHER, SOURCE, at(0), LEASE_MS).await.unwrap().unwrap();
        assert!(store.finish(claimed.id, 1, &Ended::Done(String::new()), at(0)).await.unwrap());
    }
    // The first was answered, the second is in hand, the third has not come.
    let first = asked(store, &arrived(11, Kind::Log)).await;
    assert!(store.finish(first.id, 1, &Ended::Done("tx-1".to_owned()), at(1)).await.unwrap());
    let second = asked(store, &arrived(12, Kind::Log)).await;
    takes_back(store, 13).await;
    let late = Ended::Retry { due: at(5), error: "busy".to_owned() };
    assert!(!store.finish(second.id, 1, &late, at(2)).await.unwrap(), "it was cancelled");
    settled(store, &arrived(12, Kind::Log)).await;
    settled(store, &arrived(13, Kind::Log)).await;
    // The outbox has the three retractions for the publisher, and none for the trigger itself.
    assert!(store.claim(PUBLISHER, SOURCE, at(6), LEASE_MS).await.unwrap().is_some());
    assert_eq!(store.claim(CONSUMER, SOURCE, at(6), LEASE_MS).await.unwrap(), None);

    let told = asked(store, &arrived(11, Kind::Retraction)).await;
    assert!(store.finish(told.id, 1, &Ended::Done("noted".to_owned()), at(7)).await.unwrap());
    settled(store, &arrived(11, Kind::Retraction)).await;
    settled(store, &arrived(13, Kind::Retraction)).await;
    let attention = store.status().await.unwrap().attention;
    let linked: Vec<_> = attention.iter().filter(|item| item.became.is_some()).collect();
    assert_eq!(linked.len(), 1);
    assert_eq!(linked[0].event_id, arrived(11, Kind::Log).message.event_id);
    assert_eq!(linked[0].became.as_deref(), Some("tx-1"));
}

async fn an_event_that_is_told_again_over_a_bus_is_asked_for(store: &dyn WatchStore) {
    ready(store).await;
    set_takers(store).await;
    let blocks = [link(11, 0, 0)];
    store.advance(&advance(place(10, 0), &blocks, vec![published(11)])).await.unwrap();
    let log = arrived(11, Kind::Log);
    let first = asked(store, &log).await;
    takes_back(store, 11).await;
    settled(store, &log).await;
    // The block is canonical after all, and its event is published anew.
    store.advance(&advance(place(10, 0), &blocks, vec![published(11)])).await.unwrap();
    let second = asked(store, &log).await;
    assert_eq!((second.id, second.attempt), (first.id, 2));
    assert!(store.finish(second.id, 2, &Ended::Done("tx".to_owned()), at(4)).await.unwrap());
}

/// The same id with a document that somebody made up.
fn forged(number: u64) -> Arrived {
    let mut forged = arrived(number, Kind::Log);
    forged.message.body = format!("forgery of block {number}");
    forged.block_number = 1;
    forged
}

async fn park(store: &dyn WatchStore, claimed: &Claimed) {
    let refused = Ended::Parked("HTTP 403".to_owned());
    assert!(store.finish(claimed.id, claimed.attempt, &refused, at(1)).await.unwrap());
}

async fn an_event_that_is_known_here_is_asked_for_as_it_is_here_and_when_it_is_final(
    store: &dyn WatchStore,
) {
    ready(store).await;
    let mut held = vec![published(11), published(12)];
    for event in &mut held {
        event.deliveries[0].held = true;
    }
    let blocks = [link(11, 0, 0), link(12, 0, 0)];
    store.advance(&advance(place(10, 0), &blocks, held)).await.unwrap();
    for arrival in [forged(11), arrived(11, Kind::Log), forged(12)] {
        assert_eq!(store.receive(&arrival, at(2)).await.unwrap(), Received::TooEarly);
    }
    store.settle(&settle(place(12, 0), place(11, 0), 11)).await.unwrap();
    assert_eq!(store.receive(&forged(12), at(2)).await.unwrap(), Received::TooEarly);
    // Even a forged copy asks with the true document then.
    let claimed = asked(store, &forged(11)).await;
    assert_eq!(claimed.message, arrived(11, Kind::Log).message);
    park(store, &claimed).await;
    settled(store, &forged(11)).await;
    settled(store, &arrived(11, Kind::Log)).await;
    let parked = parked(store).await;
    let own = arrived(11, Kind::Log).message.body;
    assert!(matches!(&parked[..], [Parked::Delivery { body, .. }] if *body == own), "{parked:?}");
}

async fn a_retraction_of_what_stands_here_changes_nothing(store: &dyn WatchStore) {
    ready(store).await;
    set_takers(store).await;
    let blocks = [link(11, 0, 0)];
    store.advance(&advance(place(10, 0), &blocks, vec![published(11)])).await.unwrap();
    let claimed = asked(store, &arrived(11, Kind::Log)).await;
    let stands = Received::Settled("it stands here");
    let retraction = arrived(11, Kind::Retraction);
    assert_eq!(store.receive(&retraction, at(2)).await.unwrap(), stands);
    let done = Ended::Done(String::new());
    assert!(store.finish(claimed.id, 1, &done, at(3)).await.unwrap(), "it was not cancelled");
    assert_eq!(store.receive(&retraction, at(4)).await.unwrap(), stands);
    // It is told when it is true.
    takes_back(store, 11).await;
    asked(store, &retraction).await;
}

async fn an_event_that_is_not_known_here_is_not_asked_for(store: &dyn WatchStore) {
    ready(store).await;
    let log = arrived(11, Kind::Log);
    assert_eq!(store.receive(&log, at(1)).await.unwrap(), Received::Unread);
    store.advance(&advance(place(10, 0), &[link(11, 0, 0)], Vec::new())).await.unwrap();
    assert_eq!(store.receive(&log, at(2)).await.unwrap(), Received::Absent);
    assert_eq!(store.receive(&forged(11), at(2)).await.unwrap(), Received::Absent);
    settled(store, &arrived(11, Kind::Retraction)).await;
    assert_eq!(counts(store).await, [], "nothing is in hand");
}

async fn what_cannot_be_read_is_kept_once_with_its_bytes(store: &dyn WatchStore) {
    let message = Unreadable {
        consumer: CONSUMER.to_owned(),
        digest: hash(1, 7),
        bytes: vec![0, 255, 1].into(),
        reason: "not UTF-8".to_owned(),
    };
    for now in [at(1), at(2)] {
        store.keep_unreadable(&message, now).await.unwrap();
    }
    assert_eq!(parked(store).await, [Parked::Unreadable(message.clone())]);
    let attention = store.status().await.unwrap().attention;
    assert_eq!(attention.len(), 1);
    assert_eq!(attention[0].reason, "unreadable: not UTF-8");
    // PostgreSQL takes no NUL in a text: what is wrong with this one is told without.
    let nul = cloudevent::clean(&cloudevent::read(b"{\"\\u0000\":1}", &[]).unwrap_err());
    assert!(nul.contains("unknown field"), "{nul}");
    let other = Unreadable { digest: hash(2, 7), reason: nul, ..message };
    store.keep_unreadable(&other, at(3)).await.unwrap();
}

async fn only_so_many_unreadable_messages_are_kept(store: &dyn WatchStore) {
    let message = |number: u64| Unreadable {
        consumer: CONSUMER.to_owned(),
        digest: hash(number, 9),
        bytes: vec![1].into(),
        reason: "strange".to_owned(),
    };
    let mut kept = 0;
    while store.keep_unreadable(&message(kept), at(1)).await.unwrap() {
        kept += 1;
        assert!(kept <= 1000, "no end");
    }
    assert_eq!((kept, parked(store).await.len()), (1000, 1000));
    let other = Unreadable { consumer: "trigger:other".to_owned(), ..message(1) };
    assert!(!store.keep_unreadable(&other, at(2)).await.unwrap(), "the disk is one for all");
    assert!(store.keep_unreadable(&message(1), at(2)).await.unwrap(), "what is kept is kept");
}

async fn what_a_broker_has_lost_is_published_again(store: &dyn WatchStore) {
    ready(store).await;
    let events = vec![published(11), published(12), published(13)];
    let blocks = [link(11, 0, 0), link(12, 0, 0), link(13, 0, 0)];
    store.advance(&advance(place(10, 0), &blocks, events)).await.unwrap();
    for _ in 0..2 {
        let one = store.claim(PUBLISHER, SOURCE, at(1), LEASE_MS).await.unwrap().unwrap();
        let done = Ended::Done("published".to_owned());
        assert!(store.finish(one.id, one.attempt, &done, at(2)).await.unwrap());
    }
    asked(store, &arrived(11, Kind::Log)).await;
    assert_eq!(store.publish_again("other", 0, at(3)).await.unwrap(), 0);
    assert_eq!(store.publish_again(SOURCE, 13, at(3)).await.unwrap(), 0);
    assert_eq!(store.publish_again(SOURCE, 0, at(3)).await.unwrap(), 1, "the second one only");
    let again = store.claim(PUBLISHER, SOURCE, at(4), LEASE_MS).await.unwrap().unwrap();
    assert_eq!(again.message.event_id, published(12).event_id);
}
