//! Buses: how events get from the outbox to those who want them.
//!
//! - [`embedded`]: rows of the outbox to consumers in this process. Also the way to a broker: its
//!   publisher is such a consumer.
//! - [`rabbitmq`]: to a broker, and back from it.
//! - `webhook` (server): the server's own events to URLs that the operator names.

#[cfg(feature = "watcher")]
pub mod embedded;
#[cfg(any(feature = "server", feature = "watcher"))]
pub mod rabbitmq;
#[cfg(feature = "server")]
pub mod webhook;
