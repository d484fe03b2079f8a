#!/usr/bin/env bash
# Feeds the decoders and the bundle parser with bytes that libFuzzer makes up, each target for a bounded time.
# What the targets assert is in docs/ARCHITECTURE.md, "Fuzzing".
#
#   scripts/fuzz.sh       or: make fuzz
#
#   FUZZ_SECONDS   how long each target runs (60)
#   FUZZ_TARGETS   which targets (calldata typed_data bundle)
#
# The kept corpus, fuzz/corpus, is read and never written. What is found beside it stays in the build
# directory, and the next run goes on from there.
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/env.sh
claviger_no_arguments "[FUZZ_SECONDS=N] [FUZZ_TARGETS=…] scripts/fuzz.sh" "$@"

seconds="${FUZZ_SECONDS:-60}"
read -ra targets <<<"${FUZZ_TARGETS:-calldata typed_data bundle}"

scripts/setup.sh fuzz

# The instrumentation that libFuzzer needs is in the stable compiler. No sanitizer of memory is used: those
# need a nightly one, and the code that is fuzzed is Rust without `unsafe`.
fuzz_flags=(
    -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
    "--cfg fuzzing"
)
host="$(rustc -vV | sed -n 's/^host: //p')"
built="$CARGO_TARGET_DIR/fuzz"
log="$(mktemp)"
trap 'rm -f "$log"' EXIT

started="$SECONDS"
echo "building; the first time takes some minutes"
# With a target named, what runs at build time is not instrumented.
RUSTFLAGS="${fuzz_flags[*]}" CARGO_TARGET_DIR="$built" cargo build --locked --release \
    --manifest-path fuzz/Cargo.toml --target "$host" --bins >"$log" 2>&1 || {
    cat "$log"
    exit 1
}
printf '%-12s %4d s\n' build "$((SECONDS - started))"

stat_of() { sed -n "s/^stat::$1: *//p" "$log"; }

status=0
for target in "${targets[@]}"; do
    found="$built/corpus/$target"
    kept="fuzz/corpus/$target"
    mkdir -p "$found" "$built/artifacts"
    if "$built/$host/release/$target" "$found" "$kept" \
        -max_total_time="$seconds" -max_len=8192 -timeout=10 -rss_limit_mb=2048 \
        -artifact_prefix="$built/artifacts/$target-" -print_final_stats=1 >"$log" 2>&1; then
        printf '%-12s %4d s, %d runs, coverage %s, corpus: %d kept, %d found; nothing broke\n' \
            "$target" "$seconds" "$(stat_of number_of_executed_units)" \
            "$(sed -n 's/.*DONE *cov: \([0-9]*\) .*/\1/p' "$log")" \
            "$(find "$kept" -type f | wc -l)" "$(find "$found" -type f | wc -l)"
    else
        tail -n 60 "$log"
        printf '%-12s BROKEN; to see it again: %s FILE\n' "$target" "$built/$host/release/$target"
        status=1
    fi
done
exit "$status"
