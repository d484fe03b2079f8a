//! Policy bundles of a running server: proposed, compared, put in force under load, followed by other servers,
//! and what was decided before judged by another one.

#![cfg(feature = "server")]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod behind;
mod commands;
#[path = "../support"]
mod support {
    pub mod fault_proxy;
    pub mod server;
    pub mod services;
}

use claviger::app::record::read::recorded;
use claviger::core::access::Role;
use claviger::core::audit::read::ReadLeaf;
use claviger::core::time::Timestamp;
use claviger::ports::store::{LogLeaf, look};
use reqwest::Method;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use support::server::{
    Answer, BIN, LIMIT, PAYEE, Server, SetUp, chain, message_grant, payout, payout_grants, token,
};
use support::services::{Postgres, poll_until};
use tokio::task::JoinSet;

const SUB: &str = "svc:payouts";
const AUTHOR: &str = "dev:ann";
const OTHER: &str = "dev:bob";

/// Payouts, and messages that begin so.
fn grants(prefix: &str) -> String {
    payout_grants("5") + &message_grant(prefix, "")
}

async fn admin(
    server: &Server,
    method: Method,
    path: &str,
    (sub, role): (&str, Role),
    body: Option<&Value>,
) -> Answer {
    let url = format!("{}/admin/v1/policies{path}", server.admin_url());
    let token = server.token(sub, role);
    server.try_call(method, url, &token, None, body).await.expect("an answer")
}

async fn get(server: &Server, path: &str) -> Value {
    admin(server, Method::GET, path, ("dev:auditor", Role::Auditor), None).await.ok()
}

/// The files of a folder's bundle with other grants, as the next one after `parent`.
fn files(dir: &Path, version: &str, parent: &str, grants: &str) -> Value {
    let mut files = Map::new();
    for name in ["bundle.toml", "book.toml", "assets.toml"] {
        files.insert(name.to_owned(), std::fs::read_to_string(dir.join(name)).unwrap().into());
    }
    for file in std::fs::read_dir(dir.join("abi")).unwrap() {
        let path = file.unwrap().path();
        let name = format!("abi/{}", path.file_name().unwrap().to_str().unwrap());
        files.insert(name, std::fs::read_to_string(path).unwrap().into());
    }
    let head = files["bundle.toml"].as_str().unwrap();
    let line = head.lines().find(|line| line.starts_with("version = ")).unwrap();
    let next = head.replacen(line, &format!("version = \"{version}\"\nparent = \"{parent}\""), 1);
    files.insert("bundle.toml".to_owned(), next.into());
    files.insert("grants.toml".to_owned(), grants.into());
    json!({ "files": files })
}

/// Writes such files into a folder.
fn write(dir: &Path, body: &Value) {
    for (name, text) in body["files"].as_object().unwrap() {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text.as_str().unwrap()).unwrap();
    }
}

async fn propose(server: &Server, sub: &str, body: &Value) -> Answer {
    admin(server, Method::POST, "", (sub, Role::PolicyAdmin), Some(body)).await
}

async fn activate(server: &Server, sub: &str, hash: &str) -> Answer {
    let body = json!({ "reason": "a test" });
    let path = format!("/{hash}/activate");
    admin(server, Method::POST, &path, (sub, Role::PolicyAdmin), Some(&body)).await
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

async fn in_force(server: &Server) -> String {
    text(&get(server, "").await["active"]["hash"])
}

async fn sign(server: &Server, words: &str) -> Answer {
    server.sign(SUB, None, &json!({ "signer": "payments", "message": { "text": words } })).await
}

async fn leaves(setup: &SetUp) -> Vec<LogLeaf> {
    let store = setup.store().await;
    look(&*store, "leaves", |unit| Box::pin(async move { unit.log_leaves(0, i64::MAX).await }))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_bundle_is_put_in_force_by_somebody_else_than_its_author() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &grants("hello "));
    let dir = setup.dir().join("policies");
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let first = in_force(&server).await;
    assert_eq!(sign(&server, "hello world").await.ok()["decision"]["bundle"], first.as_str());
    assert_eq!(sign(&server, "hi world").await.status, 403);

    // What does not load, or is not the next one, is not kept.
    let next = files(&dir, "v2", &first, &grants("h"));
    let mut broken = next.clone();
    broken["files"]["grants.toml"] = "[[grant]]\nid = 7\n".into();
    let refused = propose(&server, AUTHOR, &broken).await;
    assert_eq!((refused.status, refused.body["field"].as_str()), (400, Some("files")));
    assert!(text(&refused.body["detail"]).contains("grants.toml: line"), "{}", refused.body);
    let stranger = files(&dir, "v2", &format!("0x{}", "7".repeat(64)), &grants("h"));
    let refused = propose(&server, AUTHOR, &stranger).await;
    assert_eq!((refused.status, refused.code()), (409, "conflict"));
    assert!(text(&refused.body["detail"]).contains(&first), "{}", refused.body);
    let foreign = grants("h").replace("[\"payments\"]", "[\"nobody\"]");
    let refused = propose(&server, AUTHOR, &files(&dir, "v2", &first, &foreign)).await;
    assert!(text(&refused.body["detail"]).contains("group `nobody`"), "{}", refused.body);
    assert_eq!(get(&server, "").await["bundles"].as_array().unwrap().len(), 1);
    for role in [Role::Client, Role::Operator, Role::Approver, Role::Auditor] {
        let sub = if role == Role::Client { SUB } else { AUTHOR };
        let refused = admin(&server, Method::POST, "", (sub, role), Some(&next)).await;
        assert_eq!(refused.status, 403, "{role}");
    }

    let proposed = propose(&server, AUTHOR, &next).await;
    assert_eq!(proposed.status, 201, "{}", proposed.body);
    let second = text(&proposed.body["hash"]);
    assert_eq!(
        propose(&server, OTHER, &next).await.ok()["author"]["sub"],
        AUTHOR,
        "it stays theirs"
    );
    let diff = get(&server, &format!("/{second}/diff")).await;
    assert_eq!((&diff["loosens"], &diff["from"]), (&json!(true), &json!(first)));
    let what = text(&diff["changes"][0]["what"]);
    assert!(
        what.contains("begins with \"h\" (was any text that begins with \"hello \")"),
        "{what}"
    );
    assert_eq!(sign(&server, "hi world").await.status, 403, "nothing is decided by it yet");

    let refused = activate(&server, AUTHOR, &second).await;
    assert_eq!((refused.status, refused.code()), (409, "conflict"));
    let waiting = get(&server, &format!("/{second}")).await;
    assert_eq!(waiting["waits_for"], "it needs one person other than its author");
    let body = json!({ "reason": "no" });
    let path = format!("/{second}/activate");
    let refused = admin(&server, Method::POST, &path, (OTHER, Role::Auditor), Some(&body)).await;
    assert_eq!(refused.status, 403);
    let done = activate(&server, OTHER, &second).await;
    assert_eq!((done.status, &done.body["active"]), (200, &json!(true)), "{}", done.body);
    assert_eq!(sign(&server, "hi world").await.ok()["decision"]["bundle"], second.as_str());
    // The parent of the first is not the one that is in force now.
    assert_eq!(activate(&server, OTHER, &first).await.status, 409);
    assert_eq!(activate(&server, OTHER, &second).await.status, 200, "said twice");
    assert_eq!(in_force(&server).await, second);
    server.checkpoint().await;
    server.stop().await;

    // Without a change rule, the folder rules at the next start.
    let server = setup.start(&[]).await;
    assert_eq!(in_force(&server).await, first);
    let listed = get(&server, "").await;
    let ways: Vec<&str> = listed["activations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["by"].as_str().unwrap())
        .collect();
    assert_eq!(ways, ["folder", "people", "folder"]);
    assert_eq!(sign(&server, "hi world").await.status, 403);
    server.checkpoint().await;
    server.stop().await;
    let server = setup.start(&[]).await;
    assert_eq!(
        get(&server, "").await["activations"].as_array().unwrap().len(),
        3,
        "it is the same"
    );
    server.checkpoint().await;
    server.stop().await;
    let kinds: Vec<(String, String)> = leaves(&setup)
        .await
        .into_iter()
        .filter(|leaf| leaf.kind.starts_with("BUNDLE_"))
        .map(|leaf| (leaf.kind, leaf.subject))
        .collect();
    let leaf = |kind: &str, hash: &String| (format!("BUNDLE_{kind}"), hash.clone());
    assert_eq!(
        kinds,
        [
            leaf("PROPOSED", &first),
            leaf("ACTIVATED", &first),
            leaf("PROPOSED", &second),
            leaf("ENDORSED", &second),
            leaf("ACTIVATED", &second),
            leaf("ACTIVATED", &first),
        ]
    );
}

/// As the folder's, with people who change it: two of three, and what loosens waits.
const CHANGE: &str = r#"
[[quorum]]
name = "security"
members = ["dev:ann", "dev:bob", "dev:cid"]

[change]
quorum = { security = 2 }
delay = "2s"
"#;

#[tokio::test]
async fn what_the_bundle_in_force_says_about_its_change_holds_also_against_the_folder() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &grants("hello "));
    let dir = setup.dir().join("policies");
    let head = dir.join("bundle.toml");
    let plain = std::fs::read_to_string(&head).unwrap();
    std::fs::write(&head, format!("{plain}{CHANGE}")).unwrap();
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let first = in_force(&server).await;

    // It loosens: two people who are not its author, and then time.
    let looser = files(&dir, "v2", &first, &grants("h"));
    let second = text(&propose(&server, AUTHOR, &looser).await.body["hash"]);
    assert_eq!(activate(&server, AUTHOR, &second).await.status, 409, "the author has no voice");
    for sub in [OTHER, OTHER, "dev:stranger"] {
        let waits = activate(&server, sub, &second).await;
        assert_eq!((waits.status, &waits.body["active"]), (202, &json!(false)), "{sub}");
        assert!(text(&waits.body["waits_for"]).contains("2 of security"), "{}", waits.body);
    }
    let waits = activate(&server, "dev:cid", &second).await;
    assert_eq!(waits.status, 202, "{}", waits.body);
    assert!(text(&waits.body["waits_for"]).contains("it loosens"), "{}", waits.body);
    assert_eq!(sign(&server, "hi world").await.status, 403, "not before its time");
    poll_until(LIMIT, "its time has come", async || {
        (in_force(&server).await == second).then_some(())
    })
    .await;
    assert_eq!(sign(&server, "hi world").await.status, 201);

    // What only tightens needs the people and no time.
    let tighter = files(&dir, "v3", &second, &grants("hello you "));
    let third = text(&propose(&server, "dev:cid", &tighter).await.body["hash"]);
    assert_eq!(activate(&server, OTHER, &third).await.status, 202);
    assert_eq!(activate(&server, AUTHOR, &third).await.status, 200);
    assert_eq!(sign(&server, "hello world").await.status, 403);
    server.stop().await;

    // Whoever can write the folder changes nothing: neither by an old bundle, nor by one without the rule.
    for head_text in [format!("{plain}{CHANGE}"), plain] {
        std::fs::write(&head, head_text).unwrap();
        let server = setup.start(&[]).await;
        assert_eq!(in_force(&server).await, third);
        server.stop().await;
    }
}

#[tokio::test]
async fn another_server_over_the_database_follows() {
    let anvil = chain().await;
    let url = Postgres::shared().await.create_database();
    let setup = SetUp::new(&anvil.url(), Some(&url), &grants("hello "));
    let dir = setup.dir().join("policies");
    let one = setup.start(&[]).await;
    one.funded_key(&anvil, "op-1").await;
    let two = setup.start_beside("two.record", &[]).await;
    let first = in_force(&two).await;
    let next = files(&dir, "v2", &first, &grants("good day "));
    let second = text(&propose(&one, AUTHOR, &next).await.ok()["hash"]);
    // Whoever is asked: the word is the database's.
    assert_eq!(activate(&two, OTHER, &second).await.status, 200);
    assert_eq!(sign(&two, "good day you").await.ok()["decision"]["bundle"], second.as_str());
    poll_until(LIMIT, "the other server follows", async || {
        let asked = sign(&one, "good day you").await;
        (asked.status == 201).then_some(())
    })
    .await;
    assert_eq!(sign(&one, "hello you").await.status, 403);
    one.stop().await;
    two.stop().await;
}

/// What the callers saw.
#[derive(Default)]
struct Seen {
    /// How often each bundle (by its place in the order of activations) decided.
    decided: Mutex<BTreeMap<usize, u64>>,
    denied: AtomicUsize,
    wrong: Mutex<Vec<String>>,
}

#[tokio::test]
async fn activation_under_load_drops_no_request_and_holds_from_its_answer_on() {
    const CALLERS: usize = 6;
    const CHANGES: usize = 10;
    let anvil = chain().await;
    // Each bundle allows a word of its own, and all of them payouts.
    let words = |n: usize| format!("word{n} ");
    let both = |n: usize| {
        grants("every ").replace("{n}", "")
            + &format!(
                r#"
[[grant]]
id = "own"
owner = "treasury"
reason = "tests"
expires = "2099-12-31"
principals = ["svc:payouts"]
signers = ["payments"]
action = "message"
text = {{ prefix = "{}" }}
"#,
                words(n)
            )
    };
    let setup = SetUp::new(&anvil.url(), None, &both(0));
    let dir = setup.dir().join("policies");
    let server = Arc::new(setup.start(&[]).await);
    server.funded_key(&anvil, "op-1").await;
    let order = Arc::new(Mutex::new(vec![in_force(&server).await]));
    let (answered, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let seen = Arc::new(Seen::default());
    let mut callers = JoinSet::new();
    let key = token(&server.issuer_key(), SUB, Role::Client);
    for caller in 0..CALLERS {
        let (server, order) = (Arc::clone(&server), Arc::clone(&order));
        let (answered, stop, seen) = (Arc::clone(&answered), Arc::clone(&stop), Arc::clone(&seen));
        let key = key.clone();
        callers.spawn(async move {
            let mut count = 0_usize;
            while !stop.load(Ordering::SeqCst) {
                count += 1;
                let since = answered.load(Ordering::SeqCst);
                // Every third is refused, unless the bundle came into force meanwhile.
                let is_odd = count.is_multiple_of(3);
                let said =
                    if is_odd { words(since + 2) } else { format!("every {caller} {count}") };
                let body = json!({ "signer": "payments", "message": { "text": said } });
                let url = format!("{}/v1/signatures", server.client_url());
                let answer = server.try_call(Method::POST, url, &key, None, Some(&body)).await;
                let Some(answer) = answer else {
                    seen.wrong.lock().unwrap().push(format!("{said}: no answer"));
                    continue;
                };
                if answer.status == 403 && is_odd {
                    seen.denied.fetch_add(1, Ordering::SeqCst);
                    continue;
                }
                let bundle = answer.body["decision"]["bundle"].as_str().unwrap_or_default();
                let place = order.lock().unwrap().iter().position(|hash| hash == bundle);
                match place {
                    Some(place) if answer.status == 201 && place >= since => {
                        *seen.decided.lock().unwrap().entry(place).or_default() += 1;
                    }
                    _ => seen.wrong.lock().unwrap().push(format!(
                        "{said}, after {since}: {} by {place:?} {}",
                        answer.status, answer.body
                    )),
                }
            }
        });
    }
    for change in 1..=CHANGES {
        let parent = order.lock().unwrap().last().unwrap().clone();
        let next = files(&dir, &format!("v{change}"), &parent, &both(change));
        // By turns: what one proposes the other puts in force.
        let (author, other) = if change % 2 == 0 { (AUTHOR, OTHER) } else { (OTHER, AUTHOR) };
        let hash = text(&propose(&server, author, &next).await.ok()["hash"]);
        order.lock().unwrap().push(hash.clone());
        assert_eq!(activate(&server, other, &hash).await.status, 200);
        answered.store(change, Ordering::SeqCst);
        poll_until(LIMIT, "callers are decided by the new bundle", async || {
            seen.decided.lock().unwrap().get(&change).filter(|count| **count >= 10).map(|_| ())
        })
        .await;
    }
    stop.store(true, Ordering::SeqCst);
    while let Some(ended) = callers.join_next().await {
        ended.unwrap();
    }
    let wrong = seen.wrong.lock().unwrap().clone();
    assert!(
        wrong.is_empty(),
        "{} wrong: {:#?}",
        wrong.len(),
        wrong.iter().take(5).collect::<Vec<_>>()
    );
    let decided = seen.decided.lock().unwrap().clone();
    assert_eq!(decided.len(), CHANGES + 1, "each of them decided: {decided:?}");
    let denied = seen.denied.load(Ordering::SeqCst);
    assert!(denied > CHANGES, "{denied}");
    server.checkpoint().await;
    Arc::into_inner(server).expect("nobody else has it").stop().await;

    // The log says the same: one decision for each answer, all by one of these bundles.
    let order = order.lock().unwrap().clone();
    let known: BTreeSet<&String> = order.iter().collect();
    let mut counted = BTreeMap::<&str, usize>::new();
    for leaf in leaves(&setup).await {
        let kind = match leaf.kind.as_str() {
            "DECIDED" => "DECIDED",
            "DENIED" => "DENIED",
            _ => continue,
        };
        let read = ReadLeaf::parse(&leaf.bytes).unwrap();
        let decision = recorded(read.text("decision").unwrap(), Timestamp::default()).unwrap();
        assert!(known.contains(&format!("{:#x}", decision.bundle)), "{}", decision.bundle);
        *counted.entry(kind).or_default() += 1;
    }
    let all: u64 = decided.values().sum();
    assert_eq!(counted["DECIDED"], usize::try_from(all).unwrap());
    assert_eq!(counted["DENIED"], denied);
}
