//! Chains that go on after a halt, consumers that come later, what is decoded again.

use crate::fixtures::*;
use claviger::core::chain_view::Link;
use claviger::ports::bus::Kind;
use claviger::ports::watch_store::{Backlog, Ended, NewEvent, Resume, WatchStore, WatchStoreError};

on_both!(
    nothing_moves_a_halted_chain_and_resuming_anchors_it_anew,
    a_resumed_chain_keeps_the_window_that_it_has_in_common,
    what_was_taken_back_once_is_not_taken_back_again,
    a_source_is_not_sent_back_to_before_its_first_block,
    a_consumer_that_came_later_is_told_what_stands_once,
    what_did_not_decode_can_be_tried_again,
);

async fn done(store: &dyn WatchStore, now: i64) -> Option<(Kind, String)> {
    let claimed = store.claim(CONSUMER, SOURCE, at(now), LEASE_MS).await.unwrap()?;
    let done = Ended::Done("tx".to_owned());
    assert!(store.finish(claimed.id, claimed.attempt, &done, at(now)).await.unwrap());
    Some((claimed.message.kind, claimed.message.event_id))
}

async fn nothing_moves_a_halted_chain_and_resuming_anchors_it_anew(store: &dyn WatchStore) {
    ready(store).await;
    let blocks = [link(11, 0, 0), link(12, 0, 0)];
    let events = vec![event(11, 0, false), event(12, 0, false)];
    store.advance(&advance(place(10, 0), &blocks, events)).await.unwrap();
    store.settle(&settle(place(12, 0), place(12, 0), 12)).await.unwrap();
    assert!(done(store, 1).await.is_some() && done(store, 1).await.is_some());
    let standing = store.standing_above(CHAIN, 11).await.unwrap();
    let order = Resume {
        chain: CHAIN.to_owned(),
        expected: place(12, 0),
        ancestor: 11,
        retractions: standing.clone(),
        tip: link(14, 1, 1),
        finalized: place(14, 1),
        reason: "the other node was right".to_owned(),
        now: at(9),
    };
    assert_eq!(store.resume(&order).await, Err(WatchStoreError::CursorMoved), "it is not halted");
    store.set_halted(CHAIN, Some("below finality")).await.unwrap();
    let moved = WatchStoreError::CursorMoved;
    let more = advance(place(12, 0), &[link(13, 0, 0)], Vec::new());
    assert_eq!(store.advance(&more).await, Err(moved.clone()));
    assert_eq!(store.settle(&settle(place(12, 0), place(12, 0), 12)).await, Err(moved.clone()));
    let back = roll_back(place(12, 0), place(11, 0), standing);
    assert_eq!(store.roll_back(&back).await, Err(moved.clone()));
    let partial = Resume { retractions: Vec::new(), ..order.clone() };
    assert_eq!(store.resume(&partial).await, Err(moved), "an event above the ancestor stands");

    store.resume(&order).await.unwrap();
    let state = store.load(CHAIN).await.unwrap().unwrap();
    assert_eq!((state.cursor, state.finalized), (place(14, 1), Some(place(14, 1))));
    assert_eq!((state.halted, state.window), (None, vec![link(14, 1, 1)]));
    assert_eq!(state.sources[0].next_block, 12, "what it took above the ancestor is read again");
    let told = done(store, 10).await.unwrap();
    assert_eq!(told, (Kind::Retraction, event(12, 0, false).event_id));
    let found = store.event_blocks_below(CHAIN, 14, 9).await.unwrap();
    assert_eq!(found, [place(11, 0)]);
}

async fn a_resumed_chain_keeps_the_window_that_it_has_in_common(store: &dyn WatchStore) {
    ready(store).await;
    let blocks = [link(11, 0, 0), link(12, 0, 0), link(13, 0, 0)];
    store.advance(&advance(place(10, 0), &blocks, Vec::new())).await.unwrap();
    store.settle(&settle(place(13, 0), place(11, 0), 11)).await.unwrap();
    store.set_halted(CHAIN, Some("below finality")).await.unwrap();
    let order = Resume {
        chain: CHAIN.to_owned(),
        expected: place(13, 0),
        ancestor: 12,
        retractions: Vec::new(),
        tip: blocks[1],
        finalized: place(11, 0),
        reason: "as it was".to_owned(),
        now: at(9),
    };
    store.resume(&order).await.unwrap();
    let state = store.load(CHAIN).await.unwrap().unwrap();
    assert_eq!((state.cursor, state.finalized), (place(12, 0), Some(place(11, 0))));
    assert_eq!(state.window, [link(10, 0, 0), blocks[0], blocks[1]]);
    assert_eq!(state.sources[0].next_block, 13);
}

async fn what_was_taken_back_once_is_not_taken_back_again(store: &dyn WatchStore) {
    ready(store).await;
    let blocks = [link(11, 0, 0)];
    let step = advance(place(10, 0), &blocks, vec![event(11, 0, false)]);
    store.advance(&step).await.unwrap();
    assert_eq!(done(store, 1).await.unwrap().0, Kind::Log);
    let back = async || {
        let standing = store.standing_above(CHAIN, 10).await.unwrap();
        store.roll_back(&roll_back(place(11, 0), place(10, 0), standing)).await.unwrap();
    };
    back().await;
    // The block comes and goes again, and nobody was told of it meanwhile.
    store.advance(&step).await.unwrap();
    back().await;
    assert_eq!(done(store, 6).await.unwrap().0, Kind::Retraction);
    assert_eq!(done(store, 6).await, None);
    // The next time somebody is.
    store.advance(&step).await.unwrap();
    assert_eq!(done(store, 7).await.unwrap().0, Kind::Log);
    back().await;
    assert_eq!(done(store, 8).await.unwrap().0, Kind::Retraction);
    assert_eq!(done(store, 8).await, None);
}

async fn a_source_is_not_sent_back_to_before_its_first_block(store: &dyn WatchStore) {
    ready(store).await;
    let blocks: Vec<Link> = (11..=13).map(|number| link(number, 0, 0)).collect();
    let mut step = advance(place(10, 0), &blocks, Vec::new());
    step.moves.clear();
    store.advance(&step).await.unwrap();
    // It begins at block 11 and has taken nothing; after the reorg it still begins there.
    store.roll_back(&roll_back(place(13, 0), place(10, 0), Vec::new())).await.unwrap();
    let next = async || store.load(CHAIN).await.unwrap().unwrap().sources[0].next_block;
    assert_eq!(next().await, 11);
    store.advance(&advance(place(10, 0), &blocks, Vec::new())).await.unwrap();
    assert_eq!(next().await, 14);
    store.roll_back(&roll_back(place(13, 0), place(11, 0), Vec::new())).await.unwrap();
    assert_eq!(next().await, 12);
    store.roll_back(&roll_back(place(11, 0), place(9, 0), Vec::new())).await.unwrap();
    assert_eq!(next().await, 11, "not 10");
    assert!(store.rewind(SOURCE, 9).await.unwrap());
    assert_eq!(next().await, 9);
}

async fn a_consumer_that_came_later_is_told_what_stands_once(store: &dyn WatchStore) {
    ready(store).await;
    let blocks = [link(11, 0, 0), link(12, 0, 0)];
    let bad = NewEvent {
        undecodable: Some("too short".to_owned()),
        deliveries: Vec::new(),
        event_id: "bad".to_owned(),
        ..event(12, 0, false)
    };
    let events = vec![event(11, 0, false), bad, event(12, 0, false)];
    store.advance(&advance(place(10, 0), &blocks, events)).await.unwrap();
    let backlog = Backlog {
        consumer: "trigger:late".to_owned(),
        source: SOURCE.to_owned(),
        held: true,
        most: 2,
        now: at(3),
    };
    assert!(store.tell_backlog(&backlog).await.unwrap(), "two were looked at");
    assert!(!store.tell_backlog(&backlog).await.unwrap());
    assert!(!store.tell_backlog(&backlog).await.unwrap(), "and nothing any more");
    assert_eq!(counts(store).await, [("ready".to_owned(), 2), ("held".to_owned(), 2)]);
    store.settle(&settle(place(12, 0), place(11, 0), 11)).await.unwrap();
    let claimed = store.claim("trigger:late", SOURCE, at(4), LEASE_MS).await.unwrap().unwrap();
    assert_eq!(claimed.message.event_id, event(11, 0, false).event_id);
    // Who was told all of it already is told nothing twice.
    let known = Backlog { consumer: CONSUMER.to_owned(), most: 10, ..backlog };
    assert!(!store.tell_backlog(&known).await.unwrap());
    assert_eq!(counts(store).await.iter().map(|(_, count)| count).sum::<u64>(), 4);
}

async fn what_did_not_decode_can_be_tried_again(store: &dyn WatchStore) {
    ready(store).await;
    let bad = |number| NewEvent {
        undecodable: Some("too short".to_owned()),
        deliveries: Vec::new(),
        ..event(number, 0, false)
    };
    let blocks = [link(11, 0, 0), link(12, 0, 0), link(13, 0, 0)];
    let events = vec![bad(11), bad(12), bad(13)];
    store.advance(&advance(place(10, 0), &blocks, events)).await.unwrap();
    assert!(store.to_decode_again(CHAIN, 9).await.unwrap().is_empty());
    assert_eq!(store.mark_undecodable(&["another".to_owned()]).await.unwrap(), 0);
    assert_eq!(store.mark_undecodable(&[SOURCE.to_owned()]).await.unwrap(), 3);
    let marked = store.to_decode_again(CHAIN, 2).await.unwrap();
    let blocks: Vec<_> = marked.iter().map(|again| again.block).collect();
    assert_eq!(blocks, [place(11, 0), place(12, 0)]);
    // The first decodes now, the second does not, the third goes with a reorg.
    let mut step = advance(place(13, 0), &[], vec![event(11, 0, false), bad(12)]);
    step.moves.clear();
    store.advance(&step).await.unwrap();
    let standing = store.standing_above(CHAIN, 12).await.unwrap();
    store.roll_back(&roll_back(place(13, 0), place(12, 0), standing)).await.unwrap();
    assert!(store.to_decode_again(CHAIN, 9).await.unwrap().is_empty());
    assert_eq!(done(store, 9).await.unwrap().1, event(11, 0, false).event_id);
    let attention = store.status().await.unwrap().attention;
    assert_eq!(attention.len(), 1, "{attention:?}");
    assert_eq!(attention[0].event_id, event(12, 0, false).event_id);
}
