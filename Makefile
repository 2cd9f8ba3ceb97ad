SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Everything that is built once and used again lives here: Kubernetes, images, Python packages, clusters.
export RELANCE_CACHE ?= $(HOME)/.cache/relance
# Clusters of different names live side by side: `NAME=other make cluster`.
NAME ?= relance
TEST_NAME ?= relance-test
CLUSTER ?= own
CLUSTER_SH := tests/cluster/cluster

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: packages
packages: # What the Rust build needs beside Rust
	@$(CLUSTER_SH) packages protobuf-compiler libprotobuf-dev gcc libc6-dev curl

.PHONY: lint
lint: packages ## Formatting and clippy
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings

.PHONY: build
build: packages ## The binary and the tests, by the one profile that all use
	cargo build --bins --tests

.PHONY: test
test: lint ## Everything that CI runs: lint, and all tests against a real cluster of their own
	@NAME=$(TEST_NAME) tests/run

.PHONY: soak
soak: packages ## The random tests of the engine at full length, in release (RELANCE_SEED=1 says where they start)
	RELANCE_HISTORIES=2000 RELANCE_SWEEP=0 RELANCE_KILLS=300 RELANCE_RACES=500 \
		cargo test --release --test engine -- --nocapture histories faults general kills races

.PHONY: fuzz
fuzz: packages ## The fuzzers of the REST API at full length (RELANCE_SEED=1 says which requests)
	@export RELANCE_FUZZ_CASES=$${RELANCE_FUZZ_CASES:-10000} RELANCE_RAW_CASES=$${RELANCE_RAW_CASES:-50000}; \
		NAME=$(TEST_NAME) tests/run --fuzz

.PHONY: kills
kills: packages ## A kill schedule over two clusters at full length (an hour; RELANCE_SEED=1 says which)
	@export RELANCE_KILLS=$${RELANCE_KILLS:-200} RELANCE_KILLS_REFRESHES=$${RELANCE_KILLS_REFRESHES:-300} \
		RELANCE_KILLS_VIEWS=$${RELANCE_KILLS_VIEWS:-30} RELANCE_KILLS_MEAN_SECONDS=$${RELANCE_KILLS_MEAN_SECONDS:-15}; \
		NAME=$(TEST_NAME) tests/run --kills

.PHONY: crowd
crowd: packages ## 500 clients of the REST API at once for a minute, and what they were promised
	@RELANCE_CROWD_SECONDS=60 NAME=$(TEST_NAME) tests/run --test it crowd -- --nocapture

.PHONY: example-airflow
example-airflow: packages ## The example's DAG in a real Airflow, beside an operator (CI runs what its tasks call)
	@export RELANCE_TEST_AIRFLOW=$$(tests/python/venv airflow.txt); NAME=$(TEST_NAME) tests/run --test it airflow

.PHONY: bench
bench: packages ## What a refresh costs beside what Kubernetes itself costs
	@NAME=$(TEST_NAME) tests/run --bench refresh

.PHONY: bench-scale
bench-scale: packages ## Thousands of refreshes over nodes and pods that are none, beside a bare client
	@NAME=$(TEST_NAME) tests/run --release --bench scale

.PHONY: bench-engine
bench-engine: packages ## The engine beside lancedb and the floor, without a cluster; writes benches/RESULTS.md
	@RELANCE_TEST_PYTHON=$$(tests/python/venv) cargo bench --bench engine -- --write benches/RESULTS.md

.PHONY: cluster
cluster: ## Bring up a real Kubernetes on this machine (NAME=relance)
	@$(CLUSTER_SH) up --name $(NAME)

.PHONY: cluster-down
cluster-down: ## Take it down and remove all that belonged to it
	@$(CLUSTER_SH) down --name $(NAME)

.PHONY: image
image: build ## Build the image around the debug binary and load it into the cluster
	@$(CLUSTER_SH) image --name $(NAME) "$$($(CLUSTER_SH) target-dir)/debug/relance"

.PHONY: manifests
manifests: ## Render deploy/relance.yaml from the chart, and copy the CRDs into it
	@deploy/render

.PHONY: demo
demo: ## The whole path once, on a cluster of its own; CLUSTER=current IMAGE=… CATALOG=… on yours
	@CLUSTER=$(CLUSTER) NAME=relance-demo demo/run

.PHONY: demo-down
demo-down: ## Take down what the demo left running
	@CLUSTER=$(CLUSTER) NAME=relance-demo demo/down
