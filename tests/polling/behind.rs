//! Old blocks, the second reading and finality, with nodes of which one does not do its part.

use super::support::many_nodes::ManyNodes;
use super::*;
use claviger::ports::watch_store::PruneFrom;

impl Stage {
    /// Prunes what ended before a time.
    pub(super) async fn prune(&self, before: i64) {
        let mut from = Some(PruneFrom::default());
        while let Some(at) = from {
            from = self.store.prune(at, Timestamp::from_millis(before)).await.unwrap().next;
        }
    }

    fn later(&self, millis: i64) {
        self.clock.0.fetch_add(millis, Ordering::SeqCst);
    }

    /// The same database, another plan and these nodes.
    fn replaced(self, nodes: Arc<dyn ChainReader>, plan: ChainPlan) -> Self {
        Self::with(self.chain, nodes, self.store, self._folder, plan, &[])
    }

    async fn next_block(&self, source: &str) -> u64 {
        let state = self.store.load("local").await.unwrap().unwrap();
        state.sources.iter().find(|of| of.name == source).unwrap().next_block
    }
}

/// Nodes that say these depths of finality, with the same blocks: so many empty ones, and one with an event.
fn nodes(depths: &[u64], empty: u64) -> Vec<LyingChain> {
    let one = |depth: &u64| {
        let chain = LyingChain::new(31337, *depth);
        chain.mine_empty(empty);
        chain.mine(&asked(1));
        chain
    };
    depths.iter().map(one).collect()
}

#[tokio::test]
async fn one_node_of_three_makes_nothing_final_alone() {
    // The first says that its head is final.
    let chains = nodes(&[0, DEPTH, DEPTH], 7);
    let mut stage = Stage::among(&chains[0], Arc::new(ManyNodes::of(&chains))).await;
    stage.run().await.unwrap();
    let finalized = async |stage: &Stage| stage.status().await.chains[0].finalized.unwrap().number;
    assert_eq!(finalized(&stage).await, 8 - DEPTH);
    assert!(orders(&stage.finals).is_empty(), "it is held");
    for chain in &chains {
        chain.drop_blocks(1);
        chain.mine(&asked(2));
        chain.mine_empty(DEPTH);
    }
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["1", "-1", "2"]);
    assert_eq!(orders(&stage.finals), ["2"]);
    assert_eq!(finalized(&stage).await, 8);
}

#[tokio::test]
async fn the_second_reading_goes_on_with_the_next_node() {
    let chains = nodes(&[DEPTH; 3], 7);
    chains[1].lie(Some(Lie::NoRanges));
    let mut stage = Stage::among(&chains[0], Arc::new(ManyNodes::of(&chains))).await;
    stage.run().await.unwrap();
    let checked = async |stage: &Stage| stage.store.all_checked().await.unwrap()[0].next_block;
    assert_eq!(checked(&stage).await, 1, "it has its place before anything is found");
    stage.later(61_000);
    stage.run().await.unwrap();
    assert_eq!(checked(&stage).await, 8 - DEPTH + 1);
    // With nobody left to ask it waits, and goes on by itself.
    chains[2].lie(Some(Lie::NoRanges));
    for chain in &chains {
        chain.mine_empty(4);
    }
    stage.run().await.unwrap();
    stage.later(61_000);
    stage.run().await.unwrap();
    assert_eq!(checked(&stage).await, 8 - DEPTH + 1);
    chains[1].lie(None);
    stage.later(61_000);
    stage.run().await.unwrap();
    assert_eq!(checked(&stage).await, 12 - DEPTH + 1);
}

#[tokio::test]
async fn old_blocks_that_a_node_has_not_got_are_read_on_another() {
    let chains = nodes(&[DEPTH; 2], 7);
    let mut stage = Stage::among(&chains[0], Arc::new(ManyNodes::of(&chains))).await;
    stage.run().await.unwrap();
    // Not final yet, and followed already: it is read block by block.
    chains[0].lie(Some(Lie::UnknownBlock));
    let mut stage = stage.replaced(Arc::new(ManyNodes::of(&chains)), plan("late", 7));
    stage.run().await.unwrap();
    assert_eq!((orders(&stage.head), stage.next_block("late").await), (vec!["1".to_owned()], 9));
}

#[tokio::test]
async fn an_order_to_read_some_blocks_again_reads_no_more_than_those() {
    let mut stage = Stage::new().await;
    for order in 1..=20 {
        stage.chain.mine(&asked(order));
    }
    stage.run().await.unwrap();
    stage.later(61_000);
    stage.run().await.unwrap();
    stage.prune(100_000).await;
    assert_eq!(stage.store.newest_pruned("local").await.unwrap(), 20 - DEPTH);
    assert!(stage.store.reread("asked", 3, 4).await.unwrap());
    // The poller's own place is not right any more, which it finds with the next block.
    stage.chain.mine_empty(1);
    drop(stage.run().await);
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head)[20..], ["3", "4"], "they were pruned, so they are told again");
    assert_eq!(stage.next_block("asked").await, 22);
    stage.chain.mine(&asked(22));
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head)[22..], ["22"], "and it is where it was");
}

#[tokio::test]
async fn a_new_source_begins_where_both_nodes_are() {
    let chains = nodes(&[DEPTH; 2], 7);
    chains[0].mine(&asked(2));
    chains[0].mine(&asked(3));
    let mut from_now = plan("new", 0);
    from_now.sources[0].from_block = None;
    let stage = Stage::among(&chains[0], Arc::new(ManyNodes::of(&chains))).await;
    let mut stage = stage.replaced(Arc::new(ManyNodes::of(&chains)), from_now.clone());
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["2", "3"], "the second node has not got them yet");
    // One that is far behind has no word in it.
    let chains = [chains[0].clone(), LyingChain::new(31337, DEPTH)];
    chains[0].mine_empty(9);
    from_now.sources[0].name = "newer".to_owned();
    let mut stage = stage.replaced(Arc::new(ManyNodes::of(&chains)), from_now);
    stage.run().await.unwrap();
    assert_eq!(stage.next_block("newer").await, 20);
    assert!(orders(&stage.head).is_empty());
}
