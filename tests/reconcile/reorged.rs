//! T39, the way out: a chain that was reorganised below its finality goes on when an operator says so, and what
//! was told as final and is gone is sent again, so that it becomes so once more.

use crate::command::{apply, reconcile, reconcile_with};
use crate::stage::{FAILPOINT, Options, Stage, id, of_attempt};
use crate::support::server::LIMIT;
use crate::support::services::poll_until;
use serde_json::json;
use std::collections::BTreeSet;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t39_a_chain_that_stands_still_goes_on_and_what_was_told_is_mined_again() {
    let stage = Stage::with(Options { long_epochs: true, ..Options::default() }).await;
    stage.final_by_depth(3);
    let (server, address) = stage.open(&[]).await;
    stage.anvil.mine(5).await;
    let told = stage.pay(&server, "t39").await;
    let mined = stage.mine_until_mined(&server, &id(&told)).await;
    stage.anvil.mine(4).await;
    server.wait_for(&id(&told), &["finalized"]).await;
    // Its block goes, and some below it.
    let height: u64 = mined["receipt"]["block_number"].as_str().unwrap().parse().unwrap();
    let depth = stage.anvil.block_number().await - height + 3;
    stage.anvil.rpc("anvil_reorg", json!([depth, []])).await;
    assert_eq!(stage.paid().await, 0, "the payment is gone");
    poll_until(LIMIT, "the chain is halted", async || {
        server.program.stderr().contains("the chain was halted").then_some(())
    })
    .await;
    let waiting = stage.ask(&server, "t39-waiting", &crate::support::server::payout(1)).await;
    server.stop().await;

    let found = reconcile(&stage.setup, &[]);
    assert_eq!((found.code, found.kinds()), (Some(1), vec!["vanished".to_owned()]), "{found:#?}");
    assert!(found.explained().contains(&id(&told)), "{found:#?}");
    let chains = found.json()["chains"].clone();
    let reason = chains[0]["reason"].as_str().unwrap();
    assert!(reason.contains("below its finality"), "{reason}");
    let sent = stage.proxy.sent().len();
    // Killed when the chain may go on: the operator's word is in the log, and the rest is done the next time.
    let args = ["--apply", "--reason", "killed on the way"];
    let killed = reconcile_with(&stage.setup, &args, &[(FAILPOINT, "reconcile.after_chain")]);
    assert_eq!(killed.code, None, "{killed:#?}");
    let done = apply(&stage.setup, &[]);
    assert_eq!(done.code, Some(0), "{done:#?}");
    assert!(done.json()["done"].to_string().contains("sent again"), "{done:#?}");
    let again: BTreeSet<String> = stage.proxy.sent().drain(sent..).collect();
    assert_eq!(again.into_iter().collect::<Vec<_>>(), [of_attempt(&mined, 0, "raw")], "its bytes");
    stage.anvil.mine(1).await;
    assert_eq!((stage.paid().await, stage.anvil.nonce(&address).await), (1, 1));
    assert_eq!(reconcile(&stage.setup, &[]).code, Some(0), "all agrees again");

    let server = stage.setup.start(&[]).await;
    stage.mine_until_mined(&server, &id(&waiting)).await;
    stage.anvil.mine(4).await;
    server.wait_for(&id(&waiting), &["finalized"]).await;
    assert_eq!(server.read(&id(&told)).await["status"], "finalized");
    server.stop().await;
    let store = stage.setup.store().await;
    let leaves = claviger::ports::store::look(&*store, "leaves", |unit| {
        Box::pin(async move { unit.log_leaves(0, 1000).await })
    });
    let leaves = leaves.await.unwrap();
    let resumed = leaves.iter().filter(|leaf| {
        leaf.kind == "RECONCILED" && String::from_utf8_lossy(&leaf.bytes).contains("chain_resumed")
    });
    assert_eq!(resumed.count(), 1, "the operator's word is in the log");
    drop(store);
    // Its bytes are mined again, in another block than it was told in.
    stage.invariants().final_at_depth(3).except([id(&told)]).check().await;
}
