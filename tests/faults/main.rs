//! The main job on bad days: nodes that lose answers, lie about the time, drop transactions and change their
//! past; and a server that is killed at the worst moments. Every test ends by checking the invariants
//! from the chain and the database.

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
    pub mod fault_proxy;
    pub mod invariants;
    pub mod outsider;
    pub mod pkcs11_faults;
    pub mod report;
    pub mod server;
    pub mod services;
    pub mod signing_load;
}

mod broken;
mod caps;
mod codes;
mod crashes;
mod doubles;
mod economy;
mod endpoints;
mod fees;
mod hsm;
mod hsm_rows;
mod lanes;
mod leases;
mod nodes;
mod points;
mod pools;
mod proxy;
mod refused;
mod reorgs;
mod stage;
mod story;
mod winners;
