//! Requests for signatures, and what they hold until their nonce is final.

use crate::fixtures::{CHAIN, OTHER_CHAIN, add_key, at, caller, decision, key_id, request};
use crate::spend::{amount, limit};
use alloy::primitives::{Address, keccak256};
use claviger::core::intent::Fees;
use claviger::core::permit::PayloadKind;
use claviger::ports::store::{NewAttempt, NewSignatureRequest, Settlement, Store, StoreError};
use std::sync::Arc;

on_both!(
    a_request_reads_back_with_its_attempt,
    a_request_without_a_decision_is_an_error,
    only_what_holds_under_a_nonce_waits_to_be_settled,
    versions_of_a_nonce_are_settled_together,
    what_was_decided_meanwhile_is_not_marked_settled,
);

fn external(n: u128, nonce: u64) -> NewSignatureRequest {
    NewSignatureRequest {
        id: request(n),
        principal: caller("backend"),
        kind: PayloadKind::Transaction,
        chain: Some(CHAIN),
        nonce: Some(nonce),
        key: key_id(1),
        address: Address::repeat_byte(1),
        owner: Some(format!("nonce:{nonce}")),
        decision: decision(),
        at: at(1000),
    }
}

async fn insert(store: &Arc<dyn Store>, row: NewSignatureRequest) {
    let bytes = vec![1, 2, 3];
    let attempt = NewAttempt {
        request: row.id,
        number: 1,
        reason: "first",
        key: row.key,
        kind: row.kind,
        digest: keccak256(&bytes),
        bytes,
        fees: Fees { max_fee: 1, max_priority_fee: 1 },
        at: row.at,
    };
    commit!(store, [row, attempt], |unit| {
        unit.insert_signature(&row).await?;
        assert!(unit.insert_attempt(&attempt).await?);
    })
    .unwrap();
}

async fn unsettled(store: &Arc<dyn Store>) -> Vec<NewSignatureRequest> {
    let rows = read!(store, [], |unit| unit.unsettled_signatures(CHAIN).await?);
    rows.into_iter().map(|row| row.new).collect()
}

async fn a_request_reads_back_with_its_attempt(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    let message = NewSignatureRequest {
        kind: PayloadKind::Message,
        chain: None,
        nonce: None,
        owner: None,
        ..external(2, 0)
    };
    for row in [external(1, 5), message] {
        insert(&store, row.clone()).await;
        let id = row.id;
        let found = read!(store, [], |unit| unit.signature(id).await?).unwrap();
        assert_eq!(found.new, row);
        assert_eq!((found.attempt.number, found.attempt.bytes), (1, vec![1, 2, 3]));
    }
    assert!(read!(store, [], |unit| unit.signature(request(9)).await?).is_none());
}

async fn a_request_without_a_decision_is_an_error(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    let row = external(1, 0);
    let answer = commit!(store, [row], |unit| {
        unit.insert_signature(&row).await?;
        unit.signature(row.id).await?
    });
    assert!(matches!(answer, Err(StoreError::Corrupt(_))), "{answer:?}");
}

async fn only_what_holds_under_a_nonce_waits_to_be_settled(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    let rows = [
        external(1, 7),
        external(2, 6),
        NewSignatureRequest { owner: None, ..external(3, 1) },
        NewSignatureRequest { nonce: None, ..external(4, 2) },
        NewSignatureRequest { chain: Some(OTHER_CHAIN), ..external(5, 3) },
    ];
    for row in rows {
        insert(&store, row).await;
    }
    assert_eq!(unsettled(&store).await, [external(2, 6), external(1, 7)]);
}

async fn versions_of_a_nonce_are_settled_together(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    for row in [external(1, 7), external(2, 7), external(3, 8)] {
        insert(&store, row).await;
    }
    commit!(store, [], |unit| unit.mark_settled("nonce:7").await?).unwrap();
    assert_eq!(unsettled(&store).await, [external(3, 8)]);
}

/// A version that was decided between the two steps of a settlement would hold its limits for ever if it
/// were struck off the list with the others.
async fn what_was_decided_meanwhile_is_not_marked_settled(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    insert(&store, external(1, 7)).await;
    insert(&store, external(2, 8)).await;
    let success = Settlement { value_moved: true, fee_paid: None, fee_from_value: false };
    let (first, late) = (amount(1, 10, 0, 100), amount(2, 10, 0, 100));
    commit!(store, [first, late], |unit| {
        unit.reserve("nonce:7", &[first], at(0)).await?;
        unit.settle("nonce:7", success, at(1)).await?;
        unit.reserve("nonce:7", &[late], at(1)).await?;
        unit.mark_settled("nonce:7").await?;
        unit.mark_settled("nonce:8").await?;
    })
    .unwrap();
    assert_eq!(unsettled(&store).await, [external(1, 7)]);
    commit!(store, [], |unit| {
        unit.settle("nonce:7", success, at(2)).await?;
        unit.mark_settled("nonce:7").await?;
    })
    .unwrap();
    assert!(unsettled(&store).await.is_empty());
    assert_eq!(limit(&store, 2).await, (0, 10));
}
