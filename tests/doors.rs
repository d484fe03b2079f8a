//! The other doors: signatures, charges bound to events, bad input everywhere, and the watcher in front of
//! the real server.

#![cfg(all(feature = "server", feature = "watcher"))]
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
use ethers_core::types::transaction::eip712::{Eip712, TypedData};
use ethers_core::types::transaction::eip2718::TypedTransaction;
use ethers_core::types::{RecoveryMessage, Signature};
use ethers_core::utils::rlp::Rlp;
use reqwest::Method;
use serde_json::{Value, json};
use std::process::Command;
use support::server::{
    ETHER, LIMIT, PAYEE, PROCESSOR, Server, SetUp, chain, charge_grant, hello_grant, payout,
    payout_grants, token,
};
use support::services::{Anvil, Program, address_word, artefact, poll_until, word};

const SUB: &str = "svc:payouts";
const MAIL_TYPE: &str = "Mail(address to,string contents)";

fn hash(text: &str) -> String {
    format!("{:#x}", alloy::primitives::keccak256(text))
}

/// Everything that issue-two grants can say, for one caller.
fn signing_grants() -> String {
    let mail = hash(MAIL_TYPE);
    format!(
        r#"{payouts}
{hello}
[[grant]]
id = "mail"
owner = "treasury"
reason = "tests"
expires = "2099-12-31"
principals = ["svc:payouts"]
signers = ["payments"]
chains = ["local"]
action = "typed_data"
verifying_contract = "processor"
primary_type = "Mail"
type_hash = "{mail}"
"#,
        payouts = payout_grants("5.0"),
        hello = hello_grant(""),
    )
}

fn mail(chain_id: u64, contract: &str) -> Value {
    json!({
        "types": {
            "EIP712Domain": [
                { "name": "name", "type": "string" },
                { "name": "chainId", "type": "uint256" },
                { "name": "verifyingContract", "type": "address" },
            ],
            "Mail": [
                { "name": "to", "type": "address" },
                { "name": "contents", "type": "string" },
            ],
        },
        "primaryType": "Mail",
        "domain": { "name": "tests", "chainId": chain_id, "verifyingContract": contract },
        "message": { "to": PAYEE, "contents": "good day" },
    })
}

fn signature(answer: &Value) -> Signature {
    answer["signature"]["bytes"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn messages_and_typed_data_recover_to_the_key_in_an_independent_implementation() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &signing_grants());
    let server = setup.start(&[]).await;
    let address = server.key("op-1", Some("payments"), "managed").await;

    let body = json!({ "signer": "payments", "message": { "text": "hello world" } });
    let answer = server.sign(SUB, Some("m1"), &body).await;
    assert_eq!(answer.status, 201, "{:#}", answer.body);
    let message = RecoveryMessage::Data(b"hello world".to_vec());
    let signer = signature(&answer.body).recover(message).unwrap();
    assert_eq!(format!("{signer:?}"), address);
    let again = server.sign(SUB, Some("m1"), &body).await;
    assert_eq!(again.body["signature"], answer.body["signature"], "one decision, one signature");

    let data = mail(31337, PROCESSOR);
    let body = json!({ "chain": "local", "signer": address, "typed_data": data });
    let answer = server.sign(SUB, None, &body).await;
    assert_eq!(answer.status, 201, "{:#}", answer.body);
    let read: TypedData = serde_json::from_value(data).unwrap();
    let digest = read.encode_eip712().unwrap();
    let signer = signature(&answer.body).recover(digest).unwrap();
    assert_eq!(format!("{signer:?}"), address);

    for (body, field) in [
        (json!({ "signer": "payments", "message": { "text": "send money" } }), "text"),
        (
            json!({ "chain": "local", "signer": "payments", "typed_data": mail(31337, PAYEE) }),
            "verifying_contract",
        ),
        (
            json!({ "chain": "local", "signer": "payments", "typed_data": mail(1, PROCESSOR) }),
            "effects",
        ),
    ] {
        let denied = server.sign(SUB, None, &body).await;
        assert_eq!((denied.status, denied.code()), (403, "policy-denied"), "{:#}", denied.body);
        let reasons = denied.body["reasons"].to_string();
        assert!(reasons.contains(field), "{field} in {reasons}");
    }
    let managed = json!({ "chain": "local", "signer": "payments", "transaction": {
        "nonce": "0", "gas": "21000", "to": PAYEE, "value": "1",
        "max_fee_per_gas": "2000000000", "max_priority_fee_per_gas": "1000000000",
    }});
    let refused = server.sign(SUB, None, &managed).await;
    assert_eq!((refused.status, refused.code()), (409, "nonce-managed"));
}

#[tokio::test]
async fn external_accounts_sign_three_types_and_one_nonce_is_charged_once() {
    let anvil = chain().await;
    // An access list costs gas of its own.
    let grants = payout_grants("2.5").replace("max_gas = 21000", "max_gas = 30000");
    let setup = SetUp::new(&anvil.url(), None, &grants);
    let server = setup.start(&[]).await;
    let address = server.key("ext-1", Some("payments"), "external").await;
    anvil.set_balance(&address, 100 * ETHER).await;
    let ask = |nonce: u64, value: u128, fees: Value| {
        let mut tx = json!({
            "nonce": nonce.to_string(), "gas": "30000", "to": PAYEE, "value": value.to_string(),
        });
        tx.as_object_mut().unwrap().extend(fees.as_object().unwrap().clone());
        json!({ "chain": "local", "signer": address, "transaction": tx })
    };
    let legacy = json!({ "gas_price": "4000000000" });
    let listed = json!({ "gas_price": "4000000000", "access_list": [
        { "address": PAYEE, "storage_keys": [format!("0x{}", "11".repeat(32))] },
    ]});
    let typed =
        json!({ "max_fee_per_gas": "4000000000", "max_priority_fee_per_gas": "1000000000" });
    // Versions of one nonce exclude each other: together they hold one ether, not three.
    let mut raws = Vec::new();
    for fees in [legacy, listed, typed.clone()] {
        let answer = server.sign(SUB, None, &ask(0, ETHER, fees)).await;
        assert_eq!(answer.status, 201, "{:#}", answer.body);
        let raw = answer.body["raw"].as_str().unwrap().to_owned();
        let bytes = hex::decode(raw.trim_start_matches("0x")).unwrap();
        let (tx, signature) = TypedTransaction::decode_signed(&Rlp::new(&bytes)).unwrap();
        let sender = signature.recover(tx.sighash()).unwrap();
        assert_eq!(format!("{sender:?}"), address);
        assert_eq!(tx.nonce().unwrap().as_u64(), 0);
        raws.push(raw);
    }
    assert_eq!(server.sign(SUB, None, &ask(1, ETHER, typed.clone())).await.status, 201);
    let full = server.sign(SUB, None, &ask(2, ETHER, typed.clone())).await;
    assert_eq!(full.code(), "policy-denied", "two nonces hold two ether; a third does not fit");
    assert!(full.body["reasons"][0]["field"].as_str().unwrap().starts_with("windows"));
    // What is mined is spent; it does not come back.
    anvil.rpc("eth_sendRawTransaction", json!([raws[2]])).await;
    anvil.mine(4).await;
    let still = server.sign(SUB, None, &ask(2, ETHER, typed)).await;
    assert_eq!(still.code(), "policy-denied");
    let body = json!({ "chain": "local", "signer": address, "to": PAYEE, "value": "1" });
    let managed = server.ask(SUB, "not-managed", &body).await;
    assert_eq!(managed.code(), "invalid-request");
}

/// A processor where the bundle expects it, a payer with a deposit, an operator with the role.
async fn processor(anvil: &Anvil, server: &Server) -> String {
    let admin = anvil.accounts()[0].clone();
    let arguments = format!("{}{}", address_word(PAYEE), address_word(&admin));
    let at = anvil.deploy(&artefact("PaymentProcessor"), &arguments).await;
    assert_eq!(at.to_lowercase(), PROCESSOR);
    let operator = server.funded_key(anvil, "op-1").await;
    let grant = anvil.calldata("grantOperator(address)", &[address_word(&operator)]).await;
    let sent = anvil.send(&admin, PROCESSOR, &grant, 0).await;
    anvil.wait_for_receipt(&sent, LIMIT).await;
    let payer = anvil.accounts()[3].clone();
    let deposit = anvil.calldata("deposit()", &[]).await;
    let sent = anvil.send(&payer, PROCESSOR, &deposit, 10 * ETHER).await;
    anvil.wait_for_receipt(&sent, LIMIT).await;
    payer
}

/// A user asks for a charge; answers where the event is.
async fn request_charge(anvil: &Anvil, payer: &str, order: u128, amount: u128) -> Value {
    let arguments = [word(order), word(amount)];
    let data = anvil.calldata("requestCharge(uint256,uint256)", &arguments).await;
    let sent = anvil.send(payer, PROCESSOR, &data, 0).await;
    let receipt = anvil.wait_for_receipt(&sent, LIMIT).await;
    let index = receipt["logs"][0]["logIndex"].as_str().unwrap().trim_start_matches("0x");
    json!({
        "block_hash": receipt["blockHash"],
        "transaction_hash": receipt["transactionHash"],
        "log_index": u64::from_str_radix(index, 16).unwrap(),
    })
}

async fn executions(anvil: &Anvil, order: u128) -> u128 {
    let data = anvil.calldata("executions(uint256)", &[word(order)]).await;
    let answer = anvil.call(PROCESSOR, &data).await;
    u128::from_str_radix(answer.trim_start_matches("0x"), 16).unwrap()
}

async fn charge(anvil: &Anvil, order: u128, amount: u128, source: &Value) -> Value {
    let arguments = [word(order), word(amount)];
    let data = anvil.calldata("executeCharge(uint256,uint256)", &arguments).await;
    json!({
        "chain": "local", "signer": "payments", "to": PROCESSOR, "value": "0", "data": data,
        "source": source,
    })
}

#[tokio::test]
async fn a_charge_needs_its_event_final_true_and_unused() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &charge_grant("payments", ""));
    let server = setup.start(&[]).await;
    let payer = processor(&anvil, &server).await;
    let source = request_charge(&anvil, &payer, 7, 1000).await;
    let who = "svc:watcher";

    let young = server.ask(who, "young", &charge(&anvil, 7, 1000, &source).await).await;
    assert_eq!(young.code(), "policy-denied", "the event is not final yet");
    anvil.mine(4).await;
    let mut invented = source.clone();
    invented["transaction_hash"] = json!(hash("invented"));
    let mut elsewhere = source.clone();
    elsewhere["log_index"] = json!(99);
    for (name, order, amount, source) in [
        ("no-such-transaction", 7, 1000, &invented),
        ("no-such-log", 7, 1000, &elsewhere),
        ("another-amount", 7, 1001, &source),
        ("another-order", 8, 1000, &source),
        ("no-source", 7, 1000, &Value::Null),
    ] {
        let refused = server.ask(who, name, &charge(&anvil, order, amount, source).await).await;
        assert_eq!((refused.status, refused.code()), (403, "policy-denied"), "{name}");
    }
    let good = charge(&anvil, 7, 1000, &source).await;
    let done = server.ask(who, "good", &good).await;
    assert_eq!(done.status, 201, "{:#}", done.body);
    server.wait_for(&done.id(), &["mined", "finalized"]).await;
    assert_eq!(executions(&anvil, 7).await, 1);
    // The same event under another key: it has been answered. Gas is given, so that no simulation
    // stands in for the rule.
    let mut again = good.clone();
    again["gas"] = json!("100000");
    let used = server.ask(who, "again", &again).await;
    assert_eq!((used.status, used.code()), (409, "conflict"), "{:#}", used.body);
    assert_eq!(used.body["resource"], done.id());
    let url = format!("{}/v1/policy/evaluate", server.client_url());
    let token = server.token(who, Role::Client);
    let told = server.try_call(Method::POST, url, &token, None, Some(&again)).await.unwrap();
    assert_eq!(told.body["resource"], done.id(), "an evaluation says so too: {:#}", told.body);
    assert_eq!(server.list().await.len(), 1);
}

#[tokio::test]
async fn the_watcher_turns_each_event_into_one_execution() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &charge_grant("payments", ""));
    let server = setup.start(&[]).await;
    let payer = processor(&anvil, &server).await;
    let folder = tempfile::tempdir().unwrap();
    let token_file = folder.path().join("token");
    let text = token(&setup.dir().join("issuer.p8"), "svc:watcher", Role::Client);
    std::fs::write(&token_file, text).unwrap();
    let config = folder.path().join("watcher.toml");
    let written = format!(
        r#"
[store]
url = "sqlite:{dir}/watcher.db"
[server]
url = "{server}"
token_file = "{token}"
[[chain]]
name = "local"
chain_id = 31337
rpc = ["{rpc}"]
finality = "finalized"
poll_ms = 100
[[source]]
name = "charges"
chain = "local"
address = "{PROCESSOR}"
event = "ChargeRequested(uint256 indexed orderId, address indexed payer, uint256 amount)"
from_block = 0
[[trigger]]
name = "charge"
source = "charges"
signer = "payments"
function = "executeCharge(uint256 orderId, uint256 amount)"
args = {{ orderId = "orderId", amount = "amount" }}
business_id = ["{{chain}}", "{{contract}}", "orderId"]
"#,
        dir = folder.path().display(),
        server = server.client_url(),
        token = token_file.display(),
        rpc = anvil.url(),
    );
    std::fs::write(&config, written).unwrap();
    let bin = env!("CARGO_BIN_EXE_claviger-watcher");
    let init = Command::new(bin).arg("init").arg("--config").arg(&config).output().unwrap();
    assert!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
    let args = ["run".to_owned(), "--config".to_owned(), config.display().to_string()];
    let mut watcher = Program::spawn("watcher", bin, args.clone(), [("CLAVIGER_LOG", "info")]);

    for order in 1..=3 {
        request_charge(&anvil, &payer, order, 500 + order).await;
    }
    // Killed in the middle of it all, and started again.
    watcher.kill9();
    drop(watcher);
    let _watcher = Program::spawn("watcher", bin, args, [("CLAVIGER_LOG", "info")]);
    for order in 4..=5 {
        request_charge(&anvil, &payer, order, 500 + order).await;
    }
    poll_until(LIMIT, "five charges are final", async || {
        anvil.mine(1).await;
        let done = server.list().await;
        let count = done.iter().filter(|tx| tx["status"] == "finalized").count();
        (count == 5).then_some(())
    })
    .await;
    for order in 1..=5 {
        assert_eq!(executions(&anvil, order).await, 1, "order {order}");
    }
    assert_eq!(server.list().await.len(), 5);
}

#[tokio::test]
async fn bad_input_at_every_door_is_a_problem_document_with_a_stable_code() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("5.0"));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let client = server.token(SUB, Role::Client);
    let operator = server.token("dev:op", Role::Operator);
    let transactions = format!("{}/v1/transactions", server.client_url());
    let with = |field: &str, value: Value| {
        let mut body = payout(1);
        body[field] = value;
        body
    };
    let table: Vec<(Value, u16, &str, &str)> = vec![
        (with("chain", json!("mars")), 400, "invalid-request", "chain"),
        (with("chain", json!("eip155:1")), 400, "invalid-request", "chain"),
        (with("signer", json!("nobody")), 400, "invalid-request", "signer"),
        (with("signer", json!(PAYEE)), 400, "invalid-request", "signer"),
        (with("to", json!("0x1234")), 400, "invalid-request", "to"),
        (with("to", json!(PAYEE.replacen("0x7", "0X7", 1))), 400, "invalid-request", "to"),
        (with("value", json!("1.5")), 400, "invalid-request", "value"),
        (with("value", json!("-1")), 400, "invalid-request", "value"),
        (with("value", json!(1)), 400, "invalid-request", "value"),
        (with("value", json!("9".repeat(80))), 400, "invalid-request", "value"),
        (with("data", json!("0x123")), 400, "invalid-request", "data"),
        (with("data", json!("123456")), 400, "invalid-request", "data"),
        (with("gas", json!("0")), 400, "invalid-request", "gas"),
        (with("gas", json!("18446744073709551615")), 400, "invalid-request", "gas"),
        (with("gas", json!("20999")), 400, "invalid-request", "gas"),
        (with("max_fee_per_gas", json!("1")), 400, "invalid-request", "max_fee_per_gas"),
        (with("type", json!("blob")), 400, "invalid-request", "type"),
        (with("max_fee_per_gas", json!("1e9")), 400, "invalid-request", "max_fee_per_gas"),
        (with("not_after", json!("tomorrow")), 400, "invalid-request", "not_after"),
        (with("not_after", json!("2020-01-01T00:00:00Z")), 400, "invalid-request", "not_after"),
        (with("source", json!({ "block_hash": "0x" })), 400, "invalid-request", "source"),
        (with("metadata", json!({ "k": "x".repeat(9000) })), 400, "invalid-request", "metadata"),
        (with("unknown", json!(1)), 400, "invalid-request", ""),
        (with("nonce", json!("0")), 400, "invalid-request", ""),
        (json!([]), 400, "invalid-request", ""),
        (with("data", json!("0xdeadbeef")), 403, "policy-denied", ""),
        (with("to", Value::Null), 403, "policy-denied", ""),
    ];
    for (n, (body, status, code, field)) in table.iter().enumerate() {
        let url = transactions.clone();
        let key = format!("bad-{n}");
        let found =
            server.try_call(Method::POST, url, &client, Some(&key), Some(body)).await.unwrap();
        assert_eq!((found.status, found.code()), (*status, *code), "{body} {:#}", found.body);
        assert!(found.body["request_id"].is_string(), "{:#}", found.body);
        let named = found.body["field"].as_str().unwrap_or_default();
        assert!(named.starts_with(field), "{field} in {:#}", found.body);
    }
    let signatures = format!("{}/v1/signatures", server.client_url());
    let keys = format!("{}/admin/v1/keys", server.admin_url());
    let hash32 = format!("0x{}", "ab".repeat(32));
    let doors: Vec<(&str, &str, Value, u16, &str)> = vec![
        (&signatures, &client, json!({ "signer": "payments" }), 400, "invalid-request"),
        (
            &signatures,
            &client,
            json!({ "signer": "payments", "digest": hash32 }),
            400,
            "invalid-request",
        ),
        (
            &signatures,
            &client,
            json!({ "signer": "payments", "message": { "text": "x".repeat(32) } }),
            403,
            "policy-denied",
        ),
        (
            &signatures,
            &client,
            json!({ "chain": "local", "signer": "payments", "typed_data": { "a": 1 } }),
            422,
            "not-decodable",
        ),
        (
            &signatures,
            &operator,
            json!({ "signer": "payments", "message": { "text": "x" } }),
            403,
            "forbidden",
        ),
        (&keys, &client, json!({ "label": "x" }), 403, "forbidden"),
        (&keys, &operator, json!({ "label": "" }), 400, "invalid-request"),
        (&keys, &operator, json!({ "label": "x", "group": "nobody" }), 400, "invalid-request"),
        (&keys, &operator, json!({ "label": "x", "mode": "both" }), 400, "invalid-request"),
        (&keys, &operator, json!({ "label": "x", "private_key": hash32 }), 400, "invalid-request"),
    ];
    for (url, token, body, status, code) in doors {
        let found = server.try_call(Method::POST, url.to_owned(), token, None, Some(&body)).await;
        let found = found.unwrap();
        assert_eq!((found.status, found.code()), (status, code), "{url} {body} {:#}", found.body);
    }
    for (url, status, code) in [
        (format!("{transactions}/nonsense"), 400, "invalid-request"),
        (format!("{transactions}/01a20272-d64a-740a-b9b9-d0bac1218ad6"), 404, "not-found"),
        (format!("{transactions}?status=lost"), 400, "invalid-request"),
        (format!("{transactions}?limit=0"), 400, "invalid-request"),
        (format!("{transactions}?what=1"), 400, "invalid-request"),
        (format!("{}/v1/nothing", server.client_url()), 404, "not-found"),
        (format!("{}/admin/v1/keys", server.client_url()), 404, "not-found"),
        (format!("{}/admin/v1/audit/checkpoint", server.admin_url()), 403, "forbidden"),
    ] {
        let found = server.try_call(Method::GET, url.clone(), &client, None, None).await.unwrap();
        assert_eq!((found.status, found.code()), (status, code), "{url} {:#}", found.body);
    }
    assert!(server.list().await.is_empty(), "nothing was half done");
}

#[tokio::test]
async fn a_client_sees_only_its_own_transactions() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("5.0"));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let mine = server.ask(SUB, "mine", &payout(1)).await;
    let url = format!("{}/v1/transactions/{}", server.client_url(), mine.id());
    let other = server.token("svc:watcher", Role::Client);
    let found = server.try_call(Method::GET, url.clone(), &other, None, None).await.unwrap();
    assert_eq!((found.status, found.code()), (404, "not-found"));
    let own = server.token(SUB, Role::Client);
    assert_eq!(server.try_call(Method::GET, url, &own, None, None).await.unwrap().status, 200);
}
