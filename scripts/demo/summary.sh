# shellcheck shell=bash
# The summary, and the judgement over it. Sourced by scripts/demo.sh.

is_good() { [[ " ${good[*]} " == *" $1 "* ]]; }

# Status, attempts, key and nonce are the server's; the other columns are read from the chain.
summary() {
    local order requested executed logs count tx status attempts key nonce sum=0
    summarized=""
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
    judge_faults
    judge_bus
    summarized=1
}
# Set as the last act of the two that judge: what ends one of them early must not pass for a verdict.
summarized=""
audited=""

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
        jq -e '.attempts | length >= 2' <<<"$tx" >/dev/null ||
            fault "order $order went through the fee spike without a second attempt"
    fi
}

judge_totals() { # wei that the merchant must have
    local earned nonces=0 used address count checkpoint size expected
    earned="$(call_number "$processor" 'balances(address)' "$(address_word "$merchant")")"
    say "the merchant has $(eth "$earned") ETH; the orders to execute are $(eth "$1") ETH"
    [ "$earned" -eq "$1" ] || fault "the merchant has not what the orders sum up to"

    for address in $(jq -r '.keys[].address' "$run/keys.json"); do
        count="$(rpc eth_getTransactionCount "[\"$address\",\"latest\"]")"
        # Not within the sum: a command that fails inside of arithmetic ends nothing.
        used="$(number "$count")"
        nonces=$((nonces + used))
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

# The log, taken out of the database, and verified as somebody would who has only the public key.
audit_verified() {
    local out="$run/audit"
    audited=""
    "$CLAVIGER_BIN" audit export --config "$config" --out "$out" >/dev/null ||
        { fault "the audit log cannot be exported" && return; }
    "$CLAVIGER_BIN" audit verify --export "$out" --key "$run/dev/audit.vkey" >"$run/verified" 2>&1 ||
        fault "the audit log does not verify"
    show <"$run/verified"
    audited=1
}
