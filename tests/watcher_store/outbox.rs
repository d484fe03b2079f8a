//! Lanes, what is pruned, and what an operator sees.

use crate::fixtures::*;
use claviger::core::chain_view::Link;
use claviger::ports::watch_store::{
    Claimed, Ended, NewEvent, OpenLane, Parked, Seen, Unreadable, WatchStore,
};

on_both!(
    some_are_claimed_in_order_up_to_what_is_not_due,
    what_was_not_tried_is_put_back_as_it_was,
    what_a_clock_that_was_ahead_wrote_does_not_wait_for_it,
    open_deliveries_are_counted_by_consumer_and_source,
    a_commit_rings_the_bell_of_its_source_alone,
    what_ended_long_ago_is_pruned_and_nothing_else,
    what_a_source_is_still_to_read_again_is_not_pruned,
    what_was_seen_is_not_shown_again,
    counts_are_bounded_and_ages_are_of_the_oldest,
    undecodable_logs_are_parked_with_their_bytes,
    messages_that_cannot_be_read_are_kept_up_to_a_bound,
    some_blocks_are_read_again_and_the_source_goes_on_where_it_was,
    a_reorg_below_where_it_was_is_read_on_from_there,
);

const UNTIL: i64 = 100_000;

/// Blocks 11 to `to` with an event each.
async fn with_events(store: &dyn WatchStore, to: u64, held: bool) {
    ready(store).await;
    let blocks: Vec<Link> = (11..=to).map(|number| link(number, 0, 0)).collect();
    let events: Vec<NewEvent> = (11..=to).map(|number| event(number, 0, held)).collect();
    store.advance(&advance(place(10, 0), &blocks, events)).await.unwrap();
}

async fn claim(store: &dyn WatchStore, now: i64, limit: u32) -> Vec<Claimed> {
    store.claim_some(CONSUMER, SOURCE, at(now), at(UNTIL), limit).await.unwrap().claimed
}

fn blocks(claimed: &[Claimed]) -> Vec<&str> {
    claimed.iter().map(|one| one.message.body.rsplit(' ').next().unwrap()).collect()
}

fn done(claimed: &[Claimed]) -> Vec<(Claimed, Option<Ended>)> {
    let end = |one: &Claimed| (one.clone(), Some(Ended::Done(format!("tx-{}", one.id))));
    claimed.iter().map(end).collect()
}

async fn some_are_claimed_in_order_up_to_what_is_not_due(store: &dyn WatchStore) {
    with_events(store, 16, true).await;
    store.settle(&settle(place(16, 0), place(15, 0), 15)).await.unwrap();
    let first = claim(store, 0, 2).await;
    assert_eq!(blocks(&first), ["11", "12"]);
    assert!(claim(store, 0, 9).await.is_empty(), "nothing overtakes what is in hand");
    let again = Ended::Retry { due: at(500), error: "busy".to_owned() };
    let ended = [(first[0].clone(), Some(again)), (first[1].clone(), None)];
    assert_eq!(store.finish_some(&ended, at(1)).await.unwrap(), [true, true]);
    let waits = store.claim_some(CONSUMER, SOURCE, at(499), at(UNTIL), 9).await.unwrap();
    assert_eq!((waits.claimed.len(), waits.due), (0, Some(at(500))));
    let all = claim(store, 500, 9).await;
    assert_eq!(blocks(&all), ["11", "12", "13", "14", "15"], "the sixth is held");
    assert_eq!(store.finish_some(&done(&all), at(501)).await.unwrap(), [true; 5]);
    assert_eq!(store.finish_some(&done(&all), at(501)).await.unwrap(), [false; 5]);
    assert_eq!(counts(store).await, [("done".to_owned(), 5), ("held".to_owned(), 1)]);
    let held = store.claim_some(CONSUMER, SOURCE, at(9999), at(UNTIL), 9).await.unwrap();
    assert_eq!((held.claimed.len(), held.due), (0, None));
}

async fn what_was_not_tried_is_put_back_as_it_was(store: &dyn WatchStore) {
    with_events(store, 12, false).await;
    let both = claim(store, 0, 9).await;
    let mut ended = done(&both);
    ended[1].1 = None;
    assert_eq!(store.finish_some(&ended, at(1)).await.unwrap(), [true, true]);
    // So a reorg cancels it, and nobody hears of it.
    let standing = store.standing_above(CHAIN, 11).await.unwrap();
    store.roll_back(&roll_back(place(12, 0), place(11, 0), standing)).await.unwrap();
    assert_eq!(counts(store).await, [("cancelled".to_owned(), 1), ("done".to_owned(), 1)]);
}

async fn what_a_clock_that_was_ahead_wrote_does_not_wait_for_it(store: &dyn WatchStore) {
    const AHEAD: i64 = 1_000_000;
    ready(store).await;
    let links: Vec<Link> = (11..=14).map(|number| link(number, 0, 0)).collect();
    let events = (11..=14).map(|number| event(number, 0, number == 14)).collect();
    let step = advance(place(10, 0), &links, events);
    store.advance(&claviger::ports::watch_store::Advance { now: at(AHEAD), ..step }).await.unwrap();
    // One was tried by that clock, one is in hand by it, and one was let go by it.
    let tried = claim(store, AHEAD, 1).await;
    let again = Ended::Retry { due: at(AHEAD + 500), error: "busy".to_owned() };
    store.finish_some(&[(tried[0].clone(), Some(again))], at(AHEAD)).await.unwrap();
    let mut settled = settle(place(14, 0), place(14, 0), 14);
    settled.now = at(AHEAD);
    store.settle(&settled).await.unwrap();
    let all = claim(store, 10, 9).await;
    assert_eq!(blocks(&all), ["11", "12", "13", "14"]);
    // What is in hand is in hand, also by a clock that is right; what waits since, waits.
    assert!(claim(store, 11, 9).await.is_empty());
    let later = Ended::Retry { due: at(500), error: "busy".to_owned() };
    let mut ended = done(&all);
    ended[0].1 = Some(later);
    store.finish_some(&ended, at(20)).await.unwrap();
    assert!(claim(store, 499, 9).await.is_empty());
    // Put back by a clock that was ahead, with nobody at it.
    assert_eq!(claim(store, 500, 9).await.len(), 1);
    assert_eq!(store.free_claims(CONSUMER, SOURCE, at(AHEAD)).await.unwrap(), 1);
    assert_eq!(claim(store, 501, 9).await.len(), 1);
}

async fn open_deliveries_are_counted_by_consumer_and_source(store: &dyn WatchStore) {
    with_events(store, 13, false).await;
    let first = claim(store, 0, 1).await;
    store.finish_some(&done(&first), at(1)).await.unwrap();
    let mut other = source("Other() of 0x00");
    other.name = "others".to_owned();
    store.add_source(CHAIN, &other).await.unwrap();
    let of_other = |held| NewEvent { source: "others".to_owned(), ..event(14, 0, held) };
    let mut step =
        advance(place(13, 0), &[link(14, 0, 0)], vec![event(14, 0, true), of_other(true)]);
    step.moves.clear();
    store.advance(&step).await.unwrap();
    let lane = |source: &str, waiting| OpenLane {
        consumer: CONSUMER.to_owned(),
        source: source.to_owned(),
        waiting,
        taken: 0,
    };
    assert_eq!(store.open_lanes(9).await.unwrap(), [lane(SOURCE, 3), lane("others", 1)]);
    assert_eq!(store.open_lanes(2).await.unwrap(), [lane(SOURCE, 2), lane("others", 1)]);
}

async fn a_commit_rings_the_bell_of_its_source_alone(store: &dyn WatchStore) {
    ready(store).await;
    let (mut bell, mut other) = (store.bell(SOURCE), store.bell("other"));
    let rung = |bell: &mut tokio::sync::watch::Receiver<u64>| {
        let rung = bell.has_changed().unwrap();
        bell.mark_unchanged();
        rung
    };
    let quiet = advance(place(10, 0), &[link(11, 0, 0)], Vec::new());
    store.advance(&quiet).await.unwrap();
    assert!(!rung(&mut bell), "nothing was told");
    let told = advance(place(11, 0), &[link(12, 0, 0)], vec![event(12, 0, true)]);
    store.advance(&told).await.unwrap();
    assert!(rung(&mut bell));
    assert!(store.advance(&told).await.is_err());
    assert!(!rung(&mut bell), "what does not commit rings no bell");
    store.settle(&settle(place(12, 0), place(12, 0), 12)).await.unwrap();
    assert!(rung(&mut bell));
    store.settle(&settle(place(12, 0), place(12, 0), 12)).await.unwrap();
    assert!(!rung(&mut bell), "nothing more was let go");
    let claimed = claim(store, 0, 1).await;
    let parked = Ended::Parked("403".to_owned());
    store.finish(claimed[0].id, 1, &parked, at(0)).await.unwrap();
    assert!(!rung(&mut bell));
    store.unpark(None, at(1)).await.unwrap();
    assert!(rung(&mut bell) && !rung(&mut other));
    assert_eq!(store.progress().await.unwrap()[0].told, 1);
}

async fn what_ended_long_ago_is_pruned_and_nothing_else(store: &dyn WatchStore) {
    with_events(store, 16, false).await;
    let all = claim(store, 0, 9).await;
    let mut ended = done(&all);
    // 11 and 16 are done, 12 is tried again, 13 parked; 14 and 15 end later.
    ended[1].1 = Some(Ended::Retry { due: at(9), error: "busy".to_owned() });
    ended[2].1 = Some(Ended::Parked("403".to_owned()));
    let later = ended.drain(3..5).collect::<Vec<_>>();
    store.finish_some(&ended, at(10)).await.unwrap();
    store.finish_some(&later, at(50)).await.unwrap();
    assert_eq!(prune(store, 20).await, 0, "nothing is final");
    store.settle(&settle(place(16, 0), place(15, 0), 15)).await.unwrap();
    assert_eq!(prune(store, 10).await, 0, "nothing ended before");
    // 11: its event and its delivery. 16 is not final.
    assert_eq!(prune(store, 20).await, 2);
    assert_eq!(prune(store, 20).await, 0);
    // 14 and 15.
    assert_eq!(prune(store, 51).await, 4);
    let left = [("done".to_owned(), 1), ("parked".to_owned(), 1), ("ready".to_owned(), 1)];
    assert_eq!(counts(store).await, left);
    // A reorg can still retract what was told above finality.
    assert_eq!(store.standing_above(CHAIN, 15).await.unwrap().len(), 1);
}

async fn what_a_source_is_still_to_read_again_is_not_pruned(store: &dyn WatchStore) {
    with_events(store, 13, false).await;
    let all = claim(store, 0, 9).await;
    store.finish_some(&done(&all), at(0)).await.unwrap();
    store.settle(&settle(place(13, 0), place(13, 0), 13)).await.unwrap();
    assert!(store.rewind(SOURCE, 12).await.unwrap());
    // It would tell 12 and 13 again if they were forgotten.
    assert_eq!(prune(store, 99).await, 2);
    let mut again = advance(place(13, 0), &[], vec![event(12, 0, false), event(13, 0, false)]);
    again.moves[0] =
        claviger::ports::watch_store::SourceMove { source: SOURCE.to_owned(), from: 12, to: 14 };
    store.advance(&again).await.unwrap();
    assert_eq!(counts(store).await, [("done".to_owned(), 2)]);
    assert_eq!(prune(store, 99).await, 4);
}

async fn what_was_seen_is_not_shown_again(store: &dyn WatchStore) {
    with_events(store, 72, false).await;
    let bad = NewEvent {
        undecodable: Some("too short".to_owned()),
        deliveries: Vec::new(),
        ..event(73, 0, false)
    };
    store.advance(&advance(place(72, 0), &[link(73, 0, 0)], vec![bad.clone()])).await.unwrap();
    let all = claim(store, 0, 99).await;
    let park = |one: &Claimed| (one.clone(), Some(Ended::Parked("403".to_owned())));
    store.finish_some(&all.iter().map(park).collect::<Vec<_>>(), at(0)).await.unwrap();
    let shown = async || {
        let status = store.status().await.unwrap();
        (status.attention.len(), status.attention_more)
    };
    // 62 parked, of which the newest 50 are shown, and the log.
    assert_eq!(shown().await, (51, 12));
    let newest = all.last().unwrap().id;
    assert_eq!(store.status().await.unwrap().attention[0].delivery, newest);
    let see = async |seen| store.acknowledge(&seen, at(5)).await.unwrap();
    assert_eq!(see(Seen::Delivery(newest)).await, 1);
    assert_eq!(see(Seen::Delivery(newest)).await, 0);
    assert_eq!(shown().await, (51, 11));
    assert_eq!(see(Seen::Event(bad.event_id)).await, 1);
    assert_eq!(shown().await, (50, 11));
    assert_eq!(see(Seen::All).await, 61);
    assert_eq!(shown().await, (0, 0));
    assert_eq!(parked(store).await.len(), 63, "all of it is still parked");
    // One that is parked again is shown again.
    assert_eq!(store.unpark(Some(newest), at(6)).await.unwrap(), 1);
    let again = claim(store, 6, 1).await;
    store.finish_some(&[park(&again[0])], at(6)).await.unwrap();
    assert_eq!(shown().await, (1, 0));
}

async fn counts_are_bounded_and_ages_are_of_the_oldest(store: &dyn WatchStore) {
    with_events(store, 15, false).await;
    let one = claim(store, 0, 1).await;
    store.finish_some(&done(&one), at(7)).await.unwrap();
    let rows = store.counts(3, true).await.unwrap();
    let seen: Vec<_> = rows.iter().map(|row| (row.state.as_str(), row.count, row.more)).collect();
    assert_eq!(seen, [("done", 1, false), ("ready", 3, true)]);
    let rows = store.counts(4, false).await.unwrap();
    let seen: Vec<_> = rows.iter().map(|row| (row.state.as_str(), row.count, row.more)).collect();
    assert_eq!(seen, [("ready", 4, false)]);
    let oldest = store.oldest_open().await.unwrap();
    assert_eq!((oldest[0].consumer.as_str(), oldest[0].since), (CONSUMER, at(0)));
}

async fn undecodable_logs_are_parked_with_their_bytes(store: &dyn WatchStore) {
    ready(store).await;
    let bad = NewEvent {
        undecodable: Some("too short".to_owned()),
        deliveries: Vec::new(),
        body: "{\"data\":\"0x01\"}".to_owned(),
        ..event(11, 0, false)
    };
    let event_id = bad.event_id.clone();
    store.advance(&advance(place(10, 0), &[link(11, 0, 0)], vec![bad])).await.unwrap();
    let wanted = Parked::Undecodable {
        source: SOURCE.to_owned(),
        event_id,
        block_number: 11,
        reason: "too short".to_owned(),
        raw: "{\"data\":\"0x01\"}".to_owned(),
    };
    assert_eq!(parked(store).await, [wanted]);
}

fn unreadable(number: u64, length: usize) -> Unreadable {
    Unreadable {
        consumer: CONSUMER.to_owned(),
        digest: hash(number, 7),
        bytes: vec![1; length].into(),
        reason: "not JSON".to_owned(),
    }
}

async fn messages_that_cannot_be_read_are_kept_up_to_a_bound(store: &dyn WatchStore) {
    let mib = 1 << 20;
    for number in 0..64 {
        store.keep_unreadable(&unreadable(number, mib), at(0)).await.unwrap();
    }
    let refused = async || store.status().await.unwrap().unreadable_refused;
    store.keep_unreadable(&unreadable(0, mib), at(0)).await.unwrap();
    assert_eq!(refused().await, 0, "the same bytes are kept already");
    store.keep_unreadable(&unreadable(64, 1), at(0)).await.unwrap();
    assert_eq!(refused().await, 1);
    // What was seen makes room.
    let seen = Seen::Event(format!("sha256:{:x}", hash(3, 7)));
    assert_eq!(store.acknowledge(&seen, at(1)).await.unwrap(), 1);
    assert_eq!(prune(store, 0).await, 1);
    store.keep_unreadable(&unreadable(64, 1), at(0)).await.unwrap();
    assert_eq!((refused().await, parked(store).await.len()), (1, 64));
}

/// A step of a backfill that found nothing.
async fn read(store: &dyn WatchStore, cursor: u64, from: u64, to: u64) {
    let mut step = advance(place(cursor, 0), &[], Vec::new());
    step.moves[0] =
        claviger::ports::watch_store::SourceMove { source: SOURCE.to_owned(), from, to };
    store.advance(&step).await.unwrap();
}

async fn next_block(store: &dyn WatchStore) -> u64 {
    store.load(CHAIN).await.unwrap().unwrap().sources[0].next_block
}

async fn some_blocks_are_read_again_and_the_source_goes_on_where_it_was(store: &dyn WatchStore) {
    with_events(store, 30, false).await;
    assert!(!store.reread("nobody", 1, 2).await.unwrap());
    assert!(!store.reread(SOURCE, 31, 40).await.unwrap(), "it has not come so far");
    assert!(store.reread(SOURCE, 12, 20).await.unwrap());
    let progress = store.progress().await.unwrap().remove(0);
    assert_eq!((progress.first_block, progress.from_block, progress.to_block), (11, 12, Some(20)));
    assert_eq!(next_block(store).await, 12);
    read(store, 30, 12, 20).await;
    assert_eq!(next_block(store).await, 20);
    // One asked for in the midst does not forget where it was.
    assert!(store.reread(SOURCE, 15, 18).await.unwrap());
    read(store, 30, 15, 21).await;
    assert_eq!(next_block(store).await, 31);
    let progress = store.progress().await.unwrap().remove(0);
    assert_eq!((progress.to_block, progress.told), (None, 20));
    // Up to where it is: nothing to come back to.
    assert!(store.reread(SOURCE, 25, 40).await.unwrap());
    assert_eq!(store.progress().await.unwrap()[0].to_block, None);
    read(store, 30, 25, 31).await;
    assert_eq!(next_block(store).await, 31);
}

async fn a_reorg_below_where_it_was_is_read_on_from_there(store: &dyn WatchStore) {
    with_events(store, 14, false).await;
    assert!(store.reread(SOURCE, 11, 11).await.unwrap());
    let standing = store.standing_above(CHAIN, 12).await.unwrap();
    store.roll_back(&roll_back(place(14, 0), place(12, 0), standing)).await.unwrap();
    let mut step = advance(place(12, 0), &[link(13, 1, 0)], Vec::new());
    step.moves.clear();
    store.advance(&step).await.unwrap();
    let mut step = advance(place(13, 1), &[], Vec::new());
    step.moves[0] =
        claviger::ports::watch_store::SourceMove { source: SOURCE.to_owned(), from: 11, to: 12 };
    store.advance(&step).await.unwrap();
    assert_eq!(next_block(store).await, 13, "and not 15: 13 is another block now");
}
