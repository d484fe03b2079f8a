//! The watcher's configuration file.
//!
//! ```toml
//! [store]
//! url = "sqlite:watcher.db"
//!
//! [server]
//! url = "https://127.0.0.1:8443"
//! token_file = "watcher.token"
//!
//! [[chain]]
//! name = "local"
//! chain_id = 31337
//! rpc = ["http://127.0.0.1:8545"]
//! finality = { depth = 2 }
//!
//! [[source]]
//! name = "charges"
//! chain = "local"
//! address = "0x5FbDB2315678afecb367f032d93F642f64180aa3"
//! event = "ChargeRequested(uint256 indexed orderId, address indexed payer, uint256 amount)"
//! from_block = 0
//!
//! [[trigger]]
//! name = "charge"
//! source = "charges"
//! signer = "payments"
//! to = "0x5FbDB2315678afecb367f032d93F642f64180aa3"
//! function = "executeCharge(uint256 orderId, uint256 amount)"
//! args = { orderId = "orderId", amount = "amount" }
//! business_id = ["{chain}", "{contract}", "orderId"]
//! ```

use crate::core::id::ChainId;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use url::Url;

/// The whole file. Unknown keys are refused.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its database.
    pub store: StoreSection,
    /// The signing server; needed when there are triggers.
    pub server: Option<ServerSection>,
    /// Where events go.
    #[serde(default)]
    pub bus: BusSection,
    /// The chains that are followed.
    #[serde(default)]
    pub chain: Vec<ChainSection>,
    /// The events that are watched.
    #[serde(default)]
    pub source: Vec<SourceSection>,
    /// What they trigger.
    #[serde(default)]
    pub trigger: Vec<TriggerSection>,
}

/// `[store]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreSection {
    /// `sqlite:PATH` or `postgres://…`; a database of its own, not the server's.
    pub url: String,
}

/// `[server]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerSection {
    /// The client listener, without a path.
    pub url: Url,
    /// A file with the bearer token; read again for each request.
    pub token_file: PathBuf,
    /// PEM certificates that are trusted besides the system's.
    pub ca_file: Option<PathBuf>,
}

/// `[bus]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BusSection {
    /// Which bus.
    #[serde(default)]
    pub kind: BusKind,
    /// RabbitMQ's address, `amqp://host:port/vhost`, where it needs no password.
    pub url: Option<Url>,
    /// A file with RabbitMQ's address, `amqp[s]://user:password@host:port/vhost`; read again for each
    /// connection.
    pub url_file: Option<PathBuf>,
    /// PEM certificates of the authorities that may vouch for the broker; needed for `amqps`.
    pub ca_file: Option<PathBuf>,
    /// The topic exchange that events are published to; `claviger.events` by default.
    pub exchange: Option<String>,
}

/// The buses there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BusKind {
    /// The outbox is read in this process.
    #[default]
    Embedded,
    /// Events are published to RabbitMQ, and the triggers read queues of their own.
    Rabbitmq,
}

/// `[[chain]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainSection {
    /// Its name, the same as in the server's configuration.
    pub name: String,
    /// Its kind.
    #[serde(default)]
    pub kind: ChainKind,
    /// EIP-155 id; the nodes must say the same.
    pub chain_id: ChainId,
    /// Nodes, in the order in which they are asked.
    pub rpc: Vec<Url>,
    /// When a block is final; `"finalized"` by default.
    #[serde(default)]
    pub finality: Finality,
    /// Milliseconds between two looks at the head; 1000 by default.
    #[serde(default = "default_poll_ms")]
    pub poll_ms: u64,
    /// How many blocks are kept to find the common ancestor of a reorg; 1024 by default. A deeper
    /// reorg halts the chain.
    #[serde(default = "default_window_blocks")]
    pub window_blocks: u64,
    /// Whether headers have a bloom filter; `false` for chains that leave it out. Then every block's
    /// logs are read, and a list that is cut at its end cannot be told from a whole one.
    #[serde(default = "default_true")]
    pub logs_bloom: bool,
}

const fn default_poll_ms() -> u64 {
    1000
}

const fn default_window_blocks() -> u64 {
    1024
}

const fn default_true() -> bool {
    true
}

/// The kinds of chains there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChainKind {
    /// Ethereum and what is like it.
    #[default]
    Evm,
}

/// When a block is final: `"finalized"`, `"safe"` or `{ depth = 12 }`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Finality {
    /// The node's `finalized` tag.
    #[default]
    Finalized,
    /// The node's `safe` tag.
    Safe,
    /// So many blocks below the head.
    Depth(u64),
}

/// `[[source]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceSection {
    /// Its name. What it watches may not change under one name.
    pub name: String,
    /// On which chain.
    pub chain: String,
    /// The contract: EIP-55 or lower case.
    pub address: String,
    /// The event as a human-readable ABI signature, with the names of the parameters and `indexed`.
    pub event: String,
    /// The first block to read; by default the one after the head when the source is first seen.
    pub from_block: Option<u64>,
    /// When its events are final enough to sign; the chain's finality by default.
    pub finality: Option<Finality>,
}

/// `[[trigger]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TriggerSection {
    /// Its name. It is part of the idempotency key: a renamed trigger signs old events again if they
    /// are told again.
    pub name: String,
    /// Which source's events.
    pub source: String,
    /// On which chain the transaction goes; the source's by default.
    pub chain: Option<String>,
    /// The group that signs.
    pub signer: String,
    /// The contract that is called; the one that emitted the event by default.
    pub to: Option<String>,
    /// The function as a human-readable ABI signature, with the names of the arguments.
    pub function: String,
    /// Each argument of the function: which parameter of the event.
    #[serde(default)]
    pub args: BTreeMap<String, String>,
    /// What identifies the business: `{chain}`, `{contract}`, `{transaction_hash}` and parameters of the
    /// event. Of several events with one id, the server signs once.
    pub business_id: Vec<String>,
}
