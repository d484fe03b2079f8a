//! Sources and consumers that come later, and what is decoded again.

use super::*;

impl Stage {
    /// The same database and chain, with these sources' sections in place of the usual one.
    fn with_plan(self, plan: ChainPlan, late: &[(String, Wait)]) -> Self {
        Self::with(self.chain.clone(), self.chain, self.store, self._folder, plan, late)
    }
}

#[tokio::test]
async fn on_the_first_start_the_window_begins_at_the_final_block_and_the_rest_is_backfill() {
    let mut stage = Stage::new().await;
    for order in 0..400 {
        stage.chain.mine(&asked(order));
    }
    stage.poller.step().await.unwrap();
    // One step: live blocks are at the head already, and the history has only begun.
    let state = stage.store.load("local").await.unwrap().unwrap();
    assert_eq!(state.cursor.number, 400);
    assert_eq!(state.window.first().map(|link| link.number), Some(400 - DEPTH));
    assert!(state.sources[0].next_block < 300);
    stage.run().await.unwrap();
    let wanted: Vec<String> = (0..400).map(|order| order.to_string()).collect();
    assert_eq!(orders(&stage.head), wanted);
}

#[tokio::test]
async fn a_reorg_sends_no_source_back_to_before_its_first_block() {
    let mut stage = Stage::new().await;
    for order in 1..=9 {
        stage.chain.mine(&asked(order));
    }
    stage.run().await.unwrap();
    // It wants what comes from block 9 on.
    let mut stage = stage.restarted("late", 9);
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["9"]);
    stage.chain.drop_blocks(3);
    for order in 17..=20 {
        stage.chain.mine(&asked(order));
    }
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["9", "-9", "19", "20"], "17 and 18 are from before its start");
    // An operator may have it read from before that; then a reorg goes that far too.
    assert!(stage.store.rewind("late", 8).await.unwrap());
    stage.chain.mine_empty(1);
    drop(stage.run().await);
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head)[4..], ["18"]);
}

#[tokio::test]
async fn a_consumer_that_comes_later_gets_what_stands_if_it_says_so() {
    let mut stage = Stage::new().await;
    stage.chain.mine(&asked(1));
    stage.chain.mine(&asked(2));
    stage.chain.mine_empty(DEPTH);
    stage.chain.mine(&asked(3));
    stage.run().await.unwrap();
    stage.chain.drop_blocks(1);
    stage.chain.mine(&asked(4));
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.finals), ["1", "2"]);
    // The one that says nothing gets what comes; the one that says so gets all that stands, when final.
    let (late, other) = ("trigger:late".to_owned(), "trigger:other".to_owned());
    let waiting = [(late.clone(), Wait::Final)];
    let mut stage = stage.with_plan(plan("asked", 0), &waiting);
    stage.poll().await.unwrap();
    let claim = async |stage: &Stage, consumer: &str| {
        let mut told = Vec::new();
        let (store, now) = (&stage.store, stage.clock.now());
        while let Some(claimed) = store.claim(consumer, "asked", now, 1000).await.unwrap() {
            let event: Value = serde_json::from_str(&claimed.message.body).unwrap();
            told.push(event["data"]["args"]["orderId"].as_str().unwrap().to_owned());
            let done = claviger::ports::watch_store::Ended::Done("tx".to_owned());
            assert!(store.finish(claimed.id, claimed.attempt, &done, now).await.unwrap());
        }
        told
    };
    assert_eq!(claim(&stage, &late).await, ["1", "2"], "4 is not final, 3 is gone");
    assert!(claim(&stage, &other).await.is_empty());
    stage.chain.mine_empty(DEPTH);
    stage.poll().await.unwrap();
    assert_eq!(claim(&stage, &late).await, ["4"]);
    // Once: a restart tells nothing again.
    let mut stage = stage.with_plan(plan("asked", 0), &waiting);
    stage.poll().await.unwrap();
    assert!(claim(&stage, &late).await.is_empty());
}

#[tokio::test]
async fn e30_what_did_not_decode_is_decoded_again_after_its_signature_was_corrected() {
    // Without the word `indexed` it is the same event, and its logs do not decode.
    let wrong = |mut plan: ChainPlan| {
        let text = "Asked(uint256 orderId, uint256 amount)";
        let event = claviger::core::trigger::EventAbi::parse(text).unwrap();
        let address = Some(CONTRACT);
        plan.sources[0].watches = claviger::watch::plan::Watches::Event { address, event };
        plan
    };
    let stage = Stage::new().await;
    let mut stage = stage.with_plan(wrong(plan("asked", 0)), &[]);
    stage.chain.mine(&asked(7));
    stage.chain.mine_empty(2);
    stage.chain.mine(&asked(8));
    stage.run().await.unwrap();
    let mut stage = stage.with_plan(plan("asked", 0), &[]);
    stage.chain.mine(&asked(9));
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["9"], "not by itself");
    // What is still wrong is parked again; what a reorg took with it is not told.
    let sources = ["asked".to_owned()];
    let mut stage = stage.with_plan(wrong(plan("asked", 0)), &[]);
    assert_eq!(stage.store.mark_undecodable(&sources).await.unwrap(), 2);
    stage.run().await.unwrap();
    assert_eq!(stage.status().await.attention.len(), 2);
    let mut stage = stage.with_plan(plan("asked", 0), &[]);
    assert_eq!(stage.store.mark_undecodable(&sources).await.unwrap(), 2);
    stage.chain.drop_blocks(2);
    stage.chain.mine_empty(6);
    // The reorg comes first in a step.
    stage.run().await.unwrap();
    assert_eq!(orders(&stage.head), ["-9", "7"]);
    assert_eq!(orders(&stage.finals), ["7"]);
    let attention = stage.status().await.attention;
    assert!(attention.iter().all(|item| !item.reason.contains("undecodable")), "{attention:?}");
}

#[tokio::test]
async fn what_cannot_be_decoded_again_holds_up_nothing_and_says_why() {
    let mut stage = Stage::new().await;
    let mut logs = asked(1);
    logs[0].2.truncate(31);
    stage.chain.mine(&logs);
    stage.run().await.unwrap();
    assert_eq!(stage.store.mark_undecodable(&["asked".to_owned()]).await.unwrap(), 1);
    stage.chain.lie(Some(Lie::NoHashes));
    stage.chain.mine(&asked(2));
    stage.run().await.unwrap();
    assert_eq!((stage.cursor().await, orders(&stage.head)), (2, vec!["2".to_owned()]));
    let reason = async |stage: &Stage| stage.status().await.attention[0].reason.clone();
    let why = reason(&stage).await;
    assert!(why.contains("undecodable") && why.contains("does not have block"), "{why}");
    // Of a source that is not configured any more.
    assert_eq!(stage.store.mark_undecodable(&["asked".to_owned()]).await.unwrap(), 1);
    let mut stage = stage.with_plan(plan("other", 3), &[]);
    stage.run().await.unwrap();
    let why = reason(&stage).await;
    assert!(why.contains("its source is not configured"), "{why}");
    assert!(stage.store.to_decode_again("local", 9).await.unwrap().is_empty());
}
