//! Allowances that wait for people: what others may take later is held from the release on, not before.

use crate::stage::{SUB, approve, chain, hash, read, setup, write_bundle};
use crate::support::server::{ETHER, LIMIT, PAYEE};
use crate::support::services::poll_until;
use claviger::ports::store::{ExposureState, Store, look};
use serde_json::{Value, json};
use std::sync::Arc;

/// The asset `tusd` of the set-up's bundle.
const TUSD: &str = "0xe7f1725E7734CE288F8367e1Bb143E90bb3F0512";

fn allowances(ttl: &str) -> String {
    format!(
        r#"
[[grant]]
id = "allowances"
owner = "treasury"
reason = "tests"
expires = "2099-12-31"
principals = ["svc:payouts"]
signers = ["payments"]
chains = ["local"]
action = "erc20.approve"
asset = "tusd"
to = {{ book = "payees" }}
per_tx = "10"
windows = [{{ span = "24h", max = "10", scope = "group" }}]
fee = {{ max_fee_gwei = "100", max_tip_gwei = "5", max_gas = 100000 }}
approval = {{ quorum = {{ treasury = 1, security = 1 }}, ttl = "{ttl}" }}

[[grant]]
id = "considered"
owner = "treasury"
reason = "evaluated, and never decides"
expires = "2099-12-31"
principals = ["svc:payouts"]
signers = ["payments"]
chains = ["local"]
action = "erc20.approve"
asset = "tusd"
to = {{ book = "payees" }}
per_tx = "5"
fee = {{ max_fee_gwei = "100", max_tip_gwei = "5", max_gas = 100000 }}
mode = "shadow"
"#
    )
}

/// The `DECIDED` leaf says what others may take later, with what it is charged, and what shadows would have said.
async fn has_all_that_was_said(store: &Arc<dyn Store>, id: &str, address: &str) {
    let id = id.to_owned();
    let found = look(&**store, "leaves", move |unit| {
        let id = id.clone();
        Box::pin(async move { unit.leaves_about(&id).await })
    });
    let leaves = found.await.unwrap();
    let leaves = leaves.iter().map(|leaf| serde_json::from_slice::<Value>(leaf).unwrap());
    let decided = leaves.filter(|leaf| leaf["kind"] == "DECIDED").collect::<Vec<_>>();
    assert_eq!(decided.len(), 1, "{decided:#?}");
    let decision: Value = serde_json::from_str(decided[0]["decision"].as_str().unwrap()).unwrap();
    let exposure = &decision["exposures"][0];
    assert_eq!(exposure["token"], TUSD.to_lowercase());
    assert_eq!((&exposure["owner"], &exposure["spender"]), (&json!(address), &json!(PAYEE)));
    assert_eq!(exposure["amount"], "6000000");
    assert_eq!(exposure["charges"][0]["grant"], "allowances", "{exposure:#}");
    assert_eq!(exposure["charges"][0]["span"], "24h");
    let shadow = &decision["shadows"][0];
    assert_eq!((&shadow["grant"], &shadow["outcome"]), (&json!("considered"), &json!("deny")));
    assert_eq!(shadow["reason"]["field"], "per_tx", "{shadow:#}");
    assert!(shadow["reason"]["expected"].is_string() && shadow["reason"]["actual"].is_string());
    assert_eq!(decision["grants"], json!(["allowances"]), "a shadow decides nothing");
}

#[tokio::test]
async fn an_allowance_that_is_sent_back_goes_out_once_it_is_approved_again() {
    let anvil = chain().await;
    anvil.rpc("anvil_setCode", json!([TUSD, "0x00"])).await;
    let setup = setup(&anvil, None, &allowances("30m"));
    let server = setup.start(&[]).await;
    // Without money it is queued, and no further.
    let address = server.key("op-1", Some("payments"), "managed").await;
    let spender = PAYEE.trim_start_matches("0x");
    let data = format!("0x095ea7b3{spender:0>64}{:064x}", 6_000_000);
    let body =
        json!({ "chain": "local", "signer": "payments", "to": TUSD, "value": "0", "data": data });
    let answer = server.ask(SUB, "allowance", &body).await;
    assert_eq!(answer.status, 202, "{:#}", answer.body);
    let id = answer.id();
    let old = hash(&server, &id).await;
    for sub in ["dev:ann", "dev:cat"] {
        approve(&server, sub, &id).await.ok();
    }
    server.wait_for(&id, &["queued"]).await;
    server.stop().await;

    write_bundle(&setup.dir(), &allowances("45m"));
    let server = setup.start(&[]).await;
    server.wait_for(&id, &["awaiting_approval"]).await;
    assert_ne!(hash(&server, &id).await, old);
    assert_eq!(read(&server, &id).await["quorums"][0]["taken"], 0);
    anvil.set_balance(&address, 100 * ETHER).await;
    for sub in ["dev:ann", "dev:cat"] {
        approve(&server, sub, &id).await.ok();
    }
    poll_until(LIMIT, "it is final", async || {
        anvil.mine(1).await;
        (server.read(&id).await["status"] == "finalized").then_some(())
    })
    .await;
    server.checkpoint().await;
    server.stop().await;
    let store = setup.store().await;
    has_all_that_was_said(&store, &id, &address).await;
    let rows = look(&*store, "rows", move |unit| {
        let id = id.clone();
        Box::pin(async move { unit.exposures_of(&id).await })
    });
    let rows = rows.await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].state, ExposureState::Open);
}
