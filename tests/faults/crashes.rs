//! Killed before or after sending, answers that are lost, sends that never arrive: the same bytes, and one
//! payment.

use crate::stage::{FAILPOINT, MINED, Options, Stage, attempts, id, of_attempt};
use crate::support::fault_proxy::{Fault, Lag, PoolRules, SEND, Times};
use crate::support::server::LIMIT;
use crate::support::services::{Postgres, poll_until};
use claviger::ports::store::{AttemptRow, Filter, TransactionRow, look};
use serde_json::json;
use std::collections::BTreeSet;

/// All versions of the only request, as they are stored.
async fn stored(stage: &Stage) -> (TransactionRow, Vec<AttemptRow>) {
    let store = stage.setup.store().await;
    let found = look(&*store, "stored", |unit| {
        Box::pin(async move {
            let filter = Filter { limit: 10, ..Filter::default() };
            let mut all = unit.transactions(&filter).await?;
            assert_eq!(all.len(), 1);
            let row = all.remove(0);
            let attempts = unit.attempts(row.new.id).await?;
            Ok((row, attempts))
        })
    });
    found.await.unwrap()
}

#[tokio::test]
async fn t1_killed_after_the_nonce_was_allocated_the_restart_signs_it_for_the_same_request() {
    let stage = Stage::new().await;
    let (server, address) = stage.open(&[(FAILPOINT, "lane.after_decided")]).await;
    let _ = stage.try_pay(&server, "t1").await;
    server.crashed().await;
    let (row, decided) = stored(&stage).await;
    assert_eq!((row.nonce, decided.len()), (Some(0), 1));
    assert!(decided[0].signature.is_none(), "it was killed before it signed");
    assert!(stage.proxy.sent().is_empty());

    let server = stage.setup.start(&[]).await;
    let asked = stage.pay(&server, "t1").await;
    assert_eq!(id(&asked), row.new.id.to_string());
    stage.mine_until_mined(&server, &id(&asked)).await;
    let done = stage.finish(&server, &id(&asked)).await;
    assert_eq!((done["nonce"].as_str(), attempts(&done).len()), (Some("0"), 1));
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (1, 1));
    stage.check().await;
    server.stop().await;
    let (_, signed) = stored(&stage).await;
    assert_eq!(signed[0].bytes, decided[0].bytes, "the decided bytes are what was signed");
}

#[tokio::test]
async fn t2_killed_after_the_signature_was_stored_the_same_bytes_are_sent() {
    let stage = Stage::new().await;
    let (server, address) = stage.open(&[(FAILPOINT, "send.before_broadcast")]).await;
    let _ = stage.try_pay(&server, "t2").await;
    server.crashed().await;
    assert!(stage.proxy.sent().is_empty());
    let (row, signed) = stored(&stage).await;
    let raw = format!("0x{}", hex::encode(signed[0].raw.as_ref().unwrap()));

    let server = stage.setup.start(&[]).await;
    let asked = stage.pay(&server, "t2").await;
    assert_eq!(id(&asked), row.new.id.to_string(), "what was accepted is not lost");
    stage.mine_until_mined(&server, &id(&asked)).await;
    let done = stage.finish(&server, &id(&asked)).await;
    assert_eq!(attempts(&done).len(), 1, "no second version was signed");
    let sent: BTreeSet<String> = stage.proxy.sent().into_iter().collect();
    assert_eq!(sent, BTreeSet::from([raw]), "the stored bytes, and nothing else");
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (1, 1));
    stage.check().await;
}

/// T3: the answer to the broadcast is lost, and the server is killed before it knows that it sent.
async fn t3_killed_after_the_node_accepted(store_url: Option<String>) {
    let stage = Stage::with(Options { store_url, ..Options::default() }).await;
    stage.proxy.pool_rules(Some(PoolRules::default()));
    let (mut server, address) = stage.open(&[]).await;
    // The answer never comes: the server waits for it when it is killed.
    let held = stage.proxy.inject(SEND, Times::UntilLifted, Fault::HoldReply);
    let asked = stage.pay(&server, "t3").await;
    stage.proxy.wait_for_held(held, LIMIT).await;
    assert!(stage.has(&of_attempt(&asked, 0, "hash")).await, "the node has it");
    server.program.kill9();
    drop(server);
    stage.proxy.lift(held);

    let server = stage.setup.start(&[]).await;
    let before = stage.proxy.sent().len();
    poll_until(LIMIT, "sent again", async || (stage.proxy.sent().len() > before).then_some(()))
        .await;
    let sent: BTreeSet<String> = stage.proxy.sent().into_iter().collect();
    assert_eq!(sent.len(), 1, "the same bytes");
    stage.mine_until_mined(&server, &id(&asked)).await;
    let done = stage.finish(&server, &id(&asked)).await;
    assert_eq!(attempts(&done).len(), 1);
    assert!(
        !server.program.stderr().contains("did not take the bytes"),
        "already known is success"
    );
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (1, 1));
    stage.check().await;
}

#[tokio::test]
async fn t3_killed_after_the_node_accepted_and_already_known_is_success() {
    t3_killed_after_the_node_accepted(None).await;
}

#[tokio::test]
async fn t3_killed_after_the_node_accepted_on_postgres() {
    let url = Postgres::shared().await.create_database();
    t3_killed_after_the_node_accepted(Some(url)).await;
}

#[tokio::test]
async fn t4_mined_while_the_server_was_dead_is_found_by_its_own_receipt() {
    let stage = Stage::new().await;
    let (server, address) = stage.open(&[(FAILPOINT, "send.after_broadcast")]).await;
    let _ = stage.try_pay(&server, "t4").await;
    server.crashed().await;
    stage.anvil.mine(1).await;
    assert_eq!(stage.anvil.nonce(&address).await, 1, "it was mined meanwhile");

    let server = stage.setup.start(&[]).await;
    let again = stage.pay(&server, "t4").await;
    let mined = server.wait_for(&id(&again), MINED).await;
    assert_eq!(mined["receipt"]["transaction_hash"], of_attempt(&mined, 0, "hash"));
    let done = stage.finish(&server, &id(&again)).await;
    assert_eq!(attempts(&done).len(), 1);
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (1, 1));
    stage.check().await;
}

#[tokio::test]
async fn t4_nonce_too_low_at_the_first_resend_is_no_failure() {
    let stage = Stage::new().await;
    let (server, address) = stage.open(&[(FAILPOINT, "send.after_broadcast")]).await;
    let _ = stage.try_pay(&server, "t4b").await;
    server.crashed().await;
    stage.anvil.mine(1).await;

    // The node's count is behind its pool, so that the server sends again and is told.
    stage.proxy.lag(Some(Lag { nonces: 1, receipts: 1, ..Lag::default() }));
    let before = stage.proxy.sent().len();
    let server = stage.setup.start(&[]).await;
    poll_until(LIMIT, "sent again", async || (stage.proxy.sent().len() > before).then_some(()))
        .await;
    stage.proxy.lag(None);
    let again = stage.pay(&server, "t4b").await;
    let done = stage.finish(&server, &id(&again)).await;
    let sent: BTreeSet<String> = stage.proxy.sent().into_iter().collect();
    assert_eq!((sent.len(), attempts(&done).len()), (1, 1));
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (1, 1));
    stage.check().await;
}

#[tokio::test]
async fn t5_restarted_with_another_fee_setting_the_first_resend_is_the_identical_bytes() {
    let stage = Stage::new().await;
    let (server, address) = stage.open(&[(FAILPOINT, "send.after_broadcast")]).await;
    let _ = stage.try_pay(&server, "t5").await;
    server.crashed().await;
    let sent = stage.proxy.sent();
    assert_eq!(sent.len(), 1);

    // Other caps and another pace: everything is overdue at once, and would be signed anew.
    let other = [
        ("CLAVIGER__CHAIN__0__MAX_FEE_GWEI", "90"),
        ("CLAVIGER__CHAIN__0__MAX_TIP_GWEI", "3"),
        ("CLAVIGER__CHAIN__0__RESEND_AFTER", "1ms"),
    ];
    let server = stage.setup.start(&other).await;
    poll_until(LIMIT, "sent again", async || (stage.proxy.sent().len() > 1).then_some(())).await;
    assert_eq!(stage.proxy.sent()[1], sent[0]);
    let again = stage.pay(&server, "t5").await;
    stage.mine_until_mined(&server, &id(&again)).await;
    stage.finish(&server, &id(&again)).await;
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (1, 1));
    stage.check().await;
}

#[tokio::test]
async fn t6_a_lost_reply_means_sent_and_takes_no_new_nonce() {
    let stage = Stage::new().await;
    let (server, address) = stage.open(&[]).await;
    let lost = stage.proxy.inject(SEND, Times::N(3), Fault::DropReply);
    let asked = stage.pay(&server, "t6").await;
    stage.proxy.wait_for_hits(lost, 3, LIMIT).await;
    let sent: BTreeSet<String> = stage.proxy.sent().into_iter().collect();
    assert_eq!(sent.len(), 1, "the same bytes again");
    assert_eq!(server.read(&id(&asked)).await["nonce"], "0");
    stage.mine_until_mined(&server, &id(&asked)).await;
    let done = stage.finish(&server, &id(&asked)).await;
    assert_eq!(attempts(&done).len(), 1);
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (1, 1));
    stage.check().await;
}

#[tokio::test]
async fn t7_what_never_reached_the_node_is_sent_again_with_the_same_bytes() {
    let stage = Stage::new().await;
    let (server, address) = stage.open(&[]).await;
    let lost = stage.proxy.inject(SEND, Times::N(2), Fault::DropRequest);
    let asked = stage.pay(&server, "t7").await;
    stage.proxy.wait_for_hits(lost, 1, LIMIT).await;
    assert!(!stage.has(&of_attempt(&asked, 0, "hash")).await, "the node never heard of it");
    stage.proxy.wait_for_hits(lost, 2, LIMIT).await;
    stage.mine_until_mined(&server, &id(&asked)).await;
    // Sent again is not signed again.
    let metrics = server.metrics().await;
    assert!(metrics.contains("claviger_attempts_total{kind=\"resend\"} "), "{metrics}");
    let done = stage.finish(&server, &id(&asked)).await;
    let sent: BTreeSet<String> = stage.proxy.sent().into_iter().collect();
    assert_eq!((sent.len(), attempts(&done).len()), (1, 1));
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (1, 1));
    stage.check().await;
}

/// The proxy itself: a call that is held is overtaken by the next, and both arrive.
#[tokio::test]
async fn a_held_send_is_overtaken_and_arrives_late() {
    let stage = Stage::new().await;
    let (server, address) = stage.open(&[]).await;
    let held = stage.proxy.inject(SEND, Times::Once, Fault::Hold);
    let first = stage.pay(&server, "first").await;
    stage.proxy.wait_for_held(held, LIMIT).await;
    let second = stage.pay(&server, "second").await;
    stage.proxy.lift(held);
    for asked in [&first, &second] {
        stage.mine_until_mined(&server, &id(asked)).await;
    }
    for asked in [&first, &second] {
        stage.finish(&server, &id(asked)).await;
    }
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (2, 2));
    assert_eq!(server.list().await.iter().filter(|tx| tx["nonce"] == json!("0")).count(), 1);
    stage.check().await;
}
