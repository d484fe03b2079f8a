//! Server and watcher under a supervisor, as an operator's service manager runs them: started again whenever
//! they end.

use crate::run::{Run, pace};
use crate::support::server::{LIMIT, READY, SetUp};
use crate::support::services::Program;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

pub const WATCHER_BIN: &str = env!("CARGO_BIN_EXE_claviger-watcher");

/// A program that is always to run.
pub struct Supervised {
    run: Arc<Run>,
    name: &'static str,
    spawn: Box<dyn Fn() -> Program + Send + Sync>,
    /// What it prints when it can be used.
    ready: &'static str,
    program: Program,
    log: PathBuf,
}

impl Supervised {
    /// Starts it and waits until it can be used.
    pub async fn start(
        run: &Arc<Run>,
        name: &'static str,
        ready: &'static str,
        spawn: impl Fn() -> Program + Send + Sync + 'static,
    ) -> Self {
        let mut program = spawn();
        program.wait_for_line(ready, LIMIT).await;
        let log = run.logs.join(format!("{name}.log"));
        Self { run: run.clone(), name, spawn: Box::new(spawn), ready, program, log }
    }

    /// Whether it ended by itself. What is down comes up again.
    pub async fn tend(&mut self, told: &'static str) {
        if self.program.try_exit_status().is_some() {
            self.run.count(told);
            self.up().await;
        }
    }

    pub fn kill9(&mut self) {
        self.program.kill9();
    }

    /// A new process that is on its way up.
    pub fn spawn_again(&mut self) {
        self.save();
        self.program = (self.spawn)();
    }

    /// Starts it until it stays up: what it needs may be down too.
    pub async fn up(&mut self) {
        let deadline = Instant::now() + LIMIT * 2;
        self.spawn_again();
        loop {
            if self.program.stderr().contains(self.ready) {
                return;
            }
            if self.program.try_exit_status().is_some() {
                self.run.count("starts that failed and were tried again");
                pace(200).await;
                self.spawn_again();
            }
            assert!(
                Instant::now() < deadline,
                "{} does not start: {}",
                self.name,
                self.program.tail()
            );
            pace(20).await;
        }
    }

    /// Ends it as an operator does.
    pub async fn stop(mut self) {
        self.program.signal("TERM");
        let status = self.program.exit_status(LIMIT).await;
        assert!(status.success(), "{}: {status} {}", self.name, self.program.tail());
    }

    /// What it printed is kept: its own file goes with it.
    fn save(&self) {
        let file = OpenOptions::new().create(true).append(true).open(&self.log);
        let printed = [self.program.stdout(), self.program.stderr()].concat();
        let _ = file.and_then(|mut file| file.write_all(printed.as_bytes()));
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.save();
    }
}

/// The server, at addresses that it keeps.
pub async fn server(run: &Arc<Run>, setup: &Arc<SetUp>, envs: Vec<(String, String)>) -> Supervised {
    let setup = setup.clone();
    let spawn = move || {
        let envs: Vec<(&str, &str)> =
            envs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        setup.spawn(&envs)
    };
    Supervised::start(run, "server", READY, spawn).await
}

/// The watcher.
pub async fn watcher(run: &Arc<Run>, config: String) -> Supervised {
    let none: [(&str, &str); 0] = [];
    let spawn =
        move || Program::spawn("claviger-watcher", WATCHER_BIN, ["run", "--config", &config], none);
    Supervised::start(run, "watcher", "the watcher runs", spawn).await
}
