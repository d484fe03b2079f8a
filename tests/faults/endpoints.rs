//! Several nodes behind one chain: one that is short of quota, one that lies, one that stands on a fork. What is
//! told as an end is what enough of them say, and none of them can stop the others.

use crate::stage::{FAILPOINT, MINED, Options, Stage, attempts, id, is, of_attempt};
use crate::support::fault_proxy::{Fault, FaultProxy, SEND, Times};
use crate::support::server::{LIMIT, Server};
use crate::support::services::{Anvil, AnvilOptions, Mining, poll_until};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

const RPC: &str = "CLAVIGER__CHAIN__0__RPC";
const AGREE: &str = "CLAVIGER__CHAIN__0__AGREE";

fn rpc(proxies: &[&FaultProxy]) -> String {
    let urls: Vec<String> = proxies.iter().map(|proxy| proxy.url()).collect();
    json!(urls).to_string()
}

/// What a metric says, summed over the labels that match.
async fn metric(server: &Server, name: &str, labels: &[&str]) -> f64 {
    let all = server.metrics().await;
    let matches = |line: &&str| line.starts_with(name) && labels.iter().all(|it| line.contains(it));
    all.lines()
        .filter(matches)
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// The looks of the server at this node's account, since it was asked.
async fn more_looks(proxy: &FaultProxy, count: usize) {
    let until = proxy.count("eth_getTransactionCount") + count;
    poll_until(LIMIT, "more looks", async || {
        (proxy.count("eth_getTransactionCount") >= until).then_some(())
    })
    .await;
}

/// Pays and waits until it is mined, without making its block final.
async fn pay_and_mine(stage: &Stage, server: &Server, key: &str) -> Value {
    let asked = stage.pay(server, key).await;
    let hash = of_attempt(&asked, 0, "hash");
    poll_until(LIMIT, "in the pool", async || stage.has(&hash).await.then_some(())).await;
    stage.anvil.mine(1).await;
    server.wait_for(&id(&asked), MINED).await
}

/// T45: the first of two nodes answers 429 to everything. Payments go on through the second, the first is
/// hardly asked, and is used again when it is well.
#[tokio::test]
async fn t45_a_429_storm_at_one_node_leaves_it_alone_and_the_others_are_used() {
    let stage = Stage::new().await;
    let second = FaultProxy::start(&stage.anvil.url()).await;
    let (server, address) = stage.open(&[(RPC, &rpc(&[&stage.proxy, &second]))]).await;
    let before = stage.pay(&server, "before").await;
    stage.mine_until_mined(&server, &id(&before)).await;
    stage.finish(&server, &id(&before)).await;
    let storm = stage.proxy.throttle(Times::UntilLifted, None);
    let (begun, calls) = (Instant::now(), stage.proxy.count_all());
    // Not mined for a while, and looked at again and again.
    let waits = stage.pay(&server, "storm").await;
    more_looks(&second, 30).await;
    let asked = stage.proxy.count_all() - calls;
    println!("{asked} calls in {:?} of a storm", begun.elapsed());
    // 250 ms and twice as long after each failure: eight failures are half a minute. Calls that were under way
    // together may all come in.
    assert!((1..=12).contains(&asked), "{asked} calls in {:?}", begun.elapsed());
    stage.mine_until_mined(&server, &id(&waits)).await;
    stage.finish(&server, &id(&waits)).await;
    assert_eq!(metric(&server, "claviger_node_up", &["node=\"1\""]).await, 0.0);
    assert_eq!(metric(&server, "claviger_node_up", &["node=\"2\""]).await, 1.0);
    let limited = ["class=\"rate_limited\""];
    assert!(metric(&server, "claviger_rpc_errors_total", &limited).await >= 1.0);
    stage.proxy.lift(storm);
    let after = stage.pay(&server, "after").await;
    more_looks(&stage.proxy, 3).await;
    assert_eq!(metric(&server, "claviger_node_up", &["node=\"1\""]).await, 1.0);
    stage.mine_until_mined(&server, &id(&after)).await;
    stage.finish(&server, &id(&after)).await;
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (3, 3));
    stage.invariants().sent(second.sent()).check().await;
}

/// A node that asks for a pause by `Retry-After` gets it.
#[tokio::test]
async fn t45_retry_after_is_kept() {
    let stage = Stage::new().await;
    let second = FaultProxy::start(&stage.anvil.url()).await;
    let (server, _) = stage.open(&[(RPC, &rpc(&[&stage.proxy, &second]))]).await;
    let asked = stage.pay(&server, "retry-after").await;
    stage.proxy.throttle(Times::UntilLifted, Some(120));
    stage.mine_until_mined(&server, &id(&asked)).await;
    more_looks(&second, 1).await;
    let calls = stage.proxy.count_all();
    stage.finish(&server, &id(&asked)).await;
    more_looks_while_paying(&stage, &server, &second).await;
    assert_eq!(stage.proxy.count_all(), calls, "two minutes are not over");
    stage.invariants().sent(second.sent()).check().await;
}

async fn more_looks_while_paying(stage: &Stage, server: &Server, node: &FaultProxy) {
    let asked = stage.pay(server, "meanwhile").await;
    more_looks(node, 10).await;
    stage.mine_until_mined(server, &id(&asked)).await;
    stage.finish(server, &id(&asked)).await;
}

/// T33: −32603 and other words about a transaction say nothing about the node.
#[tokio::test]
async fn t33_an_internal_error_around_a_transaction_error_is_no_failed_node() {
    let stage = Stage::new().await;
    let (server, address) = stage.open(&[]).await;
    let words = [
        (-32603, "Internal error: nonce too low"),
        (-32603, "replacement transaction underpriced"),
        (-32000, "insufficient funds for gas * price + value"),
        (-32603, "execution reverted: nonce too low"),
    ];
    for (n, (code, message)) in words.into_iter().enumerate() {
        let error = json!({ "code": code, "message": message });
        let rule = stage.proxy.inject(SEND, Times::Once, Fault::Say(error));
        let asked = stage.pay(&server, &format!("t33-{n}")).await;
        stage.proxy.wait_for_hits(rule, 1, LIMIT).await;
        // The only node: were it taken for dead, it would be left alone, and shown as down.
        assert_eq!(metric(&server, "claviger_node_up", &["node=\"1\""]).await, 1.0, "{message}");
        let done = stage.mine_until_mined(&server, &id(&asked)).await;
        assert_eq!(attempts(&stage.finish(&server, &id(&done)).await).len(), 1);
    }
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (4, 4));
    stage.check().await;
}

/// A node that does not answer at all delays nothing: the other one has the bytes at once.
#[tokio::test]
async fn a_dead_node_does_not_delay_a_send() {
    let stage = Stage::with(Options { mines_at_once: true, ..Options::default() }).await;
    let dead = FaultProxy::start(&stage.anvil.url()).await;
    let (server, _) = stage.open(&[(RPC, &rpc(&[&stage.proxy, &dead]))]).await;
    let held = dead.inject(SEND, Times::UntilLifted, Fault::Hold);
    let begun = Instant::now();
    for n in 0..3 {
        let asked = stage.pay(&server, &format!("dead-{n}")).await;
        server.wait_for(&id(&asked), MINED).await;
    }
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(9), "a request may take ten seconds: {took:?}");
    dead.wait_for_hits(held, 3, LIMIT).await;
    dead.lift(held);
    stage.anvil.mine(4).await;
    for one in server.list().await {
        server.wait_for(&id(&one), &["finalized"]).await;
    }
    stage.invariants().sent(dead.sent()).check().await;
}

/// T39: after an end was told in a block, the chain is reorganised below it: `above` blocks make it final,
/// and `depth` of them go.
/// It may be killed when the halt is committed.
async fn t39(stage: Stage, above: u64, depth: u64, killed: bool) {
    let envs = killed.then_some((FAILPOINT, "finality.after_halt"));
    let (mut server, address) = stage.open(envs.as_slice()).await;
    stage.anvil.mine(5).await;
    let told = pay_and_mine(&stage, &server, "t39").await;
    stage.anvil.mine(above).await;
    server.wait_for(&id(&told), &["finalized"]).await;
    // What is in flight when it happens, and not final.
    let flying = pay_and_mine(&stage, &server, "t39-flying").await;
    let signed = attempts(&flying).len();
    stage.anvil.rpc("anvil_reorg", json!([depth, []])).await;
    assert_eq!(stage.paid().await, 0, "the payments are gone");
    if killed {
        server.crashed().await;
        server = stage.setup.start(&[]).await;
    } else {
        poll_until(LIMIT, "the chain is halted", async || {
            server.program.stderr().contains("the chain was halted").then_some(())
        })
        .await;
    }
    // New work is taken, and waits; nothing is told, signed or sent.
    let waiting = stage.ask(&server, "t39-waiting", &crate::support::server::payout(1)).await;
    let sent = stage.proxy.sent().len();
    stage.anvil.mine(80).await;
    more_looks(&stage.proxy, 10).await;
    assert!(is(&server.read(&id(&told)).await, &["finalized"]), "what was told stays told");
    let still = server.read(&id(&flying)).await;
    assert!(is(&still, &["mined", "submitted"]), "no end: {still:#}");
    assert_eq!(attempts(&still).len(), signed, "nothing is signed anew");
    let waiting = server.read(&id(&waiting)).await;
    assert!(is(&waiting, &["queued"]) && waiting["nonce"].is_null(), "{waiting:#}");
    assert_eq!(stage.proxy.sent().len(), sent, "nothing is sent");
    assert_eq!(stage.anvil.nonce(&address).await, 0);
    server.stop().await;
    let store = stage.setup.store().await;
    let found = claviger::ports::store::look(&*store, "halted", |unit| {
        Box::pin(async move {
            let chain = claviger::core::id::ChainId::new(31337);
            let lanes = unit.lanes(chain).await?;
            let leaves = unit.log_leaves(0, 1000).await?;
            Ok((unit.anchor(chain).await?, lanes, leaves))
        })
    });
    let (anchor, lanes, leaves) = found.await.unwrap();
    assert!(anchor.unwrap().broken.is_some() && lanes.iter().all(|lane| lane.halted.is_some()));
    assert_eq!(leaves.iter().filter(|leaf| leaf.kind == "ALARM").count(), 1, "one alarm");
    drop(store);
    // It stands still for the server that comes after, too.
    let server = stage.setup.start(&[]).await;
    poll_until(LIMIT, "the lane stands still", async || {
        server.program.stderr().contains("below its finality").then_some(())
    })
    .await;
    assert!(is(&server.read(&id(&told)).await, &["finalized"]));
    assert_eq!(stage.proxy.sent().len(), sent, "nothing is sent");
    server.stop().await;
    // What was told below the broken anchor is gone; all else holds.
    stage.invariants().except([id(&told)]).check().await;
    let all = stage.invariants().violations().await;
    let gone = all.iter().all(|it| it.invariant == "I5" && it.subject == id(&told));
    assert!(gone && all.len() == 1, "{all:#?}");
}

#[tokio::test]
async fn t39_a_reorg_of_seventy_blocks_below_the_finalized_tag_halts_the_chain() {
    let stage = Stage::with(Options { long_epochs: true, ..Options::default() }).await;
    t39(stage, 66, 70, false).await;
}

#[tokio::test]
async fn t39_a_reorg_below_a_depth_halts_the_chain_and_a_kill_then_changes_nothing() {
    let stage = Stage::with(Options { long_epochs: true, ..Options::default() }).await;
    stage.final_by_depth(3);
    t39(stage, 4, 7, true).await;
}

/// One of three nodes has other blocks all of a sudden: it is alone, and nothing stands still.
#[tokio::test]
async fn t39_one_node_that_denies_a_final_block_halts_nothing() {
    let stage = Stage::new().await;
    let liar = FaultProxy::start(&stage.anvil.url()).await;
    let third = FaultProxy::start(&stage.anvil.url()).await;
    let (server, address) = stage.open(&[(RPC, &rpc(&[&liar, &stage.proxy, &third]))]).await;
    let first = stage.pay(&server, "alone").await;
    stage.mine_until_mined(&server, &id(&first)).await;
    stage.finish(&server, &id(&first)).await;
    let rule =
        liar.inject("eth_getBlockByNumber", Times::UntilLifted, Fault::Rewrite(other_hash()));
    liar.wait_for_hits(rule, 1, LIMIT).await;
    let next = stage.pay(&server, "alone-next").await;
    stage.mine_until_mined(&server, &id(&next)).await;
    stage.finish(&server, &id(&next)).await;
    assert!(!server.program.stderr().contains("halted"), "{}", server.program.tail());
    assert!(metric(&server, "claviger_node_disagreements_total", &[]).await >= 1.0);
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (2, 2));
    let mut sent = liar.sent();
    sent.extend(third.sent());
    stage.invariants().sent(sent).check().await;
}

/// A block whose hash is another one.
fn other_hash() -> crate::support::fault_proxy::Rewriter {
    Arc::new(|_, mut answer| {
        if answer["result"]["number"].as_str().is_some_and(|number| number != "0x0") {
            answer["result"]["hash"] = json!(format!("0x{}", "5c".repeat(32)));
        }
        answer
    })
}

/// False finality: the first node is throttled, the second stands on an orphan of the same history, where the
/// payment is final. With `agree = 2` its word alone ends nothing.
#[tokio::test]
async fn one_node_on_an_orphan_ends_nothing_while_the_other_is_silent() {
    let stage = Stage::new().await;
    // The same first block: one chain until they mine.
    let options = AnvilOptions {
        mining: Mining::Manual,
        args: ["--timestamp", "1700000000"].map(str::to_owned).to_vec(),
        ..AnvilOptions::default()
    };
    let main = Anvil::start(options.clone()).await;
    let orphan = Anvil::start(options).await;
    let (first, second) =
        (FaultProxy::start(&main.url()).await, FaultProxy::start(&orphan.url()).await);
    let nodes = rpc(&[&first, &second]);
    stage.final_by_depth(3);
    let envs = [(RPC, nodes.as_str()), (AGREE, "2")];
    let server = stage.setup.start(&envs).await;
    let address = server.funded_key(&main, "op-1").await;
    orphan.set_balance(&address, 100 * crate::support::server::ETHER).await;
    let asked = stage.pay(&server, "orphan").await;
    let hash = of_attempt(&asked, 0, "hash");
    poll_until(LIMIT, "in both pools", async || {
        let there = json!([hash]);
        let one = main.rpc("eth_getTransactionByHash", there.clone()).await.is_object();
        (one && orphan.rpc("eth_getTransactionByHash", there).await.is_object()).then_some(())
    })
    .await;
    let storm = first.throttle(Times::UntilLifted, None);
    orphan.mine(5).await;
    server.wait_for(&id(&asked), &["mined"]).await;
    more_looks(&second, 20).await;
    let found = server.read(&id(&asked)).await;
    assert!(is(&found, &["mined"]), "no end by one node's word: {found:#}");
    // The first one comes back, with the payment in another block: they contradict each other.
    main.mine(2).await;
    main.mine(5).await;
    first.lift(storm);
    poll_until(LIMIT, "they contradict each other", async || {
        (metric(&server, "claviger_node_disagreements_total", &[]).await >= 1.0).then_some(())
    })
    .await;
    assert!(!is(&server.read(&id(&asked)).await, &["finalized"]));
    server.stop().await;
    let sent = [first.sent(), second.sent()].concat();
    stage.invariants().on(&main.url()).final_at_depth(3).sent(sent).check().await;
}

/// The receipt that nobody has: in a real block, of whatever is asked for.
fn invented(number: u64, block: String) -> crate::support::fault_proxy::Rewriter {
    Arc::new(move |params, _| {
        json!({ "result": {
            "transactionHash": params[0], "blockNumber": format!("{number:#x}"), "blockHash": block,
            "transactionIndex": "0x0", "gasUsed": "0x5208", "cumulativeGasUsed": "0x5208",
            "effectiveGasPrice": "0x1", "status": "0x1", "logs": [], "type": "0x2",
        } })
    })
}

/// A node that shows a receipt whose block does not hold the transaction is not believed, and the other two
/// go on without it.
#[tokio::test]
async fn one_of_three_that_invents_a_receipt_ends_nothing_and_stops_nothing() {
    let stage = Stage::new().await;
    let liar = FaultProxy::start(&stage.anvil.url()).await;
    let third = FaultProxy::start(&stage.anvil.url()).await;
    let (server, address) = stage.open(&[(RPC, &rpc(&[&liar, &stage.proxy, &third]))]).await;
    stage.anvil.mine(8).await;
    let asked = stage.pay(&server, "invented").await;
    let block = stage.anvil.rpc("eth_getBlockByNumber", json!(["0x2", false])).await;
    let receipt = invented(2, block["hash"].as_str().unwrap().to_owned());
    let lie = liar.inject("eth_getTransactionReceipt", Times::UntilLifted, Fault::Rewrite(receipt));
    liar.inject("eth_getTransactionCount", Times::UntilLifted, Fault::Answer(json!("0x1")));
    liar.wait_for_hits(lie, 1, LIMIT).await;
    more_looks(&stage.proxy, 5).await;
    let found = server.read(&id(&asked)).await;
    assert!(is(&found, &["submitted"]), "{found:#}");
    assert!(server.program.stderr().contains("does not hold the transaction"));
    stage.mine_until_mined(&server, &id(&asked)).await;
    let done = stage.finish(&server, &id(&asked)).await;
    assert_eq!(attempts(&done).len(), 1);
    assert_ne!(done["receipt"]["block_hash"], block["hash"]);
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (1, 1));
    let mut sent = liar.sent();
    sent.extend(third.sent());
    stage.invariants().sent(sent).check().await;
}

/// A node whose final block is far ahead of the others' ends nothing; one whose final block stands still stops
/// nothing.
#[tokio::test]
async fn one_of_three_with_another_final_block_ends_nothing_and_stops_nothing() {
    let stage = Stage::with(Options { long_epochs: true, ..Options::default() }).await;
    let liar = FaultProxy::start(&stage.anvil.url()).await;
    let third = FaultProxy::start(&stage.anvil.url()).await;
    let (server, address) = stage.open(&[(RPC, &rpc(&[&liar, &stage.proxy, &third]))]).await;
    let ahead = Arc::new(|params: &Value, mut answer: Value| {
        if params[0] == "finalized" {
            answer["result"]["number"] = json!("0xfff0");
        }
        answer
    });
    let lie = liar.inject("eth_getBlockByNumber", Times::UntilLifted, Fault::Rewrite(ahead));
    let first = pay_and_mine(&stage, &server, "ahead").await;
    more_looks(&liar, 10).await;
    let found = server.read(&id(&first)).await;
    assert!(is(&found, &["mined"]), "no end by one node's word: {found:#}");
    stage.finish(&server, &id(&first)).await;
    liar.lift(lie);
    let genesis = stage.anvil.rpc("eth_getBlockByNumber", json!(["0x0", false])).await;
    let behind =
        Arc::new(
            move |params: &Value, answer: Value| {
                if params[0] == "finalized" { json!({ "result": genesis }) } else { answer }
            },
        );
    liar.inject("eth_getBlockByNumber", Times::UntilLifted, Fault::Rewrite(behind));
    let second = pay_and_mine(&stage, &server, "behind").await;
    stage.finish(&server, &id(&second)).await;
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (2, 2));
    let mut sent = liar.sent();
    sent.extend(third.sent());
    stage.invariants().sent(sent).check().await;
}

/// F9 at the first of two nodes: it has the blocks and no receipts. The other's word counts in its place.
#[tokio::test]
async fn a_node_that_withholds_receipts_holds_nothing_up() {
    let stage = Stage::new().await;
    let second = FaultProxy::start(&stage.anvil.url()).await;
    let (server, address) = stage.open(&[(RPC, &rpc(&[&stage.proxy, &second]))]).await;
    stage.proxy.null_receipts(Times::UntilLifted);
    let asked = stage.pay(&server, "withheld").await;
    stage.mine_until_mined(&server, &id(&asked)).await;
    let done = stage.finish(&server, &id(&asked)).await;
    assert_eq!(attempts(&done).len(), 1);
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (1, 1));
    stage.invariants().sent(second.sent()).check().await;
}
