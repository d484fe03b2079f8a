//! Configuration files.

#[cfg(feature = "server")]
pub mod server;
