# make run: start three local shards and the proxy. make test: everything that must hold.
# make bench: side by side with plain Postgres and PgBouncer.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
AUTOMATOR67_CACHE ?= $(HOME)/.cache/automator67
export AUTOMATOR67_CACHE
CARGO_TARGET_DIR ?= $(AUTOMATOR67_CACHE)/target
export CARGO_TARGET_DIR
FUZZ_SECONDS ?= 60
BENCH_NAME ?= $(shell date -u +%Y-%m-%d)
BENCH_FLAGS ?=

.PHONY: run build test lint unit doc fuzz bench soak

run: build
	$(CARGO_TARGET_DIR)/release/automator67 dev

build:
	scripts/setup build
	cargo build --release --locked --package automator67

test: lint unit doc fuzz

lint:
	scripts/setup build
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

unit:
	scripts/setup test
	cargo build --locked --workspace --all-targets --features automator67/failpoints
	if cargo nextest --version >/dev/null 2>&1; then \
		cargo nextest run --locked --workspace --features automator67/failpoints --no-fail-fast; \
	else \
		cargo test --locked --workspace --features automator67/failpoints --no-fail-fast -- --test-threads=2; \
	fi

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps

fuzz:
	fuzz/run $(FUZZ_SECONDS)

# 100,000 generated statements on every cluster and tier; a difference names its seed and number.
soak:
	scripts/setup test
	AUTOMATOR67_STATEMENTS=$${AUTOMATOR67_STATEMENTS:-100000} cargo test --release --locked \
		--package automator67-tests --test main generated -- --nocapture
	AUTOMATOR67_ROWS=$${AUTOMATOR67_ROWS:-20000000} cargo test --release --locked \
		--package automator67-tests --test main volumes

bench: build
	scripts/setup bench
	cargo run --release --locked --package automator67-bench -- \
		--binary $(CARGO_TARGET_DIR)/release/automator67 --name $(BENCH_NAME) $(BENCH_FLAGS)
