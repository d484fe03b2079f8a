//! T36: a block is taken away again. Back to submitted, the same bytes again, mined again, and the events
//! say so in order.

use crate::stage::{MINED, Options, Stage, attempts, id, of_attempt};
use crate::support::server::LIMIT;
use crate::support::services::{Postgres, poll_until};
use serde_json::json;
use std::collections::BTreeSet;

async fn t36_reorged_out(depth: u64, store_url: Option<String>) {
    let stage = Stage::with(Options { long_epochs: true, store_url, ..Options::default() }).await;
    let (server, address) = stage.open(&[]).await;
    let asked = stage.pay(&server, "t36").await;
    let hash = of_attempt(&asked, 0, "hash");
    let mined = stage.mine_until_mined(&server, &id(&asked)).await;
    let block = mined["receipt"]["block_hash"].clone();
    let height: u64 = mined["receipt"]["block_number"].as_str().unwrap().parse().unwrap();
    let above = stage.anvil.block_number().await - height;
    stage.anvil.mine((depth - 1).saturating_sub(above)).await;

    let sent = stage.proxy.sent().len();
    let deep = stage.anvil.block_number().await - height + 1;
    stage.anvil.rpc("anvil_reorg", json!([deep, []])).await;
    assert_eq!(stage.paid().await, 0, "the payment is gone");
    let back = server.wait_for(&id(&asked), &["submitted"]).await;
    assert!(back["receipt"].is_null());
    poll_until(LIMIT, "in the pool again", async || stage.has(&hash).await.then_some(())).await;
    assert!(stage.proxy.sent().len() > sent, "sent again");
    let again = stage.mine_until_mined(&server, &id(&asked)).await;
    assert_ne!(again["receipt"]["block_hash"], block);
    assert_eq!(again["receipt"]["transaction_hash"], hash);
    let done = stage.finish(&server, &id(&asked)).await;
    assert_eq!(attempts(&done).len(), 1);
    let raws: BTreeSet<String> = stage.proxy.sent().into_iter().collect();
    assert_eq!(raws.len(), 1, "the same bytes");
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (1, 1));
    stage.check().await;
    server.stop().await;
    let due = ["queued", "submitted", "mined", "submitted", "mined", "finalized"];
    assert_eq!(stage.events(&id(&asked)).await, due);
}

#[tokio::test]
async fn t36_reorged_out_at_depth_1() {
    t36_reorged_out(1, None).await;
}

#[tokio::test]
async fn t36_reorged_out_at_depth_2() {
    t36_reorged_out(2, None).await;
}

#[tokio::test]
async fn t36_reorged_out_at_depth_3() {
    t36_reorged_out(3, None).await;
}

#[tokio::test]
async fn t36_reorged_out_on_postgres() {
    let url = Postgres::shared().await.create_database();
    t36_reorged_out(2, Some(url)).await;
}

/// The same transactions in other blocks: nothing is gone, and nothing needs sending.
#[tokio::test]
async fn t36_mined_in_another_block_of_the_new_fork_is_mined_there() {
    let stage = Stage::with(Options { long_epochs: true, ..Options::default() }).await;
    let (server, address) = stage.open(&[]).await;
    let asked = stage.pay(&server, "t36b").await;
    let mined = stage.mine_until_mined(&server, &id(&asked)).await;
    let block = mined["receipt"]["block_hash"].clone();
    let height: u64 = mined["receipt"]["block_number"].as_str().unwrap().parse().unwrap();
    let deep = stage.anvil.block_number().await - height + 1;
    let raw = of_attempt(&asked, 0, "raw");
    stage.anvil.rpc("anvil_reorg", json!([deep, [[raw, 0]]])).await;
    poll_until(LIMIT, "mined in the other block", async || {
        let found = server.read(&id(&asked)).await;
        let moved = found["receipt"]["block_hash"] != block && found["receipt"].is_object();
        (moved && MINED.contains(&found["status"].as_str()?)).then_some(())
    })
    .await;
    let done = stage.finish(&server, &id(&asked)).await;
    assert_eq!(attempts(&done).len(), 1);
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (1, 1));
    stage.check().await;
}

/// The chain becomes shorter and stands still: a node that mines at once waits for what we wait for.
#[tokio::test]
async fn t36_on_a_chain_that_became_shorter_the_same_bytes_are_mined_again() {
    let options = Options { long_epochs: true, mines_at_once: true, ..Options::default() };
    let stage = Stage::with(options).await;
    let (server, address) = stage.open(&[]).await;
    let asked = stage.pay(&server, "shorter").await;
    server.wait_for(&id(&asked), MINED).await;
    stage.anvil.rpc("anvil_rollback", json!([1])).await;
    assert_eq!(stage.paid().await, 0, "the payment is gone");
    poll_until(LIMIT, "paid again", async || (stage.paid().await == 1).then_some(())).await;
    let done = stage.finish(&server, &id(&asked)).await;
    assert_eq!(attempts(&done).len(), 1);
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (1, 1));
    stage.check().await;
}
