//! The audit log: one sequencer moves leaves from the outbox into an RFC 6962 tree.

pub mod sequencer;
