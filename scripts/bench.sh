#!/usr/bin/env bash
# Measures how much of the HSM's speed reaches a caller: C_Sign alone, then the server over HTTP with
# SoftHSM, SQLite and a local chain, all in private folders, on free ports of the loopback interface.
# Prints a table and one line of JSON, which is also in target/bench.json. docs/BENCH.md explains it.
#
#   scripts/bench.sh           or: make bench
#
#   BENCH_SECONDS   how long each of the ten or so measurements takes (5)
#   BENCH_ONLY      only messages, external or transactions
set -euo pipefail

case "${1:-}" in
    "") ;;
    -h | --help)
        sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
        exit 0
        ;;
    *)
        echo "usage: [BENCH_SECONDS=N] [BENCH_ONLY=KIND] scripts/bench.sh" >&2
        exit 2
        ;;
esac

cd "$(dirname "$0")/.."
. scripts/env.sh
scripts/setup.sh demo
. scripts/env.sh

# Settings of other set-ups, and proxies, do not concern it.
for variable in $(compgen -v CLAVIGER__); do
    unset "$variable"
done
export NO_PROXY="127.0.0.1,localhost" no_proxy="127.0.0.1,localhost"
export BENCH_JSON="$PWD/target/bench.json"

echo "building for release; the first time takes some minutes"
cargo bench --locked --bench end_to_end --no-run
started="$SECONDS"
cargo bench --locked --quiet --bench end_to_end
echo "measured in $((SECONDS - started)) s"
