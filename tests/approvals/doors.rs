//! Who may read what waits, and who may answer.

use crate::stage::{SUB, call, chain};
use crate::support::server::{SetUp, payout_grants};
use claviger::core::access::Role;
use reqwest::Method;
use serde_json::json;

const NOBODY: &str = "/01890a5d-ac96-774b-bcce-b302099a8057";

#[tokio::test]
async fn approvers_answer_operators_and_auditors_read_and_others_do_neither() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("2.5"));
    let server = setup.start(&[]).await;
    let body = json!({ "hash": format!("0x{}", "ab".repeat(32)), "reason": "a test" });
    let approve = format!("{NOBODY}/approve");
    let reject = format!("{NOBODY}/reject");
    let cases = [
        ("dev:ann", Role::Approver, 200, 404),
        ("dev:op", Role::Operator, 200, 403),
        ("dev:auditor", Role::Auditor, 200, 403),
        ("dev:admin", Role::PolicyAdmin, 403, 403),
        (SUB, Role::Client, 403, 403),
    ];
    for (sub, role, reads, answers) in cases {
        let who = (sub, role);
        let listed = call(&server, who, Method::GET, "", None).await;
        assert_eq!(listed.status, reads, "{role}: {:#}", listed.body);
        let one = call(&server, who, Method::GET, NOBODY, None).await;
        assert_eq!(one.status, if reads == 200 { 404 } else { 403 }, "{role}");
        for path in [&approve, &reject] {
            let answered = call(&server, who, Method::POST, path, Some(&body)).await;
            assert_eq!(answered.status, answers, "{role}: {:#}", answered.body);
        }
    }
    let none = call(&server, ("dev:ann", Role::Approver), Method::GET, "", None).await.ok();
    assert_eq!(none, json!({ "approvals": [], "next_cursor": null }));
}

#[tokio::test]
async fn what_is_not_a_filter_or_an_answer_is_refused() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("2.5"));
    let server = setup.start(&[]).await;
    let ann = ("dev:ann", Role::Approver);
    for query in [
        "?status=queued",
        "?status=x",
        "?limit=0",
        "?limit=201",
        "?cursor=x",
        "?all=1",
        "?requester=",
    ] {
        let refused = call(&server, ann, Method::GET, query, None).await;
        assert_eq!((refused.status, refused.code()), (400, "invalid-request"), "{query}");
    }
    for query in ["?status=delayed", "?status=awaiting_approval&limit=200&cursor=7"] {
        assert_eq!(call(&server, ann, Method::GET, query, None).await.status, 200, "{query}");
    }
    let hash = format!("0x{}", "ab".repeat(32));
    for body in [
        json!({}),
        json!({ "hash": "ab".repeat(32) }),
        json!({ "hash": "0xab" }),
        json!({ "hash": format!("0x{}", "zz".repeat(32)) }),
        json!({ "hash": hash, "reason": "x".repeat(501) }),
        json!({ "hash": hash, "sub": "dev:bob" }),
    ] {
        for action in ["approve", "reject"] {
            let path = format!("{NOBODY}/{action}");
            let refused = call(&server, ann, Method::POST, &path, Some(&body)).await;
            assert_eq!((refused.status, refused.code()), (400, "invalid-request"), "{body:#}");
        }
    }
}
