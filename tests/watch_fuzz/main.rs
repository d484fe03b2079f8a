//! The watcher against the truth: a real chain that changes its past behind two nodes that lie, lag and break off,
//! a real broker, and a server that is away now and then; watcher and broker are killed at random moments. Then
//! the storm ends. Every log of the final chain must have been told at least once and asked for exactly once, and
//! nothing else must have been asked for.
//!
//! `CLAVIGER_SEEDS` says how many seeds each test takes (1), `CLAVIGER_SEED` replays one. A run of processes cannot
//! be replayed exactly; what the seed replays is the schedule.

#![cfg(feature = "watcher")]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    missing_docs,
    reason = "a test fails by panicking"
)]

#[path = "../support"]
mod support {
    pub mod emitter;
    pub mod fault_proxy;
    pub mod recording_server;
    pub mod services;
}

mod outcome;
#[path = "../simulation/random.rs"]
mod random;
mod stage;
mod storm;

use stage::{Bus, Stage};

/// Prints how to see a failure again.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to see it again: CLAVIGER_SEED={} cargo test --test watch_fuzz", self.0);
        }
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn seeds(first: u64) -> Vec<u64> {
    match number("CLAVIGER_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("CLAVIGER_SEEDS").unwrap_or(1)).map(|nth| first + nth).collect(),
    }
}

async fn survives(bus: Bus, first: u64) {
    for seed in seeds(first) {
        let seed = Seed(seed);
        let mut stage = Stage::new(bus, seed.0).await;
        storm::rage(&mut stage).await;
        outcome::is_true(&mut stage).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_the_embedded_bus_each_final_event_is_asked_for_once() {
    survives(Bus::Embedded, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_rabbitmq_each_final_event_is_told_and_asked_for_once() {
    survives(Bus::RabbitMq, 1001).await;
}
