//! Which grants cover what, and at which fee. Nothing depends on the order of grants: the highest fee cap at
//! which all effects are covered and nothing alone is above a window is taken.

use super::bounds::{covers, stands};
use super::fees::{fee_at, has_one_price};
use super::matching::{Ask, Match};
use super::windows::Drafts;
use crate::core::id::GrantId;
use crate::core::intent::{Fees, Intent};
use crate::core::policy::verdict::EventUse;
use crate::core::policy::{Charge, Effect, Reason};
use std::collections::BTreeSet;

/// A grant that covers an effect.
struct Candidate<'a> {
    grant: &'a GrantId,
    cap: Option<Fees>,
    event: Option<EventUse>,
}

/// What was chosen.
pub(super) struct Choice {
    pub grants: BTreeSet<GrantId>,
    pub fee_cap: Option<Fees>,
    pub event_use: Option<EventUse>,
    pub charges: Vec<Charge>,
}

/// Why nothing could be chosen.
pub(super) enum NoChoice {
    /// These effects, by their places, have no grant; empty if there is nothing to cover.
    Uncovered(Vec<usize>),
    /// Grants cover everything, and even at the lowest fee this is too much.
    Exceeded(Vec<Reason>),
}

/// Chooses among grants, which are in the order of their ids.
pub(super) fn choose(
    found: &[Match<'_>],
    drafts: &Drafts,
    ask: &Ask<'_>,
) -> Result<Choice, NoChoice> {
    let covered = candidates(found, ask)?;
    let mut fees: Vec<Option<u128>> =
        covered.iter().flatten().map(|one| one.cap.map(|cap| cap.max_fee)).collect();
    fees.sort_unstable();
    fees.dedup();
    let mut exceeded = Vec::new();
    for max_fee in fees.into_iter().rev() {
        let Some(chosen) = covered.iter().map(|all| best(all, max_fee)).collect() else {
            continue;
        };
        let chosen: Vec<&Candidate<'_>> = chosen;
        let fee = fee_at(ask.request, max_fee.unwrap_or(0));
        exceeded = drafts.exceeded(fee);
        if exceeded.is_empty() {
            return Ok(Choice {
                grants: chosen.iter().map(|one| one.grant.clone()).collect(),
                fee_cap: max_fee.map(|max_fee| cap(&chosen, max_fee, ask)),
                event_use: chosen.iter().find_map(|one| one.event.clone()),
                charges: drafts.charges(fee),
            });
        }
    }
    Err(NoChoice::Exceeded(exceeded))
}

/// For each effect beside the fee, the grants that cover it. The fee is covered by those, whose bounds it is
/// within.
fn candidates<'a>(found: &[Match<'a>], ask: &Ask<'_>) -> Result<Vec<Vec<Candidate<'a>>>, NoChoice> {
    let mut by_effect: Vec<Vec<Candidate<'a>>> = Vec::new();
    by_effect.resize_with(ask.effects.len(), Vec::new);
    for one in found.iter().filter(|one| !one.effects.is_empty()) {
        let Ok(cap) = stands(one, ask) else {
            continue;
        };
        for place in &one.effects {
            let (Some(effect), Some(list)) = (ask.effect(*place), by_effect.get_mut(*place)) else {
                continue;
            };
            if let Ok(event) = covers(one, effect, ask) {
                list.push(Candidate { grant: &one.grant.id, cap, event });
            }
        }
    }
    let all = by_effect.into_iter().zip(ask.effects).enumerate();
    let beside_fee: Vec<(usize, Vec<Candidate<'a>>)> = all
        .filter(|(_, (_, effect))| !matches!(effect, Effect::FeeMax { .. }))
        .map(|(place, (list, _))| (place, list))
        .collect();
    let uncovered: Vec<usize> =
        beside_fee.iter().filter(|(_, list)| list.is_empty()).map(|(place, _)| *place).collect();
    if beside_fee.is_empty() || !uncovered.is_empty() {
        return Err(NoChoice::Uncovered(uncovered));
    }
    Ok(beside_fee.into_iter().map(|(_, list)| list).collect())
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
