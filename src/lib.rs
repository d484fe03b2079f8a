//! Claviger: a custodial signing server.
//!
//! # The map
//!
//! - [`core`] decides. It is pure: values in, values out.
//! - [`ports`] says what the outside world must guarantee.
//! - `app` holds the use cases, one file per verb: the only code that orders steps.
//! - `store`, `hsm`, [`chain`], `bus`, `audit` are edges: they implement ports and know nothing of each
//!   other.
//! - `http`, `jobs`, `cli` (server) and `watch` (watcher) drive the use cases.
//! - The two programs in `src/bin` compose everything; nobody else names a concrete edge.
//!
//! `docs/ARCHITECTURE.md` has one request's walk through the rooms, and `tests/architecture.rs` holds
//! the rules between them as code.

pub mod failpoint;

pub mod chain;
pub mod config;
pub mod core;
pub mod ports;
pub mod system;

#[cfg(feature = "server")]
pub mod app;
#[cfg(feature = "server")]
pub mod audit;
#[cfg(feature = "server")]
pub mod cli;
#[cfg(feature = "server")]
pub mod hsm;
#[cfg(feature = "server")]
pub mod http;
#[cfg(feature = "server")]
pub mod issuer;
#[cfg(feature = "server")]
pub mod jobs;
#[cfg(feature = "server")]
pub mod store;

#[cfg(feature = "watcher")]
pub mod bus;
#[cfg(feature = "watcher")]
pub mod watch;
