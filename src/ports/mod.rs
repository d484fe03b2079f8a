//! Traits between the use cases and the edges. Each method states its guarantee.

#[cfg(feature = "server")]
pub mod signer;
#[cfg(feature = "server")]
pub mod store;

pub mod bus;
pub mod chain;
pub mod clock;
#[cfg(feature = "watcher")]
pub mod watch_store;
