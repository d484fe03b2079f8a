//! Typed data that moves value: recognised to the last field, or opaque.

use super::addresses;
use super::fixtures::*;
use crate::core::amount::Amount;
use crate::core::intent::Intent;
use crate::core::policy::effect::{ApprovalForm, PermitTerms};
use crate::core::policy::evaluate::fixtures::{local, request};
use crate::core::policy::{Effect, PolicyRequest};
use alloy::primitives::{Address, U256};
use serde_json::{Map, Value, json};

const DETAILS: &str = "PermitDetails(address token,uint160 amount,uint48 expiration,uint48 nonce)";
const PERMISSIONS: &str = "TokenPermissions(address token,uint256 amount)";

/// Typed data from the `encodeType` texts of its types, the primary one first.
fn typed(types: &[&str], contract: Address, message: Value) -> Value {
    let mut declared = Map::new();
    for text in types {
        let (name, fields) = text.strip_suffix(')').unwrap().split_once('(').unwrap();
        let field = |field: &str| {
            let (kind, name) = field.split_once(' ').unwrap();
            json!({ "name": name, "type": kind })
        };
        declared.insert(name.into(), fields.split(',').map(field).collect());
    }
    declared.insert(
        "EIP712Domain".into(),
        json!([{ "name": "chainId", "type": "uint256" },
               { "name": "verifyingContract", "type": "address" }]),
    );
    json!({
        "types": declared,
        "primaryType": types[0].split('(').next().unwrap(),
        "domain": { "chainId": 31337, "verifyingContract": contract.to_string() },
        "message": message,
    })
}

fn asks_for(json: &Value) -> PolicyRequest {
    let data = Box::new(serde_json::from_value(json.clone()).unwrap());
    request(Intent::TypedData { chain: local(), data }, facts())
}

fn says(json: &Value) -> Vec<Effect> {
    effects_of(&asks_for(json))
}

fn permit() -> Value {
    let fields =
        "Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)";
    let message = json!({ "owner": SIGNER, "spender": VAULT, "value": "5", "nonce": "3",
                          "deadline": "1800000000" });
    typed(&[fields], TUSD, message)
}

fn dai() -> Value {
    let fields = "Permit(address holder,address spender,uint256 nonce,uint256 expiry,bool allowed)";
    let message = json!({ "holder": SIGNER, "spender": VAULT, "nonce": "3", "expiry": "0",
                          "allowed": true });
    typed(&[fields], TUSD, message)
}

fn detail(amount: &str, expiration: &str) -> Value {
    json!({ "token": TUSD, "amount": amount, "expiration": expiration, "nonce": "3" })
}

fn single() -> Value {
    let fields = "PermitSingle(PermitDetails details,address spender,uint256 sigDeadline)";
    let details = detail("5", "1900000000");
    let message = json!({ "details": details, "spender": VAULT, "sigDeadline": "1800000000" });
    typed(&[fields, DETAILS], PERMIT2, message)
}

fn batch(details: Vec<Value>) -> Value {
    let fields = "PermitBatch(PermitDetails[] details,address spender,uint256 sigDeadline)";
    let message = json!({ "details": details, "spender": VAULT, "sigDeadline": "1800000000" });
    typed(&[fields, DETAILS], PERMIT2, message)
}

pub(super) fn transfer_from(witness: &str) -> Value {
    let name = if witness.is_empty() { "PermitTransferFrom" } else { "PermitWitnessTransferFrom" };
    let fields = format!(
        "{name}(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline{witness})"
    );
    let message = json!({ "permitted": { "token": TUSD, "amount": "5" }, "spender": VAULT,
                          "nonce": "3", "deadline": "1800000000" });
    typed(&[&fields, PERMISSIONS], PERMIT2, message)
}

pub(super) fn batch_transfer_from(witness: &str, amounts: &[&str]) -> Value {
    let name = if witness.is_empty() {
        "PermitBatchTransferFrom"
    } else {
        "PermitBatchWitnessTransferFrom"
    };
    let fields = format!(
        "{name}(TokenPermissions[] permitted,address spender,uint256 nonce,uint256 deadline{witness})"
    );
    let permitted: Vec<Value> =
        amounts.iter().map(|amount| json!({ "token": TUSD, "amount": amount })).collect();
    let message = json!({ "permitted": permitted, "spender": VAULT, "nonce": "3",
                          "deadline": "1800000000" });
    typed(&[&fields, PERMISSIONS], PERMIT2, message)
}

fn authorization(name: &str) -> Value {
    let fields = format!(
        "{name}(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
    );
    let message = json!({ "from": SIGNER, "to": VAULT, "value": "5", "validAfter": "0",
                          "validBefore": "1800000000", "nonce": U256::from(3).to_be_bytes_vec()
                          .iter().fold("0x".to_owned(), |text, byte| format!("{text}{byte:02x}")) });
    typed(&[&fields], TUSD, message)
}

fn cancel() -> Value {
    let message = json!({ "authorizer": SIGNER, "nonce": format!("0x{:064x}", 3) });
    typed(&["CancelAuthorization(address authorizer,bytes32 nonce)"], TUSD, message)
}

fn safe_tx(to: Address, data: &[u8], operation: u8) -> Value {
    let fields = "SafeTx(address to,uint256 value,bytes data,uint8 operation,uint256 safeTxGas,\
                  uint256 baseGas,uint256 gasPrice,address gasToken,address refundReceiver,uint256 nonce)";
    let message = json!({ "to": to, "value": "0", "data": format!("0x{}", hex::encode(data)),
                          "operation": operation.to_string(), "safeTxGas": "0", "baseGas": "0",
                          "gasPrice": "0", "gasToken": Address::ZERO,
                          "refundReceiver": Address::ZERO, "nonce": "8" });
    typed(&[fields], SAFE, message)
}

fn item(kind: u8, token: Address, amounts: [&str; 2]) -> Value {
    json!({ "itemType": kind.to_string(), "token": token, "identifierOrCriteria": "7",
            "startAmount": amounts[0], "endAmount": amounts[1] })
}

fn order(offer: Vec<Value>) -> Value {
    let fields = "OrderComponents(address offerer,address zone,OfferItem[] offer,\
                  ConsiderationItem[] consideration,uint8 orderType,uint256 startTime,uint256 endTime,\
                  bytes32 zoneHash,uint256 salt,bytes32 conduitKey,uint256 counter)";
    let wanted = "ConsiderationItem(uint8 itemType,address token,uint256 identifierOrCriteria,\
                  uint256 startAmount,uint256 endAmount,address recipient)";
    let offered = "OfferItem(uint8 itemType,address token,uint256 identifierOrCriteria,\
                   uint256 startAmount,uint256 endAmount)";
    let message = json!({ "offerer": SIGNER, "zone": Address::ZERO, "offer": offer,
                          "consideration": [], "orderType": "0", "startTime": "0",
                          "endTime": "1800000000", "zoneHash": format!("0x{:064x}", 0), "salt": "1",
                          "conduitKey": format!("0x{:064x}", 0), "counter": "3" });
    typed(&[fields, wanted, offered], SEAPORT, message)
}

pub(super) fn set(mut json: Value, pointer: &str, value: Value) -> Value {
    *json.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value;
    json
}

fn allows(contract: Address, amount: U256, form: ApprovalForm, until: [Option<u64>; 2]) -> Effect {
    let [deadline, expires] = until;
    let permit =
        PermitTerms { verifying_contract: contract, nonce: U256::from(3), deadline, expires };
    Effect::Approve {
        asset: "tusd".into(),
        owner: SIGNER,
        spender: VAULT,
        amount: Amount::new(amount),
        form,
        permit: Some(permit),
    }
}

fn power(exponent: usize) -> U256 {
    U256::from(2).pow(U256::from(exponent))
}

const DEADLINE: Option<u64> = Some(1_800_000_000);

#[test]
fn eip_2612_and_dai_permits_are_allowances() {
    let five = U256::from(5);
    let expected = allows(TUSD, five, ApprovalForm::Permit, [DEADLINE, None]);
    assert_eq!(says(&permit()), [expected]);
    let all = set(permit(), "/message/value", json!(power(255).to_string()));
    let all = set(all, "/message/deadline", json!(U256::MAX.to_string()));
    assert_eq!(says(&all), [allows(TUSD, U256::MAX, ApprovalForm::Permit, [None, None])]);
    let form = ApprovalForm::DaiPermit;
    assert_eq!(says(&dai()), [allows(TUSD, U256::MAX, form, [None, None])]);
    let ends = set(dai(), "/message/expiry", json!("1800000000"));
    assert_eq!(says(&ends), [allows(TUSD, U256::MAX, form, [DEADLINE, None])]);
    let back = set(dai(), "/message/allowed", json!(false));
    assert_eq!(says(&back), [allows(TUSD, U256::ZERO, form, [None, None])]);
}

#[test]
fn permit2_by_allowance_and_by_signature() {
    let (five, form) = (U256::from(5), ApprovalForm::Permit2);
    let until = [DEADLINE, Some(1_900_000_000)];
    assert_eq!(says(&single()), [allows(PERMIT2, five, form, until)]);
    let max = (power(160) - U256::ONE).to_string();
    let details = vec![detail(&max, "1900000000"), detail("7", "0")];
    let expected = [
        allows(PERMIT2, U256::MAX, form, until),
        // An expiration of 0 is the block of its submission.
        allows(PERMIT2, U256::from(7), form, [DEADLINE, DEADLINE]),
    ];
    assert_eq!(says(&batch(details)), expected);
    refused(&says(&batch(vec![])), "nothing at all");
    refused(&says(&batch(vec![detail("1", "1"); 65])), "more than 64 effects");
    let (form, until) = (ApprovalForm::Permit2Transfer, [DEADLINE, DEADLINE]);
    assert_eq!(says(&transfer_from("")), [allows(PERMIT2, five, form, until)]);
    let two = says(&batch_transfer_from("", &["5", "6"]));
    let six = U256::from(6);
    assert_eq!(two, [allows(PERMIT2, five, form, until), allows(PERMIT2, six, form, until)]);
}

#[test]
fn a_witness_of_any_type_changes_nothing() {
    let (five, form) = (U256::from(5), ApprovalForm::Permit2Transfer);
    let until = [DEADLINE, DEADLINE];
    let mut plain = transfer_from(",bytes32 witness");
    plain["message"]["witness"] = json!(format!("0x{:064x}", 1));
    assert_eq!(says(&plain), [allows(PERMIT2, five, form, until)]);
    let orders = |mut json: Value| {
        json["types"]["Order"] = json!([{ "name": "to", "type": "address" }]);
        json["message"]["order"] = json!({ "to": VAULT });
        json
    };
    let single = orders(transfer_from(",Order order"));
    assert_eq!(says(&single), [allows(PERMIT2, five, form, until)]);
    let batch = orders(batch_transfer_from(",Order order", &["5"]));
    assert_eq!(says(&batch), [allows(PERMIT2, five, form, until)]);
    // What is said beside it must still be declared, and all that is declared said.
    refused(&says(&set(single.clone(), "/message/order", json!({}))), "");
    let more = set(single.clone(), "/message/order", json!({ "to": VAULT, "from": VAULT }));
    refused(&says(&more), "`from`");
    // Two fields, or none, or other fields before it, are not a witness.
    for fields in [",bytes32 a,bytes32 b", ",bytes32 a,Order order"] {
        let mut two = transfer_from(fields);
        two["message"]["a"] = json!(format!("0x{:064x}", 1));
        two["message"]["b"] = json!(format!("0x{:064x}", 1));
        assert!(is_opaque(&says(&two)[0]));
    }
    let text = transfer_from("").to_string().replace("PermitTransferFrom", WITNESS);
    refused(&says(&serde_json::from_str(&text).unwrap()), "moves value");
    let text = plain.to_string().replace("uint256", "uint248");
    assert!(is_opaque(&says(&serde_json::from_str(&text).unwrap())[0]));
}

const WITNESS: &str = "PermitWitnessTransferFrom";

#[test]
fn eip_3009_is_a_transfer_that_somebody_else_sends() {
    let (five, form) = (U256::from(5), ApprovalForm::TransferAuthorization);
    for name in ["TransferWithAuthorization", "ReceiveWithAuthorization"] {
        let expected = allows(TUSD, five, form, [DEADLINE, DEADLINE]);
        assert_eq!(says(&authorization(name)), [expected]);
    }
    let done = says(&cancel());
    let [Effect::Approve { amount, spender, owner, .. }] = done.as_slice() else {
        panic!("{done:?}")
    };
    assert_eq!((*amount, *spender, *owner), (Amount::ZERO, SIGNER, SIGNER));
}

#[test]
fn a_signed_safe_transaction_is_never_understood_whatever_it_carries() {
    let sent = multi_send(&[(0, Inner(TUSD, 0, transfer(PAYEE, 5))), (0, Inner(PAYEE, 4, vec![]))]);
    for json in [
        safe_tx(TUSD, &transfer(PAYEE, 5), 0),
        safe_tx(TUSD, &approve(VAULT, 5), 0),
        safe_tx(MULTISEND, &sent, 1),
        safe_tx(PAYEE, &[], 0),
        // To a contract that a grant of action `opaque` could name.
        safe_tx(VAULT, &[1, 2, 3, 4], 0),
        // Of a Safe that is in no book.
        set(safe_tx(TUSD, &transfer(PAYEE, 5), 0), "/domain/verifyingContract", json!(VAULT)),
    ] {
        refused(&says(&json), "execTransaction");
        assert!(matches!(&says(&json)[..], [Effect::Opaque { call: None, .. }]), "{json}");
        assert_eq!(addresses(world(), &asks_for(&json).intent, SIGNER), [] as [Address; 0]);
    }
}

#[test]
fn a_seaport_order_offers_item_by_item() {
    let nft = |asset: &str, id: Option<u64>| Effect::OperatorApproval {
        asset: asset.into(),
        owner: SIGNER,
        operator: SEAPORT,
        id: id.map(U256::from),
        approved: true,
    };
    let offer = vec![
        item(1, TUSD, ["5", "9"]),
        item(2, PUNKS, ["1", "1"]),
        item(3, TICKETS, ["4", "4"]),
        item(4, PUNKS, ["1", "1"]),
        item(5, TICKETS, ["1", "1"]),
    ];
    let done = says(&order(offer));
    let Effect::Approve { amount, spender, form, permit, .. } = &done[0] else {
        panic!("{done:?}")
    };
    assert_eq!((*amount, *spender, *form), (9_u64.into(), SEAPORT, ApprovalForm::Seaport));
    assert_eq!(permit.as_ref().and_then(|terms| terms.deadline), DEADLINE);
    let nfts =
        [nft("punks", Some(7)), nft("tickets", Some(7)), nft("punks", None), nft("tickets", None)];
    assert_eq!(done[1..], nfts);
    refused(&says(&order(vec![])), "nothing at all");
    for wrong in [
        item(0, Address::ZERO, ["1", "1"]),
        item(6, TUSD, ["1", "1"]),
        item(1, PUNKS, ["1", "1"]),
        item(2, TICKETS, ["1", "1"]),
        item(1, UNKNOWN, ["1", "1"]),
    ] {
        let offer = vec![item(1, TUSD, ["1", "1"]), wrong];
        assert!(matches!(&says(&order(offer))[..], [Effect::Opaque { call: None, .. }]));
    }
    let contracts = set(order(vec![item(1, TUSD, ["1", "1"])]), "/message/orderType", json!("4"));
    refused(&says(&contracts), "order's type");
}

/// One of each, and where its owner stands.
pub(super) fn all() -> Vec<(Value, Option<&'static str>)> {
    vec![
        (permit(), Some("owner")),
        (dai(), Some("holder")),
        (single(), None),
        (batch(vec![detail("5", "1900000000")]), None),
        (transfer_from(""), None),
        (batch_transfer_from("", &["5"]), None),
        (authorization("TransferWithAuthorization"), Some("from")),
        (authorization("ReceiveWithAuthorization"), Some("from")),
        (cancel(), Some("authorizer")),
        (order(vec![item(1, TUSD, ["5", "9"])]), Some("offerer")),
    ]
}

#[test]
fn a_permit_of_another_account_chain_or_contract_is_opaque() {
    // 8, 16
    for (json, owner) in all() {
        assert!(!says(&json).iter().any(is_opaque), "{json}");
        if let Some(owner) = owner {
            let others = set(json.clone(), &format!("/message/{owner}"), json!(VAULT));
            refused(&says(&others), "not of the account that would sign");
        }
        for contract in [VAULT, UNKNOWN, PUNKS, BLANK] {
            let value = json!(contract.to_string());
            let elsewhere = set(json.clone(), "/domain/verifyingContract", value);
            assert!(is_opaque(&says(&elsewhere)[0]), "{contract} {json}");
        }
        refused(&says(&set(json.clone(), "/domain/chainId", json!(1))), "not the chain's");
        let mut without = json.clone();
        without["domain"].as_object_mut().unwrap().remove("chainId");
        refused(&says(&without), "no chainId");
        let mut without = json.clone();
        without["domain"].as_object_mut().unwrap().remove("verifyingContract");
        refused(&says(&without), "no verifyingContract");
        let mut salted = json.clone();
        salted["domain"]["salt"] = json!(format!("0x{:064x}", 1));
        refused(&says(&salted), "fields that its type declares");
    }
}

#[test]
fn every_field_of_a_permit_is_there_once_and_fits_its_type() {
    // 1, 7
    for (json, _) in all() {
        let fields: Vec<String> = json["message"].as_object().unwrap().keys().cloned().collect();
        for field in &fields {
            let mut less = json.clone();
            less["message"].as_object_mut().unwrap().remove(field);
            assert!(matches!(&says(&less)[..], [Effect::Opaque { call: None, .. }]), "{field}");
        }
        let mut more = json.clone();
        more["message"]["extra"] = json!("1");
        refused(&says(&more), "`extra`");
        // Another width of a field, or another name, is another type: known by name alone, so opaque.
        let primary = json["primaryType"].as_str().unwrap().to_owned();
        for at in 0..fields.len() {
            let renamed = set(json.clone(), &format!("/types/{primary}/{at}/name"), json!("other"));
            assert!(is_opaque(&says(&renamed)[0]), "{primary} {at}");
            let retyped =
                set(json.clone(), &format!("/types/{primary}/{at}/type"), json!("uint32"));
            assert!(is_opaque(&says(&retyped)[0]), "{primary} {at}");
        }
        let mut swapped = json.clone();
        swapped["types"][&primary].as_array_mut().unwrap().reverse();
        refused(&says(&swapped), "moves value");
    }
    for (json, pointer) in [
        (dai(), "/message/allowed"),
        (permit(), "/message/value"),
        (single(), "/message/details/amount"),
        (single(), "/message/details/expiration"),
    ] {
        for dirty in [
            json!("115792089237316195423570985008687907853269984665640564039457584007913129639936"),
            json!((U256::MAX - U256::from(4)).to_string()).as_str().map_or(json!("-1"), |text| {
                if pointer == "/message/value" { json!("-1") } else { json!(text) }
            }),
            json!("-1"),
            json!("yes"),
            json!({}),
            Value::Null,
        ] {
            let effects = says(&set(json.clone(), pointer, dirty.clone()));
            assert!(effects.iter().any(is_opaque), "{pointer} {dirty}");
        }
    }
}

#[test]
fn what_is_known_by_name_to_move_value_is_never_just_a_message() {
    for name in [
        "Permit",
        "PermitForAll",
        "SafeMessage",
        "SafeOp",
        "BulkOrder",
        "Order",
        "ForwardRequest",
        "MetaTransaction",
        "Delegation",
        "PackedUserOperation",
    ] {
        let json = typed(&[&format!("{name}(uint256 id)")], VAULT, json!({ "id": "1" }));
        refused(&says(&json), "moves value");
        let (outer, inner) = (format!("Outer({name} inner)"), format!("{name}(uint256 id)"));
        refused(
            &says(&typed(&[&outer, &inner], VAULT, json!({ "inner": { "id": "1" } }))),
            "moves value",
        );
    }
    let json = typed(&["Vote(uint256 id)"], VAULT, json!({ "id": "1" }));
    assert!(matches!(&says(&json)[..], [Effect::TypedMessage { .. }]));
}
