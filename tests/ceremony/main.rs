//! Keys that come into the world with witnesses, and keys that were there before: ceremonies, imports,
//! exceptions. The real programs on a real SoftHSM.

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
    pub mod outsider;
    pub mod pkcs11_faults;
    pub mod server;
    pub mod services;
}

mod imports;
mod interrupted;
mod records;
mod stage;
