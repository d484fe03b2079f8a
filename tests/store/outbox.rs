//! The places of events, and what is owed to whom.

use crate::fixtures::{add_key, at, hash, insert, transaction};
use claviger::ports::store::{
    Delivery, End, KeyBinding, KindFilter, NewEvent, Store, Subscription, Told, unit,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

on_both!(
    an_event_gets_a_place_and_is_owed_to_those_who_want_it,
    of_each_subject_only_the_oldest_is_told,
    a_claim_ends_by_itself_and_a_late_word_changes_nothing,
    what_is_dead_holds_nothing_up_and_is_tried_again_when_somebody_says_so,
    whoever_reads_in_order_misses_nothing_however_late_it_is_committed,
    what_is_next_and_what_is_kept_is_told_without_reading_it_all,
    what_waits_for_its_next_attempt_is_told_now_when_somebody_says_so,
    who_is_told_what_is_read_where_places_are_given,
    all_that_was_given_up_of_one_is_told_again_and_of_nobody_else,
    an_event_has_the_key_that_its_request_was_asked_with,
    what_waits_behind_another_is_not_met_by_who_claims,
    what_is_put_behind_another_while_that_one_ends_is_told_after_it,
    two_of_one_subject_that_end_at_once_leave_nothing_behind,
    a_clock_that_was_ahead_keeps_nothing_from_being_told,
    what_has_been_due_for_long_goes_before_what_is_new_each_other_time,
);

const DAY_MS: i64 = 86_400_000;

fn event(n: u64, kind: &str, subject: &str) -> NewEvent {
    NewEvent {
        id: format!("event {n}"),
        kind: format!("claviger.{kind}"),
        subject: subject.to_owned(),
        data_json: format!("{{\"n\":{n}}}"),
        at: at(1),
    }
}

async fn append(store: &Arc<dyn Store>, event: NewEvent) {
    commit!(store, [event], |unit| unit.append_event(&event).await?).unwrap();
}

fn wants(consumer: &str, kinds: &[&str]) -> Subscription {
    let kinds = kinds.iter().map(|text| KindFilter::parse(text).unwrap()).collect();
    Subscription { consumer: consumer.to_owned(), kinds }
}

async fn place(store: &Arc<dyn Store>, to: &[Subscription], most: i64) -> u64 {
    let to = to.to_vec();
    commit!(store, [to], |unit| {
        for one in &to {
            unit.set_consumer(one).await?;
        }
        unit.place_events(most, at(10)).await?
    })
    .unwrap()
}

async fn claim(store: &Arc<dyn Store>, consumer: &'static str, now: i64) -> Option<Delivery> {
    commit!(store, [], |unit| unit.claim_delivery(consumer, at(now), at(now + 100)).await?).unwrap()
}

async fn finish(
    store: &Arc<dyn Store>,
    consumer: &'static str,
    delivery: &Delivery,
    told: Told,
    now: i64,
) -> bool {
    commit!(store, [delivery, told], |unit| {
        unit.finish_delivery(consumer, &delivery, &told, at(now)).await?
    })
    .unwrap()
}

fn id(delivery: Option<&Delivery>) -> &str {
    delivery.map_or("nothing", |delivery| delivery.placed.event.id.as_str())
}

async fn an_event_gets_a_place_and_is_owed_to_those_who_want_it(store: Arc<dyn Store>) {
    let all = [
        wants("bus", &["*"]),
        wants("hook", &["claviger.transaction.*", "claviger.transaction.mined"]),
        wants("nobody", &["claviger.key.created"]),
    ];
    assert_eq!(place(&store, &all, 10).await, 0);
    append(&store, event(1, "transaction.mined", "a")).await;
    append(&store, event(2, "freeze.engaged", "b")).await;
    assert_eq!(claim(&store, "bus", 20).await, None, "it has no place yet");
    assert_eq!(place(&store, &all, 1).await, 1);
    assert_eq!(place(&store, &all, 10).await, 1);
    assert_eq!(place(&store, &all, 10).await, 0);
    let placed = read!(store, [], |unit| unit.events_after(0, 10).await?);
    let ids: Vec<&str> = placed.iter().map(|placed| placed.event.id.as_str()).collect();
    assert_eq!(ids, ["event 1", "event 2"]);
    assert_eq!(placed[0].event, event(1, "transaction.mined", "a"));
    let newest = read!(store, [], |unit| unit.newest_place().await?);
    assert_eq!(placed[1].place, newest);
    let first = placed[0].place;
    assert_eq!(read!(store, [], |unit| unit.events_after(first, 10).await?), placed[1..]);

    let owed = read!(store, [], |unit| unit.backlogs().await?);
    let owed: Vec<(&str, i64)> = owed.iter().map(|it| (it.consumer.as_str(), it.count)).collect();
    assert_eq!(owed, [("bus", 2), ("hook", 1)], "each once, whatever matches twice");
    for wanted in ["event 1", "event 2", "nothing"] {
        let due = claim(&store, "bus", 20).await;
        assert_eq!(id(due.as_ref()), wanted);
        let Some(due) = due else { continue };
        assert_eq!(due.attempt, 1);
        assert!(finish(&store, "bus", &due, Told::Done, 21).await);
    }
    assert_eq!(id(claim(&store, "hook", 20).await.as_ref()), "event 1");
    assert_eq!(claim(&store, "nobody", 20).await, None);
}

async fn of_each_subject_only_the_oldest_is_told(store: Arc<dyn Store>) {
    let all = [wants("hook", &["*"])];
    for (n, subject) in [(1, "a"), (2, "a"), (3, "b"), (4, "a")] {
        append(&store, event(n, "transaction.mined", subject)).await;
    }
    place(&store, &all, 10).await;
    let first = claim(&store, "hook", 20).await.unwrap();
    assert_eq!(first.placed.event.id, "event 1");
    let other = claim(&store, "hook", 20).await.unwrap();
    assert_eq!(other.placed.event.id, "event 3", "the subject of the first is under way");
    assert_eq!(claim(&store, "hook", 20).await, None);
    let later = Told::Retry { due: at(500), reason: "down".to_owned() };
    assert!(finish(&store, "hook", &first, later, 21).await);
    assert_eq!(
        claim(&store, "hook", 499).await.map(|it| it.placed.event.id),
        Some("event 3".into())
    );
    let again = claim(&store, "hook", 500).await.unwrap();
    assert_eq!((again.placed.event.id.as_str(), again.attempt), ("event 1", 2));
    assert!(finish(&store, "hook", &again, Told::Done, 501).await);
    let next = claim(&store, "hook", 501).await.unwrap();
    assert_eq!(next.placed.event.id, "event 2", "what waited behind it waits no longer");
    assert!(finish(&store, "hook", &next, Told::Done, 502).await);
    assert_eq!(id(claim(&store, "hook", 502).await.as_ref()), "event 4");
}

async fn a_claim_ends_by_itself_and_a_late_word_changes_nothing(store: Arc<dyn Store>) {
    append(&store, event(1, "transaction.mined", "a")).await;
    place(&store, &[wants("hook", &["*"])], 10).await;
    let slow = claim(&store, "hook", 20).await.unwrap();
    assert_eq!(claim(&store, "hook", 119).await, None);
    let second = claim(&store, "hook", 120).await.unwrap();
    assert_eq!(second.attempt, 2);
    assert!(!finish(&store, "hook", &slow, Told::Done, 121).await);
    let dead = Told::Dead { reason: "late".to_owned() };
    assert!(!finish(&store, "hook", &slow, dead, 121).await);
    assert!(finish(&store, "hook", &second, Told::Done, 122).await);
    assert!(!finish(&store, "hook", &second, Told::Done, 123).await);
}

async fn what_is_dead_holds_nothing_up_and_is_tried_again_when_somebody_says_so(
    store: Arc<dyn Store>,
) {
    for n in 1..=2 {
        append(&store, event(n, "transaction.mined", "a")).await;
    }
    place(&store, &[wants("hook", &["*"])], 10).await;
    let first = claim(&store, "hook", 20).await.unwrap();
    let dead = Told::Dead { reason: "410 Gone".to_owned() };
    assert!(finish(&store, "hook", &first, dead, 21).await);
    let next = claim(&store, "hook", 22).await.unwrap();
    assert_eq!(next.placed.event.id, "event 2");
    let listed = read!(store, [], |unit| unit.deliveries(Some("hook"), Some(true), 0, 10).await?);
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].reason.as_str(), listed[0].attempts), ("410 Gone", 1));
    assert_eq!((listed[0].event_id.as_str(), listed[0].is_dead), ("event 1", true));
    let every = read!(store, [], |unit| unit.deliveries(None, None, 0, 10).await?);
    assert_eq!(every.len(), 2);
    assert_eq!(read!(store, [], |unit| unit.deliveries(Some("bus"), None, 0, 10).await?), []);
    let number = listed[0].id;
    assert!(commit!(store, [], |unit| unit.replay_delivery(number, at(30)).await?).unwrap());
    assert!(!commit!(store, [], |unit| unit.replay_delivery(number, at(30)).await?).unwrap());
    let again = claim(&store, "hook", 30).await.unwrap();
    assert_eq!((again.placed.event.id.as_str(), again.attempt), ("event 1", 1));
}

/// Writers commit in any order; a reader follows the places while they do.
async fn whoever_reads_in_order_misses_nothing_however_late_it_is_committed(store: Arc<dyn Store>) {
    const WRITERS: u64 = 6;
    const EACH: u64 = 20;
    let all = [wants("hook", &["*"])];
    let writers = (0..WRITERS).map(|writer| {
        let store = Arc::clone(&store);
        async move {
            for n in 0..EACH {
                let event = event(writer * EACH + n, "transaction.mined", &writer.to_string());
                let appended = unit(&*store, "test", move |unit| {
                    let event = event.clone();
                    Box::pin(async move {
                        unit.append_event(&event).await?;
                        // Others get later numbers, and are committed before.
                        tokio::task::yield_now().await;
                        let _ = unit.newest_place().await?;
                        Ok(End::Commit(()))
                    })
                });
                appended.await.unwrap();
            }
        }
    });
    let mut writing = tokio::spawn(futures::future::join_all(writers));
    let (mut read, mut after, mut is_over) = (Vec::new(), 0, false);
    loop {
        place(&store, &all, 7).await;
        let new = read!(store, [], |unit| unit.events_after(after, 5).await?);
        if new.is_empty() && is_over {
            break;
        }
        after = new.last().map_or(after, |last| last.place);
        read.extend(new);
        is_over = is_over || writing.is_finished();
    }
    (&mut writing).await.unwrap();
    let ids: BTreeSet<&str> = read.iter().map(|it| it.event.id.as_str()).collect();
    let expected = usize::try_from(WRITERS * EACH).unwrap();
    assert_eq!((read.len(), ids.len()), (expected, expected));
    let listed = read!(store, [], |unit| unit.deliveries(None, None, 0, 1000).await?);
    assert_eq!(listed.len(), expected);
    for writer in 0..WRITERS {
        let of = |it: &&claviger::ports::store::PlacedEvent| it.event.subject == writer.to_string();
        let order: Vec<&str> = read.iter().filter(of).map(|it| it.event.id.as_str()).collect();
        let wanted: Vec<String> =
            (0..EACH).map(|n| format!("event {}", writer * EACH + n)).collect();
        assert_eq!(order, wanted, "what is about one subject keeps its order");
    }
}

async fn what_is_next_and_what_is_kept_is_told_without_reading_it_all(store: Arc<dyn Store>) {
    let all = [wants("hook", &["*"])];
    assert!(!read!(store, [], |unit| unit.has_unplaced().await?));
    assert_eq!(read!(store, [], |unit| unit.oldest_place().await?), None);
    assert_eq!(read!(store, [], |unit| unit.next_due("hook").await?), None);
    for (n, subject) in [(1, "a"), (2, "b")] {
        append(&store, event(n, "transaction.mined", subject)).await;
    }
    assert!(read!(store, [], |unit| unit.has_unplaced().await?));
    assert_eq!(read!(store, [], |unit| unit.oldest_place().await?), None, "it has no place yet");
    place(&store, &all, 10).await;
    assert!(!read!(store, [], |unit| unit.has_unplaced().await?));
    let placed = read!(store, [], |unit| unit.events_after(0, 10).await?);
    assert_eq!(read!(store, [], |unit| unit.oldest_place().await?), Some(placed[0].place));
    assert_eq!(read!(store, [], |unit| unit.next_due("hook").await?), Some(at(0)));
    assert_eq!(read!(store, [], |unit| unit.next_due("bus").await?), None);

    // One is in hand, one has failed: only the first is taken back.
    let failed = claim(&store, "hook", 20).await.unwrap();
    let later = Told::Retry { due: at(500), reason: "down".to_owned() };
    assert!(finish(&store, "hook", &failed, later, 21).await);
    let in_hand = claim(&store, "hook", 30).await.unwrap();
    assert_eq!(read!(store, [], |unit| unit.next_due("hook").await?), Some(at(130)));
    assert_eq!(commit!(store, [], |unit| unit.forget_delivery_claims(at(40)).await?).unwrap(), 1);
    assert!(!finish(&store, "hook", &in_hand, Told::Done, 40).await, "the first claim is over");
    let again = claim(&store, "hook", 40).await.unwrap();
    assert_eq!((again.id, again.attempt), (in_hand.id, 1), "who was killed has tried nothing");
    assert_eq!(claim(&store, "hook", 41).await, None, "what failed waits for its time");
    let (number, none) = (failed.id, 1_000_000);
    let listed = read!(store, [], |unit| unit.delivery(number).await?).unwrap();
    assert_eq!((listed.reason.as_str(), listed.due_at), ("down", at(500)));
    assert_eq!(read!(store, [], |unit| unit.delivery(none).await?), None);
}

async fn what_waits_for_its_next_attempt_is_told_now_when_somebody_says_so(store: Arc<dyn Store>) {
    for n in 1..=3 {
        append(&store, event(n, "transaction.mined", "a")).await;
    }
    place(&store, &[wants("hook", &["*"])], 10).await;
    let first = claim(&store, "hook", 20).await.unwrap();
    let (number, never) = (first.id, first.id + 1);
    let replay = async |number: i64| {
        commit!(store, [], |unit| unit.replay_delivery(number, at(30)).await?).unwrap()
    };
    assert!(!replay(number).await, "somebody has it in hand");
    let later = Told::Retry { due: at(5_000), reason: "down".to_owned() };
    assert!(finish(&store, "hook", &first, later, 21).await);
    assert_eq!(claim(&store, "hook", 30).await, None);
    assert!(!replay(never).await, "it waits behind another, and was never tried");
    assert!(replay(number).await);
    assert!(!replay(number).await);
    for wanted in ["event 1", "event 2", "event 3", "nothing"] {
        let due = claim(&store, "hook", 30).await;
        assert_eq!(id(due.as_ref()), wanted, "what waited behind it waits no longer");
        let Some(due) = due else { continue };
        assert_eq!(due.attempt, 1);
        assert!(finish(&store, "hook", &due, Told::Done, 31).await);
    }
}

async fn who_is_told_what_is_read_where_places_are_given(store: Arc<dyn Store>) {
    let happens = async |n: u64, wants: &[Subscription]| {
        append(&store, event(n, "transaction.mined", "a")).await;
        append(&store, event(n + 1, "key.created", "b")).await;
        assert_eq!(place(&store, wants, 10).await, 2);
        let owed = read!(store, [], |unit| unit.backlogs().await?);
        owed.iter().map(|it| (it.consumer.clone(), it.count)).collect::<Vec<_>>()
    };
    let owed = |bus: i64, hook: i64| vec![("bus".to_owned(), bus), ("hook".to_owned(), hook)];
    let (bus, keys) = (wants("bus", &["*"]), wants("hook", &["claviger.key.created"]));
    assert_eq!(happens(1, &[bus.clone(), keys.clone()]).await, owed(2, 1));
    // Whoever gives the next places has no consumer of its own, and owes to those of others all the same.
    assert_eq!(happens(3, &[]).await, owed(4, 2));
    let known = read!(store, [], |unit| unit.consumers().await?);
    assert_eq!(known, [bus, keys]);
    // What it says anew counts, and nothing of what it said before.
    let anew = wants("hook", &["claviger.key.imported", "claviger.policy.*"]);
    assert_eq!(happens(5, std::slice::from_ref(&anew)).await, owed(6, 2));
    assert_eq!(read!(store, [], |unit| unit.consumers().await?)[1], anew);

    assert!(commit!(store, [], |unit| unit.forget_consumer("bus").await?).unwrap());
    assert!(!commit!(store, [], |unit| unit.forget_consumer("bus").await?).unwrap());
    assert_eq!(happens(7, &[]).await, owed(6, 2), "it is owed nothing new");
    for expected in [4, 2, 0] {
        let forgotten = commit!(store, [], |unit| unit.forget_deliveries("bus", 4).await?);
        assert_eq!(forgotten.unwrap(), expected);
    }
    assert_eq!(happens(9, &[]).await, owed(0, 2)[1..]);
}

async fn all_that_was_given_up_of_one_is_told_again_and_of_nobody_else(store: Arc<dyn Store>) {
    for n in 1..=5 {
        append(&store, event(n, "transaction.mined", &n.to_string())).await;
    }
    place(&store, &[wants("hook", &["*"]), wants("bus", &["*"])], 10).await;
    for (consumer, count) in [("hook", 4), ("bus", 1)] {
        for _ in 0..count {
            let due = claim(&store, consumer, 20).await.unwrap();
            let dead = Told::Dead { reason: "410 Gone".to_owned() };
            assert!(finish(&store, consumer, &due, dead, 21).await);
        }
    }
    let (mut after, mut all) = (0, Vec::new());
    loop {
        let some = commit!(store, [], |unit| unit.replay_dead("hook", after, 3, at(30)).await?);
        let Some((last, count)) = some.unwrap() else { break };
        all.push(count);
        after = last;
    }
    assert_eq!(all, [3, 1]);
    let of = async |is_dead: bool| {
        let found = read!(store, [], |unit| unit.deliveries(None, Some(is_dead), 0, 20).await?);
        found.into_iter().map(|row| (row.consumer, row.attempts)).collect::<Vec<_>>()
    };
    assert_eq!(of(true).await, [("bus".to_owned(), 1)]);
    let open = of(false).await;
    assert_eq!(open.iter().filter(|(consumer, _)| consumer == "hook").count(), 5);
    assert!(open.iter().all(|(_, attempts)| *attempts == 0));
    assert_eq!(claim(&store, "hook", 30).await.unwrap().attempt, 1);
}

async fn an_event_has_the_key_that_its_request_was_asked_with(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    let row = transaction(7, 1);
    let (id, who) = (row.id, row.principal.clone());
    insert(&store, vec![row]).await;
    let bind = |key: &str| KeyBinding {
        scope: who.scope(),
        key: key.to_owned(),
        body_hash: hash(1),
        request: id,
    };
    // A restored database can bind a second key to what was paid: it is one event all the same.
    for key in ["order-7", "order-7-again"] {
        let bind = bind(key);
        commit!(store, [bind], |unit| unit.bind_key(&bind).await?).unwrap();
    }
    append(&store, event(1, "transaction.mined", &id.to_string())).await;
    append(&store, event(2, "key.created", "a key")).await;
    place(&store, &[wants("hook", &["*"])], 10).await;
    let placed = read!(store, [], |unit| unit.events_after(0, 10).await?);
    let told: Vec<_> = placed.iter().map(|it| (&it.owner, it.idempotency_key.as_deref())).collect();
    assert_eq!(told, [(&Some(who.clone()), Some("order-7")), (&None, None)]);
    let due = claim(&store, "hook", 20).await.unwrap();
    assert_eq!(due.placed, placed[0]);
}

/// Of each, how many there are and since when the oldest.
async fn open_of(store: &Arc<dyn Store>) -> (i64, i64) {
    let owed = read!(store, [], |unit| unit.backlogs().await?);
    owed.iter().find(|it| !it.is_dead).map_or((0, 0), |it| (it.count, it.since.millis()))
}

async fn what_waits_behind_another_is_not_met_by_who_claims(store: Arc<dyn Store>) {
    let all = [wants("hook", &["claviger.transaction.*", "claviger.key.*"])];
    let subjects = ["a", "b", "c"];
    // The kinds are owed one after the other: what is older of a subject may be written later.
    for (n, subject) in (1..).zip(subjects) {
        append(&store, event(n, "transaction.mined", subject)).await;
        append(&store, event(n + 10, "key.created", subject)).await;
    }
    place(&store, &all, 10).await;
    let later = |due: i64| Told::Retry { due: at(due), reason: "down".to_owned() };
    for n in 1..=3 {
        let first = claim(&store, "hook", 20).await.unwrap();
        assert_eq!(first.placed.event.id, format!("event {n}"));
        assert!(finish(&store, "hook", &first, later(500), 21).await);
    }
    for (n, subject) in (1..).zip(subjects) {
        append(&store, event(n + 20, "transaction.finalized", subject)).await;
    }
    place(&store, &all, 10).await;
    assert_eq!(claim(&store, "hook", 30).await, None);
    let next = async || read!(store, [], |unit| unit.next_due("hook").await?);
    assert_eq!(next().await, Some(at(500)), "six wait behind three that are put off");
    assert_eq!(open_of(&store).await, (9, at(10).millis()), "they are owed all the same");
    let listed = read!(store, [], |unit| unit.deliveries(None, Some(false), 0, 20).await?);
    assert_eq!(listed.len(), 9);

    // Each that ends, however it does, lets the next one go on.
    let first = claim(&store, "hook", 500).await.unwrap();
    let second = claim(&store, "hook", 500).await.unwrap();
    let third = claim(&store, "hook", 500).await.unwrap();
    assert!(finish(&store, "hook", &first, Told::Done, 501).await);
    assert!(finish(&store, "hook", &second, later(60_000), 502).await);
    assert!(finish(&store, "hook", &third, Told::Dead { reason: "410".into() }, 503).await);
    let ended = [first.placed.event.subject, third.placed.event.subject];
    for _ in 0..2 {
        let next = claim(&store, "hook", 504).await.unwrap();
        assert!(ended.contains(&next.placed.event.subject) && next.attempt == 1, "{next:?}");
        assert_eq!(next.placed.event.kind, "claviger.key.created");
        assert!(finish(&store, "hook", &next, later(60_000), 505).await);
    }
    assert_eq!(claim(&store, "hook", 506).await, None);

    // Told again, what was given up stands before what was put off; when it fails, that is behind it.
    let number = third.id;
    assert!(commit!(store, [], |unit| unit.replay_delivery(number, at(510)).await?).unwrap());
    let again = claim(&store, "hook", 511).await.unwrap();
    assert_eq!((again.id, again.attempt), (number, 1));
    assert!(finish(&store, "hook", &again, later(90_000), 512).await);
    let next = claim(&store, "hook", 80_000).await.unwrap();
    assert_ne!(next.placed.event.subject, again.placed.event.subject);

    // Forgotten half-way, what is left of each subject still has its first one.
    assert_eq!(commit!(store, [], |unit| unit.forget_deliveries("hook", 3).await?).unwrap(), 3);
    let mut told = 0;
    while let Some(due) = claim(&store, "hook", 1_000_000).await {
        assert!(finish(&store, "hook", &due, Told::Done, 1_000_000).await);
        told += 1;
    }
    assert_eq!((told, open_of(&store).await), (5, (0, 0)));
}

/// Runs something while a unit that has done what it does is not committed yet. Unless it waits for that unit, it
/// is over long before.
async fn beside(
    store: &Arc<dyn Store>,
    first: Option<Delivery>,
    other: impl Future<Output = bool> + Send + 'static,
) -> bool {
    type Work = std::pin::Pin<Box<dyn Future<Output = bool> + Send>>;
    let other: Work = Box::pin(other);
    let waits = Arc::new(std::sync::Mutex::new((Some(other), None)));
    let kept = Arc::clone(&waits);
    unit(&**store, "test", move |unit| {
        let (kept, first) = (Arc::clone(&kept), first.clone());
        Box::pin(async move {
            match first {
                Some(first) => {
                    assert!(unit.finish_delivery("hook", &first, &Told::Done, at(25)).await?);
                }
                None => assert_eq!(unit.place_events(10, at(20)).await?, 1),
            }
            let other = kept.lock().unwrap().0.take().unwrap();
            let mut other = tokio::spawn(other);
            let over = tokio::time::timeout(Duration::from_millis(500), &mut other).await;
            let answer = async move {
                match over {
                    Ok(answer) => answer.unwrap(),
                    Err(_waits) => other.await.unwrap(),
                }
            };
            kept.lock().unwrap().1 = Some(tokio::spawn(answer));
            Ok(End::Commit(()))
        })
    })
    .await
    .unwrap();
    let other = waits.lock().unwrap().1.take().unwrap();
    other.await.unwrap()
}

/// A place is given while the last that is owed of the subject is told.
async fn what_is_put_behind_another_while_that_one_ends_is_told_after_it(store: Arc<dyn Store>) {
    append(&store, event(1, "transaction.mined", "a")).await;
    place(&store, &[wants("hook", &["*"])], 10).await;
    let first = claim(&store, "hook", 20).await.unwrap();
    append(&store, event(2, "transaction.finalized", "a")).await;
    let writer = Arc::clone(&store);
    let ends = async move { finish(&writer, "hook", &first, Told::Done, 21).await };
    assert!(beside(&store, None, ends).await);
    assert_eq!(id(claim(&store, "hook", 22).await.as_ref()), "event 2");
}

/// One was given up and is told again while a later one is told: both end in one moment.
async fn two_of_one_subject_that_end_at_once_leave_nothing_behind(store: Arc<dyn Store>) {
    for n in 1..=4 {
        append(&store, event(n, "transaction.mined", "a")).await;
    }
    place(&store, &[wants("hook", &["*"])], 10).await;
    let first = claim(&store, "hook", 20).await.unwrap();
    assert!(finish(&store, "hook", &first, Told::Dead { reason: "410".into() }, 21).await);
    let second = claim(&store, "hook", 22).await.unwrap();
    let number = first.id;
    assert!(commit!(store, [], |unit| unit.replay_delivery(number, at(23)).await?).unwrap());
    let again = claim(&store, "hook", 24).await.unwrap();
    assert_eq!((again.id, id(Some(&second))), (first.id, "event 2"));
    let writer = Arc::clone(&store);
    let ends = async move { finish(&writer, "hook", &second, Told::Done, 25).await };
    assert!(beside(&store, Some(again), ends).await);
    for wanted in ["event 3", "event 4", "nothing"] {
        let due = claim(&store, "hook", 26).await;
        assert_eq!(id(due.as_ref()), wanted);
        let Some(due) = due else { continue };
        assert!(finish(&store, "hook", &due, Told::Done, 27).await);
    }
}

async fn a_clock_that_was_ahead_keeps_nothing_from_being_told(store: Arc<dyn Store>) {
    const AHEAD: i64 = 400 * DAY_MS;
    for (n, subject) in [(1, "claimed"), (2, "put off"), (3, "new")] {
        append(&store, event(n, "transaction.mined", subject)).await;
    }
    let hook = wants("hook", &["*"]);
    commit!(store, [hook], |unit| {
        unit.set_consumer(&hook).await?;
        unit.place_events(10, at(AHEAD)).await?
    })
    .unwrap();
    let claimed = claim(&store, "hook", AHEAD).await.unwrap();
    let failed = claim(&store, "hook", AHEAD).await.unwrap();
    let later = |due: i64| Told::Retry { due: at(due), reason: "down".to_owned() };
    assert!(finish(&store, "hook", &failed, later(AHEAD + 5_000), AHEAD).await);
    // The clock is right again.
    let new = claim(&store, "hook", 20).await.unwrap();
    assert_eq!(new.placed.event.subject, "new");
    assert!(finish(&store, "hook", &new, Told::Done, 21).await);
    for wanted in [&claimed, &failed] {
        let due = claim(&store, "hook", 22).await.expect("no claim and no pause is so long");
        assert_eq!((due.id, due.attempt), (wanted.id, 2));
        assert!(finish(&store, "hook", &due, Told::Done, 23).await);
    }

    // By an hour it is not told apart from a pause: an operator says so.
    append(&store, event(4, "transaction.mined", "a")).await;
    place(&store, &[], 10).await;
    let claimed = claim(&store, "hook", 3_600_000).await.unwrap();
    assert_eq!(claim(&store, "hook", 30).await, None);
    let number = claimed.id;
    assert!(commit!(store, [], |unit| unit.replay_delivery(number, at(31)).await?).unwrap());
    assert_eq!(claim(&store, "hook", 32).await.unwrap().id, claimed.id);
}

async fn what_has_been_due_for_long_goes_before_what_is_new_each_other_time(store: Arc<dyn Store>) {
    append(&store, event(1, "transaction.mined", "a")).await;
    place(&store, &[wants("hook", &["*"])], 10).await;
    let first = claim(&store, "hook", 20).await.unwrap();
    let later = Told::Retry { due: at(500), reason: "down".to_owned() };
    assert!(finish(&store, "hook", &first, later, 21).await);
    for n in 2..=4 {
        append(&store, event(n, "transaction.mined", &n.to_string())).await;
    }
    place(&store, &[], 10).await;
    let told = async |now: i64| {
        let due = claim(&store, "hook", now).await.unwrap();
        assert!(finish(&store, "hook", &due, Told::Done, now).await);
        due.placed.event.id
    };
    assert_eq!(told(500).await, "event 2");
    assert_eq!(told(60_501).await, "event 3", "it waited a minute, and the other is new");
    assert_eq!(told(60_502).await, "event 1", "each other time it is the other way round");
    assert_eq!(told(60_502).await, "event 4");
}
