//! Databases that are there, and are not.

use crate::support::services::Postgres;
use claviger::watch::store::{OpenMode, open};

#[tokio::test]
async fn an_absent_database_is_refused_and_an_existing_one_is_not_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = format!("sqlite:{}", folder.path().join("watcher.db").display());
    for url in [sqlite, Postgres::shared().await.create_database()] {
        let absent = open(&url, OpenMode::Existing).await.err().unwrap().to_string();
        assert!(absent.contains("claviger-watcher init"), "{absent}");
        open(&url, OpenMode::Create).await.unwrap();
        assert!(open(&url, OpenMode::Create).await.is_err());
        open(&url, OpenMode::Existing).await.unwrap();
    }
}
