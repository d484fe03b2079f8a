//! An HSM that fails between a nonce and its signature.

use crate::stage::{MINED, Stage, attempts, id, is};
use crate::support::pkcs11_faults::Pkcs11Faults;
use crate::support::server::{ETHER, LIMIT, Server, payout};
use crate::support::services::poll_until;
use claviger::core::time::Timestamp;
use claviger::ports::clock::Clock;
use claviger::system::SystemClock;
use serde_json::Value;

/// Asks for a payout that is worth nothing in three seconds; answers its id and its time.
async fn ask_dated(stage: &Stage, server: &Server) -> (String, Timestamp) {
    let mut body = payout(ETHER);
    let deadline = SystemClock.now().plus_millis(3_000);
    body["not_after"] = deadline.to_string().into();
    (id(&stage.ask(server, "dated", &body).await), deadline)
}

async fn mine_until_expired(stage: &Stage, server: &Server, id: &str) -> Value {
    poll_until(LIMIT, "it has expired", async || {
        stage.anvil.mine(1).await;
        let found = server.read(id).await;
        is(&found, &["expired"]).then_some(found)
    })
    .await
}

#[tokio::test]
async fn t24_an_hsm_error_after_the_nonce_keeps_the_nonce_until_the_hsm_is_back() {
    let stage = Stage::new().await;
    let faults = Pkcs11Faults::new();
    let (server, address) = stage.open(&faults.envs()).await;
    // Not for all of the token: that would be down, and nothing would get so far.
    faults.set("C_Sign CKR_DEVICE_MEMORY");
    let mut asked = Vec::new();
    for n in 0..3 {
        let answer = stage.ask(&server, &format!("t24-{n}"), &payout(ETHER)).await;
        assert!(is(&answer, &["queued", "submitted"]), "{answer:#}");
        asked.push(id(&answer));
    }
    // Each has its nonce, and none its signature, however often the HSM is asked again.
    let seen = faults.count();
    poll_until(LIMIT, "the HSM is asked six times more", async || {
        (faults.count() >= seen + 6).then_some(())
    })
    .await;
    for (nonce, one) in asked.iter().enumerate() {
        let found = poll_until(LIMIT, "it has its nonce", async || {
            let found = server.read(one).await;
            found["nonce"].is_string().then_some(found)
        })
        .await;
        assert_eq!(found["nonce"], nonce.to_string());
        assert_eq!(
            (&found["status"], &found["waiting"]["code"]),
            (&"submitted".into(), &"hsm".into())
        );
        let [decided] = found["attempts"].as_array().unwrap().as_slice() else {
            panic!("one attempt: {found:#}");
        };
        assert_eq!((&decided["state"], &decided["hash"]), (&"decided".into(), &Value::Null));
    }
    assert!(stage.proxy.sent().is_empty(), "nothing unsigned goes out");

    // The HSM is back: the same decisions are signed, without a restart.
    faults.clear();
    let later = id(&stage.pay(&server, "t24-later").await);
    for (nonce, one) in asked.iter().chain([&later]).enumerate() {
        stage.mine_until_mined(&server, one).await;
        let done = stage.finish(&server, one).await;
        assert_eq!((attempts(&done).len(), &done["nonce"]), (1, &nonce.to_string().into()));
        assert_eq!(done["attempts"].as_array().unwrap().len(), 1, "no second decision");
    }
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (4, 4));
    stage.check().await;
}

#[tokio::test]
async fn what_the_hsm_has_not_signed_by_its_deadline_is_filled_by_a_no_op_and_the_lane_goes_on() {
    let stage = Stage::new().await;
    let faults = Pkcs11Faults::new();
    let (server, address) = stage.open(&faults.envs()).await;
    faults.set("C_SignInit CKR_DEVICE_MEMORY");
    let (dated, _) = ask_dated(&stage, &server).await;
    let next = id(&stage.ask(&server, "next", &payout(ETHER)).await);
    server.wait_for(&dated, &["cancelling"]).await;
    faults.clear();
    let ended = mine_until_expired(&stage, &server, &dated).await;
    let all = ended["attempts"].as_array().unwrap();
    assert_eq!((all.len(), &all[0]["hash"], &all[1]["kind"]), (2, &Value::Null, &"no_op".into()));
    assert!(all[1]["because"].as_str().unwrap().contains("not_after"), "{ended:#}");
    let done = stage.mine_until_mined(&server, &next).await;
    assert!(is(&done, MINED) && done["nonce"] == "1", "{done:#}");
    stage.finish(&server, &next).await;
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (2, 1));
    stage.check().await;
}

#[tokio::test]
async fn what_the_hsm_signs_after_the_deadline_is_thrown_away_and_never_sent() {
    let stage = Stage::new().await;
    let faults = Pkcs11Faults::new();
    let (server, _) = stage.open(&faults.envs()).await;
    faults.set("C_Sign WAIT");
    let (dated, deadline) = ask_dated(&stage, &server).await;
    assert!(SystemClock.now() < deadline && faults.count() > 0, "it is in the HSM in time");
    poll_until(LIMIT, "its time is over", async || (SystemClock.now() > deadline).then_some(()))
        .await;
    faults.clear();
    let ended = mine_until_expired(&stage, &server, &dated).await;
    assert_eq!((&ended["attempts"][0]["state"], attempts(&ended).len()), (&"decided".into(), 1));
    assert_eq!((stage.proxy.sent().len(), stage.paid().await), (1, 0), "its no-op, and that once");
    stage.check().await;
}
