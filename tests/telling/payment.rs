//! One payment to its end, learned over a webhook and over streams.

use crate::reader::{Reader, story};
use crate::receiver::{OTHER, Receiver, SECRET};
use crate::support::server::{
    Answer, BIN, ETHER, LIMIT, Server, SetUp, chain, payout, payout_grants,
};
use crate::support::services::{Anvil, poll_until};
use claviger::core::access::Role;
use claviger::ports::store::look;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::Command;

pub const SUB: &str = "svc:payouts";
pub const FINAL: &str = "claviger.transaction.finalized";

pub fn configure(setup: &SetUp, more: &str) {
    let mut file = std::fs::OpenOptions::new().append(true).open(setup.config()).unwrap();
    file.write_all(more.as_bytes()).unwrap();
}

/// Mines until it is final.
pub async fn to_its_end(anvil: &Anvil, server: &Server, id: &str) -> Value {
    poll_until(LIMIT, "it is final", async || {
        anvil.mine(1).await;
        let found = server.read(id).await;
        (found["status"] == "finalized").then_some(found)
    })
    .await
}

/// The members that the page about events has for a kind of event.
fn members(kind: &str) -> BTreeSet<String> {
    let page = include_str!("../../docs/EVENTS.md");
    let noun = kind.rsplit_once('.').unwrap().0;
    let mut sections = page.split("\n### ");
    let section = sections
        .find(|it| it.starts_with(&format!("`{kind}`")) || it.starts_with(&format!("`{noun}.*`")))
        .unwrap_or_else(|| panic!("docs/EVENTS.md has no section for {kind}"));
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| row.split('`').next().unwrap().to_owned()).collect()
}

/// Every member of an event's data is on the page, and every one of the page is there.
fn as_documented(event: &Value) {
    let kind = event["type"].as_str().unwrap();
    let told: BTreeSet<String> = event["data"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(told, members(kind), "{kind}");
    let noun = kind.split('.').nth(1).unwrap();
    assert_eq!(event["dataschema"], format!("urn:claviger:schema:{noun}:1"));
}

async fn deliveries(server: &Server, role: Role, query: &str) -> Answer {
    let token = server.token("dev:op", role);
    let url = format!("{}/admin/v1/deliveries{query}", server.admin_url());
    server.try_call(Method::GET, url, &token, None, None).await.unwrap()
}

fn cli(setup: &SetUp, server: &Server, args: &[&str]) -> std::process::Output {
    let admin = server.admin_url().replace("http://", "");
    let client = server.client_url().replace("http://", "");
    Command::new(BIN)
        .arg("delivery")
        .args(args)
        .arg("--config")
        .arg(setup.config())
        .env("CLAVIGER__SERVER__ADMIN_LISTEN", admin)
        .env("CLAVIGER__SERVER__LISTEN", client)
        .output()
        .unwrap()
}

#[tokio::test]
async fn one_payment_is_learned_to_its_end_over_a_webhook_and_over_streams() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("100.0"));
    let (hook, gone) = (Receiver::secure().await, Receiver::plain().await);
    configure(&setup, &hook.section(&setup.dir(), "backend", "claviger.transaction.*"));
    configure(&setup, &gone.section(&setup.dir(), "ends", FINAL));
    gone.script([(410, None, "<b>moved\naway</b>")]);
    let both = format!("{OTHER}\n{SECRET}\n");
    std::fs::write(setup.dir().join("backend.secret"), both).unwrap();

    let server = setup.start(&[]).await;
    let mut own = Reader::of(&server, SUB, Role::Client, None).await;
    let stranger = Reader::of(&server, "svc:watcher", Role::Client, Some(0)).await;
    let mut auditor = Reader::of(&server, "dev:auditor", Role::Auditor, Some(0)).await;
    server.funded_key(&anvil, "op-1").await;
    let mut body = payout(ETHER);
    body["metadata"] = json!({ "order": "4711" });
    let asked = server.ask(SUB, "order-4711", &body).await;
    let id = asked.id();
    let shown = to_its_end(&anvil, &server, &id).await;

    // What the backend needs to know, from the last event alone.
    let events = own.until(FINAL, &id).await;
    let told = &events.last().unwrap()["data"];
    assert_eq!(told["idempotency_key"], "order-4711");
    assert_eq!(told["metadata"], json!({ "order": "4711" }));
    assert_eq!(told["receipt"], shown["receipt"]);
    assert_eq!(told["hash"], shown["receipt"]["transaction_hash"]);
    assert_eq!((&told["id"], &told["nonce"]), (&shown["id"], &shown["nonce"]));
    let expected = ["queued", "submitted", "mined", "finalized"];
    assert_eq!(story(&events, &id), expected);
    poll_until(LIMIT, "the webhook has it too", async || {
        (hook.story(&id).len() >= expected.len()).then_some(())
    })
    .await;
    assert_eq!(hook.story(&id), expected);
    for (got, event) in hook.got().iter().zip(&events) {
        assert_eq!(&got.event(), event, "the same document");
        assert_eq!(got.id, event["id"].as_str().unwrap());
        assert!(got.verify(SECRET) && got.verify(OTHER), "both secrets sign");
        assert!(!got.verify("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"));
    }

    // Who sees everything sees the key and the bundle too; each as the page says.
    let all = auditor.until(FINAL, &id).await;
    let mut kinds = BTreeMap::new();
    for event in &all {
        as_documented(event);
        *kinds.entry(event["type"].as_str().unwrap().to_owned()).or_insert(0) += 1;
    }
    assert_eq!(kinds.get("claviger.key.created"), Some(&1), "{kinds:?}");
    assert_eq!(kinds.get("claviger.policy.activated"), Some(&1), "{kinds:?}");

    let number = dead_letter(&setup, &server, &gone).await;

    // At the end all streams are told so, and the stranger has learned nothing.
    poll_until(LIMIT, "the streams are counted", async || {
        (server.metric("claviger_event_streams", &[]).await > 2.5).then_some(())
    })
    .await;
    server.checkpoint().await;
    server.stop().await;
    let (events, why) = stranger.rest().await;
    assert_eq!((events.len(), why.as_deref()), (0, Some("the server stops")));
    let (rest, why) = own.rest().await;
    assert_eq!((rest.len(), why.as_deref()), (0, Some("the server stops")));
    let store = setup.store().await;
    let leaves =
        look(&*store, "leaves", |unit| Box::pin(async move { unit.log_leaves(0, i64::MAX).await }));
    let leaves = leaves.await.unwrap();
    let replayed = leaves.iter().filter(|leaf| leaf.kind == "INSTRUCTED");
    assert_eq!(
        replayed.map(|leaf| leaf.subject.as_str()).collect::<Vec<_>>(),
        [format!("delivery/{number}")]
    );
}

/// What was given up is listed, and told again when somebody says so.
async fn dead_letter(setup: &SetUp, server: &Server, gone: &Receiver) -> String {
    let dead = poll_until(LIMIT, "it is given up", async || {
        let found = deliveries(server, Role::Auditor, "?state=dead").await.ok();
        found["deliveries"].as_array().unwrap().first().cloned()
    })
    .await;
    assert_eq!(gone.got().len(), 1, "410 is not tried again");
    assert_eq!((&dead["consumer"], &dead["type"]), (&json!("webhook:ends"), &json!(FINAL)));
    assert_eq!(dead["reason"], "410 Gone: <b>moved away</b>");
    assert_eq!(deliveries(server, Role::Client, "").await.code(), "forbidden");
    assert_eq!(deliveries(server, Role::Operator, "?state=lost").await.code(), "invalid-request");
    let other = deliveries(server, Role::Operator, "?consumer=bus").await.ok();
    assert_eq!(other["deliveries"], json!([]));
    poll_until(LIMIT, "it is counted", async || {
        let labels = [("consumer", "webhook:ends"), ("state", "dead")];
        (server.metric("claviger_event_backlog", &labels).await > 0.5).then_some(())
    })
    .await;

    let listed = cli(setup, server, &["list", "--state", "dead"]);
    let text = String::from_utf8(listed.stdout).unwrap();
    assert!(text.contains("webhook:ends") && text.contains("410 Gone"), "{text}");
    let number = dead["id"].as_str().unwrap();
    let replay = ["replay", number, "--reason", "it is back"];
    let replayed = cli(setup, server, &replay);
    assert!(replayed.status.success(), "{}", String::from_utf8_lossy(&replayed.stderr));
    poll_until(LIMIT, "it is told", async || (gone.got().len() == 2).then_some(())).await;
    let got = gone.got();
    assert_eq!(got[0].id, got[1].id, "under its id");
    poll_until(LIMIT, "nothing is owed", async || {
        let left = deliveries(server, Role::Operator, "").await.ok();
        (left["deliveries"] == json!([])).then_some(())
    })
    .await;
    let all = cli(setup, server, &["replay", "--consumer", "webhook:ends", "--reason", "x"]);
    let text = String::from_utf8(all.stdout).unwrap();
    assert!(text.contains("0 event(s) are told to webhook:ends"), "{text}");
    for (consumer, status) in [("webhook:ends", "409"), ("bus", "404")] {
        let forget = cli(setup, server, &["forget", "--consumer", consumer, "--reason", "x"]);
        let text = String::from_utf8_lossy(&forget.stderr).into_owned();
        assert!(!forget.status.success() && text.contains(status), "{consumer}: {text}");
    }
    let again = cli(setup, server, &replay);
    assert!(String::from_utf8_lossy(&again.stderr).contains("404"), "it is told, and gone");
    let token = server.token("dev:op", Role::Auditor);
    let url = format!("{}/admin/v1/deliveries/{number}/replay", server.admin_url());
    let body = json!({ "reason": "x" });
    let refused = server.try_call(Method::POST, url, &token, None, Some(&body)).await.unwrap();
    assert_eq!(refused.code(), "forbidden");
    number.to_owned()
}
