//! What waits for time or people, seen from outside: who may read and answer, and (`flow`) what becomes of it.

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
    pub mod fault_proxy;
    pub mod server;
    pub mod services;
}

mod allowances;
mod crowd;
mod destinations;
mod doors;
mod ends;
mod flow;
mod rejections;
mod stage;
mod turns;
