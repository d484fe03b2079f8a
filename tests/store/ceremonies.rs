//! Imported keys and key ceremonies.

use crate::fixtures::{at, key_id, new_key, public_key};
use claviger::core::id::HsmName;
use claviger::core::key::{CkaId, Custody, KeyState, NonceMode, OperatorKey};
use claviger::core::principal::Principal;
use claviger::ports::store::{OpenCeremony, Store};
use std::sync::Arc;
use uuid::Uuid;

on_both!(
    an_imported_key_is_active_and_is_taken_once,
    the_keys_of_a_principal_are_those_that_it_asked_for,
    at_most_one_ceremony_is_open,
);

fn who(sub: &str) -> Principal {
    Principal { iss: "issuer".to_owned(), sub: sub.to_owned() }
}

fn imported(n: u8, point: u8) -> OperatorKey {
    OperatorKey {
        id: key_id(u128::from(n)),
        hsm: HsmName::default(),
        cka_id: CkaId::new(vec![n; 16]),
        custody: Custody::Token,
        label: format!("imported {n}"),
        group: None,
        mode: NonceMode::External,
        public_key: public_key(point),
        address: public_key(point).address(),
        state: KeyState::Active,
        created_at: at(i64::from(n)),
    }
}

async fn import(store: &Arc<dyn Store>, key: OperatorKey, sub: &str) -> bool {
    let by = who(sub);
    commit!(store, [key, by], |unit| unit.import_key(&key, &by).await?).unwrap()
}

async fn an_imported_key_is_active_and_is_taken_once(store: Arc<dyn Store>) {
    assert!(import(&store, imported(1, 1), "a").await);
    let keys = read!(store, [], |unit| unit.keys_of(&who("a")).await?);
    assert_eq!(keys, [imported(1, 1)]);
    // The id, the id in the token, the address.
    assert!(!import(&store, OperatorKey { id: key_id(1), ..imported(2, 2) }, "a").await);
    let same_place = OperatorKey { cka_id: CkaId::new(vec![1; 16]), ..imported(3, 3) };
    assert!(!import(&store, same_place, "a").await);
    assert!(!import(&store, imported(4, 1), "a").await);
    assert!(import(&store, imported(5, 5), "a").await);
}

async fn the_keys_of_a_principal_are_those_that_it_asked_for(store: Arc<dyn Store>) {
    assert!(import(&store, imported(2, 2), "a").await);
    assert!(import(&store, imported(1, 1), "a").await);
    assert!(import(&store, imported(3, 3), "b").await);
    let begun = new_key(9);
    let name = begun.label.clone();
    commit!(store, [begun], |unit| unit.begin_key(&begun).await?).unwrap();
    let keys = read!(store, [], |unit| unit.keys_of(&who("a")).await?);
    assert_eq!(keys, [imported(1, 1), imported(2, 2)], "oldest first");
    assert!(read!(store, [], |unit| unit.keys_of(&who("c")).await?).is_empty());
    let mut names = read!(store, [], |unit| unit.key_names().await?);
    names.sort();
    let mut expected =
        vec!["imported 1".to_owned(), "imported 2".to_owned(), "imported 3".to_owned(), name];
    expected.sort();
    assert_eq!(names, expected, "begun ones too");
}

async fn at_most_one_ceremony_is_open(store: Arc<dyn Store>) {
    let ceremony = |n: u128| OpenCeremony {
        id: Uuid::from_u128(n),
        title: format!("ceremony {n}"),
        plan: "[ceremony]\n".to_owned(),
        begun_at: at(5),
    };
    let open = || async { read!(store, [], |unit| unit.open_ceremony().await?) };
    assert_eq!(open().await, None);
    let (one, two) = (ceremony(1), ceremony(2));
    assert!(commit!(store, [one], |unit| unit.begin_ceremony(&one).await?).unwrap());
    assert!(!commit!(store, [two], |unit| unit.begin_ceremony(&two).await?).unwrap());
    assert_eq!(open().await, Some(ceremony(1)));
    let end = |n: u128| {
        let (store, id) = (Arc::clone(&store), Uuid::from_u128(n));
        async move { commit!(store, [], |unit| unit.end_ceremony(id, at(6)).await?).unwrap() }
    };
    assert!(!end(2).await);
    assert!(end(1).await);
    assert!(!end(1).await, "once");
    assert_eq!(open().await, None);
    // Ended ones stay, and their number is not limited; an id is used once.
    let (one, two) = (ceremony(1), ceremony(2));
    assert!(!commit!(store, [one], |unit| unit.begin_ceremony(&one).await?).unwrap());
    assert!(commit!(store, [two], |unit| unit.begin_ceremony(&two).await?).unwrap());
    assert!(end(2).await);
}
