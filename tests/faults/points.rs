//! Killed between any two commits: at every fail point of the server with a payment in flight. Whoever was
//! answered is served, once, by the server that comes after.

use crate::stage::{FAILPOINT, GWEI, RESEND_SOON, SUB, Stage, id, is};
use crate::support::server::{ETHER, LIMIT, PAYEE, STRANGER, Server, payout};
use crate::support::services::{poll_until, repository};
use claviger::core::access::Role;
use claviger::core::time::Timestamp;
use claviger::ports::clock::Clock;
use claviger::system::SystemClock;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// What must be going on for a point to be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// Payments that are mined at once.
    Payment,
    /// A payment that is not mined and is replaced.
    Replacement,
    /// A request that policy refuses.
    Denial,
    /// A new key.
    Key,
    /// A new key that is kept wrapped.
    WrappedKey,
    /// A signature for an external account, whose caller sends it.
    External,
    /// A payment that waits for money until its time has passed.
    Expiry,
    /// A payment that is out and is cancelled.
    Cancel,
    /// A payment that waits for money and is cancelled.
    CancelQueued,
    /// An account that a stranger has used.
    Halt,
    /// Another test crashes there, because it takes long to come to it, or because another program does.
    Elsewhere,
}

/// Every fail point of the server, with the hit at which it crashes. One that is missing here is found by a
/// test below.
const POINTS: &[(&str, Reach)] = &[
    ("accept.after_commit", Reach::Payment),
    ("accept.after_denied", Reach::Denial),
    ("approve.after_stored", Reach::Elsewhere),
    ("audit.after_append", Reach::Payment),
    ("audit.after_append:2", Reach::Payment),
    ("cancel.after_begun", Reach::Cancel),
    ("cancel.after_ended", Reach::CancelQueued),
    ("ceremony.after_begin", Reach::Elsewhere),
    ("ceremony.after_end", Reach::Elsewhere),
    ("ceremony.after_key", Reach::Elsewhere),
    ("ceremony.after_wrapping_key", Reach::Elsewhere),
    ("chains.after_pinned", Reach::Payment),
    ("checkpoint.after_record", Reach::Payment),
    ("checkpoint.after_release", Reach::Payment),
    ("create_key.after_begin", Reach::Key),
    ("create_key.after_hsm", Reach::Key),
    ("create_key.after_pinned", Reach::Key),
    ("create_wrapped.after_hsm", Reach::WrappedKey),
    ("create_wrapped.after_stored", Reach::WrappedKey),
    ("finality.after_halt", Reach::Elsewhere),
    ("follow.after_change", Reach::Payment),
    ("follow.after_change:2", Reach::Payment),
    ("follow.after_change:3", Reach::Payment),
    ("follow.after_halt", Reach::Elsewhere),
    ("lane.after_decided", Reach::Payment),
    ("lane.after_ended", Reach::Expiry),
    ("lane.after_halt", Reach::Halt),
    ("lease.after_taken", Reach::Payment),
    ("outbid.after_decided", Reach::Cancel),
    ("outbid.after_decided", Reach::Replacement),
    ("reconcile.after_account", Reach::Elsewhere),
    ("reconcile.after_chain", Reach::Elsewhere),
    ("reconcile.after_declared", Reach::Elsewhere),
    ("reconcile.after_lifted", Reach::Elsewhere),
    ("reject.after_rejected", Reach::Elsewhere),
    ("release.after_asked", Reach::Elsewhere),
    ("release.after_ended", Reach::Elsewhere),
    ("release.after_released", Reach::Elsewhere),
    ("retract.after_stored", Reach::Elsewhere),
    ("send.after_broadcast", Reach::Payment),
    ("send.after_broadcast:2", Reach::Replacement),
    ("send.after_recorded", Reach::Payment),
    ("send.before_broadcast", Reach::Payment),
    ("send.before_broadcast:2", Reach::Replacement),
    ("settle_external.after_settled", Reach::External),
    ("store.before_group_commit", Reach::Payment),
    ("store.before_group_commit:9", Reach::Payment),
    ("sign.after_store", Reach::Payment),
    ("sign.after_store:2", Reach::Cancel),
    ("sign.after_store:2", Reach::Replacement),
    ("sign.before_store", Reach::Payment),
    ("sign.before_store:2", Reach::Replacement),
    ("sign.before_store:2", Reach::Cancel),
    ("sign.before_store", Reach::External),
    ("sign_request.after_decided", Reach::External),
    ("suspension.after_suspend", Reach::Elsewhere),
    ("tell.after_told", Reach::Elsewhere),
    ("waiting.after_noted", Reach::Expiry),
];

/// Asks for a transaction with a key of its own; the answer, if there was one, is remembered.
async fn ask(stage: &Stage, server: &Server, key: &str, body: &Value) {
    if let Some(answer) = server.try_ask(SUB, key, body).await
        && (200..300).contains(&answer.status)
    {
        stage.was_answered(&answer.id());
    }
}

/// An external account's payment, signed by the server and sent by its caller.
async fn external(stage: &Stage, server: &Server, address: &str) {
    let fee = (10 * GWEI).to_string();
    let body = json!({ "chain": "local", "signer": address, "transaction": {
        "nonce": "0", "gas": "21000", "to": PAYEE, "value": ETHER.to_string(),
        "max_fee_per_gas": fee, "max_priority_fee_per_gas": GWEI.to_string(),
    }});
    let token = server.token(SUB, Role::Client);
    let url = format!("{}/v1/signatures", server.client_url());
    let answer = server.try_call(Method::POST, url, &token, Some("external"), Some(&body)).await;
    if let Some(raw) = answer.as_ref().and_then(|answer| answer.body["raw"].as_str()) {
        // It is mined already where this was done before.
        let _ = stage.anvil.try_rpc("eth_sendRawTransaction", json!([raw])).await;
        stage.was_answered(&answer.unwrap().id());
    }
}

/// The world before the crash: an operator account with a payment in flight, and what a point needs.
struct World {
    stage: Stage,
    reach: Reach,
    operator: String,
    other: String,
    foreign: Vec<String>,
    expires: Timestamp,
}

impl World {
    async fn new(reach: Reach) -> Self {
        let stage = Stage::new().await;
        let (server, operator) = stage.open(&[]).await;
        let mode = if reach == Reach::External { "external" } else { "managed" };
        let other = server.key("op-2", Some("payments"), mode).await;
        if ![Reach::Expiry, Reach::CancelQueued].contains(&reach) {
            stage.anvil.set_balance(&other, 100 * ETHER).await;
        }
        let mut foreign = Vec::new();
        if reach == Reach::Halt {
            foreign.push(stage.stranger_sends(&other).await);
        }
        ask(&stage, &server, "in-flight", &by(&operator)).await;
        server.stop().await;
        let expires = SystemClock.now().plus_millis(3_000);
        Self { stage, reach, operator, other, foreign, expires }
    }

    /// Once more what brings a server to the point. Everything is repeatable.
    async fn act(&self, server: &Server) {
        let stage = &self.stage;
        match self.reach {
            Reach::Payment => {
                ask(stage, server, "payment", &by(&self.operator)).await;
                stage.anvil.mine(1).await;
            }
            Reach::Replacement => ask(stage, server, "payment", &by(&self.operator)).await,
            Reach::Denial => {
                let mut body = by(&self.operator);
                body["to"] = json!(STRANGER);
                ask(stage, server, "denied", &body).await;
            }
            Reach::Key | Reach::WrappedKey => {
                let custody = if self.reach == Reach::Key { "token" } else { "wrapped" };
                let token = server.token("dev:op", Role::Operator);
                let url = format!("{}/admin/v1/keys", server.admin_url());
                let body = json!({
                    "label": "op-3",
                    "group": "payments",
                    "mode": "managed",
                    "custody": custody,
                });
                server.try_call(Method::POST, url, &token, None, Some(&body)).await;
            }
            Reach::External => {
                external(stage, server, &self.other).await;
                stage.anvil.mine(1).await;
            }
            Reach::Expiry => {
                let mut body = by(&self.other);
                // Not estimated: the account is empty.
                body["gas"] = json!("21000");
                body["not_after"] = json!(self.expires.to_string());
                ask(stage, server, "expires", &body).await;
            }
            Reach::Cancel => {
                ask(stage, server, "cancelled", &by(&self.other)).await;
                self.cancel(server).await;
            }
            Reach::CancelQueued => {
                let mut body = by(&self.other);
                body["gas"] = json!("21000");
                ask(stage, server, "cancelled", &body).await;
                self.cancel(server).await;
            }
            Reach::Halt => ask(stage, server, "halted", &by(&self.other)).await,
            Reach::Elsewhere => {}
        }
    }

    /// Cancels what the other account was asked for.
    async fn cancel(&self, server: &Server) {
        let token = server.token("dev:op", Role::Operator);
        let url = format!("{}/v1/transactions", server.client_url());
        let found = server.try_call(Method::GET, url.clone(), &token, None, None).await;
        let Some(found) = found else { return };
        let all = found.body["transactions"].as_array().cloned().unwrap_or_default();
        for id in all.iter().filter(|tx| tx["address"] == self.other).map(id) {
            let url = format!("{url}/{id}/cancel");
            server.try_call(Method::POST, url, &token, None, None).await;
        }
    }

    /// Whether nothing is left to do.
    async fn is_done(&self, server: &Server) -> bool {
        let open = |tx: &Value| !is(tx, &["finalized", "expired", "cancelled"]);
        let halted = |tx: &Value| self.reach == Reach::Halt && tx["address"] == self.other;
        !server.list().await.iter().any(|tx| open(tx) && !halted(tx))
    }
}

/// A payout of this account, whichever is less busy.
fn by(address: &str) -> Value {
    let mut body = payout(ETHER);
    body["signer"] = json!(address);
    body
}

async fn crash_at(point: &str, reach: Reach) {
    let world = World::new(reach).await;
    let stage = &world.stage;
    let mut envs = vec![(FAILPOINT, point)];
    if reach == Reach::Replacement {
        envs.push(RESEND_SOON);
    }
    if let Some(mut server) = stage.setup.try_start(&envs).await {
        poll_until(LIMIT, &format!("{point} is reached"), async || {
            world.act(&server).await;
            server.program.try_exit_status()
        })
        .await;
        server.crashed().await;
    }

    let server = stage.setup.start(&[]).await;
    world.act(&server).await;
    poll_until(LIMIT, &format!("all is done after {point}"), async || {
        stage.anvil.mine(1).await;
        world.is_done(&server).await.then_some(())
    })
    .await;
    let ended = server.list().await;
    let paid = ended.iter().filter(|tx| is(tx, &["finalized"])).count() as u128;
    let external = u128::from(reach == Reach::External);
    assert_eq!(stage.paid().await, paid + external, "{point}: each payment once");
    if reach == Reach::External {
        settled(&world).await;
    }
    stage.invariants().foreign(world.foreign.clone()).check().await;
    server.stop().await;
}

/// The external account's reservation became spend.
async fn settled(world: &World) {
    let stage = &world.stage;
    poll_until(LIMIT, "the reservation is settled", async || {
        stage.anvil.mine(1).await;
        stage.invariants().settled().await.then_some(())
    })
    .await;
}

async fn walk(reaches: &[Reach]) {
    for (point, reach) in POINTS.iter().filter(|(_, reach)| reaches.contains(reach)) {
        crash_at(point, *reach).await;
    }
}

#[tokio::test]
async fn a_kill_at_every_point_of_a_payment_pays_exactly_once() {
    walk(&[Reach::Payment]).await;
}

#[tokio::test]
async fn a_kill_at_every_point_of_another_version_pays_exactly_once() {
    walk(&[Reach::Replacement, Reach::Cancel, Reach::CancelQueued]).await;
}

#[tokio::test]
async fn a_kill_at_every_other_point_loses_nothing() {
    walk(&[
        Reach::Denial,
        Reach::Key,
        Reach::WrappedKey,
        Reach::External,
        Reach::Expiry,
        Reach::Halt,
    ])
    .await;
}

/// The names in `failpoint!("…")` below a folder, without the watcher's, which its own tests walk.
fn in_the_source(below: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("src/watch") && !path.ends_with("src/bus") {
                in_the_source(&path, found);
            }
        } else if !path.ends_with("src/failpoint.rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let names = text.split("failpoint!(\"").skip(1);
            found.extend(names.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
        }
    }
}

#[test]
fn every_fail_point_of_the_server_is_walked_over() {
    let mut there = BTreeSet::new();
    in_the_source(&repository().join("src"), &mut there);
    let name = |point: &str| point.split(':').next().unwrap().to_owned();
    let walked: BTreeSet<String> = POINTS.iter().map(|(point, _)| name(point)).collect();
    assert_eq!(there, walked, "left: in the source; right: in the list of this test");
    let mut tests = String::new();
    all_tests(&repository().join("tests"), &mut tests);
    let elsewhere = POINTS.iter().filter(|(_, reach)| *reach == Reach::Elsewhere);
    let nowhere: Vec<_> =
        elsewhere.filter(|(point, _)| !tests.contains(&format!("\"{point}"))).collect();
    assert!(nowhere.is_empty(), "no test crashes there: {nowhere:?}");
}

/// The text of all tests but these.
fn all_tests(below: &Path, text: &mut String) {
    for entry in std::fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all_tests(&path, text);
        } else if path.extension().is_some_and(|it| it == "rs") && !path.ends_with("points.rs") {
            text.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}
