//! What others may take later holds its part of the windows until the chain shows that it is over.

use crate::fixtures::{CHAIN, OTHER_CHAIN, at, hash};
use crate::spend::{MINUTE, amount, limit, release, settle};
use alloy::primitives::{Address, U256};
use claviger::core::amount::Amount;
use claviger::core::policy::Exposure;
use claviger::core::policy::effect::{ApprovalForm, PermitTerms};
use claviger::ports::store::{
    End, ExposureChange, ExposureRow, ExposureState, Hold, LimitExceeded, Store, StoreError, unit,
};
use std::sync::Arc;

on_both!(
    an_exposure_is_held_beside_the_charges_until_it_ends,
    a_revert_and_what_was_never_signed_expose_nothing,
    what_was_sent_back_is_asked_for_once_more,
    versions_of_a_nonce_hold_the_largest_of_each_exposure,
    the_same_approval_twice_in_one_request_is_two,
    a_full_window_keeps_nothing_of_an_exposure,
    a_permit_is_open_from_its_decision_on,
    what_is_used_counts_from_then_and_the_rest_is_held_on,
    a_look_that_comes_late_changes_nothing,
    what_a_look_leaves_as_it_was_is_noted_for_all_or_for_none,
    open_ones_are_found_with_those_beside_them,
    what_was_looked_at_in_vain_has_its_turn_after_the_others,
    an_exposure_is_of_the_form_in_which_it_is_given,
);

fn exposure(spender: u8, value: u64, max: u64) -> Exposure {
    Exposure {
        token: Address::repeat_byte(1),
        owner: Address::repeat_byte(2),
        spender: Address::repeat_byte(spender),
        amount: Amount::from(value),
        form: ApprovalForm::Approve,
        permit: None,
        charges: vec![amount(1, value, 0, max)],
    }
}

fn permit(spender: u8, value: u64) -> Exposure {
    let terms = PermitTerms {
        verifying_contract: Address::repeat_byte(1),
        nonce: U256::MAX,
        deadline: Some(1_000),
        expires: None,
    };
    Exposure { form: ApprovalForm::Permit, permit: Some(terms), ..exposure(spender, value, 100) }
}

fn hold(owner: &str, exposures: Vec<Exposure>) -> Hold {
    Hold {
        owner: owner.to_owned(),
        chain: Some(CHAIN),
        charges: vec![amount(1, 5, 0, 100)],
        exposures,
        at_once: false,
    }
}

async fn holds(store: &Arc<dyn Store>, hold: Hold) -> Result<Option<LimitExceeded>, StoreError> {
    unit(&**store, "hold", move |unit| {
        let hold = hold.clone();
        Box::pin(async move {
            Ok(match unit.hold(&hold, at(0)).await? {
                None => End::Commit(None),
                full => End::Rollback(full),
            })
        })
    })
    .await
}

async fn of(store: &Arc<dyn Store>, owner: &str) -> Vec<ExposureRow> {
    let owner = owner.to_owned();
    read!(store, [owner], |unit| unit.exposures_of(&owner).await?)
}

async fn see(store: &Arc<dyn Store>, changes: Vec<ExposureChange>, now: i64) -> bool {
    let seen = unit(&**store, "see", move |unit| {
        let changes = changes.clone();
        Box::pin(async move {
            Ok(match unit.see_exposures(&changes, at(now)).await? {
                true => End::Commit(true),
                false => End::Rollback(false),
            })
        })
    });
    seen.await.unwrap()
}

fn change(row: &ExposureRow, used: u64, freed: u64, ended: bool) -> ExposureChange {
    ExposureChange {
        row: row.clone(),
        block: 10,
        used: Amount::from(used),
        freed: Amount::from(freed),
        submitted: true,
        ended: ended.then_some("used"),
    }
}

async fn an_exposure_is_held_beside_the_charges_until_it_ends(store: Arc<dyn Store>) {
    assert_eq!(holds(&store, hold("a", vec![exposure(3, 60, 100)])).await.unwrap(), None);
    assert_eq!(limit(&store, 1).await, (65, 0));
    let rows = of(&store, "a").await;
    assert_eq!((rows[0].state, rows[0].remaining), (ExposureState::Held, Amount::from(60_u64)));
    // Its transaction is final: the request's own part is spent, and leaves; what is exposed does not.
    settle(&store, "a", true, None, 0).await;
    assert_eq!(limit(&store, 1).await, (60, 5));
    assert_eq!(of(&store, "a").await[0].state, ExposureState::Open);
    let full = holds(&store, hold("b", vec![exposure(4, 36, 100)])).await.unwrap();
    assert!(full.is_some());
    // Once open it is neither settled nor released with its owner.
    settle(&store, "a", false, None, 0).await;
    release(&store, "a").await;
    assert_eq!(limit(&store, 1).await, (60, 5));
    let row = of(&store, "a").await.remove(0);
    assert!(see(&store, vec![change(&row, 0, 60, true)], 1).await);
    assert_eq!(limit(&store, 1).await, (0, 5));
    assert_eq!(of(&store, "a").await[0].state, ExposureState::Ended);
}

async fn a_revert_and_what_was_never_signed_expose_nothing(store: Arc<dyn Store>) {
    for owner in ["a", "b"] {
        let asked = hold(owner, vec![exposure(3, 20, 100), exposure(4, 10, 100)]);
        assert_eq!(holds(&store, asked).await.unwrap(), None);
    }
    assert_eq!(limit(&store, 1).await, (70, 0));
    settle(&store, "a", false, Some(0), 0).await;
    assert_eq!(limit(&store, 1).await, (35, 0));
    release(&store, "b").await;
    release(&store, "b").await;
    assert_eq!(limit(&store, 1).await, (0, 0));
    let over = of(&store, "a").await;
    assert_eq!(over.len(), 2);
    assert!(over.iter().all(|row| row.state == ExposureState::Ended));
    let again = holds(&store, hold("a", vec![exposure(3, 20, 100)])).await;
    assert!(matches!(again, Err(StoreError::Corrupt(_))), "its nonce is final: {again:?}");
    assert!(of(&store, "b").await.is_empty());
}

async fn what_was_sent_back_is_asked_for_once_more(store: Arc<dyn Store>) {
    let asked = |value| hold("a", vec![exposure(3, value, 100), exposure(4, 10, 100)]);
    for value in [20, 30] {
        assert_eq!(holds(&store, asked(value)).await.unwrap(), None);
        assert_eq!(limit(&store, 1).await, (15 + value, 0));
        release(&store, "a").await;
        assert_eq!(limit(&store, 1).await, (0, 0));
    }
    assert_eq!(holds(&store, asked(25)).await.unwrap(), None);
    let given: Vec<u64> = of(&store, "a").await.iter().map(|row| row.amount.units().to()).collect();
    assert_eq!(given, [25, 10], "nothing is left of what was asked before");
    settle(&store, "a", true, None, 0).await;
    assert_eq!(limit(&store, 1).await, (35, 5));
    assert!(of(&store, "a").await.iter().all(|row| row.state == ExposureState::Open));
}

async fn versions_of_a_nonce_hold_the_largest_of_each_exposure(store: Arc<dyn Store>) {
    for (spender, value, held) in [(3, 30, 35), (3, 20, 35), (3, 40, 45), (4, 10, 55)] {
        let asked = hold("1:0xaa:7", vec![exposure(spender, value, 100)]);
        assert_eq!(holds(&store, asked).await.unwrap(), None);
        assert_eq!(limit(&store, 1).await, (held, 0), "{spender} {value}");
    }
    let rows = of(&store, "1:0xaa:7").await;
    let amounts: Vec<u64> = rows.iter().map(|row| row.amount.units().to()).collect();
    assert_eq!(amounts, [40, 10]);
    // Only the increase is asked for.
    let asked = hold("1:0xaa:7", vec![exposure(3, 86, 100)]);
    let full = holds(&store, asked).await.unwrap().unwrap();
    assert_eq!((full.used, full.asked), (Amount::from(55_u64), Amount::from(46_u64)));
    settle(&store, "1:0xaa:7", true, None, 0).await;
    let again = holds(&store, hold("1:0xaa:7", vec![exposure(3, 1, 100)])).await;
    assert!(matches!(again, Err(StoreError::Corrupt(_))), "{again:?}");
}

async fn the_same_approval_twice_in_one_request_is_two(store: Arc<dyn Store>) {
    let twice = vec![exposure(3, 20, 100), exposure(3, 20, 100)];
    assert_eq!(holds(&store, hold("a", twice.clone())).await.unwrap(), None);
    assert_eq!(limit(&store, 1).await, (45, 0));
    assert_eq!(holds(&store, hold("a", twice)).await.unwrap(), None);
    assert_eq!(limit(&store, 1).await, (45, 0));
}

async fn a_full_window_keeps_nothing_of_an_exposure(store: Arc<dyn Store>) {
    let asked = hold("a", vec![exposure(3, 60, 100), exposure(4, 36, 100)]);
    let full = holds(&store, asked).await.unwrap().unwrap();
    assert_eq!(full.asked, Amount::from(36_u64));
    assert!(of(&store, "a").await.is_empty());
    assert!(read!(store, [], |unit| unit.limits_now(at(0)).await?).is_empty());
}

async fn a_permit_is_open_from_its_decision_on(store: Arc<dyn Store>) {
    let asked = Hold { at_once: true, ..hold("a", vec![permit(3, 60)]) };
    assert_eq!(holds(&store, asked.clone()).await.unwrap(), None);
    assert_eq!(limit(&store, 1).await, (60, 5));
    let row = of(&store, "a").await.remove(0);
    assert_eq!((row.state, row.submitted), (ExposureState::Open, false));
    assert_eq!((row.form, row.permit), (ApprovalForm::Permit, asked.exposures[0].permit.clone()));
    assert!(holds(&store, asked).await.is_err(), "an owner decides once");
    let endless = Hold { at_once: true, ..hold("b", vec![exposure(3, 1, 100)]) };
    assert!(holds(&store, endless).await.is_err(), "what no transaction gives has a permit");
    assert!(of(&store, "b").await.is_empty());
}

async fn what_is_used_counts_from_then_and_the_rest_is_held_on(store: Arc<dyn Store>) {
    assert_eq!(holds(&store, hold("a", vec![exposure(3, 60, 100)])).await.unwrap(), None);
    settle(&store, "a", true, None, 0).await;
    let row = of(&store, "a").await.remove(0);
    assert!(see(&store, vec![change(&row, 25, 5, false)], MINUTE).await);
    assert_eq!(limit(&store, 1).await, (30, 30), "5 of the request, 25 that was taken");
    let row = of(&store, "a").await.remove(0);
    assert_eq!((row.remaining, row.seen_block), (Amount::from(30_u64), 10));
    assert!(see(&store, vec![change(&row, 20, 0, true)], MINUTE + 1).await);
    assert_eq!(limit(&store, 1).await, (0, 50));
    let now = |millis| {
        let store = store.clone();
        async move { read!(store, [], |unit| unit.limits_now(at(millis)).await?)[0].spent }
    };
    assert_eq!(now(2 * MINUTE + 1).await, Amount::ZERO);
    assert!(now(2 * MINUTE - 1).await >= Amount::from(45_u64));
}

async fn a_look_that_comes_late_changes_nothing(store: Arc<dyn Store>) {
    assert_eq!(holds(&store, hold("a", vec![exposure(3, 60, 100)])).await.unwrap(), None);
    let held = of(&store, "a").await.remove(0);
    assert!(!see(&store, vec![change(&held, 0, 60, true)], 0).await, "it is not open yet");
    settle(&store, "a", true, None, 0).await;
    let row = of(&store, "a").await.remove(0);
    assert!(see(&store, vec![change(&row, 10, 0, false)], 0).await);
    assert!(!see(&store, vec![change(&row, 10, 0, false)], 0).await, "another was faster");
    assert_eq!(limit(&store, 1).await, (50, 15));
    let row = of(&store, "a").await.remove(0);
    let change = change(&row, 51, 0, false);
    let more = unit(&*store, "see", move |unit| {
        let change = change.clone();
        Box::pin(async move { Ok(End::Commit(unit.see_exposures(&[change], at(0)).await?)) })
    });
    assert!(matches!(more.await, Err(StoreError::Corrupt(_))));
}

async fn what_a_look_leaves_as_it_was_is_noted_for_all_or_for_none(store: Arc<dyn Store>) {
    // More than a page of them, which is not full at the end.
    let owners: Vec<String> = (10..21).map(|n| format!("owner {n}")).collect();
    for owner in &owners {
        assert_eq!(holds(&store, hold(owner, vec![exposure(3, 1, 100)])).await.unwrap(), None);
        settle(&store, owner, true, None, 0).await;
    }
    let group =
        async || read!(store, [], |unit| unit.open_exposures(CHAIN, 99, 1).await?).remove(0);
    let look = |rows: &[ExposureRow], block: u64| -> Vec<ExposureChange> {
        rows.iter().map(|row| ExposureChange { block, ..change(row, 0, 0, false) }).collect()
    };
    let before = group().await;
    assert_eq!(before.len(), 11);
    assert!(see(&store, look(&before, 20), 1).await);
    let after = group().await;
    let expected = before.iter().map(|row| {
        let (seen_block, uses) = (20, row.uses + 1);
        ExposureRow { seen_block, uses, ..row.clone() }
    });
    assert_eq!(after, expected.collect::<Vec<_>>());
    assert_eq!(limit(&store, 1).await, (11, 55));
    // Of the last one somebody else has seen more meanwhile; of the first this look would.
    assert!(see(&store, vec![change(&after[10], 1, 0, true)], 2).await);
    assert!(!see(&store, look(&after, 21), 3).await);
    let mut mixed = look(&after, 21);
    mixed[0] = ExposureChange { block: 21, ..change(&after[0], 1, 0, true) };
    assert!(!see(&store, mixed.clone(), 3).await);
    let rows = group().await;
    assert_eq!(rows, after[..10], "nothing is kept of it");
    assert_eq!(limit(&store, 1).await, (10, 56));
    mixed.pop();
    assert!(see(&store, mixed, 3).await);
    assert_eq!(limit(&store, 1).await, (9, 57));
    assert!(group().await.iter().all(|row| row.seen_block == 21));
}

async fn open_ones_are_found_with_those_beside_them(store: Arc<dyn Store>) {
    commit!(store, [], |unit| unit.raise_anchor(CHAIN, 7, hash(7)).await?).unwrap();
    for (owner, spender) in [("a", 3), ("b", 3), ("c", 4)] {
        let asked = hold(owner, vec![exposure(spender, 10, 100)]);
        assert_eq!(holds(&store, asked).await.unwrap(), None);
    }
    let due = async |block: u64, most: i64| -> Vec<Vec<String>> {
        let groups = read!(store, [], |unit| unit.open_exposures(CHAIN, block, most).await?);
        groups.iter().map(|all| all.iter().map(|row| row.owner.clone()).collect()).collect()
    };
    assert!(due(99, 9).await.is_empty(), "none is open");
    for owner in ["a", "b", "c"] {
        settle(&store, owner, true, None, 0).await;
    }
    assert!(due(6, 9).await.is_empty(), "the chain says nothing about them before block 7");
    assert_eq!(due(7, 9).await, [vec!["a", "b"], vec!["c"]]);
    assert_eq!(due(7, 1).await, [vec!["a", "b"]]);
    let rows = read!(store, [], |unit| unit.open_exposures(OTHER_CHAIN, 99, 9).await?);
    assert!(rows.is_empty());
    let row = of(&store, "a").await.remove(0);
    assert!(see(&store, vec![change(&row, 1, 0, false)], 0).await);
    assert_eq!(due(10, 9).await, [vec!["a", "b"], vec!["c"]], "b was not looked at");
    let row = of(&store, "b").await.remove(0);
    assert!(see(&store, vec![change(&row, 1, 0, false)], 0).await);
    assert_eq!(due(10, 9).await, [vec!["c"]]);
    assert_eq!(due(11, 9).await.len(), 2);
    commit!(store, [], |unit| unit.expose_from("c", 12).await?).unwrap();
    assert_eq!(due(11, 9).await, [vec!["a", "b"]]);
}

async fn what_was_looked_at_in_vain_has_its_turn_after_the_others(store: Arc<dyn Store>) {
    for (owner, spender) in [("a", 3), ("b", 4), ("c", 5)] {
        let asked = hold(owner, vec![exposure(spender, 10, 100)]);
        assert_eq!(holds(&store, asked).await.unwrap(), None);
        settle(&store, owner, true, None, 0).await;
    }
    let first = async || -> Vec<ExposureRow> {
        read!(store, [], |unit| unit.open_exposures(CHAIN, 9, 1).await?).remove(0)
    };
    for (now, owner) in ["a", "b", "c", "a"].into_iter().enumerate() {
        let rows = first().await;
        assert_eq!(rows[0].owner, owner);
        let now = at(i64::try_from(now).unwrap() + 1);
        commit!(store, [rows], |unit| unit.look_at_exposures(&rows, now).await?).unwrap();
        let after = of(&store, owner).await;
        assert_eq!(after, rows, "nothing else is noted");
    }
}

async fn an_exposure_is_of_the_form_in_which_it_is_given(store: Arc<dyn Store>) {
    let by_permit2 = |contract, value| Exposure {
        form: ApprovalForm::Permit2Approve(Address::repeat_byte(contract)),
        ..exposure(3, value, 100)
    };
    // The token, the account and the spender are the same; what is left is kept in three places.
    let asked = hold("a", vec![exposure(3, 1, 100), by_permit2(8, 20), by_permit2(9, 30)]);
    assert_eq!(holds(&store, asked.clone()).await.unwrap(), None);
    let backwards = hold("a", asked.exposures.iter().rev().cloned().collect());
    assert_eq!(holds(&store, backwards).await.unwrap(), None, "another version of the nonce");
    assert_eq!(limit(&store, 1).await, (56, 0));
    let rows = of(&store, "a").await;
    let given: Vec<_> = rows.iter().map(|row| (row.form, row.amount, row.permit.clone())).collect();
    let expected = asked.exposures.iter().map(|it| (it.form, it.amount, None));
    assert_eq!(given, expected.collect::<Vec<_>>());
    assert!(rows.iter().all(|row| row.submitted));
}
