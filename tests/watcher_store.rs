//! The watcher's database: one suite of what the port promises, on both back ends.

#![cfg(feature = "watcher")]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support {
    pub mod services;
}

use alloy::primitives::B256;
use claviger::core::chain_view::{Link, Place};
use claviger::core::id::ChainId;
use claviger::core::time::Timestamp;
use claviger::ports::bus::{Kind, Message, PUBLISHER};
use claviger::ports::watch_store::{
    Advance, Arrived, ChainPin, Claimed, Ended, NewDelivery, NewEvent, Parked, Received, RollBack,
    Settle, SourceMove, SourceState, StandingEvent, Unreadable, WatchStore, WatchStoreError,
};
use claviger::watch::cloudevent;
use claviger::watch::store::{OpenMode, open};
use support::services::Postgres;

const CHAIN: &str = "local";
const SOURCE: &str = "charges";
const CONSUMER: &str = "trigger:charge";
const LEASE_MS: i64 = 1000;

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

/// Block `number` of fork `fork`.
fn hash(number: u64, fork: u8) -> B256 {
    let mut bytes = [fork; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    B256::from(bytes)
}

fn place(number: u64, fork: u8) -> Place {
    Place { number, hash: hash(number, fork) }
}

fn link(number: u64, fork: u8, parent_fork: u8) -> Link {
    Link { number, hash: hash(number, fork), parent: hash(number - 1, parent_fork) }
}

fn event(number: u64, fork: u8, held: bool) -> NewEvent {
    NewEvent {
        source: SOURCE.to_owned(),
        event_id: format!("{CHAIN}:{}:0x00:0", hash(number, fork)),
        block: place(number, fork),
        body: format!("event of block {number}"),
        undecodable: None,
        deliveries: vec![NewDelivery { consumer: CONSUMER.to_owned(), held }],
    }
}

fn advance(from: Place, blocks: &[Link], events: Vec<NewEvent>) -> Advance {
    let to = blocks.last().map_or(from.number, |block| block.number);
    Advance {
        chain: CHAIN.to_owned(),
        expected: from,
        blocks: blocks.to_vec(),
        moves: vec![SourceMove { source: SOURCE.to_owned(), from: from.number + 1, to: to + 1 }],
        events,
        keep: 4,
        now: at(0),
    }
}

/// A store whose chain stands at block 10 of fork 0.
async fn ready(store: &dyn WatchStore) {
    store.register(&pin(), link(10, 0, 0)).await.unwrap();
    store.add_source(CHAIN, &source("Paid() of 0x00")).await.unwrap();
}

fn pin() -> ChainPin {
    ChainPin { name: CHAIN.to_owned(), chain_id: ChainId::new(31337), genesis: hash(0, 0) }
}

fn source(definition: &str) -> SourceState {
    SourceState { name: SOURCE.to_owned(), definition: definition.to_owned(), next_block: 11 }
}

fn roll_back(from: Place, to: Place, retractions: Vec<StandingEvent>) -> RollBack {
    RollBack { chain: CHAIN.to_owned(), expected: from, ancestor: to, retractions, now: at(5) }
}

fn settle(cursor: Place, final_: Place, upto: u64) -> Settle {
    Settle {
        chain: CHAIN.to_owned(),
        expected: cursor,
        finalized: Some(final_),
        releases: vec![(SOURCE.to_owned(), upto)],
        now: at(0),
    }
}

async fn counts(store: &dyn WatchStore) -> Vec<(String, u64)> {
    let status = store.status().await.unwrap();
    status.outbox.into_iter().map(|row| (row.state, row.count)).collect()
}

async fn a_chain_and_a_source_are_pinned(store: &dyn WatchStore) {
    ready(store).await;
    ready(store).await;
    let other = ChainPin { genesis: hash(0, 9), ..pin() };
    let refused = store.register(&other, link(10, 0, 0)).await;
    assert!(matches!(refused, Err(WatchStoreError::Contradiction(_))), "{refused:?}");
    let refused = store.add_source(CHAIN, &source("Other() of 0x00")).await;
    assert!(matches!(refused, Err(WatchStoreError::Contradiction(_))), "{refused:?}");
    let state = store.load(CHAIN).await.unwrap().unwrap();
    assert_eq!((state.pin, state.cursor), (pin(), place(10, 0)));
    assert_eq!(state.sources, [source("Paid() of 0x00")]);
    assert_eq!((state.finalized, state.halted), (None, None));
    assert_eq!(store.load("nowhere").await.unwrap(), None);
}

async fn a_step_moves_everything_or_nothing(store: &dyn WatchStore) {
    ready(store).await;
    let blocks = [link(11, 0, 0), link(12, 0, 0)];
    let mut wrong = advance(place(10, 0), &blocks, vec![event(11, 0, false)]);
    wrong.moves[0].from = 99;
    assert_eq!(store.advance(&wrong).await, Err(WatchStoreError::CursorMoved));
    assert_eq!(store.load(CHAIN).await.unwrap().unwrap().cursor, place(10, 0));
    assert!(counts(store).await.is_empty());
    // A statement that fails in the middle: the block is there already.
    let twice = [link(11, 0, 0), link(11, 0, 0)];
    let failed = store.advance(&advance(place(10, 0), &twice, vec![event(11, 0, false)])).await;
    assert!(matches!(failed, Err(WatchStoreError::Unavailable(_))), "{failed:?}");
    assert!(counts(store).await.is_empty());
    assert!(store.standing_above(CHAIN, 0).await.unwrap().is_empty());

    let right = advance(place(10, 0), &blocks, vec![event(11, 0, false)]);
    store.advance(&right).await.unwrap();
    // The cursor has moved, so the same step cannot be taken again.
    assert_eq!(store.advance(&right).await, Err(WatchStoreError::CursorMoved));
    let state = store.load(CHAIN).await.unwrap().unwrap();
    assert_eq!((state.cursor, state.sources[0].next_block), (place(12, 0), 13));
    assert_eq!(state.window, [link(10, 0, 0), link(11, 0, 0), link(12, 0, 0)]);
    assert_eq!(counts(store).await, [("ready".to_owned(), 1)]);
}

async fn the_window_forgets_its_oldest_blocks(store: &dyn WatchStore) {
    ready(store).await;
    let blocks: Vec<Link> = (11..=20).map(|number| link(number, 0, 0)).collect();
    store.advance(&advance(place(10, 0), &blocks, Vec::new())).await.unwrap();
    let window = store.load(CHAIN).await.unwrap().unwrap().window;
    assert_eq!(window.iter().map(|link| link.number).collect::<Vec<_>>(), [17, 18, 19, 20]);
}

async fn deliveries_go_in_order_and_end_when_told(store: &dyn WatchStore) {
    ready(store).await;
    let blocks = [link(11, 0, 0), link(12, 0, 0)];
    let events = vec![event(11, 0, false), event(12, 0, false)];
    store.advance(&advance(place(10, 0), &blocks, events)).await.unwrap();
    let claim = |now| store.claim(CONSUMER, SOURCE, at(now), LEASE_MS);
    let first = claim(0).await.unwrap().unwrap();
    assert_eq!((first.attempt, first.message.body.as_str()), (1, "event of block 11"));
    assert_eq!(claim(0).await.unwrap(), None, "in hand, and nothing overtakes it");

    let due = at(500);
    let again = Ended::Retry { due, error: "busy".to_owned() };
    assert!(store.finish(first.id, 1, &again, at(1)).await.unwrap());
    assert_eq!(claim(499).await.unwrap(), None);
    let second = claim(500).await.unwrap().unwrap();
    assert_eq!((second.id, second.attempt), (first.id, 2));
    // The first attempt comes back late: it has lost its token.
    let done = Ended::Done("tx-1".to_owned());
    assert!(!store.finish(first.id, 1, &done, at(501)).await.unwrap());
    assert!(store.finish(first.id, 2, &done, at(501)).await.unwrap());
    assert!(!store.finish(first.id, 2, &done, at(501)).await.unwrap());

    let next = claim(501).await.unwrap().unwrap();
    assert_eq!(next.message.body, "event of block 12");
    // A claim whose process died is free after the lease, or at the next start.
    assert_eq!(claim(502).await.unwrap(), None);
    store.forget_claims(at(503)).await.unwrap();
    assert_eq!(claim(503).await.unwrap().unwrap().attempt, 2);
    assert_eq!(claim(503 + LEASE_MS).await.unwrap().unwrap().attempt, 3);
}

async fn what_is_parked_is_shown_and_can_be_tried_again(store: &dyn WatchStore) {
    ready(store).await;
    let blocks = [link(11, 0, 0), link(12, 0, 0)];
    let bad = NewEvent {
        undecodable: Some("too short".to_owned()),
        deliveries: Vec::new(),
        ..event(12, 0, false)
    };
    let events = vec![event(11, 0, false), bad];
    store.advance(&advance(place(10, 0), &blocks, events)).await.unwrap();
    let claimed = store.claim(CONSUMER, SOURCE, at(0), LEASE_MS).await.unwrap().unwrap();
    let parked = Ended::Parked("HTTP 403".to_owned());
    assert!(store.finish(claimed.id, 1, &parked, at(0)).await.unwrap());
    let attention = store.status().await.unwrap().attention;
    let seen: Vec<_> = attention.iter().map(|item| (item.delivery, item.reason.as_str())).collect();
    assert_eq!(seen, [(claimed.id, "HTTP 403"), (0, "undecodable: too short")]);
    assert_eq!(store.unpark(Some(claimed.id + 1), at(9)).await.unwrap(), 0);
    assert_eq!(store.unpark(None, at(9)).await.unwrap(), 1);
    assert!(store.claim(CONSUMER, SOURCE, at(9), LEASE_MS).await.unwrap().is_some());
}

async fn held_deliveries_wait_for_finality(store: &dyn WatchStore) {
    ready(store).await;
    let blocks = [link(11, 0, 0), link(12, 0, 0)];
    let events = vec![event(11, 0, true), event(12, 0, true)];
    store.advance(&advance(place(10, 0), &blocks, events)).await.unwrap();
    assert_eq!(store.claim(CONSUMER, SOURCE, at(0), LEASE_MS).await.unwrap(), None);
    let moved = settle(place(11, 0), place(11, 0), 11);
    assert_eq!(store.settle(&moved).await, Err(WatchStoreError::CursorMoved));
    store.settle(&settle(place(12, 0), place(11, 0), 11)).await.unwrap();
    assert_eq!(counts(store).await, [("held".to_owned(), 1), ("ready".to_owned(), 1)]);
    assert_eq!(store.load(CHAIN).await.unwrap().unwrap().finalized, Some(place(11, 0)));
    // Finality does not go back.
    store.settle(&settle(place(12, 0), place(10, 0), 10)).await.unwrap();
    assert_eq!(store.load(CHAIN).await.unwrap().unwrap().finalized, Some(place(11, 0)));
}

async fn a_reorg_cancels_what_was_not_tried_and_retracts_the_rest(store: &dyn WatchStore) {
    ready(store).await;
    let blocks = [link(11, 0, 0), link(12, 0, 0), link(13, 0, 0)];
    let events = vec![event(11, 0, false), event(12, 0, false), event(13, 0, true)];
    store.advance(&advance(place(10, 0), &blocks, events)).await.unwrap();
    for _ in [11, 12] {
        let claimed = store.claim(CONSUMER, SOURCE, at(0), LEASE_MS).await.unwrap().unwrap();
        let done = Ended::Done("tx".to_owned());
        assert!(store.finish(claimed.id, 1, &done, at(0)).await.unwrap());
    }
    let standing = store.standing_above(CHAIN, 11).await.unwrap();
    let ids: Vec<_> = standing.iter().map(|event| event.event_id.clone()).collect();
    assert_eq!(ids, [event(12, 0, false).event_id, event(13, 0, true).event_id]);
    let partial = roll_back(place(13, 0), place(11, 0), standing[..1].to_vec());
    assert_eq!(store.roll_back(&partial).await, Err(WatchStoreError::CursorMoved));
    let back = roll_back(place(13, 0), place(11, 0), standing);
    store.roll_back(&back).await.unwrap();
    assert_eq!(store.roll_back(&back).await, Err(WatchStoreError::CursorMoved));

    let state = store.load(CHAIN).await.unwrap().unwrap();
    assert_eq!((state.cursor, state.sources[0].next_block), (place(11, 0), 12));
    assert_eq!(state.window, [link(10, 0, 0), link(11, 0, 0)]);
    let told = store.claim(CONSUMER, SOURCE, at(5), LEASE_MS).await.unwrap().unwrap();
    assert_eq!(told.message.kind, Kind::Retraction);
    assert_eq!(told.message.event_id, event(12, 0, false).event_id, "the original id");
    assert!(store.finish(told.id, 1, &Ended::Done("noted".to_owned()), at(5)).await.unwrap());
    assert_eq!(store.claim(CONSUMER, SOURCE, at(5), LEASE_MS).await.unwrap(), None);
    let attention = store.status().await.unwrap().attention;
    assert_eq!(attention[0].reason, "retracted after it became tx");
}

async fn an_event_is_told_once_and_again_only_after_its_retraction(store: &dyn WatchStore) {
    ready(store).await;
    let first = [link(11, 0, 0)];
    store.advance(&advance(place(10, 0), &first, vec![event(11, 0, true)])).await.unwrap();
    // A backfill meets it again.
    let mut again = advance(place(11, 0), &[], vec![event(11, 0, true)]);
    again.moves.clear();
    store.advance(&again).await.unwrap();
    assert_eq!(counts(store).await, [("held".to_owned(), 1)]);

    let standing = store.standing_above(CHAIN, 10).await.unwrap();
    store.roll_back(&roll_back(place(11, 0), place(10, 0), standing)).await.unwrap();
    store.advance(&advance(place(10, 0), &[link(11, 1, 0)], Vec::new())).await.unwrap();
    store.roll_back(&roll_back(place(11, 1), place(10, 0), Vec::new())).await.unwrap();
    // The first block is canonical after all.
    store.advance(&advance(place(10, 0), &first, vec![event(11, 0, true)])).await.unwrap();
    assert_eq!(counts(store).await, [("cancelled".to_owned(), 1), ("held".to_owned(), 1)]);
}

async fn what_a_cancelled_delivery_became_is_kept(store: &dyn WatchStore) {
    ready(store).await;
    let blocks = [link(11, 0, 0)];
    store.advance(&advance(place(10, 0), &blocks, vec![event(11, 0, false)])).await.unwrap();
    let claimed = store.claim(CONSUMER, SOURCE, at(0), LEASE_MS).await.unwrap().unwrap();
    let standing = store.standing_above(CHAIN, 10).await.unwrap();
    store.roll_back(&roll_back(place(11, 0), place(10, 0), standing)).await.unwrap();
    let done = Ended::Done("tx-7".to_owned());
    assert!(!store.finish(claimed.id, 1, &done, at(6)).await.unwrap());
    let attention = store.status().await.unwrap().attention;
    assert!(attention.iter().all(|item| item.reason == "retracted after it became tx-7"));
    assert_eq!(attention.len(), 2, "the retraction, and the delivery itself");
}

async fn a_source_is_sent_back_but_never_forward(store: &dyn WatchStore) {
    ready(store).await;
    assert!(!store.rewind(SOURCE, 11).await.unwrap());
    assert!(!store.rewind("nobody", 1).await.unwrap());
    assert!(store.rewind(SOURCE, 0).await.unwrap());
    assert_eq!(store.load(CHAIN).await.unwrap().unwrap().sources[0].next_block, 1);
}

async fn halts_are_recorded(store: &dyn WatchStore) {
    ready(store).await;
    store.set_halted(CHAIN, Some("below finality")).await.unwrap();
    let state = store.load(CHAIN).await.unwrap().unwrap();
    assert_eq!(state.halted.as_deref(), Some("below finality"));
    store.set_halted(CHAIN, None).await.unwrap();
    assert_eq!(store.load(CHAIN).await.unwrap().unwrap().halted, None);
}

async fn of_two_that_step_or_claim_at_once_one_wins(store: &dyn WatchStore) {
    ready(store).await;
    let step = advance(place(10, 0), &[link(11, 0, 0)], vec![event(11, 0, false)]);
    let (one, two) = tokio::join!(store.advance(&step), store.advance(&step));
    let won = [&one, &two].iter().filter(|answer| answer.is_ok()).count();
    assert_eq!(won, 1, "{one:?} {two:?}");
    let claim = || store.claim(CONSUMER, SOURCE, at(0), LEASE_MS);
    let (one, two) = tokio::join!(claim(), claim());
    let won = [one.unwrap(), two.unwrap()].iter().flatten().count();
    assert_eq!(won, 1);
}

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
    let parked = store.parked().await.unwrap();
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
    // Before the own poller has come so far, nothing is known of it.
    let early = asked(store, &forged(11)).await;
    assert_eq!(early.message, forged(11).message);
    park(store, &early).await;
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
    // Even a forged copy asks with the true document then, in the row that the forgery made.
    let claimed = asked(store, &forged(11)).await;
    assert_eq!((claimed.id, claimed.attempt), (early.id, 2));
    assert_eq!(claimed.message, arrived(11, Kind::Log).message);
    park(store, &claimed).await;
    settled(store, &forged(11)).await;
    settled(store, &arrived(11, Kind::Log)).await;
    let parked = store.parked().await.unwrap();
    let own = arrived(11, Kind::Log).message.body;
    assert!(matches!(&parked[..], [Parked::Delivery { body, .. }] if *body == own), "{parked:?}");
}

async fn a_retraction_of_what_stands_here_changes_nothing(store: &dyn WatchStore) {
    ready(store).await;
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

async fn another_document_of_what_is_parked_is_asked_for_anew(store: &dyn WatchStore) {
    ready(store).await;
    let first = asked(store, &forged(11)).await;
    park(store, &first).await;
    settled(store, &forged(11)).await;
    let second = asked(store, &arrived(11, Kind::Log)).await;
    assert_eq!((second.id, second.attempt), (first.id, 2));
    park(store, &second).await;
    // By an operator's word the outbox tries again, with the newest document.
    assert_eq!(store.unpark(None, at(3)).await.unwrap(), 1);
    settled(store, &arrived(11, Kind::Log)).await;
    let third = store.claim(CONSUMER, SOURCE, at(3), LEASE_MS).await.unwrap().unwrap();
    assert_eq!((third.id, third.message), (first.id, arrived(11, Kind::Log).message));
    // Another one comes while that is under way: the older attempt loses its token.
    assert_eq!(asked(store, &forged(11)).await.attempt, 4);
    assert!(!store.finish(first.id, 3, &Ended::Done(String::new()), at(4)).await.unwrap());
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
    assert_eq!(store.parked().await.unwrap(), [Parked::Unreadable(message.clone())]);
    let attention = store.status().await.unwrap().attention;
    assert_eq!(attention.len(), 1);
    assert_eq!(attention[0].reason, "unreadable: not UTF-8");
    // PostgreSQL takes no NUL in a text: what is wrong with this one is told without.
    let nul = cloudevent::clean(&cloudevent::read(b"{\"\\u0000\":1}", &[]).unwrap_err());
    assert!(nul.contains("unknown field"), "{nul}");
    let other = Unreadable { digest: hash(2, 7), reason: nul, ..message };
    store.keep_unreadable(&other, at(3)).await.unwrap();
}

macro_rules! on_both {
    ($($behaviour:ident),+ $(,)?) => {
        mod sqlite {
            use super::*;
            $(#[tokio::test]
            async fn $behaviour() {
                let folder = tempfile::tempdir().unwrap();
                let url = format!("sqlite:{}", folder.path().join("watcher.db").display());
                let store = open(&url, OpenMode::Create).await.unwrap();
                super::$behaviour(store.as_ref()).await;
            })+
        }
        mod postgres {
            use super::*;
            $(#[tokio::test]
            async fn $behaviour() {
                let url = Postgres::shared().await.create_database();
                let store = open(&url, OpenMode::Create).await.unwrap();
                super::$behaviour(store.as_ref()).await;
            })+
        }
    };
}

on_both!(
    a_chain_and_a_source_are_pinned,
    a_step_moves_everything_or_nothing,
    the_window_forgets_its_oldest_blocks,
    deliveries_go_in_order_and_end_when_told,
    what_is_parked_is_shown_and_can_be_tried_again,
    held_deliveries_wait_for_finality,
    a_reorg_cancels_what_was_not_tried_and_retracts_the_rest,
    an_event_is_told_once_and_again_only_after_its_retraction,
    what_a_cancelled_delivery_became_is_kept,
    a_source_is_sent_back_but_never_forward,
    halts_are_recorded,
    of_two_that_step_or_claim_at_once_one_wins,
    what_comes_over_a_bus_is_asked_for_until_it_is_answered_and_never_after,
    what_came_over_a_bus_is_parked_and_tried_again_by_the_outbox,
    a_retraction_that_comes_over_a_bus_is_told_once_if_something_was_asked_for,
    an_event_that_is_told_again_over_a_bus_is_asked_for,
    an_event_that_is_known_here_is_asked_for_as_it_is_here_and_when_it_is_final,
    a_retraction_of_what_stands_here_changes_nothing,
    another_document_of_what_is_parked_is_asked_for_anew,
    what_cannot_be_read_is_kept_once_with_its_bytes,
);

#[tokio::test]
async fn an_absent_database_is_refused_and_an_existing_one_is_not_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = format!("sqlite:{}", folder.path().join("watcher.db").display());
    for url in [sqlite, Postgres::shared().await.create_database()] {
        let absent = open(&url, OpenMode::Existing).await.err().unwrap().to_string();
        assert!(absent.contains("claviger-watcher init"), "{absent}");
        open(&url, OpenMode::Create).await.unwrap();
        assert!(open(&url, OpenMode::Create).await.is_err());
        open(&url, OpenMode::Existing).await.unwrap();
    }
}
