//! Things to sign that are not transactions: digests in disguise, and typed data that is like another.

use crate::stage::*;
use serde_json::{Value, json};

const DOORS: [Door; 2] = [Door::Signatures, Door::Evaluate];

fn mail() -> Value {
    json!({
        "types": {
            "EIP712Domain": [
                { "name": "name", "type": "string" },
                { "name": "chainId", "type": "uint256" },
                { "name": "verifyingContract", "type": "address" },
            ],
            "Mail": [{ "name": "to", "type": "address" }, { "name": "contents", "type": "string" }],
        },
        "primaryType": "Mail",
        "domain": { "name": "tests", "chainId": 31337, "verifyingContract": GATE },
        "message": { "to": PAYEE, "contents": "good day" },
    })
}

fn with(change: impl FnOnce(&mut Value)) -> Value {
    let mut data = mail();
    change(&mut data);
    data
}

#[test]
fn bypass_07_typed_data_is_known_by_all_of_its_type_and_domain() {
    row("b07", async |it: Actor| {
        let body =
            |data: &Value| json!({ "chain": "local", "signer": it.external, "typed_data": data });
        it.allows_signature("a letter", &body(&mail())).await;
        let managed = json!({ "chain": "local", "signer": it.managed, "typed_data": mail() });
        it.allows_signature("by a managed key", &managed).await;
        for (what, data) in [
            ("another contract", with(|it| it["domain"]["verifyingContract"] = json!(USD))),
            ("an unnamed contract", with(|it| it["domain"]["verifyingContract"] = json!(UNNAMED))),
            ("another chain", with(|it| it["domain"]["chainId"] = json!(1))),
            ("chain 0", with(|it| it["domain"]["chainId"] = json!(0))),
            (
                "no chain",
                with(|it| {
                    it["domain"].as_object_mut().unwrap().remove("chainId");
                    it["types"]["EIP712Domain"].as_array_mut().unwrap().remove(1);
                }),
            ),
            (
                "no contract",
                with(|it| {
                    it["domain"].as_object_mut().unwrap().remove("verifyingContract");
                    it["types"]["EIP712Domain"].as_array_mut().unwrap().remove(2);
                }),
            ),
            (
                "a field more",
                with(|it| {
                    it["types"]["Mail"]
                        .as_array_mut()
                        .unwrap()
                        .push(json!({ "name": "wei", "type": "uint256" }));
                    it["message"]["wei"] = json!("1");
                }),
            ),
            (
                "fields in another order",
                with(|it| it["types"]["Mail"].as_array_mut().unwrap().reverse()),
            ),
            ("a field of another type", with(|it| it["types"]["Mail"][1]["type"] = json!("bytes"))),
            (
                "a field of another name",
                with(|it| {
                    it["types"]["Mail"][1]["name"] = json!("content");
                    it["message"]["content"] = json!("x");
                    it["message"].as_object_mut().unwrap().remove("contents");
                }),
            ),
            (
                "another primary type of the same shape",
                with(|it| {
                    it["types"]["Order"] = it["types"]["Mail"].clone();
                    it["primaryType"] = json!("Order");
                }),
            ),
            ("another addressee", with(|it| it["message"]["to"] = json!(STRANGER))),
        ] {
            refused_or_not_read(&it, what, &body(&data)).await;
        }
        for (what, body) in [
            ("no chain at the door", json!({ "signer": it.external, "typed_data": mail() })),
            (
                "an unknown chain at the door",
                json!({ "chain": "eip155:1", "signer": it.external, "typed_data": mail() }),
            ),
        ] {
            it.rejects(what, &body, &DOORS, (400, "invalid-request")).await;
        }
    });
}

/// Denied by policy, with its leaf; or not even readable as typed data, and then nothing is written.
async fn refused_or_not_read(it: &Actor, what: &str, body: &Value) {
    if it.evaluate(body).await.status == 200 {
        it.refuses_signature(what, body).await;
    } else {
        it.rejects(what, body, &DOORS, (422, "not-decodable")).await;
    }
}

#[test]
fn bypass_10_there_is_no_way_to_ask_for_the_signature_of_a_digest() {
    row("b10", async |it: Actor| {
        let digest = "ab".repeat(32);
        let hex = format!("0x{digest}");
        let text = |text: &str| json!({ "signer": it.external, "message": { "text": text } });
        it.allows_signature("a greeting", &text("hello world")).await;
        it.allows_signature(
            "the same by the managed key",
            &json!({ "signer": it.managed, "message": { "text": "hello world" } }),
        )
        .await;
        for (what, message) in [
            ("32 characters, with the granted beginning", format!("hello {}", "x".repeat(26))),
            ("32 bytes in fewer characters", format!("hello {}", "é".repeat(13))),
            ("a NUL", "hello \u{0}".to_owned()),
            ("an escape", "hello \u{1b}[2J".to_owned()),
            ("a prefix of its own", "\u{19}Ethereum Signed Message:\n5hello".to_owned()),
            ("a digest as text", hex.clone()),
            ("nothing", String::new()),
            ("another beginning", "Hello world".to_owned()),
            ("white space before it", " hello world".to_owned()),
        ] {
            it.refuses_signature(what, &text(&message)).await;
        }
        for (what, body) in [
            ("a digest", json!({ "signer": it.external, "digest": hex })),
            ("a hash", json!({ "signer": it.external, "hash": hex })),
            ("data", json!({ "signer": it.external, "data": hex })),
            ("a raw message", json!({ "signer": it.external, "message": { "raw": hex } })),
            (
                "raw beside text",
                json!({ "signer": it.external, "message": { "text": "hello", "raw": hex } }),
            ),
            ("a message in bytes", json!({ "signer": it.external, "message": { "text": [1, 2] } })),
            ("a message that is a string", json!({ "signer": it.external, "message": hex })),
            (
                "two things",
                json!({ "chain": "local", "signer": it.external, "message": { "text": "hello you" }, "typed_data": mail() }),
            ),
            ("nothing", json!({ "signer": it.external })),
            (
                "a message with a chain",
                json!({ "chain": "local", "signer": it.external, "message": { "text": "hello you" } }),
            ),
        ] {
            let signature = [Door::Signatures];
            it.rejects(what, &body, &signature, (400, "invalid-request")).await;
        }
    });
}
