//! The main job as programs: a request is judged, signed in the HSM, mined; and what a crash at the worst
//! moments leaves.

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

use claviger::ports::store::look;
use ethers_core::types::transaction::eip2718::TypedTransaction;
use ethers_core::utils::rlp::Rlp;
use futures::future::join_all;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use support::server::{ETHER, LIMIT, PAYEE, STRANGER, Server, SetUp, payout, payout_grants};
use support::services::{Anvil, AnvilOptions, Mining, Postgres, poll_until};

const SUB: &str = "svc:payouts";
/// In a block, final or not.
const MINED: &[&str] = &["mined", "finalized"];

async fn chain(mining: Mining) -> Anvil {
    let slots_in_an_epoch = Some(1);
    Anvil::start(AnvilOptions { mining, slots_in_an_epoch, ..AnvilOptions::default() }).await
}

/// Mines until the block of a mined transaction is final.
async fn finalize(anvil: &Anvil, server: &Server, id: &str) -> Value {
    server.wait_for(id, MINED).await;
    anvil.mine(4).await;
    server.wait_for(id, &["finalized"]).await
}

/// Sender, nonce, recipient, value of signed bytes, by an implementation that is not ours.
fn decoded(raw: &str) -> (String, TypedTransaction) {
    let bytes = hex::decode(raw.trim_start_matches("0x")).unwrap();
    let (tx, signature) = TypedTransaction::decode_signed(&Rlp::new(&bytes)).unwrap();
    let sender = signature.recover(tx.sighash()).unwrap();
    (format!("{sender:?}"), tx)
}

/// The attempts that are signed.
fn attempts(tx: &Value) -> Vec<Value> {
    let all = tx["attempts"].as_array().unwrap().iter();
    all.filter(|attempt| attempt["hash"].is_string()).cloned().collect()
}

async fn a_payout_is_signed_mined_and_final(store_url: Option<String>) {
    let anvil = chain(Mining::Auto).await;
    let setup = SetUp::new(&anvil.url(), store_url.as_deref(), &payout_grants("100.0"));
    let server = setup.start(&[]).await;
    let address = server.funded_key(&anvil, "op-1").await;
    let before = anvil.balance(PAYEE).await;

    let answer = server.ask(SUB, "order-1", &payout(ETHER)).await;
    assert_eq!(answer.status, 201, "{:#}", answer.body);
    let attempt = &attempts(&answer.body)[0];
    let (sender, tx) = decoded(attempt["raw"].as_str().unwrap());
    assert_eq!(sender, address);
    assert_eq!(format!("{:?}", tx.to_addr().unwrap()), PAYEE);
    assert_eq!(tx.value().unwrap().as_u128(), ETHER);
    assert_eq!(tx.chain_id().unwrap().as_u64(), 31337);

    let done = finalize(&anvil, &server, &answer.id()).await;
    assert_eq!(done["receipt"]["transaction_hash"], attempt["hash"]);
    assert_eq!(done["receipt"]["success"], true);
    assert_eq!(anvil.balance(PAYEE).await - before, ETHER);

    let again = server.ask(SUB, "order-1", &payout(ETHER)).await;
    assert_eq!((again.status, again.id()), (200, answer.id()));
    assert_eq!(again.body["status"], "finalized");
    assert_eq!(anvil.nonce(&address).await, 1);

    let (size, root) = server.checkpoint().await;
    server.stop().await;
    audit_is_as_told(&setup, size, &root).await;
}

/// The log as stored has the root that was told, and every signature was decided before (I9).
async fn audit_is_as_told(setup: &SetUp, size: u64, root: &str) {
    let store = setup.store().await;
    let leaves =
        look(&*store, "leaves", |unit| Box::pin(async move { unit.log_leaves(0, i64::MAX).await }))
            .await
            .unwrap();
    assert_eq!(leaves.len() as u64, size);
    let mut tree = ct_merkle::mem_backed_tree::MemoryBackedTree::<sha2_for_ct::Sha256, _>::new();
    let mut decided = BTreeSet::new();
    for leaf in &leaves {
        tree.push(leaf.bytes.clone());
        let told: Value = serde_json::from_slice(&leaf.bytes).unwrap();
        let attempt = (leaf.subject.clone(), told["attempt"].to_string());
        match leaf.kind.as_str() {
            "DECIDED" => assert!(decided.insert((attempt, told["digest"].to_string()))),
            "SIGNED" => {
                assert!(decided.contains(&(attempt, told["digest"].to_string())), "{told:#}");
            }
            _ => {}
        }
    }
    assert_eq!(format!("0x{}", hex::encode(tree.root().as_bytes())), root);
}

#[tokio::test]
async fn a_payout_is_signed_mined_and_final_on_sqlite() {
    a_payout_is_signed_mined_and_final(None).await;
}

#[tokio::test]
async fn a_payout_is_signed_mined_and_final_on_postgres() {
    let url = Postgres::shared().await.create_database();
    a_payout_is_signed_mined_and_final(Some(url)).await;
}

#[tokio::test]
async fn t8_one_key_a_hundred_times_in_parallel_is_one_transaction_and_another_body_is_409() {
    let anvil = chain(Mining::Auto).await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("100.0"));
    let server = setup.start(&[]).await;
    for label in ["op-1", "op-2"] {
        server.funded_key(&anvil, label).await;
    }
    let before = anvil.balance(PAYEE).await;
    let same = payout(ETHER);
    let other = payout(ETHER / 2);
    let first = server.ask(SUB, "t8", &same).await;
    let asks = (0..100).map(|n| {
        let body = if n == 50 { &other } else { &same };
        server.ask(SUB, "t8", body)
    });
    let answers = join_all(asks).await;
    let ids: BTreeSet<String> =
        answers.iter().filter(|answer| answer.status == 200).map(|answer| answer.id()).collect();
    assert_eq!(ids, BTreeSet::from([first.id()]));
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status != 200).collect();
    assert_eq!(refused.len(), 1);
    assert_eq!((refused[0].status, refused[0].code()), (409, "idempotency-mismatch"));
    assert_eq!(refused[0].body["resource"], first.id());
    finalize(&anvil, &server, &first.id()).await;
    assert_eq!(server.list().await.len(), 1);
    assert_eq!(anvil.balance(PAYEE).await - before, ETHER);
}

/// As T8, but nothing is bound yet when the hundred arrive.
async fn t8_a_race_for_a_new_key(store_url: Option<String>) {
    let anvil = chain(Mining::Auto).await;
    let setup = SetUp::new(&anvil.url(), store_url.as_deref(), &payout_grants("100.0"));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let before = anvil.balance(PAYEE).await;
    let body = payout(ETHER);
    let answers = join_all((0..100).map(|_| server.ask(SUB, "race", &body))).await;
    let created = answers.iter().filter(|answer| answer.status == 201).count();
    assert_eq!(created, 1);
    assert!(answers.iter().all(|answer| [200, 201].contains(&answer.status)));
    finalize(&anvil, &server, &answers[0].id()).await;
    assert_eq!(server.list().await.len(), 1);
    assert_eq!(anvil.balance(PAYEE).await - before, ETHER);
}

#[tokio::test]
async fn t8_a_race_for_a_new_key_on_sqlite() {
    t8_a_race_for_a_new_key(None).await;
}

#[tokio::test]
async fn t8_a_race_for_a_new_key_on_postgres() {
    t8_a_race_for_a_new_key(Some(Postgres::shared().await.create_database())).await;
}

#[tokio::test]
async fn parallel_requests_pass_a_window_exactly_as_often_as_it_holds() {
    let anvil = chain(Mining::Auto).await;
    // Three payouts of one ether and the caps of their fees fit; a fourth does not.
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("3.5"));
    let server = setup.start(&[]).await;
    for label in ["op-1", "op-2", "op-3"] {
        server.funded_key(&anvil, label).await;
    }
    let before = anvil.balance(PAYEE).await;
    let body = payout(ETHER);
    let keys: Vec<String> = (0..40).map(|n| format!("window-{n}")).collect();
    let answers = join_all(keys.iter().map(|key| server.ask(SUB, key, &body))).await;
    let passed: Vec<_> = answers.iter().filter(|answer| answer.status == 201).collect();
    assert_eq!(passed.len(), 3);
    for refused in answers.iter().filter(|answer| answer.status != 201) {
        assert_eq!((refused.status, refused.code()), (403, "policy-denied"), "{:#}", refused.body);
        let field = refused.body["reasons"][0]["field"].as_str().unwrap();
        assert!(field.starts_with("windows"), "{field}");
    }
    for answer in &passed {
        finalize(&anvil, &server, &answer.id()).await;
    }
    // Settled is not released: what was paid stays counted for its span.
    let late = server.ask(SUB, "late", &body).await;
    assert_eq!(late.code(), "policy-denied");
    assert_eq!(anvil.balance(PAYEE).await - before, 3 * ETHER);
}

#[tokio::test]
async fn a_fee_spike_forces_a_second_attempt_with_the_same_nonce() {
    let anvil = chain(Mining::Manual).await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("100.0"));
    let server = setup.start(&[("CLAVIGER__CHAIN__0__RESEND_AFTER", "1s")]).await;
    let address = server.funded_key(&anvil, "op-1").await;
    let answer = server.ask(SUB, "spike", &payout(ETHER)).await;
    let first = attempts(&answer.body)[0].clone();
    let spike = first["max_fee_per_gas"].as_str().unwrap().parse::<u128>().unwrap() + 1;
    let replaced = poll_until(LIMIT, "a second attempt", async || {
        // The first attempt cannot pay this; each block raises the price again.
        anvil.rpc("anvil_setNextBlockBaseFeePerGas", json!([format!("{spike:#x}")])).await;
        anvil.mine(1).await;
        let found = server.read(&answer.id()).await;
        (attempts(&found).len() > 1).then_some(found)
    })
    .await;
    let all = attempts(&replaced);
    let number =
        |attempt: &Value, field: &str| attempt[field].as_str().unwrap().parse::<u128>().unwrap();
    for pair in all.windows(2) {
        for field in ["max_fee_per_gas", "max_priority_fee_per_gas"] {
            let (old, new) = (number(&pair[0], field), number(&pair[1], field));
            assert!(new >= (old * 110).div_ceil(100), "{field}: {old} then {new}");
        }
        let nonces = pair.iter().map(|a| decoded(a["raw"].as_str().unwrap()).1.nonce().cloned());
        assert_eq!(nonces.collect::<BTreeSet<_>>().len(), 1, "one nonce");
    }
    let mined = poll_until(LIMIT, "mined", async || {
        anvil.mine(1).await;
        let found = server.read(&answer.id()).await;
        (found["status"] == "mined" || found["status"] == "finalized").then_some(found)
    })
    .await;
    assert_ne!(mined["receipt"]["transaction_hash"], first["hash"]);
    assert_eq!(anvil.nonce(&address).await, 1);
}

#[tokio::test]
async fn a_lost_transaction_is_sent_again_with_the_same_bytes() {
    let anvil = chain(Mining::Manual).await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("100.0"));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let answer = server.ask(SUB, "lost", &payout(ETHER)).await;
    let hash = attempts(&answer.body)[0]["hash"].as_str().unwrap().to_owned();
    poll_until(LIMIT, "in the pool", async || {
        let found = anvil.rpc("eth_getTransactionByHash", json!([hash])).await;
        (!found.is_null()).then_some(())
    })
    .await;
    anvil.rpc("anvil_dropTransaction", json!([hash])).await;
    poll_until(LIMIT, "in the pool again", async || {
        let found = anvil.rpc("eth_getTransactionByHash", json!([hash])).await;
        (!found.is_null()).then_some(())
    })
    .await;
    anvil.mine(1).await;
    let done = finalize(&anvil, &server, &answer.id()).await;
    assert_eq!(attempts(&done).len(), 1);
}

#[tokio::test]
async fn work_is_spread_over_the_group_and_every_lane_is_gapless() {
    let anvil = chain(Mining::Auto).await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("100.0"));
    let server = setup.start(&[]).await;
    let mut addresses = Vec::new();
    for n in 0..3 {
        addresses.push(server.funded_key(&anvil, &format!("op-{n}")).await);
    }
    let body = payout(ETHER / 1000);
    let keys: Vec<String> = (0..30).map(|n| format!("spread-{n}")).collect();
    let answers = join_all(keys.iter().map(|key| server.ask(SUB, key, &body))).await;
    for answer in &answers {
        assert_eq!(answer.status, 201, "{:#}", answer.body);
        server.wait_for(&answer.id(), MINED).await;
    }
    anvil.mine(4).await;
    let mut used = 0;
    for address in &addresses {
        let nonce = anvil.nonce(address).await;
        assert!(nonce > 0, "{address} did no work");
        used += nonce;
        let mut nonces: Vec<u64> = Vec::new();
        for tx in server.list().await.iter().filter(|tx| tx["address"] == *address) {
            nonces.push(tx["nonce"].as_str().unwrap().parse().unwrap());
        }
        nonces.sort_unstable();
        assert_eq!(nonces, (0..nonce).collect::<Vec<_>>());
    }
    assert_eq!(used, 30);
}

#[tokio::test]
async fn an_account_without_money_is_parked_and_goes_on_after_a_top_up() {
    let anvil = chain(Mining::Auto).await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("100.0"));
    let server = setup.start(&[]).await;
    let address = server.key("op-1", Some("payments"), "managed").await;
    let body = json!({
        "chain": "local", "signer": "payments", "to": PAYEE, "value": "1000", "gas": "21000",
    });
    let answer = server.ask(SUB, "parked", &body).await;
    assert_eq!((answer.status, answer.body["status"].as_str()), (201, Some("queued")));
    assert!(answer.body["nonce"].is_null());
    anvil.set_balance(&address, ETHER).await;
    finalize(&anvil, &server, &answer.id()).await;
}

#[tokio::test]
async fn what_waits_is_judged_again_under_the_bundle_in_force_and_a_removed_grant_signs_nothing() {
    let anvil = chain(Mining::Auto).await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("1.5"));
    let server = setup.start(&[]).await;
    let address = server.key("op-1", Some("payments"), "managed").await;
    let mut body = payout(ETHER);
    body["gas"] = json!("21000");
    let waiting = server.ask(SUB, "waits", &body).await;
    assert_eq!(waiting.body["status"], "queued");
    server.stop().await;

    let tighter = payout_grants("1.5").replace("per_tx = \"1.0\"", "per_tx = \"0.9\"");
    std::fs::write(setup.dir().join("policies/grants.toml"), tighter).unwrap();
    let server = setup.start(&[]).await;
    anvil.set_balance(&address, 100 * ETHER).await;
    let failed = server.wait_for(&waiting.id(), &["failed"]).await;
    assert_eq!(failed["failure"]["code"], "policy-denied");
    assert!(failed["nonce"].is_null());
    assert_eq!(anvil.nonce(&address).await, 0);
    // What it held is free again: 0.9 fits into 1.5, which it would not beside the first.
    let next = server.ask(SUB, "next", &payout(ETHER * 9 / 10)).await;
    assert_eq!(next.status, 201, "{:#}", next.body);
    finalize(&anvil, &server, &next.id()).await;
}

#[tokio::test]
async fn a_second_server_on_one_sqlite_file_and_another_chain_under_the_same_name_are_refused() {
    let anvil = chain(Mining::Auto).await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("100.0"));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    server.ask(SUB, "pin", &payout(1)).await.ok();
    let second = std::process::Command::new(support::server::BIN)
        .args(["serve", "--config"])
        .arg(setup.config())
        .output()
        .unwrap();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("another server is running"));
    server.stop().await;

    // Same id, another genesis: a chain that only looks like ours.
    let args = vec!["--timestamp".to_owned(), "1000000".to_owned()];
    let other = Anvil::start(AnvilOptions { args, ..AnvilOptions::default() }).await;
    let rpc = format!("[\"{}\"]", other.url());
    let server = setup.start(&[("CLAVIGER__CHAIN__0__RPC", &rpc)]).await;
    let refused = server.ask(SUB, "elsewhere", &payout(1)).await;
    assert_eq!((refused.status, refused.code()), (500, "internal"), "{:#}", refused.body);
    assert!(!refused.body.to_string().contains("genesis"), "nothing internal is shown");
}

#[tokio::test]
async fn denials_are_told_with_reasons_and_bind_no_key() {
    let anvil = chain(Mining::Auto).await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("100.0"));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let mut stranger = payout(1);
    stranger["to"] = json!(STRANGER);
    let denied = server.ask(SUB, "d1", &stranger).await;
    assert_eq!((denied.status, denied.code()), (403, "policy-denied"));
    assert_eq!(denied.body["reasons"][0]["field"], "to");
    let too_much = server.ask(SUB, "d1", &payout(2 * ETHER)).await;
    assert_eq!(too_much.body["reasons"][0]["field"], "per_tx");
    let somebody = server.ask("svc:watcher", "d1", &payout(1)).await;
    assert_eq!(somebody.code(), "policy-denied");
    assert_eq!(server.ask(SUB, "d1", &payout(1)).await.status, 201, "the key was free");
    let (size, root) = server.checkpoint().await;
    server.stop().await;
    audit_is_as_told(&setup, size, &root).await;
}
