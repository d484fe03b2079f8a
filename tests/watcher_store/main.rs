//! The watcher's database: one suite of what the port promises, on both back ends.

#![cfg(feature = "watcher")]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[path = "../support"]
mod support {
    pub mod services;
}
#[macro_use]
mod fixtures;

mod arrivals;
mod aside;
mod follow;
mod gone;
mod kept;
mod late;
mod lead;
mod opening;
mod outbox;
mod second_read;
mod triggers;
