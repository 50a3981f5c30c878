# Targets for working on this repository; `make` lists them.

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# One thread per process unless a program sets it: processes, not threads, fill the cores.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check configs format bench clean

help: ## This list
	@echo "make TARGET, where TARGET is one of"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "VENV=$(VENV) is the Python environment; set VENV=elsewhere to use another one."

setup: $(READY) ## Create the environment, with packages of the tested versions

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY) ## Caption nine real photos, and show the captions
	HF_HUB_OFFLINE=1 $(BIN)/python -m jobs.demo

test: $(READY) ## The tests, without the slow ones
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

test-all: $(READY) ## All tests, also those that take minutes
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m "slow or not slow"

check: $(READY) ## Lint, format, types, and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

configs: $(READY) ## Write configs/README.md, the list of all settings
	$(BIN)/python -m jobs.settings_page

format: $(READY) ## Reformat the code as `check` requires
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## Measure the speed of the main job: build/bench/results.json, and a table beside it
	@# The rivals' packages are not in the environment of tests; without them the rest is measured.
	@$(BIN)/python -c 'import daft, simplejpeg' 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]' || \
		echo 'The extra "bench" could not be installed: Daft and simplejpeg are not measured.'
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.benchmarks

clean: ## Remove what was built (the environment stays)
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis *.egg-info
	find captioning jobs cluster tests -name __pycache__ -type d -prune -exec rm -rf {} +
