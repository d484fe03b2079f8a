use super::*;
use crate::core::amount::Amount;
use crate::core::id::{ChainId, ChainName, GrantId, KeyId};
use crate::core::intent::{ChainRef, FeeAsk, Intent, TransactionIntent, TxType};
use crate::core::policy::verdict::{ApprovalNeed, DelayNeed};
use crate::core::policy::{Effect, Facts, PolicyRequest};
use crate::core::principal::Principal;
use crate::ports::store::{DecisionSummary, NewTransaction};
use alloy::primitives::{Address, Bytes};
use uuid::Uuid;

const ACCEPTED: Timestamp = Timestamp::from_millis(1_000);
const TTL_MS: i64 = 60_000;

fn hash(n: u8) -> B256 {
    B256::repeat_byte(n)
}

fn who(sub: &str) -> Principal {
    Principal { iss: "iss".to_owned(), sub: sub.to_owned() }
}

fn groups() -> Groups {
    let people = |subs: &[&str]| subs.iter().map(|sub| (*sub).to_owned()).collect();
    BTreeMap::from([
        ("treasury".to_owned(), people(&["ann", "bob", "svc:asks"])),
        ("security".to_owned(), people(&["cat", "bob"])),
    ])
}

fn quorums() -> Vec<BTreeMap<String, u32>> {
    vec![BTreeMap::from([("treasury".to_owned(), 1), ("security".to_owned(), 1)])]
}

fn row(status: Status) -> TransactionRow {
    let fees = Fees { max_fee: 30, max_priority_fee: 2 };
    let new = NewTransaction {
        id: RequestId::new(Uuid::from_u128(1)),
        principal: who("svc:asks"),
        intent: TransactionIntent {
            chain: ChainRef { name: ChainName::new("local"), id: ChainId::new(1) },
            tx_type: TxType::Eip1559,
            to: Some(Address::repeat_byte(7)),
            value: Amount::ONE,
            data: Bytes::new(),
            gas: 21_000,
            fees: FeeAsk::UpTo(fees),
            access_list: vec![],
            nonce: None,
            not_after: None,
            source: None,
        },
        fee_cap: fees,
        signer: "payments".to_owned(),
        key: KeyId::new(Uuid::from_u128(2)),
        address: Address::repeat_byte(3),
        decision: DecisionSummary {
            outcome: "need_approval".to_owned(),
            bundle: hash(9),
            grants: vec![],
        },
        decision_json: "{}".to_owned(),
        metadata_json: "{}".to_owned(),
        at: ACCEPTED,
    };
    TransactionRow {
        new,
        seq: 1,
        status,
        nonce: None,
        mined: None,
        ending: None,
        failure: None,
        waits: None,
        source_gone_at: None,
        updated_at: ACCEPTED,
        version: 0,
    }
}

/// A request that waits, with approvals of its terms (hash 1) by these people.
fn waiter(status: Status, approved_by: &[&str]) -> Waiter {
    let row = row(status);
    let is_approval = status == Status::AwaitingApproval;
    let wait = WaitingRequest {
        request: row.new.id,
        hash: hash(1),
        terms: String::new(),
        quorums: if is_approval { quorums() } else { vec![] },
        bundle: hash(9),
        asked_at: ACCEPTED,
        due_at: ACCEPTED.plus_millis(TTL_MS),
        wake_at: ACCEPTED.plus_millis(TTL_MS),
        released_at: None,
    };
    let given = approved_by.iter().map(|sub| GivenApproval {
        request: row.new.id,
        hash: hash(1),
        who: who(sub),
        reason: String::new(),
        at: ACCEPTED,
    });
    Waiter { wait, given: given.collect(), row }
}

fn verdict(outcome: Outcome) -> Verdict {
    Verdict {
        outcome,
        bundle: hash(9),
        grants: vec![],
        effects: vec![],
        reasons: vec![],
        charges: vec![],
        exposures: vec![],
        approval: (outcome == Outcome::NeedApproval).then(|| ApprovalNeed {
            grants: vec![GrantId::new("g")],
            quorums: quorums(),
            ttl_ms: TTL_MS,
        }),
        delay: (outcome == Outcome::Delay).then(|| DelayNeed {
            grants: vec![GrantId::new("g")],
            ms: TTL_MS,
            why: String::new(),
        }),
        shadows: vec![],
        fee_cap: None,
        event_use: None,
    }
}

fn decided(waiter: &Waiter, verdict: &Verdict, terms: u8) -> Next {
    next(waiter, verdict, |_| hash(terms), &groups())
}

const APPROVED: [&str; 2] = ["ann", "cat"];

#[test]
fn approved_terms_go_on_and_others_do_not() {
    let need = verdict(Outcome::NeedApproval);
    let waits = |by: &[&str]| waiter(Status::AwaitingApproval, by);
    assert_eq!(decided(&waits(&APPROVED), &need, 1), Next::Release(Some(hash(1))));
    assert_eq!(decided(&waits(&APPROVED), &need, 2), Next::Ask, "another text than was approved");
    assert_eq!(decided(&waits(&["ann"]), &need, 1), Next::Stay, "too few");
    assert_eq!(decided(&waits(&["bob"]), &need, 1), Next::Stay, "one person in two groups");
    assert_eq!(decided(&waits(&["svc:asks", "cat"]), &need, 1), Next::Stay, "who asked");
    assert_eq!(decided(&waits(&["eve", "cat"]), &need, 1), Next::Stay, "who is in no group");
    let mut of_other_terms = waits(&APPROVED);
    of_other_terms.given.iter_mut().for_each(|given| given.hash = hash(2));
    assert_eq!(decided(&of_other_terms, &need, 1), Next::Stay, "approvals of other terms");
    let mut used = waits(&APPROVED);
    used.wait.released_at = Some(ACCEPTED);
    assert_eq!(decided(&used, &need, 1), Next::Ask, "terms are used once");
}

#[test]
fn the_expiry_that_was_approved_is_part_of_what_goes_on() {
    let waits = waiter(Status::AwaitingApproval, &APPROVED);
    let terms = |expires: Option<Timestamp>| {
        if expires == Some(waits.wait.due_at) { hash(1) } else { hash(2) }
    };
    let next = next(&waits, &verdict(Outcome::NeedApproval), terms, &groups());
    assert_eq!(next, Next::Release(Some(hash(1))));
}

#[test]
fn a_delay_ends_in_whatever_policy_says_then() {
    let waits = waiter(Status::Delayed, &[]);
    assert_eq!(decided(&waits, &verdict(Outcome::Delay), 1), Next::Stay);
    assert_eq!(decided(&waits, &verdict(Outcome::Allow), 1), Next::Release(None));
    assert_eq!(decided(&waits, &verdict(Outcome::NeedApproval), 1), Next::Ask, "then people");
    let mut longer = verdict(Outcome::Delay);
    longer.delay.as_mut().unwrap().ms = 2 * TTL_MS;
    assert_eq!(decided(&waits, &longer, 1), Next::Ask);
    assert_eq!(decided(&waits, &verdict(Outcome::Delay), 2), Next::Ask, "another text");
    // Approvals of a delay's terms let nothing go on.
    let approved = waiter(Status::Delayed, &APPROVED);
    assert_eq!(decided(&approved, &verdict(Outcome::NeedApproval), 1), Next::Ask);
}

#[test]
fn what_policy_refuses_now_ends_however_many_approved_it() {
    let mut deny = verdict(Outcome::Deny);
    let reason = Reason {
        grant: None,
        field: "per_tx".to_owned(),
        expected: "1".to_owned(),
        actual: "2".to_owned(),
    };
    deny.reasons = vec![reason.clone()];
    let waits = waiter(Status::AwaitingApproval, &APPROVED);
    assert_eq!(decided(&waits, &deny, 1), Next::Refuse(vec![reason]));
    // Where policy asks for nothing any more, nobody has to approve it.
    let unasked = waiter(Status::AwaitingApproval, &[]);
    assert_eq!(decided(&unasked, &verdict(Outcome::Allow), 1), Next::Release(None));
}

#[test]
fn it_is_judged_when_there_is_a_reason_and_ends_when_its_time_is_over() {
    let due = ACCEPTED.plus_millis(TTL_MS);
    let before = due.plus_millis(-1);
    let ripe = |it: &Waiter, bundle: u8, now| it.is_ripe(hash(bundle), &groups(), now);
    let delayed = waiter(Status::Delayed, &[]);
    assert!(!ripe(&delayed, 9, before) && ripe(&delayed, 9, due));
    assert!(ripe(&delayed, 8, before), "another bundle");
    let waits = waiter(Status::AwaitingApproval, &[]);
    assert!(!ripe(&waits, 9, before) && ripe(&waits, 8, before));
    assert!(ripe(&waiter(Status::AwaitingApproval, &APPROVED), 9, before));
    assert!(!waits.is_over(before) && waits.is_over(due));
    assert!(!delayed.is_over(due), "a delay that is over goes on");
    let mut late = delayed;
    late.row.new.intent.not_after = Some(before);
    assert!(!late.is_over(before) && late.is_over(due));
}

#[test]
fn no_quorum_is_not_a_quorum_that_is_met() {
    let mut waits = waiter(Status::AwaitingApproval, &APPROVED);
    waits.wait.quorums.clear();
    assert!(!waits.is_approved(&groups()));
    assert_eq!(decided(&waits, &verdict(Outcome::NeedApproval), 1), Next::Stay);
}

fn request(row: &TransactionRow) -> PolicyRequest {
    PolicyRequest {
        principal: row.new.principal.clone(),
        group: None,
        key: row.new.key,
        address: row.new.address,
        intent: Intent::Transaction(Box::new(row.new.intent.clone())),
        facts: Facts::default(),
    }
}

#[test]
fn a_nonce_is_given_only_for_the_very_terms_that_were_approved_and_let_it_go_on() {
    let queued = row(Status::Queued);
    let asked = request(&queued);
    let need = verdict(Outcome::NeedApproval);
    let mut waited = waiter(Status::AwaitingApproval, &APPROVED).wait;
    waited.hash = record::terms(queued.new.id, &asked, &need, Some(waited.due_at)).1;
    waited.released_at = Some(ACCEPTED);
    let passes = |row: &TransactionRow, waited: &WaitingRequest, asked, verdict: &Verdict| {
        rejudge::is_approved(row, waited, asked, verdict)
    };
    assert!(passes(&queued, &waited, &asked, &need));
    // Facts are read at another block each time.
    let mut later = asked.clone();
    later.facts.waiting_since = Some(ACCEPTED);
    assert!(passes(&queued, &waited, &later, &need));

    let unreleased = WaitingRequest { released_at: None, ..waited.clone() };
    assert!(!passes(&queued, &unreleased, &asked, &need), "approved by nobody");
    let longer = WaitingRequest { due_at: waited.due_at.plus_millis(1), ..waited.clone() };
    assert!(!passes(&queued, &longer, &asked, &need), "another expiry");
    assert!(!passes(&row(Status::AwaitingApproval), &waited, &asked, &need), "it waits still");
    let mut other = asked.clone();
    if let Intent::Transaction(tx) = &mut other.intent {
        tx.value = Amount::from(2_u64);
    }
    assert!(!passes(&queued, &waited, &other, &need), "one wei more");
    for other in [
        Verdict { bundle: hash(8), ..need.clone() },
        Verdict { effects: vec![Effect::FeeMax { amount: Amount::ONE }], ..need.clone() },
        Verdict { grants: vec![GrantId::new("other")], ..need.clone() },
        Verdict { approval: None, ..need.clone() },
        verdict(Outcome::Delay),
        verdict(Outcome::Deny),
    ] {
        assert!(!passes(&queued, &waited, &asked, &other), "{other:?}");
    }
}

#[test]
fn what_cannot_be_judged_is_tried_twice_as_late_each_time_and_no_later_than_it_ends() {
    let waits = |failures: i64| due::retry_at(ACCEPTED, failures, None).since(ACCEPTED);
    let seconds = [0, 1, 2, 3, 4, 5, 6, 60, i64::MAX, -1].map(|failures| waits(failures) / 1_000);
    assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 32, 32, 32, 1]);
    let ends = ACCEPTED.plus_millis(5_500);
    assert_eq!(due::retry_at(ACCEPTED, 2, Some(ends)).since(ACCEPTED), 4_000);
    assert_eq!(due::retry_at(ACCEPTED, 3, Some(ends)), ends);
    assert_eq!(due::retry_at(ACCEPTED, 0, Some(ACCEPTED)).since(ACCEPTED), 1_000, "over by now");
}
