//! How much is asked of a run, and what all its parts share.

use crate::random::Random;
use crate::support::server;
use claviger::core::access::Role;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// How much, and which schedule.
#[derive(Clone, Debug)]
pub struct Plan {
    pub transactions: u64,
    pub kills: u64,
    pub seed: u64,
    /// Whether events go over a broker.
    pub has_broker: bool,
}

impl Plan {
    /// What `make test` has time for, unless the environment says otherwise.
    pub fn from_environment() -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let number = |name: &str| text(name).map(|text| text.parse().expect("a number"));
        Self {
            transactions: number("CLAVIGER_SOAK_TRANSACTIONS").unwrap_or(60),
            kills: number("CLAVIGER_SOAK_KILLS").unwrap_or(6),
            seed: number("CLAVIGER_SEED").unwrap_or(1),
            has_broker: text("CLAVIGER_SOAK_BUS").is_none_or(|bus| bus != "embedded"),
        }
    }

    /// Two thirds are asked by callers, the rest by users on the chain.
    pub const fn orders(&self) -> u64 {
        self.transactions / 3
    }

    pub const fn payouts(&self) -> u64 {
        self.transactions - self.orders()
    }

    /// How many blocks there are to eleven that something happens to. A short run has to meet as much.
    pub const fn one_in_blocks(&self) -> u64 {
        if self.transactions < 500 { 24 } else { 60 }
    }

    /// Far more than it takes. The run ends itself then.
    pub const fn deadline(&self) -> Duration {
        Duration::from_secs(120 + self.transactions * 3 / 4 + self.kills * 8)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { transactions, kills, seed, has_broker } = self;
        let bus = if *has_broker { "RabbitMQ" } else { "the embedded bus" };
        write!(
            f,
            "soak: {transactions} transactions, {kills} kills, over {bus}, CLAVIGER_SEED={seed}"
        )
    }
}

/// Where the server listens, once that is known, and how callers become who they are.
pub struct Door {
    pub client_url: String,
    pub issuer_key: PathBuf,
}

/// What all parts share.
pub struct Run {
    pub plan: Plan,
    pub started: Instant,
    pub door: OnceLock<Door>,
    pub http: reqwest::Client,
    /// No faults and no kills any more.
    is_quiet: AtomicBool,
    asked: AtomicU64,
    /// What callers and users are still to ask.
    next: AtomicU64,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    /// The ids that were answered 2xx, by idempotency key.
    answered: Mutex<BTreeMap<String, String>>,
    /// The longest time that a lane with work stood still.
    stood_still: Mutex<Duration>,
    /// What parts of the run are waiting for.
    notes: Mutex<BTreeMap<&'static str, String>>,
    pub logs: PathBuf,
}

impl Run {
    pub fn new(plan: Plan) -> Arc<Self> {
        let name = format!("soak-{}-{}", plan.seed, std::process::id());
        let logs = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&logs).unwrap();
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20));
        Arc::new(Self {
            plan,
            started: Instant::now(),
            door: OnceLock::new(),
            http: http.build().unwrap(),
            is_quiet: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            next: AtomicU64::new(0),
            counts: Mutex::default(),
            answered: Mutex::default(),
            stood_still: Mutex::default(),
            notes: Mutex::default(),
            logs,
        })
    }

    /// Numbers for one part, its own whatever the others draw.
    pub fn random(&self, part: u64) -> Random {
        Random::new(self.plan.seed.wrapping_mul(1_000_003).wrapping_add(part))
    }

    pub fn is_quiet(&self) -> bool {
        self.is_quiet.load(Ordering::Acquire)
    }

    pub fn be_quiet(&self) {
        self.is_quiet.store(true, Ordering::Release);
    }

    pub fn count(&self, what: &'static str) {
        *self.counts.lock().unwrap().entry(what).or_default() += 1;
    }

    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.lock().unwrap().clone()
    }

    pub fn counted(&self, what: &str) -> u64 {
        self.counts.lock().unwrap().get(what).copied().unwrap_or_default()
    }

    /// The number of the next payout, if one is left.
    pub fn next_payout(&self) -> Option<u64> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (number < self.plan.payouts()).then_some(number)
    }

    /// A caller or a user has asked.
    pub fn was_asked(&self) {
        self.asked.fetch_add(1, Ordering::Relaxed);
    }

    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// A key leads to one resource, whenever it is asked.
    pub fn was_answered(&self, key: &str, id: &str) {
        let before = self.answered.lock().unwrap().insert(key.to_owned(), id.to_owned());
        assert!(before.is_none_or(|before| before == id), "{key} led to another id before {id}");
    }

    pub fn answered(&self) -> Vec<String> {
        self.answered.lock().unwrap().values().cloned().collect()
    }

    pub fn stood_still(&self, time: Duration) {
        let mut longest = self.stood_still.lock().unwrap();
        *longest = time.max(*longest);
    }

    pub fn longest_stand(&self) -> Duration {
        *self.stood_still.lock().unwrap()
    }

    pub fn token(&self, sub: &str, role: Role) -> String {
        server::token(&self.door().issuer_key, sub, role)
    }

    pub fn door(&self) -> &Door {
        self.door.get().expect("the server has been set up")
    }

    /// A call to the client listener: status and body; `None` if the connection broke or nobody listens.
    pub async fn call(
        &self,
        method: reqwest::Method,
        path: &str,
        (sub, role): (&str, Role),
        key: Option<&str>,
        body: Option<&Value>,
    ) -> Option<(u16, Value)> {
        let url = format!("{}{path}", self.door().client_url);
        let token = self.token(sub, role);
        let answer = server::call(&self.http, (method, url), &token, key, body).await?;
        Some((answer.status, answer.body))
    }

    pub fn progress(&self) -> String {
        let of = |what: &str| self.counted(what);
        format!(
            "soak: {:>4} s, {}/{} asked, {} ended, kills {}/{} (server {}, watcher {}, database {}, broker {}), reorgs {}",
            self.started.elapsed().as_secs(),
            self.asked(),
            self.plan.transactions,
            of("payouts that ended") + of("orders executed"),
            of(KILL_SERVER) + of(KILL_WATCHER) + of(KILL_DATABASE) + of(KILL_BROKER),
            self.plan.kills,
            of(KILL_SERVER),
            of(KILL_WATCHER),
            of(KILL_DATABASE),
            of(KILL_BROKER),
            of("reorgs"),
        )
    }

    /// What a part is waiting for, in case it waits in vain.
    pub fn note(&self, part: &'static str, what: String) {
        self.notes.lock().unwrap().insert(part, what);
    }

    pub fn where_to_look(&self) -> String {
        let Plan { transactions, kills, seed, .. } = self.plan;
        let notes = self.notes.lock().unwrap().clone();
        format!(
            "{notes:#?}\nThe logs are in {}.\nCLAVIGER_SEED={seed} CLAVIGER_SOAK_TRANSACTIONS={transactions} \
             CLAVIGER_SOAK_KILLS={kills} runs the same schedule again; processes never run the same twice.",
            self.logs.display()
        )
    }

    pub fn remove_logs(&self) {
        let _ = std::fs::remove_dir_all(&self.logs);
    }
}

pub const KILL_SERVER: &str = "SIGKILL: server";
pub const KILL_WATCHER: &str = "SIGKILL: watcher";
pub const KILL_DATABASE: &str = "SIGKILL: database";
pub const KILL_BROKER: &str = "SIGKILL: broker";

/// Time that passes on purpose: the pace of callers, blocks and faults. Nothing waits for a result this way.
pub async fn pace(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}
