//! Claviger: a custodial signing server.
//!
//! # The map
//!
//! - [`core`] decides. It is pure: values in, values out, and time is a value.
//! - [`ports`] says what the outside world must guarantee.
//! - `app` holds the use cases, one file per verb: the only code that orders steps.
//! - `store`, `hsm`, [`chain`], `bus`, `audit` and [`system`] are edges: they implement ports, or work on
//!   them, and know nothing of each other.
//! - `http`, `jobs` and `cli` (server) drive the use cases. `watch` (watcher) asks the server over HTTP,
//!   and has a store of its own.
//! - [`config`], `issuer` and [`failpoint`] are small rooms: files of the operator, the development token
//!   issuer, places where a test stops the process.
//! - The two programs in `src/bin` compose everything; nobody else names a concrete edge.
//!
//! The feature `server` has the signing server, the feature `watcher` the watcher. A build with `watcher`
//! alone contains no code that could reach a key.
//!
//! `docs/ARCHITECTURE.md` has one request's walk through the rooms, and `tests/architecture.rs` holds
//! the rules between them as code.

pub mod failpoint;

pub mod bus;
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
pub mod watch;
