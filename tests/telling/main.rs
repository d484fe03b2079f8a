//! The server's own events, told by webhooks and streams: nothing is lost, order is kept, and nobody is told
//! what is not theirs.

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

mod broker;
mod doors;
mod kills;
mod letters;
mod pace;
mod payment;
mod reach;
mod reader;
mod receiver;
mod still;
