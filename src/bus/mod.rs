//! Buses: how events get from the outbox to those who want them.
//!
//! - [`embedded`]: rows of the outbox to consumers in this process. Also the way to a broker: its
//!   publisher is such a consumer.
//! - [`rabbitmq`]: to a broker, and back from it.

pub mod embedded;
pub mod rabbitmq;
