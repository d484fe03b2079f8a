#!/usr/bin/env bash
# Installs what the demo or the tests need, and only what is missing:
#
#   scripts/setup.sh demo     SoftHSM, jq, curl, anvil; with BUS=rabbitmq RabbitMQ
#   scripts/setup.sh test     the same, and PostgreSQL, RabbitMQ, solc, cargo-deny
#   scripts/setup.sh fuzz     a C++ compiler, which libFuzzer needs, and nothing else
#
# One line for each thing that is installed, silence for what is there. When all is there, no
# network is used. Services of the machine are not used, so none need run: the tests start private
# instances of their own.
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/env.sh

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

case "${1:-}" in
    demo | test | fuzz) what="$1" ;;
    *)
        echo "usage: scripts/setup.sh demo|test|fuzz" >&2
        exit 2
        ;;
esac

log="$(mktemp)"
staging=""
trap 'rm -rf "$log" "$staging"' EXIT

# Runs a command silently; shows what it printed only if it fails.
quietly() {
    if ! "$@" >"$log" 2>&1 </dev/null; then
        tail -n 40 "$log" >&2
        die "failed: $*"
    fi
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "must be root, or have sudo, to run: $*"
    fi
}

have() { command -v "$1" >/dev/null 2>&1; }

check_toolchain() {
    have cargo || die "no cargo on the PATH: install Rust $(rust_channel) with rustup"
    local found
    found="$(rustc --version 2>"$log")" || {
        cat "$log" >&2
        die "rustc does not run; rust-toolchain.toml asks for $(rust_channel)"
    }
    case "$found" in
        "rustc $(rust_channel) "*) ;;
        *) die "rust-toolchain.toml asks for $(rust_channel), but found: $found" ;;
    esac
    have cc || die "no C compiler (cc) on the PATH: install Debian's gcc"
}

rust_channel() { sed -n 's/^channel *= *"\(.*\)"/\1/p' rust-toolchain.toml; }

# Debian's packages, by what they bring and not by name: another origin of the same tool is fine.
packages=()
need_packages() {
    [ -n "$SOFTHSM_MODULE" ] && { have softhsm2-util || [ -x /usr/bin/softhsm2-util ]; } ||
        packages+=(softhsm2)
    have jq || packages+=(jq)
    have curl || packages+=(curl)
    # Debian's npm brings a Node of its own and conflicts with others, so only if there is none.
    have npm || packages+=(nodejs npm)
    if [ "$what" = test ]; then
        [ -n "$PG_BIN" ] || packages+=(postgresql)
    fi
    if [ "$what" = test ] || [ "${BUS:-}" = rabbitmq ]; then
        [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || packages+=(rabbitmq-server)
    fi
}

install_packages() {
    [ "${#packages[@]}" -gt 0 ] || return 0
    have apt-get || die "missing: ${packages[*]} (no apt-get here to install them)"
    say "Debian packages: ${packages[*]}"
    quietly as_root apt-get update
    # RUNLEVEL=1 asks the packages not to start their services. Where systemd starts them all the
    # same, they do not matter to us: the tests use neither them nor their ports.
    quietly as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -y --no-install-recommends "${packages[@]}"
}

# A directory is complete or absent: it is filled beside its place and then moved there, so that
# neither an interruption nor a second set-up at the same time leaves half of it.
stage_for() {
    mkdir -p "$(dirname "$1")"
    staging="$(mktemp -d "$1.XXXXXX")"
}
put_in_place() {
    if [ ! -e "$1" ]; then
        mv -T "$staging" "$1" 2>/dev/null || [ -e "$1" ] || die "cannot write $1"
    fi
    rm -rf "$staging"
    staging=""
}

npm_quietly() { quietly npm "$@" --ignore-scripts --no-audit --no-fund --no-progress; }

install_anvil() {
    [ -z "$ANVIL" ] || return 0
    say "anvil $CLAVIGER_ANVIL_VERSION"
    rm -rf "$CLAVIGER_ANVIL_DIR"
    stage_for "$CLAVIGER_ANVIL_DIR"
    cp scripts/anvil/package.json scripts/anvil/package-lock.json "$staging"
    if [ "$CLAVIGER_ANVIL_PACKAGE" = "@foundry-rs/anvil-linux-amd64" ]; then
        npm_quietly ci --prefix "$staging"
    else
        # The lock names the package of the architecture on which it was made.
        rm "$staging/package.json" "$staging/package-lock.json"
        npm_quietly install --prefix "$staging" --no-save --no-package-lock \
            "$CLAVIGER_ANVIL_PACKAGE@$CLAVIGER_ANVIL_VERSION"
    fi
    put_in_place "$CLAVIGER_ANVIL_DIR"
}

install_solc() {
    [ ! -e "$CLAVIGER_SOLC_DIR/node_modules/solc/package.json" ] || return 0
    say "solc $CLAVIGER_SOLC_VERSION"
    rm -rf "$CLAVIGER_SOLC_DIR"
    stage_for "$CLAVIGER_SOLC_DIR"
    cp contracts/package.json contracts/package-lock.json "$staging"
    npm_quietly ci --prefix "$staging"
    put_in_place "$CLAVIGER_SOLC_DIR"
}

install_cargo_deny() {
    [ -z "$CARGO_DENY" ] || return 0
    local place="$CLAVIGER_CACHE/tools/cargo-deny-$CLAVIGER_CARGO_DENY_VERSION"
    say "cargo-deny $CLAVIGER_CARGO_DENY_VERSION (compiles for about three minutes)"
    rm -rf "$place"
    stage_for "$place"
    mkdir "$staging/build"
    quietly cargo install --locked --version "=$CLAVIGER_CARGO_DENY_VERSION" \
        --root "$staging" --target-dir "$staging/build" cargo-deny
    rm -rf "$staging/build"
    put_in_place "$place"
}

check_toolchain
if [ "$what" = fuzz ]; then
    have c++ || packages+=(g++)
    install_packages
    exit 0
fi
need_packages
install_packages
install_anvil
if [ "$what" = test ]; then
    install_solc
    install_cargo_deny
fi

# Look again, so that what should be there now is there, or said to be missing.
. scripts/env.sh
[ -n "$SOFTHSM_MODULE" ] || die "SoftHSM's module (libsofthsm2.so) is not where Debian puts it"
[ -n "$ANVIL" ] || die "anvil is not in $CLAVIGER_ANVIL_DIR"
if [ "$what" = test ]; then
    [ -n "$PG_BIN" ] || die "no PostgreSQL server under /usr/lib/postgresql"
    [ -n "$CARGO_DENY" ] || die "cargo-deny is not in $CLAVIGER_CACHE/tools"
fi
