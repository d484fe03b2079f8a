//! Many wrapped keys through the real server: made, listed, used at random, and what they cost. A few hundred
//! here; `make wrapped` makes 20,000 and prints the table.

#![cfg(feature = "server")]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support {
    pub mod pkcs11_faults;
    pub mod report;
    pub mod server;
    pub mod services;
}

use claviger::core::access::Role;
use claviger::core::key::{Custody, OperatorKey};
use claviger::ports::store::look;
use claviger::store::{OpenMode, open};
use ethers_core::types::{RecoveryMessage, Signature};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};
use support::pkcs11_faults::Pkcs11Faults;
use support::report::report;
use support::server::{BIN, ETHER, PAYEE, Server, SetUp, chain, hello_grant, payout_grants};
use support::services::poll_until;

const SUB: &str = "svc:payouts";

fn grants() -> String {
    [payout_grants("100000"), hello_grant("")].concat()
}

/// Runs an operator's command against this server.
fn command(set_up: &SetUp, server: &Server, arguments: &[&str]) -> Result<Value, String> {
    let address = |url: String| url.trim_start_matches("http://").to_owned();
    let ran = Command::new(BIN)
        .args(arguments)
        .arg("--config")
        .arg(set_up.config())
        .arg("--json")
        .env("CLAVIGER__SERVER__LISTEN", address(server.client_url()))
        .env("CLAVIGER__SERVER__ADMIN_LISTEN", address(server.admin_url()))
        .output()
        .unwrap();
    if ran.status.success() {
        return Ok(serde_json::from_slice(&ran.stdout).unwrap());
    }
    Err(String::from_utf8_lossy(&ran.stderr).into_owned())
}

fn make(set_up: &SetUp, server: &Server, count: usize) -> Value {
    let count = count.to_string();
    let arguments =
        ["key", "create", "--label", "w", "--group", "payments", "--custody", "wrapped"];
    let arguments = [arguments.as_slice(), &["--count", &count]].concat();
    command(set_up, server, &arguments).unwrap()
}

fn list(set_up: &SetUp, server: &Server) -> Vec<Value> {
    let arguments = ["key", "list", "--group", "payments", "--custody", "wrapped"];
    command(set_up, server, &arguments).unwrap()["keys"].as_array().unwrap().clone()
}

/// Not evenly spread, but the same in each run.
fn random(below: usize, seed: u64) -> usize {
    let hash = alloy::primitives::keccak256(seed.to_be_bytes());
    (u64::from_be_bytes(hash[..8].try_into().unwrap()) % below as u64) as usize
}

/// Signs a message with one key, and another implementation recovers its address.
async fn sign(server: &Server, address: &str, text: &str) -> Duration {
    let body = json!({ "signer": address, "message": { "text": text } });
    let begun = Instant::now();
    let signed = server.sign(SUB, Some(&text.replace(' ', "-")), &body).await;
    let took = begun.elapsed();
    assert_eq!(signed.status, 201, "{:#}", signed.body);
    let bytes = signed.body["signature"]["bytes"].as_str().unwrap();
    let signature: Signature = bytes.trim_start_matches("0x").parse().unwrap();
    let recovered = signature.recover(RecoveryMessage::from(text)).unwrap();
    assert_eq!(format!("{recovered:#x}"), address);
    took
}

/// The middle one and the hundredth worst, in milliseconds.
fn told(mut spans: Vec<Duration>) -> String {
    spans.sort();
    let at = |share: usize| spans[(spans.len() * share / 100).min(spans.len() - 1)].as_secs_f64();
    format!("{:6.1} {:6.1}", at(50) * 1e3, at(99) * 1e3)
}

fn memory_mb(server: &mut Server) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.program.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

/// One payment; answers how long it took, and its account.
async fn pay(server: &Server, signer: &str, wait: &str, tag: &str) -> (Duration, String) {
    let body = json!({ "chain": "local", "signer": signer, "to": PAYEE, "value": "1" });
    let token = server.token(SUB, Role::Client);
    let url = format!("{}/v1/transactions?wait={wait}", server.client_url());
    let begun = Instant::now();
    let answer = server.try_call(Method::POST, url, &token, Some(tag), Some(&body)).await.unwrap();
    let took = begun.elapsed();
    assert_eq!(answer.status, 201, "{:#}", answer.body);
    if wait != "0" {
        assert!(answer.body["attempts"][0]["hash"].is_string(), "{:#}", answer.body);
    }
    (took, answer.body["address"].as_str().unwrap().to_owned())
}

/// Every key has one leaf, which says what is in its row.
async fn assert_leaves(set_up: &SetUp, expected: usize) {
    let store = open(set_up.store_url(), OpenMode::Existing).await.unwrap();
    let (keys, leaves) = look(&*store, "leaves", |unit| {
        Box::pin(async move { Ok((unit.keys().await?, unit.log_leaves(0, i64::MAX).await?)) })
    })
    .await
    .unwrap();
    let keys: Vec<OperatorKey> = keys;
    assert_eq!(keys.len(), expected);
    let mut created = std::collections::BTreeMap::new();
    for leaf in leaves.iter().filter(|leaf| leaf.kind == "KEY_CREATED") {
        let text: Value = serde_json::from_slice(&leaf.bytes).unwrap();
        assert!(created.insert(leaf.subject.clone(), text).is_none());
    }
    for key in &keys {
        let Custody::Wrapped(wrapped) = &key.custody else { panic!("{key:?}") };
        assert_eq!(wrapped.blob.len(), 72);
        let leaf = &created[&key.id.to_string()];
        assert_eq!(leaf["custody"], "wrapped");
        assert_eq!(leaf["label"], key.label);
        assert_eq!(leaf["address"], format!("{:#x}", key.address));
        assert_eq!(leaf["wrapping_key"], format!("0x{}", hex::encode(wrapped.under.as_bytes())));
        assert_eq!(leaf["wrapped_sha256"], hex::encode(Sha256::digest(&wrapped.blob)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_wrapped_keys_are_made_listed_and_sign_and_a_start_does_not_wait_for_them() {
    let all = std::env::var("CLAVIGER_WRAPPED_KEYS").ok().filter(|number| !number.is_empty());
    let all: usize = all.map_or(300, |number| number.parse().unwrap());
    let signatures = if all > 1_000 { 400 } else { 40 };
    let anvil = chain().await;
    let set_up = SetUp::new(&anvil.url(), None, &grants());
    let mut server = set_up.start(&[]).await;
    report(
        "wrapped:  keys  made/s  list s  start s  rss MB   sign ms p50 p99  accept ms p50 p99  signed ms p50 p99",
    );
    let steps = [10, 1_000, 5_000].into_iter().filter(|step| *step < all).chain([all]);
    let mut before = 0;
    for step in steps {
        let begun = Instant::now();
        let made = make(&set_up, &server, step);
        let rate = (step - before) as f64 / begun.elapsed().as_secs_f64();
        assert_eq!(made, json!({ "made": step - before, "there_before": before }));
        // The same command makes no key twice.
        assert_eq!(make(&set_up, &server, step), json!({ "made": 0, "there_before": step }));
        server.checkpoint().await;

        server.stop().await;
        let begun = Instant::now();
        server = set_up.start(&[]).await;
        let start = begun.elapsed().as_secs_f64();

        let begun = Instant::now();
        let keys = list(&set_up, &server);
        let listed = begun.elapsed().as_secs_f64();
        let address = |key: &Value| key["address"].as_str().unwrap().to_owned();
        let addresses: Vec<String> = keys.iter().map(address).collect();
        assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), step);
        let labels: BTreeSet<_> = keys.iter().map(|key| key["label"].as_str().unwrap()).collect();
        assert!((1..=step).all(|number| labels.contains(format!("w-{number}").as_str())));
        assert!(keys.iter().all(|key| key["custody"] == "wrapped" && key.get("wrapped").is_none()));

        let mut signed = Vec::new();
        for number in 0..signatures {
            let key = &addresses[random(step, number)];
            signed.push(sign(&server, key, &format!("hello {step} {number}")).await);
        }
        // Only the accounts that pay get money: a development node computes its whole state for each block.
        let (mut first, mut accepted, mut poor) = (Vec::new(), Vec::new(), BTreeSet::new());
        for number in 0..signatures / 4 {
            let address = &addresses[random(step, 1_000_000 + number)];
            anvil.set_balance(address, ETHER).await;
            first.push(pay(&server, address, "20s", &format!("signed-{step}-{number}")).await.0);
            let tag = format!("accepted-{step}-{number}");
            let (took, address) = pay(&server, "payments", "0", &tag).await;
            accepted.push(took);
            poor.insert(address);
        }
        for address in poor {
            anvil.set_balance(&address, ETHER).await;
        }
        report(&format!(
            "wrapped:{step:6}  {rate:6.0}  {listed:6.2}  {start:7.2}  {:6.0}    {}     {}      {}",
            memory_mb(&mut server),
            told(signed),
            told(accepted),
            told(first),
        ));
        // What flies is mined before the next step.
        poll_until(Duration::from_secs(120), "nothing flies", async || {
            anvil.mine(1).await;
            let open = ["queued", "submitted", "mined"];
            let mut count = 0.0;
            for status in open {
                count += server.metric("claviger_transactions", &[("status", status)]).await;
            }
            (count == 0.0).then_some(())
        })
        .await;
        before = step;
    }
    // Only accounts that were used have gauges, or all in one.
    let text = server.metrics().await;
    let series = text.lines().filter(|line| line.starts_with("claviger_lane_in_flight{")).count();
    assert!(series <= 257, "{series}");
    server.checkpoint().await;
    server.stop().await;
    assert_leaves(&set_up, all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_listed_by_pages_on_both_listeners_and_bad_filters_are_refused() {
    let anvil = chain().await;
    let set_up = SetUp::new(&anvil.url(), None, &grants());
    let server = set_up.start(&[]).await;
    server.key("object", Some("payments"), "managed").await;
    make(&set_up, &server, 4);
    let call = async |base: String, query: &str, role| {
        let token = server.token("dev:op", role);
        server.try_call(Method::GET, format!("{base}{query}"), &token, None, None).await.unwrap()
    };
    let (admin, client) = (
        format!("{}/admin/v1/keys", server.admin_url()),
        format!("{}/v1/keys", server.client_url()),
    );
    for base in [&admin, &client] {
        let (mut cursor, mut found) = (String::new(), Vec::new());
        loop {
            let page = call(base.clone(), &format!("?limit=2{cursor}"), Role::Operator).await.ok();
            let keys = page["keys"].as_array().unwrap();
            assert!(keys.len() <= 2);
            found.extend(keys.iter().map(|key| key["label"].as_str().unwrap().to_owned()));
            let Some(next) = page["next_cursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(found[0], "object", "oldest first");
        assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), 5);
        let wrapped = call(base.clone(), "?custody=wrapped&group=payments", Role::Auditor).await;
        assert_eq!(wrapped.ok()["keys"].as_array().unwrap().len(), 4);
        let tokens = call(base.clone(), "?custody=token&hsm=default", Role::Auditor).await.ok();
        assert_eq!(tokens["keys"][0]["custody"], "token");
        for (query, field) in [
            ("?limit=0", "limit"),
            ("?limit=1001", "limit"),
            ("?cursor=x", "cursor"),
            ("?custody=paper", "custody"),
            ("?state=gone", "state"),
            ("?colour=red", "colour"),
        ] {
            let refused = call(base.clone(), query, Role::Operator).await;
            assert_eq!((refused.status, &refused.body["field"]), (400, &json!(field)), "{query}");
        }
        assert_eq!(call(base.clone(), "", Role::Client).await.status, 403);
    }
    let token = server.token("dev:op", Role::Operator);
    let body = json!({ "label": "x", "custody": "paper" });
    let made = server.try_call(Method::POST, admin, &token, None, Some(&body)).await.unwrap();
    assert_eq!((made.status, &made.body["field"]), (400, &json!("custody")));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_with_the_wrapped_bytes_of_another_key_signs_nothing() {
    let anvil = chain().await;
    let set_up = SetUp::new(&anvil.url(), None, &grants());
    let server = set_up.start(&[]).await;
    make(&set_up, &server, 3);
    let keys = list(&set_up, &server);
    let address = |label: &str| {
        let key = keys.iter().find(|key| key["label"] == label).unwrap();
        key["address"].as_str().unwrap().to_owned()
    };
    sign(&server, &address("w-1"), "hello before").await;
    server.stop().await;
    let mut database = {
        use sqlx::Connection as _;
        sqlx::SqliteConnection::connect(set_up.store_url()).await.unwrap()
    };
    let swap = "UPDATE operator_keys SET wrapped = (SELECT wrapped FROM operator_keys \
        WHERE label = 'w-2') WHERE label = 'w-1'";
    let bend = "UPDATE operator_keys SET wrapped = x'0102030405060708' WHERE label = 'w-3'";
    for change in [swap, bend] {
        assert_eq!(sqlx::query(change).execute(&mut database).await.unwrap().rows_affected(), 1);
    }
    drop(database);
    let server = set_up.start(&[]).await;
    for label in ["w-1", "w-3"] {
        let body = json!({ "signer": address(label), "message": { "text": "hello swapped" } });
        let answer = server.sign(SUB, Some(label), &body).await;
        assert_eq!(answer.status, 202, "{:#}", answer.body);
        assert!(answer.body.get("signature").is_none(), "{:#}", answer.body);
    }
    sign(&server, &address("w-2"), "hello after").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_unwraps_as_often_for_many_keys_as_for_none() {
    let anvil = chain().await;
    let set_up = SetUp::new(&anvil.url(), None, &grants());
    let faults = Pkcs11Faults::new();
    let mut unwrapped = Vec::new();
    // How many there are at the end of each start.
    for keys in [0, 1, 30] {
        let before = faults.count_of("C_UnwrapKey");
        faults.set("C_UnwrapKey LOG");
        let server = set_up.start(&faults.envs()).await;
        unwrapped.push(faults.count_of("C_UnwrapKey") - before);
        faults.clear();
        if keys > 0 {
            make(&set_up, &server, keys);
        }
        server.stop().await;
    }
    let before = faults.count_of("C_UnwrapKey");
    faults.set("C_UnwrapKey LOG");
    let server = set_up.start(&faults.envs()).await;
    unwrapped.push(faults.count_of("C_UnwrapKey") - before);
    report(&format!("wrapped: C_UnwrapKey at a start with 0, 0, 1 and 30 keys: {unwrapped:?}"));
    // The wrapping key is tried out; the keys are not.
    assert!(unwrapped[0] > 0 && unwrapped.iter().all(|count| *count == unwrapped[0]));
    // A key is unwrapped when it signs, so that this counts what it says.
    let before = faults.count_of("C_UnwrapKey");
    sign(&server, list(&set_up, &server)[0]["address"].as_str().unwrap(), "hello once").await;
    assert_eq!(faults.count_of("C_UnwrapKey"), before + 1);
    server.stop().await;
}
