//! Typed data that hides something.

use super::typed_data::read;
use crate::core::intent::Intent;
use crate::core::policy::evaluate::fixtures::*;
use crate::core::policy::{Bundle, Facts, Outcome, PolicyRequest, evaluate};
use alloy::primitives::keccak256;
use serde_json::{Value, json};

const TYPE: &str = "Vote(uint256 id,bool yes,Reason reason)Reason(string text)";

fn vote() -> Value {
    json!({
        "types": {
            "EIP712Domain": [
                { "name": "name", "type": "string" },
                { "name": "chainId", "type": "uint256" },
                { "name": "verifyingContract", "type": "address" }
            ],
            "Vote": [
                { "name": "id", "type": "uint256" },
                { "name": "yes", "type": "bool" },
                { "name": "reason", "type": "Reason" }
            ],
            "Reason": [{ "name": "text", "type": "string" }]
        },
        "primaryType": "Vote",
        "domain": { "name": "dao", "chainId": 31337, "verifyingContract": PROCESSOR.to_string() },
        "message": { "id": "7", "yes": true, "reason": { "text": "because" } }
    })
}

fn with(pointer: &str, value: Value) -> Value {
    let mut vote = vote();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = vote.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    match value {
        Value::Null => parent.remove(name),
        value => parent.insert(name.to_owned(), value),
    };
    vote
}

fn asks_for(json: &Value) -> PolicyRequest {
    let data = Box::new(serde_json::from_value(json.clone()).unwrap());
    request(Intent::TypedData { chain: local(), data }, Facts::default())
}

fn grants(args: &str) -> Bundle {
    let hash = keccak256(TYPE);
    let rest = format!(
        "action = \"typed_data\"\nverifying_contract = \"processor\"\nprimary_type = \"Vote\"\n\
         type_hash = \"{hash}\"\nencode_type = \"{TYPE}\"\n{args}"
    );
    bundle(&[grant("vote", &rest)])
}

fn outcome(bundle: &Bundle, json: &Value) -> (Outcome, String) {
    let verdict = evaluate(bundle, &asks_for(json), now());
    let field = verdict.reasons.first().map_or_else(String::new, |reason| reason.field.clone());
    (verdict.outcome, field)
}

#[test]
fn conditions_hold_for_every_element_of_an_array_of_typed_data() {
    let text = "Vote(uint256[] ids)";
    let rest = format!(
        "action = \"typed_data\"\nverifying_contract = \"processor\"\nprimary_type = \"Vote\"\n\
         type_hash = \"{}\"\nencode_type = \"{text}\"\nargs = {{ ids = {{ all = {{ max = \"7\" }} }} }}",
        keccak256(text)
    );
    let bundle = bundle(&[grant("vote", &rest)]);
    let votes = |ids: Value| {
        let mut json = vote();
        let domain = json["types"]["EIP712Domain"].clone();
        json["types"] = json!({ "EIP712Domain": domain,
                                "Vote": [{ "name": "ids", "type": "uint256[]" }] });
        json["message"] = json!({ "ids": ids });
        outcome(&bundle, &json)
    };
    assert_eq!(votes(json!(["1", "7"])).0, Outcome::Allow);
    assert_eq!(votes(json!([])).0, Outcome::Allow);
    assert_eq!(votes(json!(["1", "8"])), (Outcome::Deny, "args.ids.all.max".to_owned()));
}

#[test]
fn typed_data_is_allowed_by_its_four_names_and_conditions() {
    let bundle = grants(r#"args = { id = { max = "7" }, yes = { eq = true } }"#);
    assert_eq!(outcome(&bundle, &vote()), (Outcome::Allow, String::new()));
    let deny = |json: Value, field: &str| {
        assert_eq!(outcome(&bundle, &json), (Outcome::Deny, field.to_owned()));
    };
    deny(with("/message/id", json!("8")), "args.id.max");
    deny(with("/message/yes", json!(false)), "args.yes.eq");
    deny(with("/domain/verifyingContract", json!(TUSD.to_string())), "verifying_contract");
    // 7: the same name over other fields is another type.
    let other = json!([
        { "name": "id", "type": "uint256" },
        { "name": "yes", "type": "uint8" },
        { "name": "reason", "type": "Reason" }
    ]);
    let mut json = with("/types/Vote", other);
    json["message"]["yes"] = json!("1");
    deny(json, "type_hash");
}

#[test]
fn what_is_missing_left_over_or_of_another_chain_is_not_read() {
    // 7, 16
    let refused = |json: Value, why: &str| {
        let Intent::TypedData { chain, data } = asks_for(&json).intent else {
            panic!("typed data");
        };
        let error = read(&chain, &data).unwrap_err();
        assert!(error.contains(why), "{error}");
    };
    refused(with("/domain/chainId", Value::Null), "no chainId");
    refused(with("/domain/chainId", json!(1)), "not the chain's");
    refused(with("/domain/verifyingContract", Value::Null), "no verifyingContract");
    refused(with("/domain/version", json!("1")), "fields that its type declares");
    refused(with("/message/extra", json!(1)), "`extra`");
    refused(with("/message/reason/extra", json!(1)), "`extra`");
    refused(with("/message/id", Value::Null), "");
    refused(with("/types/Unused", json!([{ "name": "a", "type": "bool" }])), "not used");
    let circle = json!([{ "name": "text", "type": "Vote" }]);
    refused(with("/types/Reason", circle), "circular");
    let twice = json!([{ "name": "text", "type": "string" }, { "name": "text", "type": "string" }]);
    refused(with("/types/Reason", twice), "ambiguous");
    let alias = json!([{ "name": "text", "type": "uint" }]);
    refused(with("/types/Reason", alias), "ambiguous");
}

#[test]
fn permits_by_any_name_that_is_known_are_refused() {
    // 8
    for name in [
        "Permit",
        "PermitSingle",
        "PermitBatch",
        "PermitTransferFrom",
        "Order",
        "OrderComponents",
        "TransferWithAuthorization",
        "SafeTx",
    ] {
        let text = vote().to_string().replace("Vote", name);
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(outcome(&grants(""), &json), (Outcome::Deny, "effects".to_owned()), "{name}");
        let rest = format!(
            "action = \"typed_data\"\nverifying_contract = \"processor\"\n\
             primary_type = \"{name}\"\ntype_hash = \"{}\"",
            keccak256(name)
        );
        let error = try_bundle(&grant("p", &rest)).unwrap_err().to_string();
        assert!(error.contains("moves value"), "{error}");
    }
}

#[test]
fn types_that_unroll_without_end_are_refused_quickly() {
    let mut types = json!({ "T40": [{ "name": "x", "type": "bool" }] });
    for level in 0..40 {
        let next = format!("T{}", level + 1);
        types[format!("T{level}")] =
            json!([{ "name": "a", "type": next }, { "name": "b", "type": next }]);
    }
    let mut json = vote();
    json["types"] = types;
    json["primaryType"] = json!("T0");
    assert_eq!(outcome(&grants(""), &json), (Outcome::Deny, "effects".to_owned()));
}
