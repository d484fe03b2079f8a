use super::*;
use proptest::prelude::*;

const PACE: Pace = Pace {
    resend_after_ms: 1000,
    rebroadcast_after_ms: 400,
    refused_patience_ms: 3000,
    cap_patience_ms: 5000,
};

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millis(ms)
}

fn fees(max_fee: u128, max_priority_fee: u128) -> Fees {
    Fees { max_fee, max_priority_fee }
}

fn attempt(number: u8, signed_at: i64, sent_at: Option<i64>) -> AttemptView {
    AttemptView {
        number: i64::from(number),
        no_op: false,
        hash: Some(B256::repeat_byte(number)),
        fees: fees(100, 10),
        signed_at: Some(at(signed_at)),
        sent_at: sent_at.map(at),
        accepted: false,
        unfunded: false,
        refused_since: None,
        refused_at: None,
    }
}

fn no_op(number: u8, signed_at: i64, sent_at: Option<i64>) -> AttemptView {
    AttemptView { no_op: true, fees: fees(110, 11), ..attempt(number, signed_at, sent_at) }
}

fn sent(signed_at: i64, sent_at: Option<i64>) -> TransactionView {
    TransactionView {
        status: Status::Submitted,
        ending: None,
        nonce: 5,
        tx_type: TxType::Eip1559,
        no_op_type: TxType::Eip1559,
        cap: fees(1000, 100),
        chain_cap: fees(1000, 100),
        not_after: None,
        attempts: vec![attempt(1, signed_at, sent_at)],
        mined_in: None,
        blocks_others: false,
        capped_since: None,
    }
}

fn cancelling(attempts: Vec<AttemptView>) -> TransactionView {
    TransactionView {
        status: Status::Cancelling,
        ending: Some(Ending::Cancelled),
        attempts,
        ..sent(0, None)
    }
}

fn look() -> ChainLook {
    ChainLook {
        inclusion: None,
        displaced: false,
        nonce_latest: 5,
        nonce_final: Some(5),
        final_number: 10,
        market: Some(Market { base_fee: 50, tips: vec![5] }),
    }
}

fn included(attempt: u8, number: u64) -> Inclusion {
    Inclusion {
        hash: B256::repeat_byte(attempt),
        block_hash: B256::repeat_byte(9),
        block_number: number,
        success: true,
    }
}

#[test]
fn stored_bytes_that_were_never_sent_are_sent_before_anything_else() {
    assert_eq!(step(at(5000), &sent(0, None), &look(), PACE), Step::Rebroadcast(1));
    let used = ChainLook { nonce_latest: 6, ..look() };
    assert_eq!(step(at(5000), &sent(0, None), &used, PACE), Step::Rebroadcast(1));
}

#[test]
fn the_head_of_the_lane_is_replaced_when_overdue_and_others_only_resent() {
    assert!(matches!(step(at(1000), &sent(0, Some(900)), &look(), PACE), Step::Replace(_)));
    assert_eq!(step(at(999), &sent(0, Some(900)), &look(), PACE), Step::Wait);
    let behind = ChainLook { nonce_latest: 4, ..look() };
    assert_eq!(step(at(2000), &sent(0, Some(900)), &behind, PACE), Step::Rebroadcast(1));
}

#[test]
fn after_not_after_a_no_op_takes_the_nonce_and_no_replacement_is_signed() {
    let mut tx = TransactionView { not_after: Some(at(500)), ..sent(0, Some(400)) };
    assert_eq!(step(at(500), &tx, &look(), PACE), Step::Wait, "in time to the millisecond");
    let Step::NoOp(Ending::Expired, offered) = step(at(501), &tx, &look(), PACE) else {
        panic!("a no-op");
    };
    assert!(offered.max_fee >= 110 && offered.max_priority_fee >= 11);
    assert!(sped_up(at(501), &tx, &look().market.unwrap()).is_none());
    let unknown = ChainLook { market: None, ..look() };
    assert_eq!(step(at(900), &tx, &unknown, PACE), Step::Wait, "too late to send it again");
    tx.attempts[0].signed_at = None;
    tx.attempts[0].sent_at = None;
    let due = step(at(501), &tx, &look(), PACE);
    assert!(matches!(due, Step::NoOp(..)), "what was never signed needs no signature: {due:?}");
}

#[test]
fn at_the_cap_the_same_bytes_go_out_again() {
    let tx = TransactionView { cap: fees(105, 100), ..sent(0, Some(100)) };
    assert_eq!(step(at(2000), &tx, &look(), PACE), Step::AtCap(1));
}

#[test]
fn a_head_at_its_cap_gives_way_to_those_behind_it_after_its_patience_and_not_before() {
    let alone = TransactionView { cap: fees(105, 100), ..sent(0, Some(100)) };
    assert!(!may_block(at(999), &alone, 5, PACE), "not overdue yet");
    assert!(may_block(at(1000), &alone, 5, PACE));
    assert!(!may_block(at(9000), &alone, 4, PACE), "not the head");
    assert!(!may_block(at(9000), &alone, 6, PACE), "its nonce is used");
    assert!(!may_block(at(9000), &sent(0, Some(100)), 5, PACE), "it can offer more");
    assert_eq!(step(at(90_000), &alone, &look(), PACE), Step::AtCap(1), "it may wait for ever");

    let since = Some(at(1000));
    let blocking = |sent_at| TransactionView {
        blocks_others: true,
        capped_since: since,
        attempts: vec![attempt(1, 0, Some(sent_at))],
        ..alone.clone()
    };
    assert_eq!(step(at(5999), &blocking(5800), &look(), PACE), Step::Wait);
    let again = step(at(9000), &blocking(5800), &look(), PACE);
    assert_eq!(again, Step::AtCap(1), "after a pause the same bytes come first");
    let Step::NoOp(Ending::Outpriced, offered) = step(at(6001), &blocking(6000), &look(), PACE)
    else {
        panic!("a no-op");
    };
    assert!(offered.max_fee >= 110, "above the cap of what was asked");
    let free = TransactionView { blocks_others: false, ..blocking(6000) };
    assert_eq!(step(at(6400), &free, &look(), PACE), Step::AtCap(1), "nobody waits any more");
    let found_first = TransactionView { capped_since: None, ..blocking(60_000) };
    assert_eq!(step(at(60_400), &found_first, &look(), PACE), Step::AtCap(1));
}

#[test]
fn who_waits_for_money_a_signature_or_a_better_node_is_not_taken_for_outpriced() {
    let capped = TransactionView { cap: fees(105, 100), ..sent(0, Some(100)) };
    let with = |change: fn(&mut AttemptView)| {
        let mut tx = capped.clone();
        change(&mut tx.attempts[0]);
        may_block(at(9000), &tx, 5, PACE)
    };
    assert!(with(|_| ()));
    assert!(!with(|it| it.unfunded = true));
    assert!(!with(|it| it.refused_since = Some(at(1))));
    assert!(!with(|it| it.signed_at = None));
    assert!(!with(|it| it.no_op = true));
    let ends = TransactionView { ending: Some(Ending::Cancelled), ..capped.clone() };
    assert!(!may_block(at(9000), &ends, 5, PACE));
    let mined = TransactionView { mined_in: Some(B256::repeat_byte(9)), ..capped };
    assert!(!may_block(at(9000), &mined, 5, PACE));
}

#[test]
fn a_count_ahead_of_the_receipts_signs_nothing() {
    let look = ChainLook { nonce_latest: 6, ..look() };
    assert_eq!(step(at(9000), &sent(0, Some(0)), &look, PACE), Step::Wait);
    let cancelled = cancelling(vec![attempt(1, 0, Some(0))]);
    assert_eq!(step(at(9000), &cancelled, &look, PACE), Step::Wait);
}

#[test]
fn an_end_is_told_only_for_the_recorded_block_once_it_is_final() {
    let mut tx = sent(0, Some(0));
    let look = ChainLook { inclusion: Some(included(1, 10)), nonce_latest: 6, ..look() };
    assert_eq!(step(at(1), &tx, &look, PACE), Step::Mined(included(1, 10), Status::Mined));
    tx.status = Status::Mined;
    tx.mined_in = Some(B256::repeat_byte(9));
    let end = step(at(2), &tx, &look, PACE);
    assert_eq!(end, Step::End { inclusion: included(1, 10), status: Status::Finalized });
    let young = ChainLook { final_number: 9, ..look };
    assert_eq!(step(at(3), &tx, &young, PACE), Step::Wait);
}

#[test]
fn a_vanished_block_reopens_and_a_foreign_final_nonce_is_told() {
    let mut tx = sent(0, Some(0));
    tx.status = Status::Mined;
    tx.mined_in = Some(B256::repeat_byte(9));
    assert_eq!(step(at(1), &tx, &look(), PACE), Step::Wait, "the node is behind");
    let later = step(at(9000), &tx, &look(), PACE);
    assert_eq!(later, Step::Rebroadcast(1), "never a replacement");
    let foreign = ChainLook { nonce_final: Some(6), nonce_latest: 6, ..look() };
    assert_eq!(step(at(1), &tx, &foreign, PACE), Step::ForeignNonce);
    let behind = ChainLook { nonce_final: None, ..foreign.clone() };
    assert_eq!(step(at(1), &tx, &behind, PACE), Step::Wait, "only the receipt is behind");
    for look in [look(), foreign.clone()] {
        let look = ChainLook { displaced: true, ..look };
        assert_eq!(step(at(1), &tx, &look, PACE), Step::Reopen(Status::Submitted), "{look:?}");
    }
    let sent = sent(0, Some(0));
    assert_eq!(step(at(1), &sent, &foreign, PACE), Step::ForeignNonce);
    let unknown = ChainLook { nonce_final: None, ..foreign };
    assert_eq!(step(at(1), &sent, &unknown, PACE), Step::Wait);
}

#[test]
fn a_cancelled_transaction_is_outbid_even_at_its_cap_and_its_bytes_are_sent_no_more() {
    let mut payload = attempt(1, 0, Some(0));
    payload.fees = fees(1000, 100);
    let tx = cancelling(vec![payload.clone()]);
    let Step::NoOp(Ending::Cancelled, offered) = step(at(1), &tx, &look(), PACE) else {
        panic!("a no-op");
    };
    assert_eq!(offered, fees(1100, 200), "above the chain's cap, and not above its own");
    let behind = ChainLook { nonce_latest: 4, ..look() };
    assert!(matches!(step(at(1), &tx, &behind, PACE), Step::NoOp(..)), "not only at the head");
    let unknown = ChainLook { market: None, ..look() };
    assert_eq!(step(at(9000), &tx, &unknown, PACE), Step::Wait, "the payload is not sent again");

    let both = cancelling(vec![payload, no_op(2, 1, None)]);
    assert_eq!(step(at(2), &both, &look(), PACE), Step::Rebroadcast(2));
    let unsigned = AttemptView { signed_at: None, ..no_op(2, 1, None) };
    let waits = cancelling(vec![attempt(1, 0, Some(0)), unsigned]);
    assert_eq!(step(at(9000), &waits, &look(), PACE), Step::Wait, "its signature comes first");
}

#[test]
fn a_no_op_is_outbid_by_another_until_its_own_cap() {
    let tx = cancelling(vec![attempt(1, 0, Some(0)), no_op(2, 0, Some(900))]);
    assert!(matches!(step(at(1000), &tx, &look(), PACE), Step::NoOp(Ending::Cancelled, _)));
    assert!(sped_up(at(1), &tx, &look().market.unwrap()).is_some());
    let mut at_cap = tx;
    at_cap.attempts[1].fees = fees(1100, 110);
    assert_eq!(no_op_cap(&at_cap), fees(1100, 200), "a tip at its cap leaves room for the fee");
    assert_eq!(step(at(2000), &at_cap, &look(), PACE), Step::AtCap(2));
}

#[test]
fn whichever_is_mined_wins_and_a_no_op_is_never_told_as_mined() {
    let mut tx = cancelling(vec![attempt(1, 0, Some(0)), no_op(2, 0, Some(0))]);
    let won = |attempt| ChainLook { inclusion: Some(included(attempt, 10)), ..look() };
    let gone = ChainLook { displaced: true, ..look() };
    assert_eq!(step(at(1), &tx, &won(2), PACE), Step::Mined(included(2, 10), Status::Cancelling));
    assert_eq!(step(at(1), &tx, &won(1), PACE), Step::Mined(included(1, 10), Status::Mined));
    tx.mined_in = Some(B256::repeat_byte(9));
    let end = |attempt, status| Step::End { inclusion: included(attempt, 10), status };
    assert_eq!(step(at(2), &tx, &won(2), PACE), end(2, Status::Cancelled));
    assert_eq!(step(at(2), &tx, &gone, PACE), Step::Reopen(Status::Cancelling));
    tx.status = Status::Mined;
    assert_eq!(step(at(2), &tx, &won(1), PACE), end(1, Status::Finalized));
    assert_eq!(step(at(2), &tx, &gone, PACE), Step::Reopen(Status::Cancelling));
}

#[test]
fn one_refusal_is_not_permanent_and_a_lasting_one_is() {
    let mut tx = sent(0, Some(900));
    tx.attempts[0].refused_since = Some(at(0));
    tx.attempts[0].refused_at = Some(at(900));
    assert_eq!(step(at(1200), &tx, &look(), PACE), Step::Wait, "higher fees would not help");
    assert_eq!(step(at(1300), &tx, &look(), PACE), Step::Rebroadcast(1));
    let silence = step(at(90_000), &tx, &look(), PACE);
    assert_eq!(
        silence,
        Step::Rebroadcast(1),
        "it was refused for less than a second, then not asked"
    );
    tx.attempts[0].sent_at = Some(at(3000));
    tx.attempts[0].refused_at = Some(at(3000));
    assert!(matches!(step(at(3000), &tx, &look(), PACE), Step::NoOp(Ending::Failed, _)));
    let mut taken = tx.clone();
    taken.attempts.insert(0, AttemptView { accepted: true, ..attempt(1, 0, Some(0)) });
    taken.attempts[1].number = 2;
    let due = step(at(9000), &taken, &look(), PACE);
    assert_eq!(due, Step::Rebroadcast(1), "an older version is good: it is sent, and not outbid");
    tx.attempts[0].refused_since = None;
    assert!(matches!(step(at(4000), &tx, &look(), PACE), Step::Replace(_)));
    tx.attempts[0].unfunded = true;
    assert_eq!(step(at(4000), &tx, &look(), PACE), Step::Rebroadcast(1), "more is not cheaper");
}

#[test]
fn a_refused_no_op_is_decided_anew() {
    let mut tx = cancelling(vec![attempt(1, 0, Some(0)), no_op(2, 0, Some(900))]);
    tx.attempts[1].refused_since = Some(at(0));
    assert!(matches!(step(at(1000), &tx, &look(), PACE), Step::NoOp(Ending::Cancelled, _)));
}

#[test]
fn a_refused_no_op_at_its_cap_is_decided_anew_at_the_same_fees() {
    let mut tx = cancelling(vec![attempt(1, 0, Some(0)), no_op(2, 0, Some(900))]);
    tx.attempts[1].fees = fees(1100, 110);
    tx.attempts[1].refused_since = Some(at(900));
    let again = Step::NoOp(Ending::Cancelled, fees(1100, 110));
    assert_eq!(
        step(at(2000), &tx, &look(), PACE),
        again,
        "it is in no pool, and may need other gas"
    );
    assert_eq!(step(at(1001), &tx, &look(), PACE), Step::Wait, "not at each look");
    tx.attempts[1].accepted = true;
    assert_eq!(step(at(2000), &tx, &look(), PACE), Step::AtCap(2), "a pool may hold it");
}

#[test]
fn a_stranger_is_noticed_behind_a_receipt_that_is_gone() {
    let mut tx = sent(0, Some(0));
    tx.status = Status::Mined;
    tx.mined_in = Some(B256::repeat_byte(9));
    let foreign = ChainLook { nonce_final: Some(6), nonce_latest: 6, ..look() };
    assert_eq!(step(at(1), &tx, &foreign, PACE), Step::ForeignNonce);
    let young = ChainLook { nonce_final: Some(5), ..foreign };
    assert_eq!(step(at(1), &tx, &young, PACE), Step::Wait, "only the receipt is behind");
}

#[test]
fn an_unsigned_replacement_does_not_keep_the_signed_version_from_being_sent() {
    let mut tx = sent(0, Some(100));
    tx.attempts.push(AttemptView { signed_at: None, ..attempt(2, 0, None) });
    assert_eq!(step(at(2000), &tx, &look(), PACE), Step::Rebroadcast(1));
}

prop_compose! {
    fn any_attempts()(shapes in proptest::collection::vec(
        (any::<bool>(), 1..2000u128, 1..200u128, proptest::option::of(0..5000i64),
         proptest::option::of(0..5000i64), proptest::option::of(0..5000i64)), 0..5,
    )) -> Vec<AttemptView> {
        (1..).zip(shapes).map(|(number, (no_op, fee, tip, signed, sent, refused))| {
            AttemptView {
                number: i64::from(number),
                no_op,
                fees: fees(fee.max(tip), tip),
                hash: signed.map(|_| B256::repeat_byte(number)),
                signed_at: signed.map(at),
                sent_at: signed.and(sent).map(at),
                accepted: fee % 3 == 0,
                unfunded: tip % 5 == 0,
                refused_since: signed.and(sent).and(refused).map(at),
                refused_at: signed.and(sent).and(refused).map(|ms| at(ms.saturating_add(2000))),
            }
        }).collect()
    }
}

proptest! {
    /// Whatever the versions and the look: nothing unsigned is sent, no payload goes out once a no-op is to
    /// take the nonce, every new version outbids the one before within its cap, and nothing new is signed
    /// for a nonce that is used.
    #[test]
    fn whatever_is_due_is_safe(
        attempts in any_attempts(), ending in 0..5usize, now in 0..20_000i64,
        latest in 4..7u64, mined in any::<bool>(), has_market in any::<bool>(),
        not_after in proptest::option::of(0..5000i64),
        capped in proptest::option::of(0..5000i64),
    ) {
        let ending = Ending::ALL.get(ending).copied();
        let mut attempts = attempts;
        for attempt in &mut attempts {
            attempt.no_op &= ending.is_some();
        }
        let tx = TransactionView {
            status: if ending.is_some() { Status::Cancelling } else { Status::Submitted },
            ending,
            not_after: not_after.map(at),
            mined_in: mined.then(|| B256::repeat_byte(9)),
            attempts: attempts.clone(),
            blocks_others: capped.is_some(),
            capped_since: capped.map(at),
            ..sent(0, None)
        };
        let market = has_market.then(|| Market { base_fee: 50, tips: vec![5] });
        let look = ChainLook { nonce_latest: latest, market, ..look() };
        match step(at(now), &tx, &look, PACE) {
            Step::Rebroadcast(number) | Step::AtCap(number) => {
                let sent = attempts.iter().find(|it| it.number == number).unwrap();
                prop_assert!(sent.signed_at.is_some());
                prop_assert!(ending.is_none() || sent.no_op);
                prop_assert!(sent.no_op || tx.not_after.is_none_or(|limit| at(now) <= limit));
            }
            Step::Replace(offered) => {
                let last = attempts.last().unwrap();
                prop_assert!(ending.is_none() && last.signed_at.is_some() && latest <= 5);
                prop_assert!(tx.not_after.is_none_or(|limit| at(now) <= limit));
                prop_assert!(offered.max_fee >= fee::minimum(last.fees.max_fee));
                prop_assert!(offered.max_fee <= tx.cap.max_fee);
                prop_assert!(offered.max_priority_fee <= tx.cap.max_priority_fee);
            }
            Step::NoOp(_, offered) => {
                let last = attempts.last().unwrap();
                prop_assert!(latest <= 5 && !mined);
                // A no-op that the nodes refuse and never took need not be outbid.
                let is_free = last.no_op && last.refused_since.is_some() && !last.accepted;
                let least = |before: u128| if is_free { before } else { fee::minimum(before) };
                prop_assert!(offered.max_fee >= least(last.fees.max_fee));
                prop_assert!(offered.max_priority_fee >= least(last.fees.max_priority_fee));
                prop_assert!(offered.max_fee <= no_op_cap(&tx).max_fee);
                prop_assert!(offered.max_priority_fee <= no_op_cap(&tx).max_priority_fee);
            }
            Step::Wait | Step::Reopen(_) | Step::ForeignNonce => {}
            other => prop_assert!(false, "{other:?}"),
        }
    }
}
