//! Spend limits: nothing is ever held or spent above them (I8).

use crate::fixtures::at;
use alloy::primitives::U256;
use claviger::core::amount::Amount;
use claviger::core::id::GrantId;
use claviger::core::policy::{Charge, ChargeKind, LimitId, Period};
use claviger::ports::store::{End, LimitExceeded, Settlement, Store, StoreError, unit};
use std::sync::Arc;

on_both!(
    what_is_held_counts_until_it_is_released,
    a_limit_that_has_no_room_says_so_and_keeps_nothing,
    what_is_settled_leaves_after_its_span,
    the_fee_of_a_no_op_counts_up_to_all_that_was_held,
    what_is_held_does_not_age,
    each_limit_ages_by_its_own_span,
    a_success_keeps_the_value_and_the_fee_that_was_paid,
    a_revert_drops_the_value_and_keeps_the_fee,
    a_fee_is_never_settled_above_what_was_held,
    a_count_is_kept_whatever_happened,
    an_owner_is_charged_the_increase_of_each_part,
    an_increase_that_does_not_fit_is_refused,
    a_limit_that_was_lowered_lets_nothing_more_in,
    what_is_settled_is_not_settled_released_or_held_again,
    a_limit_charged_twice_by_one_request_is_refused,
    sums_do_not_wrap,
    room_is_what_a_reservation_would_find_and_changes_nothing,
    what_is_spent_at_once_is_as_a_reservation_that_was_settled,
    of_two_hundred_at_once_ten_fit,
    charges_in_any_order_do_not_block_each_other,
    settlements_and_reservations_at_once_lose_nothing,
);

pub const MINUTE: i64 = 60_000;

pub fn charge(n: u8, kind: ChargeKind, max: u64, span_ms: i64) -> Charge {
    Charge {
        limit: LimitId([n; 32]),
        label: format!("limit {n}"),
        grant: GrantId::new("payouts"),
        kind,
        max: Amount::from(max),
        period: Period::Rolling(span_ms),
    }
}

pub fn amount(n: u8, value: u64, fee: u64, max: u64) -> Charge {
    let kind = ChargeKind::Amount { value: Amount::from(value), fee: Amount::from(fee) };
    charge(n, kind, max, MINUTE)
}

fn count(n: u8, max: u64) -> Charge {
    charge(n, ChargeKind::Count(1), max, MINUTE)
}

/// Held and spent of limit `n`, as it is stored: at moment 0 nothing has left its span.
pub async fn limit(store: &Arc<dyn Store>, n: u8) -> (u64, u64) {
    let rows = read!(store, [], |unit| unit.limits_now(at(0)).await?);
    let label = format!("limit {n}");
    let row = rows.iter().find(|row| row.label == label).expect("the limit was used");
    (row.held.units().to(), row.spent.units().to())
}

/// Reserves as a use case does: a full limit rolls everything back.
pub async fn reserve(
    store: &Arc<dyn Store>,
    owner: &str,
    charges: &[Charge],
    now: i64,
) -> Result<Option<LimitExceeded>, StoreError> {
    let (owner, charges) = (owner.to_owned(), charges.to_vec());
    unit(&**store, "reserve", move |unit| {
        let (owner, charges) = (owner.clone(), charges.clone());
        Box::pin(async move {
            Ok(match unit.reserve(&owner, &charges, at(now)).await? {
                None => End::Commit(None),
                full => End::Rollback(full),
            })
        })
    })
    .await
}

async fn fits(store: &Arc<dyn Store>, owner: &str, charges: &[Charge], now: i64) -> bool {
    reserve(store, owner, charges, now).await.unwrap().is_none()
}

pub async fn settle(store: &Arc<dyn Store>, owner: &str, moved: bool, fee: Option<u64>, now: i64) {
    let owner = owner.to_owned();
    let outcome =
        Settlement { value_moved: moved, fee_paid: fee.map(Amount::from), fee_from_value: false };
    commit!(store, [owner], |unit| unit.settle(&owner, outcome, at(now)).await?).unwrap();
}

pub async fn release(store: &Arc<dyn Store>, owner: &str) {
    let owner = owner.to_owned();
    commit!(store, [owner], |unit| unit.release(&owner).await?).unwrap();
}

async fn what_is_held_counts_until_it_is_released(store: Arc<dyn Store>) {
    assert!(fits(&store, "a", &[amount(1, 5, 1, 10)], 0).await);
    assert!(!fits(&store, "b", &[amount(1, 4, 1, 10)], 0).await);
    assert!(fits(&store, "b", &[amount(1, 4, 0, 10)], 0).await);
    assert_eq!(limit(&store, 1).await, (10, 0));
    release(&store, "a").await;
    release(&store, "a").await;
    assert_eq!(limit(&store, 1).await, (4, 0));
    assert!(fits(&store, "c", &[amount(1, 6, 0, 10)], 0).await);
}

async fn a_limit_that_has_no_room_says_so_and_keeps_nothing(store: Arc<dyn Store>) {
    assert!(fits(&store, "a", &[amount(2, 7, 0, 10)], 0).await);
    let charges = [amount(3, 1, 0, 10), amount(2, 3, 1, 10), count(1, 10)];
    let full = reserve(&store, "b", &charges, 0).await.unwrap().unwrap();
    let expected = LimitExceeded {
        label: "limit 2".to_owned(),
        grant: "payouts".to_owned(),
        used: Amount::from(7_u64),
        asked: Amount::from(4_u64),
        max: Amount::from(10_u64),
    };
    assert_eq!(full, expected);
    let limits = read!(store, [], |unit| unit.limits_now(at(0)).await?);
    assert_eq!(limits.len(), 1, "the other limits were not opened: {limits:?}");
    assert_eq!(limit(&store, 2).await, (7, 0));
    release(&store, "b").await;
    assert_eq!(limit(&store, 2).await, (7, 0));
}

async fn what_is_settled_leaves_after_its_span(store: Arc<dyn Store>) {
    assert!(fits(&store, "a", &[amount(1, 10, 0, 10)], 0).await);
    settle(&store, "a", true, None, 1000).await;
    assert_eq!(limit(&store, 1).await, (0, 10));
    assert!(!fits(&store, "b", &[amount(1, 1, 0, 10)], 1000 + MINUTE - 1).await);
    assert!(fits(&store, "b", &[amount(1, 10, 0, 10)], 1000 + MINUTE).await);
    assert_eq!(limit(&store, 1).await, (10, 0));
}

async fn the_fee_of_a_no_op_counts_up_to_all_that_was_held(store: Arc<dyn Store>) {
    for (owner, paid, spent) in [("a", 3, 3), ("b", 9, 12), ("c", 100, 23)] {
        // One limit of native value and its fee, one of tokens.
        let charges = [amount(1, 10, 1, 1000), amount(2, 10, 0, 1000)];
        assert!(fits(&store, owner, &charges, 0).await);
        let outcome = Settlement {
            value_moved: false,
            fee_paid: Some(Amount::from(paid as u64)),
            fee_from_value: true,
        };
        commit!(store, [], |unit| unit.settle(owner, outcome, at(0)).await?).unwrap();
        assert_eq!(limit(&store, 1).await, (0, spent), "{owner}");
        assert_eq!(limit(&store, 2).await, (0, 0), "a fee is no token");
    }
}

async fn what_is_held_does_not_age(store: Arc<dyn Store>) {
    assert!(fits(&store, "a", &[amount(1, 10, 0, 10)], 0).await);
    assert!(!fits(&store, "b", &[amount(1, 1, 0, 10)], 1000 * MINUTE).await);
    // It counts for its span from when it settled.
    settle(&store, "a", true, None, 1000 * MINUTE).await;
    assert!(!fits(&store, "b", &[amount(1, 1, 0, 10)], 1001 * MINUTE - 1).await);
    assert!(fits(&store, "b", &[amount(1, 1, 0, 10)], 1001 * MINUTE).await);
}

async fn each_limit_ages_by_its_own_span(store: Arc<dyn Store>) {
    let value = ChargeKind::Amount { value: Amount::ONE, fee: Amount::ZERO };
    let charges = [charge(1, value, 1, MINUTE), charge(2, value, 2, 2 * MINUTE)];
    assert!(fits(&store, "a", &charges, 0).await);
    settle(&store, "a", true, None, 0).await;
    assert!(fits(&store, "b", &charges, MINUTE).await);
    settle(&store, "b", true, None, MINUTE).await;
    assert_eq!((limit(&store, 1).await, limit(&store, 2).await), ((0, 1), (0, 2)));
    let full = reserve(&store, "c", &charges, 2 * MINUTE - 1).await.unwrap().unwrap();
    assert_eq!(full.label, "limit 1");
    assert!(fits(&store, "c", &charges, 2 * MINUTE).await);
}

async fn a_success_keeps_the_value_and_the_fee_that_was_paid(store: Arc<dyn Store>) {
    assert!(fits(&store, "a", &[amount(1, 5, 4, 10)], 0).await);
    settle(&store, "a", true, Some(3), 0).await;
    assert_eq!(limit(&store, 1).await, (0, 8));
    assert!(fits(&store, "b", &[amount(1, 0, 1, 10)], 0).await);
    settle(&store, "b", true, None, 0).await;
    assert_eq!(limit(&store, 1).await, (0, 9));
}

async fn a_revert_drops_the_value_and_keeps_the_fee(store: Arc<dyn Store>) {
    assert!(fits(&store, "a", &[amount(1, 5, 4, 10)], 0).await);
    settle(&store, "a", false, Some(3), 0).await;
    assert_eq!(limit(&store, 1).await, (0, 3));
    // What left of it is what was kept, not what was held.
    assert!(fits(&store, "b", &[amount(1, 10, 0, 10)], MINUTE).await);
    assert_eq!(limit(&store, 1).await, (10, 0));
}

async fn a_fee_is_never_settled_above_what_was_held(store: Arc<dyn Store>) {
    // A token's window holds no fee: the gas that was paid is not the token's.
    assert!(fits(&store, "a", &[amount(1, 5, 0, 5), amount(2, 0, 4, 4)], 0).await);
    settle(&store, "a", true, Some(1000), 0).await;
    assert_eq!((limit(&store, 1).await, limit(&store, 2).await), ((0, 5), (0, 4)));
}

async fn a_count_is_kept_whatever_happened(store: Arc<dyn Store>) {
    assert!(fits(&store, "a", &[count(1, 2)], 0).await);
    assert!(fits(&store, "b", &[count(1, 2)], 0).await);
    assert!(!fits(&store, "c", &[count(1, 2)], 0).await);
    // Another version of the same nonce is the same request.
    assert!(fits(&store, "a", &[count(1, 2)], 0).await);
    settle(&store, "a", true, Some(3), 0).await;
    settle(&store, "b", false, Some(3), 0).await;
    assert_eq!(limit(&store, 1).await, (0, 2));
    assert!(fits(&store, "c", &[count(1, 2)], MINUTE).await);
}

async fn an_owner_is_charged_the_increase_of_each_part(store: Arc<dyn Store>) {
    assert!(fits(&store, "a", &[amount(1, 5, 1, 10)], 0).await);
    assert!(fits(&store, "a", &[amount(1, 3, 4, 10)], 0).await);
    assert_eq!(limit(&store, 1).await, (9, 0), "5 and 4: the largest of each part");
    assert!(fits(&store, "a", &[amount(1, 1, 1, 10)], 0).await);
    assert_eq!(limit(&store, 1).await, (9, 0));
    settle(&store, "a", true, None, 0).await;
    assert_eq!(limit(&store, 1).await, (0, 9));
}

async fn an_increase_that_does_not_fit_is_refused(store: Arc<dyn Store>) {
    assert!(fits(&store, "a", &[amount(1, 5, 1, 10)], 0).await);
    let full = reserve(&store, "a", &[amount(1, 5, 6, 10)], 0).await.unwrap().unwrap();
    assert_eq!((full.used, full.asked), (Amount::from(6_u64), Amount::from(5_u64)));
    assert_eq!(limit(&store, 1).await, (6, 0));
}

async fn a_limit_that_was_lowered_lets_nothing_more_in(store: Arc<dyn Store>) {
    assert!(fits(&store, "a", &[amount(1, 10, 0, 10)], 0).await);
    assert!(!fits(&store, "b", &[amount(1, 1, 0, 5)], 0).await);
    assert!(!fits(&store, "a", &[amount(1, 11, 0, 5)], 0).await);
    // No more than it holds already.
    assert!(fits(&store, "a", &[amount(1, 10, 0, 5)], 0).await);
}

async fn what_is_settled_is_not_settled_released_or_held_again(store: Arc<dyn Store>) {
    assert!(fits(&store, "a", &[amount(1, 5, 0, 10)], 0).await);
    settle(&store, "a", true, None, 0).await;
    settle(&store, "a", false, None, 1).await;
    release(&store, "a").await;
    assert_eq!(limit(&store, 1).await, (0, 5));
    let again = reserve(&store, "a", &[amount(1, 6, 0, 10)], 0).await;
    assert!(matches!(again, Err(StoreError::Corrupt(_))), "{again:?}");
    assert_eq!(limit(&store, 1).await, (0, 5));
    settle(&store, "nobody", true, None, 0).await;
    release(&store, "nobody").await;
}

async fn a_limit_charged_twice_by_one_request_is_refused(store: Arc<dyn Store>) {
    let charges = [amount(1, 5, 0, 10), amount(2, 1, 0, 10), amount(1, 5, 0, 10)];
    let answer = reserve(&store, "a", &charges, 0).await;
    assert!(matches!(answer, Err(StoreError::Corrupt(_))), "{answer:?}");
    assert!(read!(store, [], |unit| unit.limits_now(at(0)).await?).is_empty());
}

async fn sums_do_not_wrap(store: Arc<dyn Store>) {
    let most = Amount::new(U256::MAX);
    let of = |value, fee| Charge {
        max: most,
        ..charge(1, ChargeKind::Amount { value, fee }, 0, i64::MAX)
    };
    assert!(!fits(&store, "a", &[of(most, Amount::ONE)], 0).await);
    assert!(fits(&store, "a", &[of(most, Amount::ZERO)], 0).await);
    assert!(!fits(&store, "b", &[of(Amount::ONE, Amount::ZERO)], 0).await);
    settle(&store, "a", true, None, 0).await;
    assert!(!fits(&store, "b", &[of(Amount::ONE, Amount::ZERO)], i64::MAX - 1).await);
}

async fn all<T: Send + 'static>(tasks: Vec<tokio::task::JoinHandle<T>>) -> Vec<T> {
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    answers
}

async fn of_two_hundred_at_once_ten_fit(store: Arc<dyn Store>) {
    crate::fixtures::crowd(&store).await;
    let tasks = (0..200).map(|n| {
        let store = store.clone();
        tokio::spawn(
            async move { fits(&store, &format!("owner {n}"), &[amount(1, 3, 1, 40)], 0).await },
        )
    });
    let passed = all(tasks.collect()).await.into_iter().filter(|fits| *fits).count();
    assert_eq!(passed, 10);
    assert_eq!(limit(&store, 1).await, (40, 0));
}

async fn charges_in_any_order_do_not_block_each_other(store: Arc<dyn Store>) {
    crate::fixtures::crowd(&store).await;
    let tasks = (0..40_u8).map(|n| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut charges: Vec<Charge> = (1..=6).map(|limit| count(limit, 40)).collect();
            charges.rotate_left(usize::from(n % 6));
            if n % 2 == 0 {
                charges.reverse();
            }
            fits(&store, &format!("owner {n}"), &charges, 0).await
        })
    });
    assert!(all(tasks.collect()).await.into_iter().all(|fits| fits));
    for n in 1..=6 {
        assert_eq!(limit(&store, n).await, (40, 0));
    }
}

async fn settlements_and_reservations_at_once_lose_nothing(store: Arc<dyn Store>) {
    crate::fixtures::crowd(&store).await;
    let charges = [amount(1, 2, 1, 60), count(2, 1000)];
    for n in 0..20 {
        assert!(fits(&store, &format!("old {n}"), &charges, 0).await);
    }
    assert!(!fits(&store, "new", &charges, 0).await);
    let tasks = (0..60).map(|n| {
        let (store, charges) = (store.clone(), charges.clone());
        tokio::spawn(async move {
            let old = format!("old {}", n % 20);
            match n / 20 {
                // Two workers settle the same owners.
                0 | 1 => settle(&store, &old, n % 2 == 0, Some(1), 0).await,
                _ => return fits(&store, &format!("new {n}"), &charges, 0).await,
            }
            false
        })
    });
    let passed = all(tasks.collect()).await.into_iter().filter(|fits| *fits).count();
    // Even ones moved their value and spent 3, odd ones reverted and spent 1.
    let passed = u64::try_from(passed).unwrap();
    assert_eq!(limit(&store, 1).await, (3 * passed, 40));
    assert_eq!(limit(&store, 2).await, (passed, 20));
    assert!(passed <= 6, "{passed}");
}

async fn room_is_what_a_reservation_would_find_and_changes_nothing(store: Arc<dyn Store>) {
    let now = async |millis: i64| {
        let rows = read!(store, [], |unit| unit.limits_now(at(millis)).await?);
        let all = rows.iter().map(|row| (row.held.units().to(), row.spent.units().to()));
        all.collect::<Vec<(u64, u64)>>()
    };
    let room = async |owner: &str, charges: &[Charge], millis: i64| {
        let (owner, charges) = (owner.to_owned(), charges.to_vec());
        let found =
            read!(store, [owner, charges], |unit| unit.room(&owner, &charges, at(millis)).await?);
        let all = found.iter().map(|it| (it.used.units().to(), it.asked.units().to(), it.fits));
        all.collect::<Vec<(u64, u64, bool)>>()
    };
    // A limit that was never charged.
    let first = [amount(1, 60, 10, 100), amount(2, 101, 0, 100)];
    assert_eq!(room("a", &first, 0).await, [(0, 70, true), (0, 101, false)]);
    assert!(now(0).await.is_empty(), "it was not opened");
    assert!(reserve(&store, "a", &first[..1], 0).await.unwrap().is_none());
    // Another owner, the same one, and the same one with more than there is.
    assert_eq!(room("b", &[amount(1, 31, 0, 100)], 1).await, [(70, 31, false)]);
    assert_eq!(room("b", &[amount(1, 30, 0, 100)], 1).await, [(70, 30, true)]);
    assert_eq!(room("a", &[amount(1, 60, 20, 100)], 1).await, [(70, 10, true)]);
    assert_eq!(room("a", &[amount(1, 91, 10, 100)], 1).await, [(70, 31, false)]);
    settle(&store, "a", true, None, 10).await;
    assert_eq!(now(11).await, [(0, 70)]);
    assert_eq!(room("b", &[amount(1, 31, 0, 100)], 11).await, [(70, 31, false)]);
    // Past its span it is gone for whoever looks, and still stored.
    assert_eq!(now(10 + MINUTE).await, [(0, 0)]);
    assert_eq!(room("b", &[amount(1, 31, 0, 100)], 10 + MINUTE).await, [(0, 31, true)]);
    assert_eq!(limit(&store, 1).await, (0, 70));
    assert_eq!(now(9 + MINUTE).await, [(0, 70)], "a look does not age it");
}

async fn what_is_spent_at_once_is_as_a_reservation_that_was_settled(store: Arc<dyn Store>) {
    let spend = async |owner: &str, charges: &[Charge], now: i64| {
        let (owner, charges) = (owner.to_owned(), charges.to_vec());
        unit(&*store, "spend", move |unit| {
            let (owner, charges) = (owner.clone(), charges.clone());
            Box::pin(async move {
                Ok(match unit.spend(&owner, &charges, at(now)).await? {
                    None => End::Commit(None),
                    full => End::Rollback(full),
                })
            })
        })
        .await
    };
    let both = [amount(1, 60, 10, 100), count(2, 2)];
    assert_eq!(spend("a", &both, 0).await.unwrap(), None);
    assert_eq!((limit(&store, 1).await, limit(&store, 2).await), ((0, 70), (0, 1)));
    // What is held counts for it, and it counts for what is held.
    assert!(fits(&store, "b", &[amount(1, 20, 0, 100)], 1).await);
    let full = spend("c", &[amount(1, 11, 0, 100)], 1).await.unwrap().unwrap();
    assert_eq!((full.used.units().to::<u64>(), full.asked.units().to::<u64>()), (90, 11));
    assert!(!fits(&store, "c", &[amount(1, 11, 0, 100)], 1).await);
    assert_eq!(spend("c", &[amount(1, 10, 0, 100), count(2, 2)], 1).await.unwrap(), None);
    // The second limit is full: neither is charged.
    let full = spend("d", &[amount(1, 0, 0, 100), count(2, 2)], 2).await.unwrap();
    assert!(full.is_some_and(|full| full.label == "limit 2"));
    assert_eq!((limit(&store, 1).await, limit(&store, 2).await), ((20, 80), (0, 2)));
    // It leaves after its span, and is not settled or released once more.
    settle(&store, "a", true, None, 3).await;
    release(&store, "a").await;
    assert_eq!(limit(&store, 1).await, (20, 80));
    // What was spent within a moment of each other leaves together, with the last of it.
    assert!(!fits(&store, "e", &[amount(1, 70, 0, 100)], MINUTE).await);
    assert!(fits(&store, "e", &[amount(1, 70, 0, 100)], MINUTE + 1).await);
    assert_eq!(limit(&store, 1).await, (90, 0));
    let twice = [count(3, 5), count(3, 5)];
    assert!(matches!(spend("f", &twice, 0).await, Err(StoreError::Corrupt(_))));
    assert!(spend("a", &[amount(4, 1, 0, 9)], 0).await.unwrap().is_none());
    assert!(spend("a", &[amount(4, 1, 0, 9)], 0).await.is_err(), "an owner spends once");
}
