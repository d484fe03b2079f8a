#!/usr/bin/env bash
# Measures how fast the watcher reads a synthetic chain and delivers what it finds, and what it holds meanwhile.
# Prints each part as it is done and one line of JSON, which is also in target/bench-watcher.json.
# docs/BENCH.md explains it.
#
#   scripts/bench-watcher.sh           or: make bench-watcher
#
#   BLOCKS, LOGS              the past (200000, 1000000)
#   LIVE_BLOCKS, LIVE_EVENTS  blocks that come one after the other, and the events in each (30, 1000)
#   BLOCK_MS                  how often one comes (1000)
#   DELIVERIES                events that become requests, over each bus (3000)
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/env.sh
claviger_no_arguments "[BLOCKS=N] [LOGS=N] scripts/bench-watcher.sh" "$@"

scripts/setup.sh test
. scripts/env.sh

claviger_clear_environment
mkdir -p target
export BENCH_JSON="$PWD/target/bench-watcher.json"

echo "building for release; the first time takes some minutes"
cargo bench --locked --bench watcher --no-run
started="$SECONDS"
cargo bench --locked --quiet --bench watcher
echo "measured in $((SECONDS - started)) s"
