//! What a test has counted, for people: cargo shows nothing of tests that pass.

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "helpers of tests: to panic is how a test fails"
)]

use std::io::Write;

/// Prints a line, and adds it to the file that `CLAVIGER_TEST_REPORT` names: `make test` shows that at its end.
pub fn report(line: &str) {
    println!("{line}");
    let Some(path) = std::env::var_os("CLAVIGER_TEST_REPORT").filter(|path| !path.is_empty())
    else {
        return;
    };
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    // One write, so that lines of tests which run at once do not mix.
    let written = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    written.expect("the report of the tests cannot be written");
}
