//! The server's configuration. The doc comments are the manual; unknown keys are refused.

use crate::config::hsm::{self, HsmSection, one_or_several};
use crate::config::store::StoreSection;
use crate::config::telling::{self, BusSection, EventsSection, WebhookSection};
use crate::core::access::Role;
use crate::core::time::duration_ms;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use url::Url;

/// The time is written down every few seconds only.
const CLOCK_JUMP_MS_MIN: i64 = 30_000;
/// A shorter lease would run out between two looks.
const LEASE_MS_MIN: i64 = 1_000;

/// `claviger.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// Listeners.
    pub server: ServerSection,
    /// The database.
    pub store: StoreSection,
    /// The tokens with the operator keys: one `[hsm]`, or several `[[hsm]]` with a name each.
    #[serde(deserialize_with = "one_or_several")]
    pub hsm: Vec<HsmSection>,
    /// Who may call.
    pub auth: AuthSection,
    /// The chains.
    #[serde(default, rename = "chain")]
    pub chains: Vec<ChainSection>,
    /// The policy bundle.
    pub policies: PoliciesSection,
    /// Groups of keys that callers may name.
    #[serde(default, rename = "group")]
    pub groups: Vec<GroupSection>,
    /// The audit log.
    #[serde(default)]
    pub audit: AuditSection,
    /// The broker that is told of events; none if unset.
    pub bus: Option<BusSection>,
    /// Who is told of events by HTTP.
    #[serde(default, rename = "webhook")]
    pub webhooks: Vec<WebhookSection>,
    /// Streams of events.
    #[serde(default)]
    pub events: EventsSection,
}

/// `[server]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerSection {
    /// Where clients call, such as `127.0.0.1:8700`.
    pub listen: SocketAddr,
    /// Where administrators call. Keep it off the clients' network.
    pub admin_listen: SocketAddr,
    /// Where Prometheus reads `/metrics`; no listener if unset.
    pub metrics_listen: Option<SocketAddr>,
    /// TLS for the client and admin listeners. Without it they speak plain HTTP, which only a loopback
    /// address or a private network should ever carry.
    pub tls: Option<TlsSection>,
    /// Threads of the runtime. One is enough beside two HSM threads on two cores.
    #[serde(default = "default_workers")]
    pub workers: usize,
    /// For how long this process has an account's lane to itself unless it renews it, which it does at its
    /// looks: `"15s"`. Where several servers share a database, so long a stopped one's accounts wait for
    /// another. Longer than `poll_every` of every chain, or lanes change hands for nothing.
    #[serde(default = "default_lease")]
    pub lease: String,
    /// How far the clock may be from where it should be, by when the server was last seen and by the chains,
    /// before nothing that uses windows is decided until an operator confirms it: `"5m"`.
    #[serde(default = "default_clock_jump")]
    pub clock_jump: String,
    /// How many requests of one principal (one `sub`) may wait for time or people, on all chains, before another
    /// one that would have to is refused. What was queued and has to wait again under another bundle comes on top
    /// of it: nothing that was accepted is lost.
    #[serde(default = "default_max_waiting")]
    pub max_waiting: u32,
}

/// `[server.tls]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSection {
    /// Certificate chain, PEM.
    pub cert_file: PathBuf,
    /// Private key, PEM; readable by the server only.
    pub key_file: PathBuf,
}

/// `[auth]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthSection {
    /// Token issuers.
    #[serde(default, rename = "issuer")]
    pub issuers: Vec<IssuerSection>,
    /// The development issuer's private key, for `claviger token issue`. Never in production.
    pub development: Option<DevelopmentSection>,
    /// Sets of subjects that share their idempotency keys, each within its own issuer, such as two watchers
    /// of the same chains: `[["svc:watcher-a", "svc:watcher-b"]]`. What one of a set has asked for is the
    /// others' own too.
    #[serde(default)]
    pub shared_keys: Vec<Vec<String>>,
}

/// `[[auth.issuer]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerSection {
    /// The `iss` claim.
    pub iss: String,
    /// The `aud` claim that its tokens must carry.
    #[serde(default = "default_audience")]
    pub audience: String,
    /// Its public keys: a JWKS file, or an https URL.
    pub jwks: String,
    /// Which of RS256, PS256, ES256, EdDSA it may use.
    pub algorithms: Vec<String>,
    /// The longest life of a token, in seconds.
    #[serde(default = "default_ttl")]
    pub max_ttl_s: u64,
}

/// `[auth.development]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DevelopmentSection {
    /// The `iss` of its tokens.
    pub iss: String,
    /// Its private key.
    pub key_file: PathBuf,
}

/// `[[chain]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainSection {
    /// What callers and the bundle call it.
    pub name: String,
    /// `evm`.
    #[serde(default = "default_kind")]
    pub kind: String,
    /// EIP-155 chain id. Two entries for one chain are refused.
    pub chain_id: u64,
    /// Nodes, http or https.
    pub rpc: Vec<Url>,
    /// When a block is final: `"finalized"`, `"safe"`, or `{ depth = 12 }`.
    #[serde(default)]
    pub finality: FinalitySetting,
    /// A transaction that is not mined after this long is signed again with higher fees: `"30s"`.
    #[serde(default = "default_resend")]
    pub resend_after: String,
    /// Bytes that are not mined are sent again this often: `"10s"`.
    #[serde(default = "default_rebroadcast")]
    pub rebroadcast_after: String,
    /// What the nodes have refused this long, each time it was sent, is given up: a no-op fills its nonce.
    #[serde(default = "default_refused")]
    pub refused_patience: String,
    /// How often the chain is looked at: `"2s"`.
    #[serde(default = "default_poll")]
    pub poll_every: String,
    /// The most that is ever offered for gas, in gwei.
    pub max_fee_gwei: String,
    /// The most that is ever offered as priority fee, in gwei.
    #[serde(default = "default_tip")]
    pub max_tip_gwei: String,
    /// How many transactions of one account may be unmined at once.
    #[serde(default = "default_in_flight")]
    pub max_in_flight: u32,
    /// The envelope when the caller names none: `eip1559`, `eip2930` or `legacy`.
    #[serde(default = "default_type")]
    pub transaction_type: String,
    /// How many nodes must say the same, where none contradicts, before an end is told; 2 where three or more
    /// are configured, else 1.
    pub agree: Option<usize>,
    /// A transaction that can offer no more under its fee cap, and keeps others of its account waiting this
    /// long, gives way to a no-op and ends as `failed`: `"10m"`. From a second to a day.
    #[serde(default = "default_cap_patience")]
    pub cap_patience: String,
    /// What becomes of a request that its account cannot pay for when it is asked: `"park"` or `"refuse"`.
    #[serde(default)]
    pub over_balance: OverBalance,
}

impl ChainSection {
    /// How many nodes must say the same, where none contradicts, before an end is told.
    #[must_use]
    pub fn agree(&self) -> usize {
        self.agree.unwrap_or(if self.rpc.len() > 2 { 2 } else { 1 })
    }
}

/// `over_balance`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OverBalance {
    /// It is accepted, and waits for a top-up.
    #[default]
    Park,
    /// It is refused with `insufficient-balance`, and nothing is kept.
    Refuse,
}

/// `finality`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalitySetting {
    /// The node's `finalized` tag.
    #[default]
    Finalized,
    /// The node's `safe` tag.
    Safe,
    /// So many blocks below the head.
    Depth(u64),
}

/// `[policies]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoliciesSection {
    /// The folder of the bundle in force.
    pub dir: PathBuf,
}

/// `[[group]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupSection {
    /// What callers and the bundle call it.
    pub name: String,
}

/// `[audit]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditSection {
    /// How often waiting leaves are moved into the log: `"100ms"`.
    #[serde(default = "default_sequence")]
    pub sequence_every: String,
    /// The key that signs the log's checkpoints; its public half is beside it, with the extension
    /// `vkey`. Without it the log is not signed; a log that was signed before must go on being signed.
    pub key_file: Option<PathBuf>,
    /// Where the signer records the last checkpoint that it released. `key_file` with the extension
    /// `record` if not given. The server must be able to write in its folder.
    pub record_file: Option<PathBuf>,
    /// How often the log is signed if it has grown: `"1s"`.
    #[serde(default = "default_checkpoint")]
    pub checkpoint_every: String,
}

impl Default for AuditSection {
    fn default() -> Self {
        Self {
            sequence_every: default_sequence(),
            key_file: None,
            record_file: None,
            checkpoint_every: default_checkpoint(),
        }
    }
}

impl AuditSection {
    /// Key and record, if the log is signed.
    #[must_use]
    pub fn signing_files(&self) -> Option<(PathBuf, PathBuf)> {
        let key = self.key_file.clone()?;
        let record = self.record_file.clone().unwrap_or_else(|| key.with_extension("record"));
        Some((key, record))
    }

    fn findings(&self, say: &mut impl FnMut(String)) {
        for (field, value) in
            [("sequence_every", &self.sequence_every), ("checkpoint_every", &self.checkpoint_every)]
        {
            if duration_ms(value).is_none() {
                say(format!("[audit] {field} is not a duration such as `1s`"));
            }
        }
        match self.signing_files() {
            None if self.record_file.is_some() => {
                say("[audit] record_file is of no use without key_file".to_owned());
            }
            Some((key, record)) if [&key, &key.with_extension("vkey")].contains(&&record) => {
                say("[audit] key, its public half and record_file must be three files".to_owned());
            }
            Some((key, _)) if key.extension().is_some_and(|end| end == "vkey") => {
                say("[audit] key_file must not end in `.vkey`: that is its public half".to_owned());
            }
            _ => {}
        }
    }
}

fn default_workers() -> usize {
    1
}
fn default_lease() -> String {
    "15s".to_owned()
}
fn default_clock_jump() -> String {
    "5m".to_owned()
}
fn default_max_waiting() -> u32 {
    100
}
fn default_audience() -> String {
    "claviger".to_owned()
}
fn default_ttl() -> u64 {
    3600
}
fn default_kind() -> String {
    "evm".to_owned()
}
fn default_resend() -> String {
    "30s".to_owned()
}
fn default_rebroadcast() -> String {
    "10s".to_owned()
}
fn default_refused() -> String {
    "1m".to_owned()
}

fn default_cap_patience() -> String {
    "10m".to_owned()
}

fn default_poll() -> String {
    "2s".to_owned()
}
fn default_tip() -> String {
    "5".to_owned()
}
fn default_in_flight() -> u32 {
    16
}
fn default_type() -> String {
    "eip1559".to_owned()
}
fn default_sequence() -> String {
    "100ms".to_owned()
}
fn default_checkpoint() -> String {
    "1s".to_owned()
}

impl ServerConfig {
    /// Everything that types alone cannot say: references, ranges, duplicates. Each finding is one line.
    #[must_use]
    pub fn findings(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut say = |text: String| found.push(text);
        if let Err(error) = self.store.check() {
            say(format!("[store] {error}"));
        }
        if self.auth.issuers.is_empty() {
            say("[[auth.issuer]] is missing: nobody could call".to_owned());
        }
        let mut sharing = BTreeSet::new();
        for set in &self.auth.shared_keys {
            if set.len() < 2 {
                say("[auth] shared_keys: a set has at least two subjects".to_owned());
            }
            for sub in set.iter().filter(|sub| sub.is_empty() || !sharing.insert(*sub)) {
                say(format!("[auth] shared_keys: `{sub}` is empty, or there twice"));
            }
        }
        let listen = [Some(self.server.listen), Some(self.server.admin_listen)];
        let addresses: Vec<_> =
            listen.into_iter().chain([self.server.metrics_listen]).flatten().collect();
        let distinct: BTreeSet<_> = addresses.iter().filter(|a| a.port() != 0).collect();
        if distinct.len() != addresses.iter().filter(|a| a.port() != 0).count() {
            say("[server] two listeners have one address".to_owned());
        }
        for issuer in &self.auth.issuers {
            issuer_findings(issuer, &mut say);
        }
        let mut names = BTreeSet::new();
        let mut ids = BTreeSet::new();
        for chain in &self.chains {
            if !names.insert(&chain.name) {
                say(format!("[[chain]] `{}` is there twice", chain.name));
            }
            if !ids.insert(chain.chain_id) {
                say(format!("[[chain]] two entries have chain id {}", chain.chain_id));
            }
            chain_findings(chain, &mut say);
        }
        let mut groups = BTreeSet::new();
        for group in &self.groups {
            if !groups.insert(&group.name) {
                say(format!("[[group]] `{}` is there twice", group.name));
            }
        }
        self.audit.findings(&mut say);
        match duration_ms(&self.server.lease) {
            Some(lease) if lease >= LEASE_MS_MIN => {
                let slow = |chain: &&ChainSection| duration_ms(&chain.poll_every) >= Some(lease);
                for chain in self.chains.iter().filter(slow) {
                    let name = &chain.name;
                    say(format!(
                        "[server] lease must be longer than poll_every of [[chain]] `{name}`: it is \
                         renewed at each look"
                    ));
                }
            }
            _ => {
                say("[server] lease is not a duration of at least a second, such as `15s`"
                    .to_owned())
            }
        }
        if duration_ms(&self.server.clock_jump).is_none_or(|jump| jump < CLOCK_JUMP_MS_MIN) {
            say("[server] clock_jump is not a duration of at least 30 seconds, such as `5m`"
                .to_owned());
        }
        if self.server.max_waiting == 0 {
            say("[server] max_waiting must be at least 1: with 0 nothing could wait for approval"
                .to_owned());
        }
        hsm::findings(&self.hsm, &mut say);
        if let Some(bus) = &self.bus {
            bus.findings(&mut say);
        }
        telling::webhook_findings(&self.webhooks, &mut say);
        self.events.findings(&mut say);
        found
    }

    /// Makes relative paths relative to the configuration file's folder.
    pub fn resolve(&mut self, base: &Path) {
        let join = |path: &mut PathBuf| *path = base.join(&path);
        for section in &mut self.hsm {
            join(&mut section.pin_file);
            section.softhsm_conf.iter_mut().for_each(join);
        }
        join(&mut self.policies.dir);
        self.store.url_file.iter_mut().for_each(join);
        self.bus.iter_mut().for_each(|bus| bus.resolve(base));
        telling::resolve_webhooks(&mut self.webhooks, base);
        self.audit.key_file.iter_mut().for_each(join);
        self.audit.record_file.iter_mut().for_each(join);
        if let Some(tls) = &mut self.server.tls {
            join(&mut tls.cert_file);
            join(&mut tls.key_file);
        }
        if let Some(development) = &mut self.auth.development {
            join(&mut development.key_file);
        }
        for issuer in &mut self.auth.issuers {
            if !issuer.jwks.starts_with("https://") {
                issuer.jwks = base.join(&issuer.jwks).display().to_string();
            }
        }
        let file = self.store.url.as_deref().and_then(|url| url.strip_prefix("sqlite:"));
        if let Some(file) = file {
            self.store.url = Some(format!("sqlite:{}", base.join(file).display()));
        }
    }
}

fn issuer_findings(issuer: &IssuerSection, say: &mut impl FnMut(String)) {
    let name = &issuer.iss;
    if issuer.algorithms.is_empty() {
        say(format!("[[auth.issuer]] `{name}`: algorithms is empty"));
    }
    for algorithm in &issuer.algorithms {
        if !["RS256", "PS256", "ES256", "EdDSA"].contains(&algorithm.as_str()) {
            say(format!(
                "[[auth.issuer]] `{name}`: {algorithm} is not one of RS256, PS256, ES256, EdDSA"
            ));
        }
    }
    if issuer.jwks.starts_with("http://") {
        say(format!("[[auth.issuer]] `{name}`: jwks must be a file or an https URL"));
    }
    if !(1..=3600).contains(&issuer.max_ttl_s) {
        say(format!("[[auth.issuer]] `{name}`: max_ttl_s must be 1 to 3600"));
    }
}

fn chain_findings(chain: &ChainSection, say: &mut impl FnMut(String)) {
    let name = &chain.name;
    if chain.kind != "evm" {
        say(format!("[[chain]] `{name}`: kind must be `evm`"));
    }
    if chain.chain_id == 0 {
        say(format!("[[chain]] `{name}`: chain_id must not be 0"));
    }
    if chain.rpc.is_empty() {
        say(format!("[[chain]] `{name}`: rpc is empty"));
    }
    if chain.rpc.iter().any(|url| !["http", "https"].contains(&url.scheme())) {
        say(format!("[[chain]] `{name}`: rpc must be http or https"));
    }
    for (field, value) in [
        ("resend_after", &chain.resend_after),
        ("rebroadcast_after", &chain.rebroadcast_after),
        ("refused_patience", &chain.refused_patience),
        ("poll_every", &chain.poll_every),
        ("cap_patience", &chain.cap_patience),
    ] {
        if duration_ms(value).is_none() {
            say(format!("[[chain]] `{name}`: {field} is not a duration such as `30s`"));
        }
    }
    if duration_ms(&chain.cap_patience).is_some_and(|ms| !(1_000..=86_400_000).contains(&ms)) {
        say(format!("[[chain]] `{name}`: cap_patience must be 1s to 24h"));
    }
    for (field, value) in
        [("max_fee_gwei", &chain.max_fee_gwei), ("max_tip_gwei", &chain.max_tip_gwei)]
    {
        if gwei(value).is_none() {
            say(format!("[[chain]] `{name}`: {field} is not an amount of gwei such as `\"150\"`"));
        }
    }
    if crate::core::intent::TxType::from_name(&chain.transaction_type).is_none() {
        say(format!("[[chain]] `{name}`: transaction_type must be eip1559, eip2930 or legacy"));
    }
    if chain.finality == FinalitySetting::Depth(0) {
        say(format!("[[chain]] `{name}`: a finality depth of 0 is no finality"));
    }
    if !(1..=chain.rpc.len()).contains(&chain.agree()) && !chain.rpc.is_empty() {
        say(format!("[[chain]] `{name}`: agree must be 1 to {}, its nodes", chain.rpc.len()));
    }
    if chain.max_in_flight == 0 {
        say(format!("[[chain]] `{name}`: max_in_flight must be at least 1"));
    }
}

/// Wei of a decimal amount of gwei.
#[must_use]
pub fn gwei(text: &str) -> Option<u128> {
    let wei = crate::core::amount::Amount::parse_scaled(text, 9).ok()?;
    u128::try_from(wei.units()).ok()
}

/// Reads roles as the command line gives them.
///
/// # Errors
/// When one is unknown.
pub fn roles(names: &[String]) -> Result<Vec<Role>, String> {
    names.iter().map(|name| name.parse()).collect()
}
