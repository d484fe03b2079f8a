//! The chain of a run: who makes its blocks, and takes them away again.

use crate::random::Random;
use crate::run::{Run, pace};
use crate::support::services::{Anvil, word};
use serde_json::{Value, json};
use sqlx::Connection as _;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

const BLOCK_MS: u64 = 250;
const GWEI: u128 = 1_000_000_000;

pub struct Chain {
    pub run: Arc<Run>,
    pub anvil: Arc<Anvil>,
    /// The operator accounts, lower case.
    pub accounts: Vec<String>,
    pub processor: String,
    /// Held by whoever changes blocks, sends for a user, or reads: in a reorg the node has no newest block.
    pub turn: Mutex<()>,
}

impl Chain {
    /// How often the contract has executed an order: 0 or 1.
    pub async fn executions(&self, order: u64) -> u128 {
        let data = self.anvil.calldata("executions(uint256)", &[word(order.into())]).await;
        let _turn = self.turn.lock().await;
        let found = self.anvil.call(&self.processor, &data).await;
        u128::from_str_radix(found.trim_start_matches("0x"), 16).unwrap()
    }

    /// Whether the node has a transaction, mined or not.
    pub async fn knows(&self, hash: &str) -> bool {
        let _turn = self.turn.lock().await;
        self.anvil.rpc("eth_getTransactionByHash", json!([hash])).await.is_object()
    }
}

/// Makes blocks for ever; until all is quiet also reorgs, drops and spikes.
pub async fn drive(chain: Arc<Chain>) {
    let mut random = chain.run.random(3);
    let mut dear_blocks = 0;
    let mut base_fee = GWEI;
    loop {
        pace(BLOCK_MS).await;
        let turn = chain.turn.lock().await;
        let is_quiet = chain.run.is_quiet();
        if is_quiet {
            dear_blocks = 0;
        }
        if dear_blocks == 0 {
            base_fee = GWEI;
        }
        match random.below(chain.run.plan.one_in_blocks()) {
            _ if is_quiet => {}
            0..=2 => reorg(&chain, &mut random).await,
            3..=8 => drop_one(&chain, &mut random).await,
            9 => {
                dear_blocks = 1 + random.below(40);
                base_fee = GWEI * u128::from(5 + random.below(110));
                chain.run.count("base fee spikes");
            }
            10 => {
                chain.run.count("pauses without a block");
                drop(turn);
                pace(500 + random.below(3_000)).await;
                continue;
            }
            _ => {}
        }
        dear_blocks = dear_blocks.saturating_sub(1);
        let fee = json!([format!("{base_fee:#x}")]);
        chain.anvil.rpc("anvil_setNextBlockBaseFeePerGas", fee).await;
        chain.anvil.mine(1).await;
    }
}

/// Takes one to three blocks away. Users' transactions come back, ours half of the time.
async fn reorg(chain: &Chain, random: &mut Random) {
    let depth = 1 + random.below(3);
    let head = chain.anvil.block_number().await;
    let mut back = Vec::new();
    for number in head + 1 - depth..=head {
        let params = json!([format!("{number:#x}"), true]);
        let block = chain.anvil.rpc("eth_getBlockByNumber", params).await;
        for transaction in block["transactions"].as_array().unwrap() {
            let from = transaction["from"].as_str().unwrap().to_lowercase();
            let is_ours = chain.accounts.contains(&from);
            if is_ours && random.one_in(2) {
                continue;
            }
            let hash = json!([transaction["hash"]]);
            back.push((is_ours, chain.anvil.rpc("eth_getRawTransactionByHash", hash).await));
        }
    }
    chain.anvil.rpc("anvil_reorg", json!([depth, []])).await;
    chain.run.count("reorgs");
    for (is_ours, raw) in back {
        let said = chain.anvil.try_rpc("eth_sendRawTransaction", json!([raw])).await;
        assert!(is_ours || said.is_ok(), "a user's transaction does not come back: {said:?}");
    }
}

/// The pool forgets a transaction of ours.
async fn drop_one(chain: &Chain, random: &mut Random) {
    let pool = chain.anvil.rpc("txpool_content", json!([])).await;
    let mut hashes = Vec::new();
    for (from, by_nonce) in pool["pending"].as_object().into_iter().flatten() {
        if chain.accounts.contains(&from.to_lowercase()) {
            let found = by_nonce.as_object().into_iter().flatten();
            hashes.extend(found.map(|(_, transaction)| transaction["hash"].clone()));
        }
    }
    if let Some(hash) = random.pick(&hashes) {
        chain.anvil.rpc("anvil_dropTransaction", json!([hash])).await;
        chain.run.count("dropped by the pool");
    }
}

/// Measures how long a lane stands still that has given more nonces than are mined. The database is asked
/// which; while it is down, what it said last holds.
pub async fn watch_lanes(chain: Arc<Chain>, store_url: String) {
    let mut given: BTreeMap<String, u64> = BTreeMap::new();
    let mut moved: BTreeMap<String, (u64, Instant)> = BTreeMap::new();
    loop {
        pace(250).await;
        if let Ok(found) = next_nonces(&store_url).await {
            given = found;
        }
        for (account, next) in &given {
            let turn = chain.turn.lock().await;
            let mined = chain.anvil.nonce(account).await;
            drop(turn);
            let (before, since) =
                moved.entry(account.clone()).or_insert_with(|| (mined, Instant::now()));
            // After a reorg it has to come back to where it was: that is standing still too.
            if mined > *before || mined >= *next {
                (*before, *since) = (mined, Instant::now());
            }
            chain.run.stood_still(since.elapsed());
        }
    }
}

async fn next_nonces(url: &str) -> Result<BTreeMap<String, u64>, sqlx::Error> {
    let limit = Duration::from_secs(2);
    let connect = tokio::time::timeout(limit, sqlx::PgConnection::connect(url)).await;
    let mut connection = connect.map_err(|_| sqlx::Error::PoolTimedOut)??;
    let sql = "SELECT address, next_nonce FROM lanes";
    let rows: Vec<(Vec<u8>, i64)> = sqlx::query_as(sql).fetch_all(&mut connection).await?;
    let lane = |(address, next): (Vec<u8>, i64)| {
        (format!("0x{}", hex::encode(address)), u64::try_from(next).unwrap_or_default())
    };
    Ok(rows.into_iter().map(lane).collect())
}

/// The number in a JSON-RPC quantity.
pub fn quantity(value: &Value) -> u64 {
    u64::from_str_radix(value.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
}
