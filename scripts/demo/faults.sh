# shellcheck shell=bash
# What may go wrong under a server, made to go wrong: a block that goes away, a server that is killed.
# Sourced by scripts/demo.sh.
: "${reorged:=}" "${killed:=}"

# --- A reorg --------------------------------------------------------------------------------------

in_pool() { [ "$(rpc txpool_status | jq -r .pending)" != 0x0 ]; }
mined_once() { [ "$(executions "$1")" -eq 1 ]; }
is_mined() {
    read_transactions
    [ "$(mined_hash "$1")" != - ]
}
has_status() { # order id, status
    read_transactions
    seen="$(transaction_of "$1" | jq -r '.status // "none"')"
    [ "$seen" = "$2" ]
}

# Blocks are made by hand meanwhile: one that takes the charge, and that goes away again while it is
# the head. It is not final: with one slot to an epoch, that is two blocks below.
reorg_charge() {
    clock_stopped=1
    stop_clock
    take_charge_away
    clock_stopped=""
    run_clock
    show_executed "$reorged"
    await 10 "for the server to see it" is_mined "$reorged" || fault "order $reorged is not mined"
    say "mined again in block $(mined_in "$reorged"), by the same bytes: $(mined_hash "$reorged")"
}

take_charge_away() {
    local height hash
    request_charges "$reorged"
    # Its event is final.
    mine 2
    if ! await 15 "for the transaction" in_pool; then
        fault "order $reorged was not sent"
        return
    fi
    mine 1
    if ! await 10 "for order $reorged" mined_once "$reorged" ||
        ! await 10 "for the server to see it" has_status "$reorged" mined; then
        fault "order $reorged was not mined"
        return
    fi
    height="$(rpc eth_blockNumber)"
    hash="$(block_hash "$height")"
    reorged_hash="$(mined_hash "$reorged")"
    say "order $reorged is executed in block $(number "$height"), the head: $hash"
    rpc anvil_reorg '[1,[]]' >/dev/null
    # Whatever the node does with the transactions of a block that is gone: it has none of them now.
    rpc anvil_dropAllTransactions >/dev/null
    [ "$(block_hash "$height")" != "$hash" ] || fault "block $(number "$height") is still there"
    say "that block is gone: now $(block_hash "$height"); executed $(executions "$reorged") times"
    [ "$(executions "$reorged")" -eq 0 ] || fault "the reorg did not take the charge away"
    if await 15 "for the server to see it" has_status "$reorged" submitted; then
        say "the server has the transaction back as \`submitted\`, and sends the same bytes again"
    else
        fault "order $reorged is $seen after its block has gone, not submitted"
    fi
    await 15 "for the same bytes" in_pool || fault "order $reorged was not sent again"
}
reorged_hash=""

block_hash() { rpc eth_getBlockByNumber "[\"$1\",false]" | jq -r .hash; }
mined_hash() { transaction_of "$1" | jq -r '.receipt.transaction_hash // "-"'; }
mined_in() { transaction_of "$1" | jq -r '.receipt.block_number // "-"'; }

# --- A kill ---------------------------------------------------------------------------------------

gate() { curl -sS --fail --noproxy '*' --max-time 5 "$gate_url/$1"; }
broadcast_is_held() { [ "$(gate held)" -ge 1 ]; }

# Between a signature and its broadcast: the gate lets the server read, and holds what it sends.
kill_server() {
    gate shut >/dev/null
    request_charges "$killed"
    if ! await 20 "for the signature of order $killed" broadcast_is_held; then
        gate open >/dev/null
        fault "order $killed was not signed"
        return
    fi
    read_transactions
    local attempt
    attempt="$(transaction_of "$killed" | jq -c '.attempts[0]')"
    signed_hash="$(jq -r .hash <<<"$attempt")"
    jq -e '.signed_at != null and .sent_at == null' <<<"$attempt" >/dev/null ||
        fault "order $killed is not between its signature and its broadcast: $attempt"
    say "signed and stored, and on its way: $signed_hash"
    kill9_named server
    say "SIGKILL: the server is gone, with the broadcast in its hand"
    [ "$(rpc eth_getTransactionByHash "[\"$signed_hash\"]")" = null ] ||
        fault "the node knows the transaction, and should not"
    gate open >/dev/null
    start server "$CLAVIGER_BIN" serve --config "$config"
    await 20 "for the server" ready || die "the server is not ready; see $run/server.log"
    say "the server runs again"
    show_executed "$killed"
    await 10 "for the server to see it" is_mined "$killed" || fault "order $killed is not mined"
    say "the same bytes are mined, once: $(mined_hash "$killed")"
}
signed_hash=""

# --- What the summary looks at --------------------------------------------------------------------

judge_faults() {
    local hash
    hash="$(mined_hash "$reorged")"
    if [ "$hash" != "$reorged_hash" ]; then
        fault "order $reorged was mined as $hash after the reorg, and as ${reorged_hash:--} before"
    fi
    hash="$(mined_hash "$killed")"
    if [ "$hash" != "$signed_hash" ]; then
        fault "order $killed was mined as $hash, and signed as ${signed_hash:--} before the kill"
    fi
}
