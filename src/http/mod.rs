//! The door: who may come in, what they may bring, and how they are told no.
//!
//! - [`problem`] is every answer that is not a success, [`code`] the names of them.
//! - [`auth`] turns a bearer token into a [`caller::Caller`]; [`jwks`], [`key_source`] and
//!   [`token_cache`] serve it.
//! - [`json`], [`body`], [`query`] and [`idempotency`] are the strict extractors.
//! - [`observe`] and [`limits`] stand around every request; [`listener`] and [`tls`] serve them.
//! - [`metrics`] has the recorder and its listener's router.
//!
//! A handler names what it needs in its signature, [`caller::Caller`] first: arguments are
//! extracted from left to right, so a failure of authentication is told before anything else.

pub mod admin;
pub mod auth;
pub mod body;
pub mod caller;
pub mod claims;
pub mod code;
pub mod idempotency;
pub mod json;
pub mod jwks;
pub mod key_list;
pub mod key_source;
pub mod limits;
pub mod listener;
pub mod metrics;
pub mod observe;
mod patience;
pub mod problem;
pub mod query;
pub mod refusal;
pub mod state;
pub mod tls;
pub mod token_cache;
pub mod v1;
