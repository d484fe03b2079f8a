//! A database that is older than the chain: restored, overtaken, or beside a stranger who has the key. The
//! server waits, `claviger reconcile` says what it found and puts it right, and nothing is paid twice.

#![cfg(feature = "server")]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    reason = "a test fails by panicking"
)]

#[path = "../support"]
mod support {
    pub mod fault_proxy;
    pub mod invariants;
    pub mod server;
    pub mod services;
}

#[path = "../faults/stage.rs"]
#[allow(dead_code, reason = "this crate uses a part of it")]
mod stage;

mod backup;
mod command;
mod nonces;
mod promoted;
mod reorged;
mod restored;
mod stranger;
mod waiting;
