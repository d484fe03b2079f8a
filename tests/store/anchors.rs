//! The newest block of a chain in which an end was told: it only moves up, and stays once it is broken.

use crate::fixtures::{CHAIN, OTHER_CHAIN, hash};
use alloy::primitives::B256;
use claviger::core::id::ChainId;
use claviger::ports::store::{Anchor, Store};
use std::sync::Arc;

on_both!(
    the_newest_block_of_an_end_is_remembered_for_each_chain,
    a_broken_anchor_stands_until_it_is_replaced,
    only_the_anchor_that_was_looked_at_is_broken,
);

async fn anchor(store: &Arc<dyn Store>, chain: ChainId) -> Option<Anchor> {
    read!(store, [], |unit| unit.anchor(chain).await?)
}

async fn raise(store: &Arc<dyn Store>, number: u64, hash: B256) {
    commit!(store, [], |unit| unit.raise_anchor(CHAIN, number, hash).await?).unwrap();
}

fn whole(number: u64, of: u64) -> Anchor {
    Anchor { number, hash: hash(of), broken: None }
}

async fn the_newest_block_of_an_end_is_remembered_for_each_chain(store: Arc<dyn Store>) {
    assert_eq!(anchor(&store, CHAIN).await, None);
    raise(&store, 7, hash(7)).await;
    for (number, of) in [(6, 6), (7, 70)] {
        raise(&store, number, hash(of)).await;
        assert_eq!(anchor(&store, CHAIN).await, Some(whole(7, 7)));
    }
    raise(&store, 9, hash(9)).await;
    assert_eq!(anchor(&store, CHAIN).await, Some(whole(9, 9)));
    assert_eq!(anchor(&store, OTHER_CHAIN).await, None);
}

async fn a_broken_anchor_stands_until_it_is_replaced(store: Arc<dyn Store>) {
    raise(&store, 7, hash(7)).await;
    let found = whole(7, 7);
    let breaks = || async {
        commit!(store, [found], |unit| unit.break_anchor(CHAIN, &found, "why").await?).unwrap()
    };
    assert!(breaks().await);
    assert!(!breaks().await, "once");
    raise(&store, 9, hash(9)).await;
    let broken = Anchor { broken: Some("why".to_owned()), ..whole(7, 7) };
    assert_eq!(anchor(&store, CHAIN).await, Some(broken));
    // Also by one that is lower: an operator knows best.
    let lower = Some((5, hash(5)));
    commit!(store, [], |unit| unit.replace_anchor(CHAIN, lower).await?).unwrap();
    assert_eq!(anchor(&store, CHAIN).await, Some(whole(5, 5)));
    commit!(store, [], |unit| unit.replace_anchor(CHAIN, None).await?).unwrap();
    assert_eq!(anchor(&store, CHAIN).await, None);
}

async fn only_the_anchor_that_was_looked_at_is_broken(store: Arc<dyn Store>) {
    raise(&store, 7, hash(7)).await;
    for old in [whole(6, 7), whole(7, 6)] {
        let broke = commit!(store, [old], |unit| unit.break_anchor(CHAIN, &old, "why").await?);
        assert!(!broke.unwrap());
    }
    assert_eq!(anchor(&store, CHAIN).await, Some(whole(7, 7)));
}
