//! Approve one thing, sign another.

use crate::stage::*;
use claviger::core::access::Role;
use reqwest::Method;
use serde_json::{Value, json};

const ETHER: u128 = 1_000_000_000_000_000_000;

/// What waits for people, as one of them sees it.
pub async fn waiting(it: &Actor, id: &str) -> Value {
    let url = format!("{}/admin/v1/approvals", it.server().admin_url());
    let token = it.server().token("dev:alice", Role::Approver);
    let listed = it.server().try_call(Method::GET, url, &token, None, None).await.unwrap().ok();
    let all = listed["approvals"].as_array().unwrap();
    let one = all.iter().find(|one| one["id"] == id);
    one.unwrap_or_else(|| panic!("{id} in {listed:#}")).clone()
}

pub async fn decide(
    it: &Actor,
    who: (&str, Role),
    id: &str,
    verb: &str,
    hash: &Value,
) -> (u16, String) {
    let url = format!("{}/admin/v1/approvals/{id}/{verb}", it.server().admin_url());
    let token = it.server().token(who.0, who.1);
    let body = json!({ "hash": hash, "reason": "a test" });
    let answer = it.server().try_call(Method::POST, url, &token, None, Some(&body)).await.unwrap();
    (answer.status, answer.code().to_owned())
}

#[test]
fn bypass_20_an_approval_is_for_this_very_request_and_by_other_people() {
    row("b20", async |it: Actor| {
        let it = it.stage.actor("b20-asks", "svc:asks").await;
        it.allows("below half an ether", &call(PAYEE, ETHER / 2, "0x")).await;
        let large = |wei: u128| it.managed_body(&call(PAYEE, wei, "0x"));
        let (first, second) = (it.ask(&large(ETHER)).await, it.ask(&large(ETHER - 1)).await);
        for answer in [&first, &second] {
            assert_eq!(answer.status, 202, "{:#}", answer.body);
            assert_eq!(answer.body["status"], "awaiting_approval");
        }
        let (first, second) = (first.id(), second.id());
        let told = it.told().await;
        // What cannot wait is refused.
        it.refuses_signature("a signature", &it.external_body(1, &call(PAYEE, ETHER, "0x"))).await;
        let (hash, other) = (
            waiting(&it, &first).await["hash"].clone(),
            waiting(&it, &second).await["hash"].clone(),
        );
        assert_ne!(hash, other, "one wei makes another request");
        let alice = ("dev:alice", Role::Approver);
        for (what, who, id, hash) in [
            ("another's hash", alice, &first, &other),
            ("no hash", alice, &first, &Value::Null),
            ("an operator", ("dev:alice", Role::Operator), &first, &hash),
            ("a client", ("svc:rows", Role::Client), &first, &hash),
            ("the requester", ("svc:asks", Role::Client), &first, &hash),
        ] {
            let (status, code) = decide(&it, who, id, "approve", hash).await;
            assert!(matches!(status, 400 | 403 | 409), "{what}: {status} {code}");
        }
        // One person twice is one person, and somebody who is in no group is nobody.
        assert_eq!(decide(&it, alice, &first, "approve", &hash).await.0, 200);
        decide(&it, alice, &first, "approve", &hash).await;
        decide(&it, ("dev:mallory", Role::Approver), &first, "approve", &hash).await;
        let now = it.server().read(&first).await;
        assert_eq!(now["status"], "awaiting_approval", "{now:#}");
        let after = it.told().await;
        assert_eq!(
            (after.decided, after.signed),
            (told.decided, told.signed),
            "nothing is signed yet"
        );
        assert_eq!(decide(&it, ("dev:bob", Role::Approver), &first, "approve", &hash).await.0, 200);
        it.server().wait_for(&first, &["mined", "finalized"]).await;
        // Used once: the other one waits still.
        let now = it.server().read(&second).await;
        assert_eq!(now["status"], "awaiting_approval", "{now:#}");
        assert_eq!(decide(&it, alice, &second, "reject", &other).await.0, 200);
        it.server().wait_for(&second, &["rejected"]).await;
        let late = decide(&it, ("dev:bob", Role::Approver), &second, "approve", &other).await;
        assert!(matches!(late.0, 404 | 409), "{late:?}");
    });
}
