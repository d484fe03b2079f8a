//! Private instances of what Claviger talks to: a chain, a database, a message bus, a token of
//! the HSM, and any program of our own.
//!
//! Each listens on free ports of 127.0.0.1, keeps its files in a folder of its own and ends when
//! it is dropped. Nothing survives the test process, however that dies: see `program`. What is
//! running on the machine already is never touched.
//!
//! Everything here panics with a message that names the cause: in a test that is the answer.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "helpers of tests: to panic is how a test fails"
)]
#![allow(dead_code, unused_imports, reason = "each test crate uses a part of these helpers")]

mod anvil;
mod postgres;
mod program;
mod rabbitmq;
mod softhsm;

pub use anvil::{Anvil, AnvilOptions, Mining, address_word, artefact, word};
pub use postgres::{Postgres, PostgresOptions};
pub use program::Program;
pub use rabbitmq::RabbitMq;
pub use softhsm::SoftHsm;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How often a condition is looked at while it is awaited.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Looks at a condition until it gives a value. Panics with `what` if it has not within `limit`.
pub async fn poll_until<T>(
    limit: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// A port of 127.0.0.1 that was free a moment ago. Another process can take it before it is used:
/// whoever uses it must be able to try again with another.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("no free port on 127.0.0.1");
    listener.local_addr().expect("a bound socket has an address").port()
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where a tool is: `ANVIL`, `SOFTHSM_MODULE` or `PG_BIN`, from the environment or else as
/// `scripts/env.sh` finds it, so that a bare `cargo test` works too.
pub fn tool(variable: &str) -> PathBuf {
    static FOUND: OnceLock<HashMap<String, String>> = OnceLock::new();
    if let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()) {
        return path.into();
    }
    let found = FOUND.get_or_init(|| {
        let output = Command::new("bash")
            .args(["-c", ". scripts/env.sh && env"])
            .current_dir(repository())
            .output()
            .expect("bash does not run");
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        lines
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    });
    match found.get(variable) {
        Some(path) if !path.is_empty() => path.into(),
        _ => panic!("{variable} is not installed: run scripts/setup.sh test"),
    }
}

/// Runs a short command to its end and gives its standard output; panics with what it printed if
/// it fails.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A random word for passwords and names, from the kernel.
fn random_word() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/uuid")
        .expect("the kernel gives random ids")
        .trim()
        .replace('-', "")
}
