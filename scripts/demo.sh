#!/usr/bin/env bash
# Shows a payment end to end: users request charges on a contract, the watcher sees them, the server
# judges them, signs in the HSM, sends, and follows until the blocks are final. Everything is real
# (a local chain, SoftHSM, SQLite, two processes), and lives in one new folder under .run/, which is
# removed at the end. The summary is read back from the chain; what is not as it should be ends the
# demo with 1, and leaves the folder with the logs.
#
#   scripts/demo.sh            or: make demo
#
#   KEEP=1          leaves everything running, and says where, and what to try
#   BREAK=watcher   ends the watcher half-way, and
#   BREAK=policy    leaves the policy's window wide open: to see that the summary notices
#   CLAVIGER_BIN, CLAVIGER_WATCHER_BIN    programs to use; without them they are built
set -euo pipefail

case "${1:-}" in
    "") ;;
    -h | --help)
        sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
        exit 0
        ;;
    *)
        echo "usage: [KEEP=1] [BREAK=watcher|policy] scripts/demo.sh" >&2
        exit 2
        ;;
esac
case "${BREAK:=}" in
    "" | watcher | policy) ;;
    *)
        echo "demo: BREAK is watcher or policy, not $BREAK" >&2
        exit 2
        ;;
esac

cd "$(dirname "$0")/.."
. scripts/env.sh
. scripts/demo/lib.sh
. scripts/demo/chain.sh

# Settings of other set-ups, and proxies, do not concern the demo.
for variable in $(compgen -v CLAVIGER__); do
    unset "$variable"
done
export NO_PROXY="127.0.0.1,localhost" no_proxy="127.0.0.1,localhost"

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

orders=(1001 1002 1003 1004 1005 1006 1007 1008)
declare -A amount=(
    [1001]=100000000000000000 [1002]=250000000000000000 [1003]=400000000000000000
    [1004]=50000000000000000 [1005]=750000000000000000 [1006]=1500000000000000000
    [1007]=300000000000000000 [1008]=200000000000000000
)
good=(1001 1002 1003 1004 1005 1007)
too_large=1006  # the grant says at most 1 ETH
spiked=1007     # its first attempt is overtaken by the base fee
one_too_many=1008 # the grant's window holds as many as there are good ones
declare -A request_hash

gwei_wei=1000000000

# --- Parts ----------------------------------------------------------------------------------------

build() {
    if [ -n "${CLAVIGER_BIN:-}" ] && [ -n "${CLAVIGER_WATCHER_BIN:-}" ]; then
        say "programs given: $CLAVIGER_BIN, $CLAVIGER_WATCHER_BIN"
        return
    fi
    local started="$SECONDS" programs="$CARGO_TARGET_DIR/programs"
    mkdir -p "$programs"
    say "building the watcher from its own build, without the server's features"
    cargo_build --no-default-features --features watcher --bin claviger-watcher
    put_program claviger-watcher "$programs/demo-claviger-watcher"
    say "building the server"
    cargo_build --bin claviger
    put_program claviger "$programs/demo-claviger"
    say "built in $((SECONDS - started)) s"
    CLAVIGER_BIN="${CLAVIGER_BIN:-$programs/demo-claviger}"
    CLAVIGER_WATCHER_BIN="${CLAVIGER_WATCHER_BIN:-$programs/demo-claviger-watcher}"
}

# At a terminal cargo's progress is shown; elsewhere its output is shown only if it fails.
cargo_build() {
    if [ -t 2 ]; then
        cargo build --locked "$@" </dev/null
    elif ! cargo build --locked "$@" >"$run/build.log" 2>&1 </dev/null; then
        cat "$run/build.log" >&2
        die "the build failed"
    fi
}

# Copied away, because other builds use the same folder; moved, because a demo may run from it.
put_program() { # name, path
    cp "$CARGO_TARGET_DIR/debug/$1" "$2.$$"
    mv "$2.$$" "$2"
}

start_chain() {
    free_port
    rpc_url="http://127.0.0.1:$port"
    # No block comes by itself until the set-up is done. With one slot to an epoch, a block is final
    # when two more are on top.
    start anvil "$ANVIL" --host 127.0.0.1 --port "$port" --no-mining --slots-in-an-epoch 1 \
        --base-fee "$gwei_wei" --quiet
    await 20 "for anvil" answers "$rpc_url" || die "anvil does not answer"
    local accounts
    accounts="$(rpc eth_accounts)"
    deployer="$(jq -r '.[0]' <<<"$accounts")"
    merchant="$(jq -r '.[1]' <<<"$accounts")"
    admin="$(jq -r '.[2]' <<<"$accounts")"
    user="$(jq -r '.[3]' <<<"$accounts")"
    know_selectors 'requestCharge(uint256,uint256)' 'deposit()' 'grantOperator(address)' \
        'operators(address)' 'requested(uint256)' 'executions(uint256)' 'balances(address)' \
        'executeCharge(uint256,uint256)'
    executed_topic="$(keccak 'ChargeExecuted(uint256,address,uint256)')"
    say "anvil at $rpc_url"
}

answers() { (exec 3<>"/dev/tcp/127.0.0.1/${1##*:}") 2>/dev/null; }

deploy() {
    local code first second
    code="$(jq -r .bytecode contracts/build/PaymentProcessor.json)"
    first="$(send_from "$deployer" "" \
        "0x${code#0x}$(address_word "$merchant")$(address_word "$admin")")"
    code="$(jq -r .bytecode contracts/build/TestToken.json)"
    second="$(send_from "$deployer" "" "0x${code#0x}")"
    mine 1
    receipts_succeed "$first" "$second" || die "the contracts were not deployed"
    local found
    found="$(for hash in "$first" "$second"; do
        rpc eth_getTransactionReceipt "[\"$hash\"]" | jq -r .contractAddress
    done)"
    [ "$found" = "$processor"$'\n'"$token" ] ||
        die "the contracts are not where the example bundle says, but at" "$found"
    say "PaymentProcessor at $processor"
    say "TestToken        at $token"
}

# Replaces a text that must be there.
change() { # file, old, new
    local text
    text="$(<"$1")"
    [[ "$text" == *"$2"* ]] || die "$1 has no \`$2\`"
    printf '%s\n' "${text//"$2"/"$3"}" >"$1"
}

set_up_server() {
    local listen admin_listen metrics_listen
    free_port
    listen="127.0.0.1:$port"
    free_port
    admin_listen="127.0.0.1:$port"
    free_port
    metrics_listen="127.0.0.1:$port"
    server_url="http://$listen"
    admin_url="http://$admin_listen"
    metrics_url="http://$metrics_listen/metrics"
    config="$run/dev/claviger.toml"
    "$CLAVIGER_BIN" init --dir "$run/dev" --module "$SOFTHSM_MODULE" --rpc "$rpc_url" \
        --listen "$listen" --admin-listen "$admin_listen" --metrics-listen "$metrics_listen" \
        >/dev/null
    say "claviger init: configuration, SoftHSM token, SQLite database, token issuer, policy bundle"
    # A demo has less patience than a real chain asks for.
    change "$config" 'resend_after = "30s"' 'resend_after = "4s"'
    change "$config" 'rebroadcast_after = "10s"' 'rebroadcast_after = "2s"'
    change "$config" 'poll_every = "1s"' 'poll_every = "500ms"'
    if [ "$BREAK" = policy ]; then
        say "BREAK=policy: the window of the grant \`charge\` stays at 10000 a day"
    else
        change "$run/dev/policies/grants.toml" 'count = 10000' "count = ${#good[@]}"
        say "the grant \`charge\`: at most 1 ETH each, ${#good[@]} a day, for events on the chain"
    fi
    "$CLAVIGER_BIN" policy check "$run/dev/policies" | show
    "$CLAVIGER_BIN" config check "$config" | show
    "$CLAVIGER_BIN" doctor --config "$config" | show
}

start_server() {
    start server "$CLAVIGER_BIN" serve --config "$config"
    await 20 "for the server" ready || die "the server is not ready; see $run/server.log"
    say "claviger serve: clients at $server_url, administrators at $admin_url"
    local label address hashes=() granted
    for label in op-1 op-2 op-3; do
        "$CLAVIGER_BIN" key create --config "$config" --label "$label" --group payments >/dev/null
    done
    "$CLAVIGER_BIN" key list --config "$config" --json >"$run/keys.json"
    "$CLAVIGER_BIN" key list --config "$config" | show
    # Little money, and only the right to call the task: the Operational Accounts Pattern.
    for address in $(jq -r '.keys[].address' "$run/keys.json"); do
        rpc anvil_setBalance "[\"$address\",\"$(printf '0x%x' 5000000000000000000)\"]" >/dev/null
        hashes+=("$(send_from "$admin" "$processor" \
            "${selectors['grantOperator(address)']}$(address_word "$address")")")
    done
    mine 1
    receipts_succeed "${hashes[@]}" || die "the operator role was not granted"
    for address in $(jq -r '.keys[].address' "$run/keys.json"); do
        granted="$(call_number "$processor" 'operators(address)' "$(address_word "$address")")"
        [ "$granted" -eq 1 ] || die "$address is not an operator of the contract"
    done
    say "each holds 5 ETH for fees, and the contract's operator role"
}

ready() {
    curl -s --fail --noproxy '*' --max-time 5 -o /dev/null "$server_url/readyz"
}

# A token in a file that only its owner reads, replaced in one move.
token_file() { # path, subject, role
    "$CLAVIGER_BIN" token issue --config "$config" --sub "$2" --role "$3" --ttl 1h >"$1.new"
    mv "$1.new" "$1"
}

issue_tokens() {
    token_file "$run/watcher.token" svc:watcher client
    token_file "$run/client.token" svc:payouts client
    token_file "$run/auditor.token" dev:auditor auditor
}

start_watcher() {
    issue_tokens
    watcher_config="$run/watcher.toml"
    cat >"$watcher_config" <<TOML
[store]
url = "sqlite:$run/watcher.db"

[server]
url = "$server_url"
token_file = "$run/watcher.token"

[[chain]]
name = "local"
chain_id = 31337
rpc = ["$rpc_url"]
finality = "finalized"
poll_ms = 250

[[source]]
name = "charges"
chain = "local"
address = "$processor"
event = "ChargeRequested(uint256 indexed orderId, address indexed payer, uint256 amount)"
from_block = 0

[[trigger]]
name = "charge"
source = "charges"
signer = "payments"
function = "executeCharge(uint256 orderId, uint256 amount)"
args = { orderId = "orderId", amount = "amount" }
business_id = ["{chain}", "{contract}", "orderId"]
TOML
    "$CLAVIGER_WATCHER_BIN" init --config "$watcher_config" | show
    start watcher "$CLAVIGER_WATCHER_BIN" run --config "$watcher_config"
    await 20 "for the watcher" watcher_follows ||
        die "the watcher follows no chain; see $run/watcher.log"
    "$CLAVIGER_WATCHER_BIN" status --config "$watcher_config" | show
}

watcher_status() { "$CLAVIGER_WATCHER_BIN" status --config "$watcher_config" --json; }
watcher_follows() { watcher_status | jq -e '.chains | length == 1' >/dev/null; }

# --- What is asked, and what became of it ---------------------------------------------------------

# The user asks for charges; the order's event is in a block afterwards.
request_charges() { # order ids
    local order data hashes=()
    for order in "$@"; do
        data="${selectors['requestCharge(uint256,uint256)']}$(uint_word "$order")"
        data+="$(uint_word "${amount[$order]}")"
        request_hash[$order]="$(send_from "$user" "$processor" "$data")"
        hashes+=("${request_hash[$order]}")
        say "user: requestCharge($order, $(eth "${amount[$order]}") ETH)"
    done
    if [ -n "$clock_stopped" ]; then
        mine 1
    fi
    await 10 "for the block with the requests" receipts_succeed "${hashes[@]}" ||
        die "the user's requests are not mined"
}
clock_stopped=""

executions() { call_number "$processor" 'executions(uint256)' "$(uint_word "$1")"; }

all_executed() { # order ids
    local order count=0
    for order in "$@"; do
        count=$((count + $(executions "$order")))
    done
    seen="$count/$#"
    [ "$count" -eq "$#" ]
}

read_transactions() {
    "$CLAVIGER_BIN" tx list --config "$config" --limit 200 --json >"$run/transactions.json"
}

# What the server says about an order's transaction; nothing if it has none.
transaction_of() { # order id
    jq -c --arg id "local:$processor:$1" \
        '.transactions[] | select(.metadata.business_id == $id)' "$run/transactions.json"
}

attempts_of() { # order id, at least so many
    read_transactions
    local count
    count="$(transaction_of "$1" | jq '.attempts | length')"
    seen="${count:-0}/$2"
    [ "${count:-0}" -ge "$2" ]
}

all_final() {
    read_transactions
    local final total
    total="$(jq '.transactions | length' "$run/transactions.json")"
    final="$(jq '[.transactions[] | select(.status == "finalized")] | length' \
        "$run/transactions.json")"
    seen="$final/$total"
    [ "$final" -eq "$total" ]
}

# The server's answer to the watcher, where the watcher has parked an order because of it.
refusal_of() { # order id; sets `refusal`
    refusal="$(watcher_status | jq -r --arg hash "${request_hash[$1]}" '.attention[]
        | select(.event_id | contains($hash)) | .reason | sub("^HTTP [0-9]+: "; "")')"
    [ -n "$refusal" ]
}

# A denial, for this reason.
expect_denial() { # what, problem document, reason's field
    if jq -e --arg field "$3" '.status == 403 and .code == "policy-denied"
            and any(.reasons[]; .grant == "charge" and (.field | startswith($field)))' <<<"$2" >/dev/null; then
        say "refused, because of \`$3\`"
    else
        fault "$1 was not refused because of \`$3\`"
    fi
}

show_refused() { # order id, reason's field
    if await 20 "for order $1 to be refused" refusal_of "$1"; then
        say "order $1: parked by the watcher, for an operator to look at; the server's answer:"
        show_problem "$refusal"
        expect_denial "order $1" "$refusal" "$2"
    else
        fault "order $1 was not refused in time"
    fi
}

show_executed() { # order ids
    if await 30 "orders executed" all_executed "$@"; then
        say "executed: $*"
    else
        fault "only $seen of the orders $* were executed in time"
    fi
}

# --- The parts that go wrong on purpose -----------------------------------------------------------

fee_spike() {
    local first second tx
    clock_stopped=1
    stop_clock
    request_charges "$spiked"
    mine 2
    if ! await 15 "for the first attempt" attempts_of "$spiked" 1; then
        fault "order $spiked was not signed"
        clock_stopped=""
        run_clock
        return
    fi
    first="$(transaction_of "$spiked" | jq -r '.attempts[0].max_fee_per_gas')"
    say "signed and sent at a max fee of $(gwei "$first") gwei"
    # No block had room for it: the next one costs more than it offers.
    next_base_fee $((40 * gwei_wei))
    mine 1
    say "a block went by with a base fee of $(gwei "$(base_fee)") gwei: it cannot be mined"
    if await 20 "attempts" attempts_of "$spiked" 2; then
        second="$(transaction_of "$spiked" | jq -r '.attempts[1].max_fee_per_gas')"
        say "signed again, with the same nonce, at a max fee of $(gwei "$second") gwei"
    else
        fault "order $spiked got no second attempt"
    fi
    clock_stopped=""
    run_clock
    show_executed "$spiked"
    read_transactions
    tx="$(transaction_of "$spiked")"
    jq -r '.receipt.transaction_hash as $mined | "nonce \(.nonce), attempt \(.attempts[]
        | "\(.number): \(.hash)\(if .hash == $mined then " mined" else "" end)")"' <<<"$tx" | show
    next_base_fee "$gwei_wei"
}

# A caller that holds the watcher's token and asks for a charge that no user requested.
invented_event() {
    local source data body answer
    source="$(keccak "an event that never was")"
    data="${selectors['executeCharge(uint256,uint256)']}$(uint_word 6666)$(uint_word 1)"
    body="$(jq -nc --arg to "$processor" --arg data "$data" --arg hash "$source" '
        {chain: "local", signer: "payments", to: $to, value: "0", data: $data,
         source: {block_hash: $hash, transaction_hash: $hash, log_index: 0}}')"
    say "POST /v1/transactions as svc:watcher: executeCharge(6666, 1), source ${source:0:18}…"
    bearer "$run/watcher.token" >"$run/header"
    answer="$(curl -sS --noproxy '*' --max-time 20 -H "@$run/header" \
        -H 'content-type: application/json' -H 'idempotency-key: invented-1' \
        -d "$body" "$server_url/v1/transactions")"
    show_problem "$answer"
    expect_denial "the invented event" "$answer" event
}

bearer() { printf 'Authorization: Bearer %s\n' "$(<"$1")"; }

# --- The summary ----------------------------------------------------------------------------------

is_good() { [[ " ${good[*]} " == *" $1 "* ]]; }

# Status, attempts, key and nonce are the server's; the other columns are read from the chain.
summary() {
    local order requested executed logs count tx status attempts key nonce sum=0
    read_transactions
    row ORDER REQUESTED EXECUTED EVENTS STATUS ATTEMPTS KEY NONCE
    for order in "${orders[@]}"; do
        requested="$(call_number "$processor" 'requested(uint256)' "$(uint_word "$order")")"
        executed="$(executions "$order")"
        logs="$(rpc eth_getLogs "[{\"fromBlock\":\"0x0\",\"address\":\"$processor\",
            \"topics\":[\"$executed_topic\",\"0x$(uint_word "$order")\"]}]")"
        count="$(jq length <<<"$logs")"
        tx="$(transaction_of "$order")"
        if [ -n "$tx" ]; then
            status="$(jq -r .status <<<"$tx")"
            attempts="$(jq '.attempts | length' <<<"$tx")"
            nonce="$(jq -r '.nonce // "-"' <<<"$tx")"
            key="$(jq -r --arg address "$(jq -r .address <<<"$tx")" \
                '.keys[] | select(.address == $address) | .label' "$run/keys.json")"
        else
            status=- attempts=- nonce=- key=-
            if refusal_of "$order"; then
                status=refused
            fi
        fi
        row "$order" "$(eth "$requested") ETH" "$executed" "$count" \
            "$status" "$attempts" "$key" "$nonce"
        judge_order "$order" "$requested" "$executed" "$logs" "$tx"
        if is_good "$order"; then
            sum=$((sum + requested))
        fi
    done
    echo
    judge_totals "$sum"
}

row() { printf '        %-6s  %-10s  %-8s  %-6s  %-10s  %-8s  %-4s  %s\n' "$@"; }

judge_order() { # order id, requested, executed, logs, transaction
    local order="$1" executed="$3" logs="$4" tx="$5" expected=0
    if is_good "$order"; then
        expected=1
    fi
    [ "$2" -eq "${amount[$order]}" ] || fault "order $order: the chain says another amount"
    if [ "$executed" -ne "$expected" ]; then
        fault "order $order was executed $executed times, not $expected"
        return
    fi
    [ "$(jq length <<<"$logs")" -eq "$expected" ] ||
        fault "order $order has $(jq length <<<"$logs") ChargeExecuted events, not $expected"
    if [ "$expected" -eq 0 ]; then
        [ -z "$tx" ] || fault "order $order has a transaction, and should have been refused"
        return
    fi
    if [ -z "$tx" ]; then
        fault "order $order has no transaction"
        return
    fi
    [ "$(jq -r .status <<<"$tx")" = finalized ] || fault "order $order is not final"
    # What the server says was mined is what the chain says executed it, and is one of its attempts.
    jq -ne --argjson tx "$tx" --argjson logs "$logs" '$logs[0].transactionHash as $mined
        | $tx.receipt.transaction_hash == $mined
            and any($tx.attempts[]; .hash == $mined)' >/dev/null ||
        fault "order $order was not executed by the transaction that the server knows"
    if [ "$order" = "$spiked" ]; then
        jq -e '.attempts | length == 2' <<<"$tx" >/dev/null ||
            fault "order $order, through the fee spike, has not two attempts"
    fi
}

judge_totals() { # wei that the merchant must have
    local earned nonces=0 address count checkpoint size expected
    earned="$(call_number "$processor" 'balances(address)' "$(address_word "$merchant")")"
    say "the merchant has $(eth "$earned") ETH; the orders to execute are $(eth "$1") ETH"
    [ "$earned" -eq "$1" ] || fault "the merchant has not what the orders sum up to"

    for address in $(jq -r '.keys[].address' "$run/keys.json"); do
        count="$(rpc eth_getTransactionCount "[\"$address\",\"latest\"]")"
        nonces=$((nonces + $(number "$count")))
    done
    count="$(jq '.transactions | length' "$run/transactions.json")"
    say "the operator keys have used $nonces nonces for $count transactions"
    [ "$nonces" -eq "$count" ] || fault "the keys have used nonces for something else, or not all"

    await 5 "for the audit log" log_is_sequenced ||
        fault "leaves wait for their place in the audit log"
    checkpoint="$(<"$run/checkpoint.json")"
    size="$(jq -r .size <<<"$checkpoint")"
    say "the audit log has $size leaves, root $(jq -r .root_hash <<<"$checkpoint")"
    # A decision and a signature for each attempt, and the three denials, at the least.
    expected="$(jq '[.transactions[].attempts | length] | add // 0' "$run/transactions.json")"
    expected=$((2 * expected + 3))
    [ "$size" -ge "$expected" ] || fault "the audit log has fewer than $expected leaves"
}

log_is_sequenced() {
    bearer "$run/auditor.token" >"$run/header"
    curl -sS --fail --noproxy '*' --max-time 20 -H "@$run/header" \
        "$admin_url/admin/v1/audit/checkpoint" >"$run/checkpoint.json"
    jq -e '.waiting == "0"' "$run/checkpoint.json" >/dev/null
}

# --- KEEP=1 ---------------------------------------------------------------------------------------

# Tokens live for an hour.
refresh_tokens() {
    local nap=""
    trap 'kill "$nap" 2>/dev/null; exit 0' TERM
    while :; do
        sleep 1200 &
        nap=$!
        wait "$nap"
        issue_tokens
    done
}

keep() {
    start tokens refresh_tokens
    {
        echo '#!/bin/sh'
        echo '# Ends what the demo left running, the last started first, and removes its folder.'
        local indices=("${!pids[@]}") at
        for ((at = ${#indices[@]} - 1; at >= 0; at--)); do
            echo "kill ${pids[${indices[$at]}]} # ${names[${indices[$at]}]}"
        done
        echo 'sleep 2'
        echo "rm -rf '$run'"
    } >"$run/stop.sh"
    chmod 700 "$run/stop.sh"
    kept=1
    cat <<TEXT

Everything is left running.

  clients          $server_url
  administrators   $admin_url
  metrics          $metrics_url
  chain            $rpc_url
  configuration    $config
  client token     $run/client.token   (svc:payouts; renewed every 20 minutes)

Three calls to try:

  T="Authorization: Bearer \$(cat $run/client.token)"
  J='Content-Type: application/json'

  # A signature over a sentence that the policy knows.
  curl -H "\$T" -H "\$J" -H 'Idempotency-Key: try-1' $server_url/v1/signatures \\
    -d '{"signer":"payments","message":{"text":"I control this address: for Example Exchange"}}'

  # A payout of 1 ETH to a payee; to another address, or more than 2 ETH, it is refused.
  curl -H "\$T" -H "\$J" -H 'Idempotency-Key: try-2' $server_url/v1/transactions \\
    -d '{"chain":"local","signer":"payments","gas":"21000","value":"1000000000000000000",
         "to":"0x70997970C51812dc3A010C7d01b50e0d17dc79C8"}'

  # What this caller has asked for, and what became of it.
  curl -H "\$T" $server_url/v1/transactions

To stop it all and remove its folder:

  $run/stop.sh
TEXT
}

# --- The demo -------------------------------------------------------------------------------------

step "Set-up and build"
scripts/setup.sh demo
. scripts/env.sh
say "all tools are there, after $SECONDS s"
build
umask 077
begun="$SECONDS"

step "A chain, and the contracts on it"
start_chain
deploy

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
show_refused "$too_large" args.amount.max

step "A fee spike: two attempts with one nonce"
fee_spike

step "One order more than the window holds"
request_charges "$one_too_many"
show_refused "$one_too_many" windows

step "An invented event"
invented_event

step "All blocks become final"
await 20 "transactions final" all_final || fault "not all transactions are final: $seen"
say "$seen transactions final"

step "Summary: amounts, executions and events are read back from the chain"
summary

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
[ "${#faults[@]}" -eq 0 ]
