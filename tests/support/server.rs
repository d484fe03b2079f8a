//! The server as a program: set up by `claviger init`, started, stopped and killed by tests.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests: to panic is how a test fails"
)]
#![allow(dead_code, reason = "each test crate uses a part of these helpers")]

use super::services::{Anvil, AnvilOptions, Program, poll_until, tool};
use claviger::core::access::Role;
use claviger::issuer::{Grant, issue};
use claviger::ports::clock::Clock;
use claviger::store::{self, OpenMode};
use claviger::system::SystemClock;
use reqwest::Method;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// No single step takes longer on a loaded machine.
pub const LIMIT: Duration = Duration::from_secs(60);
/// What the log says once the server can be used.
pub const READY: &str = "\"message\":\"ready\"";
pub const BIN: &str = env!("CARGO_BIN_EXE_claviger");

/// A chain of one block a transaction, in which a block is final two blocks later.
pub async fn chain() -> Anvil {
    Anvil::start(AnvilOptions { slots_in_an_epoch: Some(1), ..AnvilOptions::default() }).await
}

/// A set-up on disk: configuration, token, database, bundle. Survives the servers that run on it.
pub struct SetUp {
    folder: TempDir,
    store_url: String,
}

impl SetUp {
    /// `claviger init`, then this `grants.toml` (and none of the example's cases).
    pub fn new(chain_url: &str, store_url: Option<&str>, grants: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("dev");
        let mut init = Command::new(BIN);
        init.arg("init").arg("--dir").arg(&dir).arg("--rpc").arg(chain_url);
        init.arg("--module").arg(tool("SOFTHSM_MODULE"));
        for listener in ["--listen", "--admin-listen", "--metrics-listen"] {
            init.arg(listener).arg("127.0.0.1:0");
        }
        if let Some(url) = store_url {
            init.arg("--store-url").arg(url);
        }
        let made = init.output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        std::fs::remove_file(dir.join("policies/cases.toml")).unwrap();
        std::fs::write(dir.join("policies/grants.toml"), grants).unwrap();
        let file = format!("sqlite:{}", dir.join("claviger.db").display());
        Self { store_url: store_url.map_or(file, str::to_owned), folder }
    }

    /// `claviger init`, then this folder in the place of the example's bundle.
    pub fn with_bundle(chain_url: &str, bundle: &Path) -> Self {
        let setup = Self::new(chain_url, None, "");
        let policies = setup.dir().join("policies");
        std::fs::remove_dir_all(&policies).unwrap();
        let copied = Command::new("cp").arg("-r").args([bundle, policies.as_path()]).status();
        assert!(copied.unwrap().success());
        setup
    }

    pub fn dir(&self) -> PathBuf {
        self.folder.path().join("dev")
    }

    pub fn config(&self) -> PathBuf {
        self.dir().join("claviger.toml")
    }

    /// Starts a server and waits until it is ready.
    pub async fn start(&self, envs: &[(&str, &str)]) -> Server {
        let mut program = self.spawn(envs);
        program.wait_for_line(READY, LIMIT).await;
        self.server(program).await
    }

    /// Starts another server over the same database (PostgreSQL), with ports and a signer's record of its
    /// own. It knows the keys that were made before.
    pub async fn start_beside(&self, record: &str, envs: &[(&str, &str)]) -> Server {
        let own = self.dir().join(record);
        if !own.exists() {
            std::fs::copy(self.dir().join("audit.record"), &own).unwrap();
        }
        let mut all = vec![("CLAVIGER__AUDIT__RECORD_FILE", record)];
        all.extend(envs);
        self.start(&all).await
    }

    /// Starts a server that may reach its fail point before it is ready: `None` if it did.
    pub async fn try_start(&self, envs: &[(&str, &str)]) -> Option<Server> {
        let mut program = self.spawn(envs);
        let ready = poll_until(LIMIT, "ready or crashed", async || {
            let crashed = program.try_exit_status().is_some();
            if program.stderr().contains(READY) { Some(true) } else { crashed.then_some(false) }
        })
        .await;
        assert!(ready || program.stderr().contains("a fail point stops"), "{}", program.tail());
        if ready { Some(self.server(program).await) } else { None }
    }

    /// Starts a server and waits for nothing.
    pub fn spawn(&self, envs: &[(&str, &str)]) -> Program {
        let mut envs: Vec<(String, String)> =
            envs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        for (key, value) in [
            ("CLAVIGER__CHAIN__0__POLL_EVERY", "100ms"),
            ("CLAVIGER__CHAIN__0__REBROADCAST_AFTER", "1s"),
            ("CLAVIGER__AUDIT__SEQUENCE_EVERY", "50ms"),
            // On PostgreSQL a lane of a server that was killed waits so long for the next one.
            ("CLAVIGER__SERVER__LEASE", "2s"),
        ] {
            if envs.iter().all(|(name, _)| name != key) {
                envs.push((key.to_owned(), value.to_owned()));
            }
        }
        let config = self.config().display().to_string();
        let args = ["serve".to_owned(), "--config".to_owned(), config];
        Program::spawn("claviger", BIN, args, envs)
    }

    async fn server(&self, mut program: Program) -> Server {
        let client = address(&mut program, "client").await;
        let admin = address(&mut program, "admin").await;
        let metrics = address(&mut program, "metrics").await;
        let http = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
        Server { program, client, admin, metrics, http, key: self.dir().join("issuer.p8") }
    }

    /// The database's URL.
    pub fn store_url(&self) -> &str {
        &self.store_url
    }

    /// The database itself, while no server holds it.
    pub async fn store(&self) -> Arc<dyn claviger::ports::store::Store> {
        store::open(&self.store_url, OpenMode::Existing).await.unwrap()
    }
}

async fn address(program: &mut Program, listener: &str) -> String {
    let line = program.wait_for_line(&format!("\"listener\":\"{listener}\",\"addr\""), LIMIT).await;
    let event: Value = serde_json::from_str(&line).unwrap();
    event["fields"]["addr"].as_str().unwrap().to_owned()
}

/// A running server.
pub struct Server {
    pub program: Program,
    client: String,
    admin: String,
    metrics: String,
    http: reqwest::Client,
    key: PathBuf,
}

/// What the server answered.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
}

impl Answer {
    /// The body of a success.
    pub fn ok(self) -> Value {
        assert!((200..300).contains(&self.status), "{} {:#}", self.status, self.body);
        self.body
    }

    /// The stable code of a problem.
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    /// The `id` of the resource.
    pub fn id(&self) -> String {
        self.body["id"].as_str().unwrap_or_else(|| panic!("no id in {:#}", self.body)).to_owned()
    }
}

pub fn token(key: &Path, sub: &str, role: Role) -> String {
    token_of(key, sub, &[role])
}

pub fn token_of(key: &Path, sub: &str, roles: &[Role]) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let jti = format!("test-{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let (iss, aud) = ("claviger-dev", "claviger");
    let grant = Grant { iss, aud, sub, roles, ttl_s: 900, jti: &jti };
    issue(key, &grant, SystemClock.now()).unwrap()
}

/// Calls a listener; `None` if the connection broke before an answer came, or nobody listens.
pub async fn call(
    http: &reqwest::Client,
    (method, url): (Method, String),
    token: &str,
    key: Option<&str>,
    body: Option<&Value>,
) -> Option<Answer> {
    let mut request = http.request(method, url).bearer_auth(token);
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    if let Some(body) = body {
        request = request.json(body);
    }
    let answer = request.send().await.ok()?;
    let status = answer.status().as_u16();
    let body = answer.json().await.ok()?;
    Some(Answer { status, body })
}

impl Server {
    pub fn client_url(&self) -> String {
        format!("http://{}", self.client)
    }

    pub fn admin_url(&self) -> String {
        format!("http://{}", self.admin)
    }

    /// The development issuer's key.
    pub fn issuer_key(&self) -> PathBuf {
        self.key.clone()
    }

    pub fn token(&self, sub: &str, role: Role) -> String {
        token(&self.key, sub, role)
    }

    pub fn token_of(&self, sub: &str, roles: &[Role]) -> String {
        token_of(&self.key, sub, roles)
    }

    /// What Prometheus would read.
    pub async fn metrics(&self) -> String {
        let url = format!("http://{}/metrics", self.metrics);
        self.http.get(url).send().await.unwrap().text().await.unwrap()
    }

    /// Calls; `None` if the connection broke before an answer came.
    pub async fn try_call(
        &self,
        method: Method,
        url: String,
        token: &str,
        key: Option<&str>,
        body: Option<&Value>,
    ) -> Option<Answer> {
        call(&self.http, (method, url), token, key, body).await
    }

    /// `POST /v1/transactions` as this subject.
    pub async fn ask(&self, sub: &str, key: &str, body: &Value) -> Answer {
        self.try_ask(sub, key, body).await.expect("an answer")
    }

    pub async fn try_ask(&self, sub: &str, key: &str, body: &Value) -> Option<Answer> {
        let token = self.token(sub, Role::Client);
        let url = format!("{}/v1/transactions", self.client_url());
        self.try_call(Method::POST, url, &token, Some(key), Some(body)).await
    }

    /// `POST /v1/signatures` as this subject.
    pub async fn sign(&self, sub: &str, key: Option<&str>, body: &Value) -> Answer {
        let token = self.token(sub, Role::Client);
        let url = format!("{}/v1/signatures", self.client_url());
        self.try_call(Method::POST, url, &token, key, Some(body)).await.expect("an answer")
    }

    /// A transaction, as an operator sees it.
    pub async fn read(&self, id: &str) -> Value {
        let token = self.token("dev:op", Role::Operator);
        let url = format!("{}/v1/transactions/{id}", self.client_url());
        self.try_call(Method::GET, url, &token, None, None).await.expect("an answer").ok()
    }

    /// All transactions, newest first.
    pub async fn list(&self) -> Vec<Value> {
        let token = self.token("dev:op", Role::Operator);
        let url = format!("{}/v1/transactions?limit=200", self.client_url());
        let found = self.try_call(Method::GET, url, &token, None, None).await.expect("an answer");
        found.ok()["transactions"].as_array().unwrap().clone()
    }

    /// An operator's word: `cancel` or `speed-up`.
    pub async fn intervene(&self, id: &str, action: &str) -> Answer {
        let token = self.token("dev:op", Role::Operator);
        let url = format!("{}/v1/transactions/{id}/{action}", self.client_url());
        let body = json!({ "reason": "a test" });
        self.try_call(Method::POST, url, &token, None, Some(&body)).await.expect("an answer")
    }

    /// The value of a metric with these labels; 0 if it was never told.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let text = self.metrics().await;
        let wanted = |line: &&str| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|(key, value)| line.contains(&format!("{key}=\"{value}\"")))
        };
        let values = text.lines().filter(wanted);
        values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Polls until the transaction is in one of these statuses.
    pub async fn wait_for(&self, id: &str, statuses: &[&str]) -> Value {
        poll_until(LIMIT, &format!("{id} is {statuses:?}"), async || {
            let found = self.read(id).await;
            let status = found["status"].as_str().unwrap_or_default();
            statuses.contains(&status).then_some(found)
        })
        .await
    }

    /// A new operator key; answers its address.
    pub async fn key(&self, label: &str, group: Option<&str>, mode: &str) -> String {
        let token = self.token("dev:op", Role::Operator);
        let body = json!({ "label": label, "group": group, "mode": mode });
        let url = format!("{}/admin/v1/keys", self.admin_url());
        // A token on a busy disk can be too slow: then nothing was done, and it is asked again.
        let made = poll_until(LIMIT, "the token makes a key", async || {
            let url = url.clone();
            let made = self.try_call(Method::POST, url, &token, None, Some(&body)).await?;
            (made.status != 503).then_some(made)
        })
        .await;
        made.ok()["address"].as_str().unwrap().to_owned()
    }

    /// A new managed key in `payments` with money.
    pub async fn funded_key(&self, anvil: &Anvil, label: &str) -> String {
        let address = self.key(label, Some("payments"), "managed").await;
        anvil.set_balance(&address, 100 * ETHER).await;
        address
    }

    /// The audit log's size and root, once nothing waits.
    pub async fn checkpoint(&self) -> (u64, String) {
        let token = self.token("dev:auditor", Role::Auditor);
        poll_until(LIMIT, "no leaf waits", async || {
            let url = format!("{}/admin/v1/audit/checkpoint", self.admin_url());
            let found = self.try_call(Method::GET, url, &token, None, None).await?.ok();
            let size = found["size"].as_str()?.parse().ok()?;
            let root = found["root_hash"].as_str()?.to_owned();
            (found["waiting"] == "0").then_some((size, root))
        })
        .await
    }

    /// Ends it as an operator would, and waits.
    pub async fn stop(mut self) {
        self.program.signal("TERM");
        let status = self.program.exit_status(LIMIT).await;
        assert!(status.success(), "{status} {}", self.program.tail());
    }

    /// Waits for the crash that a fail point makes.
    pub async fn crashed(mut self) {
        let status = self.program.exit_status(LIMIT).await;
        assert!(!status.success(), "the fail point was not reached");
    }
}

pub const ETHER: u128 = 1_000_000_000_000_000_000;
/// Two development accounts of anvil, which the example bundle names as payees.
pub const PAYEE: &str = "0x70997970c51812dc3a010c7d01b50e0d17dc79c8";
pub const STRANGER: &str = "0x90f79bf6eb2c4f870365e785982e1f101e93b906";
/// Where the example bundle has the contract that executes charges.
pub const PROCESSOR: &str = "0x5fbdb2315678afecb367f032d93f642f64180aa3";

/// A payout to a payee.
pub fn payout(wei: u128) -> Value {
    json!({ "chain": "local", "signer": "payments", "to": PAYEE, "value": wei.to_string() })
}

/// Grants for payouts: one ether each, `window` of them in a day.
pub fn payout_grants(window_ether: &str) -> String {
    format!(
        r#"
[[grant]]
id = "payouts"
owner = "treasury"
reason = "tests"
expires = "2099-12-31"
principals = ["svc:payouts"]
signers = ["payments"]
chains = ["local"]
action = "native.transfer"
to = {{ book = "payees" }}
per_tx = "1.0"
windows = [{{ span = "24h", rolling = true, max = "{window_ether}", scope = "group" }}]
fee = {{ max_fee_gwei = "100", max_tip_gwei = "5", max_gas = 21000 }}
"#
    )
}

/// A grant for messages that begin with `hello `, with these further lines.
pub fn hello_grant(more: &str) -> String {
    message_grant("hello ", more)
}

/// A grant for messages that begin so, with these further lines.
pub fn message_grant(prefix: &str, more: &str) -> String {
    format!(
        r#"
[[grant]]
id = "hello"
owner = "treasury"
reason = "tests"
expires = "2099-12-31"
principals = ["svc:payouts"]
signers = ["payments"]
action = "message"
text = {{ prefix = "{prefix}" }}
{more}
"#
    )
}

/// The grant for charges of the example bundle, by a group's accounts, with these further lines.
pub fn charge_grant(group: &str, more: &str) -> String {
    format!(
        r#"
[[grant]]
id = "charge"
owner = "payments"
reason = "tests"
expires = "2099-12-31"
principals = ["svc:watcher"]
signers = ["{group}"]
chains = ["local"]
action = "call"
contract = "processor"
function = "executeCharge(uint256,uint256)"
args = {{ amount = {{ max = "1000000000000000000" }} }}
event = {{ contract = "processor", signature = "ChargeRequested(uint256 indexed orderId, address indexed payer, uint256 amount)", args = {{ orderId = "orderId", amount = "amount" }} }}
{more}
fee = {{ max_fee_gwei = "150", max_tip_gwei = "5", max_gas = 200000 }}
"#
    )
}
