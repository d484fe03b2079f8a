//! Blocks that come late, go, and come back: a real chain, the real watcher.

use super::support::lagging_node::LaggingNode;
use super::*;

/// Told as soon as they are seen, so that a reorg finds them told.
fn at_the_head() -> Setting {
    Setting { finality: "{ depth = 0 }", ..Setting::default() }
}

impl Stage {
    /// What `status` shows to an operator of one kind of message.
    pub(super) fn attention(&self, kind: &str) -> Vec<Value> {
        let status = self.status();
        let items = status["attention"].as_array().unwrap().clone();
        items.into_iter().filter(|item| item["kind"] == kind).collect()
    }

    /// Waits until `status` shows so many of a kind.
    pub(super) async fn shown(&self, kind: &str, count: usize) -> Vec<Value> {
        poll_until(LIMIT, &format!("{count} {kind} to look at"), async || {
            let items = self.attention(kind);
            (items.len() == count).then_some(items)
        })
        .await
    }

    /// Takes blocks off the chain; as many empty ones come in their place.
    pub(super) async fn reorg(&self, depth: u64) {
        self.anvil.rpc("anvil_reorg", json!([depth, []])).await;
        // Whatever this node does with the transactions of blocks that are gone, they stay gone.
        self.anvil.rpc("anvil_dropAllTransactions", json!([])).await;
    }

    /// Waits until the watcher has come to the head over a gap of thousands of blocks. It asks for the
    /// logs of each block, which takes a machine that is busy with other tests minutes.
    async fn at_head_after_a_long_gap(&self) {
        let head = self.anvil.block_number().await;
        poll_until(LIMIT * 5, &format!("the cursor at {head}"), async || {
            (self.status()["chains"][0]["cursor"]["number"] == head).then_some(())
        })
        .await;
    }

    /// In parts, so that each call is answered in time.
    async fn mine_in_parts(&self, blocks: u64) {
        let whole = blocks / 500;
        for _ in 0..whole {
            self.anvil.mine(500).await;
        }
        self.anvil.mine(blocks - whole * 500).await;
    }

    pub(super) async fn raw(&self, hash: &str) -> Value {
        self.anvil.rpc("eth_getRawTransactionByHash", json!([hash])).await
    }
}

// Its node runs in this process, beside a test that waits for commands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e1_empty_logs_of_a_lagging_node_do_not_pass_the_cursor() {
    let anvil = Anvil::start(AnvilOptions { mining: Mining::Manual, ..Default::default() }).await;
    let node = LaggingNode::start(anvil.url()).await;
    let stage = Stage::on(anvil, Setting { rpc: Some(node.url()), ..at_the_head() }).await;
    stage.anvil.mine(3).await;
    let watcher = stage.watcher();
    stage.at_head().await;
    node.lag(true);
    stage.ask(1).await;
    stage.anvil.mine(5).await;
    // It has said "no logs" again and again.
    poll_until(LIMIT, "empty lists", async || (node.lies() >= 4).then_some(())).await;
    assert_eq!(stage.status()["chains"][0]["cursor"]["number"], 3);
    assert!(stage.server.requests().is_empty());
    node.lag(false);
    stage.outbox("done", 1).await;
    stage.at_head().await;
    assert_eq!(stage.orders(), [1]);
    stage.stop(watcher).await;
}

#[tokio::test]
async fn e6_a_reorg_while_the_watcher_is_down_is_retracted_and_the_new_events_are_told() {
    let stage = Stage::with(at_the_head()).await;
    stage.anvil.mine(5).await;
    stage.ask(1).await;
    stage.anvil.mine(1).await;
    let mut watcher = stage.watcher();
    stage.outbox("done", 1).await;
    watcher.kill9();
    stage.reorg(2).await;
    stage.ask(2).await;
    stage.anvil.mine(30).await;
    let watcher = stage.watcher();
    stage.outbox("done", 3).await;
    assert_eq!(stage.orders(), [1, 2]);
    let retracted = stage.shown("retraction", 1).await;
    assert_eq!(retracted[0]["event_id"], stage.server.requests()[0].body["metadata"]["event_id"]);
    stage.at_head().await;
    stage.stop(watcher).await;
}

#[tokio::test]
async fn e10_a_transaction_mined_again_before_it_was_final_makes_one_request() {
    let stage = Stage::new().await;
    stage.anvil.mine(5).await;
    let watcher = stage.watcher();
    let raw = {
        let hash = stage.ask(1).await;
        stage.anvil.mine(1).await;
        stage.raw(&hash).await
    };
    stage.outbox("held", 1).await;
    stage.reorg(1).await;
    stage.outbox("cancelled", 1).await;
    stage.anvil.rpc("eth_sendRawTransaction", json!([raw])).await;
    stage.anvil.mine(3).await;
    stage.outbox("done", 1).await;
    assert_eq!(stage.orders(), [1]);
    assert!(stage.attention("retraction").is_empty(), "nothing had been asked for");
    stage.stop(watcher).await;
}

#[tokio::test]
async fn e10_a_transaction_mined_again_after_the_request_makes_no_second_one() {
    let stage = Stage::with(at_the_head()).await;
    stage.anvil.mine(5).await;
    let watcher = stage.watcher();
    let raw = {
        let hash = stage.ask(1).await;
        stage.anvil.mine(1).await;
        stage.raw(&hash).await
    };
    stage.outbox("done", 1).await;
    stage.reorg(1).await;
    stage.shown("retraction", 1).await;
    stage.anvil.rpc("eth_sendRawTransaction", json!([raw])).await;
    stage.anvil.mine(1).await;
    // The server knows the key and another event: it refuses, and an operator compares the two.
    stage.outbox("parked", 1).await;
    let keys = stage.server.by_key();
    assert_eq!((keys.len(), stage.orders()), (1, vec![1, 1]), "one key: one signing request");
    stage.stop(watcher).await;
}

#[tokio::test]
async fn e14_heads_that_skip_1_50_and_5000_blocks_leave_no_hole() {
    // Old states are not asked for, and keeping thousands of them is most of this node's work.
    let args = vec!["--prune-history".to_owned()];
    let options = AnvilOptions { mining: Mining::Manual, args, ..AnvilOptions::default() };
    let stage = Stage::on(Anvil::start(options).await, Setting::default()).await;
    let mut watcher = stage.watcher();
    stage.at_head().await;
    let (mut order, mut wanted) = (0, Vec::new());
    for skipped in [1, 50, 5000] {
        watcher.signal("STOP");
        let begun = stage.anvil.block_number().await;
        // The first block of the gap, its middle, and its end.
        for blocks in [skipped / 2, skipped - skipped / 2] {
            order += 1;
            wanted.push(order);
            stage.ask(order).await;
            stage.mine_in_parts(blocks.max(1)).await;
        }
        assert!(stage.anvil.block_number().await >= begun + skipped);
        watcher.signal("CONT");
        if skipped == 5000 {
            stage.at_head_after_a_long_gap().await;
        } else {
            stage.at_head().await;
        }
    }
    stage.anvil.mine(2).await;
    stage.outbox("done", wanted.len() as u64).await;
    // Who is stopped in the middle of an answer asks again, with the same key.
    let mut asked = stage.orders();
    asked.dedup();
    assert_eq!(asked, wanted);
    stage.stop(watcher).await;
}

#[tokio::test]
async fn e34_an_event_retracted_after_its_request_is_linked_to_it_and_nothing_is_reversed() {
    let stage = Stage::with(at_the_head()).await;
    stage.anvil.mine(5).await;
    let watcher = stage.watcher();
    stage.ask(1).await;
    stage.anvil.mine(1).await;
    stage.outbox("done", 1).await;
    stage.reorg(1).await;
    let retracted = stage.shown("retraction", 1).await;
    let request = stage.server.requests()[0].clone();
    assert_eq!(retracted[0]["event_id"], request.body["metadata"]["event_id"]);
    assert_eq!(retracted[0]["became"], format!("tx-{}", request.key));
    stage.ask(2).await;
    stage.anvil.mine(1).await;
    stage.outbox("done", 3).await;
    assert_eq!(stage.orders(), [1, 2], "no request takes the first one back");
    stage.stop(watcher).await;
}
