//! Chains, events and the outbox.

use crate::fixtures::*;

use claviger::core::chain_view::Link;
use claviger::ports::bus::Kind;
use claviger::ports::watch_store::{ChainPin, Ended, NewEvent, WatchStore, WatchStoreError};

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
);

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
    store.free_claims(CONSUMER, SOURCE, at(503)).await.unwrap();
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
    let shown = (attention[0].reason.as_str(), attention[0].became.as_deref());
    assert_eq!(shown, ("retracted: noted", Some("tx")));
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
