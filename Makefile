SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

.PHONY: help setup-demo setup-test build test test-long soak hsm wrapped fuzz demo bench bench-policy bench-watcher clean

help: ## Lists the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

setup-demo: ## Installs what the demo needs and is missing
	@scripts/setup.sh demo

setup-test: ## Installs what the tests need and is missing
	@scripts/setup.sh test

build: ## Builds both programs for release
	@. scripts/env.sh; cargo build --locked --release; echo "$$CARGO_TARGET_DIR/release"

test: ## Sets up, checks the sources and runs every test
	@scripts/test.sh

test-long: ## Simulates 200,000 lives of transactions; CLAVIGER_SEEDS=N, CLAVIGER_SEED=N replays one
	@CLAVIGER_SEEDS="$(CLAVIGER_SEEDS)" CLAVIGER_SEED="$(CLAVIGER_SEED)" scripts/test-long.sh

soak: ## Runs both programs under faults and 50 SIGKILLs; CLAVIGER_SOAK_TRANSACTIONS=2000, CLAVIGER_SOAK_KILLS=50
	@CLAVIGER_SOAK_TRANSACTIONS="$(CLAVIGER_SOAK_TRANSACTIONS)" \
		CLAVIGER_SOAK_KILLS="$(CLAVIGER_SOAK_KILLS)" CLAVIGER_SOAK_BUS="$(CLAVIGER_SOAK_BUS)" \
		CLAVIGER_SEED="$(CLAVIGER_SEED)" scripts/soak.sh

hsm: ## Asks for 100,000 signatures while the HSM does everything that it may do; CLAVIGER_HSM_SIGNATURES=N
	@CLAVIGER_HSM_SIGNATURES="$(CLAVIGER_HSM_SIGNATURES)" CLAVIGER_SEED="$(CLAVIGER_SEED)" scripts/hsm.sh

wrapped: ## Makes 20,000 wrapped keys and measures what they cost; CLAVIGER_WRAPPED_KEYS=20000
	@CLAVIGER_WRAPPED_KEYS="$(CLAVIGER_WRAPPED_KEYS)" scripts/wrapped.sh

fuzz: ## Fuzzes the decoders and the bundle parser, 60 s each; FUZZ_SECONDS=60, FUZZ_TARGETS="calldata"
	@FUZZ_SECONDS="$(FUZZ_SECONDS)" FUZZ_TARGETS="$(FUZZ_TARGETS)" scripts/fuzz.sh

demo: ## Shows a payment end to end; BUS=rabbitmq, KEEP=1 leaves it running, BREAK=watcher or policy breaks it
	@BUS="$(BUS)" KEEP="$(KEEP)" BREAK="$(BREAK)" scripts/demo.sh

bench: ## Measures how much of the HSM's speed reaches a caller; BENCH_SECONDS=5
	@BENCH_SECONDS="$(BENCH_SECONDS)" BENCH_ONLY="$(BENCH_ONLY)" scripts/bench.sh

bench-policy: ## Measures what a decision costs over 1,000 grants
	@. scripts/env.sh; cargo bench --locked --bench policy

bench-watcher: ## Measures how fast the watcher reads and delivers; BLOCKS=200000, LOGS=1000000
	@BLOCKS="$(BLOCKS)" LOGS="$(LOGS)" scripts/bench-watcher.sh

clean: ## Removes what was built and what the demo left; keeps the installed tools
	@. scripts/env.sh; cargo clean; rm -rf .demo .run
