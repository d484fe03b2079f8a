//! The signer and the export beside a running server.

use crate::commands::{claviger, export, verify};
use crate::intruder::Intruder;
use crate::support::server::{ETHER, LIMIT, Server, SetUp, payout, payout_grants};
use crate::support::services::{Anvil, AnvilOptions, Mining, Postgres, Program, poll_until};
use claviger::core::access::Role;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Signed often, so that the history has many checkpoints.
const OFTEN: (&str, &str) = ("CLAVIGER__AUDIT__CHECKPOINT_EVERY", "50ms");
/// Neither indices nor checkpoints come by themselves.
const NEVER: [(&str, &str); 2] =
    [("CLAVIGER__AUDIT__CHECKPOINT_EVERY", "24h"), ("CLAVIGER__AUDIT__SEQUENCE_EVERY", "24h")];

pub async fn chain() -> Anvil {
    let slots_in_an_epoch = Some(1);
    let mining = Mining::Auto;
    Anvil::start(AnvilOptions { mining, slots_in_an_epoch, ..AnvilOptions::default() }).await
}

async fn ask(server: &Server, accept: &str) -> (u16, String, String) {
    let http = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
    let url = format!("{}/admin/v1/audit/checkpoint", server.admin_url());
    let token = server.token("dev:auditor", Role::Auditor);
    let answer = http.get(url).bearer_auth(token).header("accept", accept).send().await.unwrap();
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    (answer.status().as_u16(), kind, answer.text().await.unwrap())
}

/// The note of the whole log, once nothing waits and all is signed.
pub async fn signed(server: &Server) -> (u64, String) {
    let (size, _) = server.checkpoint().await;
    poll_until(LIMIT, "the log is signed", async || {
        let (_, _, body) = ask(server, "application/json").await;
        let told: Value = serde_json::from_str(&body).unwrap();
        let note = told["note"].as_str()?.to_owned();
        let signed: u64 = note.lines().nth(1).unwrap().parse().unwrap();
        (signed >= size && told["waiting"] == "0").then_some((signed, note))
    })
    .await
}

/// Payouts, each signed into the log when it is final.
pub async fn pay(server: &Server, anvil: &Anvil, name: &str, count: usize) {
    for n in 0..count {
        let answer = server.ask("svc:payouts", &format!("{name}-{n}"), &payout(ETHER / 1000)).await;
        server.wait_for(&answer.id(), &["mined", "finalized"]).await;
        anvil.mine(4).await;
        server.wait_for(&answer.id(), &["finalized"]).await;
        signed(server).await;
    }
}

pub fn vkey(setup: &SetUp) -> PathBuf {
    setup.dir().join("audit.vkey")
}

pub fn out(setup: &SetUp, name: &str) -> PathBuf {
    setup.dir().join(name)
}

pub fn exported(setup: &SetUp, name: &str) -> (PathBuf, Value) {
    let out = out(setup, name);
    let told = export(&setup.config(), &out, None).ok();
    (out, told)
}

/// A server that must not start; what it says.
async fn refused(setup: &SetUp) -> String {
    let config = setup.config().display().to_string();
    let envs: [(&str, &str); 0] = [];
    let mut program = Program::spawn(
        "refused",
        crate::support::server::BIN,
        ["serve", "--config", &config],
        envs,
    );
    let status = program.exit_status(LIMIT).await;
    assert_eq!(status.code(), Some(1), "{}", program.tail());
    let told = program.stderr();
    told.lines().find(|line| line.starts_with("claviger: ")).expect("a reason").to_owned()
}

async fn a_log_of_payouts_is_exported_and_verified(store_url: Option<String>) {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), store_url.as_deref(), &payout_grants("100.0"));
    let server = setup.start(&[OFTEN]).await;
    server.funded_key(&anvil, "op-1").await;
    pay(&server, &anvil, "first", 2).await;
    let denied = server.ask("svc:payouts", "too-much", &payout(3 * ETHER)).await;
    assert_eq!(denied.code(), "policy-denied");
    let (size, note) = signed(&server).await;

    // The server runs.
    let (export, told) = exported(&setup, "log");
    assert_eq!(told["size"], size);
    assert!(told["ends_at"].is_null(), "{told:#}");
    assert_eq!(std::fs::read_to_string(export.join("checkpoint")).unwrap(), note);
    let found =
        verify(&export, &vkey(&setup), &[("--checkpoint", &export.join("checkpoint"))]).ok();
    assert_eq!((&found["ok"], &found["size"]), (&true.into(), &size.into()), "{found:#}");
    let kinds = ["DECIDED", "SIGNED", "SETTLED", "DENIED", "KEY_CREATED"];
    let counts = kinds.map(|kind| found["kinds"][kind].as_u64().unwrap());
    assert_eq!(counts, [2, 2, 2, 1, 1]);
    assert_eq!((&found["decided_unsigned"], &found["kept"]), (&0.into(), &1.into()));
    assert!(found["checkpoints"].as_u64().unwrap() >= 2, "{found:#}");

    // And goes on.
    pay(&server, &anvil, "more", 1).await;
    server.stop().await;
    let (later, _) = exported(&setup, "later");
    let found = verify(&later, &vkey(&setup), &[("--checkpoint", &export.join("checkpoint"))]).ok();
    assert_eq!(found["size"], size + 3);
}

#[tokio::test]
async fn a_log_of_payouts_is_exported_while_the_server_runs_and_verified_on_sqlite() {
    a_log_of_payouts_is_exported_and_verified(None).await;
}

#[tokio::test]
async fn a_log_of_payouts_is_exported_while_the_server_runs_and_verified_on_postgres() {
    let url = Postgres::shared().await.create_database();
    a_log_of_payouts_is_exported_and_verified(Some(url)).await;
}

#[tokio::test]
async fn the_checkpoint_is_told_with_the_note_and_as_the_bare_note() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("100.0"));
    let server = setup.start(&[OFTEN]).await;
    server.funded_key(&anvil, "op-1").await;
    let (size, note) = signed(&server).await;
    let (status, kind, body) = ask(&server, "text/plain").await;
    assert_eq!((status, kind.starts_with("text/plain"), &body), (200, true, &note));
    let (_, _, body) = ask(&server, "*/*").await;
    let told: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&told["size"], &told["waiting"]), (&size.to_string().into(), &"0".into()));

    let http = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
    let url = format!("{}/admin/v1/audit/checkpoint", server.admin_url());
    let token = server.token("svc:payouts", Role::Client);
    let answer = http.get(url).bearer_auth(token).header("accept", "text/plain").send().await;
    assert_eq!(answer.unwrap().status().as_u16(), 403);
}

#[tokio::test]
async fn killed_the_server_goes_on_signing_what_continues_the_log() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("100.0"));
    let mut server = setup.start(&[OFTEN]).await;
    server.funded_key(&anvil, "op-1").await;
    pay(&server, &anvil, "before", 2).await;
    let (_, note) = signed(&server).await;
    let kept = out(&setup, "kept");
    std::fs::write(&kept, &note).unwrap();
    let asked = server.ask("svc:payouts", "killed", &payout(ETHER / 1000)).await;
    server.program.kill9();
    let (export, _) = exported(&setup, "as-it-was-left");
    verify(&export, &vkey(&setup), &[("--checkpoint", &kept)]).ok();

    let server = setup.start(&[OFTEN]).await;
    server.wait_for(&asked.id(), &["mined", "finalized"]).await;
    pay(&server, &anvil, "after", 1).await;
    server.stop().await;
    let (export, _) = exported(&setup, "log");
    let found = verify(&export, &vkey(&setup), &[("--checkpoint", &kept)]).ok();
    assert_eq!((&found["kinds"]["SIGNED"], &found["kept"]), (&4.into(), &1.into()), "{found:#}");
}

#[tokio::test]
async fn killed_between_the_record_and_the_release_the_checkpoint_is_released_at_the_next_start() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("100.0"));
    // What a first start writes is signed before: the next leaf is the one of the key.
    let server = setup.start(&[OFTEN]).await;
    let before = signed(&server).await.0;
    server.stop().await;
    let server = setup.start(&[OFTEN, ("CLAVIGER_FAILPOINT", "checkpoint.after_record")]).await;
    let token = server.token("dev:op", Role::Operator);
    let body = serde_json::json!({ "label": "op-1", "group": "payments", "mode": "managed" });
    let url = format!("{}/admin/v1/keys", server.admin_url());
    let _ = server.try_call(reqwest::Method::POST, url, &token, None, Some(&body)).await;
    server.crashed().await;

    let recorded = std::fs::read_to_string(setup.dir().join("audit.record")).unwrap();
    let size = before + 1;
    assert_eq!(recorded.lines().nth(1), Some(size.to_string().as_str()));
    let mut intruder = Intruder::at(&setup.dir().join("claviger.db")).await;
    assert_eq!(intruder.checkpoint_sizes().await, [i64::try_from(before).unwrap()]);
    drop(intruder);
    let server = setup.start(&[OFTEN]).await;
    assert_eq!(signed(&server).await, (size, recorded));
}

#[tokio::test]
async fn a_log_that_is_rewritten_under_a_running_server_is_alarmed_and_not_signed() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("100.0"));
    let mut server = setup.start(&[OFTEN]).await;
    server.funded_key(&anvil, "op-1").await;
    pay(&server, &anvil, "pay", 1).await;
    let (size, note) = signed(&server).await;
    let mut intruder = Intruder::at(&setup.dir().join("claviger.db")).await;
    intruder.edit_leaf(1).await;
    intruder.rebuild().await;
    server.program.wait_for_line("ALARM: the audit log is wrong and is not signed", LIMIT).await;
    // It waits for an operator: what is there is read, and nothing further is signed.
    server
        .program
        .wait_for_line("nothing is signed until `claviger reconcile` has run", LIMIT)
        .await;
    let answer = server.ask("svc:payouts", "more", &payout(ETHER / 1000)).await;
    assert_eq!((answer.status, answer.code()), (503, "reconcile-required"));
    let (grown, _) = server.checkpoint().await;
    assert!(grown > size, "the alarm is a leaf");
    let (_, _, body) = ask(&server, "text/plain").await;
    assert_eq!(body, note);
    server.stop().await;
    // So does the next one, and no operator's word makes a rewritten log the right one.
    let server = setup.start(&[OFTEN]).await;
    let answer = server.ask("svc:payouts", "more", &payout(ETHER / 1000)).await;
    assert_eq!((answer.status, answer.code()), (503, "reconcile-required"));
    server.stop().await;
    let told = reconciled(&setup);
    assert_eq!(told.code, 1, "{told:#?}");
    assert!(told.err.contains("it is another one") && told.err.contains("rewritten"), "{told:#?}");

    // What is left is evidence; a new log has a new key.
    for name in ["audit.key", "audit.vkey", "audit.record", "audit.record.database"] {
        rename(&setup.dir().join(name), &setup.dir().join(format!("old-{name}")));
    }
    intruder.forget_checkpoints(0).await;
    drop(intruder);
    let config = setup.config().display().to_string();
    let made = claviger(&["audit", "init-key", "--config", &config], &[]);
    assert_eq!(made.code, 0, "{made:#?}");
    assert_eq!(reconciled(&setup).code, 0);
    let server = setup.start(&[OFTEN]).await;
    assert!(signed(&server).await.0 > size);
    pay(&server, &anvil, "goes-on", 1).await;
}

/// `claviger reconcile --apply`.
fn reconciled(setup: &SetUp) -> crate::commands::Ran {
    let config = setup.config().display().to_string();
    claviger(&["reconcile", "--config", &config, "--apply", "--reason", "found out why"], &[])
}

#[tokio::test]
async fn a_server_whose_log_is_shorter_than_was_signed_waits_for_an_operator() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("100.0"));
    let server = setup.start(&[OFTEN]).await;
    server.funded_key(&anvil, "op-1").await;
    pay(&server, &anvil, "pay", 1).await;
    let (size, _) = signed(&server).await;
    server.stop().await;
    let mut intruder = Intruder::at(&setup.dir().join("claviger.db")).await;
    intruder.truncate(size - 2).await;
    intruder.forget_checkpoints(0).await;
    drop(intruder);
    let doctor = ["doctor", "--config", &setup.config().display().to_string()];
    let doctor = claviger(&doctor, &[]);
    assert!(doctor.out.contains("FAIL  audit log"), "{doctor:#?}");
    let server = setup.start(&[OFTEN]).await;
    let told = server.program.stderr();
    let expected = format!("has {} leaves, and a checkpoint of {size} was signed", size - 2);
    assert!(told.contains(&expected), "{told}");
    let answer = server.ask("svc:payouts", "more", &payout(ETHER / 1000)).await;
    assert_eq!((answer.status, answer.code()), (503, "reconcile-required"));
    server.stop().await;

    assert_eq!(reconciled(&setup).code, 0);
    let lost = setup.dir().join(format!("audit.record.lost-{size}"));
    assert!(lost.exists(), "the lost record is kept");
    let server = setup.start(&[OFTEN]).await;
    signed(&server).await;
    pay(&server, &anvil, "goes-on", 1).await;
}

fn rename(from: &Path, to: &Path) {
    std::fs::rename(from, to).unwrap();
}

#[tokio::test]
async fn a_server_without_its_key_or_record_does_not_start_and_says_what_to_do() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("100.0"));
    let dir = setup.dir();
    let server = setup.start(&[OFTEN]).await;
    server.funded_key(&anvil, "op-1").await;
    let (_, note) = signed(&server).await;
    server.stop().await;

    let aside = dir.join("aside");
    for (name, help) in [
        ("audit.key", "put key and `.vkey` back"),
        ("audit.vkey", "put key and `.vkey` back"),
        ("audit.record", "Put the newest checkpoint of this log that you kept in its place"),
    ] {
        rename(&dir.join(name), &aside);
        let told = refused(&setup).await;
        assert!(told.contains(name) && told.contains(help), "{told}");
        rename(&aside, &dir.join(name));
    }
    // No key at all is no way to stop signing.
    let config = std::fs::read_to_string(setup.config()).unwrap();
    std::fs::write(setup.config(), config.replace("key_file = \"audit.key\"\n", "")).unwrap();
    let told = refused(&setup).await;
    assert!(told.contains("the audit log was signed before"), "{told}");
    std::fs::write(setup.config(), &config).unwrap();

    // A kept checkpoint is a record.
    std::fs::remove_file(dir.join("audit.record")).unwrap();
    std::fs::write(dir.join("audit.record"), &note).unwrap();
    let server = setup.start(&[OFTEN]).await;
    pay(&server, &anvil, "pay", 1).await;
    server.stop().await;
    let doctor = ["doctor", "--config", &setup.config().display().to_string()];
    assert!(claviger(&doctor, &[]).out.contains("and the log continues it"));
}

#[tokio::test]
async fn a_set_up_without_a_key_serves_unsigned_until_it_is_given_one() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("100.0"));
    let dir = setup.dir();
    for name in ["audit.key", "audit.vkey", "audit.record"] {
        std::fs::remove_file(dir.join(name)).unwrap();
    }
    let config = std::fs::read_to_string(setup.config()).unwrap();
    std::fs::write(setup.config(), config.replace("key_file = \"audit.key\"\n", "")).unwrap();
    let mut server = setup.start(&[OFTEN]).await;
    server.program.wait_for_line("the audit log is not signed", LIMIT).await;
    server.funded_key(&anvil, "op-1").await;
    server.checkpoint().await;
    let (status, _, body) = ask(&server, "application/json").await;
    let told: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &told["size"], &told["note"]), (200, &"3".into(), &Value::Null));
    let (status, kind, _) = ask(&server, "text/plain").await;
    assert_eq!((status, kind.as_str()), (404, "application/problem+json"));
    let nothing = export(&setup.config(), &out(&setup, "empty"), None);
    assert_eq!(nothing.code, 1);
    assert!(nothing.err.contains("no signed checkpoint"), "{nothing:#?}");
    server.stop().await;

    std::fs::write(setup.config(), &config).unwrap();
    let path = setup.config().display().to_string();
    let init = ["audit", "init-key", "--config", &path, "--origin", "audit.example.com/test"];
    let made = claviger(&init, &[]);
    assert!(made.code == 0 && made.out.contains("audit.vkey"), "{made:#?}");
    assert_eq!(claviger(&init, &[]).code, 1, "a key is never made twice");
    let server = setup.start(&[OFTEN]).await;
    let (size, note) = signed(&server).await;
    // The bundle was proposed and put in force, and a key made.
    assert!(size == 3 && note.starts_with("audit.example.com/test\n3\n"), "{note}");
}

#[tokio::test]
async fn what_was_done_until_the_server_stopped_is_signed() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("100.0"));
    let server = setup.start(&NEVER).await;
    server.funded_key(&anvil, "op-1").await;
    let denied = server.ask("svc:payouts", "too-much", &payout(3 * ETHER)).await;
    assert_eq!(denied.code(), "policy-denied");
    server.stop().await;
    let (export, told) = exported(&setup, "log");
    assert_eq!(told["size"], 4);
    assert_eq!(verify(&export, &vkey(&setup), &[]).ok()["kinds"]["DENIED"], 1);
}
