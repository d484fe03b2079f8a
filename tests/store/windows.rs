//! What a decision costs does not grow with what was spent before.

use crate::fixtures::{Database, at};
use crate::spend::{charge, limit, release, reserve, settle};
use claviger::core::amount::Amount;
use claviger::core::policy::{Charge, ChargeKind, Period};
use claviger::ports::store::Store;
use sqlx::Connection as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

on_both!(
    a_calendar_day_is_free_at_its_end_and_not_before,
    a_clock_that_went_back_frees_nothing_early,
    two_readings_of_a_look_do_not_free_twice,
);

const DAY_MS: i64 = 86_400_000;
const MOVES: &str = "INSERT INTO limit_buckets";

fn one(period: Period, value: u64, max: u64) -> Charge {
    let kind = ChargeKind::Amount { value: Amount::from(value), fee: Amount::ZERO };
    Charge { period, ..charge(1, kind, max, 1) }
}

async fn fits(store: &Arc<dyn Store>, owner: &str, charge: &Charge, now: i64) -> bool {
    reserve(store, owner, std::slice::from_ref(charge), now).await.unwrap().is_none()
}

async fn a_calendar_day_is_free_at_its_end_and_not_before(store: Arc<dyn Store>) {
    let day = |value| one(Period::Day, value, 10);
    let noon = 20_000 * DAY_MS + DAY_MS / 2;
    assert!(fits(&store, "a", &day(10), noon).await);
    settle(&store, "a", true, None, noon).await;
    let end = 20_001 * DAY_MS;
    assert!(!fits(&store, "b", &day(1), end - 1).await);
    assert!(fits(&store, "b", &day(10), end).await);
    // What is held when the day ends is of the day in which it settles.
    settle(&store, "b", true, None, end + DAY_MS).await;
    assert!(!fits(&store, "c", &day(1), end + 2 * DAY_MS - 1).await);
    assert!(fits(&store, "c", &day(1), end + 2 * DAY_MS).await);
}

async fn a_clock_that_went_back_frees_nothing_early(store: Arc<dyn Store>) {
    let charge = |value| one(Period::Rolling(1_000), value, 10);
    assert!(fits(&store, "a", &charge(10), 50_000).await);
    settle(&store, "a", true, None, 10).await;
    assert!(!fits(&store, "b", &charge(1), 50_999).await, "it counts from the decision at least");
    assert!(fits(&store, "b", &charge(1), 51_000).await);
}

async fn two_readings_of_a_look_do_not_free_twice(store: Arc<dyn Store>) {
    let charge = |value| one(Period::Rolling(1_000), value, 10);
    for owner in ["a", "b"] {
        assert!(fits(&store, owner, &charge(5), 0).await);
        settle(&store, owner, true, None, 0).await;
    }
    let asked = (0..8).map(|n| {
        let (store, charge) = (store.clone(), charge(5));
        tokio::spawn(async move { fits(&store, &format!("owner {n}"), &charge, 1_000).await })
    });
    let passed = futures::future::join_all(asked).await;
    assert_eq!(passed.into_iter().filter(|fits| *fits.as_ref().unwrap()).count(), 2);
    assert_eq!(limit(&store, 1).await, (10, 0));
}

/// The migration's own statements, over a database as it was before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_spent_before_the_migration_counts_as_exactly_as_before() {
    for database in [Database::sqlite().await, Database::postgres().await] {
        let store = database.store.clone();
        let span = 1_000_000;
        for (n, at) in [(0, 500_000), (1, 500_001), (2, 500_001)] {
            let kind = ChargeKind::Amount { value: Amount::from(2_u64), fee: Amount::ONE };
            let charge = Charge { period: Period::Rolling(span), ..charge(1, kind, 9, 1) };
            assert!(fits(&store, &format!("old {n}"), &charge, at).await);
            settle(&store, &format!("old {n}"), true, None, at).await;
        }
        let sqlite = include_str!("../../migrations/server/sqlite/0011_windows.sql");
        let postgres = include_str!("../../migrations/server/postgres/0011_windows.sql");
        let is_sqlite = database.url.starts_with("sqlite:");
        let all = if is_sqlite { sqlite } else { postgres };
        let moved = all.split(';').filter_map(|statement| statement.split_once(MOVES));
        let moved: Vec<String> = moved.map(|(_, rest)| format!("{MOVES}{rest}")).collect();
        assert_eq!(moved.len(), 2);
        let statements = format!("DELETE FROM limit_buckets; {}", moved.join(";"));
        let statements = sqlx::AssertSqlSafe(statements);
        if is_sqlite {
            let mut raw = sqlx::SqliteConnection::connect(&database.url).await.unwrap();
            sqlx::raw_sql(statements).execute(&mut raw).await.unwrap();
        } else {
            let mut raw = sqlx::PgConnection::connect(&database.url).await.unwrap();
            sqlx::raw_sql(statements).execute(&mut raw).await.unwrap();
        }
        let charge = |value| one(Period::Rolling(span), value, 9);
        assert!(!fits(&store, "new", &charge(1), 500_000 + span - 1).await);
        assert!(!fits(&store, "new", &charge(4), 500_000 + span).await);
        assert!(fits(&store, "new", &charge(3), 500_000 + span).await);
        assert_eq!(limit(&store, 1).await, (3, 6));
        assert!(fits(&store, "newer", &charge(6), 500_001 + span).await);
        assert_eq!(limit(&store, 1).await, (9, 0));
    }
}

/// So many settlements in one window, a few at each moment of its span, by the store itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settlements_are_kept_in_few_rows_and_forgotten_with_time() {
    let database = Database::sqlite().await;
    let store = database.store.clone();
    let span = 1_000_000;
    let charge = one(Period::Rolling(span), 1, 1_000_000);
    let mut now = 5_000_000;
    for n in 0..1_500 {
        now += 1_000;
        let owner = format!("owner {n}");
        assert!(fits(&store, &owner, &charge, now).await);
        settle(&store, &owner, true, None, now).await;
    }
    let (pieces, entries) = rows(&database.url).await;
    assert!(pieces <= 258, "{pieces} pieces");
    assert!(entries <= 1_010, "{entries} entries of settlements in a span that saw 1,000");
    let (held, spent) = limit(&store, 1).await;
    assert!(held == 0 && (1_000..=1_005).contains(&spent), "{spent}");
    // One look takes all of it out, and leaves nothing.
    assert!(fits(&store, "late", &charge, now + span).await);
    assert_eq!(limit(&store, 1).await, (1, 0));
    assert_eq!(rows(&database.url).await.0, 0);
}

async fn rows(url: &str) -> (i64, i64) {
    let mut raw = sqlx::SqliteConnection::connect(url).await.unwrap();
    let pieces = sqlx::query_scalar("SELECT COUNT(*) FROM limit_buckets");
    let entries = sqlx::query_scalar("SELECT COUNT(*) FROM limit_entries");
    (pieces.fetch_one(&mut raw).await.unwrap(), entries.fetch_one(&mut raw).await.unwrap())
}

/// Puts so many settlements into the span of limit 1, which exists, as the store would have.
async fn fill(database: &Database, count: i64, since: i64, until: i64) {
    let is_sqlite = database.url.starts_with("sqlite:");
    let value = if is_sqlite { "zeroblob(32)" } else { "decode(repeat('00', 32), 'hex')" };
    let numbers = if is_sqlite {
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < $1)"
    } else {
        "WITH n(i) AS (SELECT generate_series(0, $1 - 1))"
    };
    let entries = format!(
        "{numbers} INSERT INTO limit_entries (limit_id, owner, kind, value, fee, settled_at) \
         SELECT (SELECT id FROM limits WHERE label = 'limit 1'), 'past ' || i, 'amount', {value}, \
         {value}, $2 + i * ($3 - $2) / $1 FROM n"
    );
    let pieces = format!(
        "INSERT INTO limit_buckets (limit_id, bucket, last_at, spent) SELECT limit_id, \
         settled_at / (($2 - $1) / 256 + 1), MAX(settled_at), {value} FROM limit_entries \
         WHERE settled_at IS NOT NULL GROUP BY 1, 2"
    );
    let (entries, pieces) = (sqlx::AssertSqlSafe(entries), sqlx::AssertSqlSafe(pieces));
    macro_rules! run {
        ($connection:ty) => {{
            let mut raw = <$connection>::connect(&database.url).await.unwrap();
            let filled = sqlx::query(entries).bind(count).bind(since).bind(until);
            filled.execute(&mut raw).await.unwrap();
            sqlx::query(pieces).bind(since).bind(until).execute(&mut raw).await.unwrap();
            // What a database of this size that has run for a while looks like.
            let settle = if is_sqlite { "PRAGMA wal_checkpoint(TRUNCATE)" } else { "ANALYZE" };
            sqlx::raw_sql(settle).execute(&mut raw).await.unwrap();
        }};
    }
    if is_sqlite {
        run!(sqlx::SqliteConnection);
    } else {
        run!(sqlx::PgConnection);
    }
}

/// The middle of 200 decisions, each rolled back: what the disk takes for a commit is no part of it.
async fn middle(store: &Arc<dyn Store>, charge: &Charge, now: i64) -> Duration {
    let mut took = Vec::new();
    for n in 0..200 {
        let (owner, charges) = (format!("asks {n}"), vec![charge.clone()]);
        let begun = Instant::now();
        let full = roll_back!(store, [owner, charges], |unit| unit
            .reserve(&owner, &charges, at(now))
            .await?);
        took.push(begun.elapsed());
        assert!(full.unwrap().is_none());
    }
    took.sort();
    took[100]
}

/// Prints what a decision takes with few and with many settlements in its window; `WINDOWS_PAST` says how many,
/// `make bench` a million. Fails only where it does not work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bench_of_a_decision_with_a_past() {
    let many: i64 = std::env::var("WINDOWS_PAST").map_or(2_000, |many| many.parse().unwrap());
    for past in [10, many] {
        for database in [Database::sqlite().await, Database::postgres().await] {
            let store = database.store.clone();
            let (span, now) = (DAY_MS, 20_000 * DAY_MS);
            let charge = one(Period::Rolling(span), 1, 1_000_000);
            assert!(fits(&store, "first", &charge, now).await);
            release(&store, "first").await;
            fill(&database, past, now - span + 1, now).await;
            let took = middle(&store, &charge, now).await;
            let kind = database.url.split(':').next().unwrap();
            println!("{kind}: {past} settled in the window, one decision takes {took:?}");
            assert!(fits(&store, "last", &charge, now + 2 * span).await, "and all of it leaves");
        }
    }
}
