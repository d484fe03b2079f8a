//! Several server processes over one PostgreSQL: who holds a lane's lease works it, who was stopped for too
//! long writes nothing when it goes on, and an operator's word is carried out wherever it arrives.

use crate::stage::{MINED, Options, RESEND_SOON, SUB, Stage, attempts, id, of_attempt};
use crate::support::fault_proxy::{Fault, SEND, Times};
use crate::support::server::{ETHER, LIMIT, Server, payout};
use crate::support::services::{Postgres, poll_until};
use claviger::core::id::HolderId;
use claviger::ports::store::look;
use futures::future::join_all;
use serde_json::{Value, json};
use sqlx::Connection as _;
use std::collections::BTreeMap;
use std::time::Instant;

/// A lease that no test outlives.
const LONG: (&str, &str) = ("CLAVIGER__SERVER__LEASE", "10m");
/// Long enough for a server on a busy machine to renew it, short enough to wait for its end.
const SHORT: (&str, &str) = ("CLAVIGER__SERVER__LEASE", "3s");
const SECOND: &str = "audit-2.record";

async fn stage(mines_at_once: bool) -> Stage {
    let store_url = Some(Postgres::shared().await.create_database());
    Stage::with(Options { store_url, mines_at_once, ..Options::default() }).await
}

/// Who holds a lane, and by which token.
async fn lease(stage: &Stage, address: &str) -> Option<(HolderId, i64)> {
    let (store, address) = (stage.setup.store().await, address.parse().unwrap());
    let chain = claviger::core::id::ChainId::new(31337);
    let found = look(&*store, "lease", move |unit| {
        Box::pin(async move { unit.lease(chain, address).await })
    });
    found.await.unwrap().map(|row| (row.lease.holder, row.lease.token))
}

/// Writes that a server's stale leases kept out, by unit.
async fn fenced(server: &Server, unit: &str) -> f64 {
    server.metric("claviger_fenced_writes_total", &[("unit", unit)]).await
}

async fn has_attempts(server: &Server, id: &str, count: usize) -> Value {
    poll_until(LIMIT, &format!("{count} signed attempts"), async || {
        let found = server.read(id).await;
        (attempts(&found).len() >= count).then_some(found)
    })
    .await
}

fn of(address: &str) -> Value {
    let mut body = payout(ETHER);
    body["signer"] = json!(address);
    body
}

#[tokio::test]
async fn t9_five_hundred_requests_on_one_group_over_two_servers_have_unique_contiguous_nonces() {
    let stage = stage(true).await;
    let (mut one, first) = stage.open(&[]).await;
    let mut addresses = vec![first];
    for label in ["op-2", "op-3", "op-4"] {
        addresses.push(one.funded_key(&stage.anvil, label).await);
    }
    let mut two = stage.setup.start_beside(SECOND, &[]).await;
    let begun = Instant::now();
    // One after the other they take a lane each, the other one standing still, so that both have work.
    two.program.signal("STOP");
    stage.pay_as(&one, "t9-498", &payout(1_000)).await;
    two.program.signal("CONT");
    one.program.signal("STOP");
    stage.pay_as(&two, "t9-499", &payout(1_000)).await;
    one.program.signal("CONT");
    for round in 0..20 {
        let asked = (0..25).map(|n| round * 25 + n).filter(|n| *n < 498).map(|n| {
            let server = if n % 2 == 0 { &one } else { &two };
            let stage = &stage;
            async move { stage.ask(server, &format!("t9-{n}"), &payout(1_000)).await }
        });
        join_all(asked).await;
    }
    let asked = begun.elapsed();
    let mut raw = sqlx::PgConnection::connect(stage.setup.store_url()).await.unwrap();
    poll_until(LIMIT, "all are final", async || {
        stage.anvil.mine(1).await;
        let sql = "SELECT count(*) FROM transactions WHERE status = 'finalized'";
        let done: i64 = sqlx::query_scalar(sql).fetch_one(&mut raw).await.unwrap();
        (done == 500).then_some(())
    })
    .await;
    let sql = "SELECT '0x' || encode(address, 'hex'), nonce FROM transactions ORDER BY 1, 2";
    let given: Vec<(String, i64)> = sqlx::query_as(sql).fetch_all(&mut raw).await.unwrap();
    let mut lanes = BTreeMap::<String, Vec<i64>>::new();
    for (address, nonce) in given {
        lanes.entry(address).or_default().push(nonce);
    }
    let mut used = 0;
    for address in &addresses {
        let nonces = &lanes[address];
        let mined = stage.anvil.nonce(address).await;
        assert_eq!(*nonces, (0..i64::try_from(mined).unwrap()).collect::<Vec<_>>(), "{address}");
        used += nonces.len();
    }
    assert_eq!((used, lanes.len()), (500, 4));
    for server in [&one, &two] {
        let first = server.metric("claviger_attempts_total", &[("kind", "first")]).await;
        assert!(first > 0.0, "a server did no work");
        println!("t9: one server sent {first} of 500 first attempts");
    }
    println!("t9: 500 answered in {asked:?}, final after {:?}", begun.elapsed());
    stage.check().await;
}

#[tokio::test]
async fn a_server_stopped_past_its_lease_decides_nothing_although_no_row_has_changed() {
    let stage = stage(false).await;
    // Only the first server replaces what is not mined, each second. It has the lane before there is another.
    let (mut late, address) = stage.open(&[SHORT, RESEND_SOON]).await;
    let payment = stage.pay(&late, "first").await;
    let never = ("CLAVIGER__CHAIN__0__RESEND_AFTER", "1h");
    let other = stage.setup.start_beside(SECOND, &[SHORT, never]).await;
    // Its look has read everything that a replacement needs but the market.
    let held = stage.proxy.inject("eth_feeHistory", Times::Once, Fault::HoldReply);
    stage.proxy.wait_for_held(held, LIMIT).await;
    let before = lease(&stage, &address).await.unwrap();
    late.program.signal("STOP");
    let decided = attempts(&other.read(&id(&payment)).await).len();

    let next = stage.pay(&other, "second").await;
    assert_eq!((&next["nonce"], &next["address"]), (&json!("1"), &json!(address)));
    let after = lease(&stage, &address).await.unwrap();
    assert_eq!(after.1, before.1 + 1, "the other has taken over");

    stage.proxy.lift(held);
    late.program.signal("CONT");
    poll_until(LIMIT, "its late decision is kept out", async || {
        (fenced(&late, "decide_version").await > 0.0).then_some(())
    })
    .await;
    let found = attempts(&late.read(&id(&payment)).await).len();
    assert_eq!(found, decided, "no attempt more, although no row had changed");
    assert_eq!(lease(&stage, &address).await, Some(after), "it goes on without the lane");

    // It takes requests as before; who holds the lane works them.
    let third = stage.pay(&late, "third").await;
    assert_eq!(third["nonce"], "2");
    assert_eq!(lease(&stage, &address).await, Some(after));
    for (one, count) in [(&payment, decided), (&next, 1), (&third, 1)] {
        stage.mine_until_mined(&other, &id(one)).await;
        assert_eq!(attempts(&stage.finish(&other, &id(one)).await).len(), count);
    }
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (3, 3));
    stage.check().await;
}

#[tokio::test]
async fn a_server_stopped_past_its_lease_tells_nothing_of_what_another_has_finished() {
    let stage = stage(false).await;
    let (mut late, address) = stage.open(&[SHORT]).await;
    let before = stage.pay(&late, "zero").await;
    let other = stage.setup.start_beside(SECOND, &[SHORT]).await;
    // Its send is out, and its look at a receipt too, when it is stopped.
    let sending = stage.proxy.inject(SEND, Times::Once, Fault::HoldReply);
    let payment = stage.pay(&late, "one").await;
    stage.proxy.wait_for_held(sending, LIMIT).await;
    let looking = stage.proxy.inject("eth_getTransactionReceipt", Times::Once, Fault::HoldReply);
    stage.anvil.mine(1).await;
    stage.proxy.wait_for_held(looking, LIMIT).await;
    late.program.signal("STOP");

    // The other has told what the first was about to tell. (Its end is told later: calls to a node end after
    // ten seconds, and the first server's must not.)
    other.wait_for(&id(&payment), MINED).await;
    stage.proxy.lift(sending);
    stage.proxy.lift(looking);
    late.program.signal("CONT");
    // Its look sees that the lane is gone before it tells anything; its send is told too late.
    poll_until(LIMIT, "its late write is kept out", async || {
        (fenced(&late, "mark_sent").await > 0.0).then_some(())
    })
    .await;
    let done = stage.finish(&other, &id(&payment)).await;
    let before = other.wait_for(&id(&before), &["finalized"]).await;
    for one in [done, before] {
        assert_eq!(late.read(&id(&one)).await, one, "nothing has changed");
    }
    let next = stage.pay(&late, "two").await;
    assert_eq!(next["nonce"], "2");
    stage.mine_until_mined(&late, &id(&next)).await;
    stage.finish(&late, &id(&next)).await;
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (3, 3));
    stage.check().await;
}

#[tokio::test]
async fn a_server_that_is_stopped_in_order_leaves_its_lanes_at_once() {
    let stage = stage(false).await;
    let (one, address) = stage.open(&[LONG]).await;
    // Alone, it is the one that works the lane: beside another, whichever looks first.
    let first = stage.pay(&one, "first").await;
    let two = stage.setup.start_beside(SECOND, &[LONG]).await;
    let (_, token) = lease(&stage, &address).await.unwrap();
    one.stop().await;
    let second = stage.pay(&two, "second").await;
    assert_eq!(
        (&second["nonce"], lease(&stage, &address).await.unwrap().1),
        (&json!("1"), token + 1)
    );
    for payment in [first, second] {
        stage.mine_until_mined(&two, &id(&payment)).await;
        stage.finish(&two, &id(&payment)).await;
    }
    stage.check().await;
}

#[tokio::test]
async fn a_request_goes_to_a_lane_that_its_server_may_work_and_else_waits_for_the_holder() {
    let stage = stage(false).await;
    let (mut one, _) = stage.open(&[LONG]).await;
    one.funded_key(&stage.anvil, "op-2").await;
    // Alone, it is the one that works the lane: beside another, whichever looks first.
    let first = stage.pay(&one, "first").await;
    let two = stage.setup.start_beside(SECOND, &[LONG]).await;
    // The other server's own turn would choose either of the two. The first one stands still meanwhile: its look
    // could take the second lane too, as soon as something waits there.
    one.program.signal("STOP");
    for n in 0..3 {
        let found = two.ask(SUB, &format!("two-{n}"), &payout(ETHER)).await.ok();
        stage.was_answered(&id(&found));
        assert_ne!(found["address"], first["address"], "that lane is the first server's");
        let address = found["address"].as_str().unwrap();
        poll_until(LIMIT, "its lane is taken", async || lease(&stage, address).await).await;
    }
    one.program.signal("CONT");
    // A caller that names the account gets it, from whoever works it.
    let address = first["address"].as_str().unwrap();
    let held = lease(&stage, address).await.unwrap();
    let named = stage.pay_as(&two, "named", &of(address)).await;
    assert_eq!((&named["nonce"], lease(&stage, address).await), (&json!("1"), Some(held)));
    for server in [&one, &two] {
        poll_until(LIMIT, "the gauges tell one lane each", async || {
            (server.metric("claviger_lane_leased", &[]).await == 1.0).then_some(())
        })
        .await;
    }
    let flying = [("address", address), ("chain", "local")];
    poll_until(LIMIT, "two are in flight", async || {
        let ages = one.metric("claviger_lane_oldest_seconds", &flying).await;
        let count = one.metric("claviger_lane_in_flight", &flying).await;
        (count == 2.0 && ages > 0.0).then_some(())
    })
    .await;
    for payment in one.list().await {
        stage.mine_until_mined(&one, &id(&payment)).await;
        stage.finish(&two, &id(&payment)).await;
    }
    stage.check().await;
}

#[tokio::test]
async fn a_key_that_one_server_made_signs_at_another_that_runs_already() {
    let stage = stage(false).await;
    let (one, _) = stage.open(&[LONG]).await;
    let two = stage.setup.start_beside(SECOND, &[LONG]).await;
    let address = one.funded_key(&stage.anvil, "op-2").await;
    let payment = stage.pay_as(&two, "payment", &of(&address)).await;
    stage.mine_until_mined(&two, &id(&payment)).await;
    stage.finish(&one, &id(&payment)).await;
    stage.check().await;
}

#[tokio::test]
async fn an_operators_word_is_carried_out_at_the_server_where_it_arrives() {
    let stage = stage(false).await;
    let (one, address) = stage.open(&[LONG]).await;
    // Before there is another server that could take the lane.
    let payment = stage.pay(&one, "payment").await;
    let (holder, token) = lease(&stage, &address).await.unwrap();
    let two = stage.setup.start_beside(SECOND, &[LONG]).await;

    let sped = two.intervene(&id(&payment), "speed-up").await.ok();
    assert_eq!(attempts(&has_attempts(&two, &id(&sped), 2).await).len(), 2);
    let after = lease(&stage, &address).await.unwrap();
    assert!(after.0 != holder && after.1 == token + 1, "the lane came with it: {after:?}");

    // The first has no lease any more: it writes the wish down, and the second sends the no-op.
    let cancelled = one.intervene(&id(&payment), "cancel").await.ok();
    assert_eq!(cancelled["status"], "cancelling");
    let found = has_attempts(&one, &id(&payment), 3).await;
    assert_eq!(lease(&stage, &address).await, Some(after), "cancelling takes no lane over");
    let no_op = of_attempt(&found, 2, "hash");
    poll_until(LIMIT, "the node has the no-op", async || stage.has(&no_op).await.then_some(()))
        .await;
    poll_until(LIMIT, "it is final", async || {
        stage.anvil.mine(1).await;
        (one.read(&id(&payment)).await["status"] == "cancelled").then_some(())
    })
    .await;
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (1, 0));
    stage.check().await;
}
