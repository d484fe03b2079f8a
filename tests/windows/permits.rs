//! A permit that was signed through the door, at a token that verifies it: what it gives is what is held, and
//! the server's job follows it to its end.

use super::{Anvil, LIMIT, Postgres, SUB, SetUp, chain, poll_until};
use crate::support::invariants::Invariants;
use crate::support::server::{PAYEE, Server};
use claviger::core::amount::Amount;
use claviger::ports::store::{ExposureRow, ExposureState, Store, look};
use serde_json::{Value, json};
use std::sync::Arc;

const GRANTS: &str = r#"
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
to = { book = "payees" }
per_tx = "100"
permit_for = "30d"
windows = [{ span = "24h", max = "150", scope = "group" }]
"#;

fn word(hex: &str) -> String {
    format!("{:0>64}", hex.trim_start_matches("0x"))
}

/// The token stands where the bundle says: it is the second contract of the first account.
async fn deploy(anvil: &Anvil) -> String {
    let artefact: Value =
        serde_json::from_str(include_str!("../../contracts/build/PermitToken.json")).unwrap();
    anvil.deploy(&artefact, "").await;
    anvil.deploy(&artefact, "").await
}

async fn number(anvil: &Anvil, token: &str, signature: &str, arguments: &[String]) -> u64 {
    let data = anvil.calldata(signature, arguments).await;
    let answer = anvil.rpc("eth_call", json!([{ "to": token, "data": data }, "latest"])).await;
    let answer: alloy::primitives::U256 = answer.as_str().unwrap().parse().unwrap();
    answer.to()
}

/// Sent by the payee, and final.
async fn sent(anvil: &Anvil, token: &str, signature: &str, arguments: &[String]) {
    let data = anvil.calldata(signature, arguments).await;
    let hash = anvil.send(PAYEE, token, &data, 0).await;
    let receipt = anvil.wait_for_receipt(&hash, LIMIT).await;
    assert_eq!(receipt["status"], "0x1", "{signature}: {receipt}");
    anvil.mine(4).await;
}

fn permit(owner: &str, token: &str, units: u64, nonce: u64, deadline: u64) -> Value {
    let fields = |all: &[[&str; 2]]| -> Value {
        all.iter().map(|[kind, name]| json!({ "name": name, "type": kind })).collect()
    };
    let typed_data = json!({
        "types": {
            "EIP712Domain": fields(&[["string", "name"], ["string", "version"],
                ["uint256", "chainId"], ["address", "verifyingContract"]]),
            "Permit": fields(&[["address", "owner"], ["address", "spender"], ["uint256", "value"],
                ["uint256", "nonce"], ["uint256", "deadline"]]),
        },
        "primaryType": "Permit",
        "domain": { "name": "Claviger Permit Token", "version": "1", "chainId": 31337,
                    "verifyingContract": token },
        "message": { "owner": owner, "spender": PAYEE, "value": units.to_string(),
                     "nonce": nonce.to_string(), "deadline": deadline.to_string() },
    });
    json!({ "chain": "local", "signer": "payments", "typed_data": typed_data })
}

/// Signs, and gives the id, and v, r and s as words.
async fn signed(server: &Server, key: &str, body: &Value) -> (String, [String; 3]) {
    let answer = server.sign(SUB, Some(key), body).await;
    assert!((200..300).contains(&answer.status), "{:#}", answer.body);
    let part = |name: &str| word(answer.body["signature"][name].as_str().unwrap());
    let parity = answer.body["signature"]["y_parity"].as_u64().unwrap();
    (answer.id(), [format!("{:064x}", 27 + parity), part("r"), part("s")])
}

async fn looked_at(
    store: &Arc<dyn Store>,
    id: &str,
    until: impl Fn(&ExposureRow) -> bool,
) -> ExposureRow {
    poll_until(LIMIT, "the job has seen it", async || {
        let id = id.to_owned();
        let found = look(&**store, "rows", move |unit| {
            let id = id.clone();
            Box::pin(async move { unit.exposures_of(&id).await })
        });
        let row = found.await.unwrap().remove(0);
        (row.seen_block > 0 && until(&row)).then_some(row)
    })
    .await
}

#[tokio::test]
async fn a_signed_permit_gives_what_is_held_and_is_followed_until_it_is_used_up() {
    let anvil = chain().await;
    let token = deploy(&anvil).await;
    let url = Postgres::shared().await.create_database();
    let setup = SetUp::new(&anvil.url(), Some(&url), GRANTS);
    let server = setup.start(&[]).await;
    let owner = server.key("op-1", Some("payments"), "managed").await;
    let store = setup.store().await;
    let block = anvil.rpc("eth_getBlockByNumber", json!(["latest", false])).await;
    let time = block["timestamp"].as_str().unwrap().trim_start_matches("0x").to_owned();
    let deadline = u64::from_str_radix(&time, 16).unwrap() + 7 * 86_400;
    sent(&anvil, &token, "mint(address,uint256)", &[word(&owner), format!("{:064x}", 200_000_000)])
        .await;

    let of = |units: u64| permit(&owner, &token, units * 1_000_000, 0, deadline);
    let (id, signature) = signed(&server, "permit", &of(100)).await;
    let held = looked_at(&store, &id, |_| true).await;
    assert_eq!((held.state, held.submitted), (ExposureState::Open, false));
    assert_eq!(held.remaining, Amount::from(100_000_000_u64));
    let second = server.sign(SUB, Some("second"), &of(60)).await;
    assert_eq!((second.status, second.code()), (403, "policy-denied"), "what is signed is held");

    // The token verifies it by its own hashes, and gives what was signed for.
    let [v, r, s] = signature;
    let allowance = [word(&owner), word(PAYEE)];
    let submit = [
        word(&owner),
        word(PAYEE),
        format!("{:064x}", 100_000_000),
        format!("{deadline:064x}"),
        v,
        r,
        s,
    ];
    sent(&anvil, &token, "permit(address,address,uint256,uint256,uint8,bytes32,bytes32)", &submit)
        .await;
    let given = number(&anvil, &token, "allowance(address,address)", &allowance).await;
    assert_eq!(given, 100_000_000);
    let known = looked_at(&store, &id, |row| row.submitted).await;
    assert_eq!(
        (known.state, known.remaining),
        (ExposureState::Open, Amount::from(100_000_000_u64))
    );

    // What is taken is spend; when nothing is left it is over.
    let take = |units: u64| [word(&owner), word(PAYEE), format!("{:064x}", units * 1_000_000)];
    sent(&anvil, &token, "transferFrom(address,address,uint256)", &take(60)).await;
    let less = looked_at(&store, &id, |row| row.remaining == Amount::from(40_000_000_u64)).await;
    assert_eq!(less.state, ExposureState::Open);
    sent(&anvil, &token, "transferFrom(address,address,uint256)", &take(40)).await;
    let over = looked_at(&store, &id, |row| row.remaining.is_zero()).await;
    assert_eq!(over.state, ExposureState::Ended);
    let invariants = Invariants::new(&anvil.url(), setup.store_url());
    let told = invariants.leaves("SETTLED").await;
    let used: Vec<&str> = told.iter().filter_map(|leaf| leaf["used"].as_str()).collect();
    assert_eq!(used, ["60000000", "40000000"]);
    // 100 of 150 are spent.
    let next = permit(&owner, &token, 60_000_000, 1, deadline);
    assert_eq!(server.sign(SUB, Some("third"), &next).await.status, 403);
    let rest = permit(&owner, &token, 50_000_000, 1, deadline);
    signed(&server, "rest", &rest).await;
    invariants.check().await;
    server.stop().await;
}
