//! Who comes to its turn when much of what waits cannot be judged: the line that the server walks, over a real
//! database.

use crate::approvals::waiting;
use crate::fixtures::{Database, add_key, hash, request, transaction};
use claviger::app::release::Line;
use claviger::core::id::RequestId;
use claviger::core::time::Timestamp;
use claviger::core::tx::state::Status;
use claviger::ports::clock::Clock;
use claviger::ports::store::{DueRequest, Store};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

/// A clock that the test moves.
struct TestClock(AtomicI64);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::SeqCst))
    }
}

impl TestClock {
    fn step(&self, ms: i64) {
        self.0.fetch_add(ms, Ordering::SeqCst);
    }
}

/// One that cannot be judged, in a second in which the clock is three days ahead.
#[tokio::test]
async fn what_was_put_off_by_a_clock_that_jumped_has_its_turn_when_that_is_right_again() {
    const JUMP_MS: i64 = 3 * 86_400_000;
    let database = Database::sqlite().await;
    let store = database.store.clone();
    add_key(&store, 1).await;
    let (row, wait) = (transaction(1, 1), waiting(1, 5_000));
    commit!(store, [row, wait], |unit| {
        unit.insert_waiting(&row, Status::Delayed, &wait).await?;
    })
    .unwrap();
    let clock = TestClock(AtomicI64::new(1_000_000));
    let judge = Judge { clock: &clock, takes_ms: 0, seen: Mutex::default() };
    clock.step(JUMP_MS);
    assert_eq!(judge.walk(&store).await, [request(1)]);
    clock.step(-JUMP_MS);
    assert_eq!(judge.walk(&store).await, [request(1)], "not in three days");
    // And put off by the right clock from then on, however late in a long look.
    assert!(judge.walk(&store).await.is_empty());
    clock.step(2_000);
    assert_eq!(judge.walk(&store).await, [request(1)]);
    for _ in 0..8 {
        clock.step(32_000);
        assert_eq!(judge.walk(&store).await, [request(1)]);
    }
    clock.step(-5_000);
    assert!(judge.walk(&store).await.is_empty(), "nor by another clock that is behind");
}

/// What cannot be judged is the first hundred of a hundred and ten; each takes this long.
struct Judge<'a> {
    clock: &'a TestClock,
    takes_ms: i64,
    seen: Mutex<Vec<RequestId>>,
}

impl Judge<'_> {
    async fn walk(&self, store: &Arc<dyn Store>) -> Vec<RequestId> {
        let line = Line { store: &**store, clock: self.clock, bundle: hash(99) };
        line.walk(|due: DueRequest| async move {
            self.seen.lock().unwrap().push(due.request);
            let errs = due.request < request(101);
            if errs {
                self.clock.step(self.takes_ms);
            }
            errs.then_some(None)
        })
        .await
        .unwrap();
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

#[tokio::test]
async fn a_page_full_of_what_cannot_be_judged_keeps_no_other_waiting() {
    let database = Database::sqlite().await;
    let store = database.store.clone();
    add_key(&store, 1).await;
    for n in 1..=110 {
        let (row, wait) = (transaction(n, 1), waiting(n, 5_000));
        commit!(store, [row, wait], |unit| {
            unit.insert_waiting(&row, Status::Delayed, &wait).await?;
        })
        .unwrap();
    }
    let clock = TestClock(AtomicI64::new(1_000_000));
    let judge = Judge { clock: &clock, takes_ms: 0, seen: Mutex::default() };
    let all: Vec<RequestId> = (1..=110).map(request).collect();
    let good = &all[100..];
    assert_eq!(judge.walk(&store).await, all, "each once, and the oldest first");
    assert_eq!(judge.walk(&store).await, good, "none is tried again at once");
    clock.step(999);
    assert_eq!(judge.walk(&store).await, good);
    clock.step(1);
    assert_eq!(judge.walk(&store).await, [good, &all[..100]].concat(), "and then at the end");
    clock.step(1_999);
    assert_eq!(judge.walk(&store).await, good, "twice as late the second time");
    clock.step(1);
    assert_eq!(judge.walk(&store).await.len(), 110);

    // Slow ones end the look, and those that had their turn go behind the others.
    clock.step(60_000);
    let slow = Judge { clock: &clock, takes_ms: 2_000, seen: Mutex::default() };
    let first = slow.walk(&store).await;
    assert_eq!(first[..10], *good, "{first:?}");
    assert!(first.len() < 20, "there is no time for all: {first:?}");
    let second = slow.walk(&store).await;
    assert_eq!(second[..10], *good);
    let again = second[10..].iter().any(|id| first[10..].contains(id));
    assert!(second.len() > 10 && !again, "others have their turn first: {first:?} {second:?}");
}
