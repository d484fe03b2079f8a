//! The audit log: one sequencer moves leaves from the outbox into an RFC 6962 tree, a signer releases
//! checkpoints of it, an export writes it down, and a verifier needs nothing but that and a public key.
//! `docs/AUDIT.md` has the formats.

pub mod ceremony;
pub mod checkpoint;
pub mod export;
pub mod key;
mod layout;
pub mod memory;
pub mod record;
pub mod sequencer;
pub mod signer;
mod tree;
pub mod verify;
