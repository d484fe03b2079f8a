//! A destination is known by what was paid there before in the same way: dust opens no door for tokens.

use crate::stage::{SUB, answer, chain, grants, hash, setup, write_bundle};
use crate::support::server::{ETHER, PAYEE, payout};
use serde_json::{Value, json};

/// The asset `tusd` of the set-up's bundle.
const TUSD: &str = "0xe7f1725E7734CE288F8367e1Bb143E90bb3F0512";

/// Payouts at once, and tokens with what `more` says.
fn tokens(more: &str) -> String {
    let tokens = r#"
[[grant]]
id = "tokens"
owner = "treasury"
reason = "tests"
expires = "2099-12-31"
principals = ["svc:payouts"]
signers = ["payments"]
chains = ["local"]
action = "erc20.transfer"
asset = "tusd"
to = { book = "payees" }
per_tx = "10"
fee = { max_fee_gwei = "100", max_tip_gwei = "5", max_gas = 100000 }
"#;
    grants("10.0", "") + tokens + more
}

fn transfer(amount: u64) -> Value {
    let payee = PAYEE.trim_start_matches("0x");
    let data = format!("0xa9059cbb{payee:0>64}{amount:064x}");
    json!({ "chain": "local", "signer": "payments", "to": TUSD, "value": "0", "data": data })
}

#[tokio::test]
async fn neither_dust_nor_what_was_refused_or_never_signed_makes_a_destination_known_for_tokens() {
    let anvil = chain().await;
    anvil.rpc("anvil_setCode", json!([TUSD, "0x00"])).await;
    let setup = setup(&anvil, None, &tokens(""));
    let server = setup.start(&[]).await;
    // Without money nothing gets a nonce, and so nothing is signed.
    let address = server.key("op-1", Some("payments"), "managed").await;
    let unsigned = server.ask(SUB, "unsigned", &transfer(1_000_000)).await.id();
    server.wait_for(&unsigned, &["queued"]).await;
    server.intervene(&unsigned, "cancel").await.ok();
    server.wait_for(&unsigned, &["cancelled"]).await;
    server.stop().await;

    write_bundle(&setup.dir(), &tokens(r#"delay = { first_use_of_destination = "1h" }"#));
    anvil.set_balance(&address, 100 * ETHER).await;
    let server = setup.start(&[]).await;
    let refused = server.ask(SUB, "much", &transfer(10_000_001)).await;
    assert_eq!((refused.status, refused.code()), (403, "policy-denied"));
    // A wei, and it is final.
    let dust = server.ask(SUB, "dust", &payout(1)).await;
    assert_eq!(dust.status, 201, "{:#}", dust.body);
    server.wait_for(&dust.id(), &["mined", "finalized"]).await;
    anvil.mine(4).await;
    server.wait_for(&dust.id(), &["finalized"]).await;
    // What waits, and what was rejected in vain, make it known as little.
    for key in ["one", "two"] {
        let asked = server.ask(SUB, key, &transfer(1_000_000)).await;
        assert_eq!((asked.status, &asked.body["status"]), (202, &json!("delayed")), "{key}");
        let hash = hash(&server, &asked.id()).await;
        answer(&server, "dev:ann", &asked.id(), "reject", &hash).await.ok();
        server.wait_for(&asked.id(), &["rejected"]).await;
    }
    server.stop().await;

    // A signed transfer does.
    write_bundle(&setup.dir(), &tokens(""));
    let server = setup.start(&[]).await;
    let signed = server.ask(SUB, "signed", &transfer(1_000_000)).await;
    assert_eq!(signed.status, 201, "{:#}", signed.body);
    server.wait_for(&signed.id(), &["submitted", "mined", "finalized"]).await;
    server.stop().await;
    write_bundle(&setup.dir(), &tokens(r#"delay = { first_use_of_destination = "1h" }"#));
    let server = setup.start(&[]).await;
    assert_eq!(server.ask(SUB, "three", &transfer(1_000_000)).await.status, 201, "known now");
    server.stop().await;
}
