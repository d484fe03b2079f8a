//! Numbers that overflow, round, or are not numbers, and fees that are the real payment.

use crate::stage::*;
use serde_json::{Value, json};

const ETHER: u128 = 1_000_000_000_000_000_000;

#[test]
fn bypass_13_amounts_are_256_bits_and_strings() {
    row("b13", async |it: Actor| {
        let max = "115792089237316195423570985008687907853269984665640564039457584007913129639935";
        let value = |value: &str| Call { value: value.to_owned(), ..call(PAYEE, 0, "0x") };
        it.allows("one ether", &value(&ETHER.to_string())).await;
        for (what, call) in [
            ("one wei above", value(&(ETHER + 1).to_string())),
            ("2^64", value("18446744073709551616")),
            ("2^128 + 1", value("340282366920938463463374607431768211457")),
            ("2^256 - 1", value(max)),
            (
                "2^256 - 1 tokens",
                function(USD, "transfer(address,uint256)", &[&address(PAYEE), &"f".repeat(64)]),
            ),
            (
                "2^128 + 1 tokens",
                function(
                    USD,
                    "transfer(address,uint256)",
                    &[&address(PAYEE), &format!("{:0>64}", format!("1{:032x}", 1))],
                ),
            ),
            (
                "one token unit above",
                function(
                    USD,
                    "transfer(address,uint256)",
                    &[&address(PAYEE), &uint(1_000_000_001)],
                ),
            ),
            (
                "2^256 - 1 with a call",
                Call { value: max.to_owned(), ..function(GATE, "buy(uint256)", &[&uint(1)]) },
            ),
        ] {
            it.refuses(what, &call).await;
        }
        let doors = [Door::Transactions, Door::Evaluate];
        let more = format!("{max}0");
        for (what, value) in [
            (
                "2^256",
                json!(
                    "115792089237316195423570985008687907853269984665640564039457584007913129639936"
                ),
            ),
            ("ten times as much", json!(more)),
            ("a number", json!(1)),
            ("a small float", json!(0.1)),
            ("a float in a string", json!("1.0")),
            ("an exponent", json!("1e18")),
            ("hex", json!("0x10")),
            ("a sign", json!("-1")),
            ("a plus", json!("+1")),
            ("white space", json!(" 1")),
            ("an underscore", json!("1_000")),
            ("other digits", json!("１")),
            ("nothing", json!("")),
            ("a list", json!(["1"])),
        ] {
            let mut body = it.managed_body(&call(PAYEE, 1, "0x"));
            body["value"] = value.clone();
            it.rejects(what, &body, &doors, (400, "invalid-request")).await;
            let mut body = it.external_body(0, &call(PAYEE, 1, "0x"));
            body["transaction"]["value"] = value;
            it.rejects(what, &body, &[Door::Signatures, Door::Evaluate], (400, "invalid-request"))
                .await;
        }
    });
}

#[test]
fn bypass_14_a_condition_compares_only_what_is_of_one_type() {
    for (what, from, to) in [
        ("a bool as text", "on = { eq = true }", "on = { eq = \"true\" }"),
        ("a bool as a number", "on = { eq = true }", "on = { eq = 1 }"),
        ("a bool with an order", "on = { eq = true }", "on = { max = \"1\" }"),
        ("a number as a number", "level = { max = \"7\" }", "level = { max = 7 }"),
        ("a number as hex", "level = { max = \"7\" }", "level = { max = \"0x7\" }"),
        ("a number that the type has not", "level = { max = \"7\" }", "level = { eq = \"256\" }"),
        ("a number below the type's", "level = { max = \"7\" }", "level = { min = \"-1\" }"),
        (
            "a number for an address",
            "who = { eq = \"0x7000000000000000000000000000000000000007\" }",
            "who = { eq = \"7\" }",
        ),
        (
            "an order of addresses",
            "who = { eq = \"0x7000000000000000000000000000000000000007\" }",
            "who = { max = \"0x7000000000000000000000000000000000000007\" }",
        ),
        (
            "an address of typed data as text",
            "to = { eq = \"0x7000000000000000000000000000000000000007\" }",
            "to = { eq = \"me\" }",
        ),
        ("an argument that there is not", "on = { eq = true }", "off = { eq = true }"),
        ("an amount as a number", "per_tx = \"1.0\"", "per_tx = 1.0"),
        ("more decimals than the asset has", "per_tx = \"1000.00\"", "per_tx = \"1000.0000001\""),
    ] {
        let loaded = check_bundle("grants.toml", from, to);
        assert!(loaded.is_err(), "{what}: {loaded:?}");
    }
    check_bundle("grants.toml", "", "").unwrap();
    row("b14", async |it: Actor| {
        it.allows("seven", &function(GATE, "file(uint8)", &[&uint(7)])).await;
        it.allows("the very address", &function(GATE, "mark(address)", &[&address(PAYEE)])).await;
        for (what, call) in [
            ("eight", function(GATE, "file(uint8)", &[&uint(8)])),
            ("255, which is -1 where it is signed", function(GATE, "file(uint8)", &[&uint(255)])),
            ("false", function(GATE, "set(bool)", &[&uint(0)])),
            ("another address", function(GATE, "mark(address)", &[&address(STRANGER)])),
            ("an address as a small number", function(GATE, "mark(address)", &[&uint(7)])),
        ] {
            it.refuses(what, &call).await;
        }
    });
}

#[test]
fn bypass_18_a_fee_is_a_payment() {
    row("b18", async |it: Actor| {
        const GWEI: u128 = 1_000_000_000;
        let plain = call(PAYEE, 1, "0x");
        it.allows("a usual fee", &plain).await;
        let external = |call: Call| it.external_body(0, &call);
        for (what, fees) in [
            ("a fee above the grant's", Call { max_fee: 100 * GWEI + 1, ..plain.clone() }),
            (
                "a tip above the grant's",
                Call { max_fee: 50 * GWEI, tip: 5 * GWEI + 1, ..plain.clone() },
            ),
            ("gas above the grant's", Call { gas: 100_001, ..plain.clone() }),
            ("the highest fee that there is", Call { max_fee: u128::MAX, ..plain.clone() }),
            (
                "a product above 2^192",
                Call { max_fee: u128::MAX, tip: u128::MAX, gas: i64::MAX as u64, ..plain.clone() },
            ),
        ] {
            it.refuses_signature(what, &external(fees)).await;
        }
        let tip_above = external(Call { max_fee: GWEI, tip: 2 * GWEI, ..plain.clone() });
        let doors = [Door::Signatures];
        it.rejects("a tip above the fee", &tip_above, &doors, (400, "invalid-request")).await;
        let legacy = |price: u128| {
            json!({ "chain": "local", "signer": it.external, "transaction": {
                "nonce": "0", "to": PAYEE, "value": "1", "gas": "21000", "gas_price": price.to_string(),
            }})
        };
        it.refuses_signature("a price above the tip's bound", &legacy(5 * GWEI + 1)).await;
        it.allows_signature("a price within it", &legacy(5 * GWEI)).await;
        // A managed one is capped, whatever is asked.
        let dear = it
            .allows_managed(
                "as much as the chain admits",
                &Call { max_fee: 149 * GWEI, tip: 5 * GWEI, ..plain.clone() },
            )
            .await;
        for attempt in dear["attempts"].as_array().unwrap() {
            let fee: u128 = attempt["max_fee_per_gas"].as_str().unwrap().parse().unwrap();
            assert!(fee <= 100 * GWEI, "{attempt:#}");
        }
        it.refuses_managed("gas above the grant's", &Call { gas: 100_001, ..plain.clone() }).await;
        // Gas × price counts: 60,000 × 100 gwei is 0.006 ether, and the grant's window for fees holds 0.015.
        let ping = Call { max_fee: 100 * GWEI, ..function(GATE, "ping()", &[]) };
        for nonce in [0, 1] {
            it.allows_signature("a ping", &it.external_body(nonce, &ping)).await;
        }
        it.has_no_room("a third", &it.external_body(2, &ping)).await;
        // And with the value in windows of native value: 0.5 + 0.4 leave no room for a fee.
        let buy = |wei: u128| Call {
            value: wei.to_string(),
            ..function(GATE, "buy(uint256)", &[&uint(1)])
        };
        it.allows_signature("half an ether", &it.external_body(3, &buy(ETHER / 2))).await;
        let exactly = it.external_body(4, &buy(ETHER * 4 / 10));
        it.has_no_room("value up to the brim, and a fee", &exactly).await;
        it.allows_signature("with room for the fee", &it.external_body(4, &buy(ETHER * 39 / 100)))
            .await;
        for field in ["max_fee_per_blob_gas", "blob_versioned_hashes", "maxFeePerBlobGas"] {
            let mut body = external(plain.clone());
            body["transaction"][field] = Value::from("1");
            it.rejects(field, &body, &[Door::Signatures, Door::Evaluate], (400, "invalid-request"))
                .await;
        }
    });
}
