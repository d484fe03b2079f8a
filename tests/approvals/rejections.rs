//! One no: by whom, of what, when, and what is free afterwards. An event that was answered with no can be answered
//! again.

use crate::flow::approved_by_all;
use crate::stage::{answer, call, chain, hash, leaves, list, read, setup};
use crate::support::server::{LIMIT, PROCESSOR, Server, charge_grant};
use crate::support::services::{Anvil, address_word, artefact, word};
use claviger::core::access::Role;
use reqwest::Method;
use serde_json::{Value, json};

/// Charges that users requested, each by the word of two people; the window holds one.
const MORE: &str = r#"
approval = { quorum = { treasury = 1, security = 1 }, ttl = "30m" }
windows = [{ span = "24h", count = 1, scope = "group" }]
"#;
const WATCHER: &str = "svc:watcher";

/// The contract with an operator and a user's money in it.
async fn processor(anvil: &Anvil, operator: &str) {
    let (admin, payer) = (&anvil.accounts()[0], &anvil.accounts()[3]);
    let arguments = format!("{}{}", address_word(admin), address_word(admin));
    let at = anvil.deploy(&artefact("PaymentProcessor"), &arguments).await;
    assert_eq!(at.to_lowercase(), PROCESSOR);
    let data = anvil.calldata("grantOperator(address)", &[address_word(operator)]).await;
    anvil.wait_for_receipt(&anvil.send(admin, PROCESSOR, &data, 0).await, LIMIT).await;
    let data = anvil.calldata("deposit()", &[]).await;
    anvil.wait_for_receipt(&anvil.send(payer, PROCESSOR, &data, 1_000_000).await, LIMIT).await;
}

/// The charge of an order that a user requests.
async fn charge(anvil: &Anvil, order: u128) -> Value {
    let words = [word(order), word(1000)];
    let data = anvil.calldata("requestCharge(uint256,uint256)", &words).await;
    let sent = anvil.send(&anvil.accounts()[3], PROCESSOR, &data, 0).await;
    let receipt = anvil.wait_for_receipt(&sent, LIMIT).await;
    let index = receipt["logs"][0]["logIndex"].as_str().unwrap().trim_start_matches("0x");
    anvil.mine(4).await;
    json!({
        "chain": "local", "signer": "payments", "to": PROCESSOR, "value": "0", "gas": "200000",
        "data": anvil.calldata("executeCharge(uint256,uint256)", &words).await,
        "source": {
            "block_hash": receipt["blockHash"], "transaction_hash": receipt["transactionHash"],
            "log_index": u64::from_str_radix(index, 16).unwrap(),
        },
    })
}

async fn waits(server: &Server, key: &str, body: &Value) -> String {
    let answer = server.ask(WATCHER, key, body).await;
    assert_eq!(answer.status, 202, "{:#}", answer.body);
    answer.id()
}

#[tokio::test]
async fn one_no_of_any_approver_but_the_requester_ends_it_once_and_frees_its_event() {
    let anvil = chain().await;
    let setup = setup(&anvil, None, &charge_grant("payments", MORE));
    let server = setup.start(&[]).await;
    let operator = server.funded_key(&anvil, "op-1").await;
    processor(&anvil, &operator).await;
    let body = charge(&anvil, 7).await;
    let first = waits(&server, "first", &body).await;
    let taken = server.ask(WATCHER, "again", &body).await;
    assert_eq!((taken.status, taken.code()), (409, "conflict"), "one request has the event");

    let right = hash(&server, &first).await;
    let refused = answer(&server, WATCHER, &first, "reject", &right).await;
    assert_eq!((refused.status, refused.code()), (403, "forbidden"), "who asked");
    let said = json!({ "hash": right, "reason": "a test" });
    for (sub, role) in [
        ("dev:op", Role::Operator),
        ("dev:auditor", Role::Auditor),
        ("dev:admin", Role::PolicyAdmin),
        ("svc:other", Role::Client),
    ] {
        let path = format!("/{first}/reject");
        let refused = call(&server, (sub, role), Method::POST, &path, Some(&said)).await;
        assert_eq!((refused.status, refused.code()), (403, "forbidden"), "{role}");
    }
    assert_eq!(read(&server, &first).await["status"], "awaiting_approval");
    // Whoever is an approver may say no, a member of a group that is asked or not.
    assert_eq!(answer(&server, "dev:ann", &first, "approve", &right).await.status, 200);
    let no = answer(&server, "dev:eve", &first, "reject", &right).await.ok();
    assert_eq!(no["status"], "rejected");
    for (sub, verb) in [("dev:eve", "reject"), ("dev:bob", "reject"), ("dev:cat", "approve")] {
        let late = answer(&server, sub, &first, verb, &right).await;
        assert_eq!((late.status, late.code()), (409, "conflict"), "{sub}: {verb} afterwards");
    }
    assert_eq!(server.intervene(&first, "cancel").await.code(), "conflict");
    assert!(list(&server).await.is_empty());
    // Its key stays bound to it; under another one the event is answered, and the window has room for it.
    let same = server.ask(WATCHER, "first", &body).await;
    assert_eq!((same.status, same.body["status"].as_str()), (200, Some("rejected")));
    let second = waits(&server, "second", &body).await;
    approved_by_all(&server, &second).await;
    // What goes on is nobody's to reject.
    let hash = hash(&server, &second).await;
    let late = answer(&server, "dev:eve", &second, "reject", &hash).await;
    assert_eq!((late.status, late.code()), (409, "conflict"), "after its release");
    let paid = server.wait_for(&second, &["mined", "finalized"]).await;
    assert_eq!(paid["receipt"]["success"], true, "{paid:#}");
    server.checkpoint().await;
    server.stop().await;
    let store = setup.store().await;
    assert_eq!(leaves(&store, &first).await, ["APPROVAL_REQUESTED", "APPROVED", "REJECTED"]);
}
