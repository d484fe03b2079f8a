//! The server's database: one suite of what the port promises, run on SQLite and on PostgreSQL.

#![cfg(feature = "server")]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    missing_docs,
    reason = "a test fails by panicking"
)]

#[path = "../support"]
mod support {
    pub mod services;
}

#[macro_use]
mod fixtures;

mod anchors;
mod approvals;
mod attempts;
mod audit;
mod bundles;
mod ceremonies;
mod exposures;
mod groups;
mod histories;
mod keys;
mod lanes;
mod leases;
mod many_keys;
mod nonces;
mod opening;
mod outbox;
mod reconcile;
mod requests;
mod schema;
mod signatures;
mod silence;
mod spend;
mod spend_model;
mod transactions;
mod turns;
mod units;
mod waiting;
mod waits;
mod windows;
