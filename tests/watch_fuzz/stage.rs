//! The chain, its two nodes, the watcher, the broker, and a listener that stands in for the server.

use crate::random::Random;
use crate::support::emitter::{EMITTER, EVENT, place_emitter};
use crate::support::fault_proxy::FaultProxy;
use crate::support::recording_server::RecordingServer;
use crate::support::services::{Anvil, AnvilOptions, Mining, Program, RabbitMq};
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use serde_json::Value;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

const BIN: &str = env!("CARGO_BIN_EXE_claviger-watcher");
/// A deadline for what can be seen, not a duration.
pub const LIMIT: Duration = Duration::from_secs(120);
/// Blocks until an event may be told.
pub const FINAL_DEPTH: u64 = 6;
/// The deepest change of the past. What is final stays.
pub const REORG_MAX: u64 = FINAL_DEPTH - 1;
pub const TAP: &str = "tap";
const EXCHANGE: &str = "claviger.events";

/// Over what the events go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    Embedded,
    RabbitMq,
}

pub struct Stage {
    pub random: Random,
    pub anvil: Anvil,
    pub nodes: [FaultProxy; 2],
    pub server: RecordingServer,
    pub rabbit: Option<RabbitMq>,
    /// `None` while it is dead.
    pub watcher: Option<Program>,
    folder: TempDir,
}

impl Stage {
    pub async fn new(bus: Bus, seed: u64) -> Self {
        let mining = Mining::Manual;
        let anvil = Anvil::start(AnvilOptions { mining, ..AnvilOptions::default() }).await;
        place_emitter(&anvil).await;
        // So deep that no change of the past reaches what is below.
        anvil.mine(12).await;
        let rabbit = match bus {
            Bus::Embedded => None,
            Bus::RabbitMq => Some(RabbitMq::start().await),
        };
        let nodes = [FaultProxy::start(&anvil.url()).await, FaultProxy::start(&anvil.url()).await];
        let mut stage = Self {
            random: Random::new(seed),
            anvil,
            nodes,
            server: RecordingServer::start().await,
            rabbit,
            watcher: None,
            folder: tempfile::tempdir().unwrap(),
        };
        std::fs::write(stage.path("token"), "the-token\n").unwrap();
        std::fs::write(stage.path("watcher.toml"), stage.config()).unwrap();
        stage.command(&["init", "--config"]);
        stage.tap().await;
        stage.start_watcher();
        stage
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn config(&self) -> String {
        let bus = self.rabbit.as_ref().map_or_else(String::new, |rabbit| {
            std::fs::write(self.path("url"), rabbit.url()).unwrap();
            format!("[bus]\nkind = \"rabbitmq\"\nurl_file = \"{}\"", self.path("url"))
        });
        format!(
            r#"
            [store]
            url = "sqlite:{db}"
            [server]
            url = "{server}"
            token_file = "{token}"
            {bus}
            [[chain]]
            name = "local"
            chain_id = 31337
            rpc = ["{first}", "{second}"]
            finality = {{ depth = {FINAL_DEPTH} }}
            poll_ms = 20
            [[source]]
            name = "asked"
            chain = "local"
            address = "{EMITTER}"
            event = "{EVENT}"
            from_block = 0
            finality = {{ depth = {FINAL_DEPTH} }}
            [[trigger]]
            name = "charge"
            source = "asked"
            signer = "payments"
            function = "executeCharge(uint256 orderId, uint256 amount)"
            args = {{ orderId = "orderId", amount = "amount" }}
            business_id = ["{{chain}}", "{{contract}}", "orderId"]
            "#,
            db = self.path("watcher.db"),
            server = self.server.url(),
            token = self.path("token"),
            first = self.nodes[0].url(),
            second = self.nodes[1].url(),
        )
    }

    fn command(&self, arguments: &[&str]) -> String {
        let config = self.path("watcher.toml");
        let output = Command::new(BIN).args(arguments).arg(config).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.command(&["status", "--json", "--config"])).unwrap()
    }

    pub fn start_watcher(&mut self) {
        let config = self.path("watcher.toml");
        let none: [(&str, &str); 0] = [];
        self.watcher =
            Some(Program::spawn("claviger-watcher", BIN, ["run", "--config", &config], none));
    }

    /// The watcher ends only when it is killed.
    pub fn watcher_lives(&mut self) {
        if let Some(watcher) = &mut self.watcher {
            let ended = watcher.try_exit_status();
            assert!(ended.is_none(), "it ended by itself: {}", watcher.tail());
        }
    }

    pub async fn channel(&self) -> Option<(Connection, Channel)> {
        let url = self.rabbit.as_ref()?.url();
        let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        Some((connection, channel))
    }

    /// Another application's queue, which gets everything from the beginning.
    async fn tap(&self) {
        let Some((_connection, channel)) = self.channel().await else { return };
        let none = FieldTable::default;
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        channel
            .exchange_declare(EXCHANGE.into(), ExchangeKind::Topic, options, none())
            .await
            .unwrap();
        // A classic queue: one that is declared and at once killed comes back.
        let durable = QueueDeclareOptions::durable();
        channel.queue_declare(TAP.into(), durable, none()).await.unwrap();
        let options = QueueBindOptions::default();
        channel.queue_bind(TAP.into(), EXCHANGE.into(), "#".into(), options, none()).await.unwrap();
    }
}
