SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

export RELANCE_CACHE ?= $(HOME)/.cache/relance

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: packages
packages: # What the Rust build needs beside Rust
	@tests/cluster/cluster packages protobuf-compiler

.PHONY: lint
lint: packages ## Formatting and clippy
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings

.PHONY: test
test: lint ## Everything that CI runs
	cargo test
