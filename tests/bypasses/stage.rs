//! The one server of this crate, and what each test does with it.

use crate::support::server::{Answer, ETHER, LIMIT, Server, SetUp};
use crate::support::services::{Anvil, AnvilOptions, Mining, poll_until, repository};
use alloy::primitives::keccak256;
use claviger::core::access::Role;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection as _, SqliteConnection};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, OnceCell};

/// Contracts of `bundle/book.toml`, and an address that it does not name.
pub const GATE: &str = "0x1000000000000000000000000000000000000001";
pub const USD: &str = "0x2000000000000000000000000000000000000002";
pub const UNNAMED: &str = "0x3000000000000000000000000000000000000003";
/// Payees: one that delegates its code, one with code, one without.
pub const DELEGATED: &str = "0x4000000000000000000000000000000000000004";
pub const WITH_CODE: &str = "0x5000000000000000000000000000000000000005";
pub const PAYEE: &str = "0x7000000000000000000000000000000000000007";
/// Nobody's, and without code.
pub const STRANGER: &str = "0x9000000000000000000000000000000000000009";
pub const SUB: &str = "svc:rows";

/// What is appended to which file of the bundle. Each part belongs to a module of `main.rs`.
const PARTS: &[(&str, &str)] = &[
    ("bundle.toml", "approvals.bundle.toml"),
    ("book.toml", "wrappers.book.toml"),
    ("grants.toml", "approvals.grants.toml"),
    ("grants.toml", "calendar.grants.toml"),
    ("grants.toml", "delegation.grants.toml"),
    ("grants.toml", "exposures.grants.toml"),
    ("grants.toml", "interventions.grants.toml"),
    ("grants.toml", "wrappers.grants.toml"),
];

/// All tests of this crate run on one runtime, because they share the server's connections.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());
static STAGE: OnceCell<Stage> = OnceCell::const_new();
/// A second one, whose chain mines when it is told to: what was sent stays open.
static OPEN: OnceCell<Stage> = OnceCell::const_new();
/// A block there is for all that is open: one test at a time.
static TURN: Mutex<()> = Mutex::const_new(());

pub struct Stage {
    pub anvil: Anvil,
    pub server: Server,
    pub setup: SetUp,
    database: PathBuf,
}

/// Runs one test on the stage, as a caller with two keys of its own in the group `payments`.
pub fn row(name: &str, test: impl AsyncFnOnce(Actor)) {
    RUNTIME.block_on(async {
        let stage = STAGE.get_or_init(|| Stage::start(Mining::Auto)).await;
        test(stage.actor(name, SUB).await).await;
    });
}

/// As [`row`], on a chain that mines only when the test says so.
pub fn open_row(name: &str, test: impl AsyncFnOnce(Actor)) {
    RUNTIME.block_on(async {
        let _turn = TURN.lock().await;
        let stage = OPEN.get_or_init(|| Stage::start(Mining::Manual)).await;
        test(stage.actor(name, SUB).await).await;
    });
}

pub fn bundle() -> PathBuf {
    repository().join("tests/bypasses/bundle")
}

/// A set-up with the tests' bundle, all parts of it.
pub fn set_up(anvil: &Anvil) -> SetUp {
    let setup = SetUp::with_bundle(&anvil.url(), &bundle());
    for (file, part) in PARTS {
        let part = std::fs::read_to_string(bundle().with_file_name("parts").join(part)).unwrap();
        let file = setup.dir().join("policies").join(file);
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(file, text + &part).unwrap();
    }
    setup
}

impl Stage {
    async fn start(mining: Mining) -> Self {
        let slots_in_an_epoch = Some(1);
        let options = AnvilOptions { mining, slots_in_an_epoch, ..AnvilOptions::default() };
        let anvil = Anvil::start(options).await;
        // STOP: it takes every call and does nothing.
        for address in [GATE, USD, UNNAMED, WITH_CODE] {
            anvil.rpc("anvil_setCode", json!([address, "0x00"])).await;
        }
        let delegation = format!("0xef0100{}", GATE.trim_start_matches("0x"));
        anvil.rpc("anvil_setCode", json!([DELEGATED, delegation])).await;
        let setup = set_up(&anvil);
        let server = setup.start(&[]).await;
        let database = setup.dir().join("claviger.db");
        Self { anvil, server, setup, database }
    }

    pub async fn actor(&'static self, name: &str, sub: &'static str) -> Actor {
        let managed = self.server.funded_key(&self.anvil, &format!("{name}-managed")).await;
        let external = self.server.key(&format!("{name}-ext"), Some("payments"), "external").await;
        self.anvil.set_balance(&external, 100 * ETHER).await;
        Actor { stage: self, sub, managed, external, count: 0.into() }
    }

    /// Every decision and denial, and every signature: the log's leaves, those that wait for it too.
    pub async fn leaves(&self) -> Leaves {
        let options = SqliteConnectOptions::new().filename(&self.database).read_only(true);
        let mut db = SqliteConnection::connect_with(&options).await.unwrap();
        let all = "SELECT kind, subject, leaf FROM audit_outbox UNION ALL \
                   SELECT kind, subject, leaf FROM audit_leaves";
        let rows: Vec<(String, String, Vec<u8>)> =
            sqlx::query_as(all).fetch_all(&mut db).await.unwrap();
        let blobs: Vec<(Vec<u8>, Vec<u8>)> =
            sqlx::query_as("SELECT hash, bytes FROM audit_blobs").fetch_all(&mut db).await.unwrap();
        Leaves { rows, blobs: blobs.into_iter().collect() }
    }
}

pub struct Leaves {
    /// Kind, subject, bytes.
    pub rows: Vec<(String, String, Vec<u8>)>,
    blobs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What the log says about one account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub denied: usize,
    pub decided: usize,
    pub signed: usize,
    /// The fields for which the last one was denied, and its effects.
    pub fields: Vec<String>,
    pub effects: Vec<String>,
}

impl Told {
    /// Whether the last denial was for nothing but windows that are full.
    pub fn is_full(&self) -> bool {
        let is_window = |one: &String| one.split(['.', ':']).next() == Some("windows");
        !self.fields.is_empty() && self.fields.iter().all(is_window)
    }
}

impl Leaves {
    fn about(&self, accounts: &[&str]) -> Told {
        let (mut told, mut mine) = (Told::default(), BTreeSet::new());
        let mut newest = String::new();
        for (kind, subject, leaf) in &self.rows {
            let leaf: Value = serde_json::from_slice(leaf).unwrap();
            if kind != "DENIED" && kind != "DECIDED" {
                continue;
            }
            let decision = self.text(&leaf["decision"]);
            let address = decision["address"].as_str().unwrap_or_default();
            if !accounts.contains(&address) {
                continue;
            }
            if kind == "DECIDED" {
                told.decided += 1;
                mine.insert(subject.clone());
                continue;
            }
            told.denied += 1;
            // Both ids and times grow.
            let at = format!("{} {subject}", leaf["at"]);
            if at > newest {
                newest = at;
                told.fields = texts(&self.text(&leaf["reasons"]), "field");
                told.effects = texts(&decision["effects"], "effect");
            }
        }
        let signed = self
            .rows
            .iter()
            .filter(|(kind, subject, _)| kind == "SIGNED" && mine.contains(subject));
        told.signed = signed.count();
        told
    }

    /// JSON inside a text of a leaf, which may be kept beside the log.
    fn text(&self, text: &Value) -> Value {
        let text = text.as_str().unwrap_or_default();
        let beside = text.strip_prefix("sha256:").and_then(|rest| rest.split(':').next());
        let beside = beside.and_then(|hash| self.blobs.get(&hex::decode(hash).unwrap()));
        let bytes = beside.map_or(text.as_bytes(), Vec::as_slice);
        serde_json::from_slice(bytes).unwrap_or_default()
    }
}

fn texts(list: &Value, field: &str) -> Vec<String> {
    let all = list.as_array().into_iter().flatten();
    all.map(|one| one[field].as_str().unwrap_or_default().to_owned()).collect()
}

/// What a transaction would do.
#[derive(Clone, Debug)]
pub struct Call {
    pub to: Option<String>,
    pub value: String,
    pub data: String,
    pub gas: u64,
    pub max_fee: u128,
    pub tip: u128,
}

pub fn call(to: &str, value: u128, data: &str) -> Call {
    Call {
        to: Some(to.to_owned()),
        value: value.to_string(),
        data: data.to_owned(),
        gas: 60_000,
        max_fee: 4_000_000_000,
        tip: 1_000_000_000,
    }
}

/// A call of a function: its signature and its arguments as words of the ABI.
pub fn function(to: &str, signature: &str, words: &[&str]) -> Call {
    call(to, 0, &format!("0x{}{}", selector(signature), words.concat()))
}

/// Four bytes, as hex without `0x`.
pub fn selector(signature: &str) -> String {
    hex::encode(&keccak256(signature)[..4])
}

/// One word of the ABI.
pub fn uint(number: u128) -> String {
    format!("{number:064x}")
}

/// One word of the ABI.
pub fn address(text: &str) -> String {
    format!("{:0>64}", text.trim_start_matches("0x").to_lowercase())
}

/// A caller with keys of its own.
pub struct Actor {
    pub stage: &'static Stage,
    pub sub: &'static str,
    /// Accounts whose nonces are the server's, and the caller's.
    pub managed: String,
    pub external: String,
    pub count: std::sync::atomic::AtomicU64,
}

impl Actor {
    pub fn server(&self) -> &'static Server {
        &self.stage.server
    }

    pub fn anvil(&self) -> &'static Anvil {
        &self.stage.anvil
    }

    fn key(&self) -> String {
        let count = self.count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        format!("{}-{count}", self.managed)
    }

    /// The body of `POST /v1/transactions`.
    pub fn managed_body(&self, call: &Call) -> Value {
        json!({
            "chain": "local", "signer": self.managed, "to": call.to, "value": call.value,
            "data": call.data, "gas": call.gas.to_string(),
            "max_fee_per_gas": call.max_fee.to_string(),
            "max_priority_fee_per_gas": call.tip.to_string(),
        })
    }

    /// The body of `POST /v1/signatures`.
    pub fn external_body(&self, nonce: u64, call: &Call) -> Value {
        json!({ "chain": "local", "signer": self.external, "transaction": {
            "nonce": nonce.to_string(), "to": call.to, "value": call.value, "data": call.data,
            "gas": call.gas.to_string(), "max_fee_per_gas": call.max_fee.to_string(),
            "max_priority_fee_per_gas": call.tip.to_string(),
        }})
    }

    pub async fn ask(&self, body: &Value) -> Answer {
        self.server().ask(self.sub, &self.key(), body).await
    }

    pub async fn sign(&self, body: &Value) -> Answer {
        self.server().sign(self.sub, None, body).await
    }

    pub async fn evaluate(&self, body: &Value) -> Answer {
        let url = format!("{}/v1/policy/evaluate", self.server().client_url());
        let token = self.server().token(self.sub, Role::Client);
        let told = self.server().try_call(Method::POST, url, &token, None, Some(body)).await;
        told.expect("an answer")
    }

    /// What the log says about its accounts.
    pub async fn told(&self) -> Told {
        self.stage.leaves().await.about(&[&self.managed, &self.external])
    }

    async fn nonces(&self) -> (u64, u64) {
        (self.anvil().nonce(&self.managed).await, self.anvil().nonce(&self.external).await)
    }

    /// Refused by policy at every door for transactions; answers what the log says of the last one.
    pub async fn refuses(&self, what: &str, call: &Call) -> Told {
        self.refuses_managed(what, call).await;
        self.refuses_signature(what, &self.external_body(0, call)).await
    }

    /// Refused as a transaction whose nonce is the server's.
    pub async fn refuses_managed(&self, what: &str, call: &Call) -> Told {
        let body = self.managed_body(call);
        let told = self.denies(what, &body, async |body| self.ask(body).await).await;
        assert!(!told.is_full(), "{what}: it is not for a window that is full: {told:?}");
        told
    }

    /// Refused at `POST /v1/signatures`, for another reason than that a window is full.
    pub async fn refuses_signature(&self, what: &str, body: &Value) -> Told {
        let told = self.denies(what, body, async |body| self.sign(body).await).await;
        assert!(!told.is_full(), "{what}: it is not for a window that is full: {told:?}");
        told
    }

    /// Refused at `POST /v1/signatures`, because a window is full.
    pub async fn has_no_room(&self, what: &str, body: &Value) {
        let told = self.denies(what, body, async |body| self.sign(body).await).await;
        assert!(told.is_full(), "{what}: {told:?}");
    }

    async fn denies(
        &self,
        what: &str,
        body: &Value,
        door: impl AsyncFnOnce(&Value) -> Answer,
    ) -> Told {
        let (before, nonces) = (self.told().await, self.nonces().await);
        let would = self.evaluate(body).await;
        assert_eq!(
            (would.status, &would.body["outcome"]),
            (200, &json!("deny")),
            "{what}: {:#}",
            would.body
        );
        assert_eq!(self.told().await, before, "{what}: an evaluation leaves no trace");
        let answer = door(body).await;
        assert_eq!(
            (answer.status, answer.code()),
            (403, "policy-denied"),
            "{what}: {:#}",
            answer.body
        );
        let after = self.told().await;
        assert_eq!(after.denied, before.denied + 1, "{what}: one DENIED leaf");
        assert_eq!(
            (after.decided, after.signed),
            (before.decided, before.signed),
            "{what}: nothing was signed"
        );
        assert_eq!(self.nonces().await, nonces, "{what}: nothing was sent");
        // A caller is told no more than the log says.
        for told in texts(&answer.body["reasons"], "field") {
            let first = |field: &str| field.split(['.', ':']).next().unwrap_or_default().to_owned();
            let known = after.fields.iter().any(|field| first(field) == first(&told));
            assert!(known, "{what}: {told} is none of {:?}", after.fields);
        }
        after
    }

    /// Allowed at every door for transactions; the one whose nonce is the server's is mined.
    pub async fn allows(&self, what: &str, call: &Call) {
        self.allows_managed(what, call).await;
        self.allows_signature(what, &self.external_body(0, call)).await;
    }

    /// Allowed, and mined.
    pub async fn allows_managed(&self, what: &str, call: &Call) -> Value {
        let before = self.told().await;
        let answer = self.ask(&self.managed_body(call)).await;
        assert_eq!(answer.status, 201, "{what}: {:#}", answer.body);
        let mined = self.server().wait_for(&answer.id(), &["mined", "finalized"]).await;
        assert_eq!(mined["receipt"]["success"], true, "{what}: {mined:#}");
        let after = self.told().await;
        assert_eq!(
            (after.decided, after.signed),
            (before.decided + 1, before.signed + 1),
            "{what}"
        );
        mined
    }

    /// Allowed and signed at `POST /v1/signatures`.
    pub async fn allows_signature(&self, what: &str, body: &Value) -> Value {
        let before = self.told().await;
        let answer = self.sign(body).await;
        assert_eq!(answer.status, 201, "{what}: {:#}", answer.body);
        assert!(answer.body["signature"]["r"].is_string(), "{what}: {:#}", answer.body);
        let after = self.told().await;
        assert_eq!(
            (after.decided, after.signed),
            (before.decided + 1, before.signed + 1),
            "{what}"
        );
        answer.body
    }

    /// Refused before anything is judged, by each of these doors, with this code; nothing is written.
    pub async fn rejects(&self, what: &str, body: &Value, doors: &[Door], code: (u16, &str)) {
        let (before, nonces) = (self.told().await, self.nonces().await);
        for door in doors {
            let answer = match door {
                Door::Transactions => self.ask(body).await,
                Door::Signatures => self.sign(body).await,
                Door::Evaluate => self.evaluate(body).await,
            };
            let found = (answer.status, answer.code());
            assert_eq!(found, code, "{what} at {door:?}: {:#}", answer.body);
        }
        assert_eq!((self.told().await, self.nonces().await), (before, nonces), "{what}");
    }

    /// Waits until so many of an account's transactions are mined.
    pub async fn until_nonce(&self, account: &str, count: u64) {
        poll_until(LIMIT, "it is mined", async || {
            (self.anvil().nonce(account).await >= count).then_some(())
        })
        .await;
    }
}

/// Where a request can be made.
#[derive(Clone, Copy, Debug)]
pub enum Door {
    Transactions,
    Signatures,
    Evaluate,
}

/// Whether a bundle like the tests' own loads, with one text of one file in another's place.
pub fn check_bundle(file: &str, from: &str, to: &str) -> Result<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("bundle");
    copy(&bundle(), &dir);
    let text = std::fs::read_to_string(dir.join(file)).unwrap();
    assert!(from.is_empty() || text.contains(from), "{file} has no {from}");
    std::fs::write(dir.join(file), text.replacen(from, to, 1)).unwrap();
    let run = std::process::Command::new(crate::support::server::BIN);
    let mut run = run;
    let ran = run.args(["policy", "check"]).arg(&dir).output().unwrap();
    let told =
        String::from_utf8_lossy(if ran.status.success() { &ran.stdout } else { &ran.stderr });
    if ran.status.success() { Ok(told.into_owned()) } else { Err(told.into_owned()) }
}

fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-r").args([from, to]).status();
    assert!(copied.unwrap().success());
}
