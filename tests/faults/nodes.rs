//! Nodes that are behind each other, and strangers with our key.

use crate::stage::{
    FAILPOINT, MINED, Options, RESEND_SOON, SUB, Stage, attempts, id, is, of_attempt,
};
use crate::support::fault_proxy::{Fault, FaultProxy, Keeping, Lag, PoolRules, Times};
use crate::support::server::{ETHER, LIMIT, STRANGER, Server, payout};
use crate::support::services::poll_until;
use serde_json::{Value, json};
use std::time::Duration;

/// Stays as it is for so many looks of the server at the chain: each look asks for the final block once.
pub async fn looks(proxies: &[&FaultProxy], count: usize) {
    let seen = || proxies.iter().map(|proxy| proxy.count("eth_getBlockByNumber")).sum::<usize>();
    let until = seen() + count;
    poll_until(LIMIT, "more looks", async || (seen() >= until).then_some(())).await;
}

/// Mines it in the newest block.
async fn mine_just_this(stage: &Stage, server: &Server, asked: &Value) {
    let hash = of_attempt(asked, 0, "hash");
    poll_until(LIMIT, "in the pool", async || stage.has(&hash).await.then_some(())).await;
    stage.anvil.mine(1).await;
    server.wait_for(&id(asked), MINED).await;
}

/// T42: two nodes behind a load balancer, one of them five blocks behind. What was seen mined stays mined,
/// whichever node is asked.
#[tokio::test]
async fn t42_behind_a_load_balancer_a_node_five_blocks_behind_makes_nothing_flap() {
    let stage = Stage::with(Options { long_epochs: true, ..Options::default() }).await;
    let behind = FaultProxy::start(&stage.anvil.url()).await;
    let balancer = FaultProxy::over(&[&stage.proxy.url(), &behind.url()]).await;
    let rpc = format!("[\"{}\"]", balancer.url());
    let (server, address) = stage.open(&[("CLAVIGER__CHAIN__0__RPC", &rpc), RESEND_SOON]).await;
    stage.anvil.mine(6).await;
    let asked = stage.pay(&server, "t42").await;
    mine_just_this(&stage, &server, &asked).await;
    let signed = attempts(&server.read(&id(&asked)).await).len();
    let nonce_reads = || balancer.count("eth_getTransactionCount");
    let reads = nonce_reads();
    behind.lag(Some(Lag::all(5)));
    // Long enough for the lagging node to be asked for everything, and for a bump to be due.
    poll_until(LIMIT, "many looks", async || (nonce_reads() >= reads + 40).then_some(())).await;
    let still = server.read(&id(&asked)).await;
    assert!(is(&still, MINED), "{still:#}");
    stage.make_final().await;
    server.wait_for(&id(&asked), &["finalized"]).await;
    assert_eq!(attempts(&server.read(&id(&asked)).await).len(), signed, "no new bytes");
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (1, 1));
    let mut sent = stage.proxy.sent();
    sent.extend(behind.sent());
    stage.invariants().sent(sent).check().await;
    server.stop().await;
    assert_eq!(stage.events(&id(&asked)).await, ["queued", "submitted", "mined", "finalized"]);
}

/// The first node of the configuration falls behind after a transaction was seen mined on it.
#[tokio::test]
async fn t42_the_first_node_falls_behind_and_what_was_mined_stays_mined() {
    let stage = Stage::with(Options { long_epochs: true, ..Options::default() }).await;
    let second = FaultProxy::start(&stage.anvil.url()).await;
    let rpc = format!("[\"{}\", \"{}\"]", stage.proxy.url(), second.url());
    let (server, address) = stage.open(&[("CLAVIGER__CHAIN__0__RPC", &rpc), RESEND_SOON]).await;
    stage.anvil.mine(6).await;
    let asked = stage.pay(&server, "t42b").await;
    mine_just_this(&stage, &server, &asked).await;
    let signed = attempts(&server.read(&id(&asked)).await).len();
    stage.proxy.lag(Some(Lag::all(5)));
    looks(&[&stage.proxy], 30).await;
    let still = server.read(&id(&asked)).await;
    assert!(is(&still, MINED), "{still:#}");
    stage.proxy.lag(None);
    stage.finish(&server, &id(&asked)).await;
    assert_eq!(attempts(&server.read(&id(&asked)).await).len(), signed, "no new bytes");
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (1, 1));
    stage.check().await;
    server.stop().await;
    assert_eq!(stage.events(&id(&asked)).await, ["queued", "submitted", "mined", "finalized"]);
}

/// The first node is behind all the time: by its count nothing is mined, and a replacement would be due.
#[tokio::test]
async fn t42_what_another_node_has_mined_already_is_not_signed_anew() {
    let stage = Stage::with(Options { long_epochs: true, ..Options::default() }).await;
    let ahead = FaultProxy::start(&stage.anvil.url()).await;
    let rpc = format!("[\"{}\", \"{}\"]", stage.proxy.url(), ahead.url());
    let envs = [("CLAVIGER__CHAIN__0__RPC", rpc.as_str()), RESEND_SOON];
    let (server, address) = stage.open(&envs).await;
    stage.anvil.mine(6).await;
    stage.proxy.lag(Some(Lag::all(5)));
    let asked = stage.pay(&server, "t42c").await;
    let hash = of_attempt(&asked, 0, "hash");
    poll_until(LIMIT, "in the pool", async || stage.has(&hash).await.then_some(())).await;
    stage.anvil.mine(1).await;
    // Two resends of the same bytes: longer than a replacement takes.
    let sent = stage.proxy.sent().len();
    poll_until(LIMIT, "sent again", async || (stage.proxy.sent().len() >= sent + 3).then_some(()))
        .await;
    let found = server.read(&id(&asked)).await;
    assert!(is(&found, &["submitted"]), "{found:#}");
    // The first node comes to the block in which it is.
    stage.anvil.mine(5).await;
    stage.finish(&server, &id(&asked)).await;
    assert_eq!(attempts(&server.read(&id(&asked)).await).len(), 1, "no new bytes");
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (1, 1));
    stage.invariants().sent(ahead.sent()).check().await;
}

/// T22: our nonce 0 is out, and somebody else's transaction with nonce 0 is mined.
#[tokio::test]
async fn t22_a_stranger_used_our_nonce_and_the_lane_halts_with_an_alarm() {
    let stage = Stage::new().await;
    let keeping = Keeping::Withhold;
    stage.proxy.pool_rules(Some(PoolRules { keeping, ..PoolRules::default() }));
    // Killed when the halt is committed: it stands for the server that comes after.
    let (mut server, address) = stage.open(&[(FAILPOINT, "follow.after_halt")]).await;
    let asked = stage.pay(&server, "t22").await;
    let hash = stage.stranger_sends(&address).await;
    stage.make_final().await;
    // The chain must say so for a minute before it is believed.
    server.program.exit_status(Duration::from_secs(120)).await;
    server.crashed().await;
    let server = stage.setup.start(&[]).await;
    let next = stage.ask(&server, "next", &payout(ETHER)).await;
    assert!(is(&next, &["queued"]) && next["nonce"].is_null(), "nothing is issued: {next:#}");
    let found = server.read(&id(&asked)).await;
    assert!(is(&found, &["submitted"]), "no end is told: {found:#}");
    assert_eq!((attempts(&found).len(), stage.paid().await), (1, 0));
    stage.invariants().foreign([hash]).check().await;
    server.stop().await;
    alarm_was_recorded(&stage).await;
}

/// Nothing of ours was out: the chain has mined more than we ever gave.
#[tokio::test]
async fn t22_a_lane_whose_chain_is_ahead_gives_no_nonce_and_alarms() {
    let stage = Stage::new().await;
    let (server, address) = stage.open(&[]).await;
    let hash = stage.stranger_sends(&address).await;
    let asked = stage.ask(&server, "ahead", &payout(ETHER)).await;
    poll_until(LIMIT, "the lane is halted", async || {
        server.program.stderr().contains("the lane is halted").then_some(())
    })
    .await;
    let asked = server.read(&id(&asked)).await;
    assert!(is(&asked, &["queued"]) && asked["nonce"].is_null(), "{asked:#}");
    assert!(stage.proxy.sent().is_empty());
    stage.invariants().foreign([hash]).check().await;
    assert_eq!(stage.anvil.balance(STRANGER).await % ETHER, 1);
    server.stop().await;
    alarm_was_recorded(&stage).await;
}

async fn alarm_was_recorded(stage: &Stage) {
    let store = stage.setup.store().await;
    let leaves = claviger::ports::store::look(&*store, "leaves", |unit| {
        Box::pin(async move {
            let waiting = unit.waiting_leaves(1000).await?.into_iter().map(|leaf| leaf.kind);
            let logged = unit.log_leaves(0, 1000).await?.into_iter().map(|leaf| leaf.kind);
            Ok(waiting.chain(logged).collect::<Vec<_>>())
        })
    });
    assert!(leaves.await.unwrap().iter().any(|kind| kind == "ALARM"));
}

/// F9: a node that has the block and no receipts. Nothing is concluded from that.
#[tokio::test]
async fn receipts_that_are_null_for_a_while_end_nothing_and_sign_nothing() {
    let stage = Stage::new().await;
    let (server, address) = stage.open(&[RESEND_SOON]).await;
    let rule = stage.proxy.inject(
        "eth_getTransactionReceipt",
        Times::UntilLifted,
        Fault::Answer(Value::Null),
    );
    let asked = stage.pay(&server, "null").await;
    let hash = of_attempt(&asked, 0, "hash");
    poll_until(LIMIT, "in the pool", async || stage.has(&hash).await.then_some(())).await;
    stage.anvil.mine(1).await;
    stage.make_final().await;
    let signed = attempts(&server.read(&id(&asked)).await).len();
    // Longer than a replacement would take to be due.
    stage.proxy.wait_for_hits(rule, 25, LIMIT).await;
    let found = server.read(&id(&asked)).await;
    assert!(is(&found, &["submitted"]), "{found:#}");
    stage.proxy.lift(rule);
    let done = server.wait_for(&id(&asked), &["finalized"]).await;
    assert_eq!(attempts(&done).len(), signed);
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (1, 1));
    stage.check().await;
}

/// F7: the only node refuses every call for want of quota, by status and by code. It is asked less and less
/// often, callers are told at once, and it goes on where it was.
#[tokio::test]
async fn a_node_without_quota_for_a_while_loses_nothing() {
    let stage = Stage::new().await;
    let (server, address) = stage.open(&[]).await;
    let first = stage.pay(&server, "before").await;
    let limited = json!({ "code": -32005, "message": "limit exceeded" });
    let mut asked = Vec::new();
    for fault in [Fault::Status(429), Fault::Status(503), Fault::Say(limited)] {
        let rule = stage.proxy.inject("*", Times::UntilLifted, fault);
        stage.proxy.wait_for_hits(rule, 2, LIMIT).await;
        let key = format!("meanwhile-{}", asked.len());
        let refused = server.ask(SUB, &key, &payout(ETHER)).await;
        assert_eq!(refused.status, 503, "{:#}", refused.body);
        stage.proxy.lift(rule);
        poll_until(LIMIT, "the node is asked again", async || {
            let answer = server.ask(SUB, &key, &payout(ETHER)).await;
            (answer.status == 201).then_some(())
        })
        .await;
        asked.push(stage.pay(&server, &key).await);
    }
    asked.push(first);
    for one in &asked {
        stage.mine_until_mined(&server, &id(one)).await;
    }
    for one in &asked {
        assert_eq!(attempts(&stage.finish(&server, &id(one)).await).len(), 1);
    }
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (4, 4));
    stage.check().await;
}
