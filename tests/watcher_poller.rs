//! The poller against nodes that lie, lag and reorganize, with the real database.

#![cfg(feature = "watcher")]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support {
    pub mod lying_chain;
    pub mod many_nodes;
}

#[path = "polling/behind.rs"]
mod behind;
#[path = "polling/halts.rs"]
mod halts;
#[path = "polling/late.rs"]
mod late;
#[path = "polling/nodes.rs"]
mod nodes;
#[path = "polling/second_read.rs"]
mod second_read;

use alloy::primitives::{Address, B256, U256};
use async_trait::async_trait;
use claviger::bus::embedded::{Step, lanes, subscribers};
use claviger::config::file::parse;
use claviger::core::time::Timestamp;
use claviger::ports::bus::{Consumer, Kind, Message, Outcome, Wait};
use claviger::ports::chain_reader::ChainReader;
use claviger::ports::clock::Clock;
use claviger::ports::watch_store::{WatchStatus, WatchStore};
use claviger::watch::plan::{ChainPlan, Plan};
use claviger::watch::poller::{Parts, Poller, Progress, StepError};
use claviger::watch::store::{OpenMode, open};
use serde_json::Value;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use support::lying_chain::{Lie, LyingChain};
use tempfile::TempDir;

const CONTRACT: Address = Address::repeat_byte(0xcc);
const DEPTH: u64 = 3;

/// A clock that stands still until it is told otherwise.
#[derive(Default)]
struct TestClock(AtomicI64);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::SeqCst))
    }
}

/// A consumer that keeps what it was given.
struct RecordingConsumer {
    wait: Wait,
    source: String,
    taken: Mutex<Vec<Message>>,
}

#[async_trait]
impl Consumer for RecordingConsumer {
    fn name(&self) -> &str {
        match self.wait {
            Wait::Head => "at-head",
            Wait::Final => "at-final",
        }
    }

    fn subscriptions(&self) -> Vec<(String, Wait)> {
        vec![(self.source.clone(), self.wait)]
    }

    async fn deliver(&self, message: &Message) -> Outcome {
        self.taken.lock().unwrap().push(message.clone());
        Outcome::Done("taken".to_owned())
    }
}

/// A watcher in this process.
struct Stage {
    chain: Arc<LyingChain>,
    store: Arc<dyn WatchStore>,
    clock: Arc<TestClock>,
    head: Arc<RecordingConsumer>,
    finals: Arc<RecordingConsumer>,
    source: String,
    plan: ChainPlan,
    poller: Poller,
    _folder: TempDir,
}

fn plan(source: &str, from_block: u64) -> ChainPlan {
    let text = format!(
        r#"
        [store]
        url = "sqlite:unused"
        [[chain]]
        name = "local"
        chain_id = 31337
        rpc = ["http://unused"]
        finality = {{ depth = {DEPTH} }}
        window_blocks = 16
        [[source]]
        name = "{source}"
        chain = "local"
        address = "{CONTRACT:#x}"
        event = "Asked(uint256 indexed orderId, uint256 amount)"
        from_block = {from_block}
        "#
    );
    let config = parse(Path::new("test.toml"), &text, std::iter::empty()).unwrap();
    Plan::new(config).unwrap().chains.remove(0)
}

/// The logs of a block that asks for this order.
fn asked(order: u64) -> Vec<(Address, Vec<B256>, Vec<u8>)> {
    let topic0 = plan("any", 0).sources[0].event().unwrap().topic0();
    let topics = vec![topic0, B256::from(U256::from(order))];
    vec![(CONTRACT, topics, U256::from(order * 10).to_be_bytes_vec())]
}

impl Stage {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("watcher.db").display());
        let store = open(&url, OpenMode::Create).await.unwrap();
        let chain = Arc::new(LyingChain::new(31337, DEPTH));
        Self::on(chain, store, folder, "asked", 0)
    }

    /// A new database, and these nodes; the first of them is `chain`.
    async fn among(chain: &LyingChain, nodes: Arc<dyn ChainReader>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("watcher.db").display());
        let store = open(&url, OpenMode::Create).await.unwrap();
        Self::with(Arc::new(chain.clone()), nodes, store, folder, plan("asked", 0), &[])
    }

    fn on(
        chain: Arc<LyingChain>,
        store: Arc<dyn WatchStore>,
        folder: TempDir,
        source: &str,
        from_block: u64,
    ) -> Self {
        let plan = plan(source, from_block);
        Self::with(chain.clone(), chain, store, folder, plan, &[])
    }

    /// `late` are consumers that take what was found before them.
    fn with(
        chain: Arc<LyingChain>,
        nodes: Arc<dyn ChainReader>,
        store: Arc<dyn WatchStore>,
        folder: TempDir,
        plan: ChainPlan,
        late: &[(String, Wait)],
    ) -> Self {
        let source = plan.sources[0].name.clone();
        let consumer = |wait| {
            let (source, taken) = (source.clone(), Mutex::default());
            Arc::new(RecordingConsumer { wait, source, taken })
        };
        let (head, finals) = (consumer(Wait::Head), consumer(Wait::Final));
        let clock = Arc::new(TestClock::default());
        let consumers: Vec<Arc<dyn Consumer>> = vec![head.clone(), finals.clone()];
        let poller = Poller::new(Parts {
            plan: plan.clone(),
            chain: nodes,
            store: store.clone(),
            clock: clock.clone(),
            subscribers: [(source.clone(), subscribers(&consumers, &source))].into(),
            since_beginning: [(source.clone(), late.to_vec())].into(),
        });
        Self { chain, store, clock, head, finals, source, plan, poller, _folder: folder }
    }

    /// The same database and chain, as another process finds them.
    fn restarted(self, source: &str, from_block: u64) -> Self {
        Self::on(self.chain, self.store, self._folder, source, from_block)
    }

    /// Polls until nothing is left to take, then delivers until nothing is due.
    async fn run(&mut self) -> Result<(), StepError> {
        self.poll().await?;
        let (store, clock) = (self.store.clone(), self.clock.clone() as Arc<dyn Clock>);
        let consumers: Vec<Arc<dyn Consumer>> = vec![self.head.clone(), self.finals.clone()];
        for lane in lanes(&store, &clock, &consumers) {
            while lane.step().await.unwrap() == Step::Moved {}
        }
        Ok(())
    }

    /// Polls until nothing is left to take.
    async fn poll(&mut self) -> Result<(), StepError> {
        while self.poller.step().await? == Progress::More {}
        Ok(())
    }

    async fn cursor(&self) -> u64 {
        self.store.load("local").await.unwrap().map_or(0, |state| state.cursor.number)
    }

    async fn status(&self) -> WatchStatus {
        self.store.status().await.unwrap()
    }
}

/// Orders that a consumer was told of, with `-` before those taken back.
fn orders(consumer: &RecordingConsumer) -> Vec<String> {
    let order = |message: &Message| {
        let event: Value = serde_json::from_str(&message.body).unwrap();
        let order = event["data"]["args"]["orderId"].as_str().unwrap().to_owned();
        match message.kind {
            Kind::Log => order,
            Kind::Retraction => format!("-{order}"),
        }
    };
    consumer.taken.lock().unwrap().iter().map(order).collect()
}

#[tokio::test]
async fn events_are_told_at_the_head_and_to_triggers_when_final() {
    let mut stage = Stage::new().await;
    stage.chain.mine(&asked(1));
    stage.run().await.unwrap();
    assert_eq!((orders(&stage.head), orders(&stage.finals)), (vec!["1".to_owned()], Vec::new()));
    stage.chain.mine_empty(DEPTH - 1);
    stage.run().await.unwrap();
    assert!(orders(&stage.finals).is_empty(), "one block short");
    stage.chain.mine(&asked(2));
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.finals), ["1"]);
    assert_eq!(orders(&stage.head), ["1", "2"]);
}

#[tokio::test]
async fn the_document_is_a_cloud_event() {
    let mut stage = Stage::new().await;
    let block = stage.chain.mine(&asked(1));
    stage.run().await.unwrap();
    let message = stage.head.taken.lock().unwrap()[0].clone();
    let event: Value = serde_json::from_str(&message.body).unwrap();
    assert_eq!(event["specversion"], "1.0");
    assert_eq!(event["type"], "claviger.chain.log");
    assert_eq!(event["source"], "/chains/local/sources/asked");
    assert_eq!(event["id"], message.event_id);
    assert!(message.event_id.starts_with(&format!("local:{}:0x", block.hash)));
    assert_eq!(event["data"]["args"]["amount"], "10");
    assert_eq!(event["data"]["block_number"], 1);
    assert_eq!(event["data"]["topics"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn e1_missing_logs_do_not_pass_the_cursor() {
    for lie in [Lie::NoLogs, Lie::CutLogs, Lie::UnknownBlock] {
        let mut stage = Stage::new().await;
        stage.run().await.unwrap();
        stage.chain.mine(&asked(1));
        stage.chain.lie(Some(lie));
        let refused = stage.run().await.unwrap_err();
        assert!(!matches!(refused, StepError::Halted(_)), "{refused}");
        assert_eq!(stage.cursor().await, 0, "{lie:?}");
        stage.chain.lie(None);
        stage.run().await.unwrap();
        assert_eq!((stage.cursor().await, orders(&stage.head)), (1, vec!["1".to_owned()]));
    }
}

#[tokio::test]
async fn a_false_positive_of_the_filter_is_no_fault() {
    let mut stage = Stage::new().await;
    // The contract and the event's topic are both in the filter, but in no log together.
    let mut logs = asked(1);
    logs[0].0 = Address::repeat_byte(0x01);
    logs.push((CONTRACT, vec![B256::repeat_byte(0x02)], Vec::new()));
    stage.chain.mine(&logs);
    stage.run().await.unwrap();
    assert_eq!((stage.cursor().await, orders(&stage.head).len()), (1, 0));
}

#[tokio::test]
async fn unlinked_blocks_are_not_taken() {
    let mut stage = Stage::new().await;
    stage.run().await.unwrap();
    stage.chain.mine_empty(1);
    stage.chain.mine(&asked(1));
    stage.chain.lie(Some(Lie::Unlinked));
    assert!(matches!(stage.run().await, Err(StepError::Inconsistent(_))));
    assert_eq!(stage.cursor().await, 0);
    stage.chain.lie(None);
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["1"]);
}

#[tokio::test]
async fn a_lagging_node_changes_nothing() {
    let mut stage = Stage::new().await;
    stage.run().await.unwrap();
    stage.chain.mine(&asked(1));
    stage.chain.mine_empty(5);
    stage.run().await.unwrap();
    stage.chain.lie(Some(Lie::Behind(4)));
    stage.run().await.unwrap();
    assert_eq!(stage.cursor().await, 6);
    stage.chain.lie(None);
    stage.chain.mine(&asked(2));
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["1", "2"]);
}

#[tokio::test]
async fn e14_heads_that_skip_blocks_leave_no_hole() {
    for skipped in [1, 50, 5000] {
        let mut stage = Stage::new().await;
        stage.run().await.unwrap();
        let mut wanted = Vec::new();
        for order in 0..skipped {
            // Of thousands of blocks, one in 101 has an event: near the ends of batches and not.
            if skipped <= 50 || order % 101 == 0 || order == skipped - 1 {
                stage.chain.mine(&asked(order));
                wanted.push(order.to_string());
            } else {
                stage.chain.mine_empty(1);
            }
        }
        stage.run().await.unwrap();
        assert_eq!((stage.cursor().await, orders(&stage.head)), (skipped, wanted));
    }
}

#[tokio::test]
async fn a_reorg_retracts_with_the_original_id_and_a_held_trigger_never_runs() {
    let mut stage = Stage::new().await;
    stage.chain.mine_empty(4);
    stage.chain.mine(&asked(1));
    stage.run().await.unwrap();
    stage.chain.drop_blocks(1);
    stage.chain.mine(&asked(2));
    stage.chain.mine_empty(DEPTH);
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["1", "-1", "2"]);
    assert_eq!(orders(&stage.finals), ["2"], "what was retracted is never triggered");
    let told = stage.head.taken.lock().unwrap().clone();
    assert_eq!(told[0].event_id, told[1].event_id);
    let retraction: Value = serde_json::from_str(&told[1].body).unwrap();
    assert_eq!(retraction["type"], "claviger.chain.log.retracted");
    assert_eq!(retraction["id"], told[0].event_id);
}

#[tokio::test]
async fn e10_the_same_transaction_mined_again_is_triggered_once() {
    let mut stage = Stage::new().await;
    stage.chain.mine_empty(4);
    stage.chain.mine(&asked(1));
    stage.run().await.unwrap();
    stage.chain.drop_blocks(1);
    stage.chain.mine_empty(1);
    stage.chain.mine(&asked(1));
    stage.chain.mine_empty(DEPTH);
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["1", "-1", "1"]);
    assert_eq!(orders(&stage.finals), ["1"]);
}

#[tokio::test]
async fn e6_a_reorg_while_the_watcher_is_down_is_seen_at_start() {
    let mut stage = Stage::new().await;
    stage.chain.mine_empty(4);
    stage.chain.mine(&asked(1));
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["1"]);
    let mut stage = stage.restarted("asked", 0);
    stage.chain.drop_blocks(2);
    stage.chain.mine_empty(1);
    stage.chain.mine(&asked(2));
    stage.chain.mine_empty(30);
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["-1", "2"]);
    assert_eq!(orders(&stage.finals), ["2"]);
}

#[tokio::test]
async fn e8_a_reorg_below_finality_halts_the_chain() {
    let mut stage = Stage::new().await;
    stage.chain.mine(&asked(1));
    stage.chain.mine_empty(5);
    stage.run().await.unwrap();
    let before = stage.cursor().await;
    stage.chain.drop_blocks(5);
    stage.chain.mine_empty(9);
    let halted = stage.run().await.unwrap_err();
    assert!(matches!(halted, StepError::Halted(_)), "{halted}");
    assert!(matches!(stage.run().await, Err(StepError::Halted(_))), "and stays so");
    assert_eq!(stage.cursor().await, before, "nothing is rolled back");
    assert!(stage.status().await.chains[0].halted.is_some());
    assert_eq!(orders(&stage.head), ["1"]);
}

#[tokio::test]
async fn another_chain_behind_the_url_halts() {
    let mut stage = Stage::new().await;
    stage.run().await.unwrap();
    let other = Arc::new(LyingChain::new(1, DEPTH));
    let Stage { store, _folder, .. } = stage;
    let mut stage = Stage::on(other, store, _folder, "asked", 0);
    assert!(matches!(stage.run().await, Err(StepError::Halted(_))));
}

#[tokio::test]
async fn e30_a_log_that_does_not_decode_is_parked_and_the_stream_goes_on() {
    let mut stage = Stage::new().await;
    let mut logs = asked(1);
    logs[0].2.truncate(31);
    logs.extend(asked(2));
    stage.chain.mine(&logs);
    stage.chain.mine(&asked(3));
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["2", "3"]);
    let attention = stage.status().await.attention;
    assert_eq!(attention.len(), 1);
    assert!(attention[0].reason.contains("undecodable"), "{}", attention[0].reason);
}

#[tokio::test]
async fn e32_a_new_source_with_an_old_start_joins_without_hole_or_double() {
    let mut stage = Stage::new().await;
    let mut wanted = Vec::new();
    for order in 0..150_u64 {
        stage.chain.mine(&asked(order));
        wanted.push(order.to_string());
    }
    stage.run().await.unwrap();
    let mut stage = stage.restarted("late", 1);
    stage.chain.mine(&asked(150));
    wanted.push("150".to_owned());
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), wanted);
    stage.chain.mine_empty(DEPTH);
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.finals), wanted);
    assert_eq!(stage.source, "late");
}

#[tokio::test]
async fn blocks_that_are_read_again_tell_nothing_twice() {
    let mut stage = Stage::new().await;
    for order in 0..5 {
        stage.chain.mine(&asked(order));
    }
    stage.run().await.unwrap();
    assert!(stage.store.rewind("asked", 1).await.unwrap());
    stage.chain.mine(&asked(5));
    // The running poller's own place is no longer right; it loads the new one.
    assert!(matches!(stage.run().await, Err(StepError::Store(_))));
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["0", "1", "2", "3", "4", "5"]);
    assert_eq!(stage.status().await.chains[0].sources[0].next_block, 7);
}

#[tokio::test]
async fn a_node_that_is_far_behind_is_not_a_reorg() {
    let mut stage = Stage::new().await;
    stage.chain.mine_empty(60);
    stage.run().await.unwrap();
    stage.chain.lie(Some(Lie::Behind(50)));
    assert!(matches!(stage.run().await, Err(StepError::Inconsistent(_))));
    stage.chain.lie(None);
    stage.chain.mine(&asked(1));
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["1"]);
}

#[tokio::test]
async fn e36_two_watchers_over_one_database_tell_each_event_once() {
    let mut one = Stage::new().await;
    one.chain.mine_empty(2);
    one.run().await.unwrap();
    let (chain, store) = (one.chain.clone(), one.store.clone());
    let mut two = Stage::on(chain, store, tempfile::tempdir().unwrap(), "asked", 0);
    two.run().await.unwrap();
    for order in 0..20 {
        one.chain.mine(&asked(order));
        // The slower one finds that the cursor has moved, loads again and goes on.
        let (first, second) = tokio::join!(one.run(), two.run());
        for outcome in [first, second] {
            assert!(!matches!(outcome, Err(StepError::Halted(_))), "{outcome:?}");
        }
    }
    one.run().await.unwrap();
    two.run().await.unwrap();
    let mut told = [orders(&one.head), orders(&two.head)].concat();
    told.sort_by_key(|order| order.parse::<u64>().unwrap());
    assert_eq!(told, (0..20).map(|order| order.to_string()).collect::<Vec<_>>());
}
