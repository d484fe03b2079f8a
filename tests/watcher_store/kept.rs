//! What is kept since somebody may still want it, and how far back things go.

use crate::fixtures::*;
use claviger::core::trigger::Rate;
use claviger::ports::bus::{Kind, Message, PUBLISHER};
use claviger::ports::watch_store::{
    Arrived, Backlog, Claimed, Ended, NewDelivery, NewEvent, ReadAgain, Received, SourceMove,
    WatchStore,
};

on_both!(
    what_a_taker_has_not_taken_over_a_broker_is_not_pruned,
    what_is_from_before_a_taker_and_what_nobody_takes_any_more_is_pruned,
    an_event_that_came_back_is_asked_for_again_over_a_broker,
    what_nobody_was_told_is_kept_for_who_comes_later,
    the_highest_block_that_was_pruned_is_known,
    a_retracted_or_pruned_event_is_nobodys_turn,
    what_is_read_once_more_is_read_a_second_time_too,
    an_order_to_read_again_is_not_cut_by_the_next_one,
    a_reorg_below_an_order_goes_on_with_no_sources_first_block_before,
    where_a_source_began_is_noted_where_it_is_not_known,
);

/// Blocks 11 to `to` with an event each, for the publisher; all of it final.
async fn with_published(store: &dyn WatchStore, to: u64) {
    ready(store).await;
    let consumer = PUBLISHER.to_owned();
    let deliveries = vec![NewDelivery { consumer, held: false }];
    let of = |number| NewEvent { deliveries: deliveries.clone(), ..event(number, 0, false) };
    with(store, to, of).await;
}

async fn with(store: &dyn WatchStore, to: u64, of: impl Fn(u64) -> NewEvent) {
    let blocks: Vec<_> = (11..=to).map(|number| link(number, 0, 0)).collect();
    store.advance(&advance(place(10, 0), &blocks, (11..=to).map(of).collect())).await.unwrap();
    store.settle(&settle(place(to, 0), place(to, 0), to)).await.unwrap();
}

async fn end(store: &dyn WatchStore, claimed: &Claimed) {
    let done = Ended::Done("tx".to_owned());
    assert!(store.finish(claimed.id, claimed.attempt, &done, at(1)).await.unwrap());
}

/// The publisher publishes all that is due.
async fn publish(store: &dyn WatchStore) {
    while let Some(one) = store.claim(PUBLISHER, SOURCE, at(9), LEASE_MS).await.unwrap() {
        end(store, &one).await;
    }
}

async fn receive(store: &dyn WatchStore, number: u64, kind: Kind) -> Received {
    let NewEvent { source, event_id, body, .. } = event(number, 0, false);
    let arrived = Arrived {
        consumer: CONSUMER.to_owned(),
        chain: CHAIN.to_owned(),
        block_number: number,
        message: Message { kind, source, event_id, body },
    };
    store.receive(&arrived, at(2)).await.unwrap()
}

async fn asked(store: &dyn WatchStore, number: u64, kind: Kind) -> Claimed {
    match receive(store, number, kind).await {
        Received::Ask(claimed) => claimed,
        other => panic!("{number}: {other:?}"),
    }
}

fn takers() -> Vec<(String, String)> {
    vec![(CONSUMER.to_owned(), SOURCE.to_owned())]
}

async fn what_a_taker_has_not_taken_over_a_broker_is_not_pruned(store: &dyn WatchStore) {
    store.set_takers(&takers()).await.unwrap();
    with_published(store, 13).await;
    publish(store).await;
    end(store, &asked(store, 12, Kind::Log).await).await;
    // 12: its event and two rows. The others are still in the queue, and a second start changes nothing.
    store.set_takers(&takers()).await.unwrap();
    assert_eq!(prune(store, 99).await, 3);
    let eleven = asked(store, 11, Kind::Log).await;
    assert_eq!(prune(store, 99).await, 0, "it is in hand");
    end(store, &eleven).await;
    end(store, &asked(store, 13, Kind::Log).await).await;
    assert_eq!(prune(store, 99).await, 6);
}

async fn what_is_from_before_a_taker_and_what_nobody_takes_any_more_is_pruned(
    store: &dyn WatchStore,
) {
    with_published(store, 12).await;
    publish(store).await;
    store.set_takers(&takers()).await.unwrap();
    assert_eq!(prune(store, 99).await, 4, "no queue of its had them");
    let consumer = PUBLISHER.to_owned();
    let deliveries = vec![NewDelivery { consumer, held: false }];
    let events = vec![NewEvent { deliveries, ..event(13, 0, false) }];
    store.advance(&advance(place(12, 0), &[link(13, 0, 0)], events)).await.unwrap();
    store.settle(&settle(place(13, 0), place(13, 0), 13)).await.unwrap();
    publish(store).await;
    assert_eq!(prune(store, 99).await, 0);
    store.set_takers(&[]).await.unwrap();
    assert_eq!(prune(store, 99).await, 2);
}

async fn an_event_that_came_back_is_asked_for_again_over_a_broker(store: &dyn WatchStore) {
    ready(store).await;
    let consumer = PUBLISHER.to_owned();
    let deliveries = vec![NewDelivery { consumer, held: false }];
    let events = vec![NewEvent { deliveries, ..event(11, 0, false) }];
    let step = advance(place(10, 0), &[link(11, 0, 0)], events);
    store.set_takers(&takers()).await.unwrap();
    let mut rows = Vec::new();
    for _ in 0..3 {
        store.advance(&step).await.unwrap();
        publish(store).await;
        let log = asked(store, 11, Kind::Log).await;
        end(store, &log).await;
        assert!(matches!(receive(store, 11, Kind::Log).await, Received::Settled(_)));
        let standing = store.standing_above(CHAIN, 10).await.unwrap();
        store.roll_back(&roll_back(place(11, 0), place(10, 0), standing)).await.unwrap();
        publish(store).await;
        let back = asked(store, 11, Kind::Retraction).await;
        end(store, &back).await;
        assert!(matches!(receive(store, 11, Kind::Retraction).await, Received::Settled(_)));
        assert!(matches!(receive(store, 11, Kind::Log).await, Received::Settled(_)), "it is gone");
        rows.extend([log.id, back.id]);
    }
    assert!(rows.is_sorted() && rows.windows(2).all(|pair| pair[0] < pair[1]), "{rows:?}");
    // It comes back for good, and is not answered yet: what was answered before does not count.
    store.advance(&step).await.unwrap();
    store.settle(&settle(place(11, 0), place(11, 0), 11)).await.unwrap();
    publish(store).await;
    store.acknowledge(&claviger::ports::watch_store::Seen::All, at(3)).await.unwrap();
    assert_eq!(prune(store, 99).await, 0);
    end(store, &asked(store, 11, Kind::Log).await).await;
    assert!(prune(store, 99).await > 0);
}

async fn what_nobody_was_told_is_kept_for_who_comes_later(store: &dyn WatchStore) {
    ready(store).await;
    let of = |number| NewEvent { deliveries: Vec::new(), ..event(number, 0, false) };
    with(store, 12, of).await;
    assert_eq!(prune(store, 99).await, 0);
    let backlog = Backlog {
        consumer: CONSUMER.to_owned(),
        source: SOURCE.to_owned(),
        held: false,
        most: 9,
        now: at(3),
    };
    store.tell_backlog(&backlog).await.unwrap();
    for _ in 0..2 {
        let claimed = store.claim(CONSUMER, SOURCE, at(9), LEASE_MS).await.unwrap().unwrap();
        end(store, &claimed).await;
    }
    assert_eq!(prune(store, 99).await, 4);
}

async fn the_highest_block_that_was_pruned_is_known(store: &dyn WatchStore) {
    with_published(store, 14).await;
    assert_eq!(store.newest_pruned(CHAIN).await.unwrap(), 0);
    for wanted in 11..=14 {
        let one = store.claim(PUBLISHER, SOURCE, at(9), LEASE_MS).await.unwrap().unwrap();
        end(store, &one).await;
        assert_eq!(prune(store, 99).await, 2);
        assert_eq!(store.newest_pruned(CHAIN).await.unwrap(), wanted);
    }
    assert_eq!(store.newest_pruned("other").await.unwrap(), 0);
}

async fn a_retracted_or_pruned_event_is_nobodys_turn(store: &dyn WatchStore) {
    ready(store).await;
    let rate = Rate::parse("1/1h").unwrap();
    let id = event(11, 0, false).event_id;
    let step = advance(place(10, 0), &[link(11, 0, 0)], vec![event(11, 0, false)]);
    store.advance(&step).await.unwrap();
    assert_eq!(store.admit(CONSUMER, &id, rate, at(0)).await.unwrap(), None);
    assert_eq!(store.refused_since(CONSUMER, &id, at(10)).await.unwrap(), at(10));
    assert_eq!(store.refused_since(CONSUMER, &id, at(20)).await.unwrap(), at(10), "no second one");
    assert_eq!(store.admit(CONSUMER, &id, rate, at(20)).await.unwrap(), None, "its token is kept");
    let standing = store.standing_above(CHAIN, 10).await.unwrap();
    store.roll_back(&roll_back(place(11, 0), place(10, 0), standing)).await.unwrap();
    assert_eq!(store.refused_since(CONSUMER, &id, at(30)).await.unwrap(), at(30));
    // It comes again, and is answered; a turn is left behind.
    store.advance(&step).await.unwrap();
    store.settle(&settle(place(11, 0), place(11, 0), 11)).await.unwrap();
    let one = store.claim(CONSUMER, SOURCE, at(31), LEASE_MS).await.unwrap().unwrap();
    end(store, &one).await;
    assert!(prune(store, 99).await > 0);
    assert_eq!(store.refused_since(CONSUMER, &id, at(40)).await.unwrap(), at(40));
}

async fn checked(store: &dyn WatchStore) -> u64 {
    store.all_checked().await.unwrap()[0].next_block
}

async fn what_is_read_once_more_is_read_a_second_time_too(store: &dyn WatchStore) {
    with_published(store, 15).await;
    store.checked(&[(SOURCE.to_owned(), 11)]).await.unwrap();
    let again = |from, to| ReadAgain {
        chain: CHAIN.to_owned(),
        moves: vec![SourceMove { source: SOURCE.to_owned(), from, to }],
        events: Vec::new(),
        nodes: 1,
        now: at(7),
    };
    store.read_again(&again(11, 16)).await.unwrap();
    assert!(store.reread(SOURCE, 11, 12).await.unwrap());
    let of = store.all_checked().await.unwrap().remove(0);
    assert_eq!((of.next_block, of.to_block), (11, Some(12)));
    let standing = store.standing_above(CHAIN, 13).await.unwrap();
    store.roll_back(&roll_back(place(15, 0), place(13, 0), standing)).await.unwrap();
    assert_eq!(checked(store).await, 11);
    store.read_again(&again(11, 12)).await.unwrap();
    assert_eq!(checked(store).await, 12);
    store.read_again(&again(12, 13)).await.unwrap();
    assert_eq!(checked(store).await, 14, "not what is between, which may be pruned");
    // Two orders are one, and one that reaches to where it was is a plain step back.
    assert!(store.reread(SOURCE, 11, 11).await.unwrap());
    assert!(store.reread(SOURCE, 12, 12).await.unwrap());
    let of = store.all_checked().await.unwrap().remove(0);
    assert_eq!((of.next_block, of.to_block), (11, Some(12)));
    store.read_again(&again(11, 13)).await.unwrap();
    assert!(store.reread(SOURCE, 12, 13).await.unwrap());
    let of = store.all_checked().await.unwrap().remove(0);
    assert_eq!((of.next_block, of.to_block), (12, None));
    store.read_again(&again(12, 14)).await.unwrap();
    // Back to where the order reaches: the poller is at 11, and is not sent further back.
    let mut step = advance(place(13, 0), &[], Vec::new());
    step.moves[0] = SourceMove { source: SOURCE.to_owned(), from: 11, to: 13 };
    store.advance(&step).await.unwrap();
    assert!(store.rewind(SOURCE, 12).await.unwrap());
    assert_eq!(checked(store).await, 12);
}

async fn state(store: &dyn WatchStore) -> (u64, Option<u64>) {
    let source = store.load(CHAIN).await.unwrap().unwrap().sources.remove(0);
    (source.next_block, source.to_block)
}

async fn read(store: &dyn WatchStore, cursor: u64, from: u64, to: u64) {
    let mut step = advance(place(cursor, 0), &[], Vec::new());
    step.moves[0] = SourceMove { source: SOURCE.to_owned(), from, to };
    store.advance(&step).await.unwrap();
}

async fn an_order_to_read_again_is_not_cut_by_the_next_one(store: &dyn WatchStore) {
    with_published(store, 30).await;
    assert_eq!(state(store).await, (31, None));
    assert!(store.reread(SOURCE, 12, 20).await.unwrap());
    read(store, 30, 12, 15).await;
    // The rest of the first one is read, whatever is asked for meanwhile.
    assert!(store.reread(SOURCE, 11, 13).await.unwrap());
    assert_eq!(state(store).await, (11, Some(20)));
    assert!(store.reread(SOURCE, 18, 25).await.unwrap(), "it is where it is to go to");
    assert_eq!(state(store).await, (11, Some(25)));
    assert!(!store.reread(SOURCE, 31, 32).await.unwrap());
    read(store, 30, 11, 26).await;
    assert_eq!(state(store).await, (31, None));
}

async fn a_reorg_below_an_order_goes_on_with_no_sources_first_block_before(store: &dyn WatchStore) {
    with_published(store, 14).await;
    assert!(store.reread(SOURCE, 9, 9).await.unwrap(), "an operator may go below its first block");
    let standing = store.standing_above(CHAIN, 9).await.unwrap();
    store.roll_back(&roll_back(place(14, 0), place(9, 0), standing)).await.unwrap();
    read(store, 9, 9, 10).await;
    assert_eq!(
        state(store).await,
        (10, None),
        "that is where it began now, and a reorg goes so far"
    );
}

async fn where_a_source_began_is_noted_where_it_is_not_known(store: &dyn WatchStore) {
    with_published(store, 14).await;
    // It is known: 11.
    store.note_first_block(SOURCE, 13).await.unwrap();
    let standing = store.standing_above(CHAIN, 9).await.unwrap();
    store.roll_back(&roll_back(place(14, 0), place(9, 0), standing)).await.unwrap();
    assert_eq!(state(store).await.0, 11);
}
