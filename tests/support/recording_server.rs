//! A stand-in for the signing server's listener: it keeps every request, and answers by script.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    dead_code,
    reason = "a helper of tests: to panic is how a test fails"
)]

use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub path: String,
    pub key: String,
    pub authorization: String,
    pub body: Value,
}

/// An answer: status, further header lines, body.
pub type Answer = (u16, &'static str, Value);

#[derive(Default)]
struct State {
    requests: Vec<Recorded>,
    script: VecDeque<Answer>,
    /// What every request is answered, after the script.
    always: Option<Answer>,
    /// The body that each key was first used with.
    bound: BTreeMap<String, Value>,
    /// What was told of sources that are gone: the path and the body.
    retractions: Vec<(String, Value)>,
    /// Who asked for a transaction, by its hash.
    causes: BTreeMap<String, Value>,
    /// How every request ended; `submitted` if nothing is said.
    ended: Option<&'static str>,
    /// Its nodes say that every event stands.
    refuses_retractions: bool,
}

/// A listener on a free port; it ends when it is dropped.
pub struct RecordingServer {
    port: u16,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

impl RecordingServer {
    pub async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, shared.clone()));
            }
        });
        Self { port, state, task }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Answers the next requests so, one each; then 201 again.
    pub fn script(&self, answers: impl IntoIterator<Item = Answer>) {
        self.state.lock().unwrap().script.extend(answers);
    }

    /// Answers every request so until it is told otherwise.
    pub fn always(&self, answer: Option<Answer>) {
        self.state.lock().unwrap().always = answer;
    }

    pub fn requests(&self) -> Vec<Recorded> {
        self.state.lock().unwrap().requests.clone()
    }

    /// The retractions that were told.
    pub fn retractions(&self) -> Vec<(String, Value)> {
        self.state.lock().unwrap().retractions.clone()
    }

    /// From now on this transaction is one that this request asked for.
    pub fn is_cause(&self, hash: &str, request: Value) {
        self.state.lock().unwrap().causes.insert(hash.to_owned(), request);
    }

    /// What is told of sources is refused from now on, or is not any more.
    pub fn refuse_retractions(&self, refuses: bool) {
        self.state.lock().unwrap().refuses_retractions = refuses;
    }

    /// From now on every request is shown with this status.
    pub fn ends_as(&self, status: &'static str) {
        self.state.lock().unwrap().ended = Some(status);
    }

    /// How many requests came with each key.
    pub fn by_key(&self) -> BTreeMap<String, usize> {
        let mut count = BTreeMap::new();
        for request in self.requests() {
            *count.entry(request.key).or_default() += 1;
        }
        count
    }
}

impl Drop for RecordingServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: TcpStream, state: Arc<Mutex<State>>) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(&mut stream).await {
        let (status, headers, body) = answer(&state, request);
        let body = body.to_string();
        let text = format!(
            "HTTP/1.1 {status} Answer\r\ncontent-type: application/json\r\n{headers}\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        if stream.get_mut().write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// As the server does: a known key with the same body is the same resource, with another body a 409. What is only
/// looked up, and what is told of a source, is no request.
fn answer(state: &Mutex<State>, request: Recorded) -> Answer {
    let mut state = state.lock().unwrap();
    let asked = |name: &str| request.path.split_once(name).map(|(_, value)| value.to_owned());
    if let Some(key) = asked("?idempotency_key=") {
        let found = state.bound.get(&key).map(|body| shown(&key, body, state.ended));
        return (200, "", json!({ "transactions": Vec::from_iter(found) }));
    }
    if let Some(hash) = asked("?transaction_hash=") {
        let found = state.causes.get(&hash).cloned();
        return (200, "", json!({ "transactions": Vec::from_iter(found) }));
    }
    if request.path.ends_with("/evaluate") {
        return (200, "", json!({ "outcome": "allow", "reasons": [] }));
    }
    if request.path.ends_with("/retraction") {
        if state.refuses_retractions {
            return (409, "", json!({ "code": "conflict" }));
        }
        let key = request.path.split('/').nth(3).and_then(|id| id.strip_prefix("tx-"));
        let key = key.unwrap().to_owned();
        state.retractions.push((request.path, request.body));
        if state.ended == Some("queued") {
            // It ends unsigned, and its key may be had.
            (state.ended, _) = (None, state.bound.remove(&key));
            let failure = json!({ "code": "event-gone" });
            return (200, "", json!({ "id": "told", "status": "cancelled", "failure": failure }));
        }
        return (200, "", json!({ "id": "told", "status": "submitted" }));
    }
    if let Some(key) = asked("/transactions/tx-") {
        let found = state.bound.get(&key).map(|body| shown(&key, body, state.ended));
        return found.map_or((404, "", json!({ "code": "not-found" })), |it| (200, "", it));
    }
    let (key, body) = (request.key.clone(), request.body.clone());
    state.requests.push(request);
    if let Some(scripted) = state.script.pop_front() {
        return scripted;
    }
    if let Some(always) = &state.always {
        return always.clone();
    }
    let bound = state.bound.entry(key.clone()).or_insert_with(|| body.clone());
    if *bound == body {
        (201, "", json!({ "id": format!("tx-{key}"), "status": "queued" }))
    } else {
        let resource = format!("tx-{key}");
        (409, "", json!({ "code": "idempotency-mismatch", "resource": resource }))
    }
}

/// A transaction as it is read back.
fn shown(key: &str, body: &Value, ended: Option<&str>) -> Value {
    let mut shown = body.clone();
    shown["id"] = json!(format!("tx-{key}"));
    let status = ended.unwrap_or("submitted");
    shown["status"] = json!(status);
    shown["nonce"] = if status == "queued" { Value::Null } else { json!("0") };
    shown
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Recorded> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let length: usize = headers.get("content-length").map_or(Ok(0), |it| it.parse()).ok()?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let body = if body.is_empty() { b"null".to_vec() } else { body };
    Some(Recorded {
        path,
        key: headers.get("idempotency-key").cloned().unwrap_or_default(),
        authorization: headers.get("authorization").cloned().unwrap_or_default(),
        body: serde_json::from_slice(&body).ok()?,
    })
}
