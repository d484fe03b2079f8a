//! Rules that do not apply, and rules of which one part applies.

use crate::stage::*;
use serde_json::json;

#[test]
fn bypass_05_what_no_grant_covers_is_denied_whatever_else_is_left_out() {
    row("b05", async |it: Actor| {
        let good = call(PAYEE, 5, "0x");
        it.allows("all of it", &good).await;
        for (what, call) in [
            (
                "no fee that can be paid",
                Call { max_fee: 101_000_000_000, tip: 6_000_000_000, ..good.clone() },
            ),
            ("more gas than is granted", Call { gas: 100_001, ..good.clone() }),
            ("a stranger, whom only an expired grant knows", call(STRANGER, 5, "0x")),
            ("no recipient", Call { to: None, ..good.clone() }),
            (
                "more than a payment",
                Call { value: "1000000000000000001".to_owned(), ..good.clone() },
            ),
        ] {
            // The server's own fee is never above the grant's, so only the caller's nonce has the first.
            if what.starts_with("no fee") {
                it.refuses_signature(what, &it.external_body(0, &call)).await;
            } else {
                it.refuses(what, &call).await;
            }
        }
        // Nobody's grant: the same request by callers whom no grant of it names.
        for sub in ["svc:nobody", "svc:watcher", "svc:rowsy", "svc:row", "SVC:ROWS"] {
            let other = Actor {
                sub,
                managed: it.managed.clone(),
                external: it.external.clone(),
                stage: it.stage,
                count: 0.into(),
            };
            let answer = other.ask(&it.managed_body(&good)).await;
            assert!(matches!(answer.status, 401 | 403), "{sub}: {:#}", answer.body);
            assert_eq!(
                other.sign(&it.external_body(1, &good)).await.status,
                answer.status,
                "{sub}"
            );
        }
        // A key that is in no group which a grant names.
        let lone = it.server().key("b05-lone", None, "external").await;
        let mut body = it.external_body(0, &good);
        body["signer"] = json!(lone);
        let answer = it.sign(&body).await;
        assert_eq!((answer.status, answer.code()), (403, "policy-denied"), "{:#}", answer.body);
        // A grant that wants an event, and no event.
        let charge = function(
            crate::support::server::PROCESSOR,
            "executeCharge(uint256,uint256)",
            &[&uint(1), &uint(1)],
        );
        let watcher = it.stage.actor("b05-watcher", "svc:watcher").await;
        watcher.refuses("no source", &charge).await;
    });
}

#[test]
fn bypass_06_every_part_must_be_covered_and_not_some_part() {
    row("b06", async |it: Actor| {
        let transfer = function(USD, "transfer(address,uint256)", &[&address(PAYEE), &uint(1)]);
        it.allows("the transfer alone", &transfer).await;
        it.allows("the value alone", &call(PAYEE, 1, "0x")).await;
        for (what, call) in [
            ("a transfer with value beside it", Call { value: "1".to_owned(), ..transfer.clone() }),
            ("a transfer and a fee above the bound", Call { gas: 100_001, ..transfer.clone() }),
            (
                "a good amount to a stranger",
                function(USD, "transfer(address,uint256)", &[&address(STRANGER), &uint(1)]),
            ),
            (
                "a payee and too much",
                function(
                    USD,
                    "transfer(address,uint256)",
                    &[&address(PAYEE), &uint(1_000_000_001)],
                ),
            ),
            (
                "one good argument, and value where none is granted",
                Call { value: "1".to_owned(), ..function(GATE, "set(bool)", &[&uint(1)]) },
            ),
            (
                "a good count, and more value than is granted",
                Call {
                    value: "500000000000000001".to_owned(),
                    ..function(GATE, "buy(uint256)", &[&uint(1)])
                },
            ),
            (
                "good value, and a count too high",
                Call { value: "1".to_owned(), ..function(GATE, "buy(uint256)", &[&uint(11)]) },
            ),
        ] {
            it.refuses(what, &call).await;
        }
    });
}
