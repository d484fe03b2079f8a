//! How many requests of one principal may wait, at the door; and how the honest one is found among them.

use crate::flow::asked;
use crate::stage::{
    SUB, answer, approval, call, chain, command, grants, hash, large, leaves, list, setup,
    write_bundle,
};
use crate::support::server::{Answer, LIMIT, Server, payout};
use crate::support::services::{Postgres, poll_until};
use claviger::core::access::Role;
use claviger::ports::store::look;
use futures::future::join_all;
use reqwest::Method;
use serde_json::Value;
use sqlx::Connection as _;
use std::time::Duration;

const OTHER: &str = "svc:watcher";
const THREE: (&str, &str) = ("CLAVIGER__SERVER__MAX_WAITING", "3");

/// Payouts for two principals.
fn for_two(ttl: &str) -> String {
    let one = "principals = [\"svc:payouts\"]";
    let grants = grants("10.0", &approval(ttl));
    assert!(grants.contains(one));
    grants.replace(one, "principals = [\"svc:payouts\", \"svc:watcher\"]")
}

async fn ids(server: &Server, query: &str) -> Vec<String> {
    let ann = ("dev:ann", Role::Approver);
    let page = call(server, ann, Method::GET, query, None).await.ok();
    let all = page["approvals"].as_array().unwrap().iter();
    all.map(|it| it["id"].as_str().unwrap().to_owned()).collect()
}

async fn refused(server: &Server, key: &str) -> Value {
    let refused = server.ask(SUB, key, &large()).await;
    assert_eq!((refused.status, refused.code()), (429, "rate-limited"), "{:#}", refused.body);
    refused.body
}

#[tokio::test]
async fn a_stolen_token_fills_its_own_place_among_what_waits_and_no_other() {
    let anvil = chain().await;
    let setup = setup(&anvil, None, &for_two("30m"));
    let server = setup.start(&[THREE]).await;
    server.funded_key(&anvil, "op-1").await;
    let mut waits = Vec::new();
    for n in 0..3 {
        waits.push(asked(&server, &format!("one-{n}"), &large()).await);
    }
    let told = refused(&server, "one-3").await;
    assert!(told["detail"].as_str().unwrap().contains("3 requests of this principal"), "{told:#}");
    {
        // Not even while nothing can be written: the flood does not come to the writer.
        let mut writer = sqlx::SqliteConnection::connect(setup.store_url()).await.unwrap();
        sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut writer).await.unwrap();
        let refusal = refused(&server, "one-4");
        tokio::time::timeout(Duration::from_secs(4), refusal).await.expect("without the writer");
        sqlx::raw_sql("ROLLBACK").execute(&mut writer).await.unwrap();
    }
    assert_eq!(list(&server).await.len(), 3);
    // What need not wait, what is said again, and others go on.
    assert_eq!(server.ask(SUB, "small", &payout(1)).await.status, 201);
    let again = server.ask(SUB, "one-1", &large()).await;
    assert_eq!((again.status / 100, again.id()), (2, waits[1].clone()));
    let mine = server.ask(OTHER, "mine", &large()).await;
    assert_eq!(mine.status, 202, "{:#}", mine.body);
    // And are found among the many.
    assert_eq!(ids(&server, "?requester=svc:watcher").await, [mine.id()]);
    assert_eq!(ids(&server, "?requester=svc%3Apayouts&limit=2").await, [&*waits[2], &*waits[1]]);
    assert!(ids(&server, "?requester=svc:payout").await.is_empty());
    assert!(ids(&server, "?requester=svc:watcher&status=delayed").await.is_empty());
    let token = setup.dir().join("token");
    std::fs::write(&token, server.token("dev:ann", Role::Approver)).unwrap();
    let listed = command(&setup, &server, &token, &["list", "--requester", OTHER]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains(&mine.id()) && !listed.contains(&waits[0]), "{listed}");

    // One that ends makes room, for the key that was refused too: nothing was bound to it.
    let hash = hash(&server, &waits[0]).await;
    answer(&server, "dev:ann", &waits[0], "reject", &hash).await.ok();
    let late = asked(&server, "one-3", &large()).await;
    refused(&server, "one-4").await;
    server.intervene(&late, "cancel").await.ok();
    asked(&server, "one-4", &large()).await;
    let count = server.metric("claviger_waiting_refused_total", &[]).await;
    assert!((count - 3.0).abs() < f64::EPSILON, "{count}");
    let before = list(&server).await[0]["bundle"].clone();
    server.checkpoint().await;
    // All of one requester, by one command; the page is smaller than what there is where it must be.
    let none = ["reject", "--requester", "svc:nobody", "--reason", "a test"];
    let told = command(&setup, &server, &token, &none);
    assert!(String::from_utf8(told.stdout).unwrap().contains("0 of 0"));
    let told = command(&setup, &server, &token, &["reject", "--requester", OTHER]);
    assert_eq!(told.status.code(), Some(2), "{told:?}");
    server.stop().await;

    // The log is told once of three refusals.
    let store = setup.store().await;
    let log = look(&*store, "log", |unit| Box::pin(async move { unit.log_leaves(0, 200).await }));
    let log = log.await.unwrap();
    let denied: Vec<_> = log.iter().filter(|leaf| leaf.kind == "DENIED").collect();
    assert_eq!(denied.len(), 1);
    let text = String::from_utf8(denied[0].bytes.clone()).unwrap();
    assert!(text.contains("max_waiting") && text.contains(SUB), "{text}");
    assert_eq!(leaves(&store, &denied[0].subject).await, ["DENIED"], "nothing else of it");
    drop(store);

    // Another bundle has all of them asked anew, whatever the bound is by now.
    write_bundle(&setup.dir(), &for_two("45m"));
    let server = setup.start(&[("CLAVIGER__SERVER__MAX_WAITING", "1")]).await;
    poll_until(LIMIT, "all are asked anew", async || {
        let all = list(&server).await;
        assert_eq!(all.len(), 4, "none is lost");
        all.iter().all(|it| it["bundle"] != before).then_some(())
    })
    .await;
    refused(&server, "one-5").await;
    std::fs::write(&token, server.token("dev:ann", Role::Approver)).unwrap();
    let stolen = ["reject", "--requester", SUB, "--reason", "its token was stolen"];
    let told = command(&setup, &server, &token, &stolen);
    let said = String::from_utf8(told.stdout).unwrap();
    assert!(told.status.success() && said.contains("3 of 3 requests rejected"), "{said}");
    assert_eq!(ids(&server, "").await, [mine.id()], "and of no other");
    server.stop().await;
}

#[tokio::test]
async fn of_twenty_at_once_at_two_servers_exactly_as_many_wait_as_may() {
    let url = Postgres::shared().await.create_database();
    let anvil = chain().await;
    let setup = setup(&anvil, Some(&url), &grants("100.0", &approval("30m")));
    let five = ("CLAVIGER__SERVER__MAX_WAITING", "5");
    let server = setup.start(&[five]).await;
    server.funded_key(&anvil, "op-1").await;
    let beside = setup.start_beside("other.record", &[five]).await;
    let all = (0..20).map(|n| {
        let at = if n % 2 == 0 { &server } else { &beside };
        async move { at.ask(SUB, &format!("large-{n}"), &large()).await }
    });
    let answers = join_all(all).await;
    let taken = answers.iter().filter(|answer| answer.status == 202).count();
    assert_eq!(taken, 5, "{answers:#?}");
    let full = |it: &&Answer| it.status == 429;
    assert_eq!(answers.iter().filter(full).count(), 15, "{answers:#?}");
    assert_eq!(list(&server).await.len(), 5);
    server.stop().await;
    beside.stop().await;
}

#[tokio::test]
async fn a_bound_of_nothing_is_refused_at_the_start() {
    let setup = setup(&chain().await, None, &grants("10.0", &approval("30m")));
    let mut program = setup.spawn(&[("CLAVIGER__SERVER__MAX_WAITING", "0")]);
    let status = program.exit_status(LIMIT).await;
    assert!(!status.success());
    assert!(program.tail().contains("max_waiting must be at least 1"), "{}", program.tail());
}
