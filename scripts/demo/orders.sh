# shellcheck shell=bash
# What is asked, and what became of it. Sourced by scripts/demo.sh.

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
    local order executed count=0
    for order in "$@"; do
        # Not within the sum: a command that fails inside of arithmetic ends the probe's caller too.
        executed="$(executions "$order")" || return 1
        count=$((count + executed))
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
            and any(.reasons[]; .field == $field)' \
        <<<"$2" >/dev/null; then
        say "refused, because of \`$3\`"
    else
        fault "$1 was not refused because of \`$3\`"
    fi
}

show_refused() { # order id, reason's field
    if await 20 "for order $1 to be refused" refusal_of "$1"; then
        say "order $1: the watcher parks it, for an operator to look at; the server's answer:"
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
