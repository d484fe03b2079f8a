//! Operator keys and pinned chains.

use crate::fixtures::{CHAIN, OTHER_CHAIN, at, hash, key_id, new_key, public_key};
use claviger::core::id::{GroupName, HsmName};
use claviger::core::key::{CkaId, Custody, KeyState, NonceMode, OperatorKey};
use claviger::ports::store::{NewKey, Store, StoreError};
use std::sync::Arc;

on_both!(
    a_key_is_unfinished_until_it_is_pinned,
    ids_of_keys_are_taken_once,
    a_key_is_pinned_once,
    an_address_belongs_to_one_key,
    a_group_lists_its_active_keys_oldest_first,
    a_chain_is_pinned_to_its_first_genesis,
);

async fn begin(store: &Arc<dyn Store>, key: NewKey) -> bool {
    commit!(store, [key], |unit| unit.begin_key(&key).await?).unwrap()
}

async fn pin(store: &Arc<dyn Store>, n: u8, point: u8) -> Result<bool, StoreError> {
    commit!(store, [], |unit| unit.pin_key(key_id(u128::from(n)), &public_key(point)).await?)
}

async fn keys(store: &Arc<dyn Store>) -> Vec<OperatorKey> {
    read!(store, [], |unit| unit.keys().await?)
}

async fn a_key_is_unfinished_until_it_is_pinned(store: Arc<dyn Store>) {
    let alone = NewKey { group: None, mode: NonceMode::External, ..new_key(1) };
    assert!(begin(&store, new_key(2)).await);
    assert!(begin(&store, alone.clone()).await);
    let unfinished = read!(store, [], |unit| unit.unfinished_keys().await?);
    assert_eq!(unfinished, [alone.clone(), new_key(2)], "oldest first");
    assert!(keys(&store).await.is_empty());

    assert!(pin(&store, 1, 1).await.unwrap());
    assert_eq!(read!(store, [], |unit| unit.unfinished_keys().await?), [new_key(2)]);
    let expected = OperatorKey {
        id: key_id(1),
        hsm: HsmName::default(),
        custody: Custody::Token,
        cka_id: alone.cka_id,
        label: alone.label,
        group: None,
        mode: NonceMode::External,
        public_key: public_key(1),
        address: public_key(1).address(),
        state: KeyState::Active,
        created_at: at(1),
    };
    assert_eq!(keys(&store).await, [expected]);
}

async fn ids_of_keys_are_taken_once(store: Arc<dyn Store>) {
    assert!(begin(&store, new_key(1)).await);
    assert!(!begin(&store, NewKey { cka_id: CkaId::new(vec![9; 16]), ..new_key(1) }).await);
    assert!(!begin(&store, NewKey { id: key_id(9), ..new_key(1) }).await);
    assert_eq!(read!(store, [], |unit| unit.unfinished_keys().await?), [new_key(1)]);
}

async fn a_key_is_pinned_once(store: Arc<dyn Store>) {
    assert!(!pin(&store, 1, 1).await.unwrap(), "it was not begun");
    assert!(begin(&store, new_key(1)).await);
    assert!(pin(&store, 1, 1).await.unwrap());
    assert!(!pin(&store, 1, 2).await.unwrap());
    assert_eq!(keys(&store).await[0].public_key, public_key(1));
}

async fn an_address_belongs_to_one_key(store: Arc<dyn Store>) {
    for n in [1, 2] {
        assert!(begin(&store, new_key(n)).await);
    }
    assert!(pin(&store, 1, 7).await.unwrap());
    let second = pin(&store, 2, 7).await;
    assert!(second.is_err(), "{second:?}");
    assert_eq!(read!(store, [], |unit| unit.unfinished_keys().await?), [new_key(2)]);
}

async fn a_group_lists_its_active_keys_oldest_first(store: Arc<dyn Store>) {
    let cold = NewKey { group: Some(GroupName::new("cold")), ..new_key(2) };
    let alone = NewKey { group: None, ..new_key(5) };
    for key in [new_key(4), new_key(1), cold, new_key(3), alone] {
        assert!(begin(&store, key).await);
    }
    for n in [4, 2, 1, 5] {
        assert!(pin(&store, n, n).await.unwrap());
    }
    for (group, expected) in [("hot", vec![1, 4]), ("cold", vec![2]), ("none", vec![])] {
        let found = read!(store, [], |unit| unit.group_keys(&GroupName::new(group)).await?);
        let ids: Vec<_> = found.iter().map(|key| key.id).collect();
        assert_eq!(ids, expected.into_iter().map(key_id).collect::<Vec<_>>(), "{group}");
    }
    assert_eq!(keys(&store).await.len(), 4);
}

async fn a_chain_is_pinned_to_its_first_genesis(store: Arc<dyn Store>) {
    crate::fixtures::crowd(&store).await;
    for (chain, asked, pinned) in [(CHAIN, 1, 1), (CHAIN, 2, 1), (OTHER_CHAIN, 2, 2)] {
        let answer = commit!(store, [], |unit| unit.pin_chain(chain, hash(asked)).await?).unwrap();
        assert_eq!(answer, hash(pinned));
    }
    let tasks = (1..=8).map(|n| {
        let store = store.clone();
        let chain = claviger::core::id::ChainId::new(77);
        tokio::spawn(async move {
            commit!(store, [], |unit| unit.pin_chain(chain, hash(n)).await?).unwrap()
        })
    });
    let mut answers = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        answers.push(task.await.unwrap());
    }
    assert!(answers.iter().all(|pinned| *pinned == answers[0]), "{answers:?}");
}
