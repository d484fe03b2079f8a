//! Private instances of everything real, and helpers for whole-program tests.

pub mod server;
pub mod services;
