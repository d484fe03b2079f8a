//! Bad input at every door: a tiny router with every extractor, on a real socket. Each refusal must
//! be a problem document with the right code and the request's id, and show nothing internal.

#![cfg(feature = "server")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::string_slice,
    missing_docs,
    reason = "a test may fail loudly"
)]

mod bodies;
mod client;
mod limits;
mod stage;
mod tls;
mod tokens;
mod watching;
