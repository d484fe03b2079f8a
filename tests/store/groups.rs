//! Grouped commits on SQLite: units that wait together are committed together, and are still units.

use crate::fixtures::{Database, at};
use crate::spend::{amount, settle};
use claviger::core::policy::Charge;
use claviger::ports::store::{End, Store, StoreError, look, unit};
use claviger::store::{OpenMode, open};
use proptest::prelude::*;
use sqlx::{Connection as _, SqliteConnection};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// A unit that holds the writer until it is let go.
struct Gate {
    entered: Arc<Semaphore>,
    open: Arc<Semaphore>,
    task: JoinHandle<()>,
}

impl Gate {
    fn new(store: &Arc<dyn Store>) -> Self {
        let (entered, open) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let (store, tell, wait) = (store.clone(), entered.clone(), open.clone());
        let task = tokio::spawn(async move {
            let held = unit(&*store, "gate", move |_| {
                let (tell, wait) = (tell.clone(), wait.clone());
                Box::pin(async move {
                    tell.add_permits(1);
                    wait.acquire().await.unwrap().forget();
                    Ok(End::Rollback(()))
                })
            });
            held.await.unwrap();
        });
        Self { entered, open, task }
    }

    async fn entered(&self) {
        self.entered.acquire().await.unwrap().forget();
    }

    async fn release(self) {
        self.open.add_permits(1);
        self.task.await.unwrap();
    }
}

/// Lets every task that can go on do so. There is one thread, so what was spawned has then asked.
async fn settled() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

fn sets(store: &Arc<dyn Store>, name: String) -> JoinHandle<Result<(), StoreError>> {
    let store = store.clone();
    tokio::spawn(async move { commit!(store, [name], |unit| unit.set_meta(&name, "1").await?) })
}

async fn stored(store: &Arc<dyn Store>, name: &str) -> bool {
    let name = name.to_owned();
    read!(store, [name], |unit| unit.meta(&name).await?).is_some()
}

#[tokio::test]
async fn a_group_is_answered_and_seen_only_once_all_of_it_is_committed() {
    let Database { store, url, _folder } = Database::sqlite().await;
    let mut observer = SqliteConnection::connect(&url).await.unwrap();
    let first = Gate::new(&store);
    first.entered().await;
    let mut before: Vec<_> = (0..20).map(|n| sets(&store, format!("u{n}"))).collect();
    // One that answers "nothing changed" has seen what the others did: that is not durable either.
    let reads = tokio::spawn({
        let store = store.clone();
        async move { roll_back!(store, [], |unit| unit.meta("u0").await?) }
    });
    settled().await;
    let second = Gate::new(&store);
    settled().await;
    let after: Vec<_> = (20..40).map(|n| sets(&store, format!("u{n}"))).collect();
    settled().await;
    first.open.add_permits(1);
    second.entered().await;
    settled().await;
    // Twenty-two units have run; there is no commit yet.
    assert!(before.iter().all(|task| !task.is_finished()) && !reads.is_finished());
    let seen = "SELECT COUNT(*) FROM meta WHERE name LIKE 'u%'";
    let count: i64 = sqlx::query_scalar(seen).fetch_one(&mut observer).await.unwrap();
    assert_eq!(count, 0);
    second.release().await;
    first.task.await.unwrap();
    before.extend(after);
    for task in before {
        task.await.unwrap().unwrap();
    }
    assert_eq!(reads.await.unwrap().unwrap().as_deref(), Some("1"));
    let count: i64 = sqlx::query_scalar(seen).fetch_one(&mut observer).await.unwrap();
    assert_eq!(count, 40);
}

/// A unit may arrive at any moment while the one before it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn what_was_answered_as_committed_is_there_whoever_came_after_it() {
    let Database { store, url: _, _folder } = Database::sqlite().await;
    let tasks = (0..24).map(|task| {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..200 {
                let (name, keep) = (format!("{task}-{n}"), (task + n) % 2 == 0);
                let done = unit(&*store, "either", move |unit| {
                    let name = name.clone();
                    Box::pin(async move {
                        unit.set_meta(&name, "1").await?;
                        Ok(if keep { End::Commit(()) } else { End::Rollback(()) })
                    })
                });
                done.await.unwrap();
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    for (task, n) in (0..24).flat_map(|task| (0..200).map(move |n| (task, n))) {
        assert_eq!(stored(&store, &format!("{task}-{n}")).await, (task + n) % 2 == 0, "{task}-{n}");
    }
}

#[tokio::test]
async fn a_unit_that_fails_panics_or_rolls_back_takes_none_of_its_group_with_it() {
    let Database { store, url: _, _folder } = Database::sqlite().await;
    let gate = Gate::new(&store);
    gate.entered().await;
    let mut tasks = Vec::new();
    for n in 0..60_u32 {
        let store = store.clone();
        tasks.push(tokio::spawn(async move {
            unit(&*store, "mixed", move |unit| {
                Box::pin(async move {
                    unit.set_meta(&format!("u{n}"), "1").await?;
                    match n % 5 {
                        0 => Err(StoreError::Corrupt("on purpose".to_owned())),
                        1 => panic!("on purpose"),
                        2 => Ok(End::Rollback(())),
                        _ => Ok(End::Commit(())),
                    }
                })
            })
            .await
        }));
    }
    settled().await;
    gate.release().await;
    for (n, task) in tasks.into_iter().enumerate() {
        let ended = task.await;
        match n % 5 {
            0 => assert!(matches!(ended.unwrap(), Err(StoreError::Corrupt(_))), "{n}"),
            1 => assert!(ended.unwrap_err().is_panic(), "{n}"),
            _ => ended.unwrap().unwrap(),
        }
        assert_eq!(stored(&store, &format!("u{n}")).await, n % 5 > 2, "{n}");
    }
}

#[tokio::test]
async fn a_unit_whose_caller_has_gone_before_its_turn_does_not_run() {
    let Database { store, url: _, _folder } = Database::sqlite().await;
    let gate = Gate::new(&store);
    gate.entered().await;
    let (gone, kept) = (sets(&store, "gone".to_owned()), sets(&store, "kept".to_owned()));
    settled().await;
    gone.abort();
    settled().await;
    gate.release().await;
    kept.await.unwrap().unwrap();
    assert!(stored(&store, "kept").await && !stored(&store, "gone").await);
}

#[tokio::test]
async fn more_units_than_a_group_takes_are_all_done() {
    let Database { store, url: _, _folder } = Database::sqlite().await;
    let gate = Gate::new(&store);
    gate.entered().await;
    let tasks: Vec<_> = (0..1500).map(|n| sets(&store, format!("u{n}"))).collect();
    settled().await;
    gate.release().await;
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert!(stored(&store, "u0").await && stored(&store, "u1499").await);
}

#[tokio::test]
async fn the_lock_is_kept_until_a_unit_that_is_being_written_is_done() {
    let Database { store, url, _folder } = Database::sqlite().await;
    let gate = Gate::new(&store);
    gate.entered().await;
    let (entry, open_gate) = (gate.open.clone(), gate.task);
    // The caller goes, and then the store, while its unit has the writer.
    open_gate.abort();
    assert!(open_gate.await.unwrap_err().is_cancelled());
    drop(store);
    let told = open(&url, OpenMode::Existing).await.err().expect("a unit is being written");
    assert!(told.to_string().contains("another server"), "{told}");
    entry.add_permits(1);
    settled().await;
    crate::support::services::poll_until(
        std::time::Duration::from_secs(10),
        "the lock is free",
        async || open(&url, OpenMode::Existing).await.ok().map(drop),
    )
    .await;
}

#[tokio::test]
async fn a_database_that_is_held_by_another_refuses_all_who_wait_at_once_and_recovers() {
    let Database { store, url, _folder } = Database::sqlite().await;
    let mut other = SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let begun = std::time::Instant::now();
    let tasks: Vec<_> = (0..8).map(|n| sets(&store, format!("u{n}"))).collect();
    for task in tasks {
        assert!(matches!(task.await.unwrap(), Err(StoreError::Unavailable(_))));
    }
    // One patience of ten seconds, and not one for each.
    assert!(begun.elapsed() < std::time::Duration::from_secs(40), "{:?}", begun.elapsed());
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    sets(&store, "later".to_owned()).await.unwrap().unwrap();
    assert!(stored(&store, "later").await && !stored(&store, "u0").await);
}

// -- in a process of its own ------------------------------------------------------------------------

const CHILD: &str = "CLAVIGER_GROUPS_CHILD";

/// Runs this very test again, as a child that writes to a database under these conditions: shell words
/// before the program, and a fail point. Answers which units it was told are stored, and which failed.
fn child(test: &str, url: &str, before: &str, failpoint: &str) -> (BTreeSet<u32>, BTreeSet<u32>) {
    let child = Command::new("bash")
        .args(["-c", &format!("{before} exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, url)
        .env("CLAVIGER_FAILPOINT", failpoint)
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout).into_owned();
    let numbers = |word: &str| {
        let lines = text.lines().filter_map(|line| line.strip_prefix(word));
        lines.filter_map(|number| number.trim().parse().ok()).collect::<BTreeSet<u32>>()
    };
    (numbers("stored "), numbers("failed "))
}

/// The child's part: crowds of units, each of which says what it was told.
async fn be_child(url: &str) {
    let store = open(url, OpenMode::Existing).await.unwrap();
    let value = "x".repeat(20_000);
    for crowd in 0..20_u32 {
        let units = (0..24).map(|n| {
            let (store, value, number) = (store.clone(), value.clone(), crowd * 24 + n);
            tokio::spawn(async move {
                let name = format!("u{number}");
                let ended =
                    commit!(store, [name, value], |unit| unit.set_meta(&name, &value).await?);
                let word = if ended.is_ok() { "stored" } else { "failed" };
                let mut out = std::io::stdout().lock();
                write!(out, "\n{word} {number}\n").and_then(|()| out.flush()).unwrap();
            })
        });
        for unit in units.collect::<Vec<_>>() {
            unit.await.unwrap();
        }
    }
}

async fn all_stored(url: &str) -> BTreeSet<u32> {
    let store = open(url, OpenMode::Existing).await.unwrap();
    let found = look(&*store, "found", |unit| {
        Box::pin(async move {
            let mut found = BTreeSet::new();
            for n in 0..480_u32 {
                if unit.meta(&format!("u{n}")).await?.is_some() {
                    found.insert(n);
                }
            }
            Ok(found)
        })
    });
    found.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_before_the_commit_stores_nothing_of_the_group_and_has_answered_nothing() {
    if let Ok(url) = std::env::var(CHILD) {
        return be_child(&url).await;
    }
    let Database { store, url, _folder } = Database::sqlite().await;
    drop(store);
    let test =
        "groups::a_crash_before_the_commit_stores_nothing_of_the_group_and_has_answered_nothing";
    let (stored, failed) = child(test, &url, "", "store.before_group_commit:5");
    let found = all_stored(&url).await;
    assert!(failed.is_empty() && !stored.is_empty(), "{stored:?}");
    assert!(stored.is_subset(&found), "answered and lost: {:?}", stored.difference(&found));
    assert!(found.len() < 480, "it crashed on the way");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_cannot_be_committed_has_failed_for_each_of_its_units() {
    if let Ok(url) = std::env::var(CHILD) {
        return be_child(&url).await;
    }
    let Database { store, url, _folder } = Database::sqlite().await;
    drop(store);
    let test = "groups::a_group_that_cannot_be_committed_has_failed_for_each_of_its_units";
    // No file may grow beyond two megabytes: the commit's own writing meets that, as on a full disk.
    let (stored, failed) = child(test, &url, "trap '' XFSZ; ulimit -f 2048;", "");
    assert!(!stored.is_empty() && !failed.is_empty(), "{} {}", stored.len(), failed.len());
    assert_eq!(stored.len() + failed.len(), 480, "each was answered once");
    assert_eq!(all_stored(&url).await, stored, "stored is what was said to be, and nothing else");
}

// -- spend ------------------------------------------------------------------------------------------

#[derive(Debug, Clone, Copy)]
enum Step {
    Reserve { value: u64, ends: u8 },
    Settle { owner: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..40_u64, 0..6_u8).prop_map(|(value, ends)| Step::Reserve { value, ends }),
        1 => (0..40_u8).prop_map(|owner| Step::Settle { owner }),
    ]
}

const MAX: u64 = 300;

/// What became of a reservation: held, no room, or undone.
async fn reserve(store: &Arc<dyn Store>, owner: u32, charge: Charge, ends: u8) -> Option<bool> {
    let ended = unit(&**store, "reserve", move |unit| {
        let charge = charge.clone();
        Box::pin(async move {
            let full = unit.reserve(&format!("o{owner}"), &[charge], at(0)).await?;
            match ends {
                0 => Err(StoreError::Corrupt("on purpose".to_owned())),
                1 => panic!("on purpose"),
                2 => Ok(End::Rollback(None)),
                _ if full.is_some() => Ok(End::Rollback(Some(false))),
                _ => Ok(End::Commit(Some(true))),
            }
        })
    });
    ended.await.unwrap_or(None)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Crowds of reservations and settlements, some of which fail, panic or lose their caller: what is
    /// held and spent is the sum of what was answered, and never above the limit (I8).
    #[test]
    fn in_groups_too_the_sums_are_those_of_the_answers_and_never_above_the_limit(
        crowds in proptest::collection::vec(proptest::collection::vec(step(), 1..40), 1..6)
    ) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.unwrap().block_on(model(crowds));
    }
}

async fn model(crowds: Vec<Vec<Step>>) {
    let Database { store, url: _, _folder } = Database::sqlite().await;
    let (mut total, mut number) = (0_u64, 0_u32);
    for crowd in crowds {
        let mut tasks = Vec::new();
        for step in crowd {
            let (store, owner) = (store.clone(), number);
            number += 1;
            tasks.push(tokio::spawn(async move {
                match step {
                    Step::Reserve { value, ends } => {
                        let held = reserve(&store, owner, amount(1, value, 0, MAX), ends).await;
                        if held == Some(true) { value } else { 0 }
                    }
                    Step::Settle { owner } => {
                        settle(&store, &format!("o{owner}"), true, None, 1).await;
                        0
                    }
                }
            }));
        }
        for task in tasks {
            match task.await {
                Ok(value) => total += value,
                Err(error) => assert!(error.is_panic()),
            }
        }
        let rows = read!(store, [], |unit| unit.limits_now(at(0)).await?);
        let sum: u64 =
            rows.iter().map(|row| (row.held.units() + row.spent.units()).to::<u64>()).sum();
        assert_eq!(sum, total, "held and spent is what was answered");
        assert!(sum <= MAX);
    }
}
