SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

.PHONY: help setup-demo setup-test build test demo clean

help: ## Lists the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup-demo: ## Installs what the demo needs and is missing
	@scripts/setup.sh demo

setup-test: ## Installs what the tests need and is missing
	@scripts/setup.sh test

build: ## Builds both programs for release
	@. scripts/env.sh; cargo build --locked --release; echo "$$CARGO_TARGET_DIR/release"

test: ## Sets up, checks the sources and runs every test
	@scripts/test.sh

demo: ## Shows a payment end to end; BUS=rabbitmq, KEEP=1 leaves it running, BREAK=watcher or policy breaks it
	@BUS="$(BUS)" KEEP="$(KEEP)" BREAK="$(BREAK)" scripts/demo.sh

clean: ## Removes what was built and what the demo left; keeps the installed tools
	@. scripts/env.sh; cargo clean; rm -rf .demo .run
