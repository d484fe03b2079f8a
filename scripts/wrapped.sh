#!/usr/bin/env bash
# Makes many wrapped keys through the real server over SoftHSM, SQLite and a local chain, signs with random ones,
# and prints what they cost at 10, 1,000, 5,000 and all: creation, listing, start, memory, latencies.
#
#   scripts/wrapped.sh         or: make wrapped
#
#   CLAVIGER_WRAPPED_KEYS   how many (20000)
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/env.sh
claviger_no_arguments "[CLAVIGER_WRAPPED_KEYS=N] scripts/wrapped.sh" "$@"

scripts/setup.sh demo
. scripts/env.sh

claviger_clear_environment
export CLAVIGER_WRAPPED_KEYS="${CLAVIGER_WRAPPED_KEYS:-20000}"

echo "building for release; the first time takes some minutes"
cargo test --locked --release --test wrapped --no-run
cargo test --locked --quiet --release --test wrapped -- --nocapture many_wrapped
