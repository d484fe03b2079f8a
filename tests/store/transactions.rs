//! Transactions: what was accepted reads back, changes are compared and swapped, lists filter.

use crate::fixtures::{add_key, at, caller, hash, insert, request, stored, submit, transaction};
use alloy::primitives::{Address, B256, U256};
use claviger::core::amount::Amount;
use claviger::core::id::{ChainId, ChainName};
use claviger::core::intent::{AccessListItem, EventSource, FeeAsk, Fees, TxType};
use claviger::core::principal::Principal;
use claviger::core::tx::state::{Ending, Status};
use claviger::ports::store::{
    DecisionSummary, Failure, Filter, MinedRow, NewTransaction, StatusChange, Store, StoreError,
};
use std::sync::Arc;

on_both!(
    every_field_reads_back,
    the_largest_values_read_back,
    an_absent_field_stays_absent,
    an_id_is_stored_once,
    a_change_needs_the_version_that_was_read,
    a_version_is_moved_on_once,
    a_second_decision_takes_the_place_of_the_first_while_it_is_queued,
    why_it_ends_stays_once_it_is_said,
    of_two_changes_at_once_one_is_made,
    a_list_is_newest_first_and_goes_on_from_its_cursor,
    a_filter_keeps_what_matches_all_of_it,
    a_list_shows_a_principal_only_its_own,
    statuses_are_counted,
);

fn full() -> NewTransaction {
    let mut row = transaction(1, 1);
    row.intent.tx_type = TxType::Eip2930;
    row.intent.access_list = vec![
        AccessListItem { address: Address::repeat_byte(1), storage_keys: vec![] },
        AccessListItem {
            address: Address::repeat_byte(0xff),
            storage_keys: vec![B256::ZERO, B256::repeat_byte(0xfe)],
        },
    ];
    row.intent.not_after = Some(at(5000));
    row.intent.source =
        Some(EventSource { block_hash: hash(1), transaction_hash: hash(2), log_index: 3 });
    row.decision_json = r#"{"effects":["ü","\u0000"]}"#.to_owned();
    row.metadata_json = r#"{"order":"7"}"#.to_owned();
    row
}

async fn reads_back(store: &Arc<dyn Store>, row: NewTransaction) {
    add_key(store, 1).await;
    insert(store, vec![row.clone()]).await;
    let found = stored(store, row.id).await;
    assert_eq!(found.new, row);
    assert_eq!((found.status, found.nonce, found.version), (Status::Queued, None, 0));
    assert_eq!((found.mined, found.failure, found.updated_at), (None, None, row.at));
}

async fn every_field_reads_back(store: Arc<dyn Store>) {
    reads_back(&store, full()).await;
    assert_eq!(read!(store, [], |unit| unit.transaction(request(2)).await?), None);
}

async fn the_largest_values_read_back(store: Arc<dyn Store>) {
    let mut row = full();
    let highest = Fees { max_fee: u128::MAX, max_priority_fee: u128::MAX };
    row.fee_cap = highest;
    row.intent.fees = FeeAsk::UpTo(highest);
    row.intent.value = Amount::new(U256::MAX);
    row.intent.gas = i64::MAX.unsigned_abs();
    row.intent.chain.id = ChainId::new(i64::MAX.unsigned_abs());
    row.intent.not_after = Some(at(i64::MAX));
    row.intent.data = vec![0xee; 128 * 1024].into();
    reads_back(&store, row).await;
}

async fn an_absent_field_stays_absent(store: Arc<dyn Store>) {
    let mut row = transaction(1, 1);
    row.intent.to = None;
    row.intent.value = Amount::ZERO;
    row.intent.data = vec![].into();
    row.decision.grants = vec![];
    reads_back(&store, row).await;
}

async fn an_id_is_stored_once(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    insert(&store, vec![transaction(1, 1)]).await;
    let mut again = transaction(1, 1);
    again.intent.value = Amount::ONE;
    let twice = commit!(store, [again], |unit| unit.insert_transaction(&again).await?);
    assert!(matches!(twice, Err(StoreError::Unavailable(_))), "{twice:?}");
    assert_eq!(stored(&store, request(1)).await.new, transaction(1, 1));
}

fn mined() -> MinedRow {
    MinedRow {
        transaction_hash: hash(1),
        block_hash: hash(2),
        block_number: 3,
        gas_used: 21_000,
        effective_gas_price: u128::MAX,
        success: true,
    }
}

fn change(n: u128, version: i64, status: Status) -> StatusChange {
    StatusChange {
        id: request(n),
        version,
        status,
        mined: None,
        ending: None,
        failure: None,
        at: at(3000),
    }
}

async fn advance(store: &Arc<dyn Store>, change: StatusChange) -> bool {
    commit!(store, [change], |unit| unit.advance(&change).await?).unwrap()
}

async fn a_change_needs_the_version_that_was_read(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    insert(&store, vec![transaction(1, 1)]).await;
    let reverted = MinedRow { success: false, ..mined() };
    for (version, at_block) in [(0, mined()), (1, reverted)] {
        let next = StatusChange { mined: Some(at_block), ..change(1, version, Status::Mined) };
        assert!(advance(&store, next.clone()).await);
        let row = stored(&store, request(1)).await;
        assert_eq!((row.status, &row.mined), (Status::Mined, &next.mined));
        assert_eq!((row.version, row.updated_at), (version + 1, at(3000)));
    }
    let before = stored(&store, request(1)).await;
    for stale in [0, 1, 3] {
        assert!(!advance(&store, change(1, stale, Status::Failed)).await);
    }
    assert!(!advance(&store, change(9, 0, Status::Failed)).await, "not there");
    assert_eq!(stored(&store, request(1)).await, before);
    // A reorg: it is nowhere now.
    let failure = Failure { code: "not-sent".to_owned(), detail: "why".to_owned() };
    let next = StatusChange { failure: Some(failure), ..change(1, 2, Status::Submitted) };
    assert!(advance(&store, next.clone()).await);
    let row = stored(&store, request(1)).await;
    assert_eq!((row.mined, row.failure), (None, next.failure));
    assert_eq!(row.new, before.new);
}

async fn a_version_is_moved_on_once(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    insert(&store, vec![transaction(1, 1)]).await;
    for (version, moved) in [(0, true), (0, false), (1, true), (9, false)] {
        let now = commit!(store, [], |unit| unit.touch(request(1), version).await?).unwrap();
        assert_eq!(now, moved, "{version}");
    }
    assert_eq!(stored(&store, request(1)).await.version, 2);
}

async fn a_second_decision_takes_the_place_of_the_first_while_it_is_queued(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    insert(&store, vec![transaction(1, 1)]).await;
    let cap = Fees { max_fee: 7, max_priority_fee: 3 };
    let decision = DecisionSummary {
        outcome: "allow".to_owned(),
        bundle: hash(77),
        grants: vec!["other".to_owned()],
    };
    let again = |store: Arc<dyn Store>, decision: DecisionSummary| async move {
        commit!(store, [decision], |unit| {
            unit.decide_again(request(1), cap, &decision, "{}").await?
        })
    };
    again(store.clone(), decision.clone()).await.unwrap();
    let row = stored(&store, request(1)).await;
    assert_eq!((row.new.fee_cap, &row.new.decision), (cap, &decision));
    assert_eq!((row.new.decision_json.as_str(), row.new.intent.fees), ("{}", FeeAsk::UpTo(cap)));
    assert!(advance(&store, change(1, 0, Status::Submitted)).await);
    assert!(again(store.clone(), decision).await.is_err(), "it has a nonce");
}

async fn why_it_ends_stays_once_it_is_said(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    insert(&store, vec![transaction(1, 1)]).await;
    assert_eq!(stored(&store, request(1)).await.ending, None);
    let failure = Some(Failure { code: "refused".to_owned(), detail: "why".to_owned() });
    let begun = StatusChange {
        ending: Some(Ending::Failed),
        failure: failure.clone(),
        ..change(1, 0, Status::Cancelling)
    };
    assert!(advance(&store, begun).await);
    for (version, mined) in [(1, Some(mined())), (2, None)] {
        let next = StatusChange { mined, ..change(1, version, Status::Cancelling) };
        assert!(advance(&store, next.clone()).await);
        let row = stored(&store, request(1)).await;
        assert_eq!((row.ending, &row.failure), (Some(Ending::Failed), &failure));
        assert_eq!(row.mined, next.mined);
    }
}

async fn of_two_changes_at_once_one_is_made(store: Arc<dyn Store>) {
    crate::fixtures::crowd(&store).await;
    add_key(&store, 1).await;
    insert(&store, vec![transaction(1, 1)]).await;
    let (one, two) = tokio::join!(
        advance(&store, change(1, 0, Status::Expired)),
        advance(&store, change(1, 0, Status::Failed)),
    );
    assert!(one != two);
    let row = stored(&store, request(1)).await;
    assert_eq!(row.status, if one { Status::Expired } else { Status::Failed });
    assert_eq!(row.version, 1);
}

async fn listed(store: &Arc<dyn Store>, filter: Filter) -> Vec<u128> {
    let rows = read!(store, [filter], |unit| unit.transactions(&filter).await?);
    let number = |n: &u128, id| request(*n) == id;
    rows.iter().map(|row| (1..100).find(|n| number(n, row.new.id)).unwrap()).collect()
}

fn any() -> Filter {
    Filter { limit: 100, ..Filter::default() }
}

async fn a_list_is_newest_first_and_goes_on_from_its_cursor(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    // Order is that of acceptance, not of ids or clocks.
    let order = [3, 1, 5, 2, 4];
    for (n, millis) in order.into_iter().zip([5, 4, 3, 2, 1]) {
        insert(&store, vec![NewTransaction { at: at(millis), ..transaction(n, 1) }]).await;
    }
    let first = listed(&store, Filter { limit: 2, ..any() }).await;
    assert_eq!(first, [4, 2]);
    let cursor = stored(&store, request(2)).await.seq;
    let rest = listed(&store, Filter { before_seq: Some(cursor), ..any() }).await;
    assert_eq!(rest, [5, 1, 3]);
}

async fn a_filter_keeps_what_matches_all_of_it(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    let mut rows: Vec<_> = (1..=4).map(|n| transaction(n, 1)).collect();
    rows[0].signer = "group:cold".to_owned();
    rows[1].intent.chain.name = ChainName::new("other");
    rows[2].at = at(500);
    insert(&store, rows).await;
    assert!(advance(&store, change(4, 0, Status::Failed)).await);
    let cold = Filter { signer: Some("group:cold".to_owned()), ..any() };
    assert_eq!(listed(&store, cold.clone()).await, [1]);
    let other = Filter { chain: Some(ChainName::new("other")), ..any() };
    assert_eq!(listed(&store, other).await, [2]);
    let from = Filter { created_from: Some(at(501)), ..any() };
    assert_eq!(listed(&store, from).await, [4, 2, 1]);
    let until = Filter { created_before: Some(at(1000)), ..any() };
    assert_eq!(listed(&store, until).await, [3]);
    let failed = Filter { status: Some(Status::Failed), ..any() };
    assert_eq!(listed(&store, failed.clone()).await, [4]);
    assert_eq!(listed(&store, Filter { signer: cold.signer, ..failed }).await, [] as [u128; 0]);
    assert_eq!(listed(&store, any()).await, [4, 3, 2, 1]);
    // An empty text is a value like others, not the absence of a filter.
    let nobody = Filter { signer: Some(String::new()), ..any() };
    assert_eq!(listed(&store, nobody).await, [] as [u128; 0]);
}

async fn a_list_shows_a_principal_only_its_own(store: Arc<dyn Store>) {
    add_key(&store, 1).await;
    let mut rows: Vec<_> = (1..=3).map(|n| transaction(n, 1)).collect();
    rows[0].principal = caller("one");
    rows[1].principal = caller("two");
    rows[2].principal = Principal { iss: "https://other.test".to_owned(), ..caller("one") };
    insert(&store, rows).await;
    let of = |principal| Filter { principal: Some(principal), ..any() };
    assert_eq!(listed(&store, of(caller("one"))).await, [1]);
    assert_eq!(listed(&store, of(caller("two"))).await, [2]);
    let nameless = Principal { iss: String::new(), sub: String::new() };
    assert_eq!(listed(&store, of(nameless)).await, [] as [u128; 0]);
}

async fn statuses_are_counted(store: Arc<dyn Store>) {
    assert!(read!(store, [], |unit| unit.count_by_status().await?).is_empty());
    add_key(&store, 1).await;
    insert(&store, (1..=3).map(|n| transaction(n, 1)).collect()).await;
    submit(&store, request(2), 1).await;
    let mut counts = read!(store, [], |unit| unit.count_by_status().await?);
    counts.sort_by_key(|(status, _)| status.name());
    assert_eq!(counts, [(Status::Queued, 2), (Status::Submitted, 1)]);
}
