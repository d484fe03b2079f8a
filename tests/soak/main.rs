//! A long run of both programs as processes: server and watcher between SoftHSM, PostgreSQL, RabbitMQ and a chain
//! whose nodes lose answers, lag, drop transactions and change their past, while server, watcher, database and
//! broker are killed at random moments. Callers repeat what was not answered, with the same idempotency key. Then the
//! storm ends, everything must come to its end by itself, and the invariants are asked of chain and database.
//!
//! `CLAVIGER_SOAK_TRANSACTIONS` and `CLAVIGER_SOAK_KILLS` say how much, `CLAVIGER_SEED` chooses the schedule, and
//! `CLAVIGER_SOAK_BUS=embedded` takes the broker away.
//! A run of processes cannot be replayed exactly; what the seed replays is the schedule: what is asked, which
//! faults come in which order and how long they last, and who is killed after how many requests.

#![cfg(all(feature = "server", feature = "watcher"))]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    missing_docs,
    reason = "a test fails by panicking"
)]

#[path = "../support"]
mod support {
    pub mod fault_proxy;
    pub mod invariants;
    pub mod server;
    pub mod services;
}

mod blocks;
mod broker;
mod callers;
mod kills;
mod outcome;
mod programs;
#[path = "../simulation/random.rs"]
mod random;
mod run;
mod stage;
mod weather;

use futures::FutureExt as _;
use run::{Plan, Run};
use std::panic::{AssertUnwindSafe, resume_unwind};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_or_jammed_whatever_is_killed() {
    let plan = Plan::from_environment();
    println!("{plan}");
    let run = Run::new(plan);
    let soaked = tokio::time::timeout(run.plan.deadline(), stage::soak(&run));
    match AssertUnwindSafe(soaked).catch_unwind().await {
        Ok(Ok(table)) => {
            println!("{table}");
            run.remove_logs();
        }
        Ok(Err(_)) => {
            println!("{}", run.where_to_look());
            panic!("not done within {:?}: {}", run.plan.deadline(), run.progress());
        }
        Err(panic) => {
            println!("{}", run.where_to_look());
            resume_unwind(panic);
        }
    }
}
