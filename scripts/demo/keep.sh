# shellcheck shell=bash
# What KEEP=1 leaves behind. Sourced by scripts/demo.sh.

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
