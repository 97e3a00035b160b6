# Everything is kept outside the tree, under INFERENTIAL_CACHE (~/.cache/inferential by default).
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

export INFERENTIAL_CACHE ?= $(HOME)/.cache/inferential
export RAY_USAGE_STATS_ENABLED := 0
VENV := $(INFERENTIAL_CACHE)/venv
PY := $(VENV)/bin/python

BAZEL := bazel --output_user_root=$(INFERENTIAL_CACHE)/bazel --max_idle_secs=60
BAZEL_OPTIONS := --config=debian --symlink_prefix=/ --color=no --show_progress_rate_limit=30
export CARGO_TARGET_DIR ?= $(INFERENTIAL_CACHE)/cargo-target
CARGO_OPTIONS := --locked --all-features

##@ Use
.PHONY: help
help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: setup-demo ## A fleet of cart-poles, balanced through the server (ARGS="--mujoco --robots 4 --seconds 10")
	@$(if $(findstring --mujoco,$(ARGS)),scripts/apt-install.sh libegl1 libgl1-mesa-dri)
	@$(PY) python/examples/fleet_demo $(ARGS)

##@ Set-up (the other targets call what they need; each is quick when there is nothing to do)
.PHONY: setup setup-demo setup-python setup-proto setup-peer setup-cpp setup-rust
setup: setup-python setup-proto setup-peer setup-cpp setup-rust ## Everything below
setup-demo: ## Python with what the demo needs
	@scripts/setup-python.sh demo
setup-python: ## Python with what tests and checks need
	@scripts/setup-python.sh dev
setup-proto: ## The schema compiler
	@scripts/setup-protoc.sh
setup-peer: ## The released 1.4.0, for interoperation tests and benchmarks
	@scripts/setup-peer.sh

setup-cpp: ## Compiler, Bazel, CMake and the libraries of the C++ SDK
	@scripts/apt-install.sh g++ bazel-bootstrap bazel-rules-java bazel-rules-proto bazel-platforms bazel-skylib \
		cmake pkg-config libzmq3-dev cppzmq-dev protobuf-compiler libprotobuf-dev libgtest-dev libgmock-dev
setup-rust: ## Checks that cargo is there; the C compiler that the crate's libzmq needs
	@scripts/apt-install.sh g++ make
	@scripts/check-cargo.sh

##@ Checks
.PHONY: test test-compiled lint proto check-proto check-version
test: setup-python setup-peer ## Python tests (ARGS="-k name")
	@cd python && $(PY) -m pytest $(ARGS)
test-compiled: setup-python ## The tests of what is compiled in a wheel, on such a wheel
	@python=$$(scripts/setup-compiled.sh) && python/tests/compiled.sh $$python $(ARGS)
lint: setup-python ## Style and types
	@cd python && $(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy
	@cd conformance && $(PY) -m ruff check . && $(PY) -m ruff format --check .
proto: setup-proto ## Generates the Python code of the schema anew
	@scripts/proto.sh
check-proto: setup-proto ## Fails where generated code or a copy of the schema is behind proto/
	@scripts/proto.sh --check
check-version: ## Fails where a package's version differs from VERSION
	@scripts/check-version.sh

##@ C++ and Rust
.PHONY: build-cpp test-cpp build-rust test-rust
build-cpp: setup-cpp ## The C++ SDK, with Bazel
	@$(BAZEL) build $(BAZEL_OPTIONS) //...
test-cpp: setup-cpp ## Its tests, with Bazel
	@$(BAZEL) test $(BAZEL_OPTIONS) //...
build-rust: setup-rust ## The crate, with cargo
	@cd rust && cargo build $(CARGO_OPTIONS)
test-rust: setup-rust ## Its tests, doc-tests, clippy, formatting, and the oldest Rust that its dependencies take
	@cd rust && cargo test $(CARGO_OPTIONS)
	@cd rust && cargo clippy $(CARGO_OPTIONS) --all-targets -- -D warnings && cargo fmt --check
	@for crate in conformance/bindings/rust conformance/peers/rust rust/fuzz; do (cd $$crate && cargo fmt --check) || exit 1; done
	@scripts/check-msrv.py rust conformance/bindings/rust conformance/peers/rust

##@ Conformance
.PHONY: conformance
conformance: setup-python setup-cpp setup-rust setup-peer ## Every client, in every language, against one behaviour (ARGS="-k name")
	@scripts/apt-install.sh iproute2 python3-dev
	@python=$$(scripts/setup-compiled.sh) && modules=$$(conformance/build.sh) && cd conformance && \
		PYTHONPATH=$$modules $$python -m pytest $(ARGS)

##@ Outside test-all, for their length
.PHONY: bench bench-fleet bench-closed-loop bench-simulate bench-scheduling bench-stages bench-report fault soak fuzz sanitize lint-cpp
bench: setup-python setup-peer setup-cpp setup-rust ## Benchmarks side by side (ARGS="roundtrip direct --rounds 5"), into docs/benchmarks
	@python=$$(scripts/setup-compiled.sh) && $$python python/benchmarks/bench.py $(ARGS)
bench-fleet: setup-python setup-peer ## How many robots one simulated GPU carries, live and simulated; 13 minutes (ARGS="--seconds 10": 7; ARGS="--device cuda": a real one)
	@python=$$(scripts/setup-compiled.sh) && $$python python/benchmarks/bench_fleet.py $(ARGS)
	@$(PY) python/benchmarks/report.py
bench-closed-loop: setup-python setup-peer ## How many cart-poles it keeps upright; 8 minutes at most (ARGS="--seconds 10": 3)
	@python=$$(scripts/setup-compiled.sh) && $$python python/benchmarks/bench_closed_loop.py $(ARGS)
	@$(PY) python/benchmarks/report.py
bench-simulate: setup-python ## The simulated sections; 2 minutes (ARGS=large: 100,000 clients, 5 to 10 minutes)
	@python=$$(scripts/setup-compiled.sh) && $$python python/benchmarks/bench_simulate.py $(ARGS)
	@$(PY) python/benchmarks/report.py
bench-scheduling: setup-python ## What a decision costs; 2 minutes
	@python=$$(scripts/setup-compiled.sh) && $$python python/benchmarks/scheduling_cost.py $(ARGS)
bench-stages: setup-python ## What each stage of the server costs; a minute
	@$(PY) python/benchmarks/stage_profile.py $(ARGS)
bench-report: setup-python ## Writes the results into docs/benchmarks.md and README.md
	@$(PY) python/benchmarks/report.py
fuzz: setup-python setup-cpp setup-rust ## Each language's decoder, a minute each
	@scripts/apt-install.sh clang libclang-rt-dev
	@cpp/scripts/fuzz.sh $(or $(FUZZ_SECONDS),60)
	@rust/fuzz/run.sh $(or $(FUZZ_SECONDS),60)
	@cd python && $(PY) -m pytest tests/unit/test_wire.py -k "parsed_or_refused" --hypothesis-profile=fuzz --timeout=600
fault: setup-python ## A replica killed under load: every request ends in exactly one outcome (ARGS="--seconds 10")
	@$(PY) python/benchmarks/fault.py $(ARGS)
soak: setup-python ## Ten minutes each with 10,000 idle and 1,000 busy clients; fails if the server's memory grows
	@python=$$(scripts/setup-compiled.sh) && $$python python/benchmarks/bench.py memory $(ARGS)
sanitize: setup-cpp ## The C++ tests under the address and undefined behaviour sanitizers
	@cpp/scripts/sanitize.sh
lint-cpp: ## BUILD, MODULE.bazel and C++ formatting (installs npm and clang-format)
	@scripts/apt-install.sh $$(command -v npm >/dev/null || echo npm) clang-format
	@cpp/scripts/lint.sh

##@ Everything
.PHONY: test-all
test-all: ## Checks, C++, Rust and conformance, one after another (lint-cpp, sanitize, fuzz and benchmarks are run by themselves)
	@python3 scripts/test_all.py

##@ Tidying
.PHONY: clean
clean: ## Removes what tools left in the tree (not the cache)
	@git clean -fdXq -- python proto docs scripts
