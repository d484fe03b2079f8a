//! What is signed for one chain must be good on no other.

use crate::stage::*;
use ethers_core::types::transaction::eip2718::TypedTransaction;
use ethers_core::utils::rlp::Rlp;
use serde_json::{Value, json};

#[test]
fn bypass_16_everything_that_moves_value_names_its_chain() {
    row("b16", async |it: Actor| {
        // Each kind of envelope, as another implementation reads it.
        for fees in [
            json!({ "gas_price": "4000000000" }),
            json!({ "gas_price": "4000000000", "type": "eip2930" }),
            json!({ "max_fee_per_gas": "4000000000", "max_priority_fee_per_gas": "1000000000" }),
        ] {
            let mut tx = json!({ "nonce": "0", "gas": "30000", "to": PAYEE, "value": "1" });
            tx.as_object_mut().unwrap().extend(fees.as_object().unwrap().clone());
            let body = json!({ "chain": "local", "signer": it.external, "transaction": tx });
            let signed = it.allows_signature(&fees.to_string(), &body).await;
            let raw = signed["raw"].as_str().unwrap().trim_start_matches("0x");
            let raw = hex::decode(raw).unwrap();
            let (read, _) = TypedTransaction::decode_signed(&Rlp::new(&raw)).unwrap();
            assert_eq!(read.chain_id().map(|id| id.as_u64()), Some(31337), "{fees}");
        }
        let managed = it.managed_body(&call(PAYEE, 1, "0x"));
        let external = it.external_body(0, &call(PAYEE, 1, "0x"));
        let asked = json!({ "address": GATE, "nonce": "0" });
        let authorization =
            json!({ "chain": "local", "signer": it.external, "authorization": asked });
        let named = json!({ "chain": "eip155:31337" });
        for (what, chain) in [
            ("none", Value::Null),
            ("another's id", json!("eip155:1")),
            ("id 0", json!("eip155:0")),
            ("a leading zero", json!("eip155:031337")),
            ("a number", json!(31337)),
            ("a number in a string", json!("31337")),
            ("0", json!("0")),
            ("another name", json!("mainnet")),
            ("another case", json!("Local")),
            ("white space", json!("local ")),
            ("every chain", json!("*")),
            ("a list", json!(["local"])),
        ] {
            let with = |body: &Value| {
                let mut body = body.clone();
                body["chain"] = chain.clone();
                body
            };
            let invalid = (400, "invalid-request");
            it.rejects(what, &with(&managed), &[Door::Transactions, Door::Evaluate], invalid).await;
            for body in [&external, &authorization] {
                it.rejects(what, &with(body), &[Door::Signatures, Door::Evaluate], invalid).await;
            }
        }
        // Its CAIP-2 id is the chain's other name.
        let mut body = external.clone();
        body["chain"] = named["chain"].clone();
        it.allows_signature("by its CAIP-2 id", &body).await;
    });
}
