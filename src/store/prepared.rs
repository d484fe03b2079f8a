//! Every named statement prepares on both databases, and speaks only of portable types.

use super::{Named, OpenMode, open, postgres, sqlite};
use crate::ports::store::look;
use sqlx::{Column as _, Connection as _, Either, Executor as _, SqlStr, Statement as _};
use sqlx::{TypeInfo as _, postgres::PgConnection, sqlite::SqliteConnection};
use std::collections::BTreeSet;

#[path = "../../tests/support"]
mod support {
    pub mod services;
}

const PORTABLE: [&str; 3] = ["INT8", "TEXT", "BYTEA"];

fn names(statements: &[Named]) -> BTreeSet<&'static str> {
    statements.iter().map(|statement| statement.name).collect()
}

#[test]
fn every_statement_has_a_name_of_its_own_and_both_databases_have_it() {
    let (one, two) = (sqlite::all_statements(), postgres::all_statements());
    assert!(one.len() > 50, "{}", one.len());
    assert_eq!(names(&one).len(), one.len());
    assert_eq!(names(&one), names(&two));
}

#[tokio::test]
async fn every_statement_prepares_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("claviger.db").display());
    let _store = open(&url, OpenMode::Create).await.unwrap();
    let mut raw = SqliteConnection::connect(&url).await.unwrap();
    for Named { name, sql } in sqlite::all_statements() {
        let prepared = raw.prepare(SqlStr::from_static(sql)).await;
        let prepared = prepared.unwrap_or_else(|error| panic!("{name}: {error}"));
        let count = match prepared.parameters() {
            Some(Either::Right(count)) => count,
            other => panic!("{name}: {other:?}"),
        };
        assert!(count == 0 || sql.contains(&format!("${count}")), "{name}");
    }
}

#[tokio::test]
async fn every_statement_prepares_on_postgres_with_portable_types() {
    let url = support::services::Postgres::shared().await.create_database();
    let _store = open(&url, OpenMode::Create).await.unwrap();
    let mut raw = PgConnection::connect(&url).await.unwrap();
    for Named { name, sql } in postgres::all_statements() {
        let prepared = raw.prepare(SqlStr::from_static(sql)).await;
        let prepared = prepared.unwrap_or_else(|error| panic!("{name}: {error}"));
        for column in prepared.columns() {
            let kind = column.type_info().name();
            assert!(PORTABLE.contains(&kind), "{name}: column {} is {kind}", column.name());
        }
        let Some(Either::Left(parameters)) = prepared.parameters() else {
            panic!("{name}: the parameters have no types");
        };
        for (place, kind) in (1..).zip(parameters) {
            assert!(PORTABLE.contains(&kind.name()), "{name}: ${place} is {kind}");
        }
    }
}

/// Whoever shows how much is owed must not read all of it, however much that is.
#[tokio::test]
async fn what_is_owed_is_counted_up_to_a_bound() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("claviger.db").display());
    let store = open(&url, OpenMode::Create).await.unwrap();
    let mut raw = SqliteConnection::connect(&url).await.unwrap();
    let many = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 100500) \
        INSERT INTO event_deliveries \
        (consumer, place, subject, state, attempts, due_at, reason, created_at, updated_at) SELECT 'bus', n, \
        'a', CASE WHEN n > 300 THEN 'behind' ELSE 'open' END, 0, 0, '', n + 1000, 0 FROM n";
    raw.execute(SqlStr::from_static(many)).await.unwrap();
    let owed = look(&*store, "test", |unit| Box::pin(async move { unit.backlogs().await }));
    let owed = owed.await.unwrap();
    assert_eq!((owed.len(), owed[0].count, owed[0].since.millis()), (1, 100_000, 1_001));
}

/// What a lane costs must not grow with what waits or is over in it: these go by an index, and by the whole
/// of what they ask for.
#[tokio::test]
async fn what_a_lane_asks_for_is_found_by_an_index_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("claviger.db").display());
    let _store = open(&url, OpenMode::Create).await.unwrap();
    let mut raw = SqliteConnection::connect(&url).await.unwrap();
    let exact = [
        ("NEXT_QUEUED", "transactions_work (chain_id=? AND status=? AND address=?)"),
        ("IN_FLIGHT", "transactions_work (chain_id=? AND status=? AND address=?)"),
        ("OWED", "transactions_work (chain_id=? AND status=? AND address=?)"),
        ("OPEN_OF", "transactions_work (chain_id=? AND status=? AND address=?)"),
        ("BUSY_ACCOUNTS", "transactions_work (chain_id=? AND status=? AND address>?)"),
        ("ALL_CANDIDATES", "operator_keys_oldest (group_name=? AND state=?)"),
        ("OLDEST_OF", "operator_keys_oldest (group_name=? AND state=?)"),
        ("CANDIDATES_FROM", "operator_keys_any (group_name=? AND state=? AND address>?)"),
        ("CANDIDATES_FROM", "transactions_work (chain_id=? AND status=? AND address=?)"),
        ("TOKEN_KEYS", "operator_keys_wrapped (wrapped_under=?)"),
        ("WRAPPED_UNDER", "COVERING INDEX operator_keys_wrapped"),
        ("UNFINISHED_KEYS", "operator_keys_unfinished"),
        ("GROUP_UP_TO", "COVERING INDEX operator_keys_"),
        ("KEYS_PAGE", "sqlite_autoindex_operator_keys_1 (id>?)"),
        ("LOADS", "transactions_work (chain_id=? AND status=? AND address=?)"),
        ("DROP_GONE", "limit_buckets_last (limit_id=? AND last_at<?)"),
        ("GONE", "limit_buckets_last (limit_id=? AND last_at<?)"),
        ("BUCKET", "sqlite_autoindex_limit_buckets_1 (limit_id=? AND bucket=?)"),
        ("ENTRY", "sqlite_autoindex_limit_entries_1 (limit_id=? AND owner=?)"),
        ("FORGET_SETTLED", "limit_entries_settled (limit_id=? AND settled_at<?)"),
        ("HELD_BY", "limit_entries_owner (owner=?)"),
        ("WAITING_UP_TO", "transactions_waiters (sub=?)"),
        ("OPEN_TO_LOOK_AT", "exposures_open (chain_id=?)"),
        ("DUE_DELIVERY", "event_deliveries_due (consumer=? AND due_at>? AND due_at<?)"),
        ("NEXT_DUE", "event_deliveries_due (consumer=?)"),
        ("LOCK_OWED", "event_deliveries_subject (consumer=? AND subject=?)"),
        ("PUT_BEHIND", "(consumer=? AND place>? AND place<?)"),
        ("PUT_BEHIND", "event_deliveries_subject (consumer=? AND subject=? AND place<?)"),
        ("SUBJECT_NEXT", "event_deliveries_subject (consumer=? AND subject=?"),
        ("SUBJECT_BEHIND", "event_deliveries_subject (consumer=? AND subject=? AND place>?)"),
        ("DEAD_AFTER", "event_deliveries_state (consumer=? AND state=? AND id>?)"),
        ("REPLAY_DEAD", "(consumer=? AND state=? AND id>? AND id<?)"),
        ("NEXT_OWED", "(consumer>?)"),
        ("COUNT_OWED", "event_deliveries_state (consumer=? AND state=?)"),
        ("OLDEST_OWED", "event_deliveries_state (consumer=? AND state=?)"),
        (
            "NEXT_EXPIRED",
            "transactions_deadline (chain_id=? AND address=? AND not_after>? AND not_after<?)",
        ),
    ];
    let sorted = ["DUE_DELIVERY", "NEXT_DUE", "DEAD_AFTER", "OLDEST_OWED"];
    for (name, by) in exact {
        let all = sqlite::all_statements();
        let statement = all.iter().find(|statement| statement.name == name).unwrap();
        let sql = format!("EXPLAIN QUERY PLAN {}", statement.sql);
        let plan: Vec<(i64, i64, i64, String)> =
            sqlx::query_as(sqlx::AssertSqlSafe(sql)).fetch_all(&mut raw).await.unwrap();
        let plan: Vec<String> = plan.into_iter().map(|(.., step)| step).collect();
        assert!(plan.iter().any(|step| step.contains(by)), "{name}: {plan:?}");
        let other = |step: &String| step.contains("sqlite_autoindex_transactions");
        assert!(!plan.iter().any(other), "{name}: {plan:?}");
        // Whoever claims what is due holds the one writer: all that is due is not sorted for it.
        let sorts = |step: &String| sorted.contains(&name) && step.contains("TEMP B-TREE");
        assert!(!plan.iter().any(sorts), "{name}: {plan:?}");
    }
}
