//! Traits between the use cases and the edges. Each method states its guarantee.

pub mod chain;
pub mod clock;
#[cfg(feature = "server")]
pub mod signer;
#[cfg(feature = "server")]
pub mod store;
