//! Fee caps of callers: one that is too low jams nobody else's lane.

use crate::stage::{GWEI, MINED, RESEND_SOON, Stage, attempts, id, is};
use crate::support::server::{ETHER, LIMIT, payout};
use crate::support::services::poll_until;
use claviger::ports::clock::Clock;
use claviger::system::SystemClock;
use serde_json::{Value, json};

const PATIENCE: (&str, &str) = ("CLAVIGER__CHAIN__0__CAP_PATIENCE", "3s");

/// A payout whose fee cap is twice the base fee of the chain's first block and no more.
fn low() -> Value {
    let mut body = payout(ETHER);
    body["max_fee_per_gas"] = json!((2 * GWEI + 1).to_string());
    body
}

/// Empty blocks whose base fee is this, until the condition gives a value.
async fn blocks_until<T>(
    stage: &Stage,
    base_fee: u128,
    what: &str,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> T {
    poll_until(LIMIT, what, async || {
        let next = json!([format!("{base_fee:#x}")]);
        stage.anvil.rpc("anvil_setNextBlockBaseFeePerGas", next).await;
        stage.anvil.mine(1).await;
        probe().await
    })
    .await
}

#[tokio::test]
async fn t53_a_head_at_a_cap_below_the_market_gives_way_to_those_behind_it() {
    let stage = Stage::new().await;
    let (server, address) = stage.open(&[RESEND_SOON, PATIENCE]).await;
    let jam = stage.pay_as(&server, "jam", &low()).await;
    let base = 5 * GWEI;
    // Alone in its lane it waits for ever: here longer than its patience would be.
    let alone = blocks_until(&stage, base, "it goes out again and again", async || {
        let found = server.read(&id(&jam)).await;
        (found["attempts"][0]["sends"].as_i64()? > 5).then_some(found)
    })
    .await;
    assert!(is(&alone, &["submitted"]), "{alone:#}");
    assert_eq!(alone["waiting"]["code"], "block", "{alone:#}");

    let behind = stage.ask(&server, "behind", &payout(ETHER)).await;
    let noted = blocks_until(&stage, base, "it is seen to keep another waiting", async || {
        let found = server.read(&id(&jam)).await;
        (found["waiting"]["code"] == "at-fee-cap").then_some(found)
    })
    .await;
    // Its patience does not begin anew with another process.
    drop(server);
    let server = stage.setup.start(&[RESEND_SOON, PATIENCE]).await;
    let waits = server.read(&id(&behind)).await;
    assert_eq!(waits["waiting"]["code"], "lower-nonces", "{waits:#}");
    let ends = blocks_until(&stage, base, "a no-op takes its nonce", async || {
        let found = server.read(&id(&jam)).await;
        is(&found, &["cancelling"]).then_some(found)
    })
    .await;
    assert_eq!(ends["ending"], "outpriced", "{ends:#}");
    assert_eq!(ends["failure"]["code"], "fee-cap-too-low", "{ends:#}");
    let detail = ends["failure"]["detail"].as_str().unwrap();
    assert!(detail.contains(noted["waiting"]["since"].as_str().unwrap()), "{detail}");
    assert!(detail.contains(&(2 * GWEI + 1).to_string()), "{detail}");
    assert!(detail.contains("and the base fee is "), "{detail}");
    let failed = blocks_until(&stage, base, "it has failed for good", async || {
        let found = server.read(&id(&jam)).await;
        is(&found, &["failed"]).then_some(found)
    })
    .await;
    assert_eq!(failed["failure"]["code"], "fee-cap-too-low");
    assert!(failed["waiting"].is_null(), "{failed:#}");
    stage.mine_until_mined(&server, &id(&behind)).await;
    let done = stage.finish(&server, &id(&behind)).await;
    assert_eq!(done["nonce"], "1");
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (2, 1));
    assert!(attempts(&failed).iter().all(|it| it["kind"] == "no_op" || it["number"] == 1));
    stage.check().await;
}

#[tokio::test]
async fn what_waits_for_the_market_without_a_nonce_is_passed_over_and_its_deadline_kept() {
    let stage = Stage::new().await;
    let (server, address) = stage.open(&[("CLAVIGER__CHAIN__0__MAX_IN_FLIGHT", "1")]).await;
    let first = stage.pay(&server, "first").await;
    let low = stage.ask(&server, "low", &low()).await;
    let mut dated = self::low();
    dated["not_after"] = json!(SystemClock.now().plus_millis(6_000).to_string());
    let dated = stage.ask(&server, "dated", &dated).await;
    let rich = stage.ask(&server, "rich", &payout(ETHER)).await;
    let full = server.read(&id(&rich)).await;
    assert_eq!(full["waiting"]["code"], "lane-full", "{full:#}");

    // The first can pay for this market, two behind it cannot; one block later the base fee may be an eighth
    // lower, and is still above their cap.
    let base = 5 * GWEI / 2;
    blocks_until(&stage, base, "the first is mined", async || {
        is(&server.read(&id(&first)).await, MINED).then_some(())
    })
    .await;
    let done = blocks_until(&stage, base, "the third is mined before the second", async || {
        let found = server.read(&id(&rich)).await;
        is(&found, MINED).then_some(found)
    })
    .await;
    assert_eq!(done["nonce"], "1");
    let waits = server.read(&id(&low)).await;
    assert!(is(&waits, &["queued"]), "{waits:#}");
    assert_eq!(waits["waiting"]["code"], "base-fee-above-cap", "{waits:#}");
    let detail = waits["waiting"]["detail"].as_str().unwrap();
    assert!(detail.contains(&(2 * GWEI + 1).to_string()), "{detail}");
    let ended = blocks_until(&stage, base, "its time is over", async || {
        let found = server.read(&id(&dated)).await;
        is(&found, &["expired"]).then_some(found)
    })
    .await;
    assert!(ended["nonce"].is_null(), "{ended:#}");

    // The market falls: what waited goes on by itself.
    let mined = blocks_until(&stage, GWEI, "what waited is mined", async || {
        let found = server.read(&id(&low)).await;
        is(&found, MINED).then_some(found)
    })
    .await;
    assert_eq!(mined["nonce"], "2");
    stage.finish(&server, &id(&low)).await;
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (3, 3));
    stage.check().await;
}

#[tokio::test]
async fn nothing_is_raised_by_itself_that_the_bundle_in_force_would_not_sign() {
    let stage = Stage::new().await;
    let (server, _) = stage.open(&[RESEND_SOON]).await;
    let paid = id(&stage.pay(&server, "paid").await);
    poll_until(LIMIT, "it is raised by itself", async || {
        (attempts(&server.read(&paid).await).len() > 1).then_some(())
    })
    .await;
    server.stop().await;
    // The payment's grant is gone when the server comes back.
    let grants = stage.setup.dir().join("policies/grants.toml");
    let text = std::fs::read_to_string(&grants).unwrap();
    std::fs::write(&grants, text.replace("svc:payouts", "svc:watcher")).unwrap();
    let server = stage.setup.start(&[RESEND_SOON]).await;
    let before = attempts(&server.read(&paid).await);
    let sends = |all: &[Value]| all.last().unwrap()["sends"].as_i64().unwrap();
    let after = poll_until(LIMIT, "the same bytes go out again and again", async || {
        let all = attempts(&server.read(&paid).await);
        (all.len() > before.len() || sends(&all) > sends(&before) + 3).then_some(all)
    })
    .await;
    assert_eq!(after.len(), before.len(), "{after:#?}");
    stage.mine_until_mined(&server, &paid).await;
    stage.make_final().await;
    server.wait_for(&paid, &["finalized"]).await;
    server.stop().await;
    stage.check().await;
}
