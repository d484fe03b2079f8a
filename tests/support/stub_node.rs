//! A node of a synthetic chain, as long as one likes: blocks, logs and blooms are made when they are asked for.
//!
//! It answers what a watcher asks (`eth_chainId`, `eth_blockNumber`, `eth_getBlockByNumber`,
//! `eth_getBlockByHash`, `eth_getLogs` by range and by hash, `eth_getBlockReceipts`) and nothing else. Each log is
//! an `Asked` of [`EMITTER`] in a transaction of its own. A block's number is the end of its hash, so that a hash
//! is found without a table.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "helpers of tests: to panic is how a test fails"
)]
#![allow(dead_code, reason = "each test crate uses a part of these helpers")]

use alloy::primitives::{Address, B256, Bloom, BloomInput, address, keccak256};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Who emits.
pub const EMITTER: Address = address!("0x00000000000000000000000000000000000e0001");
/// What is emitted, as a source's `event`.
pub const EVENT: &str = "Asked(uint256 indexed orderId, address indexed payer, uint256 amount)";
/// The chain's id.
pub const CHAIN_ID: u64 = 31337;
/// The most logs of one answer over several blocks.
const RESULTS_MAX: u64 = 10_000;
const PAYER: Address = address!("0x0000000000000000000000000000000000009a7e");

/// How much is in the chain.
#[derive(Clone, Copy, Debug)]
pub struct Density {
    /// The last block of the past.
    pub blocks: u64,
    /// Logs in each block up to there.
    pub each: u64,
    /// Logs in each block after it.
    pub live: u64,
}

struct Shared {
    density: Density,
    head: AtomicU64,
    topic0: B256,
    /// The bloom of what all logs have in common.
    common: Bloom,
    calls: Mutex<BTreeMap<String, u64>>,
}

/// A running node; it ends when it is dropped.
pub struct StubNode {
    port: u16,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl StubNode {
    /// A node whose head is the last block of the past.
    pub async fn start(density: Density) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let topic0 = keccak256("Asked(uint256,address,uint256)");
        let mut common = Bloom::ZERO;
        for item in [EMITTER.as_slice(), topic0.as_slice(), PAYER.into_word().as_slice()] {
            common.accrue(BloomInput::Raw(item));
        }
        let shared = Arc::new(Shared {
            density,
            head: AtomicU64::new(density.blocks),
            topic0,
            common,
            calls: Mutex::default(),
        });
        let serving = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&serving)));
            }
        });
        Self { port, shared, task }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The chain grows to this block.
    pub fn set_head(&self, head: u64) {
        self.shared.head.store(head, Ordering::SeqCst);
    }

    /// How often each method was called.
    pub fn calls(&self) -> BTreeMap<String, u64> {
        self.shared.calls.lock().unwrap().clone()
    }
}

impl Drop for StubNode {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let mut stream = BufReader::new(stream);
    while let Some(body) = read(&mut stream).await {
        let Ok(asked) = serde_json::from_slice::<Value>(&body) else { return };
        let text = match asked.as_array() {
            Some(calls) => {
                let all: Vec<String> = calls.iter().map(|call| shared.answer(call)).collect();
                format!("[{}]", all.join(","))
            }
            None => shared.answer(&asked),
        };
        let length = text.len();
        let whole = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{text}"
        );
        if stream.get_mut().write_all(whole.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    let (mut length, mut line) = (0, String::new());
    loop {
        line.clear();
        stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
        let header = line.trim().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(body)
}

/// The last eight bytes are the number.
fn hash_of(number: u64) -> B256 {
    let mut hash = keccak256(number.to_be_bytes());
    hash[24..].copy_from_slice(&number.to_be_bytes());
    hash
}

fn number_of(hash: &str) -> Option<u64> {
    let number = u64::from_str_radix(hash.get(50..)?, 16).ok()?;
    (format!("{:#x}", hash_of(number)) == hash.to_lowercase()).then_some(number)
}

impl Shared {
    fn head(&self) -> u64 {
        self.head.load(Ordering::SeqCst)
    }

    fn logs_in(&self, number: u64) -> u64 {
        match number {
            0 => 0,
            past if past <= self.density.blocks => self.density.each,
            _ => self.density.live,
        }
    }

    /// The order that a log is about: no two have the same.
    fn order(number: u64, index: u64) -> B256 {
        B256::left_padding_from(&((u128::from(number) << 32) | u128::from(index)).to_be_bytes())
    }

    fn answer(&self, call: &Value) -> String {
        let method = call["method"].as_str().unwrap_or_default();
        *self.calls.lock().unwrap().entry(method.to_owned()).or_default() += 1;
        let params = &call["params"];
        let result = match method {
            "eth_chainId" => Ok(format!("\"{CHAIN_ID:#x}\"")),
            "eth_blockNumber" => Ok(format!("\"{:#x}\"", self.head())),
            "eth_getBlockByNumber" | "eth_getBlockByHash" => {
                Ok(self.place(&params[0]).map_or_else(|| "null".to_owned(), |at| self.block(at)))
            }
            "eth_getBlockReceipts" => {
                Ok(self.place(&params[0]).map_or_else(|| "null".to_owned(), |at| self.receipts(at)))
            }
            "eth_getLogs" => self.logs(&params[0]),
            other => Err(json!({ "code": -32601, "message": format!("no method {other}") })),
        };
        let id = &call["id"];
        match result {
            Ok(result) => format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#),
            Err(error) => format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#),
        }
    }

    /// The height of a tag, a number or a hash, if the chain has come so far.
    fn place(&self, at: &Value) -> Option<u64> {
        let at = at.as_str()?;
        let number = match at {
            "latest" | "pending" => self.head(),
            "safe" | "finalized" => self.head().saturating_sub(64),
            "earliest" => 0,
            hash if hash.len() == 66 => number_of(hash)?,
            number => u64::from_str_radix(number.trim_start_matches("0x"), 16).ok()?,
        };
        (number <= self.head()).then_some(number)
    }

    fn bloom(&self, number: u64) -> Bloom {
        let logs = self.logs_in(number);
        let mut bloom = if logs == 0 { Bloom::ZERO } else { self.common };
        for index in 0..logs {
            bloom.accrue(BloomInput::Raw(Self::order(number, index).as_slice()));
        }
        bloom
    }

    fn block(&self, number: u64) -> String {
        let parent = if number == 0 { B256::ZERO } else { hash_of(number - 1) };
        let (hash, bloom, zero) = (hash_of(number), self.bloom(number), B256::ZERO);
        let time = 1_700_000_000 + number;
        format!(
            r#"{{"number":"{number:#x}","hash":"{hash:#x}","parentHash":"{parent:#x}",
            "sha3Uncles":"{zero:#x}","miner":"{PAYER:#x}","stateRoot":"{zero:#x}",
            "transactionsRoot":"{zero:#x}","receiptsRoot":"{zero:#x}","logsBloom":"{bloom:#x}",
            "difficulty":"0x0","gasLimit":"0x1c9c380","gasUsed":"0x0","timestamp":"{time:#x}",
            "extraData":"0x","mixHash":"{zero:#x}","nonce":"0x0000000000000000",
            "baseFeePerGas":"0x7","size":"0x0","transactions":[],"uncles":[]}}"#
        )
    }

    fn transaction(number: u64, index: u64) -> B256 {
        let mut hash = keccak256(number.to_le_bytes());
        hash[24..].copy_from_slice(&index.to_be_bytes());
        hash
    }

    fn log(&self, number: u64, index: u64, into: &mut String) {
        let (hash, transaction) = (hash_of(number), Self::transaction(number, index));
        let (topic0, order) = (self.topic0, Self::order(number, index));
        let (payer, amount) = (PAYER.into_word(), B256::left_padding_from(&[10]));
        write!(
            into,
            r#"{{"address":"{EMITTER:#x}","topics":["{topic0:#x}","{order:#x}","{payer:#x}"],
            "data":"{amount:#x}","blockNumber":"{number:#x}","blockHash":"{hash:#x}",
            "transactionHash":"{transaction:#x}","transactionIndex":"{index:#x}",
            "logIndex":"{index:#x}","removed":false}}"#
        )
        .unwrap();
    }

    fn receipts(&self, number: u64) -> String {
        let mut all = String::from("[");
        for index in 0..self.logs_in(number) {
            let separator = if index == 0 { "" } else { "," };
            let (hash, transaction) = (hash_of(number), Self::transaction(number, index));
            write!(
                all,
                r#"{separator}{{"transactionHash":"{transaction:#x}","transactionIndex":"{index:#x}",
                "blockNumber":"{number:#x}","blockHash":"{hash:#x}","gasUsed":"0x5208",
                "effectiveGasPrice":"0x7","status":"0x1","type":"0x2","logs":["#
            )
            .unwrap();
            self.log(number, index, &mut all);
            all.push_str("]}");
        }
        all.push(']');
        all
    }

    fn logs(&self, filter: &Value) -> Result<String, Value> {
        let among = |wanted: &Value, own: &str| match wanted {
            Value::Null => true,
            Value::Array(any) => {
                any.is_empty()
                    || any
                        .iter()
                        .any(|one| one.as_str().is_some_and(|one| one.eq_ignore_ascii_case(own)))
            }
            one => one.as_str().is_some_and(|one| one.eq_ignore_ascii_case(own)),
        };
        let (from, to) = match filter.get("blockHash") {
            Some(hash) => {
                let at = self.place(hash);
                let at = at.ok_or_else(|| json!({ "code": -32000, "message": "unknown block" }))?;
                (at, at)
            }
            None => {
                let from = self.place(&filter["fromBlock"]);
                let to = self.place(&filter["toBlock"]);
                let beyond = "block range extends beyond current head block";
                from.zip(to).ok_or_else(|| json!({ "code": -32602, "message": beyond }))?
            }
        };
        let ours = among(&filter["address"], &format!("{EMITTER:#x}"))
            && among(&filter["topics"][0], &format!("{:#x}", self.topic0));
        if !ours {
            return Ok("[]".to_owned());
        }
        let count: u64 = (from..=to).map(|number| self.logs_in(number)).sum();
        if to > from && count > RESULTS_MAX {
            let each = self.density.each.max(self.density.live).max(1);
            let end = (from + RESULTS_MAX / each).saturating_sub(1).clamp(from, to);
            let message = format!(
                "query returned more than {RESULTS_MAX} results. Try with this block range [{from:#X}, {end:#X}]."
            );
            return Err(json!({ "code": -32005, "message": message }));
        }
        let mut all = String::with_capacity(usize::try_from(count).unwrap_or(0) * 720 + 2);
        all.push('[');
        for number in from..=to {
            for index in 0..self.logs_in(number) {
                if all.len() > 1 {
                    all.push(',');
                }
                self.log(number, index, &mut all);
            }
        }
        all.push(']');
        Ok(all)
    }
}
