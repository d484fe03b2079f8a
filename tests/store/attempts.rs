//! Decisions and the signatures of them: the bytes that were decided are the bytes that are signed.

use crate::fixtures::{
    add_key, at, hash, insert, key_id, new_key, public_key, request, transaction,
};
use alloy::primitives::keccak256;
use claviger::core::id::HsmName;
use claviger::core::intent::Fees;
use claviger::core::key::Custody;
use claviger::core::permit::{DecisionRecord, PayloadKind, RawSignature};
use claviger::core::tx::state::{Ending, Status};
use claviger::ports::store::{
    NO_OP, NewAttempt, Sent, SignedAttempt, StatusChange, Store, StoreError,
};
use std::sync::Arc;

on_both!(
    an_attempt_is_decided_once,
    a_decision_is_exactly_what_was_decided,
    a_key_that_is_not_pinned_gives_no_decision,
    of_two_signatures_the_first_is_kept,
    of_eight_signatures_at_once_one_is_kept,
    an_attempt_reads_back_at_each_step,
    what_the_nodes_said_is_kept_as_long_as_it_says_something,
    what_a_no_op_is_to_replace_is_not_signed_any_more,
    what_is_unsigned_is_found_oldest_first,
    a_hash_belongs_to_one_attempt,
    sending_what_was_never_decided_is_an_error,
);

pub fn attempt(n: u128, number: i64) -> NewAttempt {
    // All bytes there are, so that no text encoding could carry them.
    let bytes: Vec<u8> = (0..=255).chain([u8::try_from(number).unwrap()]).collect();
    NewAttempt {
        request: request(n),
        number,
        reason: "first",
        key: key_id(1),
        kind: PayloadKind::Transaction,
        digest: keccak256(&bytes),
        bytes,
        fees: Fees { max_fee: u128::MAX, max_priority_fee: 1 },
        at: at(100 + number),
    }
}

fn signature(n: u128, number: i64, s: u8) -> SignedAttempt {
    SignedAttempt {
        request: request(n),
        number,
        signature: RawSignature { r: [0xff; 32], s: [s; 32], y_parity: s % 2 == 1 },
        envelope: Some((vec![2, s].into(), hash(u64::from(s)))),
        at: at(200),
    }
}

async fn decide(store: &Arc<dyn Store>, row: NewAttempt) -> bool {
    commit!(store, [row], |unit| unit.insert_attempt(&row).await?).unwrap()
}

async fn sign(store: &Arc<dyn Store>, signed: SignedAttempt) -> Result<bool, StoreError> {
    commit!(store, [signed], |unit| unit.store_signature(&signed).await?)
}

async fn an_attempt_is_decided_once(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    assert!(decide(&store, attempt(1, 1)).await);
    let other = NewAttempt { bytes: vec![6], digest: keccak256([6]), ..attempt(1, 1) };
    assert!(!decide(&store, other).await);
    let found = read!(store, [], |unit| unit.decision(request(1), 1).await?).unwrap();
    assert_eq!(found.bytes, attempt(1, 1).bytes, "what was decided first stands");
    assert!(decide(&store, attempt(1, 2)).await);
    assert!(decide(&store, attempt(2, 1)).await);
}

async fn a_decision_is_exactly_what_was_decided(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    for (n, kind) in
        [(1, PayloadKind::Transaction), (2, PayloadKind::Message), (3, PayloadKind::TypedData)]
    {
        let row = NewAttempt { kind, ..attempt(n, 1) };
        assert!(decide(&store, row.clone()).await);
        let found = read!(store, [], |unit| unit.decision(request(n), 1).await?).unwrap();
        let expected = DecisionRecord {
            request: request(n),
            attempt: 1,
            key: key_id(1),
            public_key: public_key(1),
            hsm: HsmName::default(),
            custody: Custody::Token,
            kind,
            bytes: row.bytes,
            digest: row.digest,
        };
        assert_eq!(found, expected);
    }
    assert_eq!(read!(store, [], |unit| unit.decision(request(1), 2).await?), None);
    assert_eq!(read!(store, [], |unit| unit.decision(request(4), 1).await?), None);
}

async fn a_key_that_is_not_pinned_gives_no_decision(store: Arc<dyn Store>) {
    let key = new_key(1);
    commit!(store, [key], |unit| unit.begin_key(&key).await?).unwrap();
    assert!(decide(&store, attempt(1, 1)).await);
    let answer = commit!(store, [], |unit| unit.decision(request(1), 1).await?);
    assert!(matches!(answer, Err(StoreError::Corrupt(_))), "{answer:?}");
}

async fn of_two_signatures_the_first_is_kept(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    assert!(!sign(&store, signature(1, 1, 4)).await.unwrap(), "nothing was decided");
    assert!(decide(&store, attempt(1, 1)).await);
    assert!(sign(&store, signature(1, 1, 4)).await.unwrap());
    assert!(!sign(&store, signature(1, 1, 5)).await.unwrap());
    let rows = read!(store, [], |unit| unit.attempts(request(1)).await?);
    assert_eq!(rows[0].signature, Some(signature(1, 1, 4).signature));
}

async fn of_eight_signatures_at_once_one_is_kept(store: Arc<dyn Store>) {
    crate::fixtures::crowd(&store).await;
    add_key(&store, 1).await;
    assert!(decide(&store, attempt(1, 1)).await);
    let tasks = (1..=8).map(|s| {
        let store = store.clone();
        tokio::spawn(async move { (s, sign(&store, signature(1, 1, s)).await.unwrap()) })
    });
    let mut kept = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        let (s, stored) = task.await.unwrap();
        kept.extend(stored.then_some(s));
    }
    assert_eq!(kept.len(), 1);
    let rows = read!(store, [], |unit| unit.attempts(request(1)).await?);
    assert_eq!(rows[0].signature, Some(signature(1, 1, kept[0]).signature));
}

async fn an_attempt_reads_back_at_each_step(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    let new = NewAttempt { reason: "replacement", ..attempt(1, 2) };
    assert!(decide(&store, new.clone()).await);
    assert!(decide(&store, attempt(1, 1)).await);
    let rows = read!(store, [], |unit| unit.attempts(request(1)).await?);
    assert_eq!(rows.iter().map(|row| row.number).collect::<Vec<_>>(), [1, 2]);
    let row = &rows[1];
    assert_eq!((row.reason.as_str(), &row.bytes, row.fees), ("replacement", &new.bytes, new.fees));
    assert_eq!((row.decided_at, row.signature, row.raw.as_ref()), (new.at, None, None));
    assert_eq!((row.hash, row.signed_at, row.sent_at), (None, None, None));

    let signed = signature(1, 2, 7);
    assert!(sign(&store, signed.clone()).await.unwrap());
    for millis in [300, 400] {
        commit!(store, [], |unit| unit
            .mark_sent(request(1), 2, &Sent::Idle, "", at(millis))
            .await?)
        .unwrap();
        let row = read!(store, [], |unit| unit.attempts(request(1)).await?).remove(1);
        assert_eq!(row.raw.zip(row.hash), signed.envelope);
        assert_eq!(row.signature, Some(signed.signature));
        assert_eq!((row.signed_at, row.sent_at), (Some(at(200)), Some(at(millis))));
    }
    // A message has no envelope.
    assert!(sign(&store, SignedAttempt { envelope: None, ..signature(1, 1, 8) }).await.unwrap());
    let row = read!(store, [], |unit| unit.attempts(request(1)).await?).remove(0);
    assert_eq!((row.raw, row.hash, row.signed_at), (None, None, Some(at(200))));
}

async fn what_the_nodes_said_is_kept_as_long_as_it_says_something(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    assert!(decide(&store, attempt(1, 1)).await);
    let refused = |why: &str| Sent::Refused(why.to_owned());
    let first = Some(at(300));
    let said = [
        (300, refused("no"), (None, first, Some(at(300)), Some("no"))),
        (400, Sent::Unknown, (None, first, Some(at(300)), Some("no"))),
        (500, refused("never"), (None, first, Some(at(500)), Some("never"))),
        (600, Sent::Accepted, (Some(at(600)), None, None, None)),
        (700, refused("full"), (Some(at(600)), Some(at(700)), Some(at(700)), Some("full"))),
        (800, Sent::Unfunded, (Some(at(600)), None, None, None)),
        (900, Sent::Accepted, (Some(at(600)), None, None, None)),
    ];
    for (millis, sent, expected) in said {
        let now = at(millis);
        let name = sent.name();
        commit!(store, [sent], |unit| unit
            .mark_sent(request(1), 1, &sent, "node 1: no", now)
            .await?)
        .unwrap();
        let row = read!(store, [], |unit| unit.attempts(request(1)).await?).remove(0);
        let found = (row.accepted_at, row.refused_since, row.refused_at, row.refusal.as_deref());
        assert_eq!(found, expected, "{millis}");
        assert_eq!((row.sent_at, row.answer.as_deref()), (Some(now), Some(name)));
    }
}

async fn what_a_no_op_is_to_replace_is_not_signed_any_more(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    insert(&store, vec![transaction(1, 1), transaction(2, 1)]).await;
    for new in [attempt(1, 1), NewAttempt { reason: NO_OP, ..attempt(1, 2) }, attempt(2, 1)] {
        assert!(decide(&store, new).await);
    }
    let ending = StatusChange {
        id: request(1),
        version: 0,
        status: Status::Cancelling,
        mined: None,
        ending: Some(Ending::Cancelled),
        failure: None,
        at: at(0),
    };
    assert!(commit!(store, [ending], |unit| unit.advance(&ending).await?).unwrap());
    let unsigned = read!(store, [], |unit| unit.unsigned_attempts().await?);
    assert_eq!(unsigned, [(request(2), 1), (request(1), 2)]);
}

async fn what_is_unsigned_is_found_oldest_first(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    insert(&store, vec![transaction(1, 1)]).await;
    for (n, number) in [(3, 2), (2, 1), (3, 1), (1, 1)] {
        assert!(decide(&store, attempt(n, number)).await);
    }
    assert!(sign(&store, signature(2, 1, 1)).await.unwrap());
    let unsigned = read!(store, [], |unit| unit.unsigned_attempts().await?);
    assert_eq!(unsigned, [(request(1), 1), (request(3), 1), (request(3), 2)]);
}

async fn a_hash_belongs_to_one_attempt(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    assert!(decide(&store, attempt(1, 1)).await);
    assert!(decide(&store, attempt(2, 1)).await);
    assert!(sign(&store, signature(1, 1, 1)).await.unwrap());
    assert!(sign(&store, signature(2, 1, 1)).await.is_err());
    let unsigned = read!(store, [], |unit| unit.unsigned_attempts().await?);
    assert_eq!(unsigned, [(request(2), 1)]);
}

async fn sending_what_was_never_decided_is_an_error(store: Arc<dyn Store>) {
    let sent =
        commit!(store, [], |unit| unit.mark_sent(request(1), 1, &Sent::Idle, "", at(0)).await?);
    assert!(matches!(sent, Err(StoreError::Corrupt(_))), "{sent:?}");
}
