//! Backups: a copy of the database, put back later. A copy in the same PostgreSQL cluster keeps its system
//! and timeline, so what is seen of it is the log and the nonces; a promoted replica would also have another
//! timeline.

use crate::support::server::SetUp;
use crate::support::services::Postgres;
use std::path::PathBuf;

pub enum Backup {
    Sqlite(PathBuf),
    Postgres(String),
}

const FILES: [&str; 3] = ["claviger.db", "claviger.db-wal", "claviger.db-shm"];

impl Backup {
    /// Copies the database of a stopped server.
    pub async fn take(setup: &SetUp) -> Self {
        if !setup.store_url().starts_with("sqlite:") {
            return Self::Postgres(Postgres::shared().await.copy_database(setup.store_url()));
        }
        let aside = setup.dir().join("backup");
        std::fs::create_dir(&aside).unwrap();
        for name in FILES {
            let from = setup.dir().join(name);
            if from.exists() {
                std::fs::copy(from, aside.join(name)).unwrap();
            }
        }
        Self::Sqlite(aside)
    }

    /// Puts it in the place of the database of a stopped server.
    pub async fn put_back(&self, setup: &SetUp) {
        match self {
            Self::Postgres(url) => Postgres::shared().await.put_back(url, setup.store_url()),
            Self::Sqlite(aside) => {
                for name in FILES {
                    let (from, to) = (aside.join(name), setup.dir().join(name));
                    let _ = std::fs::remove_file(&to);
                    if from.exists() {
                        std::fs::copy(from, to).unwrap();
                    }
                }
            }
        }
    }
}
