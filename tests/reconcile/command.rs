//! `claviger reconcile` as a program. It is waited for, and the proxy in front of the chain is of the test's own
//! process: so these tests have a second thread.

use crate::support::server::{BIN, SetUp};
use serde_json::Value;
use std::process::Command;

/// What a command printed, and its exit code; none if it was stopped by a fail point.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("{self:#?}"))
    }

    /// What was found about the nonces of all accounts, by kind.
    pub fn kinds(&self) -> Vec<String> {
        let told = self.json();
        let accounts = told["accounts"].as_array().unwrap().iter();
        let found = accounts.flat_map(|account| account["findings"].as_array().unwrap());
        let mut kinds: Vec<String> =
            found.map(|it| it["what"].as_str().unwrap().to_owned()).collect();
        kinds.sort();
        kinds
    }

    /// All sentences about all accounts.
    pub fn explained(&self) -> String {
        let told = self.json();
        let accounts = told["accounts"].as_array().unwrap().iter();
        let told = accounts.flat_map(|account| account["explained"].as_array().unwrap().clone());
        told.map(|text| text.as_str().unwrap().to_owned()).collect::<Vec<_>>().join("\n")
    }
}

pub fn claviger(args: &[&str], envs: &[(&str, &str)]) -> Ran {
    let output = Command::new(BIN).args(args).envs(envs.iter().copied()).output();
    let output = output.expect("the program runs");
    Ran {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// `claviger reconcile --json`, with more arguments.
pub fn reconcile(setup: &SetUp, more: &[&str]) -> Ran {
    reconcile_with(setup, more, &[])
}

pub fn reconcile_with(setup: &SetUp, more: &[&str], envs: &[(&str, &str)]) -> Ran {
    let config = setup.config().display().to_string();
    let mut args = vec!["reconcile", "--config", &config, "--json"];
    args.extend(more);
    claviger(&args, envs)
}

/// `claviger reconcile --apply`.
pub fn apply(setup: &SetUp, more: &[&str]) -> Ran {
    let mut args = vec!["--apply", "--reason", "backup of 09:00 restored"];
    args.extend(more);
    reconcile(setup, &args)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_uses_are_refused_with_what_to_do() {
    let (chain, grants) = ("http://127.0.0.1:1", crate::support::server::payout_grants("100.0"));
    let setup = SetUp::new(chain, None, &grants);
    for (args, says) in [
        (&["--apply"][..], "--reason"),
        (&["--reason", "x"], "--apply"),
        (&["--apply", "--reason", " "], "say why"),
        (&["--even-if-pending"], "--apply"),
        (&["--account", "0x12"], "--account"),
        (&["--adopt", "0x12=none"], "--adopt"),
        (&["--apply", "--reason", "x", "--adopt", "0x12=none"], "the hash"),
    ] {
        let told = reconcile(&setup, args);
        assert!(told.code == Some(2) && told.err.contains(says), "{args:?} {told:#?}");
    }
    let told = reconcile(&setup, &[]);
    let says = "the accounts cannot be compared";
    assert!(told.code == Some(1) && told.err.contains(says), "{told:#?}");
    std::fs::remove_file(setup.dir().join("claviger.db")).unwrap();
    let told = apply(&setup, &[]);
    assert!(told.code == Some(1) && told.err.contains("there is no database"), "{told:#?}");
}
