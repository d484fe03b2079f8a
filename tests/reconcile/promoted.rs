//! T48: a replica of PostgreSQL is promoted. It waits, whether it lagged or lost nothing: nobody in it can
//! know which.

use crate::command::{Ran, claviger, reconcile_with};
use crate::stage::{Options, SUB, Stage};
use crate::support::server::{ETHER, payout};
use crate::support::services::{Postgres, PostgresOptions, poll_until};
use std::time::Duration;

/// A copy that was made while a server ran has that server's leases, and nobody gives them back in it: they
/// end by their time, and until then the command refuses.
async fn reconciled_once_leases_end(stage: &Stage, args: &[&str], envs: &[(&str, &str)]) -> Ran {
    poll_until(Duration::from_secs(60), "the leases of the copy have ended", async || {
        let ran = reconcile_with(&stage.setup, args, envs);
        let refused = ran.code == Some(1) && ran.err.contains("have not ended");
        (!refused).then_some(ran)
    })
    .await
}

async fn t48_a_promoted_replica_waits(lags: bool) {
    let mut primary = Postgres::start(PostgresOptions::default()).await;
    let url = primary.create_database();
    let options =
        Options { store_url: Some(url.clone()), mines_at_once: true, ..Options::default() };
    let stage = Stage::with(options).await;
    let (server, _) = stage.open(&[]).await;
    let first = stage.pay(&server, "first").await;
    stage.finish(&server, first["id"].as_str().unwrap()).await;
    let lagging = lags.then(|| primary.replica());
    let second = stage.pay(&server, "second").await;
    stage.finish(&server, second["id"].as_str().unwrap()).await;
    server.stop().await;
    let mut replica = lagging.unwrap_or_else(|| primary.replica());
    primary.stop();
    replica.promote().await;
    let url = replica.url_of(&url);
    let envs = [("CLAVIGER__STORE__URL", url.as_str())];

    let server = stage.setup.start(&envs).await;
    let waits = server.ask(SUB, "third", &payout(ETHER)).await;
    assert_eq!((waits.status, waits.code()), (503, "reconcile-required"), "{:#}", waits.body);
    let reason = "or a replica was promoted";
    assert!(waits.body["detail"].as_str().unwrap().contains(reason), "{:#}", waits.body);
    let told = server.program.stderr();
    assert!(told.contains("ALARM: nothing is signed"), "{}", server.program.tail());
    server.stop().await;
    let memory = stage.setup.dir().join("audit.record.database");
    let before = std::fs::read_to_string(&memory).unwrap();
    assert!(before.contains("/00000001"), "{before}");
    let args = ["--apply", "--reason", "failed over"];
    let applied = reconciled_once_leases_end(&stage, &args, &envs).await;
    assert_eq!(applied.code, Some(0), "{applied:#?}");
    let config = stage.setup.config().display().to_string();
    let doctor = claviger(&["doctor", "--config", &config], &envs);
    assert!(doctor.out.contains("/00000002"), "the other timeline: {doctor:#?}");

    // Another host was away meanwhile and remembers the old copy: it goes on with what was reconciled.
    std::fs::write(&memory, before).unwrap();
    let server = stage.setup.start(&envs).await;
    assert!(std::fs::read_to_string(&memory).unwrap().contains("/00000002"));
    for key in ["first", "second", "third"] {
        let answer = server.ask(SUB, key, &payout(ETHER)).await;
        let done = stage.finish(&server, &answer.id()).await;
        assert_eq!(done["adopted"] == true, lags && key == "second", "{key}: {done:#}");
    }
    assert_eq!(stage.paid().await, 3);
    server.stop().await;
    let invariants = crate::support::invariants::Invariants::new(&stage.anvil.url(), &url);
    invariants.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t48_a_lagging_replica_that_is_promoted_waits_and_pays_nothing_twice() {
    t48_a_promoted_replica_waits(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t48_a_promoted_replica_that_lost_nothing_waits_too() {
    t48_a_promoted_replica_waits(false).await;
}
