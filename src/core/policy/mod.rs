//! Policy: what a bundle allows. Deny by default, and evaluation is pure, total and explains itself.
//!
//! A request passes only if grants together cover *every* effect of it. All windows whose selectors
//! match are charged, whichever grant allowed the request.

pub mod bundle;
pub mod change;
pub mod diff;
pub mod effect;
pub mod evaluate;
pub mod facts;
pub mod verdict;

pub use bundle::{Bundle, BundleError};
pub use effect::Effect;
pub use evaluate::in_force::{
    CountedKeys, WindowInForce, counted_keys, destination_in, windows_in_force, windows_in_force_to,
};
pub use evaluate::{evaluate, explain};
pub use facts::{CodeFact, EventFact, Facts, PolicyRequest};
pub use verdict::{
    ApprovalNeed, Charge, ChargeKind, DelayNeed, Explanation, Exposure, LimitId, Miss, Outcome,
    Period, Reason, Shadow, Verdict,
};
