//! What `GET /v1/events` refuses, and when it ends.

use crate::payment::SUB;
use crate::reader::{Reader, get};
use crate::support::server::{SetUp, chain, payout_grants};
use claviger::core::access::Role;
use claviger::issuer::{Grant, issue};
use claviger::ports::clock::Clock;
use claviger::system::SystemClock;
use reqwest::Response;
use serde_json::Value;

async fn code(answer: Response) -> (u16, String) {
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.unwrap();
    (status, body["code"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_stream_is_refused_where_it_cannot_resume_and_ends_with_its_token() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &payout_grants("100.0"));
    let server = setup.start(&[("CLAVIGER__EVENTS__STREAMS_MAX", "2")]).await;
    server.key("op-1", Some("payments"), "managed").await;
    let token = server.token(SUB, Role::Client);
    for id in ["x", "-1", "1.5", "99999999999999999999"] {
        let answer = get(&server, &token, "", Some(id)).await;
        assert_eq!(code(answer).await, (400, "invalid-request".to_owned()), "{id}");
    }
    let answer = get(&server, &token, "", Some("999999999")).await;
    assert_eq!(code(answer).await, (410, "gone".to_owned()));
    for query in ["?types=claviger.transactions.*", "?types=", "?after=1", "?last_event_id=x"] {
        let answer = get(&server, &token, query, None).await;
        assert_eq!(code(answer).await, (400, "invalid-request".to_owned()), "{query}");
    }
    let answer = get(&server, "none", "", None).await;
    assert_eq!(code(answer).await, (401, "unauthenticated".to_owned()));

    // What others are told is not a client's, and a filter takes what it says.
    let auditor = server.token("dev:auditor", Role::Auditor);
    let query = "?types=claviger.key.*&last_event_id=0";
    let mut keys = Reader::open(&server, &auditor, query, None).await;
    assert_eq!(keys.event().await.unwrap()["type"], "claviger.key.created");

    // A bound for each principal, and room again once one of its streams is gone.
    let first = Reader::open(&server, &token, "", None).await;
    let _second = Reader::open(&server, &token, "", None).await;
    let third = get(&server, &token, "", None).await;
    assert!(third.headers().contains_key("retry-after"));
    assert_eq!(code(third).await, (429, "rate-limited".to_owned()));
    drop(first);
    crate::support::services::poll_until(
        crate::support::server::LIMIT,
        "there is room again",
        async || (get(&server, &token, "", None).await.status() == 200).then_some(()),
    )
    .await;

    let (iss, aud, sub) = ("claviger-dev", "claviger", "svc:watcher");
    let grant = Grant { iss, aud, sub, roles: &[Role::Client], ttl_s: 2, jti: "short" };
    let short = issue(&server.issuer_key(), &grant, SystemClock.now()).unwrap();
    let ending = Reader::open(&server, &short, "", None).await;
    let (events, why) = ending.rest().await;
    assert_eq!((events.len(), why.as_deref()), (0, Some("the token has ended")));
    let answer = get(&server, &short, "", None).await;
    assert_eq!(code(answer).await, (401, "unauthenticated".to_owned()));
    server.stop().await;
}
