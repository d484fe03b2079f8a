//! Deliveries that step aside: what comes after them goes on, and they are tried again beside it.

use crate::fixtures::*;
use async_trait::async_trait;
use claviger::bus::embedded::{Step, lanes};
use claviger::core::chain_view::Link;
use claviger::core::time::Timestamp;
use claviger::ports::bus::{Consumer, Kind, Message, Outcome, PUBLISHER, Wait};
use claviger::ports::clock::Clock;
use claviger::ports::watch_store::{
    Arrived, Claimed, Ended, NewDelivery, NewEvent, Received, WatchStore,
};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

on_both!(
    what_stepped_aside_is_passed_and_tried_when_it_is_due,
    what_came_over_a_bus_and_stepped_aside_is_the_outboxs,
);

const UNTIL: i64 = 100_000;

async fn with_events(store: &dyn WatchStore, to: u64) {
    ready(store).await;
    let blocks: Vec<Link> = (11..=to).map(|number| link(number, 0, 0)).collect();
    let events: Vec<NewEvent> = (11..=to).map(|number| event(number, 0, false)).collect();
    store.advance(&advance(place(10, 0), &blocks, events)).await.unwrap();
}

fn blocks(claimed: &[Claimed]) -> Vec<&str> {
    claimed.iter().map(|one| one.message.body.rsplit(' ').next().unwrap()).collect()
}

fn aside(due: i64) -> Option<Ended> {
    Some(Ended::Aside { due: at(due), error: "it would revert".to_owned() })
}

async fn what_stepped_aside_is_passed_and_tried_when_it_is_due(store: &dyn WatchStore) {
    with_events(store, 14).await;
    let claim =
        async |now: i64| store.claim_some(CONSUMER, SOURCE, at(now), at(UNTIL), 9).await.unwrap();
    let claim_aside = async |now: i64, most: u32| {
        store.claim_aside(CONSUMER, SOURCE, at(now), at(UNTIL), most).await.unwrap()
    };
    let all = claim(0).await.claimed;
    let ends = [aside(900), None, aside(500), None];
    let ended: Vec<_> = all.into_iter().zip(ends).collect();
    assert_eq!(store.finish_some(&ended, at(1)).await.unwrap(), [true; 4]);
    assert_eq!(blocks(&claim(1).await.claimed), ["12", "14"]);
    let none = claim_aside(499, 9).await;
    assert_eq!((none.claimed.len(), none.due), (0, Some(at(500))));
    // Those that have waited longest, and none that is not due.
    let first = claim_aside(899, 9).await.claimed;
    assert_eq!((blocks(&first), first[0].attempt), (vec!["13"], 2));
    let again = Ended::Retry { due: at(950), error: "busy".to_owned() };
    assert!(store.finish(first[0].id, 2, &again, at(899)).await.unwrap());
    assert_eq!(blocks(&claim_aside(950, 1).await.claimed), ["11"]);
    let other = claim_aside(950, 9).await.claimed;
    assert_eq!(blocks(&other), ["13"], "what is tried again goes on aside");
    // A reorg takes it back as any other that was tried.
    let standing = store.standing_above(CHAIN, 12).await.unwrap();
    store.roll_back(&roll_back(place(14, 0), place(12, 0), standing)).await.unwrap();
    let done = Ended::Done("tx-13".to_owned());
    assert!(!store.finish(other[0].id, other[0].attempt, &done, at(951)).await.unwrap());
    assert_eq!(claim_aside(UNTIL, 9).await.claimed.len(), 1, "only the first");
}

async fn what_came_over_a_bus_and_stepped_aside_is_the_outboxs(store: &dyn WatchStore) {
    ready(store).await;
    let deliveries = vec![NewDelivery { consumer: PUBLISHER.to_owned(), held: false }];
    let NewEvent { source, event_id, body, .. } = event(11, 0, false);
    let published = NewEvent { deliveries, ..event(11, 0, false) };
    store.advance(&advance(place(10, 0), &[link(11, 0, 0)], vec![published])).await.unwrap();
    let log = Arrived {
        consumer: CONSUMER.to_owned(),
        chain: CHAIN.to_owned(),
        block_number: 11,
        message: Message { kind: Kind::Log, source, event_id, body },
    };
    let Received::Ask(claimed) = store.receive(&log, at(1)).await.unwrap() else {
        panic!("it is not asked for")
    };
    let ended = aside(500).unwrap();
    assert!(store.finish(claimed.id, claimed.attempt, &ended, at(2)).await.unwrap());
    let again = store.receive(&log, at(3)).await.unwrap();
    assert!(matches!(again, Received::Settled("the outbox delivers it")), "{again:?}");
    let claims = store.claim_aside(CONSUMER, SOURCE, at(500), at(UNTIL), 9).await.unwrap();
    assert_eq!((claims.claimed[0].id, claims.claimed[0].attempt), (claimed.id, 2));
    let done = Ended::Done("tx".to_owned());
    assert!(store.finish(claimed.id, 2, &done, at(501)).await.unwrap());
    assert_eq!(
        store.claim_aside(CONSUMER, SOURCE, at(UNTIL), at(UNTIL), 9).await.unwrap().due,
        None
    );
}

#[derive(Default)]
struct TestClock(AtomicI64);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        at(self.0.load(Ordering::SeqCst))
    }
}

/// Has every event of an odd block step aside, and keeps what it was given.
#[derive(Default)]
struct Choosy(Mutex<Vec<u64>>);

#[async_trait]
impl Consumer for Choosy {
    fn name(&self) -> &str {
        CONSUMER
    }

    fn subscriptions(&self) -> Vec<(String, Wait)> {
        vec![(SOURCE.to_owned(), Wait::Head)]
    }

    async fn deliver(&self, message: &Message) -> Outcome {
        let block: u64 = message.body.rsplit(' ').next().unwrap().parse().unwrap();
        self.0.lock().unwrap().push(block);
        match block.is_multiple_of(2) {
            true => Outcome::Done("tx".to_owned()),
            false => Outcome::Aside("it would revert".to_owned()),
        }
    }
}

#[tokio::test]
async fn a_lane_goes_on_past_what_stepped_aside_and_comes_back_to_it_in_turns() {
    let folder = tempfile::tempdir().unwrap();
    let store = sqlite(folder.path()).await;
    with_events(&*store, 31).await;
    let (consumer, test_clock) = (Arc::new(Choosy::default()), Arc::new(TestClock::default()));
    let clock: Arc<dyn Clock> = Arc::<TestClock>::clone(&test_clock);
    let consumers: Vec<Arc<dyn Consumer>> = vec![Arc::<Choosy>::clone(&consumer)];
    let lane = lanes(&store, &clock, &consumers).remove(0);
    let given = || std::mem::take(&mut *consumer.0.lock().unwrap());
    assert_eq!(lane.step().await.unwrap(), Step::Moved);
    assert_eq!(given(), [11, 12, 13, 14]);
    // Those that are due again have their turn, and so have the others.
    test_clock.0.store(1_000, Ordering::SeqCst);
    assert_eq!(lane.step().await.unwrap(), Step::Moved);
    assert_eq!(given(), [11, 13]);
    assert_eq!(lane.step().await.unwrap(), Step::Moved);
    assert_eq!(given()[..3], [15, 16, 17]);
    while lane.step().await.unwrap() == Step::Moved {}
    let rest = given();
    assert!(rest.contains(&30) && rest.contains(&31), "{rest:?}");
    assert_eq!(lane.step().await.unwrap(), Step::Until(at(1_500)));
}
