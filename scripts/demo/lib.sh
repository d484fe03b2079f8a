# shellcheck shell=bash
# What the demo says, waits for, and starts. Sourced by scripts/demo.sh, which sets `run`, the
# folder of this run.
: "${run:=}"

# --- Saying ---------------------------------------------------------------------------------------

step_number=0
progress_shown=""

elapsed() { printf '%02d:%02d' "$((SECONDS / 60))" "$((SECONDS % 60))"; }

step() { # title
    step_number=$((step_number + 1))
    printf '\n[%s] %d. %s\n' "$(elapsed)" "$step_number" "$*"
}

say() { printf '        %s\n' "$*"; }

# Indents whatever comes in.
show() { sed 's/^/        /'; }

# One line that replaces itself at a terminal; elsewhere a line for each change.
progress() { # text
    [ "$1" != "$progress_shown" ] || return 0
    progress_shown="$1"
    if [ -t 1 ]; then
        printf '\r\033[K        %s' "$1"
    else
        printf '        %s\n' "$1"
    fi
}

progress_over() {
    if [ -t 1 ] && [ -n "$progress_shown" ]; then
        printf '\r\033[K'
    fi
    progress_shown=""
}

die() {
    progress_over >&2
    printf '\ndemo: %s\n' "$*" >&2
    exit 1
}

# What is not as it should be. The demo goes on, so that the summary can show it, and ends with 1.
faults=()
fault() { # text
    progress_over
    faults+=("$1")
    say "NOT SO: $1"
}

# A problem document, whole, with each reason on one line.
show_problem() { # JSON
    jq -r 'def to_reason:
            {grant, field, expected, actual} + . | with_entries(select(.value != null));
        [to_entries[] | "  \(.key | tojson): " + (if (.value | type) == "array"
            then "[\n" + ([.value[] | "    " + (to_reason | tojson)]
                | join(",\n")) + "\n  ]"
            else (.value | tojson) end)] | "{\n" + join(",\n") + "\n}"' <<<"$1" | show
}

# --- Waiting --------------------------------------------------------------------------------------

# Asks until it is so, or the seconds are over. The probe may set `seen`, which the progress line
# shows. Once something is wrong, nothing is waited for long: it will hardly come right again.
await() { # seconds, what, probe…
    local limit="$1" what="$2" shown=0
    shift 2
    if [ "${#faults[@]}" -gt 0 ] && [ "$limit" -gt 5 ]; then
        limit=5
    fi
    local deadline=$((SECONDS + limit))
    seen=""
    until "$@"; do
        all_alive
        if [ "$SECONDS" -ge "$deadline" ]; then
            progress_over
            return 1
        fi
        # What is there at once needs no line.
        shown=$((shown + 1))
        if [ "$shown" -gt 1 ]; then
            progress "waiting: ${seen:+$seen }$what"
        fi
        sleep 0.2
    done
    progress_over
}

# --- Processes ------------------------------------------------------------------------------------

# In the order of their start; `names` and `pids` go together.
names=()
pids=()

start() { # name, command…
    local name="$1"
    shift
    # Appended to: what is started again goes on in its log.
    "$@" >>"$run/$name.log" 2>&1 </dev/null &
    names+=("$name")
    pids+=("$!")
}

all_alive() {
    local index
    for index in "${!pids[@]}"; do
        if ! kill -0 "${pids[$index]}" 2>/dev/null; then
            progress_over
            tail -n 15 "$run/${names[$index]}.log" >&2
            die "${names[$index]} has ended by itself; its last lines are above"
        fi
    done
}

# Ends one process that we started, and waits until it has ended.
stop() { # index
    local pid="${pids[$1]}" patience
    kill "$pid" 2>/dev/null || true
    for ((patience = 0; patience < 50; patience++)); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    unset "pids[$1]" "names[$1]"
}

stop_named() { # name
    local index
    for index in "${!names[@]}"; do
        if [ "${names[$index]}" = "$1" ]; then
            stop "$index"
        fi
    done
}

# Ends it as a power cut would.
kill9_named() { # name
    local index
    for index in "${!names[@]}"; do
        if [ "${names[$index]}" = "$1" ]; then
            kill -9 "${pids[$index]}"
            wait "${pids[$index]}" 2>/dev/null || true
            unset "pids[$index]" "names[$index]"
        fi
    done
}

# The last started first.
stop_all() {
    local indices=("${!pids[@]}") at
    for ((at = ${#indices[@]} - 1; at >= 0; at--)); do
        stop "${indices[$at]}"
    done
}

# A port of the loopback interface on which nobody listens, below those that systems give out for
# outgoing connections.
taken_ports=" "
free_port() { # sets `port`
    local try
    for ((try = 0; try < 100; try++)); do
        port=$((12000 + RANDOM % 18000))
        case "$taken_ports" in *" $port "*) continue ;; esac
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            taken_ports+="$port "
            return
        fi
    done
    die "no free port found"
}
