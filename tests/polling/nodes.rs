//! Nodes that are of different minds, or stand still.

use super::support::many_nodes::ManyNodes;
use super::*;
use metrics_exporter_prometheus::PrometheusBuilder;

/// Nodes with the same blocks: so many empty ones, and one with an event.
fn same(count: usize, empty: u64) -> Vec<LyingChain> {
    let one = |_| {
        let chain = LyingChain::new(31337, DEPTH);
        chain.mine_empty(empty);
        chain.mine(&asked(1));
        chain
    };
    (0..count).map(one).collect()
}

/// What is measured while this stands, in Prometheus' text.
pub(super) fn gauge(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(name) && !line.starts_with('#'))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[tokio::test]
async fn a_first_node_that_stands_still_is_passed_over_and_lag_is_measured_against_the_others() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let lag = || gauge(&recorder.handle().render(), "claviger_watcher_lag_blocks").unwrap();
    let chains = same(2, 4);
    let nodes = Arc::new(ManyNodes::of(&chains));
    let mut stage = Stage::among(&chains[0], nodes.clone()).await;
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["1"]);
    // The first stands still from here on.
    chains[1].mine_empty(5);
    chains[1].mine(&asked(2));
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["1"], "the nodes were compared a moment ago");
    stage.clock.0.fetch_add(5_000, Ordering::SeqCst);
    // What one step knows before it has taken anything.
    stage.poller.step().await.unwrap();
    assert!(lag() > 5.5, "{}", lag());
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["1", "2"]);
    assert!(lag() < 0.5, "{}", lag());
    // It comes back, and is the first again.
    chains[0].mine_empty(5);
    chains[0].mine(&asked(2));
    stage.clock.0.fetch_add(5_000, Ordering::SeqCst);
    nodes.asked.lock().unwrap().clear();
    stage.run().await.unwrap();
    assert_eq!(nodes.asked.lock().unwrap().last(), Some(&1));
}

#[tokio::test]
async fn a_node_that_is_behind_is_better_than_none() {
    let chains = same(2, 4);
    let nodes = Arc::new(ManyNodes::of(&chains));
    let mut stage = Stage::among(&chains[0], nodes.clone()).await;
    chains[1].mine_empty(9);
    stage.run().await.unwrap();
    assert_eq!(stage.cursor().await, 14);
    nodes.set_down(2, true);
    assert!(matches!(stage.run().await, Err(StepError::Inconsistent(_))), "it is far behind");
    chains[0].mine_empty(9);
    chains[0].mine(&asked(2));
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["1", "2"]);
}

#[tokio::test]
async fn one_node_of_three_on_another_fork_takes_nothing_back() {
    let chains = same(3, 4);
    let nodes = Arc::new(ManyNodes::of(&chains));
    let mut stage = Stage::among(&chains[0], nodes).await;
    stage.run().await.unwrap();
    // The first is on a fork of its own, and ahead of the others on it.
    chains[0].drop_blocks(1);
    for order in 5..8 {
        chains[0].mine(&asked(order));
    }
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["1"], "nothing is retracted, nothing of the fork is told");
    for chain in &chains[1..] {
        chain.mine(&asked(2));
    }
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["1", "2"], "the others are followed");
    // The fork is long, and leaves below what is final.
    chains[0].drop_blocks(7);
    chains[0].mine_empty(20);
    for chain in &chains[1..] {
        chain.mine_empty(DEPTH);
        chain.mine(&asked(3));
    }
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["1", "2", "3"]);
    assert_eq!(stage.status().await.chains[0].halted, None);
}

#[tokio::test]
async fn a_fork_that_most_nodes_have_is_followed_though_one_stays_behind_on_ours() {
    let chains = same(3, 4);
    let mut stage = Stage::among(&chains[0], Arc::new(ManyNodes::of(&chains))).await;
    stage.run().await.unwrap();
    for chain in &chains[..2] {
        chain.drop_blocks(1);
        chain.mine(&asked(2));
        chain.mine_empty(DEPTH);
    }
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["1", "-1", "2"]);
    assert_eq!(orders(&stage.finals), ["2"]);
}

#[tokio::test]
async fn two_nodes_on_two_forks_do_not_make_us_go_back_and_forth() {
    let chains = same(2, 4);
    let nodes = Arc::new(ManyNodes::of(&chains));
    let mut stage = Stage::among(&chains[0], nodes.clone()).await;
    stage.run().await.unwrap();
    chains[0].drop_blocks(1);
    chains[0].mine(&asked(2));
    // One says so, the other not, and ours still grows.
    for order in 11..14 {
        chains[1].mine(&asked(order));
        stage.clock.0.fetch_add(40_000, Ordering::SeqCst);
        stage.run().await.unwrap();
    }
    assert_eq!(orders(&stage.head), ["1", "11", "12", "13"]);
    // Now ours stands still, and the other one grows. A while later it is the chain.
    chains[0].mine_empty(8);
    stage.run().await.unwrap();
    stage.clock.0.fetch_add(59_000, Ordering::SeqCst);
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head).len(), 4, "not yet");
    stage.clock.0.fetch_add(1_000, Ordering::SeqCst);
    let halted = stage.run().await;
    // What was final on the fork that stood still is gone with it: that is not for us to decide.
    assert!(matches!(halted, Err(StepError::Halted(_))), "{halted:?}");
    assert_eq!(orders(&stage.head).len(), 4);
}

#[tokio::test]
async fn of_two_nodes_on_two_forks_the_one_that_grows_is_the_chain_after_a_while() {
    let chains = same(2, 4);
    let nodes = Arc::new(ManyNodes::of(&chains));
    let mut stage = Stage::among(&chains[0], nodes.clone()).await;
    stage.run().await.unwrap();
    chains[0].drop_blocks(1);
    chains[0].mine(&asked(2));
    chains[0].mine_empty(1);
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["1"], "as many say otherwise");
    stage.clock.0.fetch_add(60_000, Ordering::SeqCst);
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["1", "-1", "2"]);
    // With the other one gone, there is nobody to contradict.
    nodes.set_down(2, true);
    chains[0].drop_blocks(2);
    chains[0].mine(&asked(3));
    chains[0].mine_empty(2);
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["1", "-1", "2", "-2", "3"]);
}

#[tokio::test]
async fn deliveries_are_let_go_though_finality_is_older_than_the_window() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    // Final is what is 40 blocks deep; the window has 16.
    let chain = LyingChain::new(31337, 40);
    let mut stage = Stage::among(&chain, Arc::new(chain.clone())).await;
    chain.mine_empty(4);
    chain.mine(&asked(1));
    for _ in 0..39 {
        chain.mine_empty(1);
        stage.run().await.unwrap();
    }
    assert!(orders(&stage.finals).is_empty(), "one block short");
    chain.mine(&asked(2));
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.finals), ["1"]);
    let lag = gauge(&recorder.handle().render(), "claviger_watcher_final_lag_blocks").unwrap();
    assert!((lag - 40.0).abs() < 0.5, "{lag}");
    assert_eq!(stage.status().await.chains[0].finalized.map(|place| place.number), Some(5));
    // A node whose chain leaves ours below the window says nothing of ours.
    chain.drop_blocks(42);
    chain.mine_empty(60);
    let halted = stage.run().await;
    assert!(matches!(halted, Err(StepError::Halted(_))), "{halted:?}");
    assert_eq!(orders(&stage.finals), ["1"]);
}
