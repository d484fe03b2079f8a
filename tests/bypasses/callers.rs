//! Other doors, other callers, other names for the same thing.

use crate::stage::*;
use crate::support::server::token;
use claviger::core::access::Role;
use claviger::issuer::{Grant, issue};
use claviger::ports::clock::Clock;
use claviger::system::SystemClock;
use reqwest::Method;
use serde_json::{Value, json};

#[test]
fn bypass_09_every_door_has_the_same_rule() {
    row("b09", async |it: Actor| {
        // By each name of the key; what is refused under one is refused under all.
        let token = it.server().token("dev:op", Role::Operator);
        let keys = format!("{}/admin/v1/keys", it.server().admin_url());
        let listed =
            it.server().try_call(Method::GET, keys, &token, None, None).await.unwrap().ok();
        let id = |account: &str| {
            let all = listed["keys"].as_array().unwrap();
            let key = all.iter().find(|key| key["address"] == account);
            key.unwrap_or_else(|| panic!("{account} in {listed:#}"))["id"].clone()
        };
        let bad = call(STRANGER, 1, "0x");
        let good = call(PAYEE, 1, "0x");
        for name in [json!(it.managed), id(&it.managed), json!("payments")] {
            let mut body = it.managed_body(&bad);
            body["signer"] = name.clone();
            let answer = it.ask(&body).await;
            assert_eq!((answer.status, answer.code()), (403, "policy-denied"), "{name}");
        }
        for name in [json!(it.external), id(&it.external)] {
            let mut body = it.external_body(0, &bad);
            body["signer"] = name.clone();
            it.refuses_signature(&format!("{name}"), &body).await;
            body["transaction"]["to"] = json!(PAYEE);
            it.allows_signature(&format!("{name}"), &body).await;
        }
        // A change of what was accepted is no way to another recipient, amount or fee.
        let paid = it.allows_managed("a payout", &good).await;
        let url = |verb: &str| {
            format!(
                "{}/v1/transactions/{}/{verb}",
                it.server().client_url(),
                paid["id"].as_str().unwrap()
            )
        };
        let client = it.server().token(SUB, Role::Client);
        for verb in ["cancel", "speed-up"] {
            for more in [
                json!({ "reason": "a test", "to": STRANGER }),
                json!({ "reason": "a test", "value": "1" }),
                json!({ "reason": "a test", "max_fee_per_gas": "1" }),
                json!({ "reason": "a test", "data": "0x" }),
            ] {
                let answer =
                    it.server().try_call(Method::POST, url(verb), &token, None, Some(&more)).await;
                let answer = answer.unwrap();
                assert_eq!(
                    (answer.status, answer.code()),
                    (400, "invalid-request"),
                    "{verb} {more}"
                );
            }
            let before = it.told().await;
            let plain = json!({ "reason": "a test" });
            let other = it.server().token("svc:watcher", Role::Client);
            for who in [&client, &other] {
                let answer =
                    it.server().try_call(Method::POST, url(verb), who, None, Some(&plain)).await;
                assert!(matches!(answer.unwrap().status, 403 | 404 | 409), "{verb}");
            }
            assert_eq!(it.told().await, before, "{verb}");
        }
    });
}

#[test]
fn bypass_15_an_address_has_one_text() {
    row("b15", async |it: Actor| {
        let checked = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8";
        let lower = checked.to_lowercase();
        it.allows("lower case", &call(&lower, 1, "0x")).await;
        it.allows("EIP-55", &call(checked, 1, "0x")).await;
        let digits = lower.trim_start_matches("0x");
        for (what, text) in [
            ("no prefix", digits.to_owned()),
            ("0X", format!("0X{digits}")),
            ("upper case", format!("0x{}", digits.to_uppercase())),
            ("one letter of another case", checked.replacen('C', "c", 1)),
            ("white space before", format!(" {lower}")),
            ("white space after", format!("{lower} ")),
            ("a line after", format!("{lower}\n")),
            ("one digit less", lower[..41].to_owned()),
            ("one digit more", format!("{lower}0")),
            ("a full-width digit", lower.replacen('7', "７", 1)),
            ("a letter o", lower.replacen('0', "o", 2).replacen('o', "0", 1)),
            ("a name", "vitalik.eth".to_owned()),
            ("CAIP-10", format!("eip155:31337:{lower}")),
            ("nothing", String::new()),
        ] {
            let call = call(&text, 1, "0x");
            it.rejects(
                what,
                &it.managed_body(&call),
                &[Door::Transactions, Door::Evaluate],
                (400, "invalid-request"),
            )
            .await;
            it.rejects(
                what,
                &it.external_body(0, &call),
                &[Door::Signatures, Door::Evaluate],
                (400, "invalid-request"),
            )
            .await;
            let mut body = it.external_body(0, &call);
            body["signer"] = json!(text);
            it.rejects(what, &body, &[Door::Signatures], (400, "invalid-request")).await;
        }
        for (what, text) in [
            ("lower case", lower.clone()),
            ("a wrong checksum", checked.replacen('C', "c", 1)),
            ("no prefix", digits.to_owned()),
        ] {
            assert!(check_bundle("book.toml", checked, &text).is_err(), "{what} in the book");
        }
    });
}

#[test]
fn bypass_23_on_a_managed_key_nobody_else_gives_nonces() {
    row("b23", async |it: Actor| {
        let good = call(PAYEE, 1, "0x");
        it.allows("each its own way", &good).await;
        let managed = |nonce: u64| {
            let mut body = it.external_body(nonce, &good);
            body["signer"] = json!(it.managed);
            body
        };
        let authorization = |nonce: u64| {
            let asked = json!({ "address": GATE, "nonce": nonce.to_string() });
            json!({ "chain": "local", "signer": it.managed, "authorization": asked })
        };
        for (what, body) in [
            ("the next nonce", managed(1)),
            ("a nonce that is used", managed(0)),
            ("a nonce far away", managed(1 << 40)),
            ("an authorization at the next", authorization(1)),
            ("an authorization at a used one", authorization(0)),
        ] {
            it.rejects(what, &body, &[Door::Signatures, Door::Evaluate], (409, "nonce-managed"))
                .await;
        }
        let mut with_nonce = it.managed_body(&good);
        with_nonce["nonce"] = json!("1");
        it.rejects(
            "a nonce for the server",
            &with_nonce,
            &[Door::Transactions],
            (400, "invalid-request"),
        )
        .await;
        let mut external = it.managed_body(&good);
        external["signer"] = json!(it.external);
        it.rejects(
            "an external key",
            &external,
            &[Door::Transactions, Door::Evaluate],
            (400, "invalid-request"),
        )
        .await;
    });
}

/// A token of anybody's making, signed by the issuer's key.
pub fn forged(
    key: &std::path::Path,
    (iss, aud): (&str, &str),
    sub: &str,
    roles: &[Role],
    jti: &str,
) -> String {
    issue(key, &Grant { iss, aud, sub, roles, ttl_s: 900, jti }, SystemClock.now()).unwrap()
}

#[test]
fn bypass_25_an_issuer_vouches_for_nobody_but_its_own() {
    row("b25", async |it: Actor| {
        let key = it.stage.setup.dir().join("issuer.p8");
        let good = it.managed_body(&call(PAYEE, 1, "0x"));
        let url = format!("{}/v1/transactions", it.server().client_url());
        let forged = |iss: &str, aud: &str, sub: &str, roles: &[Role]| {
            forged(&key, (iss, aud), sub, roles, &format!("b25-{iss}-{aud}-{sub}"))
        };
        let client = &[Role::Client][..];
        let all =
            &[Role::Client, Role::Operator, Role::Approver, Role::PolicyAdmin, Role::Auditor][..];
        let before = it.told().await;
        for (what, token, expected) in [
            ("an unknown issuer", forged("https://elsewhere", "claviger", SUB, client), 401),
            ("another audience", forged("claviger-dev", "others", SUB, client), 401),
            (
                "a subject that it may not vouch for as client",
                forged("claviger-dev", "claviger", "dev:op", client),
                403,
            ),
            ("every role at once", forged("claviger-dev", "claviger", SUB, all), 201),
        ] {
            let key = format!("b25 {what}").replace(' ', "-");
            let answer = it
                .server()
                .try_call(Method::POST, url.clone(), &token, Some(&key), Some(&good))
                .await;
            let answer = answer.unwrap();
            // More roles than a subject may have are not believed, or not needed: its own is.
            let is_so = answer.status == expected || (expected == 201 && answer.status == 403);
            assert!(is_so, "{what}: {} {:#}", answer.status, answer.body);
        }
        let other = tempfile::tempdir().unwrap();
        let stolen = other.path().join("issuer.p8");
        // A key of the same kind that is not the issuer's.
        let setup = crate::support::server::SetUp::new(&it.anvil().url(), None, "");
        std::fs::copy(setup.dir().join("issuer.p8"), &stolen).unwrap();
        let answer = it
            .server()
            .try_call(
                Method::POST,
                url,
                &token(&stolen, SUB, Role::Client),
                Some("b25-stolen"),
                Some(&good),
            )
            .await;
        assert_eq!(answer.unwrap().status, 401, "another's key");
        // Only the one with every role may have been signed: it is the caller itself.
        let signed = it.told().await.signed - before.signed;
        assert!(signed <= 1, "{signed}");
    });
}

/// So that a body of one shape is not taken for another.
#[test]
fn bypass_09_a_field_that_a_door_does_not_know_is_refused() {
    row("b09b", async |it: Actor| {
        let good = call(PAYEE, 1, "0x");
        for field in [
            "from",
            "chainId",
            "chain_id",
            "nonce",
            "gasPrice",
            "input",
            "principal",
            "delegatecall",
        ] {
            let mut body = it.managed_body(&good);
            body[field] = Value::from("1");
            it.rejects(
                field,
                &body,
                &[Door::Transactions, Door::Evaluate],
                (400, "invalid-request"),
            )
            .await;
            if field != "nonce" {
                let mut body = it.external_body(0, &good);
                body["transaction"][field] = Value::from("1");
                it.rejects(
                    field,
                    &body,
                    &[Door::Signatures, Door::Evaluate],
                    (400, "invalid-request"),
                )
                .await;
            }
        }
    });
}
