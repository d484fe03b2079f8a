//! Two tokens, of which one goes away: what the other one has serves on, and so does what it stands by for.

use super::Rows;
use crate::stage::{Options, Stage, is};
use crate::support::outsider::{outsider, play};
use crate::support::pkcs11_faults::{Pkcs11Faults, module};
use crate::support::report::report;
use crate::support::server::{BIN, ETHER, LIMIT, Server, payout_grants};
use crate::support::services::{poll_until, tool};
use crate::support::signing_load::{Caller, Load, MESSAGE_GRANT, hello, small_payout};
use claviger::core::access::Role;
use reqwest::Method;
use serde_json::{Value, json};
use std::fs;
use std::process::Command;

/// The `CKA_ID` of a key that both tokens have.
const SHARED: &str = "cc01";
const DOWN: &str = "* CKR_DEVICE_ERROR @second";

/// A set-up with the tokens `default` and `second`, behind a module that fails when it is told to.
async fn set_up(standby: bool) -> (Stage, Pkcs11Faults) {
    let grants = format!("{}{MESSAGE_GRANT}", payout_grants("100.0"));
    let options = Options { mines_at_once: true, grants: Some(grants), ..Options::default() };
    let stage = Stage::with(options).await;
    let dir = stage.setup.dir();
    let mut init = Command::new(BIN);
    init.env("SOFTHSM2_CONF", dir.join("softhsm2.conf")).arg("init-token");
    init.arg("--module").arg(tool("SOFTHSM_MODULE")).args(["--label", "second"]);
    init.arg("--so-pin-file").arg(dir.join("so-pin")).arg("--pin-file").arg(dir.join("pin"));
    assert!(init.output().unwrap().status.success());

    let exception = format!(
        "[[hsm.exception]]\ncka_id = \"{SHARED}\"\n\
         allows = [\"not-always-sensitive\", \"not-never-extractable\"]\nreason = \"in two tokens\"\n\n"
    );
    let second = format!(
        "{exception}[[hsm]]\nname = \"second\"\nmodule = \"{}\"\ntoken_label = \"second\"\n\
         pin_file = \"pin\"\nsofthsm_conf = \"softhsm2.conf\"\n{exception}[[auth.issuer]]",
        module().display()
    );
    let first = if standby { "[[hsm]]\nstandby_for = \"second\"" } else { "[[hsm]]" };
    let softhsm = tool("SOFTHSM_MODULE").display().to_string();
    let mut text = fs::read_to_string(stage.setup.config()).unwrap();
    for (from, to) in [
        ("[hsm]", first),
        ("[[auth.issuer]]", second.as_str()),
        (softhsm.as_str(), &module().display().to_string()),
    ] {
        assert!(text.contains(from), "{text}");
        text = text.replacen(from, to, 1);
    }
    fs::write(stage.setup.config(), text).unwrap();
    (stage, Pkcs11Faults::new())
}

/// The module is in the configuration, twice.
async fn start(stage: &Stage, faults: &Pkcs11Faults) -> Server {
    let envs = faults.envs();
    let envs: Vec<_> = envs.into_iter().filter(|(name, _)| name.starts_with("PKCS11")).collect();
    stage.setup.start(&envs).await
}

/// Asks for a key, made or imported; answers the status, and its address.
async fn ask_for_key(server: &Server, path: &str, body: &Value) -> (u16, String) {
    let token = server.token("dev:op", Role::Operator);
    let url = format!("{}{path}", server.admin_url());
    let made = server.try_call(Method::POST, url, &token, None, Some(body)).await.unwrap();
    (made.status, made.body["address"].as_str().unwrap_or_default().to_owned())
}

fn of_second(label: &str, mode: &str) -> Value {
    json!({ "label": label, "group": "payments", "mode": mode, "hsm": "second" })
}

async fn new_key(rows: (&Stage, &Server), path: &str, body: &Value) -> String {
    let (stage, server) = rows;
    let (status, address) = ask_for_key(server, path, body).await;
    assert_eq!(status, 201, "{address}");
    stage.anvil.set_balance(&address, 100 * ETHER).await;
    address
}

async fn until_up(server: &Server, up: f64) {
    poll_until(LIMIT, &format!("`second` is {up}"), async || {
        let told = server.metric("claviger_hsm_up", &[("hsm", "second")]).await;
        ((told - up).abs() < 0.5).then_some(())
    })
    .await;
}

/// Brings `second` down, by somebody who asks it for something.
async fn take_down(server: &Server, faults: &Pkcs11Faults, key: &str) {
    faults.set(DOWN);
    let caller = Caller::of(server);
    caller.post("/v1/signatures", "takes-down", &hello(key, "takes down")).await.unwrap();
    until_up(server, 0.0).await;
}

async fn refused(caller: &Caller, key: &str, what: &str) {
    let said =
        caller.post("/v1/signatures", &what.replace(' ', "-"), &hello(key, what)).await.unwrap();
    let told = (said.status, said.body["code"].as_str());
    assert_eq!(told, (503, Some("hsm-unavailable")), "{}", said.body);
    assert!(said.retry_after.is_some());
}

/// Accounts of payouts that the group is asked for one after the other, and their ids.
async fn pay(caller: &Caller, tag: &str, count: usize) -> (Vec<String>, Vec<String>) {
    let (mut ids, mut accounts) = (Vec::new(), Vec::new());
    for number in 0..count {
        let key = format!("{tag}-{number}");
        let said = caller.post("/v1/transactions", &key, &small_payout()).await.unwrap();
        assert!(
            said.status == 201 && is(&said.body, &["queued", "submitted", "mined", "finalized"])
        );
        ids.push(said.body["id"].as_str().unwrap().to_owned());
        accounts.push(said.body["address"].as_str().unwrap().to_owned());
    }
    (ids, accounts)
}

async fn settled(stage: &Stage, server: &Server, ids: &[String]) {
    for id in ids {
        stage.was_answered(id);
        poll_until(LIMIT, &format!("{id} is final"), async || {
            stage.make_final().await;
            is(&server.read(id).await, &["finalized"]).then_some(())
        })
        .await;
    }
}

async fn recorded_once(stage: &Stage) {
    for kind in ["HSM_DOWN", "HSM_UP"] {
        let leaves = poll_until(LIMIT, &format!("{kind} is recorded"), async || {
            let leaves = stage.invariants().leaves(kind).await;
            (!leaves.is_empty()).then_some(leaves)
        })
        .await;
        assert!(leaves.len() == 1 && leaves[0]["id"] == "second", "{leaves:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_one_token_serve_while_another_token_is_down() {
    let (stage, faults) = set_up(false).await;
    let server = start(&stage, &faults).await;
    let here = server.funded_key(&stage.anvil, "here").await;
    let create = "/admin/v1/keys";
    let there = new_key((&stage, &server), create, &of_second("there", "managed")).await;
    let caller = Caller::of(&server);
    let (mut ids, accounts) = pay(&caller, "before", 6).await;
    assert!(accounts.contains(&here) && accounts.contains(&there), "they take turns: {accounts:?}");
    let served = Load::messages(&server, &[&here], 8, u64::MAX);
    served.until_released(20).await;

    take_down(&server, &faults, &there).await;
    refused(&caller, &there, "of the token that is down").await;
    // The group stands for those that can sign, whoever's turn it is.
    let (more, accounts) = pay(&caller, "meanwhile", 8).await;
    assert!(accounts.iter().all(|account| *account == here), "{accounts:?}");
    ids.extend(more);
    let said = caller.post("/v1/signatures", "by-group", &hello("payments", "by group")).await;
    assert_eq!(said.unwrap().status, 201);
    assert_eq!(ask_for_key(&server, create, &of_second("none", "managed")).await.0, 503);
    served.until_released(100).await;

    faults.clear();
    until_up(&server, 1.0).await;
    let both = Load::messages(&server, &[&here, &there], 4, 40).end().await.0;
    Rows::assert_unnoticed(&both);
    let (served, _) = served.stop().await;
    report(&format!("two tokens: keys of the one that was up: {served}"));
    Rows::assert_unnoticed(&served);
    settled(&stage, &server, &ids).await;
    recorded_once(&stage).await;
    stage.check().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_signs_for_callers_while_the_token_it_stands_by_for_is_down() {
    if play() {
        return;
    }
    let (stage, faults) = set_up(true).await;
    for token in ["claviger", "second"] {
        let test = "hsm_rows::tokens::\
            a_standby_signs_for_callers_while_the_token_it_stands_by_for_is_down";
        let task = json!({
            "do": "import", "token": token, "id": SHARED, "value": hex::encode([7; 32]),
        });
        outsider(&stage.setup, test, &task);
    }
    let server = start(&stage, &faults).await;
    let mut body = of_second("shared", "managed");
    body["cka_id"] = json!(SHARED);
    let shared = new_key((&stage, &server), "/admin/v1/keys/import", &body).await;
    let alone = of_second("alone", "external");
    let alone = new_key((&stage, &server), "/admin/v1/keys", &alone).await;
    let by_standby = async || {
        let name = "claviger_hsm_standby_total";
        server.metric(name, &[("outcome", "signed")]).await
    };
    let load = Load::messages(&server, &[&shared], 8, u64::MAX);
    load.until_released(20).await;
    assert!(by_standby().await < 0.5, "the home signs while it can");

    take_down(&server, &faults, &shared).await;
    load.until_released(100).await;
    let caller = Caller::of(&server);
    let (ids, accounts) = pay(&caller, "meanwhile", 4).await;
    assert!(accounts.iter().all(|account| *account == shared), "{accounts:?}");
    refused(&caller, &alone, "not in the standby").await;
    settled(&stage, &server, &ids).await;

    faults.clear();
    until_up(&server, 1.0).await;
    let (load, _) = load.stop().await;
    // No caller has noticed anything.
    Rows::assert_unnoticed(&load);
    let signed = by_standby().await;
    report(&format!("standby: {load}; {signed} by the standby"));
    assert!(signed >= 100.0, "{signed}");
    Rows::assert_unnoticed(&Load::messages(&server, &[&shared, &alone], 4, 40).end().await.0);
    assert!((by_standby().await - signed).abs() < 0.5, "the home signs again");
    recorded_once(&stage).await;
    stage.check().await;
    server.stop().await;
}
