# shellcheck shell=bash
# The chain, as the demo's people see it: JSON-RPC and just enough of the contract ABI. Sourced by
# scripts/demo.sh, which sets `rpc_url`. Nothing here goes through Claviger, so that what is read
# back is independent of it.
: "${rpc_url:=}"

# The result of a call to the node; strings without quotes.
rpc() { # method, parameters as JSON
    curl -sS --fail --noproxy '*' --max-time 20 -H 'content-type: application/json' \
        -d "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"$1\",\"params\":${2:-[]}}" "$rpc_url" |
        jq -r --arg method "$1" 'if .error
            then "\($method): \(.error.message)\n" | halt_error(1) else .result end'
}

# --- Words of the ABI -----------------------------------------------------------------------------

uint_word() { printf '%064x' "$1"; }
address_word() { printf '%024d%s' 0 "${1#0x}"; }

# A word of at most 63 bits as a number.
number() { # 0x…
    local digits="${1#0x}"
    digits="${digits#"${digits%%[!0]*}"}"
    [[ "${#digits}" -lt 16 || "$digits" =~ ^[0-7].{15}$ ]] || die "$1 is too large for a demo"
    printf '%d' "$((16#${digits:-0}))"
}

keccak() { # text
    local text="$1" hex="" at
    for ((at = 0; at < ${#text}; at++)); do
        hex+="$(printf '%02x' "'${text:at:1}")"
    done
    rpc web3_sha3 "[\"0x$hex\"]"
}

declare -A selectors
know_selectors() { # function signatures
    local signature hash
    for signature in "$@"; do
        hash="$(keccak "$signature")"
        selectors["$signature"]="${hash:0:10}"
    done
}

# Wei as ETH, with two decimals or as many as it needs.
eth() { # wei
    local whole=$(($1 / 1000000000000000000)) rest
    rest="$(printf '%018d' "$(($1 % 1000000000000000000))")"
    while [ "${#rest}" -gt 2 ] && [ "${rest: -1}" = 0 ]; do
        rest="${rest%0}"
    done
    printf '%s.%s' "$whole" "$rest"
}

# Wei per gas as gwei, with two decimals.
gwei() { # wei
    printf '%d.%02d' "$(($1 / 1000000000))" "$(($1 % 1000000000 / 10000000))"
}

# --- Accounts and contracts -----------------------------------------------------------------------

# From one of the node's own unlocked accounts; prints the hash.
send_from() { # from, to or nothing, data, wei
    local to=""
    if [ -n "$2" ]; then
        to="\"to\":\"$2\","
    fi
    rpc eth_sendTransaction "[{\"from\":\"$1\",$to\"data\":\"$3\",\"gas\":\"0x2dc6c0\",
        \"value\":\"$(printf '0x%x' "${4:-0}")\"}]"
}

# One word of a contract, at the head.
call_word() { # contract, signature, encoded arguments
    rpc eth_call "[{\"to\":\"$1\",\"data\":\"${selectors["$2"]}${3:-}\"},\"latest\"]"
}

call_number() {
    local word
    word="$(call_word "$@")" && number "$word"
}

# Whether all of these are mined and succeeded.
receipts_succeed() { # hashes
    local hash status
    for hash in "$@"; do
        status="$(rpc eth_getTransactionReceipt "[\"$hash\"]" | jq -r '.status // empty')"
        case "$status" in
            0x1) ;;
            "") return 1 ;;
            *) die "the transaction $hash failed on the chain" ;;
        esac
    done
}

# --- Time -----------------------------------------------------------------------------------------

mine() { # blocks
    rpc anvil_mine "[\"$(printf '0x%x' "$1")\"]" >/dev/null
}
run_clock() { rpc evm_setIntervalMining '[1]' >/dev/null; }
stop_clock() { rpc evm_setIntervalMining '[0]' >/dev/null; }
next_base_fee() { # wei
    rpc anvil_setNextBlockBaseFeePerGas "[\"$(printf '0x%x' "$1")\"]" >/dev/null
}
base_fee() {
    local block
    block="$(rpc eth_getBlockByNumber '["latest",false]')"
    number "$(jq -r .baseFeePerGas <<<"$block")"
}

# --- The chain of the demo ------------------------------------------------------------------------

start_chain() {
    free_port
    rpc_url="http://127.0.0.1:$port"
    # No block comes by itself until the set-up is done. With one slot to an epoch, a block is final
    # when two more are on top.
    start anvil "$ANVIL" --host 127.0.0.1 --port "$port" --no-mining --slots-in-an-epoch 1 \
        --base-fee "$gwei_wei" --quiet
    await 20 "for anvil" answers "$rpc_url" || die "anvil does not answer"
    local node_port="$port" accounts
    free_port
    gate_url="http://127.0.0.1:$port"
    start gate node scripts/demo/gate.js "$port" "$node_port"
    await 10 "for the gate in front of it" answers "$gate_url" || die "the gate does not answer"
    accounts="$(rpc eth_accounts)"
    deployer="$(jq -r '.[0]' <<<"$accounts")"
    merchant="$(jq -r '.[1]' <<<"$accounts")"
    admin="$(jq -r '.[2]' <<<"$accounts")"
    user="$(jq -r '.[3]' <<<"$accounts")"
    know_selectors 'requestCharge(uint256,uint256)' 'deposit()' 'grantOperator(address)' \
        'operators(address)' 'requested(uint256)' 'executions(uint256)' 'balances(address)' \
        'executeCharge(uint256,uint256)'
    executed_topic="$(keccak 'ChargeExecuted(uint256,address,uint256)')"
    say "anvil at $rpc_url; the server asks it through a gate, at $gate_url"
}
gate_url=""

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
