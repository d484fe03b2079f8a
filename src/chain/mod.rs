//! Chain nodes: the edge that speaks JSON-RPC.
//!
//! [`evm`] implements the chain port; [`classify`] is the one table of what nodes' errors mean. Nodes
//! are not trusted: every answer is read with checked types, and an answer that cannot be read counts
//! as no answer.

pub mod classify;
pub mod evm;

mod health;
mod history;
mod look;
mod node;
mod nodes;
#[cfg(feature = "watcher")]
mod range_errors;
#[cfg(feature = "watcher")]
mod reader;
mod wire;
