//! From an event to a transaction and back: both programs, a token, a real chain behind the fault proxy, and
//! reorganisations before and after the signature.

#![cfg(all(feature = "server", feature = "watcher"))]
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
    pub mod server;
    pub mod services;
}

mod held;
#[cfg(feature = "failpoints")]
mod kills;
mod rows;
mod shared;
mod sources;
mod stage;
mod unsourced;
