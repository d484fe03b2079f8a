//! T48: the database is put back to an hour ago. Everything waits; a request that was answered before and
//! lost is found from the chain by its caller's repeat, and never paid twice.

use crate::backup::Backup;
use crate::command::{Ran, apply, claviger, reconcile, reconcile_with};
use crate::stage::{FAILPOINT, MINED, Options, SUB, Stage, id, is};
use crate::support::server::{ETHER, LIMIT, Server, payout};
use crate::support::services::{Postgres, poll_until};
use claviger::core::access::Role;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// One transaction of an account at a time, so that requests queue behind.
const ONE: (&str, &str) = ("CLAVIGER__CHAIN__0__MAX_IN_FLIGHT", "1");
const OFTEN: (&str, &str) = ("CLAVIGER__AUDIT__CHECKPOINT_EVERY", "50ms");

/// A world whose database was put back: what was asked before and after the backup.
struct World {
    stage: Stage,
    /// Whether it was answered before the backup, by idempotency key.
    asked: BTreeMap<String, bool>,
    /// The signed checkpoint of the lost hour.
    kept: std::path::PathBuf,
}

async fn ask(stage: &Stage, server: &Server, key: &str) -> String {
    id(&stage.ask(server, key, &payout(ETHER)).await)
}

/// Mines until all of them are in a block.
async fn mine_all(stage: &Stage, server: &Server, ids: &[String]) {
    for id in ids {
        stage.mine_until_mined(server, id).await;
    }
}

impl World {
    /// Paid and final, sent and not mined, and queued behind: then the backup. After it all of them are
    /// mined and final, three more are, one is mined and not final, one is in the pool: then the end.
    async fn lost_hour(store_url: Option<String>) -> Self {
        let stage = Stage::with(Options { store_url, ..Options::default() }).await;
        let server = stage.setup.start(&[ONE, OFTEN]).await;
        for label in ["op-1", "op-2"] {
            server.funded_key(&stage.anvil, label).await;
        }
        let mut asked = BTreeMap::new();
        let first = ask(&stage, &server, "p0").await;
        mine_all(&stage, &server, std::slice::from_ref(&first)).await;
        stage.finish(&server, &first).await;
        let mut ids = Vec::new();
        for key in ["p1", "p2", "p3", "p4"] {
            ids.push(ask(&stage, &server, key).await);
        }
        asked.extend(["p0", "p1", "p2", "p3", "p4"].map(|key| (key.to_owned(), true)));
        for lane in &ids[..2] {
            server.wait_for(lane, &["submitted"]).await;
        }
        assert!(is(&server.read(&ids[3]).await, &["queued"]));
        server.stop().await;
        let backup = Backup::take(&stage.setup).await;

        let mut server = stage.setup.start(&[ONE, OFTEN]).await;
        for key in ["p5", "p6", "p7"] {
            ids.push(ask(&stage, &server, key).await);
        }
        mine_all(&stage, &server, &ids).await;
        stage.make_final().await;
        for id in &ids {
            server.wait_for(id, &["finalized"]).await;
        }
        let mined = ask(&stage, &server, "p8").await;
        server.wait_for(&mined, &["submitted"]).await;
        in_pool(&stage, &server, &mined).await;
        stage.anvil.mine(1).await;
        server.wait_for(&mined, MINED).await;
        let pending = ask(&stage, &server, "p9").await;
        in_pool(&stage, &server, &pending).await;
        asked.extend(["p5", "p6", "p7", "p8", "p9"].map(|key| (key.to_owned(), false)));
        let last = server.checkpoint().await.0;
        let record = stage.setup.dir().join("audit.record");
        poll_until(LIMIT, "the log is signed", async || {
            let note = std::fs::read_to_string(&record).unwrap();
            (note.lines().nth(1).unwrap().parse::<u64>().unwrap() >= last).then_some(())
        })
        .await;
        server.program.kill9();
        drop(server);
        let kept = stage.setup.dir().join("kept");
        std::fs::copy(&record, &kept).unwrap();
        backup.put_back(&stage.setup).await;
        Self { stage, asked, kept }
    }
}

async fn in_pool(stage: &Stage, server: &Server, id: &str) {
    poll_until(LIMIT, "it is in the pool", async || {
        let found = server.read(id).await;
        let hash = found["attempts"][0]["hash"].as_str()?.to_owned();
        stage.has(&hash).await.then_some(())
    })
    .await;
}

async fn get(server: &Server, path: &str) -> (u16, Value) {
    let token = server.token("dev:op", Role::Operator);
    let url = format!("{}{path}", server.client_url());
    let answer = server.try_call(Method::GET, url, &token, None, None).await.unwrap();
    (answer.status, answer.body)
}

/// Nothing is signed, accepted or cancelled; what is there is read.
async fn it_waits(world: &World, server: &Server) {
    let known: BTreeSet<String> = world.stage.proxy.sent().into_iter().collect();
    let (status, body) = get(server, "/readyz").await;
    assert_eq!((status, body["code"].as_str()), (503, Some("reconcile-required")), "{body:#}");
    assert_eq!(get(server, "/healthz").await.0, 200);
    for (key, was_before) in &world.asked {
        let answer = server.ask(SUB, key, &payout(ETHER)).await;
        if *was_before {
            assert_eq!(answer.status, 200, "a repeat of what is known is read: {:#}", answer.body);
        } else {
            assert_eq!((answer.status, answer.code()), (503, "reconcile-required"));
        }
    }
    let message = json!({ "signer": "payments", "message": { "text": "hello" } });
    let answer = server.sign(SUB, Some("sign"), &message).await;
    assert_eq!((answer.status, answer.code()), (503, "reconcile-required"), "{:#}", answer.body);
    let token = server.token("dev:op", Role::Operator);
    for queued in server.list().await.iter().filter(|it| !is(it, &["finalized"])) {
        let path = format!("{}/v1/transactions/{}/cancel", server.client_url(), id(queued));
        let body = json!({ "reason": "while it waits" });
        let answer = server.try_call(Method::POST, path, &token, None, Some(&body)).await.unwrap();
        assert_eq!((answer.status, answer.code()), (503, "reconcile-required"));
    }
    // A look at the chain and one at the unsigned later there is nothing new.
    poll_until(LIMIT, "the alarm is told again", async || {
        server.metrics().await.contains("claviger_suspended 1").then_some(())
    })
    .await;
    let sent: BTreeSet<String> = world.stage.proxy.sent().into_iter().collect();
    assert!(sent.is_subset(&known), "only what was sent before is sent again");
}

fn lost_checkpoint_is_told(world: &World) {
    let dir = world.stage.setup.dir();
    let (config, out) = (world.stage.setup.config().display().to_string(), dir.join("export"));
    let (out, key) = (out.display().to_string(), dir.join("audit.vkey").display().to_string());
    let exported = claviger(&["audit", "export", "--config", &config, "--out", &out], &[]);
    assert_eq!(exported.code, Some(0), "{exported:#?}");
    let verify = ["audit", "verify", "--export", &out, "--key", &key];
    let right = claviger(&verify, &[]);
    assert_eq!(right.code, Some(0), "the log is right in itself: {right:#?}");
    let kept = world.kept.display().to_string();
    let told = claviger(&[&verify[..], &["--checkpoint", &kept]].concat(), &[]);
    let says = "that you kept was lost when the database was put back to an earlier state \
                (`backup of 09:00 restored`)";
    assert!(told.code == Some(1) && told.err.contains(says), "{told:#?}");
}

/// `--apply`, stopped at every fail point before it is let through.
fn apply_interrupted(world: &World) -> Ran {
    let args = ["--apply", "--reason", "backup of 09:00 restored"];
    for point in ["reconcile.after_account", "reconcile.after_declared", "reconcile.after_lifted"] {
        let stopped = reconcile_with(&world.stage.setup, &args, &[(FAILPOINT, point)]);
        assert_eq!(stopped.code, None, "{point}: {stopped:#?}");
    }
    apply(&world.stage.setup, &[])
}

async fn t48_a_restored_database_waits_and_pays_nothing_twice(store_url: Option<String>) {
    let is_sqlite = store_url.is_none();
    let world = World::lost_hour(store_url).await;
    let stage = &world.stage;
    // Killed when it has said that it waits: it waits all the more.
    assert!(stage.setup.try_start(&[(FAILPOINT, "suspension.after_suspend")]).await.is_none());
    let server = stage.setup.start(&[ONE, OFTEN]).await;
    it_waits(&world, &server).await;
    let doctor = ["doctor", "--config", &stage.setup.config().display().to_string()];
    let doctor = claviger(&doctor, &[]);
    assert!(doctor.out.contains("FAIL  reconciliation"), "{doctor:#?}");

    let config = stage.setup.config().display().to_string();
    let plain = claviger(&["reconcile", "--config", &config], &[]);
    assert!(plain.out.contains("its lane is halted: the chain has mined"), "{plain:#?}");
    // Beside the running server it is told, and on SQLite only told.
    let told = reconcile(&stage.setup, &[]);
    assert_eq!(told.code, Some(1), "{told:#?}");
    assert_eq!(told.kinds(), ["orphan", "orphan", "orphan", "orphan", "queued", "queued"]);
    assert!(told.explained().contains("the database lost that it was sent"), "{told:#?}");
    let says = if is_sqlite { "stop it first" } else { "stop all its servers first" };
    let refused = apply(&stage.setup, &[]);
    assert!(refused.code == Some(1) && refused.err.contains(says), "{refused:#?}");
    server.stop().await;

    // One is not final, one waits in the pool: to go on now could pay twice.
    let early = apply(&stage.setup, &[]);
    assert_eq!(early.code, Some(1), "{early:#?}");
    let explained = early.explained();
    assert!(explained.contains("is not final yet: run this again"), "{explained}");
    assert!(explained.contains("that this database does not know"), "{explained}");
    for account in early.json()["accounts"].as_array().unwrap() {
        let done = account["done"].as_str().unwrap_or_default();
        let has_to_wait = account["must_wait"] == true;
        assert_eq!(done.contains("it has to wait"), has_to_wait, "{account:#}");
    }
    stage.anvil.mine(1).await;
    stage.make_final().await;
    let unknown = "0x00000000000000000000000000000000000000aa";
    let nobody = apply(&stage.setup, &["--account", unknown]);
    assert!(nobody.err.contains("is no managed account of this database"), "{nobody:#?}");
    let applied = apply_interrupted(&world);
    assert_eq!(applied.code, Some(0), "{applied:#?}");
    assert_eq!(reconcile(&stage.setup, &[]).code, Some(0), "all agrees now");

    let server = stage.setup.start(&[ONE, OFTEN]).await;
    assert_eq!(get(&server, "/readyz").await.0, 200);
    every_request_is_paid_once(&world, &server).await;
    server.stop().await;
    lost_checkpoint_is_told(&world);
}

async fn every_request_is_paid_once(world: &World, server: &Server) {
    let stage = &world.stage;
    let mut hashes = BTreeSet::new();
    let mut ids = Vec::new();
    for (key, was_before) in &world.asked {
        let answer = server.ask(SUB, key, &payout(ETHER)).await;
        assert!([200, 201].contains(&answer.status), "{key}: {:#}", answer.body);
        stage.was_answered(&answer.id());
        let done = server.wait_for(&answer.id(), &["finalized"]).await;
        assert_eq!(done["adopted"] == true, !was_before || ["p3", "p4"].contains(&&**key), "{key}");
        hashes.insert(done["receipt"]["transaction_hash"].as_str().unwrap().to_owned());
        ids.push(answer.id());
    }
    assert_eq!((hashes.len(), stage.paid().await), (10, 10), "each is paid once");
    // Said again it is the same; what is new is paid anew.
    for (key, id) in world.asked.keys().zip(&ids) {
        assert_eq!(server.ask(SUB, key, &payout(ETHER)).await.id(), *id);
    }
    let new = ask(stage, server, "new").await;
    stage.mine_until_mined(server, &new).await;
    stage.finish(server, &new).await;
    assert_eq!(stage.paid().await, 11);
    let url = stage.setup.store_url();
    let invariants = crate::support::invariants::Invariants::new(&stage.anvil.url(), url);
    invariants.answered(ids).check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t48_a_restored_database_waits_and_pays_nothing_twice_on_sqlite() {
    t48_a_restored_database_waits_and_pays_nothing_twice(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t48_a_restored_database_waits_and_pays_nothing_twice_on_postgres() {
    let url = Postgres::shared().await.create_database();
    t48_a_restored_database_waits_and_pays_nothing_twice(Some(url)).await;
}
