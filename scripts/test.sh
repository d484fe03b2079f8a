#!/usr/bin/env bash
# Sets up what the tests need, checks the sources, builds the programs and runs every test. The
# last line is `N passed, N failed`, the sum over all test programs.
#
#   scripts/test.sh [ARGUMENT…]      arguments are passed to `cargo test`, such as `--test contracts`
#
# CLAVIGER_TEST_THREADS: how many tests of one test program run at once.
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/env.sh

threads="${CLAVIGER_TEST_THREADS:-$(nproc)}"
log="$(mktemp)"
# Tests that count things tell them here: cargo shows nothing of what passes.
export CLAVIGER_TEST_REPORT="$CARGO_TARGET_DIR/test-report.txt"
trap 'rm -f "$log"' EXIT

# Runs one phase, whose commands must be joined by `&&`: the shell does not stop at a failure inside
# a condition. Prints one line with how long it took. At a terminal cargo's
# progress is shown; elsewhere its output is shown only if the phase fails.
phase() { # title, command…
    local title="$1" started="$SECONDS"
    shift
    if [ -t 2 ]; then
        "$@" || failed "$title" "$started"
    else
        "$@" >"$log" 2>&1 </dev/null || {
            cat "$log"
            failed "$title" "$started"
        }
    fi
    printf '%-10s %4d s\n' "$title" "$((SECONDS - started))"
}

failed() {
    printf '%-10s %4d s  FAILED\n' "$1" "$((SECONDS - $2))"
    exit 1
}

# The crates of the lock file for every system: cargo-deny judges without network, and wants all.
fetch() {
    cargo metadata --offline --locked --format-version 1 >/dev/null 2>&1 || cargo fetch --locked
}

lint() { cargo clippy --locked --workspace --all-targets --features failpoints -- -D warnings; }

deny() { "$CARGO_DENY" --offline check bans licenses sources; }

# Both programs with failpoints, and the watcher alone, as it is delivered: without the server's
# features, so that it cannot reach an HSM. The second build takes the place of the first one's
# watcher in the target directory, so it is copied away.
programs="$CARGO_TARGET_DIR/programs"
export CLAVIGER_WATCHER_BIN="$programs/claviger-watcher"
build() {
    mkdir -p "$programs" &&
        cargo build --locked --no-default-features --features watcher --bin claviger-watcher &&
        cp "$CARGO_TARGET_DIR/debug/claviger-watcher" "$programs/.claviger-watcher.$$" &&
        mv "$programs/.claviger-watcher.$$" "$CLAVIGER_WATCHER_BIN" &&
        cargo build --locked --features failpoints
}

started="$SECONDS"
scripts/setup.sh test
. scripts/env.sh
printf '%-10s %4d s\n' setup "$((SECONDS - started))"

phase crates fetch
phase format cargo fmt --all --check
phase clippy lint
phase deny deny
phase build build

started="$SECONDS"
status=0
mkdir -p "$CARGO_TARGET_DIR"
: >"$CLAVIGER_TEST_REPORT"
cargo test --locked --workspace --features failpoints --no-fail-fast "$@" -- --test-threads="$threads" \
    2>&1 </dev/null | tee "$log" || status=$?
printf '%-10s %4d s\n' tests "$((SECONDS - started))"

read -r passed failed < <(awk '
    /^test result: / {
        for (i = 2; i <= NF; i++) {
            if ($i == "passed;") passed += $(i - 1)
            if ($i == "failed;") failed += $(i - 1)
        }
    }
    END { print passed + 0, failed + 0 }' "$log")

# A test program that could not be compiled, or that died, prints no result of its own.
if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then
    failed=1
fi
if [ "$((passed + failed))" -eq 0 ]; then
    echo "no test ran"
    status=1
fi
if [ -s "$CLAVIGER_TEST_REPORT" ]; then
    echo "what was counted ($CLAVIGER_TEST_REPORT):"
    # Tests run side by side: each one's lines together, in their order.
    sort -s -t: -k1,1 "$CLAVIGER_TEST_REPORT" | sed 's/^/  /'
fi
echo "$passed passed, $failed failed"
if [ "$failed" -ne 0 ]; then
    status=1
fi
exit "$status"
