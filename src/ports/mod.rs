//! Traits between the use cases and the edges. Each method states its guarantee.

#[cfg(feature = "watcher")]
pub mod block_logs;
#[cfg(feature = "watcher")]
pub mod bus;
pub mod chain;
pub mod clock;
#[cfg(feature = "server")]
pub mod signer;
#[cfg(feature = "server")]
pub mod store;

#[cfg(feature = "watcher")]
pub mod watch_store;
