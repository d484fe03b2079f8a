#!/usr/bin/env bash
# Shows a payment end to end: users request charges on a contract, the watcher sees them, the server
# judges them, signs in the HSM, sends, and follows until the blocks are final. Everything is real
# (a local chain, SoftHSM, SQLite, two processes), and lives in one new folder under .run/, which is
# removed at the end. On the way a fee spikes, a block goes away, and the server is killed. The summary is read back from the chain; what is not as it should be ends the
# demo with 1, and leaves the folder with the logs.
#
#   scripts/demo.sh            or: make demo
#
#   BUS=rabbitmq    puts a private RabbitMQ between the watcher's poller and its trigger, and tells a
#                   backend over it what becomes of its payments
#   KEEP=1          leaves everything running, and says where, and what to try
#   BREAK=watcher   ends the watcher half-way, and
#   BREAK=policy    leaves the policy's window wide open: to see that the summary notices
#   CLAVIGER_BIN, CLAVIGER_WATCHER_BIN    programs to use; without them they are built
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/env.sh
claviger_no_arguments "[BUS=rabbitmq] [KEEP=1] [BREAK=watcher|policy] scripts/demo.sh" "$@"
case "${BREAK:=}" in
    "" | watcher | policy) ;;
    *)
        echo "demo: BREAK is watcher or policy, not $BREAK" >&2
        exit 2
        ;;
esac

case "${BUS:=embedded}" in
    embedded | rabbitmq) ;;
    *)
        echo "demo: BUS is embedded or rabbitmq, not $BUS" >&2
        exit 2
        ;;
esac

. scripts/demo/lib.sh
. scripts/demo/chain.sh
. scripts/demo/broker.sh
. scripts/demo/events.sh
. scripts/demo/programs.sh
. scripts/demo/orders.sh
. scripts/demo/faults.sh
. scripts/demo/summary.sh
. scripts/demo/keep.sh

claviger_clear_environment

mkdir -p .run
run="$(mktemp -d "$PWD/.run/demo.XXXXXX")"
kept=""

at_exit() {
    local status=$?
    trap - EXIT INT TERM HUP
    progress_over
    if [ -n "$kept" ]; then
        exit "$status"
    fi
    stop_all
    case "$status" in
        0 | 129 | 130 | 143) rm -rf "$run" ;;
        *) printf '\nAll processes are stopped; their logs and data are in %s\n' "$run" >&2 ;;
    esac
    exit "$status"
}
trap at_exit EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

# --- The people and what they ask for -------------------------------------------------------------

# The first addresses of the node's well-known mnemonic, which it has unlocked, and where contracts
# of its first account come to be: the example bundle names them.
processor=0x5fbdb2315678afecb367f032d93f642f64180aa3
token=0xe7f1725e7734ce288f8367e1bb143e90bb3f0512

orders=(1001 1002 1003 1004 1005 1006 1007 1008 1009 1010)
declare -A amount=(
    [1001]=100000000000000000 [1002]=250000000000000000 [1003]=400000000000000000
    [1004]=50000000000000000 [1005]=750000000000000000 [1006]=1500000000000000000
    [1007]=300000000000000000 [1008]=200000000000000000 [1009]=600000000000000000
    [1010]=150000000000000000
)
good=(1001 1002 1003 1004 1005 1007 1009 1010)
too_large=1006    # the grant says at most 1 ETH
spiked=1007       # its first attempt is overtaken by the base fee
reorged=1009      # the block that executes it goes away
killed=1010       # the server is killed when it has signed it
one_too_many=1008 # the grant's window holds as many as there are good ones
declare -A request_hash

gwei_wei=1000000000

# --- The demo -------------------------------------------------------------------------------------

step "Set-up and build"
BUS="$BUS" scripts/setup.sh demo
. scripts/env.sh
say "all tools are there, after $SECONDS s"
build
umask 077
begun="$SECONDS"

step "A chain, and the contracts on it"
start_chain
deploy

if [ "$BUS" = rabbitmq ]; then
    step "A broker"
    start_broker
fi

step "A server: configuration, policy, checks"
set_up_server

step "The server runs, and makes three operator keys in the HSM"
start_server

step "The watcher runs, as a process of its own"
start_watcher

step "A user deposits, and requests charges"
run_clock
deposit="$(send_from "$user" "$processor" "${selectors['deposit()']}" 5000000000000000000)"
say "user: deposit() of 5.00 ETH"
request_charges 1001 1002 1003
receipts_succeed "$deposit" || die "the deposit is not mined"
show_executed 1001 1002 1003
if [ "$BREAK" = watcher ]; then
    stop_named watcher
    say "BREAK=watcher: the watcher is ended, and not started again"
fi
request_charges 1004 1005 "$too_large"
show_executed 1004 1005
show_refused "$too_large" args

step "A fee spike: two attempts with one nonce"
fee_spike

step "A reorg takes an executed charge away"
reorg_charge

step "The server is killed between a signature and its broadcast"
kill_server

step "One order more than the window holds"
request_charges "$one_too_many"
show_refused "$one_too_many" windows

step "An invented event"
invented_event

step "All blocks become final"
await 20 "transactions final" all_final || fault "not all transactions are final: $seen"
say "$seen transactions final"

step "What the backend was told"
judge_events

step "Summary: amounts, executions and events are read back from the chain"
summary
audit_verified
[ -n "$summarized" ] || fault "the summary did not come to its end"
[ -n "$audited" ] || fault "the audit log was not verified to its end"

if [ "${#faults[@]}" -gt 0 ]; then
    printf '\nNOT as it should be, after %d s:\n' "$((SECONDS - begun))"
    printf '  %s\n' "${faults[@]}"
else
    printf '\nEach order was executed exactly as often as it should be, and all is final. %d s.\n' \
        "$((SECONDS - begun))"
fi
if [ "${KEEP:-}" = 1 ]; then
    keep
fi
[ "${#faults[@]}" -eq 0 ] && [ -n "$summarized" ] && [ -n "$audited" ]
