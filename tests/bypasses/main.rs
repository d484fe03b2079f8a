//! Ways around a signing policy, each with vectors of its own, through every door: one module a group of
//! classes, one test a class. One server, one chain and one token serve them all; each test has keys of its own.
//!
//! A refusal is a 403 with a `DENIED` leaf, and nothing else is written or signed; what differs from it only in
//! what makes it wrong is allowed.

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
