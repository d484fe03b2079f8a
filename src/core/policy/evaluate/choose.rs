//! Which grants cover what, and at which fee. Nothing depends on the order of grants: the highest fee cap at
//! which all effects are covered and nothing alone is above a window is taken.

use super::coverage::{Candidate, Coverage};
use super::fees::{fee_at, has_one_price};
use super::matching::Ask;
use super::windows::Drafts;
use crate::core::amount::Amount;
use crate::core::id::GrantId;
use crate::core::intent::{Fees, Intent};
use crate::core::policy::Reason;
use crate::core::policy::verdict::EventUse;
use std::collections::BTreeSet;

/// What was chosen.
pub(super) struct Choice {
    pub grants: BTreeSet<GrantId>,
    pub fee_cap: Option<Fees>,
    pub event_use: Option<EventUse>,
    /// What gas may cost at most at that price, in wei.
    pub fee: Amount,
}

/// Chooses among grants of which some cover each effect. The fee is covered by those that are chosen, whose
/// bounds it is within.
///
/// # Errors
/// Where even at the lowest fee this is too much: which windows.
pub(super) fn choose(
    coverage: &Coverage<'_>,
    drafts: &Drafts,
    ask: &Ask<'_>,
) -> Result<Choice, Vec<Reason>> {
    let covered = || coverage.beside_fee();
    let at = |max_fee: Option<u128>| fee_at(ask.request, max_fee.unwrap_or(0));
    // Above the lowest of the highest, some effect is not covered.
    let highest = covered().map(|cover| cover.max_fees.iter().max().copied()).min().flatten();
    let mut max_fee = highest;
    let exceeded = drafts.exceeded(at(highest));
    if !exceeded.is_empty() {
        let all = covered().flat_map(|cover| &cover.max_fees).copied();
        let mut lower: Vec<u128> = all.filter(|fee| Some(*fee) < highest).collect();
        let lowest = lower.iter().min().copied();
        let fits = |fee: u128| drafts.exceeded(at(Some(fee))).is_empty();
        max_fee = highest_that(&mut lower, fits);
        if max_fee.is_none() {
            return Err(match lowest {
                Some(_) => drafts.exceeded(at(lowest)),
                None => exceeded,
            });
        }
    }
    let chosen: Vec<&Candidate> =
        covered().filter_map(|cover| best(&cover.candidates, max_fee)).collect();
    let rules = ask.bundle.rules();
    Ok(Choice {
        grants: chosen.iter().filter_map(|one| Some(rules.get(one.number)?.id.clone())).collect(),
        fee_cap: max_fee.map(|max_fee| cap(&chosen, max_fee, ask)),
        event_use: chosen.iter().find_map(|one| one.event.as_deref().cloned()),
        fee: at(max_fee),
    })
}

/// The highest that fits, where all below it fit as well. Halving needs no order of all of them.
fn highest_that(mut fees: &mut [u128], fits: impl Fn(u128) -> bool) -> Option<u128> {
    let mut highest = None;
    while !fees.is_empty() {
        let middle = fees.len() / 2;
        let (below, fee, above) = fees.select_nth_unstable(middle);
        if fits(*fee) {
            highest = Some(*fee);
            fees = above;
        } else {
            fees = below;
        }
    }
    highest
}

/// Of those that let this fee be signed: the highest tip, then one that uses up the named event, then the
/// first by id.
fn best(all: &[Candidate], max_fee: Option<u128>) -> Option<&Candidate> {
    let able = all.iter().filter(|one| one.max_fee() >= max_fee);
    // The last of equals would win.
    able.rev().max_by_key(|one| one.rank())
}

/// The fees at this price: the lowest tip of those chosen.
fn cap(chosen: &[&Candidate], max_fee: u128, ask: &Ask<'_>) -> Fees {
    let one_price =
        matches!(&ask.request.intent, Intent::Transaction(tx) if has_one_price(tx.tx_type));
    let tips = chosen.iter().filter_map(|one| one.cap).map(|cap| cap.max_priority_fee);
    let tip = tips.min().unwrap_or(0).min(max_fee);
    Fees { max_fee, max_priority_fee: if one_price { max_fee } else { tip } }
}
