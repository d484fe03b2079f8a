//! T22: somebody else has used our key. The lane stands still until an operator has looked, and goes on then;
//! the request that lost its nonce is told so, and is not issued again by itself.

use crate::command::{apply, reconcile};
use crate::stage::{Options, Stage, attempts, id, is};
use crate::support::fault_proxy::{Keeping, PoolRules};
use crate::support::server::{ETHER, LIMIT, STRANGER, payout};
use crate::support::services::{Postgres, poll_until};
use serde_json::json;

async fn t22_the_request_fails_and_the_lane_goes_on(store_url: Option<String>) {
    let stage = Stage::with(Options { store_url, ..Options::default() }).await;
    let keeping = Keeping::Withhold;
    stage.proxy.pool_rules(Some(PoolRules { keeping, ..PoolRules::default() }));
    let (server, address) = stage.open(&[]).await;
    let asked = stage.pay(&server, "t22").await;
    server.stop().await;
    let hash = stage.stranger_sends(&address).await;

    let early = apply(&stage.setup, &[]);
    assert_eq!((early.code, early.kinds()), (Some(1), vec!["foreign".to_owned()]), "{early:#?}");
    assert!(early.explained().contains("run this again when its block is"), "{early:#?}");
    stage.make_final().await;
    let told = reconcile(&stage.setup, &[]);
    let explained = told.explained();
    for part in [&hash, &id(&asked), "it sends 0.000000000000000001 ether (1 wei)", STRANGER] {
        assert!(explained.contains(part), "{part} in {explained}");
    }
    // Nothing is signed of what the node says: a person has to look elsewhere.
    let unsure = apply(&stage.setup, &[]);
    assert_eq!(unsure.code, Some(1), "{unsure:#?}");
    assert!(unsure.explained().contains("is one node's word, without a signature"), "{unsure:#?}");
    assert_eq!(apply(&stage.setup, &["--even-if-pending"]).code, Some(0));
    assert_eq!(reconcile(&stage.setup, &[]).code, Some(0));

    stage.proxy.pool_rules(None);
    let server = stage.setup.start(&[]).await;
    let failed = server.read(&id(&asked)).await;
    assert!(is(&failed, &["failed"]), "{failed:#}");
    assert_eq!(failed["failure"]["code"], "nonce-used-by-stranger");
    let again = stage.ask(&server, "t22-again", &payout(ETHER)).await;
    stage.mine_until_mined(&server, &id(&again)).await;
    let done = stage.finish(&server, &id(&again)).await;
    assert_eq!((done["nonce"].as_str(), attempts(&done).len()), (Some("1"), 1));
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (2, 1));
    stage.invariants().foreign([hash]).check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t22_a_request_whose_nonce_a_stranger_used_fails_and_the_lane_goes_on() {
    t22_the_request_fails_and_the_lane_goes_on(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t22_a_request_whose_nonce_a_stranger_used_fails_and_the_lane_goes_on_on_postgres() {
    let url = Postgres::shared().await.create_database();
    t22_the_request_fails_and_the_lane_goes_on(Some(url)).await;
}

/// The chain is ahead of the lane at the start: it halts before any work, and alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t22_a_lane_that_is_behind_its_chain_halts_at_the_start_and_is_released() {
    let stage = Stage::new().await;
    let (server, address) = stage.open(&[]).await;
    server.stop().await;
    let hash = stage.stranger_sends(&address).await;
    stage.make_final().await;
    let server = stage.setup.start(&[]).await;
    assert!(server.program.stderr().contains("the lane was halted"), "{}", server.program.tail());
    let other = server.funded_key(&stage.anvil, "op-2").await;
    // The group's other key is not concerned.
    let asked = stage.ask(&server, "other", &payout(ETHER)).await;
    assert_eq!(asked["address"], *other);
    stage.mine_until_mined(&server, &id(&asked)).await;
    stage.finish(&server, &id(&asked)).await;
    let body = json!({ "chain": "local", "signer": address, "to": crate::support::server::PAYEE,
        "value": ETHER.to_string() });
    let waits = server.ask(crate::stage::SUB, "waits", &body).await;
    let waits = if waits.status == 403 { None } else { Some(waits.id()) };
    server.stop().await;

    let told = reconcile(&stage.setup, &[]);
    assert_eq!((told.code, told.kinds()), (Some(1), vec!["orphan".to_owned()]), "{told:#?}");
    assert!(told.explained().contains("its lane is halted"), "{told:#?}");
    let close = ["--account", &address, "--close-unclaimed"];
    assert_eq!(apply(&stage.setup, &close).code, Some(1), "one node's word");
    // What this run finds is not closed by it: nobody has been told.
    let found = apply(&stage.setup, &[&close[..], &["--even-if-pending"]].concat());
    assert_eq!(found.code, Some(0), "{found:#?}");
    assert!(found.json()["done"].to_string().contains("nothing is closed"), "{found:#?}");
    assert_eq!(found.json()["unclaimed"].as_array().unwrap().len(), 1, "{found:#?}");
    let closed = apply(&stage.setup, &close);
    assert_eq!(closed.code, Some(0), "{closed:#?}");
    assert!(closed.json()["unclaimed"].as_array().unwrap().is_empty(), "{closed:#?}");
    let server = stage.setup.start(&[]).await;
    if let Some(waits) = waits {
        stage.was_answered(&waits);
        stage.mine_until_mined(&server, &waits).await;
        let done = stage.finish(&server, &waits).await;
        assert_eq!(done["nonce"], "1");
    }
    poll_until(LIMIT, "nothing waits", async || {
        server.metrics().await.contains("claviger_suspended 0").then_some(())
    })
    .await;
    stage.invariants().foreign([hash]).check().await;
}
