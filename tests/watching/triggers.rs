//! A trigger in this process: a chain in memory, the real database, and a listener in the server's place.

use super::support::lying_chain::{Lie, LyingChain};
use super::support::many_nodes::ManyNodes;
use super::support::recording_server::RecordingServer;
use alloy::primitives::{Address, B256, U256};
use claviger::config::file::parse;
use claviger::core::time::Timestamp;
use claviger::ports::bus::{Arrival, Consumer, Inbox as _, Kind, Message, Outcome, Taken};
use claviger::ports::chain::{Block, Log};
use claviger::ports::chain_reader::ChainReader;
use claviger::ports::clock::Clock;
use claviger::ports::watch_store::{Parked, ParkedFrom, WatchStore};
use claviger::watch::cloudevent;
use claviger::watch::inbox::TriggerInbox;
use claviger::watch::plan::Plan;
use claviger::watch::server::Server;
use claviger::watch::store::{OpenMode, open};
use claviger::watch::trigger::{Means, TriggerConsumer};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use tempfile::TempDir;

const CONTRACT: Address = Address::repeat_byte(0xcc);
/// Blocks so far below the head are final for the source.
const DEPTH: u64 = 2;
/// Longer than what time may heal is tried.
const TOO_LONG_MS: i64 = 11 * 60_000;

#[derive(Default)]
struct TestClock(AtomicI64);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::SeqCst))
    }
}

struct Stage {
    chain: LyingChain,
    server: RecordingServer,
    clock: Arc<TestClock>,
    folder: TempDir,
    more: &'static str,
    trigger: TriggerConsumer,
}

fn plan(folder: &Path, server: &str, more: &str) -> Plan {
    let text = format!(
        r#"
        [store]
        url = "sqlite:unused"
        [server]
        url = "{server}"
        token_file = "{token}"
        [[chain]]
        name = "local"
        chain_id = 31337
        rpc = ["http://unused"]
        finality = {{ depth = {DEPTH} }}
        [[source]]
        name = "asked"
        chain = "local"
        address = "{CONTRACT:#x}"
        event = "Asked(uint256 indexed orderId, uint256 amount)"
        [[trigger]]
        name = "charge"
        source = "asked"
        signer = "payments"
        function = "executeCharge(uint256 orderId, uint256 amount)"
        args = {{ orderId = "orderId", amount = "amount" }}
        business_id = ["{{chain}}", "{{contract}}", "orderId"]
        {more}
        "#,
        token = folder.join("token").display(),
    );
    Plan::new(parse(Path::new("test.toml"), &text, std::iter::empty()).unwrap()).unwrap()
}

impl Stage {
    async fn new(more: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "the-token").unwrap();
        let server = RecordingServer::start().await;
        let (chain, clock) = (LyingChain::new(31337, DEPTH), Arc::new(TestClock::default()));
        clock.0.store(1_000_000, Ordering::SeqCst);
        let url = format!("sqlite:{}", folder.path().join("watcher.db").display());
        let store = open(&url, OpenMode::Create).await.unwrap();
        let asked: Arc<dyn ChainReader> = Arc::new(chain.clone());
        let trigger = trigger(&folder, &server, asked, &clock, more, store);
        Self { chain, server, clock, folder, more, trigger }
    }

    /// The same trigger after a restart.
    async fn restarted(self) -> Self {
        let chain = Arc::new(self.chain.clone());
        self.asking(chain).await
    }

    /// The same trigger after a restart, with other nodes.
    async fn asking(mut self, chain: Arc<dyn ChainReader>) -> Self {
        let url = format!("sqlite:{}", self.folder.path().join("watcher.db").display());
        let store = open(&url, OpenMode::Existing).await.unwrap();
        let (server, clock) = (&self.server, &self.clock);
        self.trigger = trigger(&self.folder, server, chain, clock, self.more, store);
        self
    }

    /// Mines an order, and what makes it final.
    fn mine(&self, order: u64) -> (Block, Value) {
        let block = self.chain.mine(&[log(order)]);
        self.chain.mine_empty(DEPTH);
        let told = document(&block, order);
        (block, told)
    }

    async fn deliver(&self, document: &Value) -> Outcome {
        self.trigger.deliver(&message(Kind::Log, document)).await
    }

    fn later(&self, ms: i64) {
        self.clock.0.fetch_add(ms, Ordering::SeqCst);
    }

    fn asked(&self) -> usize {
        self.server.requests().len()
    }
}

/// More sources of the same event; the trigger is of none of them.
const MORE_SOURCES: &str = r#"
    [[source]]
    name = "others"
    chain = "local"
    address = "0xdddddddddddddddddddddddddddddddddddddddd"
    event = "Asked(uint256 indexed orderId, uint256 amount)"
    [[source]]
    name = "same"
    chain = "local"
    address = "0xcccccccccccccccccccccccccccccccccccccccc"
    event = "Asked(uint256 indexed orderId, uint256 amount)"
    [[source]]
    name = "any"
    chain = "local"
    event = "Asked(uint256 indexed orderId, uint256 amount)"
"#;

#[tokio::test]
async fn what_a_queue_has_of_a_source_that_the_trigger_had_before_is_kept() {
    let stage = Stage::new(MORE_SOURCES).await;
    let (block, told) = stage.mine(7);
    let mut plan = plan(stage.folder.path(), &stage.server.url(), MORE_SOURCES);
    let url = format!("sqlite:{}", stage.folder.path().join("watcher.db").display());
    let store = open(&url, OpenMode::Existing).await.unwrap();
    let clock: Arc<dyn Clock> = stage.clock.clone();
    let trigger: Arc<dyn Consumer> = Arc::new(stage.trigger);
    let chains = std::mem::take(&mut plan.chains);
    let of = plan.triggers.remove(0);
    let inbox = TriggerInbox::new(trigger, &of, &chains, store.clone(), clock);
    let written = |name: &str, address: Address| {
        let source = chains[0].sources.iter().find(|source| source.name == name).unwrap();
        let log = Log { address, ..mined(&block, 7) };
        let decoded = source.event().unwrap().decode(&log.topics, &log.data).unwrap();
        cloudevent::log("local", source, &block, &log, &decoded).to_string()
    };
    let take =
        async |text: String| inbox.take(Arrival { bytes: text.as_bytes(), given_up: None }).await;
    // These have the trigger's routing key: its queue gets what is not meant for it.
    for name in ["same", "any"] {
        assert_eq!(take(written(name, CONTRACT)).await, Taken::Settled);
    }
    assert_eq!(take(told.to_string()).await, Taken::Later(1000), "its own, and too early");
    let parked = async || store.parked_page(ParkedFrom::default(), 9).await.unwrap().items;
    assert_eq!(parked().await, []);
    let other = written("others", Address::repeat_byte(0xdd));
    assert_eq!(take(other.clone()).await, Taken::Settled);
    let parked = parked().await;
    let [Parked::Unreadable(kept)] = &parked[..] else { panic!("{parked:?}") };
    assert_eq!(kept.bytes.as_ref(), other.as_bytes());
    assert!(kept.reason.contains("of source others"), "{}", kept.reason);
}

fn trigger(
    folder: &TempDir,
    server: &RecordingServer,
    chain: Arc<dyn ChainReader>,
    clock: &Arc<TestClock>,
    more: &str,
    store: Arc<dyn WatchStore>,
) -> TriggerConsumer {
    let mut plan = plan(folder.path(), &server.url(), more);
    let means = Means {
        server: Arc::new(Server::new(plan.server.as_ref().unwrap()).unwrap()),
        chain,
        store,
        clock: Arc::<TestClock>::clone(clock),
    };
    TriggerConsumer::new(plan.triggers.remove(0), means)
}

fn topic0() -> B256 {
    alloy::primitives::keccak256("Asked(uint256,uint256)")
}

fn log(order: u64) -> (Address, Vec<B256>, Vec<u8>) {
    let topics = vec![topic0(), B256::from(U256::from(order))];
    (CONTRACT, topics, U256::from(order * 10).to_be_bytes_vec())
}

/// That log in its block.
fn mined(block: &Block, order: u64) -> Log {
    let (address, topics, data) = log(order);
    Log {
        address,
        topics,
        transaction_hash: alloy::primitives::keccak256(&data),
        data: data.into(),
        block_number: block.number,
        block_hash: block.hash,
        log_index: 0,
    }
}

/// What a watcher would write of such a log.
fn written(block: &Block, log: &Log) -> Value {
    let mut plan = plan(Path::new("unused"), "http://127.0.0.1:1", "");
    let source = plan.chains.remove(0).sources.remove(0);
    let decoded = source.event().unwrap().decode(&log.topics, &log.data).unwrap();
    cloudevent::log("local", &source, block, log, &decoded)
}

fn document(block: &Block, order: u64) -> Value {
    written(block, &mined(block, order))
}

fn message(kind: Kind, document: &Value) -> Message {
    Message {
        kind,
        source: "asked".to_owned(),
        event_id: document["id"].as_str().unwrap().to_owned(),
        body: document.to_string(),
    }
}

fn is_retry(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Retry { .. })
}

fn steps_aside(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Aside(_))
}

fn parked(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Park(reason) => reason,
        other => panic!("not parked: {other:?}"),
    }
}

#[tokio::test]
async fn what_the_chain_does_not_say_makes_no_request_whoever_wrote_it_down() {
    let stage = Stage::new("").await;
    stage.chain.give_receipts();
    let (block, truth) = stage.mine(7);
    let log = mined(&block, 7);
    let data = B256::from(U256::from(71)).to_vec().into();
    let topics = vec![topic0(), B256::from(U256::from(8))];
    for (what, invented) in [
        ("another amount", Log { data, ..log.clone() }),
        ("another order", Log { topics, ..log.clone() }),
        ("another transaction", Log { transaction_hash: B256::repeat_byte(9), ..log.clone() }),
        ("another height", Log { block_number: 2, ..log.clone() }),
        ("a log that there is not", Log { log_index: 5, ..log.clone() }),
    ] {
        let outcome = stage.deliver(&written(&block, &invented)).await;
        assert!(parked(&outcome).contains("the chain says otherwise"), "{what}: {outcome:?}");
    }
    let other = written(&block, &Log { address: Address::repeat_byte(1), ..log.clone() });
    assert!(parked(&stage.deliver(&other).await).contains("not the source's contract"));
    // A document that does not agree with itself is none of ours.
    let mut torn = truth.clone();
    torn["data"]["args"]["amount"] = json!("71");
    assert!(parked(&stage.deliver(&torn).await).contains("args"));
    assert_eq!(stage.asked(), 0);
    assert!(matches!(stage.deliver(&truth).await, Outcome::Done(_)));
    assert_eq!(stage.asked(), 1);
}

#[tokio::test]
async fn what_a_node_does_not_have_is_tried_again_and_parked_when_it_takes_too_long() {
    let stage = Stage::new("").await;
    let (block, truth) = stage.mine(7);
    let elsewhere = Log { block_hash: B256::repeat_byte(9), ..mined(&block, 7) };
    let nowhere = written(&block, &elsewhere);
    assert!(steps_aside(&stage.deliver(&nowhere).await));
    // A node that says nothing of a block that has logs is behind, and lies no more later.
    stage.chain.lie(Some(Lie::NoLogs));
    assert!(steps_aside(&stage.deliver(&truth).await));
    stage.chain.lie(Some(Lie::Behind(1)));
    assert!(is_retry(&stage.deliver(&truth).await), "not final there");
    stage.chain.lie(None);
    assert_eq!(stage.asked(), 0);
    assert!(matches!(stage.deliver(&truth).await, Outcome::Done(_)));
    stage.later(TOO_LONG_MS);
    let stage = stage.restarted().await;
    assert!(parked(&stage.deliver(&nowhere).await).contains("not on the chain"));
    assert_eq!(stage.asked(), 1);
}

#[tokio::test]
async fn an_event_that_left_the_chain_makes_no_request() {
    let stage = Stage::new("").await;
    let (_, orphan) = stage.mine(7);
    stage.chain.drop_blocks(3);
    stage.chain.mine_empty(5);
    assert!(steps_aside(&stage.deliver(&orphan).await));
    assert_eq!(stage.asked(), 0);
}

#[tokio::test]
async fn a_server_whose_node_is_behind_is_asked_again_for_a_while() {
    let stage = Stage::new("").await;
    let (_, truth) = stage.mine(7);
    let behind = json!({ "code": "policy-denied", "reasons": [{ "field": "event" }] });
    stage.server.always(Some((403, "", behind)));
    assert!(steps_aside(&stage.deliver(&truth).await));
    stage.later(TOO_LONG_MS / 2);
    // What else is in the way meanwhile does not make it longer.
    stage.server.script([(503, "", json!({ "code": "overloaded" }))]);
    assert!(is_retry(&stage.deliver(&truth).await));
    stage.later(TOO_LONG_MS / 2 + 1);
    assert!(parked(&stage.deliver(&truth).await).contains("policy-denied"));
    // An operator's `retry` begins anew.
    assert!(steps_aside(&stage.deliver(&truth).await));
    let early = json!({ "code": "policy-denied", "reasons": [{ "field": "event.finalized" }] });
    stage.server.always(Some((403, "", early)));
    stage.later(TOO_LONG_MS);
    assert!(is_retry(&stage.deliver(&truth).await), "it will be final, or it will be gone");
    stage.server.always(None);
    assert!(matches!(stage.deliver(&truth).await, Outcome::Done(_)));
}

#[tokio::test]
async fn above_its_rate_events_wait_and_none_is_lost_and_a_restart_keeps_the_count() {
    let stage = Stage::new("rate = \"2/1m\"").await;
    let told: Vec<Value> = (1..=4).map(|order| stage.mine(order).1).collect();
    for first in &told[..2] {
        assert!(matches!(stage.deliver(first).await, Outcome::Done(_)));
    }
    let waits = stage.deliver(&told[2]).await;
    let Outcome::Retry { after_ms: Some(wait), error } = &waits else { panic!("{waits:?}") };
    assert_eq!((*wait, error.contains("above its rate of 2/1m")), (30_000, true), "{error}");
    let stage = stage.restarted().await;
    assert!(is_retry(&stage.deliver(&told[2]).await), "the count is not the process's");
    assert_eq!(stage.asked(), 2);
    stage.later(30_000);
    // Admitted once: a server that is down does not cost it a second token.
    stage.server.script([(503, "", json!({ "code": "overloaded" }))]);
    assert!(is_retry(&stage.deliver(&told[2]).await));
    assert!(matches!(stage.deliver(&told[2]).await, Outcome::Done(_)));
    assert!(is_retry(&stage.deliver(&told[3]).await));
    stage.later(30_000);
    assert!(matches!(stage.deliver(&told[3]).await, Outcome::Done(_)));
    assert_eq!(stage.server.by_key().len(), 4);
}

#[tokio::test]
async fn an_event_that_the_trigger_itself_has_caused_is_parked() {
    for (more, is_cut) in [("", true), ("loop = \"allow\"", false)] {
        let stage = Stage::new(more).await;
        let (_, caused) = stage.mine(7);
        let first = caused["data"]["transaction_hash"].as_str().unwrap();
        let middle = format!("{:#x}", B256::repeat_byte(5));
        // Another trigger's request, which answers an event that a request of this one caused.
        let other = json!({
            "id": "r-2", "metadata": { "trigger": "other" }, "source": { "transaction_hash": middle },
        });
        stage.server.is_cause(first, other);
        let own = json!({ "id": "r-1", "metadata": { "trigger": "charge" } });
        stage.server.is_cause(&middle, own);
        let outcome = stage.deliver(&caused).await;
        assert_eq!(stage.asked(), usize::from(!is_cut), "{outcome:?}");
        if is_cut {
            let reason = parked(&outcome);
            assert!(reason.contains("a loop") && reason.contains("r-1"), "{reason}");
        }
        let (_, free) = stage.mine(8);
        assert!(matches!(stage.deliver(&free).await, Outcome::Done(_)), "{more}");
    }
}

#[tokio::test]
async fn the_same_business_in_another_block_is_linked_and_another_one_is_not() {
    let stage = Stage::new("").await;
    let (_, first) = stage.mine(7);
    let Outcome::Done(id) = stage.deliver(&first).await else { panic!("it was not asked for") };
    stage.chain.drop_blocks(3);
    let (_, again) = stage.mine(7);
    assert_ne!(first["id"], again["id"]);
    let Outcome::Done(linked) = stage.deliver(&again).await else { panic!("it was not linked") };
    assert!(linked.starts_with(&id) && linked.contains("mined again"), "{linked}");
    // Of the linked one the server knows nothing; of the first it does.
    let told = stage.trigger.deliver(&message(Kind::Retraction, &again)).await;
    assert!(matches!(told, Outcome::Done(text) if text.contains("another event")));
    assert!(stage.server.retractions().is_empty());
    let told = stage.trigger.deliver(&message(Kind::Retraction, &first)).await;
    assert!(matches!(told, Outcome::Done(text) if text.contains("flagged")));
    let (path, body) = stage.server.retractions().remove(0);
    assert_eq!(path, format!("/v1/transactions/{id}/retraction"));
    assert_eq!(body["source"]["block_hash"], first["data"]["block_hash"]);
    // What ended without doing it does not do it for the other one either.
    stage.server.ends_as("failed");
    let failed = stage.deliver(&again).await;
    assert!(parked(&failed).contains("is failed"), "{failed:?}");
    let (_, never) = stage.mine(9);
    let told = stage.trigger.deliver(&message(Kind::Retraction, &never)).await;
    assert!(matches!(told, Outcome::Done(text) if text.contains("no request")));
}

#[tokio::test]
async fn a_node_that_stands_still_holds_up_nothing_that_another_node_has() {
    let stage = Stage::new("").await;
    let other = LyingChain::new(31337, DEPTH);
    let (block, truth) = stage.mine(7);
    assert_eq!(other.mine(&[log(7)]), block);
    other.mine_empty(DEPTH);
    // It has the block and the log, and its final block is below them for ever.
    stage.chain.lie(Some(Lie::Behind(1)));
    other.lie(Some(Lie::Behind(1)));
    let nodes = ManyNodes::of(&[stage.chain.clone(), other.clone()]);
    let stage = stage.asking(Arc::new(nodes)).await;
    assert!(is_retry(&stage.deliver(&truth).await), "final at none of them");
    other.lie(None);
    assert!(matches!(stage.deliver(&truth).await, Outcome::Done(_)));
}

#[tokio::test]
async fn a_log_that_a_nodes_list_leaves_out_is_looked_for_in_its_receipts_and_at_other_nodes() {
    let stage = Stage::new("").await;
    let other = LyingChain::new(31337, DEPTH);
    let block = stage.chain.mine(&[log(6), log(7)]);
    stage.chain.mine_empty(DEPTH);
    assert_eq!(other.mine(&[log(6), log(7)]), block);
    other.mine_empty(DEPTH);
    let truth = written(&block, &Log { log_index: 1, ..mined(&block, 7) });
    stage.chain.lie(Some(Lie::CutLogs));
    let outcome = stage.deliver(&truth).await;
    assert!(steps_aside(&outcome), "a list with a gap contradicts nothing: {outcome:?}");
    let nodes = ManyNodes::of(&[stage.chain.clone(), other]);
    let stage = stage.asking(Arc::new(nodes)).await;
    assert!(matches!(stage.deliver(&truth).await, Outcome::Done(_)), "the other one has it");
    let stage = stage.restarted().await;
    stage.chain.give_receipts();
    assert!(matches!(stage.deliver(&truth).await, Outcome::Done(_)), "its receipts have it");
    let invented = Log { data: B256::from(U256::from(71)).to_vec().into(), ..mined(&block, 7) };
    let invented = written(&block, &Log { log_index: 1, ..invented });
    assert!(parked(&stage.deliver(&invented).await).contains("the chain says otherwise"));
}

#[tokio::test]
async fn a_request_without_a_nonce_for_the_block_before_is_taken_back_and_asked_for_anew() {
    let stage = Stage::new("").await;
    let (_, first) = stage.mine(7);
    assert!(matches!(stage.deliver(&first).await, Outcome::Done(_)));
    stage.server.ends_as("queued");
    stage.chain.drop_blocks(3);
    let (_, again) = stage.mine(7);
    // The server's nodes have not seen it yet: it waits for as long as that takes, and holds up nobody.
    stage.server.refuse_retractions(true);
    for _ in 0..2 {
        let outcome = stage.deliver(&again).await;
        assert!(steps_aside(&outcome), "{outcome:?}");
        stage.later(TOO_LONG_MS);
    }
    stage.server.refuse_retractions(false);
    let outcome = stage.deliver(&again).await;
    assert!(is_retry(&outcome), "{outcome:?}");
    let told: Vec<Value> = stage.server.retractions().into_iter().map(|(_, body)| body).collect();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["source"]["block_hash"], first["data"]["block_hash"]);
    let Outcome::Done(id) = stage.deliver(&again).await else { panic!("it was not asked for") };
    assert!(!id.contains("linked"), "{id}");
    let last = stage.server.requests().pop().unwrap();
    assert_eq!(last.body["source"]["block_hash"], again["data"]["block_hash"]);
    // The retraction of the first one, should it be told late, finds a request that is not its own.
    let late = stage.trigger.deliver(&message(Kind::Retraction, &first)).await;
    assert!(matches!(late, Outcome::Done(text) if text.contains("another event")));
}

#[tokio::test]
async fn what_was_written_under_other_names_is_told_under_the_present_ones() {
    let stage = Stage::new("").await;
    let (_, mut before) = stage.mine(7);
    before["data"]["args"] = json!({ "order": "7", "total": "70" });
    let Outcome::Done(_) = stage.deliver(&before).await else { panic!("it was not asked for") };
    let asked = stage.server.requests().pop().unwrap().body;
    assert!(asked["metadata"]["business_id"].as_str().unwrap().ends_with(":7"), "{asked:#}");
    let told = stage.trigger.deliver(&message(Kind::Retraction, &before)).await;
    assert!(matches!(told, Outcome::Done(text) if text.contains("flagged")));
}
