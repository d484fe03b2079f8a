//! The story of a transaction, as `GET /v1/transactions/{id}` tells it: an operator needs no log.

use crate::stage::{RESEND_SOON, Stage, attempts, id, is};
use crate::support::server::{ETHER, LIMIT, Server, payout};
use crate::support::services::poll_until;
use serde_json::{Value, json};

/// A field of each attempt that is shown, signed or not.
fn each<'a>(found: &'a Value, field: &str) -> Vec<&'a Value> {
    found["attempts"].as_array().unwrap().iter().map(|attempt| &attempt[field]).collect()
}

/// Waits until it says that it waits for this.
async fn waits(server: &Server, id: &str, code: &str) -> Value {
    poll_until(LIMIT, &format!("{id} waits for {code}"), async || {
        let found = server.read(id).await;
        (found["waiting"]["code"] == code).then_some(found)
    })
    .await
}

#[tokio::test]
async fn each_attempt_says_why_it_was_made_what_the_nodes_said_and_how_it_stands() {
    let stage = Stage::new().await;
    // The second node of the two refuses the connection.
    let rpc = format!("[\"{}\", \"http://127.0.0.1:1\"]", stage.proxy.url());
    let (server, _) = stage.open(&[RESEND_SOON, ("CLAVIGER__CHAIN__0__RPC", &rpc)]).await;
    let asked = id(&stage.pay(&server, "story").await);
    let told = poll_until(LIMIT, "three attempts, the last one taken", async || {
        let found = server.read(&asked).await;
        let states = each(&found, "state");
        (states.len() >= 3 && *states.last()? == "accepted").then_some(found)
    })
    .await;
    let states = each(&told, "state");
    assert!(states.iter().rev().skip(1).all(|state| *state == "replaced"), "{told:#}");
    let because = each(&told, "because");
    assert_eq!(because[0], "first");
    let second = because[1].as_str().unwrap();
    assert!(second.starts_with("replacement: not mined 1 s after attempt 1"), "{second}");
    for attempt in attempts(&told) {
        let detail = attempt["answer_detail"].as_str().unwrap();
        assert!(detail.contains("node 1: ") && detail.contains("node 2: "), "{detail}");
        assert!(attempt["sends"].as_i64().unwrap() >= 1, "{attempt:#}");
        let time = |field: &str| attempt[field].as_str().unwrap().to_owned();
        assert!(time("decided_at") <= time("signed_at"), "{attempt:#}");
        assert!(time("signed_at") <= time("first_sent_at"), "{attempt:#}");
        assert!(time("first_sent_at") <= time("sent_at"), "{attempt:#}");
        assert_eq!(attempt["accepted_at"], attempt["first_sent_at"], "taken at once");
    }
    assert_eq!(told["waiting"]["code"], "block", "{told:#}");

    let mined = stage.mine_until_mined(&server, &asked).await;
    assert_eq!(mined["waiting"]["code"], "finality", "{mined:#}");
    let detail = mined["waiting"]["detail"].as_str().unwrap();
    let block = mined["receipt"]["block_number"].as_str().unwrap();
    assert!(detail.contains(&format!("block {block}")) && detail.contains("to go"), "{detail}");
    let states = each(&mined, "state");
    assert_eq!(states.iter().filter(|state| **state == "mined").count(), 1, "{mined:#}");
    assert!(states.iter().all(|state| *state == "mined" || *state == "replaced"), "{mined:#}");
    let done = stage.finish(&server, &asked).await;
    assert!(done["waiting"].is_null(), "{done:#}");
    stage.check().await;
}

#[tokio::test]
async fn what_each_transaction_of_a_lane_waits_for_is_told_in_its_order() {
    let stage = Stage::new().await;
    let (server, funded) = stage.open(&[("CLAVIGER__CHAIN__0__MAX_IN_FLIGHT", "2")]).await;
    let mut body = payout(ETHER);
    body["signer"] = json!(funded);
    let mut all = Vec::new();
    for n in 0..2 {
        all.push(id(&stage.pay_as(&server, &format!("order-{n}"), &body).await));
    }
    for n in 2..4 {
        all.push(id(&stage.ask(&server, &format!("order-{n}"), &body).await));
    }
    waits(&server, &all[0], "block").await;
    let second = waits(&server, &all[1], "lower-nonces").await;
    assert!(second["waiting"]["detail"].as_str().unwrap().starts_with("1 lower"), "{second:#}");
    let last = waits(&server, &all[3], "lane-full").await;
    let detail = last["waiting"]["detail"].as_str().unwrap();
    assert!(detail.starts_with("2 of its account") && detail.contains("1 are before"), "{detail}");

    // An account without money: who is next cannot be paid for, and who is behind waits for it.
    let empty = server.key("op-2", Some("payments"), "managed").await;
    body["signer"] = json!(empty);
    let head = id(&stage.ask(&server, "head", &body).await);
    let behind = id(&stage.ask(&server, "behind", &body).await);
    let poor = waits(&server, &head, "unfunded").await;
    let detail = poor["waiting"]["detail"].as_str().unwrap();
    assert!(detail.contains("needs 1000") && detail.contains("has 0 wei"), "{detail}");
    assert!(poor["waiting"]["since"].is_string(), "{poor:#}");
    assert!(is(&poor, &["queued"]), "{poor:#}");
    let second = waits(&server, &behind, "queued").await;
    assert!(second["waiting"]["detail"].as_str().unwrap().starts_with("1 of"), "{second:#}");
    stage.anvil.set_balance(&empty, 10 * ETHER).await;
    for one in all.iter().chain([&head, &behind]) {
        stage.mine_until_mined(&server, one).await;
        stage.finish(&server, one).await;
    }
    stage.check().await;
}
