//! A node that lags behind in one thing: it has the newest blocks, and not their logs yet. It stands in
//! front of a real one.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    dead_code,
    reason = "a helper of tests: to panic is how a test fails"
)]

use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

struct Shared {
    behind: String,
    http: reqwest::Client,
    lags: AtomicBool,
    lies: AtomicUsize,
}

/// A listener on a free port; it ends when it is dropped.
pub struct LaggingNode {
    port: u16,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl LaggingNode {
    /// Hands everything on to the node at this URL until it is told to lag.
    pub async fn start(behind: String) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let (lags, lies) = (AtomicBool::new(false), AtomicUsize::new(0));
        let shared = Arc::new(Shared { behind, http, lags, lies });
        let serving = shared.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, serving.clone()));
            }
        });
        Self { port, shared, task }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// While it lags, every list of logs is empty.
    pub fn lag(&self, lags: bool) {
        self.shared.lags.store(lags, Ordering::SeqCst);
    }

    /// How many empty lists it gave out.
    pub fn lies(&self) -> usize {
        self.shared.lies.load(Ordering::SeqCst)
    }
}

impl Drop for LaggingNode {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let mut stream = BufReader::new(stream);
    while let Some(call) = read(&mut stream).await {
        let answer = shared.answer(&call).await;
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
        let text = format!("{head}content-length: {}\r\n\r\n{answer}", answer.len());
        if stream.get_mut().write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}

impl Shared {
    async fn answer(&self, call: &Value) -> String {
        if call["method"] == "eth_getLogs" && self.lags.load(Ordering::SeqCst) {
            self.lies.fetch_add(1, Ordering::SeqCst);
            return json!({ "jsonrpc": "2.0", "id": call["id"], "result": [] }).to_string();
        }
        let handed_on = self.http.post(&self.behind).json(call).send().await.unwrap();
        handed_on.text().await.unwrap()
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Value> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
        match line.trim().to_lowercase().split_once(':') {
            Some(("content-length", value)) => length = value.trim().parse().ok()?,
            None if line.trim().is_empty() => break,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    serde_json::from_slice(&body).ok()
}
