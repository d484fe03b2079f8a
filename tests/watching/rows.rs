//! Blocks that come late, go, and come back: a real chain, the real watcher.

use super::support::fault_proxy::Lag;
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

    /// Waits until every source has read all blocks up to the head.
    pub(super) async fn sources_at_head(&self) {
        let head = self.anvil.block_number().await;
        poll_until(LIMIT, &format!("every source at {head}"), async || {
            let status = self.status();
            let sources = status["chains"][0]["sources"].as_array().unwrap().clone();
            sources.iter().all(|source| source["next_block"] == head + 1).then_some(())
        })
        .await;
    }

    /// Waits until this order was asked for.
    pub(super) async fn ordered(&self, order: u128) {
        let what = format!("order {order} is asked for");
        let is_asked = async || self.orders().contains(&order).then_some(());
        poll_until(LIMIT, &what, is_asked).await;
    }

    /// Writes another configuration over the same database.
    pub(super) fn configure(&mut self, setting: Setting) {
        self.setting = setting;
        std::fs::write(self.path("watcher.toml"), self.config()).unwrap();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
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
    // The node that it finds at its start is behind, and comes on later.
    stage.proxy.lag(Some(Lag::all(28)));
    stage.trouble();
    let watcher = stage.watcher();
    stage.shown("retraction", 1).await;
    stage.proxy.lag(None);
    stage.outbox("done", 3).await;
    assert_eq!(stage.orders(), [1, 2]);
    let retracted = stage.shown("retraction", 1).await;
    assert_eq!(retracted[0]["event_id"], stage.server.requests()[0].body["metadata"]["event_id"]);
    stage.at_head().await;
    stage.stop(watcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
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
    stage.trouble();
    stage.reorg(1).await;
    stage.outbox("cancelled", 1).await;
    stage.anvil.rpc("eth_sendRawTransaction", json!([raw])).await;
    stage.anvil.mine(3).await;
    stage.outbox("done", 1).await;
    assert_eq!(stage.orders(), [1]);
    assert!(stage.attention("retraction").is_empty(), "nothing had been asked for");
    stage.stop(watcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
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
    stage.trouble();
    stage.reorg(1).await;
    stage.shown("retraction", 1).await;
    stage.anvil.rpc("eth_sendRawTransaction", json!([raw])).await;
    stage.anvil.mine(1).await;
    // The server knows the key and another event of the same business: the two are linked.
    stage.outbox("done", 3).await;
    assert_eq!((stage.count("parked"), stage.server.retractions().len()), (0, 1));
    let keys = stage.server.by_key();
    assert_eq!((keys.len(), stage.orders()), (1, vec![1, 1]), "one key: one signing request");
    stage.stop(watcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
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
        // Something happens in the gap's first block, in its middle, and in its last.
        for blocks in [skipped / 2, skipped - skipped / 2, 0] {
            order += 1;
            wanted.push(order);
            stage.ask(order).await;
            stage.anvil.mine(1).await;
            stage.mine_in_parts(blocks).await;
        }
        assert!(stage.anvil.block_number().await >= begun + skipped);
        stage.trouble();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e34_an_event_retracted_after_its_request_is_linked_to_it_and_nothing_is_reversed() {
    let stage = Stage::with(at_the_head()).await;
    stage.anvil.mine(5).await;
    let watcher = stage.watcher();
    stage.ask(1).await;
    stage.anvil.mine(1).await;
    stage.outbox("done", 1).await;
    stage.reorg(1).await;
    stage.trouble();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e30_a_log_that_does_not_decode_is_parked_with_its_bytes_and_the_stream_goes_on() {
    let mut stage = Stage::new().await;
    // A signature without `indexed`: the same event, whose logs do not decode.
    let good = stage.config();
    let bad = good.replace(
        "uint256 indexed orderId, address indexed payer",
        "uint256 orderId, address payer",
    );
    std::fs::write(stage.path("watcher.toml"), &bad).unwrap();
    let watcher = stage.watcher();
    stage.trouble();
    stage.ask(1).await;
    stage.anvil.mine(3).await;
    let shown = stage.shown("log", 1).await;
    assert!(shown[0]["reason"].as_str().unwrap().contains("undecodable"), "{shown:?}");
    assert!(stage.server.requests().is_empty());
    stage.stop(watcher).await;
    // Corrected: what comes is asked for, and what came before once an operator says so.
    stage.configure(Setting::default());
    let watcher = stage.watcher();
    stage.ask(2).await;
    stage.anvil.mine(3).await;
    stage.outbox("done", 1).await;
    assert_eq!(stage.orders(), [2]);
    let (ok, text) = stage.command(&["retry", "--config"]);
    assert!(ok && text.contains("1 logs or calls decoded again"), "{text}");
    stage.outbox("done", 2).await;
    assert_eq!(stage.orders(), [2, 1]);
    assert!(stage.attention("log").is_empty());
    // One that no signature decodes stays parked, and holds up nothing.
    stage.anvil.send(&stage.anvil.accounts()[1], EMITTER, "0x", 0).await;
    stage.ask(3).await;
    stage.anvil.mine(3).await;
    stage.outbox("done", 3).await;
    stage.shown("log", 1).await;
    stage.stop(watcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e32_a_source_with_an_old_start_joins_a_growing_chain_without_hole_or_double() {
    let mut stage = Stage::new().await;
    let mut watcher = stage.watcher();
    let mut wanted = Vec::new();
    let mut next = 1_u128;
    // Some 300 blocks, with an event in every thirtieth.
    for _ in 0..10 {
        stage.ask(next).await;
        wanted.push(next);
        next += 1;
        stage.anvil.mine(30).await;
    }
    stage.outbox("done", 10).await;
    watcher.signal("TERM");
    assert!(watcher.exit_status(LIMIT).await.success());
    let more = format!(
        r#"
        [[source]]
        name = "late"
        chain = "local"
        address = "{EMITTER}"
        event = "{EVENT}"
        from_block = 1
        finality = {{ depth = 2 }}
        [[trigger]]
        name = "late"
        source = "late"
        signer = "payments"
        function = "executeCharge(uint256 orderId, uint256 amount)"
        args = {{ orderId = "orderId", amount = "amount" }}
        business_id = ["{{chain}}", "{{contract}}", "orderId"]
        "#
    );
    stage.configure(Setting { more, ..Setting::default() });
    let watcher = stage.watcher();
    stage.trouble();
    // The chain grows under it until it has joined.
    for _ in 0..20 {
        stage.ask(next).await;
        wanted.push(next);
        next += 1;
        stage.anvil.mine(3).await;
    }
    stage.sources_at_head().await;
    let consumer = "trigger:late";
    let count = wanted.len() as u64;
    poll_until(LIMIT, "all of the late source", async || {
        (stage.count_of(consumer, "done") == count).then_some(())
    })
    .await;
    let of_late = |request: &&Recorded| request.body["metadata"]["trigger"] == "late";
    let requests = stage.server.requests();
    let order = |request: &Recorded| {
        let id = request.body["metadata"]["business_id"].as_str().unwrap().to_owned();
        id.rsplit(':').next().unwrap().parse::<u128>().unwrap()
    };
    let told: Vec<u128> = requests.iter().filter(of_late).map(order).collect();
    assert_eq!(told, wanted, "each once, in order");
    stage.outbox("done", count).await;
    stage.stop(watcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_whose_call_would_revert_holds_up_none_that_come_after_it() {
    let stage = Stage::new().await;
    stage.ask(1).await;
    stage.ask(2).await;
    stage.anvil.mine(3).await;
    stage.server.always(Some((422, "", json!({ "code": "would-revert" }))));
    let watcher = stage.watcher();
    stage.ordered(2).await;
    assert_eq!((stage.count("ready"), stage.count("parked")), (2, 0));
    stage.server.always(None);
    stage.outbox("done", 2).await;
    stage.stop(watcher).await;
}
