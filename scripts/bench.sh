#!/usr/bin/env bash
# Measures how much of the HSM's speed reaches a caller: C_Sign alone, then the server over HTTP with
# SoftHSM, SQLite and a local chain, all in private folders, on free ports of the loopback interface.
# Prints a table and one line of JSON, which is also in target/bench.json. docs/BENCH.md explains it.
#
#   scripts/bench.sh           or: make bench
#
#   BENCH_SECONDS   how long each of the ten or so measurements takes (5)
#   BENCH_ONLY      only messages, external or transactions; or windows: what a decision takes with 10 and
#                   with a million settlements in its window
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/env.sh
claviger_no_arguments "[BENCH_SECONDS=N] [BENCH_ONLY=KIND] scripts/bench.sh" "$@"

if [ "${BENCH_ONLY:-}" = windows ]; then
    scripts/setup.sh test
    . scripts/env.sh
    WINDOWS_PAST="${WINDOWS_PAST:-1000000}" exec cargo test --locked --quiet --test store \
        bench_of_a_decision -- --nocapture
fi

scripts/setup.sh demo
. scripts/env.sh

claviger_clear_environment
export BENCH_JSON="$PWD/target/bench.json"

echo "building for release; the first time takes some minutes"
cargo bench --locked --bench end_to_end --no-run
started="$SECONDS"
cargo bench --locked --quiet --bench end_to_end
echo "measured in $((SECONDS - started)) s"
