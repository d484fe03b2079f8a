//! A database is never begun by accident, nor served twice.

use crate::fixtures::Database;
use crate::support::services::Postgres;
use claviger::store::{OpenMode, open};
use sqlx::Connection as _;

async fn refused(url: &str, mode: OpenMode) -> String {
    open(url, mode).await.err().expect("it must be refused").to_string()
}

/// An index over a large table takes longer than a unit may.
#[tokio::test]
async fn a_migration_on_postgres_may_take_long_and_a_unit_may_not() {
    let url = Postgres::shared().await.create_database();
    let mut raw = sqlx::PgConnection::connect(&url).await.unwrap();
    let limited = "CREATE FUNCTION limited() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN \
        IF current_setting('statement_timeout') <> '0' OR current_setting('lock_timeout') <> '10min' THEN \
            RAISE EXCEPTION 'a migration has % and waits %', \
                current_setting('statement_timeout'), current_setting('lock_timeout'); \
        END IF; END $$; \
        CREATE EVENT TRIGGER limited ON ddl_command_start EXECUTE FUNCTION limited()";
    sqlx::raw_sql(limited).execute(&mut raw).await.unwrap();
    let store = open(&url, OpenMode::Create).await.unwrap();
    // All that it keeps open are limited: what has nothing to do says so by the last thing that it did.
    let busy: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
         AND pid <> pg_backend_pid() AND query LIKE '%_sqlx_migrations%'",
    )
    .fetch_one(&mut raw)
    .await
    .unwrap();
    assert_eq!(busy, 0, "the connection that migrated is closed");
    drop(store);
}

#[tokio::test]
async fn an_unknown_scheme_is_refused() {
    for url in ["mysql://localhost/claviger", "claviger.db", ""] {
        assert!(refused(url, OpenMode::Create).await.contains("must begin with"), "{url:?}");
    }
}

#[tokio::test]
async fn an_absent_sqlite_file_is_refused_and_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("claviger.db");
    let told = refused(&format!("sqlite:{}", path.display()), OpenMode::Existing).await;
    assert!(told.contains("there is no database"), "{told}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn an_existing_sqlite_file_is_not_created_again() {
    let Database { store, url, _folder } = Database::sqlite().await;
    drop(store);
    let told = refused(&url, OpenMode::Create).await;
    assert!(told.contains("exists already"), "{told}");
    open(&url, OpenMode::Existing).await.unwrap();
}

#[tokio::test]
async fn a_second_server_on_a_sqlite_file_is_refused_by_whatever_name() {
    let database = Database::sqlite().await;
    let path = database.url.strip_prefix("sqlite:").unwrap();
    let link = format!("{path}.link");
    std::os::unix::fs::symlink(path, &link).unwrap();
    for name in [path, &link] {
        let told = refused(&format!("sqlite:{name}"), OpenMode::Existing).await;
        assert!(told.contains("another server"), "{told}");
    }
    let Database { store, url, _folder } = database;
    drop(store);
    open(&url, OpenMode::Existing).await.unwrap();
}

#[tokio::test]
async fn a_sqlite_file_that_is_not_ours_is_refused_and_gets_no_tables() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.db");
    let url = format!("sqlite:{}", path.display());
    std::fs::write(&path, "").unwrap();
    let told = refused(&url, OpenMode::Existing).await;
    assert!(told.contains("not set up"), "{told}");
    let mut raw = sqlx::SqliteConnection::connect(&url).await.unwrap();
    let tables: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM sqlite_master").fetch_one(&mut raw).await.unwrap();
    assert_eq!(tables, 0);
}

#[tokio::test]
async fn a_postgres_database_without_our_tables_is_refused_and_gets_none() {
    let url = Postgres::shared().await.create_database();
    let told = refused(&url, OpenMode::Existing).await;
    assert!(told.contains("not set up"), "{told}");
    let mut raw = sqlx::PgConnection::connect(&url).await.unwrap();
    let tables: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = 'public'",
    )
    .fetch_one(&mut raw)
    .await
    .unwrap();
    assert_eq!(tables, 0);
}

#[tokio::test]
async fn a_postgres_database_is_not_set_up_twice() {
    let database = Database::postgres().await;
    let told = refused(&database.url, OpenMode::Create).await;
    assert!(told.contains("set up before"), "{told}");
    open(&database.url, OpenMode::Existing).await.unwrap();
}

#[tokio::test]
async fn of_two_that_set_up_a_postgres_database_at_once_one_is_refused() {
    let url = Postgres::shared().await.create_database();
    let (one, two) = tokio::join!(open(&url, OpenMode::Create), open(&url, OpenMode::Create));
    assert!(one.is_ok() != two.is_ok());
}

#[tokio::test]
async fn what_was_stored_is_there_when_it_is_opened_again() {
    for database in [Database::sqlite().await, Database::postgres().await] {
        let Database { store, url, _folder } = database;
        commit!(store, [], |unit| unit.set_meta("kept", "yes").await?).unwrap();
        store.ping().await.unwrap();
        drop(store);
        let again = open(&url, OpenMode::Existing).await.unwrap();
        assert_eq!(read!(again, [], |unit| unit.meta("kept").await?).as_deref(), Some("yes"));
    }
}

/// Beside the one that writes, and without its lock.
#[tokio::test]
async fn a_database_that_is_opened_to_be_read_shows_what_is_written_and_writes_nothing() {
    for database in [Database::sqlite().await, Database::postgres().await] {
        let store = &database.store;
        let reader = open(&database.url, OpenMode::Reading).await.unwrap();
        for value in ["one", "two"] {
            commit!(store, [], |unit| unit.set_meta("shown", value).await?).unwrap();
            let shown = read!(reader, [], |unit| unit.meta("shown").await?);
            assert_eq!(shown.as_deref(), Some(value));
        }
        reader.ping().await.unwrap();
        let written = commit!(reader, [], |unit| unit.set_meta("shown", "three").await?);
        assert!(written.is_err(), "{}", database.url);
        let shown = read!(store, [], |unit| unit.meta("shown").await?);
        assert_eq!(shown.as_deref(), Some("two"));
    }
}

#[tokio::test]
async fn a_reader_makes_no_database_and_does_not_keep_a_server_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let absent = format!("sqlite:{}", folder.path().join("claviger.db").display());
    let told = refused(&absent, OpenMode::Reading).await;
    assert!(told.contains("there is no database"), "{told}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);

    let Database { store, url, _folder } = Database::sqlite().await;
    commit!(store, [], |unit| unit.set_meta("kept", "yes").await?).unwrap();
    drop(store);
    let reader = open(&url, OpenMode::Reading).await.unwrap();
    assert_eq!(read!(reader, [], |unit| unit.meta("kept").await?).as_deref(), Some("yes"));
    let server = open(&url, OpenMode::Existing).await.unwrap();
    commit!(server, [], |unit| unit.set_meta("kept", "still").await?).unwrap();
    assert_eq!(read!(reader, [], |unit| unit.meta("kept").await?).as_deref(), Some("still"));
}

/// As an older program finds it after an upgrade: it would not know what the newer one keeps in it.
#[tokio::test]
async fn a_database_that_a_newer_version_has_migrated_is_refused() {
    const NEWER: &str = "INSERT INTO _sqlx_migrations \
        (version, description, success, checksum, execution_time) \
        SELECT 9999, 'newer', success, checksum, 0 FROM _sqlx_migrations WHERE version = 1";
    for database in [Database::sqlite().await, Database::postgres().await] {
        let Database { store, url, _folder } = database;
        drop(store);
        if url.starts_with("sqlite:") {
            let mut raw = sqlx::SqliteConnection::connect(&url).await.unwrap();
            sqlx::query(NEWER).execute(&mut raw).await.unwrap();
        } else {
            let mut raw = sqlx::PgConnection::connect(&url).await.unwrap();
            sqlx::query(NEWER).execute(&mut raw).await.unwrap();
        }
        let told = refused(&url, OpenMode::Existing).await;
        assert!(told.contains("9999"), "{told}");
    }
}
