//! The fault proxy itself, without a server: each of its faults is seen by a plain client.

use crate::fees::{send, signed};
use crate::stage::GWEI;
use crate::support::fault_proxy::{
    Fault, FaultProxy, Keeping, Lag, PoolRules, Provider, Rounding, SEND, Times,
};
use crate::support::server::LIMIT;
use crate::support::services::{Anvil, AnvilOptions, Mining, artefact, poll_until, word};
use serde_json::{Value, json};
use std::sync::Arc;

async fn stage() -> (Anvil, FaultProxy) {
    let options = AnvilOptions { mining: Mining::Manual, ..AnvilOptions::default() };
    let anvil = Anvil::start(options).await;
    let proxy = FaultProxy::start(&anvil.url()).await;
    (anvil, proxy)
}

/// The whole answer, or `None` if the connection closed without one.
async fn post(proxy: &FaultProxy, body: &Value) -> Option<(u16, Value)> {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = http.post(proxy.url()).json(body).send().await.ok()?;
    let status = answer.status().as_u16();
    Some((status, answer.json().await.unwrap_or_default()))
}

fn call(method: &str, params: Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": 7, "method": method, "params": params })
}

async fn ask(proxy: &FaultProxy, method: &str, params: Value) -> Option<Value> {
    Some(post(proxy, &call(method, params)).await?.1)
}

#[tokio::test]
async fn answers_are_dropped_before_and_after_the_node_and_only_as_often_as_said() {
    let (anvil, proxy) = stage().await;
    let mine = || ask(&proxy, "anvil_mine", json!(["0x1"]));
    proxy.inject("anvil_mine", Times::Once, Fault::DropRequest);
    assert!(mine().await.is_none());
    assert_eq!(anvil.block_number().await, 0, "the node never heard of it");
    let after = proxy.inject("anvil_mine", Times::N(2), Fault::DropReply);
    for block in [1, 2] {
        assert!(mine().await.is_none());
        assert_eq!(anvil.block_number().await, block, "the node did it");
    }
    assert!(mine().await.is_some());
    assert_eq!((proxy.hits(after), proxy.count("anvil_mine")), (2, 4));
}

#[tokio::test]
async fn answers_are_said_rewritten_and_refused_and_batches_go_through() {
    let (_anvil, proxy) = stage().await;
    let error = json!({ "code": -32000, "message": "no" });
    proxy.inject("eth_chainId", Times::Once, Fault::Say(error.clone()));
    let said = ask(&proxy, "eth_chainId", json!([])).await.unwrap();
    assert_eq!((&said["error"], &said["id"]), (&error, &json!(7)));
    proxy.inject("eth_chainId", Times::Once, Fault::Answer(json!("0x1")));
    let batch = json!([call("eth_chainId", json!([])), call("eth_chainId", json!([]))]);
    let (_, answers) = post(&proxy, &batch).await.unwrap();
    assert_eq!((&answers[0]["result"], &answers[1]["result"]), (&json!("0x1"), &json!("0x7a69")));
    let double = Arc::new(|params: &Value, mut answer: Value| {
        answer["asked"] = params.clone();
        answer
    });
    let rule = proxy.inject("eth_chainId", Times::UntilLifted, Fault::Rewrite(double));
    assert_eq!(ask(&proxy, "eth_chainId", json!([])).await.unwrap()["asked"], json!([]));
    proxy.lift(rule);
    proxy.inject("*", Times::Once, Fault::Status(429));
    assert_eq!(post(&proxy, &call("eth_chainId", json!([]))).await.unwrap().0, 429);
    assert_eq!(post(&proxy, &call("eth_chainId", json!([]))).await.unwrap().0, 200);
}

#[tokio::test]
async fn a_held_call_is_overtaken() {
    let (anvil, proxy) = stage().await;
    let held = proxy.inject("anvil_mine", Times::Once, Fault::Hold);
    let first = ask(&proxy, "anvil_mine", json!(["0x5"]));
    let then = async {
        proxy.wait_for_held(held, LIMIT).await;
        assert!(ask(&proxy, "anvil_mine", json!(["0x1"])).await.is_some());
        assert_eq!(anvil.block_number().await, 1, "only the second");
        proxy.lift(held);
    };
    let (first, ()) = tokio::join!(first, then);
    assert!(first.is_some() && proxy.held(held).is_empty());
    assert_eq!(anvil.block_number().await, 6);
}

#[tokio::test]
async fn each_kind_of_answer_lags_by_itself() {
    let (anvil, proxy) = stage().await;
    let artefact = artefact("NaiveCounter");
    let counter = anvil.deploy(&artefact, "").await;
    let caller = anvil.accounts()[1].clone();
    let hit = anvil.calldata("hit(uint256)", &[word(1)]).await;
    let hash = anvil.send(&caller, &counter, &hit, 0).await;
    anvil.mine(1).await;
    let block = anvil.wait_for_receipt(&hash, LIMIT).await["blockHash"].clone();
    anvil.mine(2).await;
    let count = async || ask(&proxy, "eth_getTransactionCount", json!([caller, "latest"])).await;
    let receipt = async || ask(&proxy, "eth_getTransactionReceipt", json!([hash])).await;
    let head = async || ask(&proxy, "eth_getBlockByNumber", json!(["latest", false])).await;
    let by_hash = async || ask(&proxy, "eth_getBlockByHash", json!([block, false])).await;
    let logs = async || ask(&proxy, "eth_getLogs", json!([{ "fromBlock": "0x0" }])).await;
    // What each says: count, whether there is a receipt, head, whether the block is known, how many logs.
    let look = async || {
        (
            count().await.unwrap()["result"].as_str().unwrap().to_owned(),
            receipt().await.unwrap()["result"].is_object(),
            head().await.unwrap()["result"]["number"].as_str().unwrap().to_owned(),
            by_hash().await.unwrap()["result"].is_object(),
            logs().await.unwrap()["result"].as_array().unwrap().len(),
        )
    };
    let is = |count: &str, receipt, head: &str, block, logs| {
        (count.to_owned(), receipt, head.to_owned(), block, logs)
    };
    assert_eq!(look().await, is("0x1", true, "0x4", true, 1));
    for (lag, due) in [
        (Lag { nonces: 3, ..Lag::default() }, is("0x0", true, "0x4", true, 1)),
        (Lag { receipts: 3, ..Lag::default() }, is("0x1", false, "0x4", true, 1)),
        (Lag { blocks: 3, ..Lag::default() }, is("0x1", true, "0x1", false, 1)),
        (Lag { logs: 3, ..Lag::default() }, is("0x1", true, "0x4", true, 0)),
        (Lag::all(2), is("0x1", true, "0x2", true, 1)),
        (Lag::all(3), is("0x0", false, "0x1", false, 0)),
    ] {
        proxy.lag(Some(lag));
        assert_eq!(look().await, due, "{lag:?}");
    }
    let future = ask(&proxy, "eth_getTransactionCount", json!([caller, "0x4"])).await.unwrap();
    assert_eq!(future["error"]["message"], "header not found");
    proxy.lag(None);
    assert_eq!(look().await, is("0x1", true, "0x4", true, 1));
}

#[tokio::test]
async fn the_pool_says_what_geth_says() {
    let (anvil, proxy) = stage().await;
    let account = anvil.accounts()[0].clone();
    let price = 2 * GWEI;
    let rules = PoolRules { per_account: 2, keeping: Keeping::Withhold, rounding: Rounding::Floor };
    proxy.pool_rules(Some(rules));
    let said = async |raw: &str| {
        let answer = send(&proxy.url(), raw).await;
        answer["error"]["message"].as_str().unwrap_or("taken").to_owned()
    };
    assert_eq!(said(&signed(0, price)).await, "taken");
    assert_eq!(said(&signed(0, price)).await, "already known");
    assert_eq!(said(&signed(0, price + 1)).await, "replacement transaction underpriced");
    assert_eq!(said(&signed(1, price)).await, "taken");
    assert_eq!(said(&signed(2, price)).await, "account limit exceeded: pooled 2 txs");
    // Money for one of them, and for all of them together.
    anvil.set_balance(&account, 21_000 * price).await;
    let words = "insufficient funds for gas * price + value";
    assert!(said(&signed(0, 2 * price)).await.starts_with(words));
    anvil.set_balance(&account, 2 * 21_000 * price + 10).await;
    let cumulative = said(&signed(0, 2 * price)).await;
    assert!(cumulative.contains("queued cost"), "{cumulative}");
    anvil.set_balance(&account, u128::MAX).await;
    assert_eq!(said(&signed(0, 2 * price)).await, "taken");
    assert_eq!(proxy.pooled().len(), 2, "it replaced the first");
    // Withheld: the node has none of them until one is handed over.
    assert_eq!(anvil.rpc("txpool_status", json!([])).await["pending"], "0x0");
    anvil.rpc(SEND, json!([signed(0, price)])).await;
    anvil.mine(1).await;
    assert_eq!(said(&signed(0, 3 * price)).await, "nonce too low: next nonce 1, tx nonce 0");
    assert_eq!(said("0x02").await, "rlp: value size exceeds available input length");
    proxy.pool_rules(Some(PoolRules { keeping: Keeping::LoseReplacements, ..rules }));
    assert_eq!(said(&signed(1, price)).await, "taken");
    assert_eq!(said(&signed(1, 2 * price)).await, "taken");
    let pending = anvil.rpc("txpool_content", json!([])).await;
    let kept = pending["pending"].as_object().unwrap().values().next().unwrap()["1"].clone();
    assert_eq!(kept["maxFeePerGas"], format!("{price:#x}"), "the first version");
}

#[tokio::test]
async fn a_proxy_over_two_is_a_load_balancer() {
    let (anvil, ahead) = stage().await;
    anvil.mine(9).await;
    let behind = FaultProxy::start(&anvil.url()).await;
    behind.lag(Some(Lag::all(5)));
    let balancer = FaultProxy::over(&[&ahead.url(), &behind.url()]).await;
    let mut heads = Vec::new();
    for _ in 0..4 {
        let head = ask(&balancer, "eth_blockNumber", json!([])).await.unwrap();
        heads.push(head["result"].as_str().unwrap().to_owned());
    }
    assert_eq!(heads, ["0x9", "0x4", "0x9", "0x4"]);
    poll_until(LIMIT, "both were asked", async || {
        (ahead.count("eth_blockNumber") == 2).then_some(())
    })
    .await;
}

/// A status, the seconds of `Retry-After`, and the code of the error in the body.
async fn refusal(proxy: &FaultProxy) -> (u16, Option<String>, Option<i64>) {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let body = call("eth_chainId", json!([]));
    let answer = http.post(proxy.url()).json(&body).send().await.unwrap();
    let retry = answer.headers().get("retry-after").map(|it| it.to_str().unwrap().to_owned());
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.unwrap_or_default();
    (status, retry, body["error"]["code"].as_i64())
}

#[tokio::test]
async fn f7_a_provider_without_quota_says_so_by_status_or_by_code() {
    let (_anvil, proxy) = stage().await;
    proxy.throttle(Times::Once, Some(7));
    assert_eq!(refusal(&proxy).await, (429, Some("7".to_owned()), None));
    proxy.throttle(Times::Once, None);
    assert_eq!(refusal(&proxy).await, (429, None, None));
    for status in [500, 502, 503] {
        proxy.break_down(Times::Once, status);
        assert_eq!(refusal(&proxy).await, (status, None, None));
    }
    proxy.exhaust(Times::Once);
    assert_eq!(refusal(&proxy).await, (200, None, Some(-32005)));
    assert_eq!(refusal(&proxy).await, (200, None, None), "lifted");
}

/// A chain with three logs in three blocks, and the receipt of the first.
async fn with_logs() -> (Anvil, FaultProxy, String) {
    let (anvil, proxy) = stage().await;
    let counter = anvil.deploy(&artefact("NaiveCounter"), "").await;
    let caller = anvil.accounts()[1].clone();
    let mut first = None;
    for n in 1..=3 {
        let hit = anvil.calldata("hit(uint256)", &[word(n)]).await;
        let hash = anvil.send(&caller, &counter, &hit, 0).await;
        anvil.mine(1).await;
        anvil.wait_for_receipt(&hash, LIMIT).await;
        first.get_or_insert(hash);
    }
    (anvil, proxy, first.unwrap())
}

#[tokio::test]
async fn f8_logs_are_cut_empty_and_repeated_and_f9_receipts_are_null() {
    let (_anvil, proxy, hash) = with_logs().await;
    let logs = async || {
        let found = ask(&proxy, "eth_getLogs", json!([{ "fromBlock": "0x0" }])).await.unwrap();
        let found = found["result"].as_array().unwrap().clone();
        found.iter().map(|log| log["logIndex"].clone()).collect::<Vec<_>>().len()
    };
    assert_eq!(logs().await, 3);
    proxy.cut_logs(Times::Once, 2);
    assert_eq!(logs().await, 2);
    proxy.empty_logs(Times::Once);
    assert_eq!(logs().await, 0);
    proxy.repeat_logs(Times::Once);
    assert_eq!(logs().await, 6);
    assert_eq!(logs().await, 3);
    let receipt = async || ask(&proxy, "eth_getTransactionReceipt", json!([hash])).await.unwrap();
    proxy.null_receipts(Times::Once);
    assert_eq!(receipt().await["result"], Value::Null);
    assert!(receipt().await["result"].is_object());
}

#[tokio::test]
async fn f10_ranges_that_are_too_long_are_refused_in_each_providers_words() {
    let (_anvil, proxy, _) = with_logs().await;
    let logs = async |from: &str, to: &str| {
        let filter = json!([{ "fromBlock": from, "toBlock": to }]);
        ask(&proxy, "eth_getLogs", filter).await.unwrap()
    };
    let mut said = Vec::new();
    for provider in Provider::ALL {
        let rule = proxy.limit_range(Times::UntilLifted, provider, 2);
        assert!(logs("0x1", "0x2").await["result"].is_array(), "{provider:?}");
        let refused = logs("0x1", "0x3").await;
        assert!(refused["result"].is_null() && refused["error"]["code"].is_i64(), "{refused}");
        assert!(logs("0x1", "latest").await["error"].is_object(), "{provider:?}");
        said.push(refused["error"].to_string());
        proxy.lift(rule);
        assert!(logs("0x1", "latest").await["result"].is_array());
    }
    assert!(said[0].contains("this block range should work: [0x1, 0x2]"), "{}", said[0]);
    said.sort();
    said.dedup();
    assert_eq!(said.len(), Provider::ALL.len(), "each has words of its own");
}
