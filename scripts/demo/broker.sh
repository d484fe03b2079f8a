# shellcheck shell=bash
# A private RabbitMQ for BUS=rabbitmq: its own folder, node name, ports and Erlang port mapper, so that
# it meets no other broker of the machine. Sourced by scripts/demo.sh, which sets `run`.
: "${run:=}"

start_broker() {
    local home="$run/rabbitmq" password mapper_port distribution_port managed_port
    mkdir -p "$home"
    password="$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')"
    free_port
    mapper_port="$port"
    free_port
    distribution_port="$port"
    free_port
    managed_port="$port"
    free_port
    cat >"$home/rabbitmq.conf" <<CONF
listeners.tcp.1 = 127.0.0.1:$port
management.tcp.ip = 127.0.0.1
management.tcp.port = $managed_port
default_user = claviger
default_pass = $password
vm_memory_high_watermark.absolute = 512MB
disk_free_limit.absolute = 50MB
CONF
    # By its HTTP interface the demo's backend makes its queue, and reads it.
    echo '[rabbitmq_management].' >"$home/enabled_plugins"
    # Read instead of the machine's own; empty, for the settings below to hold.
    : >"$home/rabbitmq-env.conf"
    # The broker would leave a port mapper running for ever; this one is ended like the others.
    start epmd epmd -address 127.0.0.1 -port "$mapper_port"
    await 10 "for the Erlang port mapper" answers "tcp://127.0.0.1:$mapper_port" ||
        die "epmd does not answer; see $run/epmd.log"
    # RUNNING_UNDER_SYSTEMD: the script then becomes the broker itself, under the same id.
    start rabbitmq env -i HOME="$home" PATH="$PATH" LANG=C.UTF-8 RUNNING_UNDER_SYSTEMD=true \
        ERL_EPMD_PORT="$mapper_port" ERL_EPMD_ADDRESS=127.0.0.1 \
        RABBITMQ_NODENAME="claviger-demo-$$@localhost" \
        RABBITMQ_DIST_PORT="$distribution_port" \
        RABBITMQ_CONF_ENV_FILE="$home/rabbitmq-env.conf" \
        RABBITMQ_CONFIG_FILE="$home/rabbitmq.conf" \
        RABBITMQ_ENABLED_PLUGINS_FILE="$home/enabled_plugins" \
        RABBITMQ_MNESIA_BASE="$home/mnesia" RABBITMQ_LOG_BASE="$home/log" RABBITMQ_LOGS=- \
        RABBITMQ_PID_FILE="$home/pid" \
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1} \
+sbwt none +sbwtdcpu none +sbwtdio none" \
        /usr/lib/rabbitmq/bin/rabbitmq-server
    broker_port="$port"
    printf 'amqp://claviger:%s@127.0.0.1:%s/%%2f\n' "$password" "$broker_port" >"$run/rabbitmq.url"
    await 90 "for RabbitMQ" speaks_amqp || die "RabbitMQ does not answer; see $run/rabbitmq.log"
    managed_url="http://127.0.0.1:$managed_port/api"
    (umask 077 && printf 'user = "claviger:%s"\n' "$password" >"$run/rabbitmq.user")
    await 30 "for RabbitMQ's management" manage GET overview >/dev/null ||
        die "RabbitMQ's management does not answer; see $run/rabbitmq.log"
    say "RabbitMQ at 127.0.0.1:$broker_port"
    # As a backend would: it binds a queue to what it handles, and gets that and nothing else.
    {
        manage PUT exchanges/%2F/claviger.events '{"type":"topic","durable":true}'
        manage PUT queues/%2F/backend '{"durable":true,"arguments":{"x-queue-type":"quorum"}}'
        manage POST bindings/%2F/e/claviger.events/q/backend \
            '{"routing_key":"local.transaction.*"}'
    } >/dev/null || die "the backend's queue cannot be made"
    say "a backend binds the queue \`backend\` to local.transaction.*"
}
broker_port=""
managed_url=""

manage() { # method, path, body
    curl -sS --fail --noproxy '*' --max-time 10 --config "$run/rabbitmq.user" -X "$1" \
        -H 'content-type: application/json' ${3:+--data "$3"} "$managed_url/$2" 2>/dev/null
}

# Takes what waits for the backend: a document on each line.
take_messages() {
    manage POST queues/%2F/backend/get \
        '{"count":500,"ackmode":"ack_requeue_false","encoding":"auto"}' | jq -r '.[].payload'
}

# A broker that still starts may accept a connection, and not answer the protocol's header.
speaks_amqp() {
    local first
    first="$( (
        exec 3<>"/dev/tcp/127.0.0.1/$broker_port" || exit 1
        printf 'AMQP\0\0\11\1' >&3
        timeout 2 head -c 1 <&3 | od -An -tx1
    ) 2>/dev/null)" || return 1
    [ "$first" = " 01" ]
}

# The section of either program's configuration.
bus_section() {
    if [ "$BUS" = rabbitmq ]; then
        printf '[bus]\nkind = "rabbitmq"\nurl_file = "%s"\n' "$run/rabbitmq.url"
    fi
}

# Every order's event must have gone over the broker, and none may be left in it.
judge_bus() {
    [ "$BUS" = rabbitmq ] || return 0
    local status published left
    status="$(watcher_status)"
    published="$(jq '[.outbox[] | select(.consumer == "publisher" and .state == "done") | .count]
        | add // 0' <<<"$status")"
    # A queue that is not there has no number, and is not an empty one.
    left="$(jq -r '(.bus.queues // []) | if length == 0 or any(.[]; .messages == null)
        then "unknown" else map(.messages) | add end' <<<"$status")"
    say "RabbitMQ has confirmed $published events; $left are left in the trigger's queues"
    [ "$published" -eq "${#orders[@]}" ] || fault "not every order's event went over RabbitMQ"
    [ "$left" = 0 ] || fault "messages left in RabbitMQ: $left"
}
