//! What the server makes of sources by itself: nobody's word but the chain's ends a request.

use crate::stage::{OTHER, Stage, WATCHER};
use crate::support::fault_proxy::{Fault, Times};
use crate::support::server::ETHER;
use serde_json::{Value, json};

// The proxy runs in this process, beside a test that waits for commands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_chain_ends_a_request_and_only_an_unsigned_ones_key_is_bound_anew() {
    let stage = Stage::new(0).await;
    let (raw, source) = stage.request_charge(1).await;
    let body = stage.charge(1, &source).await;
    // What names an event must name one that is there, though the grant wants none.
    let mut invented = body.clone();
    invented["source"]["block_hash"] = json!(format!("0x{}", "ab".repeat(32)));
    let refused = stage.server.ask(WATCHER, "key", &invented).await;
    assert_eq!((refused.status, refused.code()), (403, "policy-denied"), "{:#}", refused.body);
    assert_eq!(refused.body["reasons"], json!([{ "field": "event" }]));
    let first = stage.server.ask(WATCHER, "key", &body).await.id();
    let waits = stage.server.wait_for(&first, &["queued"]).await;
    assert!(waits["nonce"].is_null());

    // A lie about a retraction does nothing, whoever tells it.
    let lie = stage.retract(WATCHER, &first, &source).await;
    assert_eq!((lie.status, lie.code()), (409, "conflict"), "{:#}", lie.body);
    assert_eq!(stage.retract("svc:stranger", &first, &source).await.status, 404);
    assert_eq!(stage.retract(WATCHER, &first, &invented["source"]).await.status, 400);
    // Nor does a node that does not answer.
    let rule = stage.proxy.inject("eth_getBlockByNumber", Times::UntilLifted, Fault::DropRequest);
    let silent = stage.retract(WATCHER, &first, &source).await;
    assert!([409, 503].contains(&silent.status), "{:#}", silent.body);
    stage.proxy.lift(rule);
    assert_eq!(stage.server.read(&first).await["status"], "queued");

    // Nobody says so, and the event goes away: it is read again before the nonce, and believed when it is final.
    stage.reorg(1, &[]).await;
    stage.forget_pool().await;
    stage.anvil.set_balance(&stage.operator, 100 * ETHER).await;
    stage.held(&first).await;
    stage.anvil.mine(9).await;
    let ended = stage.server.wait_for(&first, &["cancelled"]).await;
    assert_eq!(ended["failure"]["code"], "event-gone", "{ended:#}");
    assert!(ended["nonce"].is_null() && ended["attempts"].as_array().unwrap().is_empty());
    // A repeat is the same request while the event is not back; told of it late, nothing changes.
    let repeat = stage.server.ask(WATCHER, "key", &body).await;
    assert_eq!((repeat.status, repeat.id()), (200, first.clone()));
    let late = stage.retract(WATCHER, &first, &source).await.ok();
    assert_eq!(late["source_gone_at"], ended["source_gone_at"]);
    // Who asks for both by name is told, of the request as it is by then.
    let types = "claviger.transaction.source_retracted,claviger.transaction.cancelled";
    let told = stage.told(WATCHER, types, 2).await;
    assert_eq!(told[0]["type"], "claviger.transaction.source_retracted");
    let members = |event: &Value| -> std::collections::BTreeSet<String> {
        event["data"].as_object().unwrap().keys().cloned().collect()
    };
    let mut expected = members(&told[1]);
    expected.insert("source".to_owned());
    assert_eq!(members(&told[0]), expected);
    for event in &told {
        assert_eq!(event["data"]["status"], "cancelled");
        assert_eq!(event["data"]["failure"]["code"], "event-gone", "{event:#}");
    }
    assert_eq!(told[0]["data"]["source"], source);

    // Mined again: of many who ask at once, by either watcher, one gets the key.
    stage.anvil.rpc("eth_sendRawTransaction", json!([raw])).await;
    stage.anvil.mine(1).await;
    let again = stage.source(source["transaction_hash"].as_str().unwrap()).await;
    assert_ne!(again["block_hash"], source["block_hash"]);
    let anew = stage.charge(1, &again).await;
    let who = |n: usize| if n.is_multiple_of(2) { WATCHER } else { OTHER };
    let asks = (0..10).map(|n| stage.server.ask(who(n), "key", &anew));
    let answers = futures::future::join_all(asks).await;
    let ids: std::collections::BTreeSet<String> =
        answers.iter().filter(|answer| answer.status < 300).map(|answer| answer.id()).collect();
    assert_eq!(ids.len(), 1, "{answers:#?}");
    let second = ids.first().unwrap().clone();
    assert_ne!(second, first);
    let old = stage.server.ask(WATCHER, "key", &body).await;
    assert_eq!((old.status, old.code()), (409, "idempotency-mismatch"));
    assert_eq!(old.body["resource"], second.as_str());
    stage.mine_until_mined(&second).await;
    assert_eq!(stage.executions(1).await, 1);
    // Signed: its key is its own for ever, also if its event goes away once more.
    assert_eq!(stage.server.list().await.len(), 2);
    let events = stage.events(None, &[&first]).await.remove(0);
    assert_eq!(events, ["queued", "source_retracted", "cancelled"]);
}

// The proxy runs in this process, beside a test that waits for commands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_that_share_keys_share_their_requests_and_triggers_are_checked_at_the_server() {
    let stage = Stage::new(100 * ETHER).await;
    let (_, source) = stage.request_charge(1).await;
    let body = stage.charge(1, &source).await;
    let first = stage.server.ask(WATCHER, "shared", &body).await;
    assert_eq!(first.status, 201, "{:#}", first.body);
    let other = stage.server.ask(OTHER, "shared", &body).await;
    assert_eq!((other.status, other.id()), (200, first.id()));
    let mut another = body.clone();
    another["metadata"] = json!({ "by": "another" });
    assert_eq!(stage.server.ask(OTHER, "shared", &another).await.status, 409);
    let found = stage.look_up(OTHER, "idempotency_key=shared").await;
    assert_eq!((found.len(), found[0]["id"].as_str()), (1, Some(first.id().as_str())));
    assert!(stage.look_up("svc:payouts", "idempotency_key=shared").await.is_empty());
    for (sub, count) in [(OTHER, 1), (WATCHER, 1), ("svc:payouts", 0)] {
        assert_eq!(stage.look_up(sub, "limit=1").await.len(), count, "{sub}");
    }
    let told = stage.told(OTHER, "claviger.transaction.*", 1).await;
    assert_eq!(told[0]["subject"], first.id().as_str(), "what it may read it is told of");
    let lie = stage.retract(OTHER, &first.id(), &source).await;
    assert_eq!((lie.status, lie.code()), (409, "conflict"), "it is its own, and the event stands");

    stage.set_up_watcher();
    let good = stage.watcher_config();
    let warned = |config: &str| {
        stage.write_watcher(config);
        let (ok, text) = stage.command(&["config", "check", "--server"]);
        assert!(ok, "{text}");
        text
    };
    let text = warned(&good);
    assert!(text.contains("feeds itself") && !text.contains("no grant"), "{text}");
    for (from, to, said) in [
        (
            "executeCharge(uint256 orderId, uint256 amount)",
            "refund(uint256 orderId, uint256 amount)",
            "no grant",
        ),
        ("signer = \"payments\"", "signer = \"nobody\"", "`signer`"),
        ("signer = \"payments\"", "chain = \"elsewhere\"\nsigner = \"payments\"", "`chain`"),
        (stage.server.client_url().as_str(), "http://127.0.0.1:1", "could not be asked"),
    ] {
        let config = good.replace(from, to);
        assert_ne!(config, good);
        let text = warned(&config);
        assert!(text.contains(said), "{said}: {text}");
    }
    stage.events(None, &[]).await;
}
