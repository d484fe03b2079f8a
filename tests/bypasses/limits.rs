//! Limits over time: versions of a nonce, many at once, and more than one limit.

use crate::stage::*;
use futures::future::join_all;
use serde_json::json;

const ETHER: u128 = 1_000_000_000_000_000_000;

#[test]
fn bypass_11_versions_of_a_nonce_hold_the_most_of_each_and_give_nothing_back() {
    row("b11", async |it: Actor| {
        let pay = |wei: u128| call(PAYEE, wei, "0x");
        // One nonce holds one ether, however often and however it is signed.
        for wei in [ETHER, ETHER / 2, 1, ETHER] {
            it.allows_signature("a version", &it.external_body(0, &pay(wei))).await;
        }
        it.allows_signature("another nonce", &it.external_body(1, &pay(ETHER))).await;
        let third = it.external_body(2, &pay(ETHER));
        it.has_no_room("a third ether", &third).await;
        // A smaller version, and one that does something else, free nothing of what may still be mined.
        it.allows_signature("a smaller version", &it.external_body(1, &pay(1))).await;
        it.allows_signature("a call", &it.external_body(1, &function(GATE, "ping()", &[]))).await;
        it.has_no_room("after smaller versions", &third).await;
        // Nor does it that they are never sent, while nonces before them are used by nobody.
        it.anvil().mine(3).await;
        it.has_no_room("after blocks", &third).await;
        // A smaller one fits; then its larger version does not.
        it.allows_signature("what is left", &it.external_body(2, &pay(ETHER * 4 / 10))).await;
        it.has_no_room("the same nonce, larger", &it.external_body(2, &pay(ETHER * 6 / 10))).await;
        // A low value with a high fee, then a high value with a low fee: the most of both.
        let dear = Call { max_fee: 100_000_000_000, gas: 100_000, ..pay(1) };
        it.allows_signature("a dear version", &it.external_body(2, &dear)).await;
        it.has_no_room("value and fee together", &it.external_body(2, &pay(ETHER * 495 / 1000)))
            .await;
        // What was mined is spent.
        let sent = it.sign(&it.external_body(0, &pay(ETHER))).await.ok();
        it.anvil().rpc("eth_sendRawTransaction", json!([sent["raw"]])).await;
        it.until_nonce(&it.external, 1).await;
        it.anvil().mine(4).await;
        it.has_no_room("after it was mined", &it.external_body(3, &pay(ETHER / 2))).await;
    });
}

#[test]
fn bypass_12_a_hundred_at_once_are_counted_one_by_one() {
    row("b12", async |it: Actor| {
        let it = &it;
        // One text a day.
        let other = it.stage.actor("b12-texts", "svc:twice").await;
        let texts: Vec<_> = (0..100)
            .map(
                |n| json!({ "signer": other.external, "message": { "text": format!("once {n}") } }),
            )
            .collect();
        let answers = join_all(texts.iter().map(|body| other.sign(body))).await;
        let signed = answers.iter().filter(|it| matches!(it.status, 201 | 202)).count();
        let denied = answers.iter().filter(|it| it.code() == "policy-denied").count();
        assert_eq!((signed, denied), (1, 99));
        let told = other.told().await;
        assert_eq!((told.denied, told.decided, told.signed), (99, 1, 1));
        // Two and a half ether a day, one at a time, at both doors: by the caller's nonces…
        let bodies: Vec<_> =
            (0..50).map(|nonce| it.external_body(nonce, &call(PAYEE, ETHER, "0x"))).collect();
        let answers = join_all(bodies.iter().map(|body| it.sign(body))).await;
        assert_eq!(answers.iter().filter(|it| matches!(it.status, 201 | 202)).count(), 2);
        // …and by the server's.
        let body = it.managed_body(&call(PAYEE, ETHER, "0x"));
        let answers = join_all((0..50).map(|_| it.ask(&body))).await;
        let accepted: Vec<_> = answers.iter().filter(|it| it.status == 201).collect();
        assert_eq!(accepted.len(), 2);
        for one in accepted {
            it.server().wait_for(&one.id(), &["mined", "finalized"]).await;
        }
        let told = it.told().await;
        assert_eq!((told.denied, told.decided, told.signed), (48 + 48, 4, 4));
        assert_eq!(it.anvil().nonce(&it.managed).await, 2);
    });
}

#[test]
fn bypass_19_every_limit_that_matches_applies_whichever_grant_allows_it() {
    row("b19", async |it: Actor| {
        let ping = function(GATE, "ping()", &[]);
        // Counted by no window of this caller's but that of the fee.
        for nonce in 0..4 {
            it.allows_signature("a ping", &it.external_body(nonce, &ping)).await;
        }
        // Another caller has a second grant for the same, with a count: it does not lift the first one's limit,
        // nor does the first grant, which counts nothing, lift the second one's.
        let twice = it.stage.actor("b19-twice", "svc:twice").await;
        for nonce in 0..2 {
            twice.allows_signature("a ping", &twice.external_body(nonce, &ping)).await;
        }
        twice.has_no_room("a third", &twice.external_body(2, &ping)).await;
    });
}
