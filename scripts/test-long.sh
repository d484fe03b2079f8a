#!/usr/bin/env bash
# The simulation of the transaction life over many more seeds than `make test` has time for. Prints what the
# seeds met, and how many were run in a second.
#
#   scripts/test-long.sh       or: make test-long
#
#   CLAVIGER_SEEDS   how many seeds (200000)
#   CLAVIGER_SEED    runs this seed alone, and prints what happens in it
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/env.sh
claviger_no_arguments "[CLAVIGER_SEEDS=N | CLAVIGER_SEED=N] scripts/test-long.sh" "$@"

export CLAVIGER_SEEDS="${CLAVIGER_SEEDS:-200000}"
# An empty one is none.
if [ -z "${CLAVIGER_SEED:-}" ]; then
    unset CLAVIGER_SEED
fi

echo "building; the first time takes some minutes"
cargo test --locked --features failpoints --test simulation --no-run
cargo test --locked --quiet --features failpoints --test simulation -- --nocapture every_seed
