//! What grants in shadow mode would have said: each alone, about the effects that its selectors match.

use super::bounds::{covers, stands};
use super::fees::fee_at;
use super::matching::{Ask, Match};
use super::needs::Needs;
use super::windows::Drafts;
use crate::core::intent::Fees;
use crate::core::policy::{Outcome, Reason, Shadow};

/// One for each, in their order.
pub(super) fn shadows(found: &[Match<'_>], ask: &Ask<'_>) -> Vec<Shadow> {
    let ask = Ask { tell: true, ..*ask };
    found.iter().map(|one| shadow(one, &ask)).collect()
}

fn shadow(found: &Match<'_>, ask: &Ask<'_>) -> Shadow {
    let grant = found.grant.id.clone();
    match judge(found, ask) {
        Ok(outcome) => Shadow { grant, outcome, reason: None },
        Err(reason) => Shadow { grant, outcome: Outcome::Deny, reason },
    }
}

fn judge(found: &Match<'_>, ask: &Ask<'_>) -> Result<Outcome, Option<Reason>> {
    let cap: Option<Fees> = stands(found, ask).map_err(|failed| failed.reason(found.grant))?;
    for effect in found.effects.iter().filter_map(|place| ask.effect(*place)) {
        covers(found, effect, ask).map_err(|failed| failed.reason(found.grant))?;
    }
    let fee = fee_at(ask.request, cap.map_or(0, |cap| cap.max_fee));
    let alone = std::slice::from_ref(found);
    if let Some(full) = Drafts::of_grants(alone, ask).exceeded(fee).into_iter().next() {
        return Err(Some(full));
    }
    Ok(Needs::of(alone, ask).outcome())
}
