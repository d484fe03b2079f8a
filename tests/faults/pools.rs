//! Nodes that drop transactions, answer in their own words, or find the account empty: followed all the same.

use crate::stage::{GWEI, Options, RESEND_SOON, SUB, Stage, attempts, decoded, id, is, of_attempt};
use crate::support::fault_proxy::{Fault, PoolRules, SEND, Times};
use crate::support::server::{ETHER, LIMIT, PAYEE, PROCESSOR, charge_grant, payout, payout_grants};
use crate::support::services::{poll_until, word};
use claviger::ports::clock::Clock;
use claviger::system::SystemClock;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

#[tokio::test]
async fn t17_what_the_pool_dropped_is_sent_again_within_the_resend_time() {
    let stage = Stage::new().await;
    let resend_after = Duration::from_secs(20);
    let (server, address) = stage.open(&[("CLAVIGER__CHAIN__0__RESEND_AFTER", "20s")]).await;
    let asked = stage.pay(&server, "t17").await;
    let hash = of_attempt(&asked, 0, "hash");
    for _ in 0..2 {
        poll_until(LIMIT, "in the pool", async || stage.has(&hash).await.then_some(())).await;
        stage.anvil.rpc("anvil_dropTransaction", json!([hash])).await;
        let dropped = Instant::now();
        poll_until(LIMIT, "in it again", async || stage.has(&hash).await.then_some(())).await;
        assert!(dropped.elapsed() < resend_after, "{:?}", dropped.elapsed());
    }
    stage.mine_until_mined(&server, &id(&asked)).await;
    let done = stage.finish(&server, &id(&asked)).await;
    assert_eq!(attempts(&done).len(), 1, "nothing new was signed");
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (1, 1));
    stage.check().await;
}

#[tokio::test]
async fn t18_a_lane_whose_twenty_transactions_were_dropped_is_sent_again_from_its_lowest_nonce() {
    let stage = Stage::new().await;
    let envs = [
        ("CLAVIGER__CHAIN__0__MAX_IN_FLIGHT", "32"),
        // The first round comes when all twenty have been out for a while.
        ("CLAVIGER__CHAIN__0__REBROADCAST_AFTER", "8s"),
    ];
    let (server, address) = stage.open(&envs).await;
    let mut asked = Vec::new();
    for n in 0..20 {
        asked.push(stage.pay(&server, &format!("t18-{n}")).await);
    }
    let last = of_attempt(&asked[19], 0, "hash");
    poll_until(LIMIT, "all are in the pool", async || stage.has(&last).await.then_some(())).await;
    let first = stage.proxy.sent().len();
    stage.anvil.rpc("anvil_dropAllTransactions", json!([])).await;
    poll_until(LIMIT, "all were sent again", async || {
        (stage.proxy.sent().len() >= first + 20).then_some(())
    })
    .await;
    let nonce = |raw: &String| decoded(raw).nonce().unwrap().as_u64();
    let again: Vec<u64> = stage.proxy.sent()[first..first + 20].iter().map(nonce).collect();
    assert_eq!(again, (0..20).collect::<Vec<_>>(), "lowest nonce first");
    stage.mine_until_mined(&server, &id(&asked[19])).await;
    for one in &asked {
        let done = stage.finish(&server, &id(one)).await;
        assert_eq!(attempts(&done).len(), 1);
    }
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (20, 20));
    stage.check().await;
}

#[tokio::test]
async fn t20_already_known_in_five_dialects_is_success() {
    let stage = Stage::new().await;
    let (server, address) = stage.open(&[]).await;
    let dialects = [
        json!({ "code": -32000, "message": "already known" }), // geth, reth
        json!({ "code": -32010, "message": "AlreadyKnown, Transaction is already known" }), // Nethermind
        json!({ "code": -32000, "message": "Known transaction" }),                          // Besu
        json!({ "code": -32000, "message": "INTERNAL_ERROR: existing tx with same hash" }), // Erigon
        json!({ "code": -32003, "message": "transaction already imported" }),               // anvil
    ];
    let mut asked = Vec::new();
    for (n, said) in dialects.into_iter().enumerate() {
        let rule = stage.proxy.inject(SEND, Times::Once, Fault::SayAfter(said));
        asked.push(stage.pay(&server, &format!("t20-{n}")).await);
        stage.proxy.wait_for_hits(rule, 1, LIMIT).await;
    }
    for one in &asked {
        stage.mine_until_mined(&server, &id(one)).await;
    }
    for one in &asked {
        assert_eq!(attempts(&stage.finish(&server, &id(one)).await).len(), 1);
    }
    assert!(!server.program.stderr().contains("did not take the bytes"), "all are success");
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (5, 5));
    stage.check().await;
}

#[tokio::test]
async fn t26_an_empty_account_parks_its_lane_and_no_other_and_goes_on_after_a_top_up() {
    let stage = Stage::new().await;
    let (server, poor) = stage.open(&[]).await;
    let rich = server.funded_key(&stage.anvil, "op-2").await;
    let of = |address: &str| {
        let mut body = payout(ETHER);
        body["signer"] = json!(address);
        body
    };
    let head = stage.pay_as(&server, "head", &of(&poor)).await;
    let hash = of_attempt(&head, 0, "hash");
    poll_until(LIMIT, "in the pool", async || stage.has(&hash).await.then_some(())).await;
    stage.anvil.set_balance(&poor, 0).await;
    stage.anvil.rpc("anvil_dropTransaction", json!([hash])).await;
    // A reading of the balance is used for a second: it must be older than this answer of the node's.
    let read_again = SystemClock.now().plus_millis(1_500).to_string();
    poll_until(LIMIT, "the node finds it empty", async || {
        let found = server.read(&id(&head)).await;
        let last = &found["attempts"][0];
        let sent_at = last["sent_at"].as_str()?;
        (last["answer"] == "unfunded" && sent_at > read_again.as_str()).then_some(())
    })
    .await;

    let behind = stage.ask(&server, "behind", &of(&poor)).await;
    let other = stage.ask(&server, "other", &of(&rich)).await;
    stage.mine_until_mined(&server, &id(&other)).await;
    stage.finish(&server, &id(&other)).await;
    let parked = server.read(&id(&behind)).await;
    assert!(is(&parked, &["queued"]) && parked["nonce"].is_null(), "{parked:#}");
    assert!(is(&server.read(&id(&head)).await, &["submitted"]));

    stage.anvil.set_balance(&poor, 10 * ETHER).await;
    for one in [&head, &behind] {
        stage.mine_until_mined(&server, &id(one)).await;
        stage.finish(&server, &id(one)).await;
    }
    assert_eq!((stage.anvil.nonce(&poor).await, stage.anvil.nonce(&rich).await), (2, 1));
    assert_eq!(stage.paid().await, 3);
    stage.check().await;
}

#[tokio::test]
async fn t27_drained_between_an_attempt_and_its_bump_the_attempt_is_still_followed() {
    let stage = Stage::new().await;
    stage.proxy.pool_rules(Some(PoolRules::default()));
    let (server, address) = stage.open(&[RESEND_SOON]).await;
    let asked = stage.pay(&server, "t27").await;
    let (first, hash) = (of_attempt(&asked, 0, "raw"), of_attempt(&asked, 0, "hash"));
    poll_until(LIMIT, "in the pool", async || stage.has(&hash).await.then_some(())).await;
    stage.anvil.set_balance(&address, 0).await;
    poll_until(LIMIT, "a bump that cannot be paid", async || {
        let found = server.read(&id(&asked)).await;
        let refused = server.program.stderr().contains("InsufficientFunds");
        (attempts(&found).len() >= 2 && refused).then_some(())
    })
    .await;
    assert!(is(&server.read(&id(&asked)).await, &["submitted"]));
    // Money comes back, and the node still has the first.
    stage.proxy.inject(SEND, Times::UntilLifted, Fault::DropRequest);
    stage.anvil.rpc("anvil_dropAllTransactions", json!([])).await;
    stage.anvil.set_balance(&address, 10 * ETHER).await;
    stage.hand_over(&first).await;
    let mined = stage.mine_until_mined(&server, &id(&asked)).await;
    assert_eq!(mined["receipt"]["transaction_hash"], of_attempt(&asked, 0, "hash"));
    stage.finish(&server, &id(&asked)).await;
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (1, 1));
    stage.check().await;
}

#[tokio::test]
async fn t33_an_internal_error_around_a_transaction_error_does_not_lose_the_node() {
    let stage = Stage::new().await;
    let (server, address) = stage.open(&[]).await;
    for (n, data) in [json!("replacement transaction underpriced"), json!(null)].iter().enumerate()
    {
        let said = json!({ "code": -32603, "message": "Internal error", "data": data });
        let rule = stage.proxy.inject(SEND, Times::N(2), Fault::Say(said));
        let asked = stage.pay(&server, &format!("t33-{n}")).await;
        stage.proxy.wait_for_hits(rule, 2, LIMIT).await;
        stage.mine_until_mined(&server, &id(&asked)).await;
        assert_eq!(attempts(&stage.finish(&server, &id(&asked)).await).len(), 1);
    }
    let raws: BTreeSet<String> = stage.proxy.sent().into_iter().collect();
    assert_eq!(raws.len(), 2, "the same bytes until the node took them");
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (2, 2));
    stage.check().await;
}

/// A contract that reverts whatever it is called with, for this reason of less than 32 letters: it copies the
/// bytes behind its first twelve to memory, and reverts with them. They are an ABI-encoded `Error(string)`.
fn reverting_with(reason: &str) -> String {
    let text = format!("{:0<64}", hex::encode(reason));
    format!("0x6064600c60003960646000fd08c379a0{:064x}{:064x}{text}", 32, reason.len())
}

#[tokio::test]
async fn t32_a_revert_that_says_nonce_too_low_is_a_revert() {
    // A call that needs no event.
    let call = charge_grant("payments", "").replace("svc:watcher", SUB);
    let call = call.lines().filter(|line| !line.starts_with("event = ")).collect::<Vec<_>>();
    let grants = Some(format!("{}{}", payout_grants("100.0"), call.join("\n")));
    let stage = Stage::with(Options { grants, ..Options::default() }).await;
    let (server, address) = stage.open(&[]).await;
    let code = json!([PROCESSOR, reverting_with("nonce too low")]);
    stage.anvil.rpc("anvil_setCode", code).await;
    let data = stage.anvil.calldata("executeCharge(uint256,uint256)", &[word(1), word(1)]).await;
    let body = json!({ "chain": "local", "signer": "payments", "to": PROCESSOR, "value": "0",
        "data": data });
    let refused = server.ask(SUB, "t32", &body).await;
    assert_eq!((refused.status, refused.code()), (422, "would-revert"), "{:#}", refused.body);
    assert!(refused.body.to_string().contains("nonce too low"), "{:#}", refused.body);

    // A node that executes what it is sent says it there: the nonce is not used up.
    let said = json!({ "code": 3, "message": "execution reverted: nonce too low" });
    let rule = stage.proxy.inject(SEND, Times::N(2), Fault::Say(said));
    let asked = stage.pay(&server, "t32b").await;
    stage.proxy.wait_for_hits(rule, 2, LIMIT).await;
    assert!(server.program.stderr().contains("Refused"), "{}", server.program.tail());
    assert!(is(&server.read(&id(&asked)).await, &["submitted"]));
    stage.mine_until_mined(&server, &id(&asked)).await;
    stage.finish(&server, &id(&asked)).await;
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (1, 1));
    stage.check().await;
}

#[tokio::test]
async fn t51_a_revert_on_the_chain_uses_its_nonce_and_the_next_moves() {
    let stage = Stage::new().await;
    let (server, address) = stage.open(&[]).await;
    // Both are in the pool before the payee becomes a contract that a plain transfer has no gas for.
    let reverting = stage.pay(&server, "t51").await;
    let hash = of_attempt(&reverting, 0, "hash");
    poll_until(LIMIT, "in the pool", async || stage.has(&hash).await.then_some(())).await;
    stage.anvil.rpc("anvil_setCode", json!([PAYEE, "0x60006000fd"])).await;
    stage.mine_until_mined(&server, &id(&reverting)).await;
    stage.anvil.rpc("anvil_setCode", json!([PAYEE, "0x"])).await;
    let next = stage.pay(&server, "next").await;
    stage.mine_until_mined(&server, &id(&next)).await;
    stage.make_final().await;
    let ended = server.wait_for(&id(&reverting), &["reverted"]).await;
    assert_eq!((&ended["nonce"], &ended["receipt"]["success"]), (&json!("0"), &json!(false)));
    let moved = server.wait_for(&id(&next), &["finalized"]).await;
    assert_eq!(moved["nonce"], "1");
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (2, 1));
    stage.check().await;
    server.stop().await;
    let due = ["queued", "submitted", "mined", "reverted"];
    assert_eq!(stage.events(&id(&reverting)).await, due);
}

/// An account that a client's pool lets have few transactions: the others wait, and all are mined.
#[tokio::test]
async fn what_is_beyond_a_pools_limit_for_one_account_is_sent_again_until_there_is_room() {
    let stage = Stage::new().await;
    let rules = PoolRules { per_account: 2, ..PoolRules::default() };
    stage.proxy.pool_rules(Some(rules));
    let (server, address) = stage.open(&[]).await;
    let mut asked: Vec<Value> = Vec::new();
    for n in 0..5 {
        asked.push(stage.pay(&server, &format!("limit-{n}")).await);
    }
    poll_until(LIMIT, "as many as may be", async || {
        (stage.proxy.sent().len() >= 5 && stage.proxy.pooled().len() == 2).then_some(())
    })
    .await;
    for one in &asked {
        stage.mine_until_mined(&server, &id(one)).await;
    }
    for one in &asked {
        assert_eq!(attempts(&stage.finish(&server, &id(one)).await).len(), 1);
    }
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (5, 5));
    stage.check().await;
}

/// A pool that adds up what an account's transactions may cost together. The lane asks for less than that.
#[tokio::test]
async fn what_is_in_flight_together_is_never_more_than_the_account_has() {
    let stage = Stage::new().await;
    stage.proxy.pool_rules(Some(PoolRules::default()));
    let server = stage.setup.start(&[]).await;
    let address = server.key("op-1", Some("payments"), "managed").await;
    stage.anvil.set_balance(&address, 3 * ETHER + 300_000 * GWEI).await;
    let mut asked: Vec<Value> = Vec::new();
    for n in 0..5 {
        asked.push(stage.ask(&server, &format!("sum-{n}"), &payout(ETHER)).await);
    }
    poll_until(LIMIT, "three are in the pool", async || {
        (stage.proxy.pooled().len() == 3).then_some(())
    })
    .await;
    let all = server.list().await;
    assert_eq!(all.iter().filter(|one| is(one, &["submitted"])).count(), 3);
    assert!(!server.program.stderr().contains("InsufficientFunds"));
    stage.anvil.set_balance(&address, 10 * ETHER).await;
    for one in &asked {
        stage.mine_until_mined(&server, &id(one)).await;
        stage.finish(&server, &id(one)).await;
    }
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (5, 5));
    stage.check().await;
}
