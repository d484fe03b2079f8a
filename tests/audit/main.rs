//! The audit log from outside: checkpoints, exports, and what a verifier sees of a log that somebody
//! changed. The commands run as programs.

#![cfg(feature = "server")]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[path = "../support"]
mod support {
    pub mod server;
    pub mod services;
}

mod commands;
mod export;
mod intruder;
mod log;
mod running;
mod signing;
mod tamper;
