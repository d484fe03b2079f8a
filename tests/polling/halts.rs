//! Chains that stand still until an operator lets them go on.

use super::nodes::gauge;
use super::support::many_nodes::ManyNodes;
use super::*;
use claviger::watch::poller::{Resumed, resume};
use metrics_exporter_prometheus::PrometheusBuilder;

impl Stage {
    async fn resume(&self, nodes: &dyn ChainReader) -> Result<Resumed, StepError> {
        let now = self.clock.now();
        resume(&self.plan, nodes, self.store.as_ref(), "looked at it", now).await
    }

    /// Events in blocks 1, 2, 6 and 9, final up to block 6, and then a fork that leaves after this block.
    async fn halted_after(block: usize) -> Self {
        let mut stage = Self::new().await;
        stage.run().await.unwrap();
        for number in 1..=9 {
            match number {
                1 | 2 | 6 | 9 => drop(stage.chain.mine(&asked(number))),
                _ => stage.chain.mine_empty(1),
            }
        }
        stage.run().await.unwrap();
        assert_eq!(orders(&stage.finals), ["1", "2", "6"]);
        stage.chain.drop_blocks(9 - block);
        stage.chain.mine(&asked(20));
        stage.chain.mine_empty(9);
        let halted = stage.run().await.unwrap_err();
        assert!(matches!(halted, StepError::Halted(_)), "{halted}");
        stage
    }
}

#[tokio::test]
async fn e8_a_halt_outlives_the_process_and_is_measured_until_it_is_lifted() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let halted = || gauge(&recorder.handle().render(), "claviger_watcher_halted").unwrap() > 0.5;
    let stage = Stage::halted_after(4).await;
    assert!(halted());
    let (chain, before) = (stage.chain.clone(), stage.store.load("local").await.unwrap().unwrap());
    // Another process; and the chain is as it was before.
    let mut stage = stage.restarted("asked", 0);
    assert!(matches!(stage.run().await, Err(StepError::Halted(_))));
    assert_eq!(stage.store.load("local").await.unwrap().unwrap(), before, "nothing is rolled back");
    let told = stage.status().await.chains[0].halted.clone().unwrap();
    assert!(told.contains("below finality") && told.contains("block 6"), "{told}");
    let done = stage.resume(chain.as_ref()).await.unwrap();
    assert_eq!((done.ancestor, done.retracted), (4, 2));
    assert_eq!(done.anchor.number, 14 - DEPTH);
    // The process that stood still goes on by itself.
    stage.run().await.unwrap();
    assert!(!halted());
    assert_eq!(stage.status().await.chains[0].halted, None);
    assert_eq!(orders(&stage.head), ["-6", "-9", "20"]);
    assert_eq!(orders(&stage.finals), ["-6", "20"], "9 was never told to it");
    assert_eq!(stage.cursor().await, 14);
    let again = stage.resume(chain.as_ref()).await.unwrap_err();
    assert!(again.to_string().contains("not halted"), "{again}");
}

#[tokio::test]
async fn after_a_fork_below_the_window_what_is_on_both_chains_stands() {
    let mut stage = Stage::new().await;
    for order in 1..=30 {
        stage.chain.mine(&asked(order));
    }
    stage.run().await.unwrap();
    // The window has 16 blocks.
    stage.chain.drop_blocks(25);
    for order in 40..=75 {
        stage.chain.mine(&asked(order));
    }
    assert!(matches!(stage.run().await, Err(StepError::Halted(_))));
    let done = stage.resume(stage.chain.as_ref()).await.unwrap();
    assert_eq!((done.ancestor, done.retracted, done.anchor.number), (5, 25, 41 - DEPTH));
    stage.run().await.unwrap();
    let told = orders(&stage.head);
    let taken_back: Vec<String> = (6..=30).map(|order| format!("-{order}")).collect();
    assert_eq!(told[30..55], taken_back);
    let new: Vec<String> = (40..=75).map(|order| order.to_string()).collect();
    assert_eq!(told[55..], new, "each once, in order");
}

#[tokio::test]
async fn what_was_pruned_is_not_told_again_after_a_fork_below_the_window() {
    let mut stage = Stage::new().await;
    for order in 1..=8 {
        stage.chain.mine(&asked(order));
    }
    stage.run().await.unwrap();
    stage.clock.0.store(61_000, Ordering::SeqCst);
    for order in 9..=30 {
        stage.chain.mine(&asked(order));
    }
    stage.run().await.unwrap();
    stage.prune(500).await;
    assert_eq!(stage.store.newest_pruned("local").await.unwrap(), 5, "final when they were told");
    stage.chain.drop_blocks(25);
    for order in 40..=75 {
        stage.chain.mine(&asked(order));
    }
    assert!(matches!(stage.run().await, Err(StepError::Halted(_))));
    let done = stage.resume(stage.chain.as_ref()).await.unwrap();
    assert_eq!((done.ancestor, done.retracted), (5, 25));
    stage.run().await.unwrap();
    let new: Vec<String> = (40..=75).map(|order| order.to_string()).collect();
    assert_eq!(orders(&stage.head)[55..], new, "and nothing at or below 5");
}

#[tokio::test]
async fn a_fork_that_only_left_the_window_goes_back_to_the_final_block_at_most() {
    // Final is what is 40 blocks deep; the window has 16.
    let chain = LyingChain::new(31337, 40);
    let mut stage = Stage::among(&chain, Arc::new(chain.clone())).await;
    stage.run().await.unwrap();
    for _ in 0..50 {
        chain.mine_empty(1);
        stage.run().await.unwrap();
    }
    chain.drop_blocks(30);
    chain.mine_empty(60);
    assert!(matches!(stage.run().await, Err(StepError::Halted(_))));
    assert_eq!(stage.resume(&chain).await.unwrap().ancestor, 10);
}

#[tokio::test]
async fn a_node_that_is_behind_has_no_word_in_what_stands() {
    let cut = |to: u64| {
        let chain = LyingChain::new(31337, DEPTH);
        chain.mine_empty(to);
        chain
    };
    // Of the nodes that are behind, one has a final block that nobody contradicts, the others have none.
    for behind in [3, 2, 0] {
        for first in [true, false] {
            let stage = Stage::halted_after(4).await;
            let whole = stage.chain.as_ref().clone();
            let mut nodes = [whole, cut(behind)];
            nodes.rotate_right(usize::from(first));
            let done = stage.resume(&ManyNodes::of(&nodes)).await.unwrap();
            assert_eq!((done.ancestor, done.retracted), (4, 2), "{behind}");
            assert_eq!(done.anchor.number, 14 - DEPTH, "{behind}");
        }
    }
    let stage = Stage::halted_after(4).await;
    let refused = stage.resume(&ManyNodes::of(&[cut(2)])).await.unwrap_err().to_string();
    assert!(refused.contains("node 1 is behind, at block 2"), "{refused}");
}

#[tokio::test]
async fn a_reorg_of_what_stood_when_a_chain_went_on_is_seen() {
    let mut stage = Stage::new().await;
    stage.chain.mine_empty(9);
    stage.chain.mine(&asked(1));
    stage.run().await.unwrap();
    stage.store.set_halted("local", Some("an operator looks")).await.unwrap();
    let done = stage.resume(stage.chain.as_ref()).await.unwrap();
    assert_eq!((done.ancestor, done.retracted, done.anchor.number), (10, 0, 10 - DEPTH));
    let state = stage.store.load("local").await.unwrap().unwrap();
    assert_eq!((state.cursor.number, state.window.len()), (10, 4));
    stage.chain.drop_blocks(1);
    stage.chain.mine(&asked(2));
    stage.chain.mine_empty(DEPTH);
    drop(stage.run().await);
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["1", "-1", "2"]);
    assert_eq!(orders(&stage.finals), ["2"]);
}

#[tokio::test]
async fn a_chain_whose_nodes_contradict_each_other_stays_halted() {
    let stage = Stage::halted_after(3).await;
    let before = stage.store.load("local").await.unwrap();
    let other = LyingChain::new(31337, DEPTH);
    other.mine_empty(40);
    let nodes = ManyNodes::of(&[stage.chain.as_ref().clone(), other.clone()]);
    let refused = stage.resume(&nodes).await.unwrap_err().to_string();
    assert!(refused.contains("agree on no final block"), "{refused}");
    // Two against one.
    let nodes = ManyNodes::of(&[other, stage.chain.as_ref().clone(), stage.chain.as_ref().clone()]);
    assert_eq!(stage.store.load("local").await.unwrap(), before);
    assert_eq!(stage.resume(&nodes).await.unwrap().ancestor, 3);
}

#[tokio::test]
async fn another_chain_or_another_beginning_behind_the_url_halts_until_it_is_put_right() {
    for (id, empty) in [(1, 0), (31337, 9)] {
        let mut stage = Stage::new().await;
        stage.chain.mine(&asked(1));
        stage.run().await.unwrap();
        let right = stage.chain.clone();
        let other = Arc::new(LyingChain::new(id, DEPTH));
        // A chain of the same id whose block 0 is another one.
        other.drop_blocks(1);
        other.mine_empty(1 + empty);
        let Stage { store, _folder, .. } = stage;
        let mut stage = Stage::on(other.clone(), store, _folder, "asked", 0);
        assert!(matches!(stage.run().await, Err(StepError::Halted(_))));
        let why = stage.status().await.chains[0].halted.clone().unwrap();
        assert!(why.contains("chain id"), "{why}");
        let refused = stage.resume(other.as_ref()).await.unwrap_err().to_string();
        assert!(refused.contains("correct `rpc`"), "{refused}");
        let Stage { store, _folder, .. } = stage;
        let mut stage = Stage::on(right.clone(), store, _folder, "asked", 0);
        assert!(matches!(stage.run().await, Err(StepError::Halted(_))), "not by itself");
        let done = stage.resume(right.as_ref()).await.unwrap();
        assert_eq!((done.ancestor, done.retracted), (1, 0));
        right.mine(&asked(2));
        stage.run().await.unwrap();
        assert_eq!(orders(&stage.head), ["2"]);
    }
}
