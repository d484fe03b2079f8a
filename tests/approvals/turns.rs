//! What cannot be judged keeps no other from going on, and goes on when it can.

use crate::flow::asked;
use crate::stage::{SUB, grants, write_bundle};
use crate::support::fault_proxy::{Fault, FaultProxy, Times};
use crate::support::server::{ETHER, LIMIT, SetUp, chain, payout};
use crate::support::services::poll_until;
use serde_json::json;

/// A second development account of the example bundle's payees.
const OTHER_PAYEE: &str = "0x3c44cdddb6a900fa2b585dd299e03d12fa4293bc";

/// One whose facts no node tells goes on as soon as one does; meanwhile another does that came after it.
#[tokio::test]
async fn what_cannot_be_judged_is_put_off_and_goes_on_when_it_can() {
    let anvil = chain().await;
    let proxy = FaultProxy::start(&anvil.url()).await;
    let waits = grants("10.0", r#"delay = { always = "1s" }"#);
    let setup = SetUp::new(&proxy.url(), None, &waits);
    write_bundle(&setup.dir(), &waits);
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let mut body = payout(ETHER);
    body["to"] = json!(OTHER_PAYEE);
    let stuck = asked(&server, "stuck", &body).await;
    let says = Fault::Say(json!({ "code": -32000, "message": "header not found" }));
    let rule = proxy.inject_about("eth_getCode", OTHER_PAYEE, Times::UntilLifted, says);
    let good = server.ask(SUB, "good", &payout(1)).await;
    assert_eq!(good.status, 202, "{:#}", good.body);
    proxy.wait_for_hits(rule, 2, LIMIT).await;
    server.wait_for(&good.id(), &["submitted", "mined", "finalized"]).await;
    assert_eq!(server.read(&stuck).await["status"], "delayed");
    assert!(server.program.stderr().contains("what waits could not be judged"));
    proxy.lift(rule);
    server.wait_for(&stuck, &["submitted", "mined", "finalized"]).await;
    assert!(server.metric("claviger_waiting_failures_total", &[]).await > 1.5);
    poll_until(LIMIT, "both are final", async || {
        anvil.mine(1).await;
        let all = server.list().await;
        all.iter().all(|it| it["status"] == "finalized").then_some(())
    })
    .await;
    server.stop().await;
}
