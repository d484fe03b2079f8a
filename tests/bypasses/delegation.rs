//! EIP-7702: an account's code as a signature.

use crate::stage::*;
use serde_json::{Value, json};

pub fn authorization(it: &Actor, to: &str, nonce: &str) -> Value {
    let asked = json!({ "address": to, "nonce": nonce });
    json!({ "chain": "local", "signer": it.external, "authorization": asked })
}

#[test]
fn bypass_17_a_delegation_is_an_effect_of_its_own_and_needs_a_grant_of_its_own() {
    row("b17", async |it: Actor| {
        it.allows_signature(
            "a call of the gate",
            &it.external_body(0, &function(GATE, "ping()", &[])),
        )
        .await;
        for (what, to) in [
            ("to an unnamed contract", UNNAMED),
            ("to who delegates already", DELEGATED),
            (
                "to nobody, which takes a delegation back",
                "0x0000000000000000000000000000000000000000",
            ),
            ("to itself", it.external.as_str()),
        ] {
            let told = it.refuses_signature(what, &authorization(&it, to, "0")).await;
            assert_eq!(told.effects, ["delegate"], "{what}");
        }
        let told =
            it.refuses_signature("at a later nonce", &authorization(&it, UNNAMED, "200")).await;
        assert_eq!(told.effects, ["delegate"]);
        let code = it.anvil().rpc("eth_getCode", json!([it.external, "latest"])).await;
        assert_eq!(code, "0x");
        let doors = [Door::Signatures, Door::Evaluate];
        let with = |field: &str, value: Value| {
            let mut body = authorization(&it, UNNAMED, "0");
            body["authorization"][field] = value;
            body
        };
        for (what, body) in [
            ("a chain id of its own", with("chain_id", json!("0"))),
            ("a chain id like others write it", with("chainId", json!(0))),
            ("a nonce that is a number", with("nonce", json!(0))),
            ("no nonce", with("nonce", Value::Null)),
            ("a negative nonce", with("nonce", json!("-1"))),
            ("the last nonce", with("nonce", json!("18446744073709551615"))),
            ("a nonce far ahead", with("nonce", json!("257"))),
            ("no address", with("address", Value::Null)),
            (
                "an address in upper case",
                with("address", json!("0xABCDEFABCDEFABCDEFABCDEFABCDEFABCDEFABCD")),
            ),
            ("a signature", with("r", json!("0x00"))),
        ] {
            it.rejects(what, &body, &doors, (400, "invalid-request")).await;
        }
        let mut both = it.external_body(0, &call(PAYEE, 1, "0x"));
        both["authorization"] = json!({ "address": GATE, "nonce": "0" });
        it.rejects("both at once", &both, &doors, (400, "invalid-request")).await;
        let mut listed = it.external_body(0, &call(PAYEE, 1, "0x"));
        listed["transaction"]["authorization_list"] = json!([]);
        it.rejects("a list in a transaction", &listed, &doors, (400, "invalid-request")).await;
        listed["transaction"].as_object_mut().unwrap().remove("authorization_list");
        listed["transaction"]["type"] = json!("eip7702");
        it.rejects("a type for it", &listed, &doors, (400, "invalid-request")).await;
        // A nonce that the chain has used up cannot be delegated with.
        let ping = it.external_body(0, &function(GATE, "ping()", &[]));
        let raw = it.sign(&ping).await.ok()["raw"].clone();
        it.anvil().rpc("eth_sendRawTransaction", json!([raw])).await;
        it.until_nonce(&it.external, 1).await;
        it.rejects("a used nonce", &authorization(&it, UNNAMED, "0"), &doors, (409, "conflict"))
            .await;
    });
}
