//! A server with quorum groups, and people who answer.

#![allow(dead_code, reason = "not every test needs all of it")]

pub use crate::support::server::chain;
use crate::support::server::{Answer, BIN, ETHER, Server, SetUp, payout, payout_grants};
use crate::support::services::Anvil;
use claviger::core::access::Role;
use claviger::ports::store::{NewEvent, Store, look};
use reqwest::Method;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

/// Who asks.
pub const SUB: &str = "svc:payouts";

/// Payouts of up to one ether: `more` says what they wait for.
pub fn grants(window_ether: &str, more: &str) -> String {
    payout_grants(window_ether) + more + "\n"
}

/// Above half an ether, one of each group within that time.
pub fn approval(ttl: &str) -> String {
    format!(
        r#"approval = {{ above = "0.5", quorum = {{ treasury = 1, security = 1 }}, ttl = "{ttl}" }}"#
    )
}

/// Groups in which `dev:bob` is twice, and the one who asks once; everybody may hold every role.
pub const QUORUMS: &str = r#"
[[quorum]]
name = "treasury"
members = ["dev:ann", "dev:bob", "svc:payouts"]

[[quorum]]
name = "security"
members = ["dev:bob", "dev:cat"]
"#;

/// Writes grants and quorum groups into a set-up's bundle.
pub fn write_bundle(dir: &Path, grants: &str) {
    let file = dir.join("policies/bundle.toml");
    let bundle = std::fs::read_to_string(&file).unwrap();
    if !bundle.contains("[[quorum]]") {
        let roles = "roles = [\"client\", \"approver\"]";
        let bundle = bundle.replacen("roles = [\"client\"]", roles, 1);
        assert!(bundle.contains(roles));
        std::fs::write(&file, format!("{bundle}\n{QUORUMS}")).unwrap();
    }
    std::fs::write(dir.join("policies/grants.toml"), grants).unwrap();
}

pub fn setup(anvil: &Anvil, store_url: Option<&str>, grants: &str) -> SetUp {
    let setup = SetUp::new(&anvil.url(), store_url, grants);
    write_bundle(&setup.dir(), grants);
    setup
}

/// More than may go without approval.
pub fn large() -> Value {
    payout(ETHER)
}

pub async fn call(
    server: &Server,
    (sub, role): (&str, Role),
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Answer {
    let token = server.token(sub, role);
    let url = format!("{}/admin/v1/approvals{path}", server.admin_url());
    server.try_call(method, url, &token, None, body).await.expect("an answer")
}

/// What waits, as an approver sees it.
pub async fn list(server: &Server) -> Vec<Value> {
    let found = call(server, ("dev:ann", Role::Approver), Method::GET, "", None).await.ok();
    found["approvals"].as_array().unwrap().clone()
}

pub async fn read(server: &Server, id: &str) -> Value {
    let path = format!("/{id}");
    call(server, ("dev:ann", Role::Approver), Method::GET, &path, None).await.ok()
}

pub async fn hash(server: &Server, id: &str) -> String {
    read(server, id).await["hash"].as_str().unwrap().to_owned()
}

/// Says `approve` or `reject`; the hash is that of what was shown.
pub async fn answer(server: &Server, sub: &str, id: &str, action: &str, hash: &str) -> Answer {
    let body = json!({ "hash": hash, "reason": "a test" });
    let path = format!("/{id}/{action}");
    call(server, (sub, Role::Approver), Method::POST, &path, Some(&body)).await
}

pub async fn approve(server: &Server, sub: &str, id: &str) -> Answer {
    let hash = hash(server, id).await;
    answer(server, sub, id, "approve", &hash).await
}

/// A command of `claviger approval` against a running server, whose ports are not those of the file.
pub fn command(setup: &SetUp, server: &Server, token: &Path, args: &[&str]) -> Output {
    let port = |url: String| url.trim_start_matches("http://").to_owned();
    let (action, rest) = args.split_first().unwrap();
    Command::new(BIN)
        .args(["approval", action, "--config"])
        .arg(setup.config())
        .arg("--token-file")
        .arg(token)
        .args(rest)
        .env("CLAVIGER__SERVER__ADMIN_LISTEN", port(server.admin_url()))
        .output()
        .unwrap()
}

pub async fn events(store: &Arc<dyn Store>, id: &str) -> Vec<NewEvent> {
    let id = id.to_owned();
    let found = look(&**store, "events", move |unit| {
        let id = id.clone();
        Box::pin(async move { unit.events_of(&id).await })
    });
    found.await.unwrap()
}

/// The kinds of the leaves about a request, in order.
pub async fn leaves(store: &Arc<dyn Store>, id: &str) -> Vec<String> {
    let id = id.to_owned();
    let found = look(&**store, "leaves", move |unit| {
        let id = id.clone();
        Box::pin(async move { unit.leaves_about(&id).await })
    });
    let read = |bytes: Vec<u8>| {
        let leaf: Value = serde_json::from_slice(&bytes).unwrap();
        leaf["kind"].as_str().unwrap().to_owned()
    };
    found.await.unwrap().into_iter().map(read).collect()
}
