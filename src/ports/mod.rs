//! Traits between the use cases and the edges. Each method states its guarantee.

pub mod bus;
pub mod chain;
#[cfg(feature = "watcher")]
pub mod chain_reader;
pub mod clock;
#[cfg(feature = "server")]
pub mod signer;
#[cfg(feature = "server")]
pub mod store;

#[cfg(feature = "watcher")]
pub mod watch_store;
