# `make help` lists the targets. Each recipe is one command, or a script beside what it is about.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CUDA ?= 0
DATA ?= figures
FLOOD ?=
KILLS ?=
PEER_KILLS ?= 5
SEED ?=
SEEDS ?= 1000
CARGO := cargo
PROGRAMS := --bin coordinator --bin worker --bin worker-rank
# Runs the stages of [build]. It links an engine, so only an installation compiles it.
BUILD_PROGRAM := --bin worker-build

# CUDA=1 compiles the same workspace against the full libtorch, beside the CPU build.
ifeq ($(CUDA),1)
export LIBTORCH := $(CURDIR)/.libtorch-cuda
CARGO_FLAGS := --target-dir target-cuda --features rank/cuda
FLAVOUR := cuda
else
CARGO_FLAGS :=
FLAVOUR := cpu
endif

SIM_FLAGS := --seeds $(SEEDS) $(if $(SEED),--seed $(SEED)) $(if $(BUG),--bug $(BUG)) \
	$(if $(BUGS),--bugs) $(if $(KINDS),--$(KINDS)) $(if $(TRACE),--trace)

.PHONY: help setup build programs release test sim lint monitoring demo chaos bench \
	bench-control bench-evaluate bench-recovery bench-loader bench-model bench-schedule screens \
	bench-stages bench-writer benchmark measure-images measure-masks leakage parity peers \
	gpu-check clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s  %s\n", $$1, $$2} \
		/^## / {printf "  %20s  %s\n", "", substr($$0, 4)}' Makefile

setup: ## download libtorch (once per machine) and check for the tools that are needed
	@deploy/setup/prerequisites.sh
	@python3 deploy/setup/libtorch.py $(FLAVOUR)

build: setup ## compile everything, for development
## CUDA=1: against CUDA and NCCL
	$(CARGO) build --locked --workspace $(CARGO_FLAGS)

# The three programs alone, with the features of the whole workspace, so that `make test` does not
# compile their crates again.
programs: setup
	$(CARGO) build --locked --workspace $(CARGO_FLAGS) $(PROGRAMS)

release: setup ## compile the programs for installation: optimized, with symbol names
## CUDA=1: against CUDA and NCCL; then deploy/systemd/install.sh
	@python3 deploy/setup/onnx.py
	$(CARGO) build --locked --workspace --release $(CARGO_FLAGS) $(PROGRAMS) $(BUILD_PROGRAM)

test: build ## run every test
	@deploy/setup/test.sh

sim: setup ## simulate SEEDS clusters (1000)
## KINDS=mixed: also jobs of units; SEED=n TRACE=1: print one simulation
## BUG=name: plant a bug; BUGS=1: plant each bug in turn
	@$(CARGO) build --locked --quiet --workspace --bin sim
	@target/debug/sim $(SIM_FLAGS)

lint: setup ## check formatting, clippy and the crates' licences and sources
## warnings are errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@deploy/setup/deny.sh

monitoring: setup ## make dashboards, alerts and their test cases from the tables of metrics
	@$(CARGO) build --locked --quiet --workspace --bin monitoring
	@target/debug/monitoring

demo: programs ## train the demo job on this machine, from sample data to images
## DATA=wesnoth: on drawn art
	@deploy/demo.sh $(DATA)

benchmark: programs ## the paper's benchmark at a small size on synthetic figures; hours, resumable
## STEPS of each training (400); MINILM=DIR: with a stand-in for a VQA model
	@$(CARGO) build --locked --quiet --workspace --bin vqa_server
	@MINILM=$(MINILM) deploy/benchmark.sh $(STEPS)

peers: programs ## train the paper's four peers in both pairings at size small; ten grids
## STEPS of each of the nine jobs (400); 400 take about an hour on two cores
	@deploy/peers.sh $(STEPS)

chaos: build ## random faults on real processes, KILLS of them SIGKILL (100), seeded by SEED (1)
## every job must end with bit-identical weights
## FLOOD=1: instead, a job beside floods of requests, connections, jobs and reports: step rates
## and who took the processors, by turns without and beside each of them; memory, and the longest
## silence of the coordinator; FLOOD_SECONDS (8) with and without each, six minutes in all
## FLOOD=workers: only the flood with this in its name
	@target/debug/chaos $(if $(FLOOD),--flood $(or $(FLOOD_SECONDS),8) \
		$(if $(filter-out 1,$(FLOOD)),--only "$(FLOOD)"),\
		--kills $(or $(KILLS),100) --seed $(or $(SEED),1))

bench: programs ## compare one rank with two, and fast with exact sums, at one global batch
	@deploy/bench.sh

bench-model: build ## compare a training micro-step with PyTorch's: speed, and memory
## SIZE=small, figures, full or memory: one of the four; SIZE=peers: the paper's peers
	@deploy/setup/bench_model.sh $(if $(filter peers,$(SIZE)),peers,$(if $(SIZE),--size $(SIZE)))

bench-recovery: build ## kill one of four ranks KILLS times (20): time until the next step
## and PEER_KILLS times (5) under torchrun and under torchft
	@deploy/setup/bench_recovery.sh $(or $(KILLS),20) $(PEER_KILLS)

bench-loader: setup ## compare the loader of samples with MosaicML Streaming and Pillow
## one target and four references at 384 pixels, on all CPUs
	@deploy/setup/bench_loader.sh

bench-writer: setup ## time and memory of the data-set writer alone
## for ROWS rows (1,000,000) of 1 kB
	@$(CARGO) build --locked --quiet --workspace --example bench_writer
	@target/debug/examples/bench_writer $(ROWS)

bench-stages: setup ## time and memory of a data set's tabular stages
## on the metadata of POSTS posts (116,729), generated in .demo
	@$(CARGO) build --locked --quiet --workspace --example bench_stages
	@target/debug/examples/bench_stages .demo/bench-stages-$(or $(POSTS),116729) \
		$(or $(POSTS),116729)

measure-masks: setup ## masks of the default model against the alpha of COUNT (100) sprites
## and masks and faces against synthetic figures; minutes
	@python3 deploy/setup/onnx.py
	@python3 deploy/data/wesnoth.py --out .demo/wesnoth-sprites
	@$(CARGO) build --locked --quiet --workspace --example measure_masks
	@target/debug/examples/measure_masks .demo/wesnoth-sprites .demo/measure-masks \
		$(or $(COUNT),100)
	@target/debug/examples/measure_masks figures .demo/measure-masks $(or $(COUNT),100)

bench-evaluate: programs ## images/s of an evaluation beside a plain loop over the same sampler
	@$(CARGO) build --locked --quiet --workspace --example sample_loop
	@deploy/bench_evaluate.sh

screens: build ## check the pages in a browser, and keep a picture of each screen
## in OUT (.demo/screens): light and dark, 1360 and 400 pixels wide
	@SCREENS=$(or $(OUT),$(CURDIR)/.demo/screens) \
		$(CARGO) test --locked --quiet --workspace --test cluster_web

bench-schedule: build ## measure how often per second the coordinator can schedule
	@target/debug/schedule

bench-control: setup ## the coordinator with 10,000 workers, 1,000 submits, 100,000 ended jobs
## as it is released; report-to-answer, memory per worker, submits, /metrics, pages, a curve of
## 1,000,000 steps; minutes; ARGS="--workers 1000 --ended 1000 --steps 10000"
	@$(CARGO) build --locked --quiet --release --workspace --bin coordinator --bin control
	@target/release/control $(ARGS)

parity: build ## compare with diffusers, transformers and open_clip, also at full size
## 20 GB of disk and memory, minutes
	@deploy/setup/parity.sh

measure-images: programs ## do samples of the small model look like figures, and like references?
## ARGS="retrinet WEIGHTS BASE": folders of exported weights; half an hour, needs Python
	@deploy/experiments/images.sh $(ARGS)

leakage: build ## experiment: does training on different images leak less? (hours, resumable)
	@deploy/experiments/leakage.sh $(ARGS)

gpu-check: setup ## pack a stripped program and a script for a check on a machine with one GPU
	@deploy/setup/gpu_pack.sh

clean: ## delete build outputs and results in this folder (libtorch stays in its cache)
	rm -rf target target-cuda target-gpu-check .demo .libtorch .onnx .libtorch-cuda .libtorch-gpu-check
