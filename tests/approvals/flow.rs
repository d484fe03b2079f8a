//! What becomes of a request that waits, against bundles with approvals and delays.

use crate::stage::{
    SUB, answer, approval, approve, call, chain, command, events, grants, hash, large, leaves,
    list, read, setup, write_bundle,
};
use crate::support::server::{Answer, ETHER, LIMIT, PAYEE, STRANGER, Server, payout};
use crate::support::services::{Anvil, Postgres, poll_until};
use claviger::core::access::Role;
use claviger::core::time::Timestamp;
use claviger::ports::clock::Clock;
use claviger::system::SystemClock;
use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const FAILPOINT: &str = "CLAVIGER_FAILPOINT";

/// How long nothing may happen before it is believed that nothing does.
const TTL: &str = "30m";

pub async fn asked(server: &Server, key: &str, body: &Value) -> String {
    let answer = server.ask(SUB, key, body).await;
    assert_eq!(answer.status, 202, "{:#}", answer.body);
    answer.id()
}

pub async fn finalized(anvil: &Anvil, server: &Server, id: &str) -> Value {
    poll_until(LIMIT, "it is final", async || {
        anvil.mine(1).await;
        let found = server.read(id).await;
        (found["status"] == "finalized").then_some(found)
    })
    .await
}

async fn paid(anvil: &Anvil, before: u128) -> u128 {
    anvil.balance(PAYEE).await - before
}

async fn held(server: &Server) -> u128 {
    let token = server.token("dev:op", Role::Operator);
    let url = format!("{}/v1/limits", server.client_url());
    let found = server.try_call(Method::GET, url, &token, None, None).await.unwrap().ok();
    let all = found["limits"].as_array().unwrap().iter();
    all.map(|limit| limit["held"].as_str().unwrap().parse::<u128>().unwrap()).sum()
}

async fn as_requester(server: &Server, id: &str) -> Value {
    let token = server.token(SUB, Role::Client);
    let url = format!("{}/v1/transactions/{id}", server.client_url());
    server.try_call(Method::GET, url, &token, None, None).await.unwrap().ok()
}

pub async fn approved_by_all(server: &Server, id: &str) {
    for sub in ["dev:ann", "dev:cat"] {
        approve(server, sub, id).await.ok();
    }
}

async fn a_payment_waits_for_its_people_and_is_paid_once(store_url: Option<String>) {
    let anvil = chain().await;
    let setup = setup(&anvil, store_url.as_deref(), &grants("10.0", &approval(TTL)));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let before = anvil.balance(PAYEE).await;

    // What is not above the amount waits for nobody.
    let small = server.ask(SUB, "small", &payout(ETHER / 2)).await;
    assert_eq!(small.status, 201, "{:#}", small.body);
    finalized(&anvil, &server, &small.id()).await;

    // What would be asked of the windows is told beside who would be asked.
    let url = format!("{}/v1/policy/evaluate", server.client_url());
    let token = server.token_of(SUB, &[Role::Client, Role::Approver]);
    let told = server.try_call(Method::POST, url, &token, None, Some(&large())).await.unwrap().ok();
    assert_eq!((&told["outcome"], &told["reasons"]), (&json!("need_approval"), &json!([])));
    let window = &told["limits"][0];
    let wei = |field: &str| window[field].as_str().unwrap().parse::<u128>().unwrap();
    assert!(wei("used") >= ETHER / 2 && wei("asked") >= ETHER, "{told:#}");
    assert_eq!((wei("max"), &window["has_room"]), (10 * ETHER, &json!(true)));

    let id = asked(&server, "large", &large()).await;
    let told = as_requester(&server, &id).await;
    assert_eq!(told["status"], "awaiting_approval");
    assert_eq!((&told["approval"]["needed"], &told["approval"]["given"]), (&json!(2), &json!(0)));
    assert!(told["approval"]["expires_at"].is_string(), "{told:#}");
    assert_eq!(told["waiting"]["code"], "approval");
    assert!(!told["approval"].to_string().contains("treasury"));
    assert_eq!(held(&server).await, 0, "nothing is held for what waits");
    // Repeated, it is the same.
    let again = server.ask(SUB, "large", &large()).await;
    assert_eq!((again.status, again.id()), (200, id.clone()));

    // What people see is what they approve.
    let shown = read(&server, &id).await;
    let terms = shown["terms"].as_str().unwrap();
    let of_terms = format!("0x{}", hex::encode(Sha256::digest(terms.as_bytes())));
    assert_eq!(shown["hash"], of_terms);
    assert_eq!(shown["request"]["to"], PAYEE);
    assert_eq!(shown["request"]["value"], ETHER.to_string());
    assert_eq!(shown["effects"][0]["effect"], "native_out");
    assert_eq!(shown["grants"], json!(["payouts"]));
    assert_eq!(shown["quorums"][0]["needed"], 2);
    assert_eq!(list(&server).await, std::slice::from_ref(&shown));

    let right = of_terms.as_str();
    let wrong = format!("0x{}", "ab".repeat(32));
    assert_eq!(answer(&server, "dev:ann", &id, "approve", &wrong).await.code(), "conflict");
    for (sub, why) in [(SUB, "who asked"), ("dev:eve", "in no group")] {
        let refused = answer(&server, sub, &id, "approve", right).await;
        assert_eq!((refused.status, refused.code()), (403, "forbidden"), "{why}");
    }
    // Bob is in both groups, and one person.
    let one = answer(&server, "dev:bob", &id, "approve", right).await.ok();
    assert_eq!(
        (&one["status"], &one["quorums"][0]["taken"]),
        (&json!("awaiting_approval"), &json!(1))
    );
    let twice = answer(&server, "dev:bob", &id, "approve", right).await.ok();
    assert_eq!(twice["quorums"][0]["taken"], 1);
    let two = answer(&server, "dev:ann", &id, "approve", right).await.ok();
    assert_ne!(two["status"], "awaiting_approval", "{two:#}");
    let ended = finalized(&anvil, &server, &id).await;
    assert_eq!(ended["decision"]["outcome"], "need_approval");
    assert_eq!(paid(&anvil, before).await, ETHER + ETHER / 2);
    let late = answer(&server, "dev:cat", &id, "approve", right).await;
    assert_eq!((late.status, late.code()), (409, "conflict"));
    assert!(list(&server).await.is_empty());
    let count = server.metric("claviger_policy_decisions_total", &[("outcome", "need_approval")]);
    assert!((count.await - 1.0).abs() < f64::EPSILON);

    server.checkpoint().await;
    server.stop().await;
    let store = setup.store().await;
    let kinds = leaves(&store, &id).await;
    let due =
        ["APPROVAL_REQUESTED", "APPROVED", "APPROVED", "RELEASED", "DECIDED", "SIGNED", "SETTLED"];
    assert_eq!(kinds, due);
    let told: Vec<String> = events(&store, &id).await.into_iter().map(|it| it.kind).collect();
    let due = [
        "transaction.awaiting_approval",
        "approval.requested",
        "transaction.queued",
        "approval.decided",
        "transaction.submitted",
        "transaction.mined",
        "transaction.finalized",
    ];
    assert_eq!(told, due.map(|kind| format!("claviger.{kind}")));
}

#[tokio::test]
async fn a_payment_waits_for_its_people_and_is_paid_once_on_sqlite() {
    a_payment_waits_for_its_people_and_is_paid_once(None).await;
}

#[tokio::test]
async fn a_payment_waits_for_its_people_and_is_paid_once_on_postgres() {
    let url = Postgres::shared().await.create_database();
    a_payment_waits_for_its_people_and_is_paid_once(Some(url)).await;
}

#[tokio::test]
async fn approvals_at_the_same_moment_release_once() {
    let url = Postgres::shared().await.create_database();
    let anvil = chain().await;
    let setup = setup(&anvil, Some(&url), &grants("100.0", &approval(TTL)));
    let server = setup.start(&[]).await;
    let beside = setup.start_beside("other.record", &[]).await;
    server.funded_key(&anvil, "op-1").await;
    let before = anvil.balance(PAYEE).await;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(asked(&server, &format!("large-{n}"), &large()).await);
    }
    for id in &ids {
        let hash = hash(&server, id).await;
        let answers = join_all([
            answer(&server, "dev:ann", id, "approve", &hash),
            answer(&beside, "dev:cat", id, "approve", &hash),
            answer(&beside, "dev:bob", id, "approve", &hash),
        ]);
        // Two are enough: the third may come too late.
        let answers: Vec<Answer> = answers.await;
        let taken = answers.iter().filter(|answer| answer.status == 200).count();
        assert!(taken >= 2, "{answers:#?}");
        assert!(answers.iter().all(|it| it.status == 200 || it.code() == "conflict"));
    }
    for id in &ids {
        finalized(&anvil, &server, id).await;
    }
    assert_eq!(paid(&anvil, before).await, 5 * ETHER);
    server.stop().await;
    beside.stop().await;
}

#[tokio::test]
async fn one_no_ends_it_and_a_cancellation_does_too() {
    let anvil = chain().await;
    let setup = setup(&anvil, None, &grants("10.0", &approval(TTL)));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let before = anvil.balance(PAYEE).await;
    let rejected = asked(&server, "rejected", &large()).await;
    let hash_of = hash(&server, &rejected).await;
    assert_eq!(answer(&server, SUB, &rejected, "reject", &hash_of).await.code(), "forbidden");
    approve(&server, "dev:ann", &rejected).await.ok();
    let wrong = format!("0x{}", "ab".repeat(32));
    assert_eq!(answer(&server, "dev:cat", &rejected, "reject", &wrong).await.code(), "conflict");
    let no = answer(&server, "dev:cat", &rejected, "reject", &hash_of).await.ok();
    assert_eq!(no["status"], "rejected");
    let late = answer(&server, "dev:bob", &rejected, "approve", &hash_of).await;
    assert_eq!(late.code(), "conflict");
    assert_eq!(as_requester(&server, &rejected).await["status"], "rejected");

    let cancelled = asked(&server, "cancelled", &large()).await;
    let hash_of = hash(&server, &cancelled).await;
    assert_eq!(server.intervene(&cancelled, "cancel").await.ok()["status"], "cancelled");
    assert_eq!(
        answer(&server, "dev:ann", &cancelled, "approve", &hash_of).await.code(),
        "conflict"
    );

    // Approved and cancelled at the same moment: one of them.
    let both = asked(&server, "both", &large()).await;
    let hash_of = hash(&server, &both).await;
    approve(&server, "dev:ann", &both).await.ok();
    let (approved, cancelled) = tokio::join!(
        answer(&server, "dev:cat", &both, "approve", &hash_of),
        server.intervene(&both, "cancel")
    );
    assert!(approved.status == 200 || cancelled.status == 200);
    let end = poll_until(LIMIT, "it ends", async || {
        anvil.mine(1).await;
        let found = server.read(&both).await;
        let status = found["status"].as_str().unwrap().to_owned();
        ["cancelled", "finalized"].contains(&status.as_str()).then_some(status)
    })
    .await;
    assert_eq!(paid(&anvil, before).await, if end == "finalized" { ETHER } else { 0 });
    server.stop().await;
}

#[tokio::test]
async fn what_nobody_approves_in_time_expires() {
    let anvil = chain().await;
    let setup = setup(&anvil, None, &grants("10.0", &approval("2s")));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let late = asked(&server, "late", &large()).await;
    let hash = hash(&server, &late).await;
    server.wait_for(&late, &["expired"]).await;
    assert_eq!(answer(&server, "dev:ann", &late, "approve", &hash).await.code(), "conflict");
    server.stop().await;
    // Also while no server runs, and with `not_after`.
    write_bundle(&setup.dir(), &grants("10.0", &approval(TTL)));
    let server = setup.start(&[]).await;
    let mut body = large();
    body["not_after"] = json!(SystemClock.now().plus_millis(2_000).to_string());
    let id = asked(&server, "not-after", &body).await;
    server.stop().await;
    let server = setup.start(&[]).await;
    server.wait_for(&id, &["expired"]).await;
    assert!(list(&server).await.is_empty());
    server.stop().await;
}

#[tokio::test]
async fn another_bundle_voids_what_was_approved() {
    let anvil = chain().await;
    let setup = setup(&anvil, None, &grants("10.0", &approval(TTL)));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let before = anvil.balance(PAYEE).await;
    let kept = asked(&server, "kept", &large()).await;
    let dropped = asked(&server, "dropped", &large()).await;
    approve(&server, "dev:ann", &kept).await.ok();
    let old = hash(&server, &kept).await;
    server.stop().await;

    let longer = grants("10.0", &approval("45m"));
    write_bundle(&setup.dir(), &longer);
    let server = setup.start(&[]).await;
    let new = poll_until(LIMIT, "it is asked for anew", async || {
        let new = hash(&server, &kept).await;
        (new != old).then_some(new)
    })
    .await;
    let shown = read(&server, &kept).await;
    assert_eq!(shown["quorums"][0]["taken"], 0, "what was approved is void: {shown:#}");
    assert_eq!(shown["approvals"][0]["counts"], false);
    assert_eq!(answer(&server, "dev:cat", &kept, "approve", &old).await.code(), "conflict");
    answer(&server, "dev:cat", &kept, "approve", &new).await.ok();
    answer(&server, "dev:ann", &kept, "approve", &new).await.ok();
    finalized(&anvil, &server, &kept).await;
    assert_eq!(paid(&anvil, before).await, ETHER);
    server.stop().await;

    // A bundle that refuses it ends it, and one that asks for nothing lets it go.
    write_bundle(&setup.dir(), &longer.replace("per_tx = \"1.0\"", "per_tx = \"0.7\""));
    let server = setup.start(&[]).await;
    let failed = server.wait_for(&dropped, &["failed"]).await;
    assert_eq!(failed["failure"]["code"], "policy-denied");
    assert!(failed["failure"]["detail"].as_str().unwrap().contains("payouts"), "{failed:#}");
    let told = as_requester(&server, &dropped).await;
    assert_eq!(told["failure"]["detail"], "refused before a nonce was given: per_tx");
    server.stop().await;
}

#[tokio::test]
async fn a_window_that_is_full_when_it_goes_on_ends_it() {
    let anvil = chain().await;
    let setup = setup(&anvil, None, &grants("1.5", &approval(TTL)));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let one = asked(&server, "one", &large()).await;
    let two = asked(&server, "two", &large()).await;
    approved_by_all(&server, &one).await;
    approved_by_all(&server, &two).await;
    server.wait_for(&two, &["failed"]).await;
    let told = as_requester(&server, &two).await;
    assert_eq!(told["failure"]["code"], "policy-denied");
    assert_eq!(told["failure"]["detail"], "refused before a nonce was given: windows");
    finalized(&anvil, &server, &one).await;
    server.stop().await;
}

/// What a bundle that waits for the first use of a destination says.
const FIRST_USE: &str = r#"delay = { first_use_of_destination = "3s" }"#;

#[tokio::test]
async fn a_new_destination_waits_once_and_is_known_then() {
    let anvil = chain().await;
    let setup = setup(&anvil, None, &grants("10.0", FIRST_USE));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let first = asked(&server, "first", &payout(1)).await;
    let told = as_requester(&server, &first).await;
    assert_eq!(
        (&told["status"], &told["approval"]["status"]),
        (&json!("delayed"), &json!("delayed"))
    );
    assert_eq!(told["waiting"]["code"], "delay");
    let until = Timestamp::parse_rfc3339(told["approval"]["until"].as_str().unwrap()).unwrap();
    assert_eq!(held(&server).await, 0);
    // What waits does not make its own destination known.
    let second = asked(&server, "second", &payout(1)).await;
    assert_eq!(approve(&server, "dev:ann", &second).await.code(), "conflict", "it asks nobody");
    let hash = hash(&server, &second).await;
    answer(&server, "dev:ann", &second, "reject", &hash).await.ok();
    server.wait_for(&first, &["queued", "submitted", "mined", "finalized"]).await;
    assert!(SystemClock.now() >= until, "not before its time");
    finalized(&anvil, &server, &first).await;
    let third = server.ask(SUB, "third", &payout(1)).await;
    assert_eq!(third.status, 201, "known now: {:#}", third.body);
    finalized(&anvil, &server, &third.id()).await;
    // Known to this group only.
    server.key("alone", None, "managed").await;
    server.stop().await;
}

#[tokio::test]
async fn a_delay_and_then_people() {
    let anvil = chain().await;
    let more = format!("{}\n{FIRST_USE}", approval(TTL));
    let setup = setup(&anvil, None, &grants("10.0", &more));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let id = asked(&server, "both", &large()).await;
    assert_eq!(server.read(&id).await["status"], "delayed");
    server.wait_for(&id, &["awaiting_approval"]).await;
    approved_by_all(&server, &id).await;
    finalized(&anvil, &server, &id).await;
    server.stop().await;
}

#[tokio::test]
async fn a_signature_cannot_wait() {
    let anvil = chain().await;
    let setup = setup(&anvil, None, &grants("10.0", &approval(TTL)));
    let server = setup.start(&[]).await;
    let external = server.key("ext-1", Some("payments"), "external").await;
    let body = |wei: u128| {
        json!({ "chain": "local", "signer": external, "transaction": {
            "nonce": "0", "gas": "21000", "to": PAYEE, "value": wei.to_string(),
            "gas_price": "4000000000",
        }})
    };
    let refused = server.sign(SUB, None, &body(ETHER)).await;
    assert_eq!((refused.status, refused.code()), (403, "policy-denied"));
    assert_eq!(refused.body["reasons"], json!([{ "field": "approval" }]));
    let token = server.token(SUB, Role::Client);
    let url = format!("{}/v1/policy/evaluate", server.client_url());
    let large_one = body(ETHER);
    let told = server.try_call(Method::POST, url.clone(), &token, None, Some(&large_one));
    let told = told.await.unwrap().ok();
    assert_eq!(
        (&told["outcome"], &told["reasons"]),
        (&json!("deny"), &json!([{ "field": "approval" }]))
    );
    server.funded_key(&anvil, "op-1").await;
    let waits =
        server.try_call(Method::POST, url, &token, None, Some(&large())).await.unwrap().ok();
    assert_eq!(waits["outcome"], "need_approval");
    assert_eq!(waits["approval"], json!({ "needed": 2 }));
    assert!(list(&server).await.is_empty(), "an evaluation leaves no trace");
    assert_eq!(server.sign(SUB, None, &body(1)).await.status, 201);
    server.stop().await;
}

#[tokio::test]
async fn what_is_refused_is_refused_however_it_would_be_approved() {
    let anvil = chain().await;
    let setup = setup(&anvil, None, &grants("10.0", &approval(TTL)));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let mut body = large();
    body["to"] = json!(STRANGER);
    assert_eq!(server.ask(SUB, "stranger", &body).await.code(), "policy-denied");
    assert_eq!(server.ask(SUB, "much", &payout(2 * ETHER)).await.code(), "policy-denied");
    assert!(list(&server).await.is_empty());
    server.stop().await;
}

#[tokio::test]
async fn lists_come_by_pages() {
    let anvil = chain().await;
    let setup = setup(&anvil, None, &grants("10.0", &approval(TTL)));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let mut ids = Vec::new();
    for n in 0..3 {
        ids.insert(0, asked(&server, &format!("large-{n}"), &large()).await);
    }
    let page = async |query: &str| {
        call(&server, ("dev:op", Role::Operator), Method::GET, query, None).await.ok()
    };
    let of = |page: &Value| -> Vec<String> {
        let all = page["approvals"].as_array().unwrap().iter();
        all.map(|it| it["id"].as_str().unwrap().to_owned()).collect()
    };
    let first = page("?limit=2").await;
    assert_eq!(of(&first), ids[..2]);
    let rest = page(&format!("?limit=2&cursor={}", first["next_cursor"].as_str().unwrap())).await;
    assert_eq!((of(&rest), &rest["next_cursor"]), (ids[2..].to_vec(), &Value::Null));
    assert!(of(&page("?status=delayed").await).is_empty());
    server.stop().await;
}

#[tokio::test]
async fn people_answer_on_the_command_line() {
    let anvil = chain().await;
    let setup = setup(&anvil, None, &grants("10.0", &approval(TTL)));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let id = asked(&server, "large", &large()).await;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let run = |sub: &str, args: &[&str]| {
        let token = setup.dir().join("token");
        std::fs::write(&token, server.token(sub, Role::Approver)).unwrap();
        command(&setup, &server, &token, args)
    };
    let listed = run("dev:ann", &["list"]);
    assert!(listed.status.success(), "{}", text(&listed.stderr));
    assert!(text(&listed.stdout).contains(&id), "{}", text(&listed.stdout));
    let shown = text(&run("dev:ann", &["show", &id]).stdout);
    let hash = hash(&server, &id).await;
    for part in [hash.as_str(), PAYEE, &ETHER.to_string(), "treasury 1", "0 of 2", SUB] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    let wrong = format!("0x{}", "ab".repeat(32));
    let refused = run("dev:ann", &["approve", &id, "--hash", &wrong]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("conflict"), "{}", text(&refused.stderr));
    for sub in ["dev:ann", "dev:cat"] {
        let said = run(sub, &["approve", &id, "--hash", &hash, "--reason", "invoice 4711"]);
        assert!(said.status.success(), "{}", text(&said.stderr));
    }
    finalized(&anvil, &server, &id).await;
    let other = asked(&server, "other", &large()).await;
    let hash = crate::stage::hash(&server, &other).await;
    let said = run("dev:ann", &["reject", &other, "--hash", &hash, "--json"]);
    let said: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(said["status"], "rejected");
    assert_eq!(run("dev:ann", &["approve", &other]).status.code(), Some(2), "without a hash");
    server.stop().await;
}

/// Killed at a point while people answer; the server that comes after goes on, and pays at most once.
async fn crash_at(point: &str, verb: &str, end: &str) {
    let anvil = chain().await;
    let setup = setup(&anvil, None, &grants("10.0", &approval(TTL)));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let before = anvil.balance(PAYEE).await;
    let id = asked(&server, "large", &large()).await;
    if verb == "approve" {
        approve(&server, "dev:ann", &id).await.ok();
    }
    let hash = hash(&server, &id).await;
    server.stop().await;

    let server = setup.start(&[(FAILPOINT, point)]).await;
    let token = server.token("dev:cat", Role::Approver);
    let url = format!("{}/admin/v1/approvals/{id}/{verb}", server.admin_url());
    let body = json!({ "hash": hash, "reason": "a test" });
    server.try_call(Method::POST, url, &token, None, Some(&body)).await;
    server.crashed().await;

    let server = setup.start(&[]).await;
    poll_until(LIMIT, &format!("it ends after {point}"), async || {
        anvil.mine(1).await;
        (server.read(&id).await["status"] == end).then_some(())
    })
    .await;
    let due = if end == "finalized" { ETHER } else { 0 };
    assert_eq!(paid(&anvil, before).await, due, "{point}");
    server.stop().await;
    let kinds = leaves(&setup.store().await, &id).await;
    let count = |kind: &str| kinds.iter().filter(|it| *it == kind).count();
    assert_eq!(count("RELEASED"), usize::from(end == "finalized"), "{point}: {kinds:?}");
}

#[tokio::test]
async fn a_kill_while_people_answer_loses_nothing_and_pays_once() {
    crash_at("approve.after_stored", "approve", "finalized").await;
    crash_at("release.after_released", "approve", "finalized").await;
    crash_at("reject.after_rejected", "reject", "rejected").await;
}

/// Killed at a point that another bundle leads to.
async fn crash_under(point: &str, per_tx: &str, end: &str) {
    let anvil = chain().await;
    let setup = setup(&anvil, None, &grants("10.0", &approval(TTL)));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let id = asked(&server, "large", &large()).await;
    server.stop().await;
    let other = grants("9.0", &approval(TTL));
    let per_tx = format!("per_tx = \"{per_tx}\"");
    write_bundle(&setup.dir(), &other.replace("per_tx = \"1.0\"", &per_tx));
    let crashes = setup.try_start(&[(FAILPOINT, point)]).await;
    if let Some(server) = crashes {
        server.crashed().await;
    }
    let server = setup.start(&[]).await;
    server.wait_for(&id, &[end]).await;
    if end == "awaiting_approval" {
        approved_by_all(&server, &id).await;
        finalized(&anvil, &server, &id).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn a_kill_while_another_bundle_judges_loses_nothing() {
    crash_under("release.after_asked", "1.0", "awaiting_approval").await;
    crash_under("release.after_ended", "0.7", "failed").await;
}
