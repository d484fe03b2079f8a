//! Every named statement prepares on both databases, and speaks only of portable types.

use super::{Named, OpenMode, open, postgres, sqlite};
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
        ("DUE_DELIVERY", "event_deliveries_due (consumer=? AND state=? AND due_at<?)"),
        ("NEXT_DUE", "event_deliveries_due (consumer=? AND state=?)"),
        (
            "NEXT_EXPIRED",
            "transactions_deadline (chain_id=? AND address=? AND not_after>? AND not_after<?)",
        ),
    ];
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
        let sorts = |step: &String| name.contains("DUE") && step.contains("TEMP B-TREE");
        assert!(!plan.iter().any(sorts), "{name}: {plan:?}");
    }
}
