//! Buses: how events get from the outbox to those who want them.

pub mod embedded;
