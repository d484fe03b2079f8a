//! Tens of thousands of keys: wrapped ones in one step, pages, and the few of a group that are compared.

use crate::fixtures::{
    CHAIN, OTHER_CHAIN, add_key, at, insert, key_id, lane, new_key, public_key, submit, transaction,
};
use alloy::primitives::Address;
use claviger::core::id::{GroupName, HsmName, KeyId};
use claviger::core::key::{CkaId, Custody, KeyState, NonceMode, OperatorKey, WrappedKey};
use claviger::ports::store::{
    Candidate, FEW_LANES, KeyFilter, LaneKey, NewKey, Store, Wrapped, candidates_max,
};
use std::collections::BTreeSet;
use std::sync::Arc;

on_both!(
    a_wrapped_key_is_stored_at_once_or_not_at_all,
    a_key_is_found_by_its_id_and_its_address_once_it_is_finished,
    pages_give_every_key_once_in_order,
    filters_of_a_page_all_hold,
    candidates_of_a_small_group_are_all_with_their_lanes,
    candidates_of_a_large_group_are_a_few_from_anywhere,
    the_lanes_of_many_are_told_only_where_there_is_work,
);

fn wrapped(n: u8) -> WrappedKey {
    WrappedKey { blob: vec![n; 72], under: CkaId::new(b"wrap".to_vec()) }
}

async fn add_wrapped(store: &Arc<dyn Store>, n: u8, key: NewKey) -> bool {
    commit!(store, [key], |unit| {
        unit.insert_wrapped_key(&key, &public_key(n), &wrapped(n)).await?
    })
    .unwrap()
}

fn everything() -> KeyFilter {
    KeyFilter { after: None, group: None, hsm: None, state: None, is_wrapped: None, limit: 1_000 }
}

async fn page(store: &Arc<dyn Store>, filter: KeyFilter) -> Vec<OperatorKey> {
    read!(store, [filter], |unit| unit.keys_page(&filter).await?)
}

fn ids(keys: &[OperatorKey]) -> Vec<KeyId> {
    keys.iter().map(|key| key.id).collect()
}

async fn a_wrapped_key_is_stored_at_once_or_not_at_all(store: Arc<dyn Store>) {
    let key = NewKey { hsm: HsmName::new("b"), ..new_key(1) };
    assert!(add_wrapped(&store, 1, key.clone()).await);
    let expected = OperatorKey {
        id: key_id(1),
        hsm: HsmName::new("b"),
        cka_id: key.cka_id.clone(),
        custody: Custody::Wrapped(wrapped(1)),
        label: key.label.clone(),
        group: key.group.clone(),
        mode: NonceMode::Managed,
        public_key: public_key(1),
        address: public_key(1).address(),
        state: KeyState::Active,
        created_at: at(1),
    };
    assert_eq!(read!(store, [], |unit| unit.key(key_id(1)).await?), Some(expected.clone()));
    assert_eq!(page(&store, everything()).await, [expected]);
    assert!(read!(store, [], |unit| unit.unfinished_keys().await?).is_empty());
    // Its id, its CKA_ID and its address are its own.
    assert!(!add_wrapped(&store, 2, NewKey { cka_id: CkaId::new(vec![9]), ..key.clone() }).await);
    assert!(!add_wrapped(&store, 2, NewKey { id: key_id(9), ..key.clone() }).await);
    assert!(!add_wrapped(&store, 1, new_key(2)).await);
    assert!(add_wrapped(&store, 2, new_key(2)).await);
    add_key(&store, 3).await;
    let under = read!(store, [], |unit| unit.wrapped_under().await?);
    let told = |hsm, keys| Wrapped { hsm: HsmName::new(hsm), under: wrapped(1).under, keys };
    assert_eq!(under, [told("b", 1), told("default", 1)]);
    let of_tokens = read!(store, [], |unit| unit.token_keys().await?);
    assert_eq!(ids(&of_tokens), [key_id(3)]);
}

async fn a_key_is_found_by_its_id_and_its_address_once_it_is_finished(store: Arc<dyn Store>) {
    let begun = new_key(1);
    assert!(commit!(store, [begun], |unit| unit.begin_key(&begun).await?).unwrap());
    assert_eq!(read!(store, [], |unit| unit.key(key_id(1)).await?), None);
    let address = add_key(&store, 2).await;
    let by_id = read!(store, [], |unit| unit.key(key_id(2)).await?).unwrap();
    let by_address = read!(store, [], |unit| unit.key_at(address).await?).unwrap();
    assert_eq!((by_id.address, &by_id), (address, &by_address));
    assert_eq!(read!(store, [], |unit| unit.key_at(Address::ZERO).await?), None);
    let oldest = |group| GroupName::new(group);
    let (hot, none) = (oldest("hot"), oldest("none"));
    add_key(&store, 1_u8.wrapping_add(2)).await;
    assert_eq!(read!(store, [hot], |unit| unit.oldest_of(&hot).await?).unwrap().id, key_id(2));
    assert_eq!(read!(store, [none], |unit| unit.oldest_of(&none).await?), None);
}

async fn pages_give_every_key_once_in_order(store: Arc<dyn Store>) {
    for n in [5, 1, 4, 2, 7, 3, 6] {
        if n % 2 == 0 {
            add_key(&store, n).await;
        } else {
            assert!(add_wrapped(&store, n, new_key(n)).await);
        }
    }
    let (mut after, mut found) = (None, Vec::new());
    loop {
        let filter = KeyFilter { after, limit: 3, ..everything() };
        let next = ids(&page(&store, filter).await);
        assert!(next.len() <= 3);
        after = next.last().copied();
        found.extend(next);
        if after.is_none() {
            break;
        }
    }
    assert_eq!(found, (1..=7).map(key_id).collect::<Vec<_>>());
}

async fn filters_of_a_page_all_hold(store: Arc<dyn Store>) {
    let cold = |n| NewKey { group: Some(GroupName::new("cold")), ..new_key(n) };
    add_key(&store, 1).await;
    assert!(add_wrapped(&store, 2, new_key(2)).await);
    assert!(add_wrapped(&store, 3, cold(3)).await);
    assert!(add_wrapped(&store, 4, NewKey { hsm: HsmName::new("b"), ..cold(4) }).await);
    let group = Some(GroupName::new("cold"));
    let hsm = Some(HsmName::new("b"));
    for (filter, expected) in [
        (everything(), vec![1, 2, 3, 4]),
        (KeyFilter { is_wrapped: Some(true), ..everything() }, vec![2, 3, 4]),
        (KeyFilter { is_wrapped: Some(false), ..everything() }, vec![1]),
        (KeyFilter { group: group.clone(), ..everything() }, vec![3, 4]),
        (KeyFilter { hsm: hsm.clone(), ..everything() }, vec![4]),
        (KeyFilter { state: Some(KeyState::Active), limit: 2, ..everything() }, vec![1, 2]),
        (KeyFilter { state: Some(KeyState::Creating), ..everything() }, vec![]),
        (KeyFilter { group, hsm, after: Some(key_id(4)), ..everything() }, vec![]),
    ] {
        let expected: Vec<KeyId> = expected.into_iter().map(key_id).collect();
        assert_eq!(ids(&page(&store, filter.clone()).await), expected, "{filter:?}");
    }
}

async fn candidates(store: &Arc<dyn Store>, from: Address) -> Vec<Candidate> {
    let group = GroupName::new("hot");
    read!(store, [group], |unit| unit.candidates(CHAIN, &group, from).await?)
}

async fn candidates_of_a_small_group_are_all_with_their_lanes(store: Arc<dyn Store>) {
    for n in 1..=4 {
        add_key(&store, n).await;
    }
    let elsewhere = LaneKey { chain: OTHER_CHAIN, ..crate::fixtures::lane_key(3) };
    commit!(store, [elsewhere], |unit| unit.lock_lane(&elsewhere).await?).unwrap();
    lane(&store, 2).await;
    insert(&store, vec![transaction(1, 1), transaction(2, 1), transaction(3, 1)]).await;
    lane(&store, 1).await;
    submit(&store, transaction(1, 1).id, 1).await;
    let found = candidates(&store, Address::repeat_byte(0xff)).await;
    let keys: Vec<OperatorKey> = found.iter().map(|it| it.key.clone()).collect();
    assert_eq!(ids(&keys), (1..=4).map(key_id).collect::<Vec<_>>(), "oldest first");
    let loads: Vec<_> = found
        .iter()
        .map(|it| it.lane.as_ref().map(|lane| (lane.flying, lane.queued, lane.halted)))
        .collect();
    assert_eq!(loads, [Some((1, 2, false)), Some((0, 0, false)), None, None]);
}

async fn candidates_of_a_large_group_are_a_few_from_anywhere(store: Arc<dyn Store>) {
    let most = usize::try_from(candidates_max()).unwrap();
    let all = u8::try_from(most).unwrap() + 20;
    let mut addresses = BTreeSet::new();
    for n in 1..=all {
        assert!(add_wrapped(&store, n, new_key(n)).await);
        addresses.insert(public_key(n).address());
    }
    let addresses: Vec<Address> = addresses.into_iter().collect();
    // From the first on; from the middle; round the end.
    for start in [0, 5, most, addresses.len() - 1] {
        let found = candidates(&store, addresses[start]).await;
        let found: Vec<Address> = found.iter().map(|it| it.key.address).collect();
        let expected: Vec<Address> =
            addresses.iter().cycle().skip(start).take(most).copied().collect();
        assert_eq!(found, expected, "{start}");
    }
    assert_eq!(candidates(&store, Address::repeat_byte(0xff)).await.len(), most);
}

async fn the_lanes_of_many_are_told_only_where_there_is_work(store: Arc<dyn Store>) {
    let busy = add_key(&store, 1).await;
    insert(&store, vec![transaction(1, 1)]).await;
    lane(&store, 1).await;
    let open = move |n: i64| {
        let mut address = [0; 20];
        address[..8].copy_from_slice(&n.to_be_bytes());
        LaneKey { address: Address::from(address), ..crate::fixtures::lane_key(1) }
    };
    let few = (1..FEW_LANES).map(open).collect::<Vec<_>>();
    let few = Arc::new(few);
    commit!(store, [few], |unit| {
        for lane in few.iter() {
            unit.lock_lane(lane).await?;
        }
    })
    .unwrap();
    let ages = read!(store, [], |unit| unit.lane_ages(CHAIN).await?);
    assert_eq!(i64::try_from(ages.len()).unwrap(), FEW_LANES);
    assert!(!read!(store, [], |unit| unit.has_many_lanes(CHAIN).await?));
    let last = open(FEW_LANES);
    commit!(store, [last], |unit| unit.lock_lane(&last).await?).unwrap();
    assert!(read!(store, [], |unit| unit.has_many_lanes(CHAIN).await?));
    let ages = read!(store, [], |unit| unit.lane_ages(CHAIN).await?);
    assert_eq!(ages.iter().map(|age| age.address).collect::<Vec<_>>(), [busy]);
    assert_eq!(ages[0].oldest, Some(at(1000)));
}
