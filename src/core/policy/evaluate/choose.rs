//! Which grants cover what, and at which fee. Nothing depends on the order of grants: the highest fee cap at
//! which all effects are covered and nothing alone is above a window is taken.

use super::coverage::{Candidate, Coverage};
use super::fees::{fee_at, has_one_price};
use super::matching::Ask;
use super::windows::Drafts;
use crate::core::id::GrantId;
use crate::core::intent::{Fees, Intent};
use crate::core::policy::verdict::EventUse;
use crate::core::policy::{Charge, Reason};
use std::collections::BTreeSet;

/// What was chosen.
pub(super) struct Choice {
    pub grants: BTreeSet<GrantId>,
    pub fee_cap: Option<Fees>,
    pub event_use: Option<EventUse>,
    pub charges: Vec<Charge>,
}

/// Chooses among grants of which some cover each effect. The fee is covered by those that are chosen, whose
/// bounds it is within.
///
/// # Errors
/// Where even at the lowest fee this is too much: which windows.
pub(super) fn choose(
    coverage: &Coverage<'_, '_>,
    drafts: &Drafts,
    ask: &Ask<'_>,
) -> Result<Choice, Vec<Reason>> {
    let covered = || coverage.beside_fee();
    let at = |max_fee: Option<u128>| fee_at(ask.request, max_fee.unwrap_or(0));
    // Above the lowest of the highest caps, some effect is not covered.
    let highest = covered().map(|all| all.iter().map(Candidate::max_fee).max().flatten());
    let highest = highest.min().flatten();
    let mut max_fee = highest;
    let exceeded = drafts.exceeded(at(highest));
    if !exceeded.is_empty() {
        let all = covered().flatten().map(Candidate::max_fee);
        let mut lower: Vec<Option<u128>> = all.filter(|cap| *cap < highest).collect();
        let lowest = lower.iter().min().copied();
        let fits = |cap: Option<u128>| drafts.exceeded(at(cap)).is_empty();
        max_fee = highest_that(&mut lower, fits)
            .ok_or_else(|| lowest.map_or(exceeded, |lowest| drafts.exceeded(at(lowest))))?;
    }
    let chosen: Vec<&Candidate<'_>> = covered().filter_map(|all| best(all, max_fee)).collect();
    Ok(Choice {
        grants: chosen.iter().map(|one| one.grant.id.clone()).collect(),
        fee_cap: max_fee.map(|max_fee| cap(&chosen, max_fee, ask)),
        event_use: chosen.iter().find_map(|one| one.event.as_deref().cloned()),
        charges: drafts.charges(at(max_fee)),
    })
}

/// The highest that fits, where all below it fit as well. Halving needs no order of all of them.
fn highest_that(
    mut caps: &mut [Option<u128>],
    fits: impl Fn(Option<u128>) -> bool,
) -> Option<Option<u128>> {
    let mut highest = None;
    while !caps.is_empty() {
        let middle = caps.len() / 2;
        let (below, cap, above) = caps.select_nth_unstable(middle);
        if fits(*cap) {
            highest = Some(*cap);
            caps = above;
        } else {
            caps = below;
        }
    }
    highest
}

/// Of those that let this fee be signed: the highest tip, then one that uses up the named event, then the
/// first by id.
fn best<'c, 'a>(all: &'c [Candidate<'a>], max_fee: Option<u128>) -> Option<&'c Candidate<'a>> {
    let rank = |one: &Candidate<'_>| (one.cap.map(|cap| cap.max_priority_fee), one.event.is_some());
    let able = all.iter().filter(|one| one.cap.map(|cap| cap.max_fee) >= max_fee);
    // The last of equals would win.
    able.rev().max_by_key(|one| rank(one))
}

/// The fees at this price: the lowest tip of those chosen.
fn cap(chosen: &[&Candidate<'_>], max_fee: u128, ask: &Ask<'_>) -> Fees {
    let one_price =
        matches!(&ask.request.intent, Intent::Transaction(tx) if has_one_price(tx.tx_type));
    let tips = chosen.iter().filter_map(|one| one.cap).map(|cap| cap.max_priority_fee);
    let tip = tips.min().unwrap_or(0).min(max_fee);
    Fees { max_fee, max_priority_fee: if one_price { max_fee } else { tip } }
}
