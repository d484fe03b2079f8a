//! What ends or waits leaves behind: events that others may answer, destinations that are known.

use crate::flow::{approved_by_all, asked, finalized};
use crate::stage::{SUB, answer, approval, chain, grants, hash, large, setup};
use crate::support::server::{LIMIT, PAYEE, payout};
use crate::support::services::poll_until;
use alloy::primitives::{Address, B256};
use claviger::core::access::Role;
use claviger::core::id::{ChainId, ChainName, RequestId};
use claviger::core::policy::verdict::EventUse;
use claviger::ports::clock::Clock;
use claviger::ports::store::{End, Store, UsedDestinations, look, unit};
use claviger::system::SystemClock;
use reqwest::Method;
use serde_json::json;
use std::sync::Arc;

/// An event of its own for each request, claimed as if its grant had wanted one.
fn event(log_index: u64) -> EventUse {
    EventUse {
        chain: ChainName::new("local"),
        block_hash: B256::repeat_byte(1),
        transaction_hash: B256::repeat_byte(2),
        log_index,
        used_for: "pay".to_owned(),
    }
}

async fn claim(store: &Arc<dyn Store>, log_index: u64, id: &str) {
    let (event, id) = (event(log_index), id.parse::<RequestId>().unwrap());
    let done = unit(&**store, "test", move |unit| {
        let event = event.clone();
        Box::pin(async move { Ok(End::Commit(unit.claim_event(&event, id).await?)) })
    });
    assert_eq!(done.await.unwrap(), None);
}

async fn claimed(store: &Arc<dyn Store>, log_index: u64) -> bool {
    let event = event(log_index);
    let found = look(&**store, "test", move |unit| {
        let event = event.clone();
        Box::pin(async move { unit.claimed_by(&event).await })
    });
    found.await.unwrap().is_some()
}

#[tokio::test]
async fn what_ends_with_nothing_signed_leaves_its_event_to_others() {
    let anvil = chain().await;
    let setup = setup(&anvil, None, &grants("10.0", &approval("15s")));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let mut ids = Vec::new();
    for key in ["paid", "rejected", "cancelled", "expired"] {
        ids.push(asked(&server, key, &large()).await);
    }
    server.stop().await;
    let store = setup.store().await;
    for (n, id) in (0..).zip(&ids) {
        claim(&store, n, id).await;
    }
    drop(store);
    let server = setup.start(&[]).await;
    let hash = hash(&server, &ids[1]).await;
    answer(&server, "dev:ann", &ids[1], "reject", &hash).await.ok();
    server.intervene(&ids[2], "cancel").await.ok();
    approved_by_all(&server, &ids[0]).await;
    finalized(&anvil, &server, &ids[0]).await;
    server.wait_for(&ids[3], &["expired"]).await;
    server.stop().await;
    let store = setup.store().await;
    assert!(claimed(&store, 0).await, "what was signed keeps it");
    for n in 1..4 {
        assert!(!claimed(&store, n).await, "{n}");
    }
}

#[tokio::test]
async fn a_clock_that_is_not_believed_expires_nothing() {
    let anvil = chain().await;
    let setup = setup(&anvil, None, &grants("10.0", &approval("2s")));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    let id = asked(&server, "waits", &large()).await;
    server.stop().await;
    // The server was last seen an hour after now.
    let seen = SystemClock.now().plus_millis(3_600_000).millis().to_string();
    let store = setup.store().await;
    let done = unit(&*store, "test", move |unit| {
        let seen = seen.clone();
        Box::pin(async move { Ok(End::Commit(unit.set_meta("clock_seen", &seen).await?)) })
    });
    done.await.unwrap();
    drop(store);
    let server = setup.start(&[]).await;
    // What waits is looked at once a second.
    let looked = SystemClock.now().plus_millis(5_000);
    poll_until(LIMIT, "it would have expired", async || {
        let status = server.read(&id).await["status"].clone();
        assert_eq!(status, "awaiting_approval");
        (SystemClock.now() > looked).then_some(())
    })
    .await;
    let url = format!("{}/admin/v1/clock/confirm", server.admin_url());
    let token = server.token("dev:op", Role::Operator);
    let body = json!({ "reason": "it is right" });
    server.try_call(Method::POST, url, &token, None, Some(&body)).await.unwrap().ok();
    server.wait_for(&id, &["expired"]).await;
    server.stop().await;
}

#[tokio::test]
async fn a_use_of_another_kind_makes_no_destination_known() {
    let anvil = chain().await;
    let setup =
        setup(&anvil, None, &grants("10.0", r#"delay = { first_use_of_destination = "1h" }"#));
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    server.stop().await;
    let payee: Address = PAYEE.parse().unwrap();
    let used = async |used_for: &str| {
        let used = UsedDestinations {
            chain: ChainId::new(31_337),
            scope: format!("group:payments {used_for}"),
            destinations: [payee].into(),
            request: RequestId::new(uuid::Uuid::from_u128(1)),
            at: SystemClock.now(),
        };
        let store = setup.store().await;
        let done = unit(&*store, "test", move |unit| {
            let used = used.clone();
            Box::pin(async move { Ok(End::Commit(unit.use_destinations(&used).await?)) })
        });
        done.await.unwrap();
    };
    used("erc20.transfer usdc").await;
    let server = setup.start(&[]).await;
    assert_eq!(server.ask(SUB, "first", &payout(1)).await.status, 202, "not known for this");
    server.stop().await;
    used("native.transfer").await;
    let server = setup.start(&[]).await;
    assert_eq!(server.ask(SUB, "second", &payout(1)).await.status, 201, "known");
    server.stop().await;
}
