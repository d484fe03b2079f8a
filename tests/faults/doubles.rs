//! T8: one idempotency key a hundred times at once, one of them with another body, before anything is bound.

use crate::stage::{Options, SUB, Stage};
use crate::support::server::{ETHER, payout};
use crate::support::services::Postgres;
use futures::future::join_all;
use std::collections::BTreeSet;

async fn t8_one_key_a_hundred_times(store_url: Option<String>) {
    let options = Options { mines_at_once: true, store_url, ..Options::default() };
    let stage = Stage::with(options).await;
    let (server, _) = stage.open(&[]).await;
    server.funded_key(&stage.anvil, "op-2").await;
    let (same, other) = (payout(ETHER), payout(ETHER / 2));
    let asks = (0..100).map(|n| server.ask(SUB, "t8", if n == 50 { &other } else { &same }));
    let answers = join_all(asks).await;
    let (taken, refused): (Vec<_>, Vec<_>) =
        answers.iter().enumerate().partition(|(_, answer)| [200, 201].contains(&answer.status));
    let ids: BTreeSet<String> = taken.iter().map(|(_, answer)| answer.id()).collect();
    assert_eq!(ids.len(), 1, "one transaction");
    assert_eq!(taken.iter().filter(|(_, answer)| answer.status == 201).count(), 1);
    // Whoever was first has the key; the other body is told so, with the name of what there is.
    let odd_one_won = taken.iter().any(|(n, _)| *n == 50);
    assert_eq!(refused.len(), if odd_one_won { 99 } else { 1 });
    let winner = ids.first().unwrap();
    for (_, answer) in refused {
        assert_eq!((answer.status, answer.code()), (409, "idempotency-mismatch"));
        assert_eq!(answer.body["resource"], **winner);
    }
    stage.was_answered(winner);
    stage.finish(&server, winner).await;
    assert_eq!(server.list().await.len(), 1);
    stage.check().await;
}

#[tokio::test]
async fn t8_one_key_a_hundred_times_and_once_with_another_body() {
    t8_one_key_a_hundred_times(None).await;
}

#[tokio::test]
async fn t8_one_key_a_hundred_times_and_once_with_another_body_on_postgres() {
    t8_one_key_a_hundred_times(Some(Postgres::shared().await.create_database())).await;
}
