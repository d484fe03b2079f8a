//! Figures of others for the typed data that moves value: the type hashes that the contracts publish, and
//! digests as another implementation of EIP-712 computes them.

use super::permit_tests::{all, batch_transfer_from, set, transfer_from};
use super::typed_data;
use crate::core::evm::message::typed_data_bytes;
use crate::core::policy::evaluate::fixtures::local;
use alloy::dyn_abi::TypedData;
use alloy::primitives::{B256, b256, hex, keccak256};
use ethers_core::types::transaction::eip712::{self, Eip712 as _};
use serde_json::{Value, json};

/// As it stands in the deployed contracts: `PERMIT_TYPEHASH` of EIP-2612 tokens and of DAI; the
/// `*_TYPEHASH` of EIP-3009 in USDC; of Permit2's `PermitHash` and Seaport's `_ORDER_TYPEHASH` the texts, which
/// they hash when they are compiled or deployed.
const PUBLISHED: [(&str, &str, B256); 10] = [
    (
        "Permit",
        "Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)",
        b256!("0x6e71edae12b1b97f4d1f60370fef10105fa2faae0126114a169c64845d6126c9"),
    ),
    (
        "Permit",
        "Permit(address holder,address spender,uint256 nonce,uint256 expiry,bool allowed)",
        b256!("0xea2aa0a1be11a07ed86d755c93467f4f82362b452371d1ba94d1715123511acb"),
    ),
    (
        "PermitSingle",
        "PermitSingle(PermitDetails details,address spender,uint256 sigDeadline)\
         PermitDetails(address token,uint160 amount,uint48 expiration,uint48 nonce)",
        b256!("0xf3841cd1ff0085026a6327b620b67997ce40f282c88a8e905a7a5626e310f3d0"),
    ),
    (
        "PermitBatch",
        "PermitBatch(PermitDetails[] details,address spender,uint256 sigDeadline)\
         PermitDetails(address token,uint160 amount,uint48 expiration,uint48 nonce)",
        b256!("0xaf1b0d30d2cab0380e68f0689007e3254993c596f2fdd0aaa7f4d04f79440863"),
    ),
    (
        "PermitTransferFrom",
        "PermitTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline)\
         TokenPermissions(address token,uint256 amount)",
        b256!("0x939c21a48a8dbe3a9a2404a1d46691e4d39f6583d6ec6b35714604c986d80106"),
    ),
    (
        "PermitBatchTransferFrom",
        "PermitBatchTransferFrom(TokenPermissions[] permitted,address spender,uint256 nonce,\
         uint256 deadline)TokenPermissions(address token,uint256 amount)",
        b256!("0xfcf35f5ac6a2c28868dc44c302166470266239195f02b0ee408334829333b766"),
    ),
    (
        "TransferWithAuthorization",
        "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,\
         uint256 validBefore,bytes32 nonce)",
        b256!("0x7c7c6cdb67a18743f49ec6fa9b35f50d52ed05cbed4cc592e13b44501c1a2267"),
    ),
    (
        "ReceiveWithAuthorization",
        "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,\
         uint256 validBefore,bytes32 nonce)",
        b256!("0xd099cc98ef71107a616c4f0f941f04c322d8e254fe26b3c6668db87aae413de8"),
    ),
    (
        "CancelAuthorization",
        "CancelAuthorization(address authorizer,bytes32 nonce)",
        b256!("0x158b0a9edf7a828aad02f63cd515c68ef2f50ba807396f6d12842833a1597429"),
    ),
    (
        "OrderComponents",
        "OrderComponents(address offerer,address zone,OfferItem[] offer,\
         ConsiderationItem[] consideration,uint8 orderType,uint256 startTime,uint256 endTime,\
         bytes32 zoneHash,uint256 salt,bytes32 conduitKey,uint256 counter)\
         ConsiderationItem(uint8 itemType,address token,uint256 identifierOrCriteria,\
         uint256 startAmount,uint256 endAmount,address recipient)\
         OfferItem(uint8 itemType,address token,uint256 identifierOrCriteria,\
         uint256 startAmount,uint256 endAmount)",
        b256!("0xfa445660b7e21515a59617fcd68910b487aa5808b8abda3d78bc85df364b2c2f"),
    ),
];

fn theirs(json: &Value) -> eip712::TypedData {
    serde_json::from_value(json.clone()).unwrap_or_else(|error| panic!("{error}: {json}"))
}

fn ours(json: &Value) -> TypedData {
    serde_json::from_value(json.clone()).unwrap()
}

/// The digest that would be signed is the other implementation's.
fn same_digest(json: &Value) -> B256 {
    let digest = keccak256(typed_data_bytes(&ours(json)).unwrap());
    let other = theirs(json).encode_eip712().unwrap_or_else(|error| panic!("{error}: {json}"));
    assert_eq!(digest, B256::from(other), "{json}");
    digest
}

#[test]
fn permits_have_the_type_hashes_that_the_contracts_publish() {
    for ((json, _), (name, text, hash)) in all().into_iter().zip(PUBLISHED) {
        assert_eq!(keccak256(text), hash, "{name}");
        assert_eq!(json["primaryType"], name);
        let read = typed_data::strict(&local(), &ours(&json)).unwrap();
        assert_eq!(read.type_hash, hash, "{name}");
        let types = theirs(&json).types;
        assert_eq!(eip712::hash_type(name, &types).unwrap(), hash.0, "{name}");
    }
    assert_eq!(all().len(), PUBLISHED.len());
}

#[test]
fn the_digests_of_permits_are_those_of_another_implementation() {
    let mut seen = std::collections::BTreeSet::new();
    for (json, _) in all() {
        assert!(seen.insert(same_digest(&json)), "two of one digest");
        // Each field is in it, and where it is of.
        let fields: Vec<String> = json["message"].as_object().unwrap().keys().cloned().collect();
        for field in fields {
            let at = format!("/message/{field}");
            let other = match json.pointer(&at).unwrap() {
                Value::String(text) if text.len() == 42 => json!(format!("0x{}", "ab".repeat(20))),
                Value::String(text) if text.len() == 66 => json!(format!("0x{}", "cd".repeat(32))),
                Value::String(_) => json!("77"),
                Value::Bool(flag) => json!(!flag),
                Value::Array(all) if !all.is_empty() => json!([]),
                _ => continue,
            };
            assert!(seen.insert(same_digest(&set(json.clone(), &at, other))), "{field}: {json}");
        }
        let contract = json!(format!("0x{}", "ef".repeat(20)));
        assert!(seen.insert(same_digest(&set(
            json.clone(),
            "/domain/verifyingContract",
            contract
        ))));
        assert!(seen.insert(same_digest(&set(json, "/domain/chainId", json!(1)))));
    }
    for mut json in [
        transfer_from(",bytes32 witness"),
        batch_transfer_from(",bytes32 witness", &["5", "6"]),
        batch_transfer_from("", &["5", "6", "7"]),
    ] {
        if json.to_string().contains("witness") {
            json["message"]["witness"] = json!(format!("0x{:064x}", 1));
        }
        assert!(seen.insert(same_digest(&json)));
    }
}

/// The worked example of EIP-712.
#[test]
fn the_example_of_the_standard_has_its_digest() {
    let person =
        json!([{ "name": "name", "type": "string" }, { "name": "wallet", "type": "address" }]);
    let json = json!({
        "types": {
            "EIP712Domain": [
                { "name": "name", "type": "string" }, { "name": "version", "type": "string" },
                { "name": "chainId", "type": "uint256" },
                { "name": "verifyingContract", "type": "address" }
            ],
            "Person": person,
            "Mail": [
                { "name": "from", "type": "Person" }, { "name": "to", "type": "Person" },
                { "name": "contents", "type": "string" }
            ],
        },
        "primaryType": "Mail",
        "domain": { "name": "Ether Mail", "version": "1", "chainId": 1,
                    "verifyingContract": "0xCcCCccccCCCCcCCCCCCcCcCccCcCCCcCcccccccC" },
        "message": {
            "from": { "name": "Cow", "wallet": "0xCD2a3d9F938E13CD947Ec05AbC7FE734Df8DD826" },
            "to": { "name": "Bob", "wallet": "0xbBbBBBBbbBBBbbbBbbBbbbbBBbBbbbbBbBbbBBbB" },
            "contents": "Hello, Bob!"
        },
    });
    let expected = "be609aee343fb3c4b28e1df9e632fca64fcfaede20f02e86244efddf30957bd2";
    assert_eq!(hex::encode(same_digest(&json)), expected);
}
