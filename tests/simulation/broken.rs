//! The laws at work: each of these puts one thing wrong into the core, or into how it is used, and must be
//! caught within a few seeds.

use crate::world::Core;
use crate::{all, story};
use claviger::core::intent::Fees;
use claviger::core::time::Timestamp;
use claviger::core::tx::state::{Ending, Status};
use claviger::core::tx::step::{ChainLook, Pace, Step, TransactionView, step};

/// So many seeds are enough to see it.
const SEEDS: u64 = 100;

/// What breaks, and the words that tell so.
fn is_caught(core: Core, words: &str) {
    let met = all(core, 0..SEEDS);
    let (seed, what) = met.failed.unwrap_or_else(|| panic!("{SEEDS} seeds and no `{words}`"));
    assert!(what.contains(words), "seed {seed}: {what}");
    let (log, again) = story(core, seed);
    assert_eq!(again, Err(what), "the failure replays");
    assert!(!log.is_empty());
}

fn stepping(step: fn(Timestamp, &TransactionView, &ChainLook, Pace) -> Step) -> Core {
    Core { step, ..Core::OURS }
}

fn times(fees: Fees, hundredths: u128) -> Fees {
    let scaled = |wei: u128| wei * hundredths / 100;
    Fees { max_fee: scaled(fees.max_fee), max_priority_fee: scaled(fees.max_priority_fee) }
}

#[test]
fn a_bump_below_the_minimum_is_caught() {
    let core = stepping(|now, tx, look, pace| match step(now, tx, look, pace) {
        Step::Replace(fees) => Step::Replace(times(fees, 90)),
        other => other,
    });
    is_caught(core, "I7");
}

#[test]
fn a_fee_above_its_cap_is_caught() {
    let core = stepping(|now, tx, look, pace| match step(now, tx, look, pace) {
        Step::NoOp(ending, fees) => Step::NoOp(ending, times(fees, 10_000)),
        other => other,
    });
    is_caught(core, "I7");
}

#[test]
fn an_end_that_is_told_before_it_is_final_is_caught() {
    let core = stepping(|now, tx, look, pace| {
        let look = ChainLook { final_number: u64::MAX, ..look.clone() };
        step(now, tx, &look, pace)
    });
    is_caught(core, "I5");
}

#[test]
fn an_end_on_one_nodes_word_is_caught() {
    is_caught(Core { is_careful: false, ..Core::OURS }, "I5");
}

#[test]
fn a_no_op_that_is_told_as_success_is_caught() {
    let core = stepping(|now, tx, look, pace| match step(now, tx, look, pace) {
        Step::End { inclusion, status: Status::Cancelled | Status::Expired | Status::Failed } => {
            Step::End { inclusion, status: Status::Finalized }
        }
        other => other,
    });
    is_caught(core, "cannot become finalized");
}

#[test]
fn a_no_op_at_another_nonce_is_caught() {
    let nonce = |tx: &TransactionView, no_op: bool| tx.nonce + u64::from(no_op);
    is_caught(Core { nonce, ..Core::OURS }, "I2");
}

#[test]
fn a_replacement_at_a_new_nonce_is_caught() {
    let nonce =
        |tx: &TransactionView, no_op: bool| tx.nonce + u64::from(!no_op && tx.attempts.len() > 1);
    is_caught(Core { nonce, ..Core::OURS }, "I2");
}

#[test]
fn a_payload_that_is_sent_after_its_end_was_said_is_caught() {
    let core = stepping(|now, tx, look, pace| match step(now, tx, look, pace) {
        Step::Rebroadcast(_) => Step::Rebroadcast(1),
        other => other,
    });
    is_caught(core, "after its end was said");
}

#[test]
fn a_version_that_is_sent_unsigned_is_caught() {
    let core = stepping(|now, tx, look, pace| match step(now, tx, look, pace) {
        Step::Wait => match tx.attempts.last() {
            Some(last) if look.inclusion.is_none() => Step::Rebroadcast(last.number),
            _ => Step::Wait,
        },
        other => other,
    });
    is_caught(core, "I9");
}

#[test]
fn what_is_not_sent_again_is_stuck() {
    let core = stepping(|now, tx, look, pace| match step(now, tx, look, pace) {
        Step::Rebroadcast(_) => Step::Wait,
        other => other,
    });
    is_caught(core, "stuck");
}

#[test]
fn what_is_not_reopened_after_a_reorg_is_stuck() {
    let core = stepping(|now, tx, look, pace| match step(now, tx, look, pace) {
        Step::Reopen(_) => Step::Wait,
        other => other,
    });
    is_caught(core, "stuck");
}

#[test]
fn a_stranger_who_is_overlooked_is_noticed() {
    let core = stepping(|now, tx, look, pace| match step(now, tx, look, pace) {
        Step::ForeignNonce => Step::Wait,
        other => other,
    });
    is_caught(core, "stuck");
}

#[test]
fn a_refused_no_op_at_its_cap_that_is_never_decided_anew_is_stuck() {
    let core =
        stepping(|now, tx, look, pace| match (step(now, tx, look, pace), tx.attempts.last()) {
            (Step::NoOp(_, fees), Some(last)) if fees == last.fees => Step::AtCap(last.number),
            (other, _) => other,
        });
    is_caught(core, "stuck");
}

#[test]
fn a_head_at_its_cap_that_never_gives_way_is_caught() {
    let core = stepping(|now, tx, look, pace| {
        step(now, tx, look, Pace { cap_patience_ms: i64::MAX, ..pace })
    });
    is_caught(core, "keeps others of its lane waiting");
}

#[test]
fn a_head_at_its_cap_that_gives_way_to_nobody_is_caught() {
    let core = Core { others_wait: |_, _| true, ..Core::OURS };
    is_caught(core, "nobody waits behind it");
}

#[test]
fn a_head_that_gives_way_at_once_is_caught() {
    let core =
        stepping(|now, tx, look, pace| step(now, tx, look, Pace { cap_patience_ms: 0, ..pace }));
    is_caught(core, "outpriced before its time");
}

#[test]
fn a_head_that_gives_way_below_its_cap_is_caught() {
    let core = stepping(|now, tx, look, pace| match step(now, tx, look, pace) {
        Step::Replace(fees) if tx.attempts.len() > 1 => Step::NoOp(Ending::Outpriced, fees),
        other => other,
    });
    is_caught(core, "outpriced at");
}
