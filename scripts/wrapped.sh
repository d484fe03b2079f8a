#!/usr/bin/env bash
# Makes many wrapped keys through the real server over SoftHSM, SQLite and a local chain, signs with random ones,
# and prints what they cost at 10, 1,000, 5,000 and all: creation, listing, start, memory, latencies.
#
#   scripts/wrapped.sh         or: make wrapped
#
#   CLAVIGER_WRAPPED_KEYS   how many (20000)
set -euo pipefail

case "${1:-}" in
    "") ;;
    -h | --help)
        sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
        exit 0
        ;;
    *)
        echo "usage: [CLAVIGER_WRAPPED_KEYS=N] scripts/wrapped.sh" >&2
        exit 2
        ;;
esac

cd "$(dirname "$0")/.."
. scripts/env.sh
scripts/setup.sh demo
. scripts/env.sh

export CLAVIGER_WRAPPED_KEYS="${CLAVIGER_WRAPPED_KEYS:-20000}"

echo "building for release; the first time takes some minutes"
cargo test --locked --release --features failpoints --test wrapped --no-run
cargo test --locked --quiet --release --features failpoints --test wrapped -- --nocapture many_wrapped
