//! The committed artefacts are what the Solidity sources compile to.

use std::path::Path;
use std::process::Command;

#[test]
fn the_committed_artefacts_are_what_the_sources_compile_to() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("contracts/compile.mjs");
    let output = Command::new("node").arg(script).arg("--check").output().expect("no node");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
