//! What one node says of a nonce is compared with what our key has signed: a request is failed for another one
//! of ours only, and that one is kept for its caller.

use crate::backup::Backup;
use crate::command::{apply, reconcile};
use crate::stage::{Stage, id, is};
use crate::support::fault_proxy::{Fault, Keeping, PoolRules, Times};
use crate::support::invariants::Invariants;
use crate::support::server::{ETHER, payout};
use serde_json::{Value, json};

/// One transaction of an account at a time, so that requests queue behind.
const ONE: (&str, &str) = ("CLAVIGER__CHAIN__0__MAX_IN_FLIGHT", "1");

/// The node has the block with the transaction, and not its receipt yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_of_its_own_is_never_foreign_to_a_request() {
    let stage = Stage::new().await;
    let (server, _) = stage.open(&[]).await;
    let asked = stage.pay(&server, "own").await;
    server.stop().await;
    stage.anvil.mine(1).await;
    stage.make_final().await;
    let missing = Fault::Answer(Value::Null);
    let missing = stage.proxy.inject("eth_getTransactionReceipt", Times::UntilLifted, missing);
    let told = reconcile(&stage.setup, &[]);
    assert_eq!((told.code, told.kinds().len()), (Some(0), 0), "{told:#?}");
    assert!(stage.proxy.hits(missing) > 0);
    assert_eq!(apply(&stage.setup, &[]).code, Some(0));
    stage.proxy.lift_all();
    let server = stage.setup.start(&[]).await;
    stage.finish(&server, &id(&asked)).await;
    stage.check().await;
}

/// A database that was put back, record and all, gives a nonce anew that was given before; then what was
/// signed before is mined.
async fn a_nonce_is_lost_to_a_request_that_is_gone(is_asked_again: bool) {
    let stage = Stage::new().await;
    let keeping = Keeping::Withhold;
    stage.proxy.pool_rules(Some(PoolRules { keeping, ..PoolRules::default() }));
    let (server, _) = stage.open(&[ONE]).await;
    server.stop().await;
    let backup = Backup::take(&stage.setup).await;
    // Nothing is remembered before the first nonce.
    let record = std::fs::read(stage.setup.dir().join("audit.record")).unwrap();
    let memory = stage.setup.dir().join("audit.record.database");
    assert!(!memory.exists());
    let server = stage.setup.start(&[ONE]).await;
    stage.pay(&server, "lost").await;
    let raw = stage.proxy.sent().pop().unwrap();
    server.stop().await;
    backup.put_back(&stage.setup).await;
    std::fs::write(stage.setup.dir().join("audit.record"), record).unwrap();
    std::fs::remove_file(memory).unwrap();

    let server = stage.setup.start(&[ONE]).await;
    let other = stage.pay_as(&server, "other", &payout(ETHER / 2)).await;
    let mut waits = None;
    if is_asked_again {
        waits = Some(id(&stage.ask(&server, "lost", &payout(ETHER)).await));
    }
    server.stop().await;
    stage.hand_over(&raw).await;
    stage.anvil.mine(1).await;
    stage.make_final().await;

    let told = reconcile(&stage.setup, &[]);
    assert_eq!((told.code, told.kinds()), (Some(1), vec!["foreign".to_owned()]), "{told:#?}");
    let says = match &waits {
        Some(waits) => format!("it is bound to request {waits}, which asks for the same"),
        None => "it is bound to the next request that asks for the same".to_owned(),
    };
    assert!(told.explained().contains(&says), "{told:#?}");
    let applied = apply(&stage.setup, &[]);
    assert_eq!(applied.code, Some(0), "{applied:#?}");
    assert_eq!(reconcile(&stage.setup, &[]).code, Some(0), "all agrees now");

    stage.proxy.pool_rules(None);
    let server = stage.setup.start(&[ONE]).await;
    let failed = server.read(&id(&other)).await;
    assert!(is(&failed, &["failed"]) && failed["nonce"].is_null(), "{failed:#}");
    assert_eq!(failed["failure"]["code"], "nonce-used-by-stranger");
    let lost = stage.ask(&server, "lost", &payout(ETHER)).await;
    let done = stage.finish(&server, &id(&lost)).await;
    assert_eq!((&done["adopted"], &done["nonce"]), (&json!(true), &json!("0")), "{done:#}");
    assert!(waits.is_none_or(|waits| waits == id(&lost)));
    // What is new is paid anew.
    let new = stage.ask(&server, "new", &payout(ETHER)).await;
    stage.mine_until_mined(&server, &id(&new)).await;
    assert_eq!(stage.finish(&server, &id(&new)).await["nonce"], "1");
    assert_eq!(stage.paid().await, 2);
    server.stop().await;
    let invariants = Invariants::new(&stage.anvil.url(), stage.setup.store_url());
    invariants.answered([&other, &lost, &new].map(id)).check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_our_key_signed_for_a_request_that_is_gone_is_kept_for_its_caller() {
    a_nonce_is_lost_to_a_request_that_is_gone(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_our_key_signed_for_a_request_that_is_gone_is_bound_to_one_that_waits() {
    a_nonce_is_lost_to_a_request_that_is_gone(true).await;
}
