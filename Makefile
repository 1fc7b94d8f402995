# The one door: `make help` lists what it opens. Every recipe is one command or a script beside what it is about.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CUDA ?= 0
DATA ?= figures
PEER_KILLS ?= 5
SEEDS ?= 1000
CARGO := cargo
PROGRAMS := --bin coordinator --bin worker --bin worker-rank

# CUDA=1 builds the same workspace against the full libtorch, beside the CPU build.
ifeq ($(CUDA),1)
export LIBTORCH := $(CURDIR)/.libtorch-cuda
CARGO_FLAGS := --target-dir target-cuda --features rank/cuda
FLAVOUR := cuda
else
CARGO_FLAGS :=
FLAVOUR := cpu
endif

.PHONY: help setup build programs release test sim lint demo chaos bench bench-recovery bench-model bench-schedule leakage parity gpu-check clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s  %s\n", $$1, $$2}' Makefile

setup: ## fetch libtorch (once per machine) and check that the tools are there
	@deploy/setup/prerequisites.sh
	@python3 deploy/setup/libtorch.py $(FLAVOUR)

build: setup ## compile everything (CUDA=1: against CUDA and NCCL)
	$(CARGO) build --locked --workspace $(CARGO_FLAGS)

# The three programs, with the features of the whole workspace: `make test` compiles no crate of them again.
programs: setup
	$(CARGO) build --locked --workspace $(CARGO_FLAGS) $(PROGRAMS)

release: setup ## compile the programs as they are installed: optimised, with symbol names (CUDA=1: against CUDA and NCCL)
	$(CARGO) build --locked --workspace --release $(CARGO_FLAGS) $(PROGRAMS)

test: build ## run every test
	@deploy/setup/test.sh

sim: setup ## simulate SEEDS worlds (KINDS=mixed: with jobs of units); SEED=n TRACE=1 tells one world's story; BUG=name plants a bug, BUGS=1 each of them
	@$(CARGO) build --locked --quiet --workspace --bin sim
	@target/debug/sim --seeds $(SEEDS) $(if $(SEED),--seed $(SEED)) $(if $(BUG),--bug $(BUG)) $(if $(BUGS),--bugs) $(if $(KINDS),--$(KINDS)) $(if $(TRACE),--trace)

lint: setup ## formatting and clippy, warnings are errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

demo: programs ## train the demo job on this machine, from nothing to images (DATA=wesnoth: on drawn art)
	@deploy/demo.sh $(DATA)

chaos: build ## KILLS times SIGKILL, and other faults, on real processes, as SEED says: every job ends to the same bits
	@target/debug/chaos --kills $(or $(KILLS),100) --seed $(or $(SEED),1)

bench: programs ## one rank against two, fast against exact sums, at the same global batch
	@deploy/bench.sh

bench-model: build ## a training micro-step beside PyTorch's, small and at full size, and its memory (SIZE=small for the small one alone)
	@deploy/setup/bench_model.sh $(if $(SIZE),--size $(SIZE))

bench-recovery: build ## kill one of four ranks KILLS times: how long until the next step; and PEER_KILLS times under torchrun and torchft
	@deploy/setup/bench_recovery.sh $(or $(KILLS),20) $(PEER_KILLS)

bench-schedule: build ## how often a second the coordinator decides who runs where
	@target/debug/schedule

parity: build ## our arithmetic beside diffusers and transformers, also at full size (20 GB of disk and memory, minutes)
	@deploy/setup/parity.sh

leakage: build ## the experiment: does training on different images of a character leak less? (hours; goes on where it was)
	@deploy/experiments/leakage.sh $(ARGS)

gpu-check: setup ## pack a stripped binary and a script to run on a machine with one GPU
	@deploy/setup/gpu_pack.sh

clean: ## delete what was built and made here (libtorch stays in its cache)
	rm -rf target target-cuda target-gpu-check .demo .libtorch .libtorch-cuda .libtorch-gpu-check
