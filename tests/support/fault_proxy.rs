//! A JSON-RPC proxy in front of a node that goes wrong as nodes and networks do, on command.
//!
//! It runs inside the test, on a free port, and is steered by method calls while it runs. By method, once,
//! so many times or until lifted, it can drop a call before or after the node has it, hold it, answer it
//! itself or rewrite its answer ([`Fault`]); it can enforce the rules of a client's pool
//! ([`PoolRules`]); and it can answer as of some blocks ago ([`Lag`]). Every call is recorded, and
//! every raw transaction in the order in which it came.
//!
//! A proxy over two proxies over one node is a load balancer: [`FaultProxy::over`] takes several upstreams
//! in turns.
//!
//! What anvil cannot do by itself, and this is for:
//! - it takes any replacement that pays more, not only one that pays 10 % more in both fields;
//! - it has no limit of transactions per account, and does not add up what an account's pooled
//!   transactions may cost together;
//! - it answers every `toBlock` beyond its head as if it were the head;
//! - it does not put the transactions of blocks that a reorganisation takes away back into its pool;
//! - it never loses an answer, never lags behind another node, and is never short of quota.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests: to panic is how a test fails"
)]
#![allow(dead_code, unused_imports, reason = "each test crate uses a part of these helpers")]

mod http;
mod lag;
mod pool;
mod provider;
pub mod words;

pub use lag::Lag;
pub use pool::{Keeping, PoolRules, Rounding};
pub use provider::{Provider, range};

use super::services::poll_until;
use pool::Pool;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The method that carries signed bytes.
pub const SEND: &str = "eth_sendRawTransaction";

/// How long the node behind may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Looks at a call's parameters and at the whole answer (`result` or `error`), and gives the answer that the
/// caller gets.
pub type Rewriter = Arc<dyn Fn(&Value, Value) -> Value + Send + Sync>;

/// What goes wrong with one call.
#[derive(Clone)]
pub enum Fault {
    /// The node does it, and the connection closes without an answer (F1).
    DropReply,
    /// The connection closes; the node never hears of it (F2).
    DropRequest,
    /// The call waits here until its rule is lifted, then goes on to the node (F3).
    Hold,
    /// The node does it; the answer waits here until its rule is lifted (F3).
    HoldReply,
    /// Answered with this JSON-RPC error; the node never hears of it (F4).
    Say(Value),
    /// The node does it, and the answer is this JSON-RPC error all the same (F4).
    SayAfter(Value),
    /// Answered with this result; the node never hears of it. `null` for a receipt is F9.
    Answer(Value),
    /// The node's answer, rewritten (F4, F8, F10).
    Rewrite(Rewriter),
    /// An HTTP status instead of an answer, for the whole request (F7).
    Status(u16),
    /// The same, with the seconds of a `Retry-After`, if any (F7).
    Busy { status: u16, retry_after_s: Option<u64> },
}

impl std::fmt::Debug for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::DropReply => "DropReply",
            Self::DropRequest => "DropRequest",
            Self::Hold => "Hold",
            Self::HoldReply => "HoldReply",
            Self::Say(_) => "Say",
            Self::SayAfter(_) => "SayAfter",
            Self::Answer(_) => "Answer",
            Self::Rewrite(_) => "Rewrite",
            Self::Status(_) => "Status",
            Self::Busy { .. } => "Busy",
        })
    }
}

/// How often a rule applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    Once,
    N(usize),
    UntilLifted,
}

/// Names a rule, to lift it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleId(u64);

/// A call as it came.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub method: String,
    pub params: Value,
}

struct Rule {
    id: RuleId,
    method: String,
    /// Only calls whose parameters have this text in them, in lower case.
    about: Option<String>,
    left: Option<usize>,
    hits: usize,
    fault: Fault,
    /// Says `true` once what is held may go on.
    gate: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    next_rule: u64,
    rules: Vec<Rule>,
    /// Calls that wait, by the rule that holds them.
    held: Vec<(RuleId, Recorded)>,
    recorded: Vec<Recorded>,
    lag: Option<Lag>,
}

struct Shared {
    state: Mutex<State>,
    pool: Mutex<Pool>,
    upstreams: Vec<String>,
    turn: AtomicUsize,
    http: reqwest::Client,
}

/// A running proxy; it ends when it is dropped.
pub struct FaultProxy {
    port: u16,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// What a caller gets for one call.
enum Reply {
    Body(Value),
    /// The connection closes.
    Broken,
    Status {
        status: u16,
        retry_after_s: Option<u64>,
    },
}

impl FaultProxy {
    /// A faithful proxy of one node.
    pub async fn start(upstream: &str) -> Self {
        Self::over(&[upstream]).await
    }

    /// A load balancer: calls go to the upstreams in turns.
    pub async fn over(upstreams: &[&str]) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            pool: Mutex::default(),
            upstreams: upstreams.iter().map(|url| (*url).to_owned()).collect(),
            turn: AtomicUsize::new(0),
            http: reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap(),
        });
        let serving = shared.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(http::serve(stream, serving.clone()));
            }
        });
        Self { port, shared, task }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// From now on this happens to calls of this method; `*` is every method. The first rule that applies
    /// decides.
    pub fn inject(&self, method: &str, times: Times, fault: Fault) -> RuleId {
        self.add_rule(method, None, times, fault)
    }

    /// As [`Self::inject`], for calls whose parameters name this account.
    pub fn inject_about(&self, method: &str, account: &str, times: Times, fault: Fault) -> RuleId {
        self.add_rule(method, Some(account.to_lowercase()), times, fault)
    }

    fn add_rule(&self, method: &str, about: Option<String>, times: Times, fault: Fault) -> RuleId {
        let mut state = self.shared.state();
        let id = RuleId(state.next_rule);
        state.next_rule += 1;
        let left = match times {
            Times::Once => Some(1),
            Times::N(times) => Some(times),
            Times::UntilLifted => None,
        };
        let (gate, _) = watch::channel(false);
        let method = method.to_owned();
        state.rules.push(Rule { id, method, about, left, hits: 0, fault, gate });
        id
    }

    /// Ends a rule; what it holds goes on.
    pub fn lift(&self, id: RuleId) {
        let mut state = self.shared.state();
        for rule in state.rules.iter_mut().filter(|rule| rule.id == id) {
            rule.left = Some(0);
            rule.gate.send_replace(true);
        }
    }

    /// Ends all rules, the pool's rules and the lag.
    pub fn lift_all(&self) {
        let mut state = self.shared.state();
        for rule in &mut state.rules {
            rule.left = Some(0);
            rule.gate.send_replace(true);
        }
        state.lag = None;
        drop(state);
        self.pool_rules(None);
    }

    /// How many calls a rule has met.
    pub fn hits(&self, id: RuleId) -> usize {
        self.shared.state().rules.iter().find(|rule| rule.id == id).map_or(0, |rule| rule.hits)
    }

    /// Waits until a rule has met so many calls.
    pub async fn wait_for_hits(&self, id: RuleId, count: usize, limit: Duration) {
        let what = format!("{count} call(s) met the rule");
        poll_until(limit, &what, async || (self.hits(id) >= count).then_some(())).await;
    }

    /// The calls that wait at a rule now.
    pub fn held(&self, id: RuleId) -> Vec<Recorded> {
        let state = self.shared.state();
        state.held.iter().filter(|(by, _)| *by == id).map(|(_, call)| call.clone()).collect()
    }

    /// Waits until a call is held by this rule.
    pub async fn wait_for_held(&self, id: RuleId, limit: Duration) -> Recorded {
        poll_until(limit, "a call is held", async || self.held(id).into_iter().next()).await
    }

    /// Answers as of some blocks ago, or (`None`) as the node does (F6).
    pub fn lag(&self, lag: Option<Lag>) {
        self.shared.state().lag = lag;
    }

    /// Enforces a client's pool rules on raw transactions, or (`None`) leaves them to the node (F5). The
    /// pool that was kept until now is forgotten.
    pub fn pool_rules(&self, rules: Option<PoolRules>) {
        *self.shared.pool() = Pool::new(rules);
    }

    /// What the proxy's pool holds: hashes, by sender and nonce.
    pub fn pooled(&self) -> Vec<String> {
        self.shared.pool().hashes()
    }

    /// Every raw transaction that was ever sent here, in order, whatever became of it: 0x hex.
    pub fn sent(&self) -> Vec<String> {
        let state = self.shared.state();
        let sent = state.recorded.iter().filter(|call| call.method == SEND);
        sent.filter_map(|call| call.params[0].as_str().map(str::to_lowercase)).collect()
    }

    /// The calls of a method, in order.
    pub fn calls(&self, method: &str) -> Vec<Recorded> {
        let state = self.shared.state();
        state.recorded.iter().filter(|call| call.method == method).cloned().collect()
    }

    /// How many calls came, of all methods.
    pub fn count_all(&self) -> usize {
        self.shared.state().recorded.len()
    }

    /// How many calls of a method came.
    pub fn count(&self, method: &str) -> usize {
        self.shared.state().recorded.iter().filter(|call| call.method == method).count()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One HTTP request: a call or a batch of them. A call of a batch whose connection breaks breaks it
    /// for all.
    async fn answer(&self, body: &Value) -> Reply {
        let Some(calls) = body.as_array() else {
            return self.one(body).await;
        };
        let mut answers = Vec::new();
        for call in calls {
            match self.one(call).await {
                Reply::Body(answer) => answers.push(answer),
                other => return other,
            }
        }
        Reply::Body(Value::Array(answers))
    }

    async fn one(&self, call: &Value) -> Reply {
        let method = call["method"].as_str().unwrap_or_default().to_owned();
        let params = call["params"].clone();
        let recorded = Recorded { method, params };
        let ruled = self.take_rule(&recorded);
        let Some((id, fault, gate)) = ruled else {
            return finish(call, self.forward(&recorded).await);
        };
        match fault {
            Fault::DropReply => {
                self.forward(&recorded).await;
                Reply::Broken
            }
            Fault::DropRequest => Reply::Broken,
            Fault::Hold => {
                self.hold(id, &recorded, gate).await;
                finish(call, self.forward(&recorded).await)
            }
            Fault::HoldReply => {
                let answer = self.forward(&recorded).await;
                self.hold(id, &recorded, gate).await;
                finish(call, answer)
            }
            Fault::Say(error) => finish(call, Some(json!({ "error": error }))),
            Fault::SayAfter(error) => {
                self.forward(&recorded).await;
                finish(call, Some(json!({ "error": error })))
            }
            Fault::Answer(result) => finish(call, Some(json!({ "result": result }))),
            Fault::Rewrite(rewrite) => {
                let answer = self.forward(&recorded).await;
                finish(call, answer.map(|answer| rewrite(&recorded.params, answer)))
            }
            Fault::Status(status) => Reply::Status { status, retry_after_s: None },
            Fault::Busy { status, retry_after_s } => Reply::Status { status, retry_after_s },
        }
    }

    /// Records the call, and takes the rule that applies to it.
    fn take_rule(&self, call: &Recorded) -> Option<(RuleId, Fault, watch::Receiver<bool>)> {
        let mut state = self.state();
        state.recorded.push(call.clone());
        let applies = |rule: &&mut Rule| {
            let named = |about: &String| call.params.to_string().to_lowercase().contains(about);
            rule.left != Some(0)
                && (rule.method == "*" || rule.method == call.method)
                && rule.about.as_ref().is_none_or(named)
        };
        let rule = state.rules.iter_mut().find(applies)?;
        rule.left = rule.left.map(|left| left - 1);
        rule.hits += 1;
        Some((rule.id, rule.fault.clone(), rule.gate.subscribe()))
    }

    async fn hold(&self, id: RuleId, call: &Recorded, mut gate: watch::Receiver<bool>) {
        self.state().held.push((id, call.clone()));
        let _ = gate.wait_for(|open| *open).await;
        let mut state = self.state();
        if let Some(at) = state.held.iter().position(|(by, _)| *by == id) {
            state.held.remove(at);
        }
    }

    /// What the node, its pool and its lag make of a call: `result` or `error`; `None` if it does not answer.
    async fn forward(&self, call: &Recorded) -> Option<Value> {
        if call.method == SEND && self.pool().is_on() {
            return self.submit(call).await;
        }
        let lag = self.state().lag.filter(|lag| *lag != Lag::default());
        match lag {
            Some(lag) => lag::ask(self, call, lag).await,
            None => self.ask(&call.method, &call.params).await,
        }
    }

    /// Asks the next upstream.
    async fn ask(&self, method: &str, params: &Value) -> Option<Value> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.upstreams.len();
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let answer = self.http.post(&self.upstreams[turn]).json(&body).send().await.ok()?;
        let answer: Value = answer.json().await.ok()?;
        Some(match answer.get("error") {
            Some(error) => json!({ "error": error }),
            None => json!({ "result": answer["result"] }),
        })
    }

    /// The result of a call of our own.
    async fn read(&self, method: &str, params: Value) -> Option<Value> {
        self.ask(method, &params).await?.get("result").cloned()
    }
}

fn finish(call: &Value, answer: Option<Value>) -> Reply {
    let Some(mut answer) = answer else { return Reply::Broken };
    answer["jsonrpc"] = json!("2.0");
    answer["id"] = call["id"].clone();
    Reply::Body(answer)
}
