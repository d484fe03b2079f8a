//! Imported keys and key ceremonies.

use crate::fixtures::{at, key_id, new_key, public_key};
use claviger::core::id::{HolderId, HsmName};
use claviger::core::key::{CkaId, Custody, KeyState, NonceMode, OperatorKey};
use claviger::core::principal::Principal;
use claviger::ports::store::{OpenCeremony, Store};
use std::sync::Arc;
use uuid::Uuid;

on_both!(
    an_imported_key_is_active_and_is_taken_once,
    the_keys_of_a_principal_are_those_that_it_asked_for,
    at_most_one_ceremony_is_open,
    a_begun_key_is_held_by_one_until_its_time_is_over,
    a_ceremony_is_held_while_it_is_open,
    a_key_is_found_by_its_id_in_the_token,
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

async fn a_begun_key_is_held_by_one_until_its_time_is_over(store: Arc<dyn Store>) {
    let claim = |n: u8, who: u128, now: i64, until: i64| {
        let store = Arc::clone(&store);
        async move {
            let holder = HolderId::new(Uuid::from_u128(who));
            let key = key_id(u128::from(n));
            let (now, until) = (at(now), at(until));
            commit!(store, [], |unit| unit.claim_key(key, holder, now, until).await?).unwrap()
        }
    };
    assert!(!claim(1, 7, 10, 20).await, "it was not begun");
    let begun = new_key(1);
    commit!(store, [begun], |unit| unit.begin_key(&begun).await?).unwrap();
    assert!(claim(1, 7, 10, 20).await);
    assert!(!claim(1, 8, 19, 30).await);
    assert!(!claim(1, 7, 19, 30).await, "nor does its holder take it twice");
    assert!(claim(1, 8, 20, 30).await);
    // A clock that is hours ahead keeps nobody out.
    let hours = 3 * 60 * 60 * 1000;
    assert!(claim(1, 7, 30, 30 + hours).await);
    assert!(claim(1, 8, 40, 50).await);
    commit!(store, [], |unit| unit.pin_key(key_id(1), &public_key(1)).await?).unwrap();
    assert!(!claim(1, 7, 60, 70).await, "it is finished");
}

async fn a_ceremony_is_held_while_it_is_open(store: Arc<dyn Store>) {
    let id = Uuid::from_u128(1);
    let open = OpenCeremony { id, title: "one".to_owned(), plan: "p".to_owned(), begun_at: at(5) };
    commit!(store, [open], |unit| unit.begin_ceremony(&open).await?).unwrap();
    let held = |id: Uuid| {
        let store = Arc::clone(&store);
        async move {
            let id = id.to_string();
            commit!(store, [id], |unit| unit.holds_ceremony(&id).await?).unwrap()
        }
    };
    assert!(held(id).await);
    assert!(!held(Uuid::from_u128(2)).await);
    commit!(store, [], |unit| unit.end_ceremony(id, at(6)).await?).unwrap();
    assert!(!held(id).await);
}

async fn a_key_is_found_by_its_id_in_the_token(store: Arc<dyn Store>) {
    let (begun, name) = (new_key(1), new_key(1).label);
    commit!(store, [begun], |unit| unit.begin_key(&begun).await?).unwrap();
    let found = |n: u8| {
        let store = Arc::clone(&store);
        async move {
            let id = CkaId::new(vec![n; 16]);
            commit!(store, [id], |unit| unit.key_with(&id).await?).unwrap()
        }
    };
    assert_eq!(found(1).await, Some((HsmName::default(), name)));
    assert_eq!(found(2).await, None);
}
