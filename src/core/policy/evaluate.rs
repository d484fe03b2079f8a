//! Evaluation. (Skeleton; see the policy helper.)

use super::{Bundle, Outcome, PolicyRequest, Verdict};
use crate::core::time::Timestamp;

/// Judges a request.
#[must_use]
pub fn evaluate(bundle: &Bundle, request: &PolicyRequest, now: Timestamp) -> Verdict {
    let _ = (request, now);
    Verdict {
        outcome: Outcome::Deny,
        bundle: bundle.hash(),
        grants: vec![],
        effects: vec![],
        reasons: vec![],
        charges: vec![],
        fee_cap: None,
        event_use: None,
    }
}
