//! EVM chains: bytes to sign, and back from bytes to what they would do.

pub mod authorization;
pub mod decode;
pub mod message;
pub mod transaction;
