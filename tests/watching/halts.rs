//! A fork below finality, and nodes on different forks: the real watcher, real chains.

use super::*;

/// Another node of the chain, which is on a fork of its own after this block.
async fn forked(stage: &Stage, after: u64) -> Anvil {
    let args = vec![
        "--fork-url".to_owned(),
        stage.anvil.url(),
        "--fork-block-number".to_owned(),
        after.to_string(),
    ];
    Anvil::start(AnvilOptions { mining: Mining::Manual, args, ..AnvilOptions::default() }).await
}

impl Stage {
    fn halted(&self) -> Option<String> {
        self.status()["chains"][0]["halted"].as_str().map(str::to_owned)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e8_a_reorg_of_70_blocks_stops_the_chain_and_takes_nothing_back_until_it_is_resumed() {
    // Final are blocks 8 below the head; the source tells at the head.
    let setting = Setting { finality: "{ depth = 0 }", ..Setting::default() };
    let stage = Stage::with(setting).await;
    let mut watcher = stage.watcher();
    stage.at_head().await;
    stage.anvil.mine(20).await;
    stage.ask(1).await;
    stage.anvil.mine(60).await;
    stage.outbox("done", 1).await;
    stage.at_head().await;
    let before = stage.status()["chains"][0].clone();
    stage.trouble();
    stage.reorg(70).await;
    stage.ask(2).await;
    stage.anvil.mine(12).await;
    let line = watcher.wait_for_line("the chain is halted", LIMIT).await;
    assert!(line.contains("below finality"), "{line}");
    let after = stage.status()["chains"][0].clone();
    for kept in ["cursor", "finalized", "sources"] {
        assert_eq!(before[kept], after[kept], "nothing is rolled back");
    }
    assert_eq!((stage.count("done"), stage.orders()), (1, vec![1]), "and nothing is retracted");
    stage.stop(watcher).await;
    // A restart does not lift it, and says so again.
    let mut watcher = stage.watcher();
    watcher.wait_for_line("the chain is halted", LIMIT).await;
    assert!(stage.halted().unwrap().contains("below finality"));
    let (ok, text) = stage.command(&["resume", "--chain", "other", "--reason", "x", "--config"]);
    assert!(!ok && text.contains("no chain other"), "{text}");
    let reason = "the other fork was the provider's mistake";
    let resume = ["resume", "--chain", "local", "--reason", reason, "--config"];
    let (ok, text) = stage.command(&resume);
    assert!(ok && text.contains("1 events above it were retracted"), "{text}");
    assert_eq!(stage.halted(), None);
    let (ok, text) = stage.command(&resume);
    assert!(!ok && text.contains("not halted"), "{text}");
    stage.stop(watcher).await;
    let watcher = stage.watcher();
    stage.outbox("done", 3).await;
    assert_eq!(stage.orders(), [1, 2]);
    stage.shown("retraction", 1).await;
    stage.at_head().await;
    stage.stop(watcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_on_a_fork_of_its_own_is_passed_over_and_the_chain_goes_on() {
    let mut stage = Stage::new().await;
    stage.anvil.mine(20).await;
    // The first node leaves after block 18; the other two are of one mind.
    let alone = forked(&stage, 18).await;
    let rpc = format!("{}\", \"{}\", \"{}", alone.url(), stage.anvil.url(), stage.anvil.url());
    stage.configure(Setting { rpc: Some(rpc), finality: "{ depth = 1 }", ..Setting::default() });
    let mut watcher = stage.watcher();
    stage.ask(1).await;
    stage.anvil.mine(4).await;
    stage.outbox("done", 1).await;
    stage.at_head().await;
    // Its fork grows beyond the others' head, and leaves ours where it is final already.
    alone.mine(30).await;
    watcher.wait_for_line("a node is on a branch that others contradict", LIMIT).await;
    stage.ask(2).await;
    stage.anvil.mine(12).await;
    stage.outbox("done", 2).await;
    stage.at_head().await;
    assert_eq!((stage.orders(), stage.halted()), (vec![1, 2], None));
    assert!(stage.attention("retraction").is_empty());
    stage.stop(watcher).await;
}
