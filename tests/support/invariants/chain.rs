//! What the chain says: every mined transaction of our accounts, found by scanning the blocks.

use super::FinalBy;
use super::database::Snapshot;
use super::hex;
use ethers_core::types::U256;
use ethers_core::types::transaction::eip2718::TypedTransaction;
use ethers_core::utils::rlp::Rlp;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// A mined transaction of one of our accounts.
#[derive(Clone, Debug)]
pub(super) struct Mined {
    pub hash: String,
    /// As the chain says.
    pub from: String,
    pub nonce: u64,
    /// Decoded from its bytes; `None` if they are not a transaction that `from` signed.
    pub decoded: Option<TypedTransaction>,
    pub block_hash: String,
    pub block_number: u64,
    pub is_final: bool,
    pub success: bool,
    /// Gas used × the price that was paid.
    pub paid: U256,
}

/// A log on the canonical chain.
#[derive(Clone, Debug)]
pub(super) struct Log {
    pub address: String,
    pub topic: String,
    pub block_hash: String,
    pub transaction_hash: String,
    pub index: u64,
    pub is_final: bool,
}

/// The canonical chain, as far as it concerns us.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    pub chain_id: i64,
    /// The head's hash.
    pub head: String,
    pub mined: Vec<Mined>,
    pub logs: Vec<Log>,
    /// How many transactions of each account are mined.
    pub counts: BTreeMap<String, u64>,
}

/// A node, asked directly.
struct Node<'a> {
    url: &'a str,
    http: reqwest::Client,
}

impl<'a> Node<'a> {
    fn at(url: &'a str) -> Self {
        Self { url, http: reqwest::Client::builder().no_proxy().build().unwrap() }
    }

    async fn ask(&self, method: &str, params: Value) -> Value {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let answer = self.http.post(self.url).json(&body).send().await;
        let answer = answer.unwrap_or_else(|error| panic!("{method}: {error}"));
        let mut answer: Value = answer.json().await.unwrap();
        assert!(answer.get("error").is_none(), "{method} {params}: {answer}");
        answer["result"].take()
    }
}

fn number(value: &Value) -> u64 {
    let text = value.as_str().unwrap_or_else(|| panic!("not a number: {value}"));
    u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_lowercase()
}

/// The head's hash.
pub(super) async fn head(url: &str) -> String {
    let newest = Node::at(url).ask("eth_getBlockByNumber", json!(["latest", false])).await;
    text(&newest["hash"])
}

/// Scans the chain from block 0.
pub(super) async fn read(url: &str, final_by: FinalBy, db: &Snapshot) -> Reading {
    let node = Node::at(url);
    let chain_id = i64::try_from(number(&node.ask("eth_chainId", json!([])).await)).unwrap();
    let head = node.ask("eth_getBlockByNumber", json!(["latest", false])).await;
    let top = number(&head["number"]);
    let last_final = match final_by {
        FinalBy::Tag => {
            let found = node.ask("eth_getBlockByNumber", json!(["finalized", false])).await;
            found.is_object().then(|| number(&found["number"]))
        }
        FinalBy::Depth(depth) => top.checked_sub(depth),
    };
    let lanes = db.lanes.iter().filter(|lane| lane.chain_id == chain_id);
    let ours: BTreeSet<String> = lanes.map(|lane| hex(&lane.address)).collect();
    let mut reading = Reading {
        chain_id,
        head: text(&head["hash"]),
        mined: Vec::new(),
        logs: Vec::new(),
        counts: BTreeMap::new(),
    };
    for height in 0..=top {
        let is_final = last_final.is_some_and(|last| height <= last);
        let block = node.ask("eth_getBlockByNumber", json!([format!("{height:#x}"), true])).await;
        for transaction in block["transactions"].as_array().into_iter().flatten() {
            let receipt = node.ask("eth_getTransactionReceipt", json!([transaction["hash"]])).await;
            logs(&receipt, is_final, &mut reading.logs);
            if ours.contains(&text(&transaction["from"])) {
                let mined = mined(&node, transaction, &receipt, is_final).await;
                reading.mined.push(mined);
            }
        }
    }
    for account in ours {
        let count = node.ask("eth_getTransactionCount", json!([account, "latest"])).await;
        reading.counts.insert(account, number(&count));
    }
    reading
}

fn logs(receipt: &Value, is_final: bool, into: &mut Vec<Log>) {
    for log in receipt["logs"].as_array().into_iter().flatten() {
        into.push(Log {
            address: text(&log["address"]),
            topic: text(&log["topics"][0]),
            block_hash: text(&log["blockHash"]),
            transaction_hash: text(&log["transactionHash"]),
            index: number(&log["logIndex"]),
            is_final,
        });
    }
}

async fn mined(node: &Node<'_>, transaction: &Value, receipt: &Value, is_final: bool) -> Mined {
    let hash = text(&transaction["hash"]);
    let from = text(&transaction["from"]);
    let raw = node.ask("eth_getRawTransactionByHash", json!([hash])).await;
    let price = U256::from(number(&receipt["effectiveGasPrice"]));
    Mined {
        decoded: decode(&text(&raw), &from),
        nonce: number(&transaction["nonce"]),
        block_hash: text(&receipt["blockHash"]),
        block_number: number(&receipt["blockNumber"]),
        is_final,
        success: receipt["status"] == "0x1",
        paid: U256::from(number(&receipt["gasUsed"])) * price,
        hash,
        from,
    }
}

/// Decodes signed bytes and recovers who signed them; `None` if that is not `from`.
pub(super) fn decode(raw: &str, from: &str) -> Option<TypedTransaction> {
    let bytes = ::hex::decode(raw.trim_start_matches("0x")).ok()?;
    let (transaction, signature) = TypedTransaction::decode_signed(&Rlp::new(&bytes)).ok()?;
    let sender = signature.recover(transaction.sighash()).ok()?;
    (format!("{sender:?}") == from).then_some(transaction)
}
