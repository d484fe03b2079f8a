//! Ways around a signing policy, each with vectors of its own, through every door: one module a group of
//! classes, one test a class. One server, one chain and one token serve them all; each test has keys of its own.
//!
//! A refusal is a 403 with a `DENIED` leaf, and nothing else is written or signed; what differs from it only in
//! what makes it wrong is allowed.
//!
//! The doors: T `POST /v1/transactions`, S `POST /v1/signatures`, E `POST /v1/policy/evaluate` (asked before each
//! refusal at T and S, by `Actor::denies`), C and U `…/cancel` and `…/speed-up`, A the approvals, P the policy's
//! own administration. C and U take an id in the path and a `reason`, and nothing else (`bypass_09_a_change…`): what
//! is signed again is encoded from what was accepted, and a no-op from the account and its nonce
//! (`bypass_16_every_version…`). So calldata, typed data, amounts and addresses have nothing to hold on to there;
//! those rows name that test as theirs.
//!
//! | row | class | doors | where |
//! | --- | --- | --- | --- |
//! | 1 | ABI that is not canonical | T S E | `calldata`; C U carry no calldata |
//! | 2 | calls in calls | T S E | `calldata`, `wrappers`; C U carry no calldata |
//! | 3 | delegatecall | T S E | `calldata`, `wrappers`; C U carry no calldata |
//! | 4 | what is not known | T S E | `calldata`; C U carry no calldata, and U judges again only under another bundle |
//! | 5 | rules that do not apply | T S E | `universal`; C U have no rule that could be left out but the role: row 25 |
//! | 6 | any instead of all | T S E | `universal`, `wrappers`; C U name one request |
//! | 7 | typed data by name | S E | `signatures`; typed data has one door |
//! | 8 | approvals as spend | T S E C U | `calldata`, `exposures`, `interventions` |
//! | 9 | one door without the rule | T S E C U | `callers`, `interventions` |
//! | 10 | digests | S E | `signatures`; messages have one door |
//! | 11 | versions of a nonce | T S C U | `limits` (callers' nonces), `interventions` (the server's) |
//! | 12 | many at once | T S C U | `limits`, `interventions`; A in `tests/approvals/flow.rs` |
//! | 13 | overflow, precision | T S E C U | `amounts`; `interventions`: an amount is an unknown field |
//! | 14 | types compared | T S E | `amounts`; C U compare nothing |
//! | 15 | the text of an address | T S E C U | `callers`; `interventions`: ids |
//! | 16 | chains confused | T S E C U | `chains`, `interventions` |
//! | 17 | delegations | T S E | `delegation`, `delegation_granted`; those have no versions of the server's |
//! | 18 | fees | T S E C U | `amounts`, `interventions` |
//! | 19 | windows at a boundary | T S E | `limits`, `calendar`; C U open no window: row 11 |
//! | 20 | approve A, sign B | T S A C U | `approvals`, `interventions` |
//! | 21 | the policy itself | P T S U | `administration`; `interventions`: a grant that is gone; C needs no grant |
//! | 22 | selectors | T S E | `calldata`; C U carry no calldata |
//! | 23 | foreign nonces | T S E C U | `callers`; `interventions`: every version at its own nonce |
//! | 24 | invented events | T S E C U | `events` |
//! | 25 | issuers | T C U | `callers`, `interventions` |
//! | 26 | clock | T S C U A | `clock`, and who confirms it in `tests/windows/clock.rs` |

#![cfg(feature = "server")]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[path = "../support"]
mod support {
    pub mod server;
    pub mod services;
}

mod administration;
mod amounts;
mod approvals;
mod calendar;
mod calldata;
mod callers;
mod chains;
mod clock;
mod delegation;
mod delegation_granted;
mod events;
mod exposures;
mod interventions;
mod limits;
mod signatures;
mod stage;
mod universal;
mod wrappers;
