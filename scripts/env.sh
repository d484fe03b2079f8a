# shellcheck shell=bash
# Sourced by the other scripts, and by whoever wants to run a tool by hand:
#
#   . scripts/env.sh
#
# It only looks, and exports where things are; scripts/setup.sh puts them there. What is not
# installed yet is exported as an empty string. It asks no network and changes no file.

CLAVIGER_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
CLAVIGER_CACHE="${CLAVIGER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/claviger}"
# Outside the clone, so that a fresh clone takes up the build of the one before.
CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$CLAVIGER_CACHE/target}"

# The exact version of a dependency in a committed package.json.
claviger_pin() { # package.json, package
    sed -n "s|.*\"$2\": *\"\([^\"]*\)\".*|\1|p" "$CLAVIGER_ROOT/$1"
}

claviger_first_file() { # candidate paths
    local path
    for path in "$@"; do
        if [ -e "$path" ]; then
            printf '%s\n' "$path"
            return
        fi
    done
}

# For a script that takes no arguments: --help prints the comment at its head, anything else how it is used.
claviger_no_arguments() { # usage, arguments of the script…
    case "${2:-}" in
        "") ;;
        -h | --help)
            sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$CLAVIGER_ROOT/scripts/${0##*/}"
            exit 0
            ;;
        *)
            echo "usage: $1" >&2
            exit 2
            ;;
    esac
}

# Settings of other set-ups, and proxies, do not concern what a script runs in private.
claviger_clear_environment() {
    local variable
    for variable in $(compgen -v CLAVIGER__); do
        unset "$variable"
    done
    export NO_PROXY="127.0.0.1,localhost" no_proxy="127.0.0.1,localhost"
}

case "$(uname -m)" in
    aarch64 | arm64) CLAVIGER_ANVIL_PACKAGE="@foundry-rs/anvil-linux-arm64" ;;
    *) CLAVIGER_ANVIL_PACKAGE="@foundry-rs/anvil-linux-amd64" ;;
esac
CLAVIGER_ANVIL_VERSION="$(claviger_pin scripts/anvil/package.json @foundry-rs/anvil-linux-amd64)"
CLAVIGER_ANVIL_DIR="$CLAVIGER_CACHE/npm/anvil-$CLAVIGER_ANVIL_VERSION"
ANVIL="$(claviger_first_file "$CLAVIGER_ANVIL_DIR/node_modules/$CLAVIGER_ANVIL_PACKAGE/bin/anvil")"

CLAVIGER_SOLC_VERSION="$(claviger_pin contracts/package.json solc)"
CLAVIGER_SOLC_DIR="$CLAVIGER_CACHE/npm/solc-$CLAVIGER_SOLC_VERSION"

SOFTHSM_MODULE="$(claviger_first_file \
    "/usr/lib/$(uname -m)-linux-gnu/softhsm/libsofthsm2.so" \
    /usr/lib/softhsm/libsofthsm2.so)"

# The newest server that is installed: Debian keeps one directory for each major version.
claviger_postgres="$(printf '%s\n' /usr/lib/postgresql/*/bin/initdb | sort -V | tail -n 1)"
PG_BIN=""
if [ -x "$claviger_postgres" ]; then
    PG_BIN="$(dirname "$claviger_postgres")"
fi
unset claviger_postgres

CLAVIGER_CARGO_DENY_VERSION="0.20.2"
CARGO_DENY="$(claviger_first_file "$CLAVIGER_CACHE/tools/cargo-deny-$CLAVIGER_CARGO_DENY_VERSION/bin/cargo-deny")"

export CLAVIGER_ROOT CLAVIGER_CACHE CLAVIGER_ANVIL_DIR CLAVIGER_SOLC_DIR CARGO_TARGET_DIR ANVIL SOFTHSM_MODULE PG_BIN CARGO_DENY
