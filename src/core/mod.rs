//! The pure room: what is true, what is allowed, what to do next.
//!
//! Nothing here awaits, reads a clock, draws randomness or touches the outside world. Functions take
//! values (and `now`) and return values. `tests/architecture.rs` refuses anything else.

pub mod access;
pub mod agreement;
pub mod amount;
pub mod approval;
pub mod audit;
pub mod ceremony;
pub mod chain_view;
pub mod evm;
pub mod exposure;
pub mod id;
pub mod intent;
pub mod key;
pub mod key_report;
pub mod kinds;
pub mod permit;
pub mod policy;
pub mod principal;
pub mod time;
pub mod trigger;
pub mod tx;
