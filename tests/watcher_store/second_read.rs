//! The second reading of final blocks.

use crate::fixtures::*;

use claviger::ports::watch_store::{
    Checked, NewEvent, ReadAgain, SourceMove, StandingEvent, WatchStore, WatchStoreError,
};

on_both!(
    it_begins_once_and_goes_on_where_it_was,
    what_was_left_out_is_told_once_and_what_stands_is_not_told_again,
    of_two_that_read_again_one_moves,
);

fn again(from: u64, to: u64, events: Vec<NewEvent>) -> ReadAgain {
    ReadAgain {
        chain: CHAIN.to_owned(),
        moves: vec![SourceMove { source: SOURCE.to_owned(), from, to }],
        events,
        nodes: 2,
        now: at(7),
    }
}

fn checked(next_block: u64, late: u64, nodes: u64) -> Vec<Checked> {
    vec![Checked { source: SOURCE.to_owned(), next_block, to_block: None, late, nodes }]
}

async fn it_begins_once_and_goes_on_where_it_was(store: &dyn WatchStore) {
    ready(store).await;
    assert!(store.all_checked().await.unwrap().is_empty());
    let begin = |at: u64| vec![(SOURCE.to_owned(), at)];
    assert_eq!(store.checked(&begin(11)).await.unwrap(), checked(11, 0, 0));
    assert_eq!(store.checked(&begin(99)).await.unwrap(), checked(11, 0, 0));
    assert!(store.read_again(&again(11, 15, Vec::new())).await.unwrap().is_empty());
    assert_eq!(store.checked(&begin(99)).await.unwrap(), checked(15, 0, 2));
    assert_eq!(store.all_checked().await.unwrap(), checked(15, 0, 2));
}

async fn what_was_left_out_is_told_once_and_what_stands_is_not_told_again(store: &dyn WatchStore) {
    ready(store).await;
    store.checked(&[(SOURCE.to_owned(), 11)]).await.unwrap();
    let blocks = [link(11, 0, 0), link(12, 0, 0), link(13, 0, 0)];
    let told = vec![event(11, 0, false), event(13, 0, false)];
    store.advance(&advance(place(10, 0), &blocks, told)).await.unwrap();
    let gone = event(13, 0, false);
    let (source, event_id) = (gone.source.clone(), gone.event_id.clone());
    let body = "taken back".to_owned();
    let back = vec![StandingEvent { source, event_id, body }];
    store.roll_back(&roll_back(place(13, 0), place(12, 0), back)).await.unwrap();
    let known = |number| (SOURCE.to_owned(), event(number, 0, false).event_id);
    assert_eq!(store.known_between(CHAIN, 11, 13).await.unwrap(), [known(11)]);
    assert!(store.known_between(CHAIN, 12, 13).await.unwrap().is_empty());
    let found = vec![event(11, 0, false), event(12, 0, false)];
    let late = store.read_again(&again(11, 13, found)).await.unwrap();
    assert_eq!(late, [event(12, 0, false).event_id]);
    assert_eq!(store.known_between(CHAIN, 11, 13).await.unwrap(), [known(11), known(12)]);
    assert_eq!(store.all_checked().await.unwrap(), checked(13, 1, 2));
    let ready: u64 =
        counts(store).await.iter().filter(|row| row.0 == "ready").map(|row| row.1).sum();
    assert_eq!(ready, 2, "the late one, and the one that was told in time");
}

async fn of_two_that_read_again_one_moves(store: &dyn WatchStore) {
    ready(store).await;
    store.checked(&[(SOURCE.to_owned(), 11)]).await.unwrap();
    store.read_again(&again(11, 13, Vec::new())).await.unwrap();
    let second = store.read_again(&again(11, 13, vec![event(12, 0, false)])).await;
    assert_eq!(second, Err(WatchStoreError::CursorMoved));
    assert!(store.known_between(CHAIN, 0, 99).await.unwrap().is_empty(), "nothing of it is kept");
}
