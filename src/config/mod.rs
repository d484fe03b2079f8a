//! Configuration files: one per program.

#[cfg(feature = "server")]
pub mod ceremony;
pub mod file;
#[cfg(feature = "server")]
pub mod hsm;
#[cfg(feature = "server")]
pub mod policies;
#[cfg(feature = "server")]
pub mod server;
pub mod store;
#[cfg(feature = "server")]
pub mod telling;
