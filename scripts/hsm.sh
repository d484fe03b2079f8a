#!/usr/bin/env bash
# The long run of the HSM: callers who want signatures, through the HTTP door of a server as it is released,
# while the module loses sessions and logins, is gone, hangs, refuses, and gives wrong signatures. Every
# signature that is given is recovered. Everything is private, on free ports of the loopback interface, and is
# ended with the run. Ends by asking every invariant of the chain and the database, and prints a table.
#
#   scripts/hsm.sh             or: make hsm
#
#   CLAVIGER_HSM_SIGNATURES   how many signatures of messages (100000); one payout for each hundred runs beside
#   CLAVIGER_SEED             which faults, in which order (the time of day)
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/env.sh
claviger_no_arguments "[CLAVIGER_HSM_SIGNATURES=N] [CLAVIGER_SEED=N] scripts/hsm.sh" "$@"

scripts/setup.sh demo
. scripts/env.sh

claviger_clear_environment
export CLAVIGER_HSM_SIGNATURES="${CLAVIGER_HSM_SIGNATURES:-100000}"
export CLAVIGER_SEED="${CLAVIGER_SEED:-$(date +%s)}"

echo "building for release; the first time takes some minutes"
cargo test --locked --release --test hsm_weather --no-run
cargo test --locked --release --quiet --test hsm_weather -- --nocapture
