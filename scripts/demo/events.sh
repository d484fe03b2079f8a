# shellcheck shell=bash
# What a backend hears of its payments: from the server's stream, and over RabbitMQ where there is one. Sourced
# by scripts/demo.sh.
: "${run:=}"

# The stream from its beginning, as it is now. It does not end by itself: it is cut off.
read_stream() { # file for the documents
    bearer "$run/watcher.token" >"$run/header"
    curl -sS -N --noproxy '*' --max-time 2 -H "@$run/header" \
        "$server_url/v1/events?last_event_id=0&types=claviger.transaction.*" \
        2>/dev/null | sed -n 's/^data: //p' >"$1" || true
}

# Whether the documents of a file tell of each good order that it is final.
tells_all_final() { # file
    local order id told=0
    for order in "${good[@]}"; do
        id="$(transaction_of "$order" | jq -r .id)"
        if jq -ens --arg id "$id" '[inputs[]] | any(.[]; .subject == $id
            and .type == "claviger.transaction.finalized")' <"$1" >/dev/null; then
            told=$((told + 1))
        fi
    done
    seen="$told/${#good[@]}"
    [ "$told" -eq "${#good[@]}" ]
}

# Each event once or again with the same id, and each order's in the order in which they happened.
judge_told() { # file, by what
    local order id story
    for order in "${good[@]}"; do
        id="$(transaction_of "$order" | jq -r .id)"
        story="$(jq -ncs --arg id "$id" '[inputs[] | select(.subject == $id)]
            | reduce .[] as $one ([]; if any(.[]; .id == $one.id) then . else . + [$one] end)
            | map(.data.status)' <"$1")"
        jq -ne --argjson story "$story" '$story | .[0] == "queued" and .[1] == "submitted"
            and .[-1] == "finalized" and (map(select(. == "finalized")) | length == 1)' >/dev/null ||
            fault "what $2 told of order $order is not its story: $story"
    done
    say "$2 told $(jq -s length "$1") events; of order $reorged: $(jq -rns --arg id \
        "$(transaction_of "$reorged" | jq -r .id)" '[inputs[] | select(.subject == $id)
        | .data.status] | join(", ")' <"$1")"
}

stream_told() {
    read_stream "$run/stream.jsonl"
    tells_all_final "$run/stream.jsonl"
}

broker_told() {
    take_messages >>"$run/heard.jsonl"
    tells_all_final "$run/heard.jsonl"
}

judge_events() {
    if await 15 "orders told to be final by the stream" stream_told; then
        judge_told "$run/stream.jsonl" "GET /v1/events"
    else
        fault "the stream of events told of $seen orders that they are final"
    fi
    [ "$BUS" = rabbitmq ] || return 0
    : >"$run/heard.jsonl"
    if await 15 "orders told to be final over RabbitMQ" broker_told; then
        judge_told "$run/heard.jsonl" "RabbitMQ"
    else
        fault "RabbitMQ brought the backend word of $seen orders that they are final"
    fi
}
