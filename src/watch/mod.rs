//! The watcher: reads events of contracts and asks the server for the transactions that they trigger.
//!
//! - [`config`]: its file. [`plan`]: that file, checked and compiled.
//! - [`poller`]: one per chain; blocks in, events and the cursor out, in one transaction.
//! - [`cloudevent`]: the documents that tell of events.
//! - [`trigger`]: the consumer that turns an event into a request to the [`server`]. [`inbox`]: the same
//!   for what comes over a broker, which is not trusted.
//! - [`store`]: its database. [`run`]: the loops. [`lead`]: which process runs them. [`status`],
//!   [`progress`], [`metrics`]: what an operator sees. [`prune`]: what goes in time.
//!
//! It takes ports; the program composes. It never sees the HSM, the server's listeners or its store.

pub mod cloudevent;
pub mod config;
pub mod inbox;
pub mod lead;
pub mod metrics;
pub mod plan;
pub mod poller;
pub mod progress;
pub mod prune;
pub mod run;
pub mod server;
pub mod status;
pub mod store;
pub mod trigger;
