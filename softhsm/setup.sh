#!/usr/bin/env bash
# Makes a SoftHSM token for development and tests:
#
#   softhsm/setup.sh                  installs softhsm2 if it is missing
#   softhsm/setup.sh DIR [LABEL]      and makes DIR with a fresh token (default label: claviger)
#
# softhsm/README.md says what is in DIR, and what of it is secret. An existing DIR that has a token
# is refused: a second run must never replace the keys of the first.
set -euo pipefail

die() {
    echo "softhsm: $*" >&2
    exit 1
}

if [ $# -gt 2 ]; then
    echo "usage: softhsm/setup.sh [DIR [LABEL]]" >&2
    exit 2
fi

find_module() {
    local path
    for path in "/usr/lib/$(uname -m)-linux-gnu/softhsm/libsofthsm2.so" \
        /usr/lib/softhsm/libsofthsm2.so; do
        if [ -e "$path" ]; then
            echo "$path"
            return
        fi
    done
}

module="$(find_module)"
if [ -z "$module" ] || ! command -v softhsm2-util >/dev/null; then
    echo "softhsm: Debian package softhsm2" >&2
    sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "must be root, or have sudo, to install softhsm2"
        sudo=(sudo)
    fi
    log="$(mktemp)"
    if ! { "${sudo[@]}" apt-get update &&
        "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y --no-install-recommends softhsm2; } >"$log" 2>&1 </dev/null; then
        tail -n 40 "$log" >&2
        rm -f "$log"
        die "softhsm2 was not installed"
    fi
    rm -f "$log"
    module="$(find_module)"
    [ -n "$module" ] || die "the module is not where Debian puts it"
fi

if [ $# -eq 0 ]; then
    echo "$module"
    exit 0
fi

label="${2:-claviger}"
[ -n "$label" ] && [ "${#label}" -le 32 ] || die "a token's label has 1 to 32 characters"
for name in softhsm2.conf tokens pin so-pin; do
    [ ! -e "$1/$name" ] || die "$1/$name exists: not touched"
done

umask 077
mkdir -p "$1/tokens"
dir="$(cd "$1" && pwd)"

cat >"$dir/softhsm2.conf" <<CONF
directories.tokendir = $dir/tokens
objectstore.backend = file
log.level = ERROR
slots.removable = false
CONF

# 16 random digits and letters for each PIN; written without a final newline.
random_pin() {
    local word
    word="$(od -An -N 8 -tx1 /dev/urandom | tr -d ' \n')"
    [ "${#word}" -eq 16 ] || die "no random bytes"
    printf '%s' "$word"
}
random_pin >"$dir/pin"
random_pin >"$dir/so-pin"

# softhsm2-util takes PINs as arguments or from a terminal only. These are random, of a token that
# is made at this moment and for development; an HSM with real keys is set up by its own tools.
SOFTHSM2_CONF="$dir/softhsm2.conf" softhsm2-util --init-token --free --label "$label" \
    --pin "$(cat "$dir/pin")" --so-pin "$(cat "$dir/so-pin")" >"$dir/init.log" 2>&1 || {
    cat "$dir/init.log" >&2
    die "the token was not made; remove $dir and try again"
}
rm "$dir/init.log"

cat <<MADE
export SOFTHSM2_CONF=$dir/softhsm2.conf

[hsm]
module = "$module"
token_label = "$label"
pin_file = "$dir/pin"
MADE
