# make run: start three local shards and the proxy. make test: everything that must hold.
# make bench: side by side with plain Postgres and PgBouncer. make abuse: what one client's hostile
# load does to the others. make fresh: that a bare Debian needs no more than this (as root).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
AUTOMATOR67_CACHE ?= $(HOME)/.cache/automator67
export AUTOMATOR67_CACHE
CARGO_TARGET_DIR ?= $(AUTOMATOR67_CACHE)/target
export CARGO_TARGET_DIR
FUZZ_SECONDS ?= 60
BENCH_NAME ?= $(shell date -u +%Y-%m-%d)
BENCH_FLAGS ?=

.PHONY: run build test lint unit doc fuzz bench abuse soak fresh regress

run: build
	$(CARGO_TARGET_DIR)/release/automator67 dev

build:
	scripts/setup build
	cargo build --release --locked --package automator67

test: lint unit doc fuzz

lint:
	scripts/setup lint
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
	AUTOMATOR67_POSTGRES=$(NEWEST) $(ON_POSTGRES)

# What must hold on every major version: the case files, the generated statements, the drivers.
NEWEST = 18
ON_POSTGRES = cargo test --locked --workspace --features automator67/failpoints --test main -- \
	--test-threads=1 corpus:: generated:: drivers::

doc:
	scripts/setup build
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps

fuzz:
	scripts/setup test
	fuzz/run $(FUZZ_SECONDS)

# Other major versions of Postgres, and long forms: 100,000 generated statements on every cluster and
# tier, 100,000 changes, 100 rounds of every fault at every step of a commit, ten minutes of TPC-C, a
# minute of clashing values. A difference names its seed and number.
SOAK = cargo test --release --locked --package automator67-tests --test main
soak:
	scripts/setup soak
	for major in 16 17 $(NEWEST); do AUTOMATOR67_POSTGRES=$$major $(ON_POSTGRES); done
	AUTOMATOR67_STATEMENTS=$${AUTOMATOR67_STATEMENTS:-100000} $(SOAK) generated -- --nocapture
	AUTOMATOR67_STATEMENTS=$${AUTOMATOR67_STATEMENTS:-100000} $(SOAK) changes -- --nocapture
	AUTOMATOR67_ROUNDS=$${AUTOMATOR67_ROUNDS:-100} $(SOAK) bank -- --nocapture
	AUTOMATOR67_SECONDS=$${AUTOMATOR67_SECONDS:-600} $(SOAK) tpcc -- --nocapture
	AUTOMATOR67_SECONDS=$${AUTOMATOR67_SECONDS:-60} $(SOAK) unique:: -- --nocapture
	AUTOMATOR67_SECONDS=$${AUTOMATOR67_SECONDS:-60} $(SOAK) history -- --nocapture
	AUTOMATOR67_ROWS=$${AUTOMATOR67_ROWS:-20000000} $(SOAK) volumes

bench: build
	scripts/setup bench
	cargo run --release --locked --package automator67-bench -- \
		--binary $(CARGO_TARGET_DIR)/release/automator67 --name $(BENCH_NAME) $(BENCH_FLAGS)

# BENCH_FLAGS='--before BINARY' compares what a point query costs with an older release binary.
abuse: build
	cargo run --release --locked --package automator67-bench -- --only abuse \
		--binary $(CARGO_TARGET_DIR)/release/automator67 --name $(BENCH_NAME) $(BENCH_FLAGS)

# FRESH='--make run llvm' runs parts of it: see scripts/fresh.
FRESH ?=
fresh:
	scripts/fresh $(FRESH)

# Postgres's own regression scripts on one shard and on three, beside a plain server.
regress: build
	scripts/setup test
	scripts/regress $(CARGO_TARGET_DIR)/release/automator67 bench/runs/$(BENCH_NAME)
