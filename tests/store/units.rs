//! What a unit promises: everything or nothing, and nothing after the first error.

use crate::fixtures::{Database, at, lane_key, request, transaction};
use claviger::ports::store::{End, NewEvent, Store, StoreError, look, unit};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Barrier;

on_both!(
    what_ends_in_rollback_is_not_stored,
    what_ends_in_an_error_is_not_stored,
    a_swallowed_error_of_the_database_forbids_the_commit,
    a_swallowed_error_about_a_value_forbids_the_commit,
    a_look_sees_one_state,
    a_look_cannot_write,
    a_panic_stores_nothing_and_leaves_the_store_usable,
    a_caller_that_goes_away_leaves_all_or_nothing,
    writers_do_not_lose_each_others_updates_of_a_locked_row,
);

async fn meta(store: &Arc<dyn Store>, name: &'static str) -> Option<String> {
    read!(store, [], |unit| unit.meta(name).await?)
}

fn event(n: u64) -> NewEvent {
    NewEvent {
        id: format!("event-{n}"),
        kind: "claviger.test".to_owned(),
        subject: "subject".to_owned(),
        data_json: "{}".to_owned(),
        at: at(0),
    }
}

async fn what_ends_in_rollback_is_not_stored(store: Arc<dyn Store>) {
    let answer = roll_back!(store, [], |unit| {
        unit.set_meta("a", "1").await?;
        unit.meta("a").await?
    });
    assert_eq!(answer.unwrap().as_deref(), Some("1"), "the unit sees its own writes");
    assert_eq!(meta(&store, "a").await, None);
    commit!(store, [], |unit| unit.set_meta("a", "2").await?).unwrap();
    assert_eq!(meta(&store, "a").await.as_deref(), Some("2"));
}

async fn what_ends_in_an_error_is_not_stored(store: Arc<dyn Store>) {
    let refused = unit::<(), _>(&*store, "failing", |unit| {
        Box::pin(async move {
            unit.set_meta("a", "1").await?;
            Err(StoreError::Corrupt("of the closure's own".to_owned()))
        })
    })
    .await;
    assert!(matches!(refused, Err(StoreError::Corrupt(_))), "{refused:?}");
    assert_eq!(meta(&store, "a").await, None);
}

async fn a_swallowed_error_of_the_database_forbids_the_commit(store: Arc<dyn Store>) {
    let event = event(1);
    let answer = commit!(store, [event], |unit| {
        unit.set_meta("a", "1").await?;
        unit.append_event(&event).await?;
        let twice = unit.append_event(&event).await;
        assert!(twice.is_err(), "an event's id is unique");
        // PostgreSQL refuses this one too; it is not the error that is told.
        let _ = unit.set_meta("b", "1").await;
    });
    let Err(StoreError::Unavailable(told)) = answer else { panic!("{answer:?}") };
    assert!(told.contains("APPEND_EVENT"), "{told}");
    assert_eq!((meta(&store, "a").await, meta(&store, "b").await), (None, None));
}

async fn a_swallowed_error_about_a_value_forbids_the_commit(store: Arc<dyn Store>) {
    let mut row = transaction(1, 1);
    row.intent.gas = u64::MAX;
    let answer = commit!(store, [row], |unit| {
        unit.set_meta("a", "1").await?;
        assert!(unit.insert_transaction(&row).await.is_err());
    });
    assert!(matches!(answer, Err(StoreError::Corrupt(_))), "{answer:?}");
    assert_eq!(meta(&store, "a").await, None);
}

async fn a_look_sees_one_state(store: Arc<dyn Store>) {
    let turns = Arc::new(Barrier::new(2));
    let reader = tokio::spawn({
        let (store, turns) = (store.clone(), turns.clone());
        async move {
            look(&*store, "two_reads", move |unit| {
                let turns = turns.clone();
                Box::pin(async move {
                    let before = unit.meta("a").await?;
                    turns.wait().await;
                    turns.wait().await;
                    Ok((before, unit.meta("a").await?))
                })
            })
            .await
        }
    });
    turns.wait().await;
    commit!(store, [], |unit| unit.set_meta("a", "1").await?).unwrap();
    turns.wait().await;
    assert_eq!(reader.await.unwrap().unwrap(), (None, None));
    assert_eq!(meta(&store, "a").await.as_deref(), Some("1"));
}

async fn a_look_cannot_write(store: Arc<dyn Store>) {
    let answer =
        look(&*store, "writing", |unit| Box::pin(async move { unit.set_meta("a", "1").await }))
            .await;
    assert!(answer.is_err());
    assert_eq!(meta(&store, "a").await, None);
}

async fn a_panic_stores_nothing_and_leaves_the_store_usable(store: Arc<dyn Store>) {
    let panicking = tokio::spawn({
        let store = store.clone();
        async move {
            unit::<(), _>(&*store, "panicking", |unit| {
                Box::pin(async move {
                    unit.set_meta("a", "1").await?;
                    panic!("on purpose");
                })
            })
            .await
        }
    });
    assert!(panicking.await.unwrap_err().is_panic());
    commit!(store, [], |unit| unit.set_meta("b", "1").await?).unwrap();
    assert_eq!(meta(&store, "a").await, None);
}

async fn a_caller_that_goes_away_leaves_all_or_nothing(store: Arc<dyn Store>) {
    for polls in (0..14).map(|power| 1_usize << power) {
        let (a, b) = (format!("a{polls}"), format!("b{polls}"));
        let both = async {
            commit!(store, [a, b], |unit| {
                unit.set_meta(&a, "1").await?;
                unit.set_meta(&b, "1").await?;
            })
        };
        let patience = async {
            for _ in 0..polls {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            done = both => done.unwrap(),
            () = patience => {}
        }
        // The writer is free again, whatever was left behind.
        let stored = commit!(store, [a, b], |unit| {
            (unit.meta(&a).await?.is_some(), unit.meta(&b).await?.is_some())
        });
        let (a, b) = stored.unwrap();
        assert_eq!(a, b, "given up after {polls} polls");
    }
}

async fn writers_do_not_lose_each_others_updates_of_a_locked_row(store: Arc<dyn Store>) {
    crate::fixtures::crowd(&store).await;
    crate::fixtures::add_key(&store, 1).await;
    let tasks = (0..40).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            let open = lane_key(1);
            commit!(store, [open], |unit| {
                // The lane's lock stands for every read, decide, write of a unit.
                unit.lock_lane(&open).await?;
                let count =
                    unit.meta("count").await?.map_or(0, |text| text.parse::<u32>().unwrap());
                unit.set_meta("count", &(count + 1).to_string()).await?;
            })
            .unwrap();
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(meta(&store, "count").await.as_deref(), Some("40"));
}

/// Two units that take two lanes in opposite orders: PostgreSQL ends one of them, and it is run again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_postgres_a_unit_that_lost_a_deadlock_is_run_again() {
    let store = Database::postgres().await.store;
    crate::fixtures::add_key(&store, 1).await;
    crate::fixtures::add_key(&store, 2).await;
    for key in [1, 2] {
        crate::fixtures::lane(&store, key).await;
    }
    let (runs, both) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(2)));
    let tasks = [[1, 2], [2, 1]].map(|order| {
        let (store, runs, both) = (store.clone(), runs.clone(), both.clone());
        tokio::spawn(async move {
            unit(&*store, "crossing", move |unit| {
                let (runs, both) = (runs.clone(), both.clone());
                Box::pin(async move {
                    let first_run = runs.fetch_add(1, Ordering::SeqCst) < 2;
                    unit.lock_lane(&lane_key(order[0])).await?;
                    if first_run {
                        both.wait().await;
                    }
                    unit.lock_lane(&lane_key(order[1])).await?;
                    unit.append_event(&event(u64::from(order[0]))).await?;
                    Ok(End::Commit(request(1)))
                })
            })
            .await
        })
    });
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    // More than once if it came back before the other was woken.
    assert!(runs.load(Ordering::SeqCst) > 2, "one of them was run again");
    let events = read!(store, [], |unit| unit.events_of("subject").await?);
    assert_eq!(events.len(), 2, "the run that was given up stored nothing");
}
