//! The two schemas say the same: tables, columns, what is unique, what is indexed.

use crate::fixtures::Database;
use sqlx::Connection as _;
use std::collections::BTreeSet;

/// Table, column, kind, whether it may be absent.
type Column = (String, String, String, bool);
/// Table, whether unique, columns in order.
type Index = (String, bool, String);

const SQLITE_COLUMNS: &str = "SELECT m.name, c.name, c.type, c.\"notnull\" = 0 \
    FROM sqlite_master m JOIN pragma_table_info(m.name) c \
    WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%' AND m.name NOT LIKE '_sqlx%'";
const POSTGRES_COLUMNS: &str = "SELECT table_name::text, column_name::text, data_type::text, \
    is_nullable = 'YES' FROM information_schema.columns \
    WHERE table_schema = 'public' AND table_name NOT LIKE '\\_sqlx%'";
/// An integer primary key is the row itself on SQLite, and has no index.
const SQLITE_INDEXES: &str = "SELECT m.name, i.\"unique\" = 1, \
    (SELECT group_concat(name) FROM (SELECT name FROM pragma_index_info(i.name) ORDER BY seqno)) \
    FROM sqlite_master m JOIN pragma_index_list(m.name) i \
    WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%' AND m.name NOT LIKE '_sqlx%' \
    UNION SELECT m.name, TRUE, c.name FROM sqlite_master m JOIN pragma_table_info(m.name) c \
    WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%' AND m.name NOT LIKE '_sqlx%' \
    AND c.pk = 1 AND c.type = 'INTEGER' \
    AND (SELECT COUNT(*) FROM pragma_table_info(m.name) other WHERE other.pk > 0) = 1";
const POSTGRES_INDEXES: &str = "SELECT t.relname::text, i.indisunique, \
    (SELECT string_agg(a.attname, ',' ORDER BY k.place) \
        FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k (number, place) \
        JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = k.number) \
    FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid \
    JOIN pg_namespace n ON n.oid = t.relnamespace \
    WHERE n.nspname = 'public' AND t.relname NOT LIKE '\\_sqlx%'";

fn portable(kind: &str) -> &'static str {
    match kind {
        "INTEGER" | "bigint" => "integer",
        "TEXT" | "text" => "text",
        "BLOB" | "bytea" => "bytes",
        other => panic!("{other} is not in the portable subset"),
    }
}

fn columns(rows: Vec<Column>) -> BTreeSet<Column> {
    let read =
        |(table, column, kind, absent): Column| (table, column, portable(&kind).to_owned(), absent);
    rows.into_iter().map(read).collect()
}

#[tokio::test]
async fn both_databases_have_the_same_tables_columns_and_indexes() {
    let (sqlite, postgres) = (Database::sqlite().await, Database::postgres().await);
    let mut one = sqlx::SqliteConnection::connect(&sqlite.url).await.unwrap();
    let mut two = sqlx::PgConnection::connect(&postgres.url).await.unwrap();

    let of_one: Vec<Column> = sqlx::query_as(SQLITE_COLUMNS).fetch_all(&mut one).await.unwrap();
    let of_two: Vec<Column> = sqlx::query_as(POSTGRES_COLUMNS).fetch_all(&mut two).await.unwrap();
    assert!(of_one.len() > 100, "{}", of_one.len());
    assert_eq!(columns(of_one), columns(of_two));

    let of_one: Vec<Index> = sqlx::query_as(SQLITE_INDEXES).fetch_all(&mut one).await.unwrap();
    let of_two: Vec<Index> = sqlx::query_as(POSTGRES_INDEXES).fetch_all(&mut two).await.unwrap();
    assert!(of_one.len() > 20, "{}", of_one.len());
    let sets = [of_one, of_two].map(|rows| rows.into_iter().collect::<BTreeSet<_>>());
    assert_eq!(sets[0], sets[1]);
}

#[tokio::test]
async fn every_sqlite_table_is_strict() {
    let sqlite = Database::sqlite().await;
    let mut raw = sqlx::SqliteConnection::connect(&sqlite.url).await.unwrap();
    let loose: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM pragma_table_list WHERE type = 'table' AND strict = 0 \
        AND name NOT LIKE 'sqlite_%' AND name NOT LIKE '_sqlx%'",
    )
    .fetch_all(&mut raw)
    .await
    .unwrap();
    assert_eq!(loose, Vec::<String>::new());
}
