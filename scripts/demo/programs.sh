# shellcheck shell=bash
# The two programs: their build, their configuration, their start. Sourced by scripts/demo.sh.

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
    "$CLAVIGER_BIN" init --dir "$run/dev" --module "$SOFTHSM_MODULE" --rpc "$gate_url" \
        --listen "$listen" --admin-listen "$admin_listen" --metrics-listen "$metrics_listen" \
        >/dev/null
    say "claviger init: configuration, SoftHSM token, SQLite database, token issuer, policy bundle"
    # A demo has less patience than a real chain asks for.
    change "$config" 'resend_after = "30s"' 'resend_after = "4s"'
    change "$config" 'rebroadcast_after = "10s"' 'rebroadcast_after = "2s"'
    change "$config" 'poll_every = "1s"' 'poll_every = "500ms"'
    if [ "$BUS" = rabbitmq ]; then
        { echo && bus_section && echo 'events = ["claviger.transaction.*"]'; } >>"$config"
        say "the server tells its transactions over RabbitMQ"
    fi
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

$(bus_section)

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
