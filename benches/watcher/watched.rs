//! A watcher over the stub node, and what can be seen of it from outside.

use crate::support::recording_server::RecordingServer;
use crate::support::services::{Program, poll_until};
use crate::support::stub_node::{CHAIN_ID, EMITTER, EVENT};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

const BIN: &str = env!("CARGO_BIN_EXE_claviger-watcher");

pub struct Watched {
    folder: TempDir,
    database: SqlitePool,
}

impl Watched {
    /// A new database; `from` is the block before the first that is read, the beginning without it.
    pub async fn new(rpc: &str, from: Option<u64>, _purpose: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            r#"
            [store]
            url = "sqlite:{db}"
            [[chain]]
            name = "local"
            chain_id = {CHAIN_ID}
            rpc = ["{rpc}"]
            finality = {{ depth = 8 }}
            poll_ms = 20
            [[source]]
            name = "asked"
            chain = "local"
            address = "{EMITTER:#x}"
            event = "{EVENT}"
            from_block = {from}
            finality = {{ depth = 8 }}
            "#,
            db = folder.path().join("watcher.db").display(),
            from = from.map_or(0, |from| from + 1),
        );
        std::fs::write(folder.path().join("watcher.toml"), text).unwrap();
        let init = Command::new(BIN)
            .args(["init", "--config"])
            .arg(folder.path().join("watcher.toml"))
            .output()
            .unwrap();
        assert!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
        let options = SqliteConnectOptions::new().filename(folder.path().join("watcher.db"));
        let database =
            SqlitePoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
        Self { folder, database }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Adds a trigger, the server that it asks, and the broker if there is one.
    pub async fn with_trigger(&self, broker: Option<&str>) -> RecordingServer {
        let server = RecordingServer::start().await;
        std::fs::write(self.path("token"), "the-token\n").unwrap();
        let mut text = std::fs::read_to_string(self.path("watcher.toml")).unwrap();
        text.push_str(&format!(
            r#"
            [server]
            url = "{}"
            token_file = "{}"
            [[trigger]]
            name = "charge"
            source = "asked"
            signer = "payments"
            function = "executeCharge(uint256 orderId, uint256 amount)"
            args = {{ orderId = "orderId", amount = "amount" }}
            business_id = ["{{chain}}", "{{contract}}", "orderId"]
            "#,
            server.url(),
            self.path("token").display(),
        ));
        if let Some(url) = broker {
            std::fs::write(self.path("url"), url).unwrap();
            let file = self.path("url");
            text.push_str(&format!(
                "[bus]\nkind = \"rabbitmq\"\nurl_file = \"{}\"\n",
                file.display()
            ));
        }
        std::fs::write(self.path("watcher.toml"), text).unwrap();
        server
    }

    pub fn start(&self) -> Program {
        let config = self.path("watcher.toml").display().to_string();
        // One line for each delivery is not what is measured.
        let envs = [("CLAVIGER_LOG", "warn")];
        Program::spawn("claviger-watcher", BIN, ["run", "--config", &config], envs)
    }

    async fn one(&self, sql: &'static str) -> u64 {
        let read: Option<i64> = sqlx::query_scalar(sql).fetch_one(&self.database).await.unwrap();
        u64::try_from(read.unwrap_or(0)).unwrap()
    }

    /// How many events were found. Rows are only added.
    pub async fn events(&self) -> u64 {
        self.one("SELECT MAX(id) FROM event").await
    }

    pub async fn published(&self) -> u64 {
        self.one("SELECT COUNT(*) FROM outbox WHERE consumer = 'publisher' AND state = 'done'")
            .await
    }

    /// How far the chain is read; 0 before the first block.
    pub async fn cursor(&self) -> u64 {
        self.one("SELECT MAX(cursor_number) FROM chain").await
    }

    pub async fn cursor_at(&self, number: u64, limit: Duration) {
        let what = format!("the cursor at {number}");
        poll_until(limit, &what, async || (self.cursor().await >= number).then_some(())).await;
    }
}

/// The memory of a process that is resident now, and the most that ever was, in MiB.
pub fn memory(pid: u32) -> (f64, f64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let read = |name: &str| -> f64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    };
    (read("VmRSS:"), read("VmHWM:"))
}
