//! The life of a transaction after it was accepted: fees, statuses, and what to do next.

pub mod fee;
pub mod state;
pub mod step;
