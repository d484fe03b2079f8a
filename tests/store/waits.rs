//! What transactions wait for: noted without moving them on, and forgotten when they move on.

use crate::fixtures::{CHAIN, add_key, at, insert, request, stored, submit, transaction};
use claviger::core::intent::Fees;
use claviger::core::tx::state::Status;
use claviger::ports::store::{NewTransaction, Place, StatusChange, Store, Wait};
use std::sync::Arc;

on_both!(
    a_wait_is_noted_keeps_its_beginning_and_moves_no_version,
    a_wait_is_forgotten_with_the_status_it_was_found_in,
    what_the_market_leaves_behind_is_passed_over_in_order,
    a_place_in_the_lane_is_counted_from_its_front,
);

fn wait(code: &str, detail: &str, since: i64) -> Wait {
    Wait { code: code.to_owned(), detail: detail.to_owned(), since: at(since) }
}

async fn note(store: &Arc<dyn Store>, n: u128, version: i64, found: Option<Wait>) {
    commit!(store, [found], |unit| unit.note_wait(request(n), version, found.as_ref()).await?)
        .unwrap();
}

async fn a_wait_is_noted_keeps_its_beginning_and_moves_no_version(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    insert(&store, vec![transaction(1, 1), transaction(2, 1)]).await;
    note(&store, 1, 0, Some(wait(Wait::UNFUNDED, "needs 5", 100))).await;
    note(&store, 1, 0, Some(wait(Wait::UNFUNDED, "needs 6", 200))).await;
    let row = stored(&store, request(1)).await;
    assert_eq!(row.waits, Some(wait(Wait::UNFUNDED, "needs 6", 100)));
    assert_eq!(row.version, 0);
    note(&store, 1, 0, Some(wait(Wait::AT_CAP, "", 300))).await;
    assert_eq!(stored(&store, request(1)).await.waits, Some(wait(Wait::AT_CAP, "", 300)));
    note(&store, 1, 7, None).await;
    assert!(stored(&store, request(1)).await.waits.is_some(), "found on another version");
    note(&store, 1, 0, None).await;
    assert_eq!(stored(&store, request(1)).await.waits, None);
    assert_eq!(stored(&store, request(2)).await.waits, None);
}

async fn a_wait_is_forgotten_with_the_status_it_was_found_in(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    insert(&store, vec![transaction(1, 1)]).await;
    note(&store, 1, 0, Some(wait(Wait::UNFUNDED, "needs 5", 100))).await;
    submit(&store, request(1), 1).await;
    assert_eq!(stored(&store, request(1)).await.waits, None, "it has its nonce");
    note(&store, 1, 1, Some(wait(Wait::AT_CAP, "5 wei", 200))).await;
    let ended = StatusChange {
        id: request(1),
        version: 1,
        status: Status::Cancelling,
        mined: None,
        ending: None,
        failure: None,
        at: at(300),
    };
    assert!(commit!(store, [ended], |unit| unit.advance(&ended).await?).unwrap());
    assert_eq!(stored(&store, request(1)).await.waits, None);
}

fn capped(n: u128, max_fee: u128) -> NewTransaction {
    NewTransaction { fee_cap: Fees { max_fee, max_priority_fee: 1 }, ..transaction(n, 1) }
}

async fn what_the_market_leaves_behind_is_passed_over_in_order(store: Arc<dyn Store>) {
    let address = add_key(&store, 1).await;
    let mut late = capped(4, 255);
    late.intent.not_after = Some(at(1_000));
    // 255 and 256 differ in the order of their bytes' ends.
    insert(&store, vec![capped(1, 255), capped(3, 256), late, capped(2, u128::MAX)]).await;
    let next = async |base_fee: u128, now: i64| {
        let row =
            read!(store, [], |unit| unit.next_payable(CHAIN, address, base_fee, at(now)).await?);
        row.map(|row| row.new.id)
    };
    assert_eq!(next(255, 0).await, Some(request(1)), "who waited longest");
    assert_eq!(next(256, 0).await, Some(request(3)));
    assert_eq!(next(257, 0).await, Some(request(2)));
    assert_eq!(next(257, 1_000).await, Some(request(2)), "in time to the millisecond");
    assert_eq!(next(257, 1_001).await, Some(request(4)), "to be ended, whatever it would pay");

    let waits = async |base_fee: u128, found: Wait| {
        commit!(store, [found], |unit| unit
            .note_unpayable(CHAIN, address, base_fee, &found)
            .await?)
        .unwrap();
        let mut noted = Vec::new();
        for n in 1..=4 {
            noted.push(stored(&store, request(n)).await.waits);
        }
        noted
    };
    let first = wait(Wait::BASE_FEE, "256", 10);
    let noted = waits(256, first.clone()).await;
    assert_eq!(noted, [Some(first.clone()), None, None, Some(first)]);
    let noted = waits(257, wait(Wait::BASE_FEE, "257", 20)).await;
    assert_eq!(noted[0], Some(wait(Wait::BASE_FEE, "256", 10)), "as it was first found");
    assert_eq!(noted[2], Some(wait(Wait::BASE_FEE, "257", 20)));
    assert_eq!(waits(1, wait(Wait::BASE_FEE, "1", 30)).await, [None, None, None, None]);
}

async fn a_place_in_the_lane_is_counted_from_its_front(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    add_key(&store, 2).await;
    let rows = [(5, 1), (4, 1), (3, 1), (2, 1), (1, 2)];
    insert(&store, rows.map(|(n, key)| transaction(n, key)).to_vec()).await;
    for n in [5, 4] {
        submit(&store, request(n), 1).await;
    }
    for (n, ahead, flying) in [(5, 0, 2), (4, 1, 2), (3, 0, 2), (2, 1, 2), (1, 0, 0)] {
        let row = stored(&store, request(n)).await;
        let place = read!(store, [row], |unit| unit.place(&row).await?);
        assert_eq!(place, Place { ahead, flying }, "{n}");
    }
}
