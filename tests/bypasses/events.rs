//! Events that nobody emitted.

use crate::stage::*;
use crate::support::server::{LIMIT, PROCESSOR};
use crate::support::services::{address_word, artefact, word};
use serde_json::{Value, json};

/// A user's request on the chain; answers where it is.
async fn requested(it: &Actor, payer: &str, order: u128, amount: u128) -> Value {
    let data =
        it.anvil().calldata("requestCharge(uint256,uint256)", &[word(order), word(amount)]).await;
    let sent = it.anvil().send(payer, PROCESSOR, &data, 0).await;
    let receipt = it.anvil().wait_for_receipt(&sent, LIMIT).await;
    let index = receipt["logs"][0]["logIndex"].as_str().unwrap().trim_start_matches("0x");
    json!({
        "block_hash": receipt["blockHash"], "transaction_hash": receipt["transactionHash"],
        "log_index": u64::from_str_radix(index, 16).unwrap(),
    })
}

fn charge(order: u128, amount: u128) -> Call {
    let words = [uint(order), uint(amount)];
    let words = words.each_ref().map(String::as_str);
    Call { gas: 150_000, ..function(PROCESSOR, "executeCharge(uint256,uint256)", &words) }
}

#[test]
fn bypass_24_a_charge_answers_an_event_that_the_server_has_read_itself() {
    row("b24", async |it: Actor| {
        let it = it.stage.actor("b24-watcher", "svc:watcher").await;
        let admin = it.anvil().accounts()[0].clone();
        let payer = it.anvil().accounts()[3].clone();
        let arguments = format!("{}{}", address_word(PAYEE), address_word(&admin));
        let at = it.anvil().deploy(&artefact("PaymentProcessor"), &arguments).await;
        assert_eq!(at.to_lowercase(), PROCESSOR);
        let data =
            it.anvil().calldata("grantOperator(address)", &[address_word(&it.managed)]).await;
        let sent = it.anvil().send(&admin, PROCESSOR, &data, 0).await;
        it.anvil().wait_for_receipt(&sent, LIMIT).await;
        let data = it.anvil().calldata("deposit()", &[]).await;
        let sent = it.anvil().send(&payer, PROCESSOR, &data, 1_000_000).await;
        it.anvil().wait_for_receipt(&sent, LIMIT).await;
        // The same event by a contract that anybody can deploy.
        let fake = it.anvil().deploy(&artefact("PaymentProcessor"), &arguments).await;
        let seven = requested(&it, &payer, 7, 1000).await;
        let eight = requested(&it, &payer, 8, 1000).await;
        let ten = requested(&it, &payer, 10, 1000).await;
        let data =
            it.anvil().calldata("requestCharge(uint256,uint256)", &[word(9), word(1000)]).await;
        let sent = it.anvil().send(&payer, &fake, &data, 0).await;
        let receipt = it.anvil().wait_for_receipt(&sent, LIMIT).await;
        let nine = json!({
            "block_hash": receipt["blockHash"], "transaction_hash": receipt["transactionHash"],
            "log_index": 0,
        });
        it.anvil().mine(4).await;
        let with = |field: &str, value: Value| {
            let mut source = seven.clone();
            source[field] = value;
            source
        };
        let nowhere = json!(format!("0x{}", "ab".repeat(32)));
        for (what, call, source) in [
            ("no event", charge(7, 1000), Value::Null),
            (
                "a transaction that there is not",
                charge(7, 1000),
                with("transaction_hash", nowhere.clone()),
            ),
            ("a block that there is not", charge(7, 1000), with("block_hash", nowhere)),
            ("another's block", charge(7, 1000), with("block_hash", eight["block_hash"].clone())),
            (
                "another's transaction",
                charge(7, 1000),
                with("transaction_hash", eight["transaction_hash"].clone()),
            ),
            ("a log that there is not", charge(7, 1000), with("log_index", json!(99))),
            ("another's event", charge(7, 1000), eight.clone()),
            ("another amount", charge(7, 1001), seven.clone()),
            ("less than was asked for", charge(7, 999), seven.clone()),
            ("another order", charge(8, 1000), seven.clone()),
            ("an event of another contract", charge(9, 1000), nine),
        ] {
            let mut managed = it.managed_body(&call);
            managed["source"] = source.clone();
            let would = it.evaluate(&managed).await;
            assert_eq!(would.body["outcome"], "deny", "{what}: {:#}", would.body);
            let mut external = it.external_body(0, &call);
            external["transaction"]["source"] = source;
            let before = it.told().await;
            let answer = it.ask(&managed).await;
            assert_eq!(
                (answer.status, answer.code()),
                (403, "policy-denied"),
                "{what}: {:#}",
                answer.body
            );
            it.refuses_signature(what, &external).await;
            let after = it.told().await;
            assert_eq!(
                (after.denied, after.decided),
                (before.denied + 2, before.decided),
                "{what}"
            );
        }
        let mut good = it.managed_body(&charge(7, 1000));
        good["source"] = seven.clone();
        let done = it.ask(&good).await;
        assert_eq!(done.status, 201, "{:#}", done.body);
        it.server().wait_for(&done.id(), &["mined", "finalized"]).await;
        // Used up: at the other door, too.
        let mut again = it.external_body(0, &charge(7, 1000));
        again["transaction"]["source"] = seven;
        it.rejects(
            "the same event again",
            &good,
            &[Door::Transactions, Door::Evaluate],
            (409, "conflict"),
        )
        .await;
        it.rejects(
            "the same event elsewhere",
            &again,
            &[Door::Signatures, Door::Evaluate],
            (409, "conflict"),
        )
        .await;
        // A charge that waits has its event, by whichever account; once it is cancelled the event is answered
        // once more, and no more than that. What was mined keeps it.
        let poor = it.server().key("b24-poor", Some("payments"), "managed").await;
        let mut waits = it.managed_body(&charge(10, 1000));
        waits["source"] = ten;
        let richer = waits.clone();
        waits["signer"] = json!(poor);
        let waiting = it.ask(&waits).await;
        assert_eq!(waiting.status, 201, "{:#}", waiting.body);
        let doors = [Door::Transactions, Door::Evaluate];
        it.rejects("an event of what waits", &richer, &doors, (409, "conflict")).await;
        assert_eq!(it.server().intervene(&waiting.id(), "speed-up").await.code(), "conflict");
        let cancelled = it.server().intervene(&waiting.id(), "cancel").await.ok();
        assert_eq!(cancelled["status"], "cancelled");
        let other = it.ask(&richer).await;
        assert_eq!(other.status, 201, "{:#}", other.body);
        it.rejects("an event twice", &waits, &doors, (409, "conflict")).await;
        it.server().wait_for(&other.id(), &["mined", "finalized"]).await;
        for (id, verb) in [(other.id(), "cancel"), (done.id(), "cancel"), (done.id(), "speed-up")] {
            assert_eq!(it.server().intervene(&id, verb).await.code(), "conflict", "{verb}");
        }
        it.rejects("an event of what is mined", &waits, &doors, (409, "conflict")).await;
    });
}
