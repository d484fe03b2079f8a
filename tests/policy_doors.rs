//! What policy says, seen from outside: a bundle's cases on the command line, the verdict on a request that
//! is not made, and how full the windows are.

#![cfg(feature = "server")]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support {
    pub mod server;
    pub mod services;
}

use claviger::core::access::Role;
use claviger::core::time::Timestamp;
use claviger::ports::store::look;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, Connection as _, Row as _, SqliteConnection};
use std::path::Path;
use std::process::Command;
use support::server::{
    Answer, BIN, ETHER, LIMIT, PAYEE, STRANGER, Server, SetUp, chain, hello_grant, payout,
    payout_grants,
};
use support::services::{Postgres, poll_until};

const SUB: &str = "svc:payouts";

// -- claviger policy test ---------------------------------------------------------------------------

fn policy_test(dir: &Path, more: &[&str]) -> (bool, String, String) {
    let run = Command::new(BIN).args(["policy", "test"]).arg(dir).args(more).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (run.status.success(), text(run.stdout), text(run.stderr))
}

#[test]
fn every_example_bundle_holds_its_own_cases() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let dir = entry.unwrap().path();
        if dir.is_dir() {
            let (passed, out, err) = policy_test(&dir, &[]);
            assert!(passed, "{}: {out}{err}", dir.display());
            // Each shows what it allows and what it does not.
            assert!(out.contains(" allow ") && out.contains(" deny "), "{out}");
            seen.push(dir.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    seen.sort();
    assert_eq!(seen, ["bridge", "exchange", "payments", "treasury"]);
}

#[test]
fn each_case_of_a_bundle_is_told_and_one_that_fails_fails_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies/payments");
    let dir = folder.path().join("bundle");
    assert!(Command::new("cp").arg("-r").args([&example, &dir]).status().unwrap().success());
    let (passed, out, err) = policy_test(&dir, &[]);
    assert!(passed, "{err}");
    let told = out.lines().filter(|line| line.starts_with("ok ")).collect::<Vec<_>>();
    assert_eq!(told.len(), 17, "{out}");
    let payout = told.iter().find(|line| line.contains("a payout to a payee")).unwrap();
    assert!(payout.contains("allow") && payout.contains("native-payouts"), "{payout}");
    let denied = told.iter().find(|line| line.contains("deny")).unwrap();
    assert!(denied.contains("expected"), "a refusal says why: {denied}");
    let (passed, out, _) = policy_test(&dir, &["--json"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert!(passed);
    assert_eq!((&report["passed"], &report["failed"]), (&json!(17), &json!(0)));

    // One that fails does not hide the others, and keeps the bundle from loading.
    let cases = std::fs::read_to_string(dir.join("cases.toml")).unwrap();
    let wrong = cases.replacen("expect = \"allow\"", "expect = \"deny\"", 1);
    let wrong = wrong.replacen("grant = \"native-payouts\"\n", "", 1);
    std::fs::write(dir.join("cases.toml"), wrong).unwrap();
    let (passed, out, err) = policy_test(&dir, &[]);
    assert!(!passed);
    assert!(err.contains("1 of 17 case(s) failed"), "{err}");
    let failed = out.lines().filter(|line| line.starts_with("FAILED ")).collect::<Vec<_>>();
    assert_eq!(failed.len(), 1, "{out}");
    assert!(failed[0].contains("expected deny, but it is allow"), "{}", failed[0]);
    assert_eq!(out.lines().filter(|line| line.starts_with("ok ")).count(), 16, "{out}");
    let (_, out, _) = policy_test(&dir, &["--json"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    let case = report["cases"].as_array().unwrap().iter().find(|case| case["holds"] == false);
    assert_eq!(
        (&case.unwrap()["expected"], &case.unwrap()["got"]),
        (&json!("deny"), &json!("allow"))
    );

    std::fs::remove_file(dir.join("cases.toml")).unwrap();
    let (passed, _, err) = policy_test(&dir, &[]);
    assert!(!passed, "a bundle without cases has shown nothing");
    assert!(err.contains("has no test case"), "{err}");
}

// -- POST /v1/policy/evaluate -----------------------------------------------------------------------

async fn evaluate_as(server: &Server, sub: &str, role: Role, body: &Value) -> Answer {
    let url = format!("{}/v1/policy/evaluate", server.client_url());
    let token = server.token(sub, role);
    server.try_call(Method::POST, url, &token, None, Some(body)).await.expect("an answer")
}

async fn evaluate(server: &Server, body: &Value) -> Answer {
    evaluate_as(server, SUB, Role::Client, body).await
}

/// Waits until the audit log's newest checkpoint covers all of it: it is signed a moment after the last leaf.
async fn signed(server: &Server) {
    let token = server.token("dev:auditor", Role::Auditor);
    let url = format!("{}/admin/v1/audit/checkpoint", server.admin_url());
    poll_until(LIMIT, "all leaves are signed", async || {
        let found = server.try_call(Method::GET, url.clone(), &token, None, None).await?.ok();
        let signed = found["note"].as_str()?.lines().nth(1)?.to_owned();
        (found["waiting"] == "0" && found["size"] == signed.as_str()).then_some(())
    })
    .await;
}

/// Every row of every table, and SQLite's own count of commits by others.
async fn everything(observer: &mut SqliteConnection) -> (i64, Vec<String>) {
    let version = sqlx::query_scalar::<_, i64>("PRAGMA data_version");
    let version = version.fetch_one(&mut *observer).await.unwrap();
    let tables = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name";
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut *observer).await.unwrap();
    let mut rows = Vec::new();
    for table in tables {
        let columns = format!("SELECT name FROM pragma_table_info('{table}')");
        let columns = sqlx::query_scalar::<_, String>(AssertSqlSafe(columns));
        let columns = columns.fetch_all(&mut *observer).await.unwrap();
        let quoted: Vec<String> = columns.iter().map(|name| format!("quote({name})")).collect();
        let all = format!("SELECT {} FROM {table} ORDER BY 1", quoted.join("||','||"));
        for row in sqlx::query(AssertSqlSafe(all)).fetch_all(&mut *observer).await.unwrap() {
            rows.push(format!("{table}: {}", row.get::<String, _>(0)));
        }
    }
    assert!(rows.len() > 5, "{rows:?}");
    (version, rows)
}

/// Grants for payouts, and for one message an hour.
fn grants() -> String {
    let hourly = r#"windows = [{ span = "1h", count = 1, scope = "principal" }]"#;
    [payout_grants("2.5"), hello_grant(hourly)].concat()
}

#[tokio::test]
async fn an_evaluation_leaves_no_trace() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &grants());
    let server = setup.start(&[]).await;
    let address = server.funded_key(&anvil, "op-1").await;
    let external = server.key("ext-1", None, "external").await;
    signed(&server).await;
    let file = setup.dir().join("claviger.db");
    let options = SqliteConnectOptions::new().filename(file).read_only(true);
    let mut observer = SqliteConnection::connect_with(&options).await.unwrap();

    let mut large = payout(2 * ETHER);
    large["metadata"] = json!({ "order": "7" });
    let signing = json!({ "chain": "local", "signer": external, "transaction": {
        "nonce": "0", "gas": "21000", "to": PAYEE, "value": "1", "gas_price": "4000000000",
    }});
    let message = json!({ "signer": "payments", "message": { "text": "hello world" } });
    let all = [payout(ETHER), large, message, signing];
    // First on a chain that nothing was asked of yet: it is not even pinned.
    let before = everything(&mut observer).await;
    for body in &all {
        assert_eq!(evaluate(&server, body).await.status, 200);
    }
    assert_eq!(everything(&mut observer).await, before);

    let paid = server.ask(SUB, "order-1", &payout(ETHER)).await;
    server.wait_for(&paid.id(), &["mined", "finalized"]).await;
    anvil.mine(4).await;
    server.wait_for(&paid.id(), &["finalized"]).await;
    signed(&server).await;
    let before = everything(&mut observer).await;
    for body in &all {
        assert_eq!(evaluate(&server, body).await.status, 200);
    }
    let shown = evaluate(&server, &payout(ETHER)).await.ok();
    assert_eq!(everything(&mut observer).await, before);
    assert_eq!(shown["outcome"], "allow");
    assert_eq!(shown["address"], address.as_str());
    // The observer would have seen it.
    assert_eq!(server.ask(SUB, "order-2", &payout(1)).await.status, 201);
    assert_ne!(everything(&mut observer).await, before);
}

#[tokio::test]
async fn an_evaluation_says_what_the_door_would_say() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &grants());
    let server = setup.start(&[]).await;
    let address = server.funded_key(&anvil, "op-1").await;

    let allowed = evaluate(&server, &payout(ETHER)).await.ok();
    assert_eq!(allowed["outcome"], "allow", "{allowed:#}");
    assert_eq!(allowed["grants"], json!(["payouts"]));
    assert_eq!(allowed["address"], address.as_str());
    assert_eq!(allowed["effects"][0]["effect"], "native_out");
    assert_eq!(allowed["limits"], json!([]), "others spend from the window too: {allowed:#}");

    let mut stranger = payout(1);
    stranger["to"] = json!(STRANGER);
    let denied = evaluate(&server, &stranger).await.ok();
    let refused = server.ask(SUB, "stranger", &stranger).await;
    assert_eq!(denied["outcome"], "deny");
    assert_eq!(denied["reasons"], refused.body["reasons"], "{denied:#}");
    assert_eq!(denied["limits"], json!([]));

    // A window that is full denies, and says which.
    for order in ["order-1", "order-2"] {
        assert_eq!(server.ask(SUB, order, &payout(ETHER)).await.status, 201);
    }
    anvil.mine(4).await;
    for paid in server.list().await {
        server.wait_for(paid["id"].as_str().unwrap(), &["finalized"]).await;
    }
    let full = evaluate(&server, &payout(ETHER)).await.ok();
    let refused = server.ask(SUB, "order-3", &payout(ETHER)).await;
    assert_eq!((full["outcome"].as_str(), refused.status), (Some("deny"), 403), "{full:#}");
    assert_eq!(full["reasons"], refused.body["reasons"]);
    assert_eq!(full["reasons"], json!([{ "field": "windows" }]), "not which, nor how full");
    // A key that a denial has not bound.
    assert_eq!(server.ask(SUB, "order-3", &payout(1)).await.status, 201);

    let hello = json!({ "signer": "payments", "message": { "text": "hello you" } });
    assert_eq!(evaluate(&server, &hello).await.ok()["outcome"], "allow");
    // Nobody else spends from this one.
    let own = evaluate(&server, &hello).await.ok()["limits"][0].clone();
    assert_eq!((&own["used"], &own["has_room"]), (&json!("0"), &json!(true)), "{own:#}");
    assert_eq!((&own["max"], &own["span"]), (&json!("1"), &json!("1h")));
    assert_eq!(server.sign(SUB, None, &hello).await.status, 201);
    let again = evaluate(&server, &hello).await.ok();
    assert_eq!((&again["outcome"], &again["limits"][0]["used"]), (&json!("deny"), &json!("1")));
}

#[tokio::test]
async fn why_policy_refuses_is_told_in_full_only_to_who_may_see_it() {
    let anvil = chain().await;
    // To the stranger everything waits.
    let slow = payout_grants("2.5")
        .replace("\"payouts\"", "\"slow\"")
        .replace(
            "{ book = \"payees\" }",
            "{ address = [\"0x90F79bf6EB2c4f870365E785982E1f101E93b906\"] }",
        )
        .replace(
            "scope = \"group\" }]",
            "scope = \"group\" }, { span = \"1h\", count = 3, scope = \"principal\" }]",
        )
        + "delay = { always = \"1h\" }\n";
    let setup = SetUp::new(&anvil.url(), None, &(grants() + &slow));
    let file = setup.dir().join("policies/bundle.toml");
    let bundle = std::fs::read_to_string(&file).unwrap();
    let both = bundle.replacen("roles = [\"client\"]", "roles = [\"client\", \"auditor\"]", 1);
    assert_ne!(bundle, both);
    std::fs::write(&file, both).unwrap();
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let url = format!("{}/v1/transactions", server.client_url());
    let denied = async |roles: &[Role], key: &str, body: &Value| {
        let token = server.token_of(SUB, roles);
        let asked = server.try_call(Method::POST, url.clone(), &token, Some(key), Some(body));
        let answer = asked.await.unwrap();
        assert_eq!((answer.status, answer.code()), (403, "policy-denied"), "{:#}", answer.body);
        answer.body["reasons"].clone()
    };
    let too_much = payout(2 * ETHER);
    let reduced = denied(&[Role::Client], "one", &too_much).await;
    let only_fields = |reasons: &Value| {
        let all = reasons.as_array().unwrap();
        assert!(
            !all.is_empty() && all.iter().all(|it| it.as_object().unwrap().keys().eq(["field"]))
        );
    };
    only_fields(&reduced);
    assert_eq!(reduced[0], json!({ "field": "per_tx" }));
    let full = denied(&[Role::Client, Role::Auditor], "two", &too_much).await;
    assert_eq!((&full[0]["field"], &full[0]["grant"]), (&json!("per_tx"), &json!("payouts")));
    assert!(full[0]["expected"].is_string() && full[0]["actual"].is_string(), "{full:#}");
    // An evaluation says as much as the door; of windows that others spend from, nothing.
    let would = async |roles: &[Role], body: &Value| {
        let token = server.token_of(SUB, roles);
        let url = format!("{}/v1/policy/evaluate", server.client_url());
        server.try_call(Method::POST, url, &token, None, Some(body)).await.unwrap().ok()
    };
    let full_roles = [Role::Client, Role::Auditor];
    let (less, all) =
        (would(&[Role::Client], &too_much).await, would(&full_roles, &too_much).await);
    assert_eq!((&less["reasons"], &all["reasons"]), (&reduced, &full));
    let small = payout(1);
    let (less, all) = (would(&[Role::Client], &small).await, would(&full_roles, &small).await);
    assert_eq!((&less["limits"], less.get("shadows")), (&json!([]), None), "{less:#}");
    let shared = &all["limits"][0];
    assert_eq!((&shared["used"], &shared["max"]), (&json!("0"), &json!("2500000000000000000")));
    assert!(all["shadows"].is_array(), "{all:#}");
    for hidden in ["used", "max", "expected", "actual", "shadows"] {
        assert!(!less.to_string().contains(&format!("\"{hidden}\"")), "{hidden} in {less:#}");
    }
    // So do the windows themselves: one token, with and without a role that sees all.
    let windows = async |roles: &[Role]| {
        let token = server.token_of(SUB, roles);
        let url = format!("{}/v1/limits", server.client_url());
        let shown = server.try_call(Method::GET, url, &token, None, None).await.unwrap().ok();
        window(&shown, "payouts", "24h", "value")
    };
    assert!(windows(&[Role::Client]).await.get("max").is_none());
    assert_eq!(wei(&windows(&full_roles).await, "max"), ETHER * 5 / 2);
    // What would wait is told with its windows: to a client, with those of its own.
    let mut to_stranger = payout(ETHER);
    to_stranger["to"] = json!(STRANGER);
    let evaluated = async |roles: &[Role], body: &Value| {
        let url = format!("{}/v1/policy/evaluate", server.client_url());
        let token = server.token_of(SUB, roles);
        server.try_call(Method::POST, url, &token, None, Some(body)).await.unwrap().ok()
    };
    let windows = |shown: &Value| {
        let all = shown["limits"].as_array().unwrap().iter();
        let mut spans: Vec<String> = all
            .map(|limit| format!("{} {} {}", limit["span"], limit["used"], limit["has_room"]))
            .collect();
        spans.sort();
        spans
    };
    let client = evaluated(&[Role::Client], &to_stranger).await;
    assert_eq!((&client["outcome"], &client["delay"]["for"]), (&json!("delay"), &json!("1h")));
    assert_eq!(windows(&client), ["\"1h\" \"0\" true"], "{client:#}");
    assert!(client.get("misses").is_none(), "{client:#}");
    let auditor = evaluated(&[Role::Client, Role::Auditor], &to_stranger).await;
    let both = ["\"1h\" \"0\" true", "\"24h\" \"0\" true", "\"24h\" \"0\" true"];
    assert_eq!(windows(&auditor), both, "{auditor:#}");
    // Each grant with the first field that fails, though another covers it.
    let missed = |shown: &Value, grant: &str| {
        let all = shown["misses"].as_array().unwrap().iter();
        let of: Vec<&Value> = all.filter(|miss| miss["grant"] == grant).collect();
        of.iter().map(|miss| json!([miss["effect"], miss["field"]])).collect::<Vec<_>>()
    };
    assert_eq!(missed(&auditor, "payouts"), [json!([0, "to"])], "{auditor:#}");
    assert_eq!(missed(&auditor, "slow"), [json!(null); 0]);
    let auditor = evaluated(&[Role::Client, Role::Auditor], &too_much).await;
    assert_eq!(missed(&auditor, "payouts"), [json!([0, "per_tx"])], "{auditor:#}");
    assert_eq!(missed(&auditor, "slow"), [json!([0, "to"])]);
    // The same at the door for signatures.
    let body = json!({ "signer": "payments", "message": { "text": "send money" } });
    let told = server.sign(SUB, None, &body).await;
    only_fields(&told.body["reasons"]);
    assert_eq!(told.body["reasons"][0], json!({ "field": "text" }));
    // The log has all of it, whoever asked.
    server.stop().await;
    let store = setup.store().await;
    let leaves = look(&*store, "leaves", |unit| {
        Box::pin(async move {
            let log = unit.log_leaves(0, 100).await?.into_iter().map(|leaf| leaf.bytes);
            let waiting = unit.waiting_leaves(100).await?.into_iter().map(|leaf| leaf.bytes);
            Ok(log.chain(waiting).collect::<Vec<_>>())
        })
    });
    let leaves = leaves.await.unwrap();
    let text = |bytes: &Vec<u8>| String::from_utf8(bytes.clone()).unwrap();
    let denied = leaves.iter().map(text).filter(|leaf| leaf.contains("\"kind\":\"DENIED\""));
    let with_all = denied.filter(|leaf| leaf.contains("per_tx") && leaf.contains("expected"));
    assert_eq!(with_all.count(), 2);
}

#[tokio::test]
async fn versions_of_one_nonce_are_evaluated_as_one() {
    let anvil = chain().await;
    let own = payout_grants("1.5").replace("\"group\"", "\"principal\"");
    let setup = SetUp::new(&anvil.url(), None, &own);
    let server = setup.start(&[]).await;
    let external = server.key("ext-1", Some("payments"), "external").await;
    let ask = |nonce: u64| {
        json!({ "chain": "local", "signer": external, "transaction": {
            "nonce": nonce.to_string(), "gas": "21000", "to": PAYEE, "value": ETHER.to_string(),
            "gas_price": "4000000000",
        }})
    };
    assert_eq!(server.sign(SUB, None, &ask(0)).await.status, 201);
    let same = evaluate(&server, &ask(0)).await.ok();
    assert_eq!((&same["outcome"], &same["limits"][0]["asked"]), (&json!("allow"), &json!("0")));
    assert_eq!(evaluate(&server, &ask(1)).await.ok()["outcome"], "deny", "no room for a second");
    let managed = server.funded_key(&anvil, "op-1").await;
    let mut body = ask(0);
    body["signer"] = json!(managed);
    assert_eq!(evaluate(&server, &body).await.code(), "nonce-managed");
}

#[tokio::test]
async fn an_evaluation_is_of_the_callers_own_requests_and_read_as_strictly() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &grants());
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    for (sub, role) in [("dev:op", Role::Operator), ("dev:auditor", Role::Auditor)] {
        let refused = evaluate_as(&server, sub, role, &payout(1)).await;
        assert_eq!((refused.status, refused.code()), (403, "forbidden"), "{role}");
    }
    // Another client asks for itself, whatever the grant of the first one says.
    let other = evaluate_as(&server, "svc:watcher", Role::Client, &payout(1)).await.ok();
    assert_eq!(
        (&other["outcome"], &other["reasons"][0]["field"]),
        (&json!("deny"), &json!("effects"))
    );
    for (field, value) in [
        ("principal", json!("svc:payouts")),
        ("sub", json!("svc:payouts")),
        ("value", json!(1)),
        ("message", json!({ "text": "hello", "principal": "svc:payouts" })),
        ("to", json!("0x1")),
    ] {
        let mut body = payout(1);
        body[field] = value;
        let refused = evaluate_as(&server, "svc:watcher", Role::Client, &body).await;
        assert_eq!((refused.status, refused.code()), (400, "invalid-request"), "{body:#}");
    }
    let url = format!("{}/v1/policy/evaluate", server.client_url());
    let unknown = server.try_call(Method::POST, url, "no.token", None, Some(&payout(1))).await;
    assert_eq!(unknown.unwrap().status, 401);
}

// -- GET /v1/limits ---------------------------------------------------------------------------------

async fn limits(server: &Server, sub: &str, role: Role) -> Answer {
    let url = format!("{}/v1/limits", server.client_url());
    let token = server.token(sub, role);
    server.try_call(Method::GET, url, &token, None, None).await.expect("an answer")
}

/// The window of a grant with this span and unit.
fn window(shown: &Value, grant: &str, span: &str, counts: &str) -> Value {
    let all = shown["limits"].as_array().unwrap().iter();
    let found = all.filter(|limit| {
        limit["grant"] == grant && limit["span"] == span && limit["counts"] == counts
    });
    let found: Vec<&Value> = found.collect();
    assert_eq!(found.len(), 1, "{grant} {span} {counts}: {shown:#}");
    found[0].clone()
}

fn wei(limit: &Value, field: &str) -> u128 {
    limit[field].as_str().unwrap_or_else(|| panic!("{field} in {limit:#}")).parse().unwrap()
}

async fn windows_are_shown_as_of_now_to_whom_they_concern(store_url: Option<String>) {
    let two = r#"windows = [{ span = "24h", max = "2.5", scope = "group" },
        { span = "4s", max = "2.0", scope = "key" }]"#;
    let payouts = payout_grants("2.5").replace(
        r#"windows = [{ span = "24h", rolling = true, max = "2.5", scope = "group" }]"#,
        two,
    );
    let alone = payouts.replace("\"svc:payouts\"", "\"svc:watcher\"");
    let alone = alone.replace("id = \"payouts\"", "id = \"others\"").replace("group", "principal");
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), store_url.as_deref(), &[payouts, alone].concat());
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;

    // What nothing was charged to is there, and free.
    let shown = limits(&server, "dev:op", Role::Operator).await.ok();
    let day = window(&shown, "payouts", "24h", "value");
    assert_eq!((wei(&day, "held"), wei(&day, "spent")), (0, 0));
    assert_eq!((wei(&day, "max"), wei(&day, "free")), (ETHER * 5 / 2, ETHER * 5 / 2));
    assert_eq!((&day["unit"], &day["scope"]), (&json!("native:local"), &json!("group")));
    assert_eq!(day["instance"], "payments");

    let paid = server.ask(SUB, "order-1", &payout(ETHER)).await;
    assert_eq!(paid.status, 201, "{:#}", paid.body);
    let held = limits(&server, "dev:op", Role::Operator).await.ok();
    let day = window(&held, "payouts", "24h", "value");
    assert!(wei(&day, "held") > ETHER, "with the fee at its cap: {day:#}");
    assert_eq!(wei(&day, "free"), ETHER * 5 / 2 - wei(&day, "held"));
    server.wait_for(&paid.id(), &["mined", "finalized"]).await;
    anvil.mine(4).await;
    server.wait_for(&paid.id(), &["finalized"]).await;
    let spent = limits(&server, "dev:op", Role::Operator).await.ok();
    let day = window(&spent, "payouts", "24h", "value");
    assert_eq!(wei(&day, "held"), 0);
    assert!(wei(&day, "spent") > ETHER, "{day:#}");
    // The short window forgets without being touched.
    poll_until(LIMIT, "the short window is free again", async || {
        let shown = limits(&server, "dev:op", Role::Operator).await.ok();
        let short = window(&shown, "payouts", "4s", "value");
        (wei(&short, "spent") == 0 && wei(&short, "free") == 2 * ETHER).then_some(())
    })
    .await;
    let later = limits(&server, "dev:op", Role::Operator).await.ok();
    assert_eq!(window(&later, "payouts", "24h", "value"), day);

    // A client sees the windows of grants that name it.
    let grants = |shown: &Value| {
        let all = shown["limits"].as_array().unwrap().iter();
        let mut grants: Vec<String> = all.map(|it| it["grant"].as_str().unwrap().into()).collect();
        grants.sort();
        grants.dedup();
        grants
    };
    let own = limits(&server, SUB, Role::Client).await.ok();
    assert_eq!(grants(&own), ["payouts"]);
    // How much a window holds that others spend from too is not for a client to know.
    for span in ["24h", "4s"] {
        let shared = window(&own, "payouts", span, "value");
        for amount in ["held", "spent", "max", "free"] {
            assert!(shared.get(amount).is_none(), "{amount} in {shared:#}");
        }
    }
    let others = limits(&server, "svc:watcher", Role::Client).await.ok();
    assert_eq!(grants(&others), ["others"]);
    assert_eq!(wei(&window(&others, "others", "24h", "value"), "held"), 0, "its own");
    let approver = limits(&server, "dev:approver", Role::Approver).await;
    assert_eq!((approver.status, approver.code()), (403, "forbidden"));
    for (sub, role) in [("dev:op", Role::Operator), ("dev:auditor", Role::Auditor)] {
        let all = limits(&server, sub, role).await.ok();
        assert_eq!(grants(&all), ["others", "payouts"], "{role}");
        assert_eq!(window(&all, "payouts", "24h", "value"), day, "{role}");
    }
    let url = format!("{}/v1/limits?all=true", server.client_url());
    let token = server.token(SUB, Role::Client);
    let refused = server.try_call(Method::GET, url, &token, None, None).await.unwrap();
    assert_eq!(refused.code(), "invalid-request");

    // Only the answer forgot: the stored sum waits for the next charge.
    server.stop().await;
    let store = setup.store().await;
    let rows = look(&*store, "limits", |unit| {
        Box::pin(async move { unit.limits_now(Timestamp::from_millis(0)).await })
    })
    .await;
    let short = rows.unwrap().into_iter().find(|row| row.label.contains("in 4s")).unwrap();
    assert!(!short.spent.is_zero());
}

#[tokio::test]
async fn limits_are_shown_on_sqlite() {
    windows_are_shown_as_of_now_to_whom_they_concern(None).await;
}

#[tokio::test]
async fn limits_are_shown_on_postgres() {
    let url = Postgres::shared().await.create_database();
    windows_are_shown_as_of_now_to_whom_they_concern(Some(url)).await;
}

#[tokio::test]
async fn a_window_of_an_older_bundle_is_shown_to_operators_without_a_limit() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("2.5"));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    assert_eq!(server.ask(SUB, "order-1", &payout(ETHER)).await.status, 201);
    server.stop().await;
    let newer = payout_grants("3.5").replace("24h", "12h");
    std::fs::write(setup.dir().join("policies/grants.toml"), newer).unwrap();
    let server = setup.start(&[]).await;
    let all = limits(&server, "dev:op", Role::Operator).await.ok();
    let old = all["limits"].as_array().unwrap().iter().find(|limit| limit["span"] == "24h");
    let old = old.unwrap_or_else(|| panic!("{all:#}"));
    assert_eq!((&old["max"], &old["free"]), (&Value::Null, &Value::Null));
    assert!(wei(old, "held") + wei(old, "spent") > 0);
    let own = limits(&server, SUB, Role::Client).await.ok();
    assert_eq!(own["limits"].as_array().unwrap().len(), 1, "{own:#}");
}
