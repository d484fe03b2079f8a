//! What nodes refuse, leave out and get wrong: the real poller and database over a real chain, behind proxies
//! that go wrong as providers do. Every block is covered, none is skipped, each event is told once.

use super::support::fault_proxy::{
    Fault, FaultProxy, Lag, Provider, Recorded, Times, range, words,
};
use super::*;
use claviger::chain::evm::{EvmChain, EvmConfig, Finality};
use claviger::config::file::parse;
use claviger::core::id::ChainId;
use claviger::core::time::Timestamp;
use claviger::ports::bus::Wait;
use claviger::ports::chain_reader::{ChainReader, Rule};
use claviger::ports::clock::Clock;
use claviger::ports::watch_store::{Checked, WatchStore};
use claviger::watch::plan::{ChainPlan, Plan};
use claviger::watch::poller::{Parts, Poller, Progress, StepError};
use claviger::watch::store::{OpenMode, open};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

const LOGS: &str = "eth_getLogs";
const DEPTH: u64 = 8;
/// Longer than any pause of the poller and than its wait for a second reading.
const LATER_MS: i64 = 61_000;

/// A clock that stands still until it is told otherwise.
#[derive(Default)]
struct StillClock(AtomicI64);

impl Clock for StillClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::SeqCst))
    }
}

/// A chain, proxies before it, and a watcher's database.
struct Nodes {
    anvil: Anvil,
    proxies: Vec<FaultProxy>,
    store: Arc<dyn WatchStore>,
    clock: Arc<StillClock>,
    /// How the configuration differs.
    more: &'static str,
    _folder: TempDir,
}

/// A poller and the nodes as it sees them.
struct Watching {
    poller: Poller,
    nodes: Arc<dyn ChainReader>,
}

impl Nodes {
    /// So many proxies; the chain has the emitter and its first block.
    async fn start(proxies: usize) -> Self {
        let mining = Mining::Manual;
        let anvil = Anvil::start(AnvilOptions { mining, ..AnvilOptions::default() }).await;
        place_emitter(&anvil).await;
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("watcher.db").display());
        let store = open(&url, OpenMode::Create).await.unwrap();
        let mut started = Vec::new();
        for _ in 0..proxies {
            started.push(FaultProxy::start(&anvil.url()).await);
        }
        let (clock, more) = (Arc::default(), "");
        Self { anvil, proxies: started, store, clock, more, _folder: folder }
    }

    /// Blocks with so many events each.
    async fn mine(&self, events: &[u128]) {
        for count in events {
            for order in 0..*count {
                let data = format!("0x{}{}", word(order), word(order * 10));
                self.anvil.send(&self.anvil.accounts()[1], EMITTER, &data, 0).await;
            }
            self.anvil.mine(1).await;
        }
    }

    /// The chain is followed from here on; sources from block 1 are behind then.
    async fn anchor(&self) {
        let mut watching = self.watching(&["new"], None);
        self.run(&mut watching).await.unwrap();
    }

    fn plan(&self, sources: &[&str], from_block: Option<u64>) -> ChainPlan {
        let rpc: Vec<String> = self.proxies.iter().map(FaultProxy::url).collect();
        let more = self.more;
        let mut text = format!(
            "[store]\nurl = \"sqlite:unused\"\n[[chain]]\nname = \"local\"\nchain_id = 31337\n\
             rpc = {rpc:?}\nfinality = {{ depth = {DEPTH} }}\nwindow_blocks = 16\n{more}\n"
        );
        for source in sources {
            let from = from_block.map_or(String::new(), |from| format!("from_block = {from}\n"));
            text += &format!(
                "[[source]]\nname = \"{source}\"\nchain = \"local\"\naddress = \"{EMITTER}\"\n\
                 event = \"{EVENT}\"\n{from}"
            );
        }
        let config = parse(Path::new("test.toml"), &text, std::iter::empty()).unwrap();
        Plan::new(config).unwrap().chains.remove(0)
    }

    /// A poller as a start of the program makes it. Each source has a consumer of its own name.
    fn watching(&self, sources: &[&str], from_block: Option<u64>) -> Watching {
        let config = EvmConfig {
            chain_id: ChainId::new(31337),
            rpc: self.proxies.iter().map(|proxy| proxy.url().parse().unwrap()).collect(),
            finality: Finality::Depth(DEPTH),
        };
        let nodes: Arc<dyn ChainReader> = Arc::new(EvmChain::new(config).unwrap());
        let to = |source: &&str| ((*source).to_owned(), vec![((*source).to_owned(), Wait::Head)]);
        let poller = Poller::new(Parts {
            plan: self.plan(sources, from_block),
            chain: nodes.clone(),
            store: self.store.clone(),
            clock: self.clock.clone(),
            subscribers: sources.iter().map(to).collect::<BTreeMap<_, _>>(),
            since_beginning: BTreeMap::new(),
        });
        Watching { poller, nodes }
    }

    /// Steps until there is nothing to do now.
    async fn run(&self, watching: &mut Watching) -> Result<(), StepError> {
        while watching.poller.step().await? == Progress::More {}
        Ok(())
    }

    /// Runs until this source has told what is true, as time goes by; fails after a minute.
    async fn comes_to_the_truth(&self, watching: &mut Watching, source: &str) {
        let truth = self.truth().await;
        poll_until(LIMIT, "everything is told", async || {
            // A node that failed is left alone for a moment: the step fails meanwhile.
            let _ = self.run(watching).await;
            self.later(LATER_MS);
            (self.told(source).await == truth).then_some(())
        })
        .await;
        self.told_once(source).await;
    }

    fn later(&self, millis: i64) {
        self.clock.0.fetch_add(millis, Ordering::SeqCst);
    }

    /// The ids of all events, as the chain itself has them.
    async fn truth(&self) -> Vec<String> {
        let filter = json!([{ "fromBlock": "0x0", "toBlock": "latest", "address": EMITTER }]);
        let logs = self.anvil.rpc(LOGS, filter).await;
        let text = |log: &Value, name: &str| log[name].as_str().unwrap().to_owned();
        let id = |log: &Value| {
            let index =
                u64::from_str_radix(text(log, "logIndex").trim_start_matches("0x"), 16).unwrap();
            format!("local:{}:{}:{index}", text(log, "blockHash"), text(log, "transactionHash"))
        };
        logs.as_array().unwrap().iter().map(id).collect()
    }

    /// The ids of a source's events that stand, in the order of the chain.
    async fn told(&self, source: &str) -> Vec<String> {
        let standing = self.store.standing_above("local", 0).await.unwrap();
        let mut told: Vec<(u64, u64, String)> = standing
            .into_iter()
            .filter(|event| event.source == source)
            .map(|event| {
                let body: Value = serde_json::from_str(&event.body).unwrap();
                let number = |name: &str| body["data"][name].as_u64().unwrap();
                (number("block_number"), number("log_index"), event.event_id)
            })
            .collect();
        told.sort();
        told.into_iter().map(|(_, _, id)| id).collect()
    }

    /// The source has told all that is true, each event once, and is behind no more.
    async fn covered(&self, source: &str) {
        assert_eq!(self.told(source).await, self.truth().await, "{source}");
        self.told_once(source).await;
        let head = self.anvil.block_number().await;
        assert_eq!(self.next_block(source).await, head + 1, "{source}");
    }

    async fn told_once(&self, source: &str) {
        let outbox = self.store.status().await.unwrap().outbox;
        let count: u64 =
            outbox.iter().filter(|row| row.consumer == source).map(|row| row.count).sum();
        assert_eq!(count, self.told(source).await.len() as u64, "{source}: deliveries");
    }

    async fn next_block(&self, source: &str) -> u64 {
        let state = self.store.load("local").await.unwrap().unwrap();
        state.sources.iter().find(|of| of.name == source).unwrap().next_block
    }

    async fn checked(&self, source: &str) -> Checked {
        let all = self.store.all_checked().await.unwrap();
        all.into_iter().find(|checked| checked.source == source).unwrap()
    }

    /// The ranges that a proxy was asked for, in order.
    fn ranges(&self, proxy: usize) -> Vec<(u64, u64)> {
        let calls = self.proxies[proxy].calls(LOGS);
        calls.iter().filter_map(|call: &Recorded| range(&call.params)).collect()
    }
}

impl Watching {
    /// The place of the node that would be asked next.
    fn first_node(&self) -> Option<usize> {
        self.nodes.node(&[]).map(|node| node.place())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e15_every_providers_limit_is_met_with_smaller_ranges_and_no_node_is_blamed() {
    let nodes = Nodes::start(1).await;
    let events: Vec<u128> = (0..56_u128).map(|n| u128::from(n % 4 == 1) * (1 + n % 3)).collect();
    nodes.mine(&events).await;
    nodes.anchor().await;
    let proxy = &nodes.proxies[0];
    let mut refusals: Vec<Box<dyn Fn(u64, u64) -> Value + Send + Sync>> = Vec::new();
    let most = 6;
    for provider in Provider::ALL {
        refusals.push(Box::new(move |from, to| provider.error(from, to, most)));
    }
    for line in words::WORDS {
        refusals.push(Box::new(move |from, to| words::error(*line, (from, to, most))));
    }
    for (at, refusal) in refusals.into_iter().enumerate() {
        let (source, said) = (format!("source-{at}"), refusal(1, 50));
        let before = nodes.ranges(0).len();
        let rule = proxy.refuse_ranges(Times::UntilLifted, most, refusal);
        let mut watching = nodes.watching(&[&source], Some(1));
        nodes.run(&mut watching).await.unwrap();
        proxy.lift(rule);
        nodes.covered(&source).await;
        assert_eq!(watching.first_node(), Some(1), "blamed for {said}");
        let asked = nodes.ranges(0).split_off(before);
        assert!(asked.len() <= 30, "{} calls for 9: {said}", asked.len());
        assert!(asked.iter().any(|(from, to)| to - from >= most), "not refused: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e15_ranges_grow_back_when_the_limit_is_lifted_and_stay_below_the_configured_width() {
    let mut nodes = Nodes::start(1).await;
    nodes.more = "range_blocks = 40";
    for _ in 0..40 {
        nodes.mine(&[1]).await;
        nodes.anvil.mine(9).await;
    }
    nodes.anchor().await;
    let rule = nodes.proxies[0].limit_range(Times::UntilLifted, Provider::Besu, 5);
    let mut watching = nodes.watching(&["old"], Some(1));
    while nodes.ranges(0).len() < 20 {
        watching.poller.step().await.unwrap();
    }
    let narrow = nodes.ranges(0).len();
    nodes.proxies[0].lift(rule);
    nodes.run(&mut watching).await.unwrap();
    nodes.covered("old").await;
    let after = nodes.ranges(0).split_off(narrow);
    let widest = after.iter().map(|(from, to)| to - from + 1).max();
    assert_eq!(widest, Some(40), "{after:?}");
    let first = nodes.ranges(0)[0];
    assert_eq!(first, (1, 40));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e16_a_block_over_the_limit_is_read_from_its_receipts() {
    let nodes = Nodes::start(1).await;
    nodes.mine(&[1, 0, 2, 12, 1, 0, 0, 9, 1, 0]).await;
    nodes.anvil.mine(DEPTH).await;
    nodes.anchor().await;
    let proxy = &nodes.proxies[0];
    proxy.limit_results(Times::UntilLifted, 5);
    let mut watching = nodes.watching(&["together"], Some(1));
    nodes.run(&mut watching).await.unwrap();
    nodes.covered("together").await;
    assert_eq!(proxy.count("eth_getBlockReceipts"), 2, "two blocks are dense");
    assert_eq!(proxy.count("eth_getTransactionReceipt"), 0);
    // A node that has no such call.
    let error = json!({ "code": -32601, "message": "the method does not exist/is not available" });
    proxy.inject("eth_getBlockReceipts", Times::UntilLifted, Fault::Say(error));
    let mut watching = nodes.watching(&["one-by-one"], Some(1));
    nodes.run(&mut watching).await.unwrap();
    nodes.covered("one-by-one").await;
    assert_eq!(proxy.count("eth_getTransactionReceipt"), 12 + 9);
    // None of its calls gives them: what it does not give is not passed.
    let error = json!({ "code": -32601, "message": "the method does not exist/is not available" });
    let rule = proxy.inject("eth_getTransactionReceipt", Times::UntilLifted, Fault::Say(error));
    let mut watching = nodes.watching(&["none"], Some(1));
    nodes.run(&mut watching).await.unwrap();
    assert_eq!(nodes.next_block("none").await, 4);
    proxy.lift(rule);
    nodes.comes_to_the_truth(&mut watching, "none").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e17_a_rate_limit_is_waited_for_and_the_range_stays_as_wide() {
    let nodes = Nodes::start(1).await;
    nodes.mine(&[1, 0, 2, 0, 1]).await;
    nodes.anvil.mine(30).await;
    nodes.anchor().await;
    let proxy = &nodes.proxies[0];
    let bare = json!({ "code": -32005, "message": "limit exceeded" });
    let words = json!({ "code": -32005, "message": "project ID request rate exceeded" });
    let status = Fault::Busy { status: 429, retry_after_s: None };
    let limits = [("bare", Fault::Say(bare)), ("words", Fault::Say(words)), ("status", status)];
    for (source, fault) in limits {
        let before = nodes.ranges(0).len();
        let rule = proxy.inject(LOGS, Times::UntilLifted, fault);
        let mut watching = nodes.watching(&[source], Some(1));
        poll_until(LIMIT, "it was refused three times", async || {
            let before = proxy.hits(rule);
            // A step fails as a whole while the node is left alone for its pause.
            let _ = watching.poller.step().await;
            let refused = proxy.hits(rule) > before;
            assert!(!refused || watching.first_node().is_none(), "it is asked on at once");
            nodes.later(LATER_MS);
            (proxy.hits(rule) >= 3).then_some(())
        })
        .await;
        assert_eq!(nodes.next_block(source).await, 1, "nothing is passed");
        proxy.lift(rule);
        nodes.comes_to_the_truth(&mut watching, source).await;
        let asked = nodes.ranges(0).split_off(before);
        let whole = asked[0];
        // In bare words, half of the range and one block were tried each time to tell the two apart.
        let trials = [(1, 1 + (whole.1 - 1) / 2), (1, 1)];
        let wide = asked.iter().filter(|range| **range == whole).count();
        assert!(wide >= 2, "{source}: {asked:?}");
        let mut others = asked.iter().filter(|range| **range != whole && range.0 == 1);
        assert!(others.all(|range| source == "bare" && trials.contains(range)), "{asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_has_not_got_any_more_does_not_hold_up_new_blocks() {
    let nodes = Nodes::start(1).await;
    nodes.mine(&[1, 0, 2]).await;
    nodes.anvil.mine(20).await;
    nodes.anchor().await;
    let before = nodes.ranges(0).len();
    let error = json!({ "code": 4444, "message": "pruned history unavailable" });
    let rule = nodes.proxies[0].refuse_ranges(Times::UntilLifted, 0, move |_, _| error.clone());
    let mut watching = nodes.watching(&["new", "old"], Some(1));
    nodes.run(&mut watching).await.unwrap();
    for _ in 0..3 {
        nodes.mine(&[1]).await;
        nodes.run(&mut watching).await.unwrap();
    }
    let head = nodes.anvil.block_number().await;
    assert_eq!(nodes.store.load("local").await.unwrap().unwrap().cursor.number, head);
    assert_eq!(nodes.told("new").await.len(), 3);
    assert_eq!(nodes.next_block("old").await, 1);
    assert_eq!(nodes.ranges(0).len(), before + 1, "it rests, since no time went by");
    nodes.proxies[0].lift(rule);
    nodes.comes_to_the_truth(&mut watching, "old").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e1_empty_logs_of_a_lagging_node_pass_no_block_old_or_new() {
    let nodes = Nodes::start(1).await;
    nodes.mine(&[1, 0, 2, 0, 1]).await;
    nodes.anvil.mine(DEPTH).await;
    nodes.anchor().await;
    let proxy = &nodes.proxies[0];
    // Lists are empty above a height, and receipts are not there yet.
    let receipts =
        proxy.inject("eth_getBlockReceipts", Times::UntilLifted, Fault::Answer(Value::Null));
    let head = nodes.anvil.block_number().await;
    proxy.lag(Some(Lag { logs: head - 1, ..Lag::default() }));
    let mut watching = nodes.watching(&["new", "old"], Some(1));
    nodes.run(&mut watching).await.unwrap();
    assert_eq!((nodes.next_block("old").await, nodes.told("old").await.len()), (1, 0));
    nodes.mine(&[1]).await;
    for _ in 0..4 {
        assert!(nodes.run(&mut watching).await.is_err());
        nodes.later(1000);
    }
    assert_eq!(nodes.store.load("local").await.unwrap().unwrap().cursor.number, head);
    proxy.lift(receipts);
    proxy.lag(None);
    nodes.comes_to_the_truth(&mut watching, "old").await;
    nodes.covered("old").await;
    assert_eq!(nodes.told("new").await.len(), 1);
    nodes.told_once("new").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e1_of_two_nodes_behind_one_address_the_one_that_lags_hides_nothing() {
    let mut nodes = Nodes::start(2).await;
    nodes.proxies[1].lag(Some(Lag { logs: 30, receipts: 30, ..Lag::default() }));
    let urls = [nodes.proxies[0].url(), nodes.proxies[1].url()];
    let balancer = FaultProxy::over(&[&urls[0], &urls[1]]).await;
    nodes.mine(&[1, 0, 2, 0, 1, 0, 1, 1]).await;
    nodes.anvil.mine(DEPTH).await;
    let behind = std::mem::replace(&mut nodes.proxies, vec![balancer]);
    nodes.anchor().await;
    let mut watching = nodes.watching(&["old"], Some(1));
    nodes.comes_to_the_truth(&mut watching, "old").await;
    nodes.mine(&[1, 0, 1]).await;
    nodes.comes_to_the_truth(&mut watching, "old").await;
    nodes.covered("old").await;
    assert!(behind[1].count(LOGS) > 0, "it was asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e4_logs_of_a_block_that_a_reorg_took_away_meanwhile_are_not_taken() {
    let nodes = Nodes::start(1).await;
    nodes.mine(&[0, 1]).await;
    nodes.anvil.mine(DEPTH).await;
    let mut watching = nodes.watching(&["asked"], Some(1));
    nodes.run(&mut watching).await.unwrap();
    nodes.covered("asked").await;
    // The header is read; the question for its logs waits, and the block goes.
    nodes.mine(&[1]).await;
    let rule = nodes.proxies[0].inject(LOGS, Times::Once, Fault::Hold);
    let changed = async {
        nodes.proxies[0].wait_for_held(rule, LIMIT).await;
        nodes.anvil.rpc("anvil_reorg", json!([1, []])).await;
        nodes.anvil.rpc("anvil_dropAllTransactions", json!([])).await;
        nodes.mine(&[2]).await;
        nodes.proxies[0].lift(rule);
    };
    let (step, ()) = tokio::join!(watching.poller.step(), changed);
    assert!(step.is_err(), "{step:?}");
    nodes.run(&mut watching).await.unwrap();
    nodes.covered("asked").await;
    assert_eq!(nodes.truth().await.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e20_a_list_that_is_cut_is_found_by_the_bloom_filters_and_the_receipts() {
    let nodes = Nodes::start(1).await;
    nodes.mine(&[1, 0, 2, 3, 1, 0, 0, 3, 1, 0]).await;
    nodes.anvil.mine(DEPTH).await;
    nodes.anchor().await;
    // In the midst of a block, at the end of one, and at once; of ranges and of single blocks alike.
    for most in [0, 1, 2, 3, 5, 6, 8] {
        let (source, rule) =
            (format!("cut-{most}"), nodes.proxies[0].cut_logs(Times::UntilLifted, most));
        let mut watching = nodes.watching(&[&source], Some(1));
        nodes.run(&mut watching).await.unwrap();
        nodes.proxies[0].lift(rule);
        nodes.covered(&source).await;
    }
    assert!(nodes.proxies[0].count("eth_getBlockReceipts") > 0);
    // Each log twice is each log once.
    nodes.proxies[0].repeat_logs(Times::UntilLifted);
    let mut watching = nodes.watching(&["twice"], Some(1));
    nodes.run(&mut watching).await.unwrap();
    nodes.covered("twice").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e20_what_no_filter_shows_is_found_by_the_second_reading_and_told_late_once() {
    let nodes = Nodes::start(2).await;
    nodes.mine(&[1, 0, 3, 0, 1, 2, 1]).await;
    nodes.anvil.mine(DEPTH).await;
    nodes.anchor().await;
    // One of the three events of a block, by the first node, for ever.
    let truth = nodes.truth().await;
    let hash = truth[2].split(':').nth(2).unwrap().to_owned();
    nodes.proxies[0]
        .leave_out(Times::UntilLifted, move |log| log["transactionHash"] == hash.as_str());
    let mut watching = nodes.watching(&["old"], Some(1));
    nodes.run(&mut watching).await.unwrap();
    assert_eq!(nodes.told("old").await.len(), truth.len() - 1, "no sign shows it");
    assert_eq!(nodes.checked("old").await.next_block, 1);
    nodes.later(LATER_MS);
    nodes.run(&mut watching).await.unwrap();
    nodes.covered("old").await;
    let checked = nodes.checked("old").await;
    let final_number = nodes.anvil.block_number().await - DEPTH;
    assert_eq!((checked.late, checked.nodes, checked.next_block), (1, 2, final_number + 1));
    // It goes on from there after a restart, and tells nothing twice.
    let before = nodes.ranges(1).len();
    nodes.mine(&[0, 1]).await;
    nodes.anvil.mine(DEPTH).await;
    let mut watching = nodes.watching(&["old"], Some(1));
    nodes.run(&mut watching).await.unwrap();
    nodes.later(LATER_MS);
    nodes.run(&mut watching).await.unwrap();
    nodes.covered("old").await;
    let again = nodes.ranges(1).split_off(before);
    assert_eq!(again.first().map(|range| range.0), Some(final_number + 1), "{again:?}");
    assert_eq!(nodes.checked("old").await.late, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_final_block_stands_still_while_blocks_come_is_asked_last() {
    for count in [2, 3] {
        let nodes = Nodes::start(count).await;
        nodes.anvil.mine(200).await;
        let config = EvmConfig {
            chain_id: ChainId::new(31337),
            rpc: nodes.proxies.iter().map(|proxy| proxy.url().parse().unwrap()).collect(),
            finality: Finality::Finalized,
        };
        let chain = EvmChain::new(config).unwrap();
        nodes.proxies[0].lag(Some(Lag { finals: 40, ..Lag::default() }));
        // As a poller does: only the node of its step is asked.
        let said = poll_until(Duration::from_secs(30), "another node's word", async || {
            let node = chain.node(&[])?;
            let last = node.last_final(Rule::Finalized).await.unwrap()?;
            (node.place() == 2).then_some(last.number)
        })
        .await;
        let truth = nodes.anvil.rpc("eth_getBlockByNumber", json!(["finalized", false])).await;
        let truth = truth["number"].as_str().unwrap().trim_start_matches("0x").to_owned();
        assert_eq!(said, u64::from_str_radix(&truth, 16).unwrap(), "of {count}");
        // It comes back, and is the first again.
        nodes.proxies[0].lag(None);
        poll_until(Duration::from_secs(30), "the first node", async || {
            (chain.node(&[])?.place() == 1).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_without_bloom_filters_hide_nothing() {
    let nodes = Nodes::start(1).await;
    nodes.mine(&[1, 0, 3, 0, 1, 2, 1]).await;
    nodes.anvil.mine(1).await;
    // Filters of some blocks are zero: looked at first, read one by one from then on.
    nodes.proxies[0].zero_blooms(|_| true);
    let mut watching = nodes.watching(&["live"], Some(1));
    nodes.run(&mut watching).await.unwrap();
    nodes.covered("live").await;
    nodes.proxies[0].lift_all();
    // One that no sample hits is found by the second reading, also on the only node.
    nodes.anvil.mine(20).await;
    nodes.mine(&[2]).await;
    let hidden = nodes.anvil.block_number().await;
    nodes.anvil.mine(DEPTH + 20).await;
    let mut watching = nodes.watching(&["live"], Some(1));
    nodes.proxies[0].zero_blooms(move |number| number == hidden);
    nodes.run(&mut watching).await.unwrap();
    assert_eq!(nodes.told("live").await.len(), nodes.truth().await.len() - 2);
    nodes.later(LATER_MS);
    nodes.run(&mut watching).await.unwrap();
    nodes.covered("live").await;
    let checked = nodes.checked("live").await;
    assert_eq!((checked.late, checked.nodes), (2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sources_that_are_behind_at_one_height_are_read_together_and_one_ahead_joins() {
    let mut nodes = Nodes::start(1).await;
    nodes.mine(&[1, 0, 1, 0, 1, 2, 0, 1, 0, 0, 1]).await;
    nodes.anvil.mine(DEPTH + 10).await;
    nodes.anchor().await;
    nodes.more = "range_blocks = 4";
    let mut ahead = nodes.watching(&["ahead"], Some(5));
    ahead.poller.step().await.unwrap();
    assert_eq!(nodes.next_block("ahead").await, 9);
    nodes.more = "";
    let before = nodes.ranges(0).len();
    let headers = nodes.proxies[0].count("eth_getBlockByNumber");
    let names = ["one", "two", "three", "four", "ahead"];
    let mut watching = nodes.watching(&names, Some(1));
    nodes.run(&mut watching).await.unwrap();
    for name in &names[..4] {
        nodes.covered(name).await;
    }
    assert_eq!(nodes.told("ahead").await, nodes.truth().await[2..]);
    nodes.told_once("ahead").await;
    let final_number = nodes.anvil.block_number().await - DEPTH;
    let ranges = nodes.ranges(0).split_off(before);
    assert_eq!(ranges, [(1, 8), (9, final_number)], "one list of logs for all of them");
    let headers = nodes.proxies[0].count("eth_getBlockByNumber") - headers;
    let head = nodes.anvil.block_number().await;
    assert!(headers as u64 <= head + 40, "{headers} headers of {head} blocks");
}
