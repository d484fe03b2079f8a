//! The second reading, with nodes that have not got what they are asked for.

use super::support::many_nodes::ManyNodes;
use super::*;

/// Longer than the wait for a second reading, and than its pauses.
const LATER_MS: i64 = 61_000;

impl Stage {
    async fn checked(&self) -> u64 {
        self.store.all_checked().await.unwrap()[0].next_block
    }

    /// A while later, when all that can be read was.
    async fn run_later(&mut self) {
        self.clock.0.fetch_add(LATER_MS, Ordering::SeqCst);
        self.run().await.unwrap();
    }
}

/// A node with a block for each of these, with the event of that order in it if it knows of one. The hashes
/// are the same whatever the node knows.
fn node(orders: &[Option<u64>]) -> LyingChain {
    let chain = LyingChain::new(31337, DEPTH);
    for order in orders {
        chain.mine(&order.map(asked).unwrap_or_default());
    }
    chain.mine_empty(DEPTH);
    chain
}

#[tokio::test]
async fn a_node_that_has_not_got_the_blocks_checks_nothing() {
    let chains = [node(&[Some(1), None, None, None]), node(&[Some(1), None, None, Some(4)])];
    let mut stage = Stage::among(&chains[0], Arc::new(ManyNodes::of(&chains))).await;
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["1"], "the first node lacks the other one for ever");
    // The second one stands at block 0, then at block 2, and has nothing above that.
    for (behind, checked) in [(7, 1), (5, 3)] {
        chains[1].lie(Some(Lie::Behind(behind)));
        stage.run_later().await;
        stage.run_later().await;
        assert_eq!((stage.checked().await, orders(&stage.head).len()), (checked, 1), "{behind}");
    }
    chains[1].lie(None);
    stage.run_later().await;
    assert_eq!((stage.checked().await, orders(&stage.head)), (5, vec!["1".into(), "4".into()]));
}

#[tokio::test]
async fn blocks_that_are_read_again_by_order_are_read_a_second_time_and_no_others() {
    let all: Vec<Option<u64>> = (1..=9).map(Some).collect();
    let chains = [node(&all), node(&all)];
    let mut stage = Stage::among(&chains[0], Arc::new(ManyNodes::of(&chains))).await;
    stage.run().await.unwrap();
    stage.run_later().await;
    assert_eq!((stage.checked().await, orders(&stage.head).len()), (10, 9));
    stage.prune(1_000_000).await;
    assert_eq!(stage.store.newest_pruned("local").await.unwrap(), 9);
    // The node that is read first lacks one of those that are ordered now.
    let mut less = all.clone();
    less[3] = None;
    let chains = [node(&less), chains[1].clone()];
    let Stage { store, _folder, plan, .. } = stage;
    let chain = Arc::new(chains[0].clone());
    let mut stage = Stage::with(chain, Arc::new(ManyNodes::of(&chains)), store, _folder, plan, &[]);
    stage.run().await.unwrap();
    assert!(stage.store.reread("asked", 3, 5).await.unwrap());
    // It finds the order, reads, and a minute later reads again.
    for _ in 0..3 {
        stage.run_later().await;
    }
    // They were pruned: told again. The fourth is told late, and of the others nothing is told again.
    assert_eq!(orders(&stage.head), ["3", "5", "4"]);
    assert_eq!(stage.checked().await, 10);
}

#[tokio::test]
async fn a_clock_that_was_ahead_holds_up_no_second_reading() {
    let chains = [node(&[None, None]), node(&[Some(1), None])];
    let nodes = Arc::new(ManyNodes::of(&chains));
    let mut stage = Stage::among(&chains[0], nodes).await;
    stage.clock.0.store(1_000_000_000, Ordering::SeqCst);
    stage.run().await.unwrap();
    // It fails once by that clock, and rests.
    chains[1].lie(Some(Lie::NoRanges));
    stage.run_later().await;
    chains[1].lie(None);
    stage.clock.0.store(1_000, Ordering::SeqCst);
    stage.run().await.unwrap();
    stage.run_later().await;
    assert_eq!((stage.checked().await, orders(&stage.head)), (3, vec!["1".to_owned()]));
}

#[tokio::test]
async fn a_node_on_another_branch_checks_nothing() {
    let chains = [(); 3].map(|()| node(&[None, None]));
    chains[1].drop_blocks(5);
    chains[1].mine_empty(5);
    let mut stage = Stage::among(&chains[0], Arc::new(ManyNodes::of(&chains[..2]))).await;
    stage.run().await.unwrap();
    stage.run_later().await;
    assert_eq!((stage.cursor().await, stage.checked().await), (5, 1));
    let Stage { chain, store, _folder, plan, .. } = stage;
    let nodes = Arc::new(ManyNodes::of(&chains));
    let mut stage = Stage::with(chain, nodes, store, _folder, plan, &[]);
    stage.run().await.unwrap();
    stage.run_later().await;
    assert_eq!(stage.checked().await, 3, "the third one is asked");
}

#[tokio::test]
async fn a_node_that_lacks_what_is_known_checks_nothing_and_what_it_finds_is_told() {
    let first = node(&[Some(1), None, None, Some(4)]);
    // The second one has lost what the first found, and has one of those that it left out.
    let second = node(&[None, Some(2), None, Some(4)]);
    let chains = [first, second, node(&[Some(1), Some(2), Some(3), Some(4)])];
    let mut stage = Stage::among(&chains[0], Arc::new(ManyNodes::of(&chains[..2]))).await;
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["1", "4"]);
    stage.run_later().await;
    stage.run_later().await;
    assert_eq!((stage.checked().await, orders(&stage.head).len()), (1, 3), "2 is told, once");
    let Stage { chain, store, _folder, plan, .. } = stage;
    let nodes = Arc::new(ManyNodes::of(&chains));
    let mut stage = Stage::with(chain, nodes, store, _folder, plan, &[]);
    stage.run().await.unwrap();
    stage.run_later().await;
    assert_eq!((stage.checked().await, orders(&stage.head)), (5, vec!["3".to_owned()]));
    let checked = stage.store.all_checked().await.unwrap().remove(0);
    assert_eq!((checked.late, checked.nodes), (2, 3));
}
