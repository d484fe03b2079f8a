//! What is wrong with a request is told in a problem document with a stable code, and leaves nothing half done:
//! no row, no leaf but a denial, nothing held, no key bound.

#![cfg(feature = "server")]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support {
    pub mod server;
    pub mod services;
}

use claviger::core::access::Role;
use claviger::core::principal::Principal;
use claviger::core::time::Timestamp;
use claviger::ports::store::{Filter, look};
use claviger::store::{self, OpenMode};
use futures::future::join_all;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;
use support::server::{ETHER, LIMIT, STRANGER, Server, SetUp, chain, payout, payout_grants};
use support::services::poll_until;

const SUB: &str = "svc:payouts";

/// Everything that a request could leave behind, but denials.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    transactions: usize,
    leaves: Vec<String>,
    held: Vec<String>,
    bound: bool,
}

async fn traces(setup: &SetUp, server: &Server, key: &str) -> Traces {
    server.checkpoint().await;
    let store = store::open(setup.store_url(), OpenMode::Reading).await.unwrap();
    let scope = Principal { iss: "claviger-dev".to_owned(), sub: SUB.to_owned() }.scope();
    let key = key.to_owned();
    look(&*store, "traces", move |unit| {
        let (scope, key) = (scope.clone(), key.clone());
        Box::pin(async move {
            let all = Filter { limit: 100, ..Filter::default() };
            let leaves = unit.log_leaves(0, i64::MAX).await?;
            let leaves = leaves.into_iter().map(|leaf| leaf.kind);
            let limits = unit.limits_now(Timestamp::from_millis(0)).await?;
            Ok(Traces {
                transactions: unit.transactions(&all).await?.len(),
                leaves: leaves.filter(|kind| kind != "DENIED").collect(),
                held: limits
                    .iter()
                    .map(|limit| format!("{} {}", limit.held, limit.spent))
                    .collect(),
                bound: unit.bound_key(&scope, &key).await?.is_some(),
            })
        })
    })
    .await
    .unwrap()
}

/// A request for a transaction, its key and its body as they are.
async fn post(server: &Server, keys: &[&[u8]], body: String) -> reqwest::Response {
    let url = format!("{}/v1/transactions", server.client_url());
    let http = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
    let token = server.token(SUB, Role::Client);
    let mut request = http.post(url).bearer_auth(token).header(CONTENT_TYPE, "application/json");
    for key in keys {
        request = request.header("idempotency-key", *key);
    }
    request.body(body).send().await.expect("an answer")
}

/// Whether it is a problem document with these; gives it.
async fn problem(answer: reqwest::Response, status: u16, code: &str, field: &str) -> Value {
    let (found, media) = (answer.status().as_u16(), answer.headers().get(CONTENT_TYPE).cloned());
    let body: Value = answer.json().await.expect("JSON");
    assert_eq!((found, &body["code"]), (status, &json!(code)), "{body:#}");
    assert_eq!(media.unwrap(), "application/problem+json", "{body:#}");
    assert_eq!(body["type"], format!("urn:claviger:problem:{code}"));
    assert_eq!(body["status"], status);
    assert!(body["title"].is_string() && body["detail"].is_string(), "{body:#}");
    assert!(body["request_id"].is_string(), "{body:#}");
    assert_eq!(body["field"].as_str().unwrap_or_default(), field, "{body:#}");
    body
}

/// What is wrong, the idempotency keys, the body; the status, the code and the field of the problem.
type Bad<'a> = (&'a str, Vec<&'a [u8]>, String, u16, &'a str, &'a str);

#[tokio::test]
async fn what_is_wrong_with_a_request_is_told_and_leaves_nothing_half_done() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("5.0"));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let ungranted = server.key("op-2", None, "managed").await;
    let external = server.key("op-3", Some("payments"), "external").await;
    let with = |field: &str, value: Value| {
        let mut body = payout(1);
        body[field] = value;
        body.to_string()
    };
    let plain = payout(1).to_string();
    let long = [b'k'; 256];
    let invalid = "invalid-request";
    let key = "Idempotency-Key";
    let table: Vec<Bad> = vec![
        ("unknown chain", vec![b"1"], with("chain", json!("mars")), 400, invalid, "chain"),
        (
            "a chain by another id",
            vec![b"1"],
            with("chain", json!("eip155:1")),
            400,
            invalid,
            "chain",
        ),
        ("unknown signer", vec![b"1"], with("signer", json!("nobody")), 400, invalid, "signer"),
        (
            "a signer that is no key",
            vec![b"1"],
            with("signer", json!(STRANGER)),
            400,
            invalid,
            "signer",
        ),
        (
            "a signer that gets its nonces elsewhere",
            vec![b"1"],
            with("signer", json!(external)),
            400,
            invalid,
            "signer",
        ),
        (
            "a signer not allowed",
            vec![b"1"],
            with("signer", json!(ungranted)),
            403,
            "policy-denied",
            "",
        ),
        ("gas below intrinsic", vec![b"1"], with("gas", json!("20999")), 400, invalid, "gas"),
        (
            "a deadline in the past",
            vec![b"1"],
            with("not_after", json!("2020-01-01T00:00:00Z")),
            400,
            invalid,
            "not_after",
        ),
        (
            "a fee cap below the market",
            vec![b"1"],
            with("max_fee_per_gas", json!("1")),
            400,
            invalid,
            "max_fee_per_gas",
        ),
        (
            "value above the grant",
            vec![b"1"],
            with("value", json!((2 * ETHER).to_string())),
            403,
            "policy-denied",
            "",
        ),
        (
            "value of 257 bits",
            vec![b"1"],
            with("value", json!(format!("1{}", "0".repeat(78)))),
            400,
            invalid,
            "value",
        ),
        ("no key", vec![], plain.clone(), 400, invalid, key),
        ("an empty key", vec![b""], plain.clone(), 400, invalid, key),
        ("a key of 256", vec![&long], plain.clone(), 400, invalid, key),
        ("a key with a tab", vec![b"a\tb"], plain.clone(), 400, invalid, key),
        ("a key with a space", vec![b"a b"], plain.clone(), 400, invalid, key),
        ("a key beyond ASCII", vec![b"caf\xe9"], plain.clone(), 400, invalid, key),
        ("two keys", vec![b"1", b"1"], plain.clone(), 400, invalid, key),
        ("not JSON", vec![b"1"], "{".to_owned(), 400, invalid, "body"),
        ("no UTF-8", vec![b"1"], "\"\\ud800\"".to_owned(), 400, invalid, "body"),
    ];
    let before = traces(&setup, &server, "1").await;
    assert_eq!((before.transactions, before.bound), (0, false));
    for (what, keys, body, status, code, field) in table {
        println!("{what}");
        let answer = post(&server, &keys, body).await;
        problem(answer, status, code, field).await;
        assert_eq!(traces(&setup, &server, "1").await, before, "{what}");
    }
    // The longest key that is good, and the key of all those refusals, are still free.
    for key in [long[1..].to_vec(), b"1".to_vec()] {
        assert_eq!(post(&server, &[&key], plain.clone()).await.status().as_u16(), 201);
    }
}

#[tokio::test]
async fn what_the_account_cannot_pay_for_is_parked_or_refused_as_configured() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("5.0"));
    let server = setup.start(&[("CLAVIGER__CHAIN__0__OVER_BALANCE", "refuse")]).await;
    let address = server.key("op-1", Some("payments"), "managed").await;
    anvil.set_balance(&address, ETHER).await;
    let body = payout(ETHER).to_string();
    let before = traces(&setup, &server, "over").await;
    let refused =
        problem(post(&server, &[b"over"], body.clone()).await, 409, "insufficient-balance", "")
            .await;
    let detail = refused["detail"].as_str().unwrap();
    assert!(detail.contains(&ETHER.to_string()), "{detail}");
    assert_eq!(traces(&setup, &server, "over").await, before, "not even its key is bound");
    // With the money for its gas too, the same request under the same key is good.
    anvil.set_balance(&address, 2 * ETHER).await;
    let good = poll_until(LIMIT, "the balance is read again", async || {
        let answer = post(&server, &[b"over"], body.clone()).await;
        (answer.status().as_u16() != 409).then_some(answer)
    })
    .await;
    assert_eq!(good.status().as_u16(), 201);
    server.stop().await;

    let server = setup.start(&[]).await;
    let parked: Value = post(&server, &[b"park"], body.clone()).await.json().await.unwrap();
    let parked = poll_until(LIMIT, "it says what it waits for", async || {
        let found = server.read(parked["id"].as_str().unwrap()).await;
        (found["waiting"]["code"] == "unfunded").then_some(found)
    })
    .await;
    assert_eq!((&parked["status"], &parked["nonce"]), (&json!("queued"), &Value::Null));
    let detail = parked["waiting"]["detail"].as_str().unwrap();
    assert!(detail.contains("needs") && detail.contains("has"), "{detail}");
    anvil.set_balance(&address, 10 * ETHER).await;
    let done = server.wait_for(parked["id"].as_str().unwrap(), &["mined", "finalized"]).await;
    assert_eq!(done["nonce"], "1");
}

/// Sends bytes as they are, and reads the answer meanwhile, to its end or until the server closes: it may
/// answer and close before all of it was sent, and what a client has not read by then can be lost.
fn raw(server: &Server, head: &str, body: &[u8]) -> String {
    let place = server.client_url().replace("http://", "");
    let mut stream = TcpStream::connect(&place).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let token = server.token(SUB, Role::Client);
    let common = format!(
        "POST /v1/transactions HTTP/1.1\r\nhost: {place}\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\nconnection: close\r\n{head}\r\n\r\n"
    );
    let mut reading = stream.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let mut answer = Vec::new();
        let mut part = [0; 4096];
        while let Ok(count @ 1..) = reading.read(&mut part) {
            answer.extend_from_slice(&part[..count]);
        }
        answer
    });
    stream.write_all(common.as_bytes()).unwrap();
    let _ = stream.write_all(body);
    let answer = reader.join().unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_megabytes_are_refused_before_they_are_read() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("5.0"));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let before = traces(&setup, &server, "big").await;
    let too_large = |answer: &str| {
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert!(answer.contains("content-type: application/problem+json"), "{answer}");
        assert!(answer.contains("\"code\":\"too-large\""), "{answer}");
    };
    let announced = "idempotency-key: big\r\ncontent-length: 10485760";
    // Not one byte of it is sent, so the answer came before any was read.
    too_large(&raw(&server, announced, b""));
    // Without a length it is cut where it becomes too long: the end never comes.
    let chunk = [format!("{:x}\r\n", 512 * 1024).into_bytes(), vec![b' '; 512 * 1024]].concat();
    too_large(&raw(&server, "idempotency-key: big\r\ntransfer-encoding: chunked", &chunk));
    // All of it, as an honest client would.
    too_large(&raw(&server, announced, &vec![b' '; 10 * 1024 * 1024]));
    // Bytes that no HTTP header may have are no request at all: a bare 400.
    for byte in ["\x01", "\x7f", "\0"] {
        let head = format!("idempotency-key: big{byte}\r\ncontent-length: 2");
        let answer = raw(&server, &head, b"{}");
        assert!(answer.starts_with("HTTP/1.1 400 "), "{byte:?} {answer}");
    }
    assert_eq!(traces(&setup, &server, "big").await, before);
}

/// The most memory that the server has had, in KiB.
fn memory_max_kib(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.program.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_parallel_duplicates_are_one_transaction() {
    const COUNT: usize = 10_000;
    /// More than the listener takes in hand at once.
    const AT_ONCE: usize = 530;
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("5.0"));
    let server = setup.start(&[]).await;
    let address = server.funded_key(&anvil, "op-1").await;
    let before = memory_max_kib(&server);
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(120)).build();
    let (http, room) = (http.unwrap(), Arc::new(tokio::sync::Semaphore::new(AT_ONCE)));
    let (url, token) =
        (format!("{}/v1/transactions", server.client_url()), server.token(SUB, Role::Client));
    let body = payout(ETHER).to_string();
    let tasks: Vec<_> = (0..COUNT)
        .map(|_| {
            let request =
                http.post(&url).bearer_auth(&token).header(CONTENT_TYPE, "application/json");
            let request = request.header("idempotency-key", "same").body(body.clone());
            let room = room.clone();
            async move {
                let _place = room.acquire_owned().await.unwrap();
                let mut busy = 0;
                let (status, body) = poll_until(LIMIT, "it is answered", async || {
                    let answer = request.try_clone().unwrap().send().await.expect("an answer");
                    let says_when = answer.headers().contains_key(RETRY_AFTER);
                    let status = answer.status().as_u16();
                    let body = answer.json::<Value>().await.unwrap();
                    if status != 503 {
                        return Some((status, body));
                    }
                    assert!(says_when && body["code"] == "overloaded", "{body:#}");
                    busy += 1;
                    None
                })
                .await;
                (status, body, busy)
            }
        })
        .collect();
    let (mut new, mut again, mut busy, mut ids) = (0, 0, 0, BTreeSet::new());
    for (status, body, times) in join_all(tasks).await {
        busy += times;
        match status {
            201 => new += 1,
            200 => again += 1,
            other => panic!("{other} {body:#}"),
        }
        ids.insert(body["id"].as_str().unwrap().to_owned());
    }
    let more = memory_max_kib(&server).saturating_sub(before);
    println!("{new} new, {again} the same, {busy} times overloaded, {more} KiB more");
    assert_eq!((new, ids.len(), new + again), (1, 1, COUNT));
    assert!(more < 128 * 1024, "{more} KiB more");
    let id = ids.pop_first().unwrap();
    server.wait_for(&id, &["mined", "finalized"]).await;
    assert_eq!((server.list().await.len(), anvil.nonce(&address).await), (1, 1));
    let traces = traces(&setup, &server, "same").await;
    assert_eq!(traces.transactions, 1, "{traces:?}");
    let decided = traces.leaves.iter().filter(|kind| *kind == "DECIDED").count();
    assert_eq!((decided, traces.bound), (1, true), "{traces:?}");
}
