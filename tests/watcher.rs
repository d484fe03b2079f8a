//! The watcher as a program, between a real chain and a listener that stands in for the server.

#![cfg(feature = "watcher")]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support {
    pub mod emitter;
    pub mod fault_proxy;
    pub mod lagging_node;
    pub mod lying_chain;
    pub mod many_nodes;
    pub mod recording_server;
    pub mod services;
}

#[path = "watching/broker/mod.rs"]
mod broker;
#[path = "watching/halts.rs"]
mod halts;
#[path = "watching/lead.rs"]
mod lead;
#[path = "watching/nodes.rs"]
mod nodes;
#[path = "watching/rows.rs"]
mod rows;
#[path = "watching/sources.rs"]
mod sources;
#[path = "watching/triggers.rs"]
mod triggers;

use serde_json::{Value, json};
use std::process::Command;
use std::time::Duration;
use support::emitter::{self, EMITTER, EVENT, place_emitter};
use support::fault_proxy::{Fault, FaultProxy, Times};
use support::recording_server::{Recorded, RecordingServer};
use support::services::{Anvil, AnvilOptions, Mining, Program, poll_until, word};
use tempfile::TempDir;

/// A deadline for what can be seen, not a duration: a busy machine may need most of it.
const LIMIT: Duration = Duration::from_secs(180);
const BIN: &str = env!("CARGO_BIN_EXE_claviger-watcher");
/// What a stage can have otherwise.
struct Setting {
    /// The nodes that the watcher asks; the proxy in front of anvil without it.
    rpc: Option<String>,
    /// When the source's events may sign.
    finality: &'static str,
    /// The trigger's name, which names its queue.
    trigger: String,
    /// The section of the bus, and others.
    bus: String,
    /// More sections, at the end.
    more: String,
    /// The database's URL; SQLite in the stage's folder without it.
    store: Option<String>,
}

impl Default for Setting {
    fn default() -> Self {
        let (trigger, bus) = ("charge".to_owned(), String::new());
        Self {
            rpc: None,
            finality: "{ depth = 2 }",
            trigger,
            bus,
            more: String::new(),
            store: None,
        }
    }
}

/// The proxy and the server run in this process, beside tests that wait for commands: they need a second
/// thread.
struct Stage {
    anvil: Anvil,
    proxy: FaultProxy,
    server: RecordingServer,
    folder: TempDir,
    setting: Setting,
}

impl Stage {
    async fn new() -> Self {
        Self::with(Setting::default()).await
    }

    async fn with(setting: Setting) -> Self {
        let mining = Mining::Manual;
        let anvil = Anvil::start(AnvilOptions { mining, ..AnvilOptions::default() }).await;
        Self::on(anvil, setting).await
    }

    async fn on(anvil: Anvil, setting: Setting) -> Self {
        place_emitter(&anvil).await;
        let stage = Self {
            proxy: FaultProxy::start(&anvil.url()).await,
            anvil,
            server: RecordingServer::start().await,
            folder: tempfile::tempdir().unwrap(),
            setting,
        };
        std::fs::write(stage.path("token"), "the-token\n").unwrap();
        std::fs::write(stage.path("watcher.toml"), stage.config()).unwrap();
        let (ok, text) = stage.command(&["init", "--config"]);
        assert!(ok, "{text}");
        stage
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn config(&self) -> String {
        let sqlite = || format!("sqlite:{}", self.path("watcher.db"));
        format!(
            r#"
            [store]
            url = "{store}"
            [server]
            url = "{server}"
            token_file = "{token}"
            [[chain]]
            name = "local"
            chain_id = 31337
            rpc = ["{rpc}"]
            finality = {{ depth = 8 }}
            poll_ms = 20
            [[source]]
            name = "asked"
            chain = "local"
            address = "{EMITTER}"
            event = "{EVENT}"
            from_block = 0
            finality = {finality}
            {bus}
            [[trigger]]
            name = "{trigger}"
            source = "asked"
            signer = "payments"
            function = "executeCharge(uint256 orderId, uint256 amount)"
            args = {{ orderId = "orderId", amount = "amount" }}
            business_id = ["{{chain}}", "{{contract}}", "orderId"]
            {more}
            "#,
            more = self.setting.more,
            store = self.setting.store.clone().unwrap_or_else(sqlite),
            server = self.server.url(),
            token = self.path("token"),
            rpc = self.setting.rpc.clone().unwrap_or_else(|| self.proxy.url()),
            finality = self.setting.finality,
            trigger = self.setting.trigger,
            bus = self.setting.bus,
        )
    }

    /// Runs a short command with the configuration as its last argument: whether it succeeded, and
    /// what it printed.
    fn command(&self, arguments: &[&str]) -> (bool, String) {
        let output =
            Command::new(BIN).args(arguments).arg(self.path("watcher.toml")).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    fn watcher(&self) -> Program {
        self.watcher_failing_at("")
    }

    fn watcher_failing_at(&self, failpoint: &str) -> Program {
        let config = self.path("watcher.toml");
        let envs = [("CLAVIGER_FAILPOINT", failpoint)];
        Program::spawn("claviger-watcher", BIN, ["run", "--config", &config], envs)
    }

    fn status(&self) -> Value {
        let (ok, text) = self.command(&["status", "--json", "--config"]);
        assert!(ok, "{text}");
        serde_json::from_str(text.lines().next().unwrap()).unwrap()
    }

    /// Sends a request for this order; it is mined when the test says so.
    /// The next calls to the node go wrong: answers are lost, before and after it has the call, or are busy.
    fn trouble(&self) {
        for method in ["eth_getBlockByNumber", "eth_getLogs"] {
            self.proxy.inject(method, Times::Once, Fault::DropReply);
            self.proxy.inject(method, Times::Once, Fault::DropRequest);
            let busy = Fault::Busy { status: 503, retry_after_s: None };
            self.proxy.inject(method, Times::Once, busy);
        }
    }

    async fn ask(&self, order: u128) -> String {
        emitter::ask(&self.anvil, order).await
    }

    async fn requests(&self, count: usize) {
        let what = format!("{count} requests");
        poll_until(LIMIT, &what, async || (self.server.requests().len() >= count).then_some(()))
            .await;
    }

    /// How many deliveries the trigger has in a state.
    fn count(&self, state: &str) -> u64 {
        let consumer = format!("trigger:{}", self.setting.trigger);
        self.count_of(&consumer, state)
    }

    fn count_of(&self, consumer: &str, state: &str) -> u64 {
        let status = self.status();
        let rows = status["outbox"].as_array().unwrap();
        let row = rows.iter().find(|row| row["state"] == state && row["consumer"] == consumer);
        row.map_or(0, |row| row["count"].as_u64().unwrap())
    }

    /// Waits until the trigger has this many deliveries in a state.
    async fn outbox(&self, state: &str, count: u64) {
        let what = format!("{count} deliveries {state}");
        poll_until(LIMIT, &what, async || (self.count(state) == count).then_some(())).await;
    }

    /// Waits until the watcher has come to the head.
    async fn at_head(&self) {
        let head = self.anvil.block_number().await;
        poll_until(LIMIT, &format!("the cursor at {head}"), async || {
            (self.status()["chains"][0]["cursor"]["number"] == head).then_some(())
        })
        .await;
    }

    /// The orders that were asked for, in the order in which they came.
    fn orders(&self) -> Vec<u128> {
        let order = |request: &Recorded| {
            let id = request.body["metadata"]["business_id"].as_str().unwrap().to_owned();
            id.rsplit(':').next().unwrap().parse().unwrap()
        };
        self.server.requests().iter().map(order).collect()
    }

    /// Runs a watcher until a fail point stops it.
    #[cfg(feature = "failpoints")]
    async fn killed_at(&self, failpoint: &str) {
        let mut watcher = self.watcher_failing_at(failpoint);
        let status = watcher.exit_status(LIMIT).await;
        assert!(!status.success(), "{failpoint} was not reached: {}", watcher.tail());
    }

    async fn stop(&self, mut watcher: Program) {
        watcher.signal("TERM");
        let status = watcher.exit_status(LIMIT).await;
        assert!(status.success(), "{status}: {}", watcher.tail());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_becomes_one_request_when_it_is_final() {
    let stage = Stage::new().await;
    let watcher = stage.watcher();
    stage.server.script([(503, "retry-after: 0\r\n", json!({ "code": "overloaded" }))]);
    for order in [7, 8] {
        stage.ask(order).await;
        stage.anvil.mine(1).await;
    }
    // Seen, and held: the second is in the head block.
    stage.outbox("held", 2).await;
    assert!(stage.server.requests().is_empty());
    stage.anvil.mine(2).await;
    stage.outbox("done", 2).await;
    let requests = stage.server.requests();
    assert_eq!(requests.len(), 3, "one was answered 503 and asked again");
    assert_eq!(requests[0].key, requests[1].key);
    assert_eq!(requests[0].body, requests[1].body);
    assert_ne!(requests[1].key, requests[2].key);
    let first = &requests[0];
    assert_eq!(
        (first.path.as_str(), first.authorization.as_str()),
        ("/v1/transactions", "Bearer the-token")
    );
    let data = stage.anvil.calldata("executeCharge(uint256,uint256)", &[word(7), word(70)]).await;
    assert_eq!(first.body["data"], data);
    assert_eq!(first.body["to"], EMITTER);
    assert_eq!(first.body["signer"], "payments");
    assert_eq!(first.body["chain"], "local");
    assert_eq!(first.body["value"], "0");
    assert_eq!(first.body["source"]["log_index"], 0);
    assert_eq!(first.body["metadata"]["business_id"], format!("local:{EMITTER}:7"));
    stage.stop(watcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_resumes_and_skipped_heads_are_covered() {
    let stage = Stage::new().await;
    let mut watcher = stage.watcher();
    stage.ask(1).await;
    stage.anvil.mine(3).await;
    stage.outbox("done", 1).await;
    watcher.kill9();
    for order in 2..6 {
        stage.ask(order).await;
        stage.anvil.mine(50).await;
    }
    let watcher = stage.watcher();
    stage.outbox("done", 5).await;
    assert_eq!(stage.server.by_key().len(), 5);
    assert!(stage.server.by_key().values().all(|count| *count == 1));
    stage.stop(watcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e35_an_event_retracted_before_its_request_is_never_requested() {
    let stage = Stage::new().await;
    stage.anvil.mine(5).await;
    let watcher = stage.watcher();
    stage.ask(1).await;
    stage.anvil.mine(1).await;
    stage.outbox("held", 1).await;
    stage.anvil.rpc("anvil_reorg", json!([1, []])).await;
    stage.outbox("cancelled", 1).await;
    stage.anvil.rpc("anvil_dropAllTransactions", json!([])).await;
    stage.ask(2).await;
    stage.anvil.mine(4).await;
    stage.outbox("done", 1).await;
    let requests = stage.server.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].body["metadata"]["business_id"], format!("local:{EMITTER}:2"));
    stage.stop(watcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denial_and_a_log_that_does_not_decode_are_parked_and_shown() {
    let stage = Stage::new().await;
    stage.server.script([(403, "", json!({ "code": "policy-denied", "reasons": ["no grant"] }))]);
    stage.ask(1).await;
    stage.anvil.send(&stage.anvil.accounts()[1], EMITTER, "0x", 0).await;
    stage.ask(2).await;
    stage.anvil.mine(3).await;
    let watcher = stage.watcher();
    stage.outbox("done", 1).await;
    stage.outbox("parked", 1).await;
    let status = stage.status();
    let attention = status["attention"].as_array().unwrap();
    let reasons: Vec<&str> =
        attention.iter().map(|item| item["reason"].as_str().unwrap()).collect();
    assert!(reasons[0].contains("policy-denied") && reasons[0].contains("no grant"));
    assert!(reasons[1].contains("undecodable"));
    let (ok, text) = stage.command(&["retry", "--config"]);
    assert!(ok, "{text}");
    stage.outbox("done", 2).await;
    stage.stop(watcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_token_is_read_for_each_request() {
    let stage = Stage::new().await;
    stage.server.script([(401, "", json!({ "code": "unauthenticated" }))]);
    stage.ask(1).await;
    stage.anvil.mine(3).await;
    let watcher = stage.watcher();
    stage.requests(1).await;
    std::fs::write(stage.path("token"), "a-new-one").unwrap();
    stage.outbox("done", 1).await;
    let told: Vec<String> =
        stage.server.requests().into_iter().map(|request| request.authorization).collect();
    assert_eq!(told, ["Bearer the-token", "Bearer a-new-one"]);
    stage.stop(watcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_database_and_a_wrong_file_are_refused() {
    let stage = Stage::new().await;
    std::fs::remove_file(stage.path("watcher.db")).unwrap();
    let (ok, text) = stage.command(&["run", "--config"]);
    assert!(!ok && text.contains("claviger-watcher init"), "{text}");
    let (ok, text) = stage.command(&["config", "check"]);
    assert!(ok && text.contains("1 triggers"), "{text}");
    let wrong = stage.config().replace("poll_ms", "poll_mss");
    std::fs::write(stage.path("watcher.toml"), wrong).unwrap();
    let (ok, text) = stage.command(&["config", "check"]);
    assert!(!ok && text.contains("poll_mss") && text.contains("line"), "{text}");
    let file = stage.path("watcher.toml");
    for usage in [
        vec!["nonsense"],
        vec!["acknowledge", "--config", &file],
        vec![
            "backfill",
            "--config",
            &file,
            "--source",
            "asked",
            "--from-block",
            "5",
            "--to-block",
            "4",
        ],
    ] {
        let code = Command::new(BIN).args(&usage).output().unwrap().status.code();
        assert_eq!(code, Some(2), "{usage:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_databases_url_can_stand_in_a_file_of_its_own() {
    let stage = Stage::new().await;
    let file = stage.path("store.url");
    let (url, url_file) = (
        format!("url = \"sqlite:{}\"", stage.path("watcher.db")),
        format!("url_file = \"{file}\""),
    );
    let config = stage.config();
    assert!(config.contains(&url));
    std::fs::write(stage.path("watcher.toml"), config.replace(&url, &url_file)).unwrap();
    let (ok, text) = stage.command(&["status", "--json", "--config"]);
    assert!(!ok && text.contains("store.url"), "{text}");
    std::fs::write(&file, format!("sqlite:{}\n", stage.path("watcher.db"))).unwrap();
    let watcher = stage.watcher();
    stage.ask(1).await;
    stage.anvil.mine(3).await;
    stage.outbox("done", 1).await;
    stage.stop(watcher).await;
}

#[cfg(feature = "failpoints")]
mod killed {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn e27_after_the_outbox_commit_the_event_is_delivered_at_restart() {
        let stage = Stage::new().await;
        stage.ask(1).await;
        stage.anvil.mine(3).await;
        stage.killed_at("watch.after_commit").await;
        assert!(stage.server.requests().is_empty());
        let watcher = stage.watcher();
        stage.outbox("done", 1).await;
        assert_eq!(stage.server.requests().len(), 1);
        stage.stop(watcher).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn after_the_request_it_is_asked_again_with_the_same_key() {
        let stage = Stage::new().await;
        stage.ask(1).await;
        stage.anvil.mine(3).await;
        stage.killed_at("watch.after_deliver").await;
        assert_eq!(stage.server.requests().len(), 1);
        let watcher = stage.watcher();
        stage.outbox("done", 1).await;
        let requests = stage.server.requests();
        assert_eq!(requests.len(), 2);
        assert_eq!((&requests[0].key, &requests[0].body), (&requests[1].key, &requests[1].body));
        stage.stop(watcher).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn e29_in_mid_block_cursor_and_rows_agree_and_nothing_is_lost() {
        let stage = Stage::new().await;
        for order in [1, 2, 3] {
            stage.ask(order).await;
        }
        stage.anvil.mine(3).await;
        stage.killed_at("watch.mid_block").await;
        assert_eq!(stage.status()["chains"][0]["cursor"]["number"], 0);
        assert!(stage.status()["outbox"].as_array().unwrap().is_empty());
        let watcher = stage.watcher();
        stage.outbox("done", 3).await;
        assert!(stage.server.by_key().values().all(|count| *count == 1));
        stage.stop(watcher).await;
    }
}
