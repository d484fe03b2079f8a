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
//! [[source]]
//! name = "deposits"
//! chain = "local"
//! native_to = ["0x5FbDB2315678afecb367f032d93F642f64180aa3"]
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

use crate::config::store::StoreSection;
use crate::core::id::ChainId;
use crate::ports::chain_reader::Rule;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
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
    /// The process itself.
    #[serde(default)]
    pub watch: WatchSection,
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
    /// A file with RabbitMQ's address, `amqp://user:password@host:port/vhost`; read again for each
    /// connection.
    pub url_file: Option<PathBuf>,
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

/// `[watch]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchSection {
    /// Where metrics are served, `127.0.0.1:9464`; nowhere by default. Plain HTTP, without a token.
    pub metrics_listen: Option<SocketAddr>,
    /// How long another process over the same database waits before it takes the place of one that is
    /// silent; `"10s"` by default, from `"1s"` to `"5m"`.
    #[serde(default = "default_lease")]
    pub lease: String,
    /// How long events and deliveries are kept after they are done; `"30d"` by default, at least `"1h"`.
    #[serde(default = "default_keep_done")]
    pub keep_done: String,
}

impl Default for WatchSection {
    fn default() -> Self {
        let (lease, keep_done) = (default_lease(), default_keep_done());
        Self { metrics_listen: None, lease, keep_done }
    }
}

fn default_lease() -> String {
    "10s".to_owned()
}

fn default_keep_done() -> String {
    "30d".to_owned()
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
    /// The logs of how many old blocks are asked for at once, at most; 2000 by default. Where a node refuses
    /// so many, fewer are asked for.
    #[serde(default = "default_range_blocks")]
    pub range_blocks: u64,
}

const fn default_range_blocks() -> u64 {
    2000
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

impl From<Finality> for Rule {
    fn from(finality: Finality) -> Self {
        match finality {
            Finality::Finalized => Self::Finalized,
            Finality::Safe => Self::Safe,
            Finality::Depth(depth) => Self::Depth(depth),
        }
    }
}

/// `[[source]]`: what is watched. Exactly one of `event`, `native_to` and `calls_to` says its kind.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceSection {
    /// Its name. What it watches may not change under one name.
    pub name: String,
    /// On which chain.
    pub chain: String,
    /// The contract of `event`: EIP-55 or lower case. Without it, the event of whichever contract.
    pub address: Option<String>,
    /// The event as a human-readable ABI signature, with the names of the parameters and `indexed`.
    pub event: Option<String>,
    /// Recipients of the chain's own coin: transactions that succeeded, are sent to one of these and
    /// carry value. What a contract sends (an internal transfer) is not seen.
    pub native_to: Option<Vec<String>>,
    /// A contract whose calls are watched: transactions that succeeded and are sent to it. What another
    /// contract calls is not seen.
    pub calls_to: Option<String>,
    /// Only calls of this function: a human-readable ABI signature with the names of the parameters.
    pub function: Option<String>,
    /// The first block to read; by default the one after the head when the source is first seen.
    pub from_block: Option<u64>,
    /// When its events are final enough to sign; the chain's finality by default.
    pub finality: Option<Finality>,
}

/// From when on a trigger gets events of a source that was there before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Since {
    /// What is found once it is configured.
    #[default]
    Now,
    /// All that the source has found and that stands.
    Beginning,
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
    /// The contract that is called; the one that emitted the event by default. Needed where the source
    /// is not of one contract's event.
    pub to: Option<String>,
    /// `"beginning"`: the events of its source that were found before the trigger was there are its own
    /// too. `"now"`, the default: only those that are found from then on.
    #[serde(default)]
    pub since: Since,
    /// The function as a human-readable ABI signature, with the names of the arguments.
    pub function: String,
    /// Each argument of the function: which parameter of the event.
    #[serde(default)]
    pub args: BTreeMap<String, String>,
    /// What identifies the business: `{chain}`, `{contract}`, `{transaction_hash}` and parameters of the
    /// event. Of several events with one id, the server signs once.
    pub business_id: Vec<String>,
    /// How often it may ask: `"100/1m"`, so many in a span. Above it events wait, in order; without it there is
    /// no limit but the server's own.
    pub rate: Option<String>,
    /// What becomes of an event that its own requests have caused: `"cut"`, the default, parks it;
    /// `"allow"` acts on it.
    #[serde(default, rename = "loop")]
    pub own_events: OwnEvents,
}

/// What becomes of an event that a trigger's own requests have caused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OwnEvents {
    /// It is parked.
    #[default]
    Cut,
    /// It is acted on like any other.
    Allow,
}
