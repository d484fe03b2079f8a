//! Callers who want signatures, many at once, through the HTTP door. What is not given yet is asked for again
//! under the same idempotency key; every signature that is given is recovered by another implementation and
//! compared with the key's address.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests: to panic is how a test fails"
)]
#![allow(dead_code, reason = "each test crate uses a part of these helpers")]

use super::server::{ETHER, LIMIT, PAYEE, Server, token};
use claviger::core::access::Role;
use ethers_core::types::transaction::eip2718::TypedTransaction;
use ethers_core::types::{RecoveryMessage, Signature};
use ethers_core::utils::rlp::Rlp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// What the payees get at a time.
pub const SMALL: u128 = ETHER / 1_000;
const SUB: &str = "svc:payouts";
/// Half the order of secp256k1 (SEC 2, section 2.4.1).
const HALF_ORDER: &str = "7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0";
/// How long a caller that was told to come again waits. The server says two seconds.
const AGAIN: Duration = Duration::from_millis(25);
/// How long a caller goes on.
const PATIENCE: Duration = Duration::from_secs(180);
/// Under which requests are counted that ended without an answer.
const NONE: &str = "none";

/// A grant for messages, to stand beside that for payouts.
pub const MESSAGE_GRANT: &str = r#"
[[grant]]
id = "hello"
owner = "treasury"
reason = "tests"
expires = "2099-12-31"
principals = ["svc:payouts"]
signers = ["payments"]
action = "message"
text = { prefix = "hello " }
"#;

/// How a load went until now.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Requests.
    pub asked: u64,
    /// Messages whose signature was given and is right; payouts that were accepted.
    pub released: u64,
    /// Answers 503 or 429, after which the same was asked again.
    pub retried: u64,
    /// Answers 202 to a message: decided, and not signed yet. Asked again.
    pub pending: u64,
    /// Requests that ended without what they wanted.
    pub failed: u64,
    /// Requests of impatient callers that were not given at once.
    pub left: u64,
    /// Signatures that are not right.
    pub wrong: Vec<String>,
    /// Answers by status and code of the problem, with an example of each that is unusual.
    pub answers: BTreeMap<String, u64>,
    /// Whether each 503 had `Retry-After`.
    pub refusals_without_retry_after: u64,
    /// The longest time to a 503.
    pub slowest_refusal: Duration,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} asked, {} released, {} retried, {} pending, {} failed, {} left, {} wrong; answers {:?}; slowest 503 {:?}",
            self.asked,
            self.released,
            self.retried,
            self.pending,
            self.failed,
            self.left,
            self.wrong.len(),
            self.answers,
            self.slowest_refusal
        )
    }
}

impl Tally {
    /// Requests that ended without an answer.
    pub fn unanswered(&self) -> u64 {
        self.answers.get(NONE).copied().unwrap_or_default()
    }

    /// How often callers were told to come again.
    pub const fn told_again(&self) -> u64 {
        self.retried + self.pending
    }

    /// Answers with this problem.
    pub fn code(&self, code: &str) -> u64 {
        let of = |answer: &&String| answer.ends_with(&format!(" {code}"));
        self.answers.keys().filter(of).map(|answer| self.answers[answer]).sum()
    }
}

/// One answer, with the header that tells when to come again.
pub struct Said {
    pub status: u16,
    pub retry_after: Option<String>,
    pub body: Value,
}

/// Whoever may ask.
#[derive(Clone)]
pub struct Caller {
    http: reqwest::Client,
    url: String,
    issuer: PathBuf,
}

impl Caller {
    pub fn of(server: &Server) -> Self {
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        Self { http, url: server.client_url(), issuer: server.issuer_key() }
    }

    /// `POST` to this path; `None` if no answer came.
    pub async fn post(&self, path: &str, key: &str, body: &Value) -> Option<Said> {
        let token = token(&self.issuer, SUB, Role::Client);
        let request = self.http.post(format!("{}{path}", self.url)).bearer_auth(token);
        let answer = request.header("idempotency-key", key).json(body).send().await.ok()?;
        let status = answer.status().as_u16();
        let header = answer.headers().get("retry-after");
        let retry_after = header.map(|value| value.to_str().unwrap().to_owned());
        Some(Said { status, retry_after, body: answer.json().await.ok()? })
    }
}

/// A message that the grant allows.
pub fn hello(signer: &str, text: &str) -> Value {
    json!({ "signer": signer, "message": { "text": format!("hello {text}") } })
}

/// A small payout of the group.
pub fn small_payout() -> Value {
    json!({ "chain": "local", "signer": "payments", "to": PAYEE, "value": SMALL.to_string() })
}

/// Who signed the message; `Err` if nobody did, or with a high `s`.
pub fn signer_of(text: &str, body: &Value) -> Result<String, String> {
    let bytes = body["signature"]["bytes"].as_str().ok_or("no signature")?;
    let signature: Signature = bytes.parse().map_err(|error| format!("{bytes}: {error}"))?;
    let mut s = [0; 32];
    signature.s.to_big_endian(&mut s);
    if s.as_slice() > hex::decode(HALF_ORDER).unwrap().as_slice() {
        return Err(format!("high s: {bytes}"));
    }
    let message = RecoveryMessage::Data(format!("hello {text}").into_bytes());
    signature.recover(message).map(|it| format!("{it:?}")).map_err(|error| error.to_string())
}

/// Who signed these bytes of a transaction.
pub fn sender_of(raw: &str) -> String {
    let bytes = hex::decode(raw.trim_start_matches("0x")).unwrap();
    let (unsigned, signature) = TypedTransaction::decode_signed(&Rlp::new(&bytes)).unwrap();
    format!("{:?}", signature.recover(unsigned.sighash()).unwrap())
}

struct Shared {
    caller: Caller,
    name: String,
    /// The addresses that messages are asked of, in turn.
    addresses: Vec<String>,
    next: AtomicU64,
    most: u64,
    /// What is not given at once is not asked for again: something else is.
    impatient: bool,
    stopped: AtomicBool,
    tally: Mutex<Tally>,
    /// The ids of payouts that were accepted.
    accepted: Mutex<Vec<String>>,
}

/// Callers at work, until they are stopped or have asked for as much as they were to.
pub struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

impl Load {
    /// So many callers who ask these keys for signatures of messages, `most` together.
    pub fn messages(server: &Server, addresses: &[&str], callers: usize, most: u64) -> Self {
        Self::of_messages(Self::new(server, "m", addresses, (most, false)), callers)
    }

    /// As [`Self::messages`], until stopped; what is not given at once is never asked for again.
    pub fn impatient(server: &Server, addresses: &[&str], callers: usize) -> Self {
        Self::of_messages(Self::new(server, "i", addresses, (u64::MAX, true)), callers)
    }

    fn of_messages(mut load: Self, callers: usize) -> Self {
        for _ in 0..callers {
            let shared = Arc::clone(&load.shared);
            load.tasks.spawn(async move {
                while let Some(number) = shared.take() {
                    shared.message(number).await;
                }
            });
        }
        load
    }

    /// So many callers who ask the group for payouts, `most` together.
    pub fn payouts(server: &Server, callers: usize, most: u64) -> Self {
        let mut load = Self::new(server, "p", &[], (most, false));
        for _ in 0..callers {
            let shared = Arc::clone(&load.shared);
            load.tasks.spawn(async move {
                while let Some(number) = shared.take() {
                    shared.payout(number).await;
                }
            });
        }
        load
    }

    fn new(
        server: &Server,
        kind: &str,
        addresses: &[&str],
        (most, impatient): (u64, bool),
    ) -> Self {
        static LOADS: AtomicU64 = AtomicU64::new(0);
        let shared = Shared {
            caller: Caller::of(server),
            name: format!("{kind}{}", LOADS.fetch_add(1, Ordering::Relaxed)),
            addresses: addresses.iter().map(|it| (*it).to_owned()).collect(),
            next: AtomicU64::new(0),
            most,
            impatient,
            stopped: AtomicBool::new(false),
            tally: Mutex::default(),
            accepted: Mutex::default(),
        };
        Self { shared: Arc::new(shared), tasks: JoinSet::new() }
    }

    /// How it went until now.
    pub fn tally(&self) -> Tally {
        self.shared.tally.lock().unwrap().clone()
    }

    /// Waits until the tally is so.
    pub async fn until(&self, what: &str, is_so: impl Fn(&Tally) -> bool) -> Tally {
        let deadline = Instant::now() + LIMIT;
        loop {
            let tally = self.tally();
            assert!(tally.wrong.is_empty(), "{:?}", tally.wrong);
            if is_so(&tally) {
                return tally;
            }
            assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}: {tally}");
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Waits until so many more are released.
    pub async fn until_released(&self, more: u64) -> Tally {
        let before = self.tally().released;
        self.until(&format!("{more} more are released"), |now| now.released >= before + more).await
    }

    /// Asks for no more, and waits for what was asked. The ids are those of payouts.
    pub async fn stop(self) -> (Tally, Vec<String>) {
        self.shared.stopped.store(true, Ordering::Release);
        self.end().await
    }

    /// Leaves at once, whatever was asked.
    pub async fn leave(mut self) -> Tally {
        self.tasks.shutdown().await;
        let tally = self.tally();
        assert!(tally.wrong.is_empty(), "{:?}", tally.wrong);
        assert_eq!(tally.unanswered(), 0, "no answer: {tally}");
        tally
    }

    /// Waits until as much was asked as was to be.
    pub async fn end(mut self) -> (Tally, Vec<String>) {
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        let tally = self.tally();
        assert!(tally.wrong.is_empty(), "{:?}", tally.wrong);
        assert_eq!(tally.refusals_without_retry_after, 0, "a 503 without Retry-After");
        assert_eq!(tally.unanswered(), 0, "no answer: {tally}");
        assert_eq!(tally.released + tally.failed + tally.left, tally.asked, "{tally}");
        (tally, self.shared.accepted.lock().unwrap().clone())
    }
}

impl Shared {
    fn take(&self) -> Option<u64> {
        if self.stopped.load(Ordering::Acquire) {
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (number < self.most).then_some(number)
    }

    async fn message(&self, number: u64) {
        let text = format!("{} {number}", self.name);
        let turn = usize::try_from(number).unwrap() % self.addresses.len();
        let address = &self.addresses[turn];
        let key = format!("{}-{number}", self.name);
        if let Some(body) = self.ask("/v1/signatures", &key, &hello(address, &text)).await {
            let signer = signer_of(&text, &body);
            let mut tally = self.tally.lock().unwrap();
            match signer {
                Ok(signer) if signer == *address => tally.released += 1,
                other => tally.wrong.push(format!("{address} was asked: {other:?} {body}")),
            }
        }
    }

    async fn payout(&self, number: u64) {
        let key = format!("{}-{number}", self.name);
        if let Some(body) = self.ask("/v1/transactions", &key, &small_payout()).await {
            self.tally.lock().unwrap().released += 1;
            self.accepted.lock().unwrap().push(body["id"].as_str().unwrap().to_owned());
        }
    }

    /// Asks until it is given or refused for good.
    async fn ask(&self, path: &str, key: &str, body: &Value) -> Option<Value> {
        self.tally.lock().unwrap().asked += 1;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let begun = Instant::now();
            let said = self.caller.post(path, key, body).await;
            if let Some(given) = self.judge(said, begun.elapsed()) {
                return given;
            }
            tokio::time::sleep(AGAIN).await;
            if self.impatient {
                self.tally.lock().unwrap().left += 1;
                return None;
            }
        }
        self.tally.lock().unwrap().failed += 1;
        None
    }

    /// `None` if it is to be asked again.
    fn judge(&self, said: Option<Said>, took: Duration) -> Option<Option<Value>> {
        let mut tally = self.tally.lock().unwrap();
        let Some(Said { status, retry_after, body }) = said else {
            *tally.answers.entry(NONE.to_owned()).or_default() += 1;
            return None;
        };
        let code = body["code"].as_str().unwrap_or_default();
        *tally.answers.entry(format!("{status} {code}").trim_end().to_owned()).or_default() += 1;
        match status {
            200 | 201 => Some(Some(body)),
            202 if body["status"].is_string() => Some(Some(body)),
            202 => {
                tally.pending += 1;
                None
            }
            503 | 429 => {
                tally.retried += 1;
                tally.refusals_without_retry_after += u64::from(retry_after.is_none());
                tally.slowest_refusal = tally.slowest_refusal.max(took);
                None
            }
            _ => {
                tally.failed += 1;
                Some(None)
            }
        }
    }
}
