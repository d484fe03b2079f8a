#!/usr/bin/env bash
# The long run: server and watcher as processes between SoftHSM, PostgreSQL, RabbitMQ and a local chain whose
# nodes go wrong, while both, the database and the broker are killed at random. Everything is private, on free ports of the loopback interface,
# and is ended with the run. Ends by asking every invariant of the chain and the database, and prints a table.
#
#   scripts/soak.sh            or: make soak
#
#   CLAVIGER_SOAK_TRANSACTIONS   how many transactions are asked for (2000)
#   CLAVIGER_SOAK_KILLS          how many SIGKILLs (50)
#   CLAVIGER_SOAK_BUS            rabbitmq, or embedded (rabbitmq)
#   CLAVIGER_SEED                which schedule of requests, faults and kills (the time of day)
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/env.sh
claviger_no_arguments "[CLAVIGER_SOAK_TRANSACTIONS=N] [CLAVIGER_SOAK_KILLS=N] [CLAVIGER_SOAK_BUS=rabbitmq|embedded] [CLAVIGER_SEED=N] scripts/soak.sh" "$@"

scripts/setup.sh test
. scripts/env.sh

claviger_clear_environment
export CLAVIGER_SOAK_TRANSACTIONS="${CLAVIGER_SOAK_TRANSACTIONS:-2000}"
export CLAVIGER_SOAK_KILLS="${CLAVIGER_SOAK_KILLS:-50}"
export CLAVIGER_SEED="${CLAVIGER_SEED:-$(date +%s)}"

echo "building; the first time takes some minutes"
cargo test --locked --features failpoints --test soak --no-run
cargo test --locked --quiet --features failpoints --test soak -- --nocapture
